//! Finds the base ARN where none was given (`--role-base-arn-autodetect`).
//!
//! First what kiam asks, the instance profile's ARN in the metadata service; the server may run
//! where that cannot be reached (a pod behind a hop limit of one, Fargate, outside of EC2), so then
//! who STS says we are. Both name a partition and an account, and the base is theirs.

use std::time::Duration;

use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use serde::Deserialize;

use crate::arn::{ArnError, BaseArn};
use crate::sts::aws::http_client;
use crate::sts::{IssueError, causes};

/// Nobody could tell.
#[derive(Debug, thiserror::Error)]
#[error(
    "the base ARN cannot be detected; give it with --role-base-arn (metadata service: {metadata}; \
     STS: {sts})"
)]
pub struct NotDetected {
    /// What the metadata service said.
    pub metadata: SourceError,
    /// What STS said.
    pub sts: SourceError,
}

impl NotDetected {
    /// Asking again would bring the same: STS did answer. Whoever said nothing may do so later.
    pub const fn is_final(&self) -> bool {
        matches!(self.sts, SourceError::NoArn | SourceError::Arn { .. })
    }
}

/// Why one source could not tell.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No answer.
    #[error("{0}")]
    Silent(String),
    /// An answer that names no ARN.
    #[error("it names no ARN")]
    NoArn,
    /// An ARN without a partition or account.
    #[error("it names {arn}: {problem}")]
    Arn {
        /// What it names.
        arn: String,
        /// What is wrong with it.
        problem: ArnError,
    },
    /// STS gave an error.
    #[error(transparent)]
    Sts(#[from] IssueError),
}

/// The instance metadata service at its usual place, or where the SDK's environment says.
pub fn metadata_service() -> imds::Client {
    let provider = ProviderConfig::without_region().with_http_client(http_client());
    metadata_client(&provider).build()
}

fn metadata_client(provider: &ProviderConfig) -> imds::client::Builder {
    imds::Client::builder()
        .configure(provider)
        .connect_timeout(Duration::from_secs(1))
        .read_timeout(Duration::from_secs(1))
        .max_attempts(2)
}

/// Asks the metadata service, then `caller`: who STS says we are.
pub async fn detect(
    metadata: &imds::Client,
    caller: impl Future<Output = Result<&str, IssueError>>,
) -> Result<BaseArn, NotDetected> {
    let metadata = match Box::pin(from_metadata(metadata)).await {
        Ok(base) => return Ok(base),
        Err(error) => error,
    };
    let from_caller = async { account_of(caller.await?) };
    from_caller
        .await
        .map_err(|sts| NotDetected { metadata, sts })
}

const INFO: &str = "/latest/meta-data/iam/info";

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "InstanceProfileArn")]
    instance_profile_arn: Option<String>,
}

async fn from_metadata(metadata: &imds::Client) -> Result<BaseArn, SourceError> {
    let silent =
        |error: &(dyn std::error::Error + 'static)| SourceError::Silent(causes::in_words(error));
    let text = metadata.get(INFO).await.map_err(|error| silent(&error))?;
    let info: Info = serde_json::from_str(text.as_ref()).map_err(|_not_json| SourceError::NoArn)?;
    account_of(&info.instance_profile_arn.ok_or(SourceError::NoArn)?)
}

/// The base of the partition and account that an ARN of any service names.
fn account_of(arn: &str) -> Result<BaseArn, SourceError> {
    let mut fields = arn.split(':');
    let mut field = |index| fields.nth(index).unwrap_or_default();
    let (partition, account) = (field(1), field(2));
    BaseArn::of_account(partition, account).map_err(|problem| SourceError::Arn {
        arn: arn.to_owned(),
        problem,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[track_caller]
    fn check(arn: &str, expected: &str) {
        let got =
            account_of(arn).map_or_else(|error| error.to_string(), |base| base.as_str().into());
        assert_eq!(got, expected);
    }

    /// kiam's `TestExtractsBaseFromInstanceArn`, and what STS calls people.
    #[test]
    fn any_arn_tells_partition_and_account() {
        let base = "arn:aws:iam::123456789012:role/";
        check("arn:aws:iam::123456789012:instance-profile/my", base);
        check("arn:aws:iam::123456789012:instance-profile/path/my", base);
        check("arn:aws:sts::123456789012:assumed-role/r/s", base);
        check("arn:aws:iam::123456789012:user/u", base);
        check(
            "arn:aws-cn:sts::123456789012:assumed-role/r/s",
            "arn:aws-cn:iam::123456789012:role/",
        );
        check(
            "nonsense",
            "it names nonsense: its partition is not aws, aws-cn, aws-us-gov or another aws-* \
             partition",
        );
    }

    /// A metadata service that hands out a token and then answers `info`.
    async fn metadata(info: &'static str) -> imds::Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let answer = if head.starts_with("put /latest/api/token") {
                    "HTTP/1.1 200 OK\r\nx-aws-ec2-metadata-token-ttl-seconds: 60\r\ncontent-length: 1\r\nconnection: close\r\n\r\nT".to_owned()
                } else if head.contains("x-aws-ec2-metadata-token: t") && head.contains("/iam/info")
                {
                    let length = info.len();
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{info}"
                    )
                } else {
                    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                        .to_owned()
                };
                let _closed = stream.write_all(answer.as_bytes()).await;
            }
        });
        client_of(&endpoint)
    }

    fn client_of(endpoint: &str) -> imds::Client {
        let provider = ProviderConfig::without_region()
            .with_http_client(aws_smithy_http_client::Builder::new().build_http());
        metadata_client(&provider)
            .endpoint(endpoint)
            .unwrap()
            .build()
    }

    #[tokio::test]
    async fn the_instance_profile_is_asked_first() {
        let metadata = metadata(
            r#"{"Code":"Success","InstanceProfileArn":"arn:aws:iam::111111111111:instance-profile/n"}"#,
        )
        .await;
        let caller = async { panic!("there is no need to ask STS") };
        let base = detect(&metadata, caller).await.unwrap();
        assert_eq!(base.as_str(), "arn:aws:iam::111111111111:role/");
    }

    #[tokio::test]
    async fn who_we_are_is_the_second_choice() {
        let metadata = metadata("{}").await;
        let caller = async { Ok("arn:aws:sts::222222222222:assumed-role/r/s") };
        let base = detect(&metadata, caller).await.unwrap();
        assert_eq!(base.as_str(), "arn:aws:iam::222222222222:role/");
    }

    #[tokio::test]
    async fn when_nobody_can_tell_both_reasons_are_given() {
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let caller = async { Err(IssueError::OwnCredentials("none".into())) };
        let error = detect(&client_of(&closed), caller).await.unwrap_err();
        let (is_final, error) = (error.is_final(), error.to_string());
        assert!(error.contains("--role-base-arn"), "{error}");
        assert!(!is_final, "STS may answer later");
        assert!(
            error.contains("own AWS credentials cannot be used: none"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_answer_that_makes_no_sense_is_final() {
        let metadata = metadata("{}").await;
        let caller = async { Ok("nonsense") };
        let error = detect(&metadata, caller).await.unwrap_err();
        assert!(error.is_final(), "{error}");
    }
}
