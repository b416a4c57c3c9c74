//! STS itself, through the AWS SDK.
//!
//! Thin: it makes one attempt, bounded in time, and says what came of it. The SDK's own retries are
//! off, because the ledger and the schedule decide when to ask again; two layers of retries would
//! triple the calls exactly when STS asks for fewer. The SDK's default chain finds the server's
//! credentials, and `AWS_ENDPOINT_URL_STS` its endpoint.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::Client;
use aws_sdk_sts::config::IdentityCache;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::{AssumeRoleError, AssumeRoleOutput};
use aws_sdk_sts::types::{PolicyDescriptorType, Tag};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use kiam_wire::UnixSeconds;
use zeroize::Zeroizing;

use super::answered::{self, Said};
use super::causes;
use super::refusal::{Words, classify, is_chaining_cap};
use super::{IssueError, Issued, Issuer};
use crate::arn::RoleArn;
use crate::clock::Clock;
use crate::policy::{RoleRequest, Session};

/// How the server reaches STS.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `--region`: where STS is asked. `us-east-1-fips` and the like mean the FIPS endpoint. Empty:
    /// what the SDK's chain finds, else the first region of the base ARN's partition.
    pub region: Option<String>,
    /// The base ARN's partition, where it is known.
    pub partition: Option<String>,
    /// `--assume-role-arn`: assumed first.
    pub assume_role: Option<RoleArn>,
}

/// A client of STS.
#[derive(Debug)]
pub struct Sts {
    client: Client,
    clock: Clock,
    /// Who we are to AWS, once asked.
    caller: OnceLock<String>,
    /// STS has said that we are a chained role, so that an hour is the most there is.
    is_chained: AtomicBool,
}

const CONNECT_MAX: Duration = Duration::from_secs(3);
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// AWS: the longest session of a role that another role assumes.
const CHAINED_MAX: Duration = Duration::from_hours(1);
/// Our own credentials are renewed this long before their end.
const OWN_RENEWED_BEFORE: Duration = Duration::from_mins(5);
const OWN_SESSION_NAME: &str = "kiam-server";

/// The HTTP client of all our calls to AWS: rustls on ring.
pub fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https()
}

/// What every call to AWS shares, to be loaded by [`Sts::connect`].
pub fn defaults() -> ConfigLoader {
    aws_config::defaults(BehaviorVersion::latest()).http_client(http_client())
}

impl Sts {
    /// A client as set up; makes no call to STS yet. `loader` is [`defaults`], with what the caller
    /// knows better.
    pub async fn connect(loader: ConfigLoader, settings: &Settings, clock: Clock) -> Self {
        let config = Box::pin(load(loader, settings)).await;
        let config = match &settings.assume_role {
            Some(role) => Box::pin(behind(role, config)).await,
            None => config,
        };
        let config = aws_sdk_sts::config::Builder::from(&config)
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_MAX)
                    .operation_attempt_timeout(ATTEMPT_MAX)
                    .operation_timeout(2 * ATTEMPT_MAX)
                    .build(),
            )
            .identity_cache(
                IdentityCache::lazy()
                    .buffer_time(OWN_RENEWED_BEFORE)
                    .load_timeout(ATTEMPT_MAX)
                    .build(),
            )
            .build();
        Self {
            client: Client::from_conf(config),
            clock,
            caller: OnceLock::new(),
            is_chained: AtomicBool::new(false),
        }
    }

    /// Who we are to AWS, as STS says; asked until it has answered once.
    pub async fn caller(&self) -> Result<&str, IssueError> {
        if let Some(caller) = self.caller.get() {
            return Ok(caller);
        }
        let output = Box::pin(self.client.get_caller_identity().send())
            .await
            .map_err(|error| match error.code() {
                Some(code) => IssueError::OwnCredentials(format!(
                    "{code}: {}",
                    error.message().unwrap_or_default()
                )),
                None => without_answer(&error),
            })?;
        let arn = output
            .arn
            .ok_or_else(|| IssueError::Unreachable("STS does not say who we are".to_owned()))?;
        Ok(self.caller.get_or_init(|| arn))
    }

    async fn assume(
        &self,
        request: &RoleRequest,
        duration: Duration,
    ) -> Result<AssumeRoleOutput, SdkError<AssumeRoleError>> {
        // No `..`: what is in the request's id must be asked for.
        let Session {
            role,
            name,
            external_id,
            tags,
            transitive_keys,
            policy_arns,
            source_identity,
            duration: _,
        } = request.session();
        let tag = |tag: &crate::annotations::Tag| {
            let tag = Tag::builder().key(&tag.key).value(&tag.value).build();
            // Key and value are set, so nothing is missing.
            tag.ok()
        };
        let policy = |arn: &String| PolicyDescriptorType::builder().arn(arn).build();
        let some = |list: Vec<_>| Some(list).filter(|list: &Vec<_>| !list.is_empty());
        let call = self
            .client
            .assume_role()
            .role_arn(role.as_str())
            .role_session_name(name)
            .set_external_id(external_id.clone())
            .set_tags(Some(tags.iter().filter_map(tag).collect()).filter(|_| !tags.is_empty()))
            .set_transitive_tag_keys(some(transitive_keys.clone()))
            .set_policy_arns(
                Some(policy_arns.iter().map(policy).collect()).filter(|_| !policy_arns.is_empty()),
            )
            .set_source_identity(source_identity.clone())
            .duration_seconds(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX));
        Box::pin(call.send()).await
    }

    fn error(&self, error: &SdkError<AssumeRoleError>, request: &RoleRequest) -> IssueError {
        let status = error
            .raw_response()
            .map(|response| response.status().as_u16());
        let Some(status) = status.filter(|status| *status >= 300) else {
            return without_answer(error);
        };
        let Said { code, message } = said(error);
        if code.is_empty() && status != 403 {
            return without_answer(error);
        }
        let words = Words {
            status,
            code: &code,
            message: &message,
        };
        classify(words, request, self.caller.get().map(String::as_str))
    }
}

