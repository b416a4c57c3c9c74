//! The real AWS SDK against the simulated STS: what is asked, what errors become, and what the
//! environment decides.

#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected stops where it stands"
)]

use std::sync::Arc;
use std::time::Duration;

use aws_config::ConfigLoader;
use aws_credential_types::Credentials;
use kiam_server::annotations::Tag;
use kiam_server::arn::RoleArn;
use kiam_server::base_arn;
use kiam_server::clock::Clock;
use kiam_server::policy::{RoleRequest, Session};
use kiam_server::sts::aws::{Settings, Sts, defaults};
use kiam_server::sts::{IssueError, Issued, Issuer};
use kiam_sim::faults::Failures;
use kiam_sim::sts::{Identity, Sts as SimulatedSts, StsOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

const ROLE: &str = "arn:aws:iam::123456789012:role/team/reader";

async fn simulated() -> SimulatedSts {
    SimulatedSts::start(StsOptions::default()).await.unwrap()
}

/// What a test knows better than the environment.
fn loader(sts: &SimulatedSts) -> ConfigLoader {
    let keys = Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", None, None, "test");
    defaults()
        .endpoint_url(sts.url())
        .credentials_provider(keys)
}

fn settings() -> Settings {
    Settings {
        region: Some("eu-west-1".into()),
        ..Settings::default()
    }
}

async fn connect(sts: &SimulatedSts) -> Sts {
    Sts::connect(loader(sts), &settings(), Clock::system()).await
}

fn session() -> Session {
    Session {
        role: RoleArn::parse(ROLE).unwrap(),
        name: "kiam-web".into(),
        external_id: None,
        tags: vec![],
        transitive_keys: vec![],
        policy_arns: vec![],
        source_identity: None,
        duration: Duration::from_hours(1),
    }
}

async fn issue(client: &Sts, session: Session) -> Result<Issued, IssueError> {
    client.issue(Arc::new(RoleRequest::new(session))).await
}

#[tokio::test]
async fn everything_that_is_in_the_request_is_asked() {
    let sts = simulated().await;
    let client = connect(&sts).await;
    let full = Session {
        external_id: Some("partner:42".into()),
        tags: vec![Tag {
            key: "team".into(),
            value: "Data platform".into(),
        }],
        transitive_keys: vec!["team".into()],
        policy_arns: vec!["arn:aws:iam::aws:policy/ReadOnlyAccess".into()],
        source_identity: Some("shop.web".into()),
        ..session()
    };
    issue(&client, full).await.unwrap();
    let call = sts.handle().calls().pop().unwrap();
    assert_eq!(
        (call.role_arn.as_str(), call.session_name.as_str()),
        (ROLE, "kiam-web")
    );
    assert_eq!(call.external_id.as_deref(), Some("partner:42"));
    assert_eq!(call.tags, [("team".to_owned(), "Data platform".to_owned())]);
    assert_eq!(call.transitive_tag_keys, ["team"]);
    assert_eq!(call.policy_arns, ["arn:aws:iam::aws:policy/ReadOnlyAccess"]);
    assert_eq!(call.source_identity.as_deref(), Some("shop.web"));
    assert_eq!(call.duration, Some(Duration::from_hours(1)));
}

#[tokio::test]
async fn the_end_is_what_sts_says_with_fractions_dropped() {
    let sts = simulated().await;
    sts.handle().fractional_expiration(true);
    sts.handle().set_lifetime(Some(Duration::from_mins(20)));
    let client = connect(&sts).await;
    let before = Clock::system().now().wall;
    let issued = issue(&client, session()).await.unwrap();
    let left = issued.expires_at.since(before);
    let expected = Duration::from_mins(20);
    assert!(
        left >= expected.saturating_sub(Duration::from_secs(1)),
        "{left:?}"
    );
    assert!(left <= expected + Duration::from_secs(30), "{left:?}");
    let printed = format!("{issued:?}");
    assert!(
        !printed.contains(issued.secret_access_key.as_str()),
        "{printed}"
    );
}

#[tokio::test]
async fn errors_are_told_apart_by_their_code() {
    let sts = simulated().await;
    let client = connect(&sts).await;
    client.caller().await.unwrap();

    sts.handle().deny(&["*:role/team/*"]);
    let Err(IssueError::Denied(text)) = issue(&client, session()).await else {
        panic!("not denied");
    };
    let caller = "arn:aws:sts::123456789012:assumed-role/kiam-server/i-0123456789abcdef0";
    assert!(
        text.contains(&format!("must allow {caller} sts:AssumeRole")),
        "{text}"
    );

    sts.handle().clear();
    sts.handle().throttle_share(1.0);
    let error = issue(&client, session()).await.unwrap_err();
    assert_eq!(
        error,
        IssueError::Throttled("Throttling: Rate exceeded".into())
    );

    sts.handle().clear();
    sts.handle().limit_session("*", Duration::from_mins(30));
    let error = issue(&client, session()).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Invalid(text) if text.contains("3600 s")),
        "{error}"
    );

    sts.handle().clear();
    let failures = Failures {
        status: 500,
        share: 1.0,
    };
    sts.handle().faults().set_failures(Some(failures));
    let error = issue(&client, session()).await.unwrap_err();
    assert_eq!(error.as_str(), "unreachable", "{error}");

    sts.handle().clear();
    let calls_before = sts.handle().total();
    issue(&client, session()).await.unwrap();
    assert_eq!(
        sts.handle().total() - calls_before,
        1,
        "the SDK does not retry"
    );
}

