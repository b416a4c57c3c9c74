//! The simulated STS through the eyes of the real AWS SDK.

#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected stops where it stands"
)]
#![expect(
    clippy::large_futures,
    reason = "the SDK's calls are large and a few tests own them"
)]

use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_sts::Client;
use aws_sdk_sts::config::{Credentials, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::{AssumeRoleError, AssumeRoleOutput};
use aws_sdk_sts::types::Tag;
use kiam_sim::faults::{Failures, Latency, Reach};
use kiam_sim::sts::{Outcome, Sts, StsOptions};

const ROLE: &str = "arn:aws:iam::123456789012:role/team/reader";

fn client(sts: &Sts, credentials: Credentials) -> Client {
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .endpoint_url(sts.url())
        .credentials_provider(credentials)
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .operation_timeout(Duration::from_secs(20))
                .build(),
        )
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

fn base() -> Credentials {
    Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", None, None, "test")
}

async fn start() -> (Sts, Client) {
    let sts = Sts::start(StsOptions::default()).await.unwrap();
    let client = client(&sts, base());
    (sts, client)
}

async fn assume(
    client: &Client,
    seconds: i32,
) -> Result<AssumeRoleOutput, SdkError<AssumeRoleError>> {
    client
        .assume_role()
        .role_arn(ROLE)
        .role_session_name("pod-1")
        .duration_seconds(seconds)
        .send()
        .await
}

async fn code(client: &Client, seconds: i32) -> String {
    match assume(client, seconds).await {
        Ok(_) => "issued".to_owned(),
        Err(error) => error.code().unwrap_or("no answer").to_owned(),
    }
}

async fn tagged(
    client: &Client,
    value: &str,
) -> Result<AssumeRoleOutput, SdkError<AssumeRoleError>> {
    client
        .assume_role()
        .role_arn(ROLE)
        .role_session_name("pod-1")
        .external_id("ext-1")
        .tags(
            Tag::builder()
                .key("kubernetes-namespace")
                .value(value)
                .build()
                .unwrap(),
        )
        .transitive_tag_keys("kubernetes-namespace")
        .source_identity("kiam")
        .send()
        .await
}

#[tokio::test]
async fn keys_speak_for_the_role_they_were_issued_for() {
    let (sts, client_of_base) = start().await;
    let issued = tagged(&client_of_base, "ns").await.unwrap();
    assert_eq!(issued.source_identity(), Some("kiam"));
    assert_eq!(issued.session_token_size(), Some(900));
    let keys = issued.credentials().unwrap();
    assert!(keys.access_key_id().starts_with("ASIA"));
    let credentials = |token: &str| {
        let token = Some(token.to_owned());
        Credentials::new(
            keys.access_key_id(),
            keys.secret_access_key(),
            token,
            None,
            "test",
        )
    };
    let role = client(&sts, credentials(keys.session_token()));
    let who = role.get_caller_identity().send().await.unwrap();
    let assumed = issued.assumed_role_user().unwrap();
    assert_eq!(
        who.arn(),
        Some("arn:aws:sts::123456789012:assumed-role/reader/pod-1")
    );
    assert_eq!(
        (who.arn(), who.user_id()),
        (Some(assumed.arn()), Some(assumed.assumed_role_id()))
    );
    let forged = client(&sts, credentials("forged"));
    let refused = forged.get_caller_identity().send().await.unwrap_err();
    assert_eq!(refused.code(), Some("InvalidClientTokenId"));
    let who = client_of_base.get_caller_identity().send().await.unwrap();
    assert!(
        who.arn().unwrap().contains(":assumed-role/kiam-server/"),
        "{who:?}"
    );
}

#[tokio::test]
async fn calls_are_recorded_whatever_their_outcome() {
    let (sts, client) = start().await;
    assert!(tagged(&client, "an & is no tag character").await.is_err());
    tagged(&client, "ns").await.unwrap();
    let calls = sts.handle().calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(
        calls[0].outcome,
        Outcome::Refused("ValidationError".to_owned())
    );
    assert_eq!(calls[1].outcome, Outcome::Issued);
    assert_eq!(
        calls[1].tags,
        [("kubernetes-namespace".to_owned(), "ns".to_owned())]
    );
    assert_eq!(calls[1].external_id.as_deref(), Some("ext-1"));
    assert_eq!(sts.handle().count(ROLE), 2);
}

#[tokio::test]
async fn rules_refuse_in_the_words_of_the_service() {
    let (sts, client) = start().await;
    let handle = sts.handle();
    assert_eq!(code(&client, 3600).await, "issued");
    assert_eq!(code(&client, 60).await, "ValidationError");
    handle.deny(&["arn:aws:iam::123456789012:role/team/*"]);
    let denied = assume(&client, 3600).await.unwrap_err();
    assert_eq!(denied.code(), Some("AccessDenied"));
    assert!(
        denied
            .message()
            .unwrap()
            .contains("is not authorized to perform: sts:AssumeRole")
    );
    handle.clear();
    handle.throttle_share(1.0);
    let throttled = assume(&client, 3600).await.unwrap_err();
    assert_eq!(
        (throttled.code(), throttled.message()),
        (Some("Throttling"), Some("Rate exceeded"))
    );
    assert_eq!(throttled.raw_response().unwrap().status().as_u16(), 400);
    handle.clear();
    handle.throttle_rate(Some((0.001, 1.0)));
    assert_eq!(code(&client, 3600).await, "issued");
    assert_eq!(code(&client, 3600).await, "Throttling");
    handle.clear();
    handle.cap_role_chaining(true);
    assert_eq!(code(&client, 3600).await, "issued");
    let capped = assume(&client, 3601).await.unwrap_err();
    assert!(
        capped
            .message()
            .unwrap()
            .contains("1 hour session limit for roles assumed by role chaining")
    );
    handle.clear();
    handle.limit_session("*reader", Duration::from_mins(15));
    assert_eq!(code(&client, 901).await, "ValidationError");
    assert_eq!(code(&client, 900).await, "issued");
}

#[tokio::test]
async fn expirations_may_be_early_and_fractional() {
    let (sts, client) = start().await;
    let handle = sts.handle();
    handle.set_lifetime(Some(Duration::from_secs(1000)));
    let left = async |client: &Client| {
        let issued = assume(client, 3600).await.unwrap();
        let expires_at = issued.credentials().unwrap().expiration().as_secs_f64();
        let now = kiam_sim::clock::Clock::start().now();
        expires_at - f64::from(u32::try_from(now.as_second()).unwrap())
    };
    let whole = left(&client).await;
    assert!((900.0..=1001.0).contains(&whole), "{whole}");
    handle.fractional_expiration(true);
    let fractional = left(&client).await;
    assert!((900.0..=1002.0).contains(&fractional), "{fractional}");
}

#[tokio::test]
async fn faults_are_felt() {
    let (sts, client) = start().await;
    let faults = sts.handle().faults();
    faults.set_latency(Latency {
        fixed: Duration::from_millis(30),
        jitter: Duration::ZERO,
    });
    assert_eq!(code(&client, 3600).await, "issued");
    faults.set_failures(Some(Failures {
        status: 503,
        share: 1.0,
    }));
    assert_eq!(code(&client, 3600).await, "ServiceUnavailable");
    faults.clear();
    faults.set_reach(Reach::Down);
    assert_eq!(code(&client, 3600).await, "no answer");
    faults.set_reach(Reach::Hanging);
    let hung = tokio::time::timeout(Duration::from_millis(300), assume(&client, 3600)).await;
    assert!(hung.is_err(), "an answer from a hanging service");
    faults.clear();
    assert_eq!(code(&client, 3600).await, "issued");
}