impl Issuer for Sts {
    async fn issue(&self, request: Arc<RoleRequest>) -> Result<Issued, IssueError> {
        let wanted = request.session().duration;
        let duration = if self.is_chained.load(Ordering::Relaxed) {
            wanted.min(CHAINED_MAX)
        } else {
            wanted
        };
        let asked_at = self.clock.now().monotonic;
        let error = match self.assume(&request, duration).await {
            Ok(output) => return issued(output, duration, asked_at),
            Err(error) => error,
        };
        let Said { code, message } = said(&error);
        let is_capped = duration > CHAINED_MAX && is_chaining_cap(&code, &message);
        if !is_capped {
            return Err(self.error(&error, &request));
        }
        if !self.is_chained.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the server's own credentials are those of a role, and AWS caps the sessions of \
                 roles that a role assumes at one hour: longer ones are asked for an hour from now \
                 on"
            );
        }
        let asked_at = self.clock.now().monotonic;
        let output = self.assume(&request, CHAINED_MAX).await;
        let output = output.map_err(|error| self.error(&error, &request))?;
        issued(output, CHAINED_MAX, asked_at)
    }
}

async fn load(loader: ConfigLoader, settings: &Settings) -> SdkConfig {
    let fallback = fallback_region(settings.partition.as_deref());
    if let Some(name) = settings.region.as_deref().filter(|name| !name.is_empty()) {
        let (region, is_fips) = match without_fips(name) {
            Some(region) => (region, true),
            None => (name, false),
        };
        let loader = loader.region(Region::new(region.to_owned()));
        let loader = if is_fips {
            loader.use_fips(true)
        } else {
            loader
        };
        return Box::pin(loader.load()).await;
    }
    let config = Box::pin(loader.load()).await;
    if config.region().is_some() {
        return config;
    }
    config
        .into_builder()
        .region(Region::from_static(fallback))
        .build()
}

/// `us-east-1-fips` and `fips-us-east-1` are how SDKs of kiam's time named FIPS endpoints.
fn without_fips(region: &str) -> Option<&str> {
    region
        .strip_suffix("-fips")
        .or_else(|| region.strip_prefix("fips-"))
}

/// Where STS answers for a whole partition.
fn fallback_region(partition: Option<&str>) -> &'static str {
    match partition {
        Some("aws-cn") => "cn-north-1",
        Some("aws-us-gov") => "us-gov-west-1",
        Some("aws-iso") => "us-iso-east-1",
        Some("aws-iso-b") => "us-isob-east-1",
        Some("aws-iso-e") => "eu-isoe-west-1",
        Some("aws-iso-f") => "us-isof-south-1",
        Some("aws-eusc") => "eusc-de-east-1",
        _ => "us-east-1",
    }
}

/// The same configuration with the credentials of `role`, assumed with those it had. These calls
/// are few and nobody else retries them, so that the SDK may.
async fn behind(role: &RoleArn, config: SdkConfig) -> SdkConfig {
    let patient = config
        .clone()
        .into_builder()
        .retry_config(RetryConfig::standard())
        .build();
    let provider = AssumeRoleProvider::builder(role.as_str())
        .session_name(OWN_SESSION_NAME)
        .configure(&patient);
    let provider = Box::pin(provider.build()).await;
    config
        .into_builder()
        .credentials_provider(SharedCredentialsProvider::new(provider))
        .build()
}

fn issued(
    output: AssumeRoleOutput,
    duration: Duration,
    asked_at: crate::clock::Moment,
) -> Result<Issued, IssueError> {
    let credentials = output
        .credentials
        .ok_or_else(|| IssueError::Unreachable("the answer holds no credentials".to_owned()))?;
    Ok(Issued {
        expires_at: UnixSeconds::new(credentials.expiration.secs()),
        access_key_id: credentials.access_key_id,
        secret_access_key: Zeroizing::new(credentials.secret_access_key),
        session_token: Zeroizing::new(credentials.session_token),
        duration,
        asked_at,
    })
}

/// What the SDK has found in the answer; what is there to be found otherwise.
fn said(error: &SdkError<AssumeRoleError>) -> Said {
    if let Some(code) = error.code() {
        return Said {
            code: code.to_owned(),
            message: error.message().unwrap_or_default().to_owned(),
        };
    }
    let body = error.raw_response().and_then(|raw| raw.body().bytes());
    body.map(answered::read).unwrap_or_default()
}

/// An error that STS has not said itself: our own credentials could not be had, the network, or an
/// answer that cannot be read.
fn without_answer<E>(error: &SdkError<E>) -> IssueError
where
    E: std::error::Error + 'static,
{
    let causes = causes::in_words(error);
    let text = match error.raw_response() {
        Some(answer) => format!("HTTP status {}: {causes}", answer.status().as_u16()),
        None => causes,
    };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(current) = cause {
        if current.is::<CredentialsError>() {
            return IssueError::OwnCredentials(text);
        }
        cause = current.source();
    }
    IssueError::Unreachable(text)
}
