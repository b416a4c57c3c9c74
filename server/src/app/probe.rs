//! The two sub-commands that ask a running server something.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kiam_wire::proto::legacy::GetHealthRequest;
use kiam_wire::proto::legacy::kiam_service_client::KiamServiceClient;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::config::{Health, WhyArgs};

/// As kiam's probe does it.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const WHY_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks until the server says that it is well, or time is over. Gives what it said.
pub async fn health(probe: &Health) -> anyhow::Result<String> {
    let endpoint = endpoint(probe)?;
    let mut last = anyhow::anyhow!("no answer");
    let asking = async {
        loop {
            match ask(&endpoint).await {
                Ok(message) => return message,
                Err(error) => last = error,
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    };
    match tokio::time::timeout(probe.timeout(), asking).await {
        Ok(message) => Ok(format!("healthy: {message}")),
        Err(_elapsed) => Err(last.context("error retrieving health")),
    }
}

async fn ask(endpoint: &Endpoint) -> anyhow::Result<String> {
    let channel = endpoint.connect().await?;
    let answer = KiamServiceClient::new(channel)
        .get_health(GetHealthRequest {})
        .await?;
    Ok(answer.into_inner().message)
}

fn endpoint(probe: &Health) -> anyhow::Result<Endpoint> {
    let read = |flag: &str, path: &Path| {
        std::fs::read(path).with_context(|| format!("{flag} {}", path.display()))
    };
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--ca", &probe.ca)?));
    match (&probe.cert, &probe.key) {
        (Some(cert), Some(key)) => {
            tls = tls.identity(Identity::from_pem(
                read("--cert", cert)?,
                read("--key", key)?,
            ));
        }
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => {
            anyhow::bail!("--cert and --key belong together: give both or neither")
        }
    }
    let url = format!("https://{}", probe.server_address);
    let endpoint = Endpoint::from_shared(url).context("--server-address")?;
    Ok(endpoint.tls_config(tls)?.connect_timeout(probe.timeout()))
}

/// Asks the admin port of a server why a pod gets what it gets.
pub async fn why(question: &WhyArgs) -> anyhow::Result<String> {
    let WhyArgs {
        pod,
        admin_address,
        json,
    } = question;
    let usual = |c: char| c.is_ascii_alphanumeric() || ".-/".contains(c);
    anyhow::ensure!(
        pod.matches('/').count() == 1 && pod.chars().all(usual),
        "say which pod: NAMESPACE/POD"
    );
    let format = if *json { "&format=json" } else { "" };
    let url = format!("http://{admin_address}/why?pod={pod}{format}");
    let url: http::Uri = url.parse().context("--admin-address")?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = async {
        let response = client.get(url).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        anyhow::ensure!(status.is_success(), "{status}: {}", text.trim_end());
        Ok(text)
    };
    tokio::time::timeout(WHY_TIMEOUT, answer)
        .await
        .context("the server did not answer")?
        .with_context(|| format!("asking {admin_address}"))
}