/// Gives every request this answer, each time with another date and request id.
async fn answering(status: &'static str, body: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for number in 0..100 {
            let (stream, _peer) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let line = line.trim().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\nDate: Sun, 22 \
                 Nov 2026 06:00:{number:02} GMT\r\nx-amzn-RequestId: request-{number}\r\n\
                 Connection: close\r\n\r\n",
                body.len()
            );
            let answer = format!("{head}{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(stream.shutdown().await);
        }
    });
    url
}

async fn error_from(url: &str) -> IssueError {
    let keys = Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", None, None, "test");
    let loader = defaults().endpoint_url(url).credentials_provider(keys);
    let client = Sts::connect(loader, &settings(), Clock::system()).await;
    let first = issue(&client, session()).await.unwrap_err();
    let second = issue(&client, session()).await.unwrap_err();
    // Events are counted by their text.
    assert_eq!(first, second);
    first
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_shown() {
    let body = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
        <AssumeRoleResult><Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId>\
        <SecretAccessKey>the-secret-key</SecretAccessKey>\
        <SessionToken>the-session-token</SessionToken>\
        <Expiration>tomorrow</Expiration></Credentials></AssumeRoleResult>\
        </AssumeRoleResponse>";
    let url = answering("200 OK", body.to_owned()).await;
    let error = error_from(&url).await;
    assert_eq!(error.as_str(), "unreachable");
    let text = format!("{error} {error:?}");
    assert!(text.contains("HTTP status 200"), "{text}");
    for secret in [
        "the-secret-key",
        "the-session-token",
        "ASIAIOSFODNN7EXAMPLE",
    ] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_gateways_error_is_the_same_each_time() {
    let url = answering("502 Bad Gateway", "<html>no upstream</html>".to_owned()).await;
    let text = error_from(&url).await.to_string();
    assert!(text.contains("HTTP status 502"), "{text}");
    assert!(
        !text.contains("request-") && !text.contains("2026"),
        "{text}"
    );
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let sts = simulated().await;
    let client = connect(&sts).await;
    sts.shutdown().await;
    let error = issue(&client, session()).await.unwrap_err();
    assert_eq!(error.as_str(), "unreachable", "{error}");
}

#[tokio::test]
async fn missing_keys_are_our_own_fault() {
    let sts = simulated().await;
    let loader = defaults()
        .endpoint_url(sts.url())
        .credentials_provider(NoKeys);
    let client = Sts::connect(loader, &settings(), Clock::system()).await;
    let error = issue(&client, session()).await.unwrap_err();
    assert_eq!(error.as_str(), "own_credentials", "{error}");
}

#[derive(Debug)]
struct NoKeys;

impl aws_credential_types::provider::ProvideCredentials for NoKeys {
    fn provide_credentials<'a>(
        &'a self,
    ) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        use aws_credential_types::provider::{error::CredentialsError, future};
        future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("no keys")))
    }
}

#[tokio::test]
async fn the_chaining_cap_is_met_once() {
    let sts = simulated().await;
    sts.handle().cap_role_chaining(true);
    let client = connect(&sts).await;
    let long = || Session {
        duration: Duration::from_hours(4),
        ..session()
    };
    for calls in [2, 3] {
        let issued = issue(&client, long()).await.unwrap();
        assert_eq!(issued.duration, Duration::from_hours(1));
        assert_eq!(sts.handle().total(), calls);
    }
}

#[tokio::test]
async fn the_servers_role_is_assumed_first() {
    let sts = SimulatedSts::start(StsOptions {
        base_identity: Identity::user("123456789012", "node"),
        ..StsOptions::default()
    })
    .await
    .unwrap();
    let with_role = Settings {
        assume_role: Some(RoleArn::parse("arn:aws:iam::123456789012:role/kiam-server").unwrap()),
        ..settings()
    };
    let client = Sts::connect(loader(&sts), &with_role, Clock::system()).await;
    assert_eq!(
        client.caller().await.unwrap(),
        "arn:aws:sts::123456789012:assumed-role/kiam-server/kiam-server"
    );
    issue(&client, session()).await.unwrap();
    issue(&client, session()).await.unwrap();
    let own = "arn:aws:iam::123456789012:role/kiam-server";
    assert_eq!((sts.handle().count(own), sts.handle().count(ROLE)), (1, 2));

    sts.handle().deny(&["*:role/kiam-server"]);
    let client = Sts::connect(loader(&sts), &with_role, Clock::system()).await;
    let error = issue(&client, session()).await.unwrap_err();
    assert_eq!(error.as_str(), "own_credentials", "{error}");
}

/// The SDK's environment decides where STS is, as the chart and the load test rely on. A process
/// cannot change its own environment safely, so the test runs itself once more.
#[tokio::test]
async fn the_endpoint_comes_from_the_environment() {
    const NAME: &str = "the_endpoint_comes_from_the_environment";
    if std::env::var_os("KIAM_TEST_IS_CHILD").is_some() {
        let client = Sts::connect(defaults(), &settings(), Clock::system()).await;
        issue(&client, session()).await.unwrap();
        return;
    }
    let sts = simulated().await;
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("KIAM_TEST_IS_CHILD", "1")
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_mins(1), child).await;
    let output = output.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert_eq!(sts.handle().count(ROLE), 1, "{text}");
}

#[tokio::test]
async fn the_base_arn_is_found_without_a_metadata_service() {
    let sts = simulated().await;
    let client = connect(&sts).await;
    let nowhere = aws_config::imds::Client::builder()
        .configure(
            &aws_config::provider_config::ProviderConfig::without_region()
                .with_http_client(aws_smithy_http_client::Builder::new().build_http()),
        )
        .endpoint("http://127.0.0.1:1")
        .unwrap()
        .max_attempts(1)
        .build();
    let base = base_arn::detect(&nowhere, client.caller()).await.unwrap();
    assert_eq!(base.as_str(), "arn:aws:iam::123456789012:role/");
}
