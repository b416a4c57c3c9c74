//! Flags about reaching the server and proving who this is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::config::address::ServerAddress;
use crate::config::{Identity, Invalid, Keepalive, Reconnect, Server};
use kiam_wire::go_duration as duration;

/// What the operator typed about the server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Where the servers are: HOST:PORT.
    ///
    /// HOST is looked up at each connection attempt and every address it has is tried, in random
    /// order, so name a headless Service. The server's certificate must be for HOST.
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:9610")]
    server_address: ServerAddress,

    /// PEM bundle of the authorities that the server's certificate may come from.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,

    /// PEM client certificate, with its chain. Needs --key.
    ///
    /// This file, --key, --ca and --token-file are read again at each connection attempt, so that
    /// they can be replaced at any time.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,

    /// PEM private key of --cert.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// The agent's projected ServiceAccount token, for servers with --agent-auth token.
    ///
    /// Sent with each stream as `authorization: Bearer`, over TLS only.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// How long one address may take to accept a connection and complete TLS.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    gateway_timeout_creation: Duration,

    /// How long a server may take from there to the first update.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    first_update_timeout: Duration,

    /// How often a quiet connection is pinged.
    #[arg(long, alias = "grpc-keepalive-time-ms", value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    grpc_keepalive_time_duration: Duration,

    /// How long an answer to a ping may take before the connection counts as dead.
    #[arg(long, alias = "grpc-keepalive-timeout-ms", value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    grpc_keepalive_timeout_duration: Duration,

    /// The longest wait after a first failure; doubled after each further one.
    ///
    /// The actual wait is drawn evenly between nothing and this, so that agents do not come back
    /// together.
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    reconnect_delay: Duration,

    /// What --reconnect-delay grows to.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration::parse)]
    reconnect_delay_max: Duration,
}

impl ServerArgs {
    pub(crate) fn validate(self) -> Result<Server, Invalid> {
        let Self {
            server_address,
            ca,
            cert,
            key,
            token_file,
            gateway_timeout_creation,
            first_update_timeout,
            grpc_keepalive_time_duration,
            grpc_keepalive_timeout_duration,
            reconnect_delay,
            reconnect_delay_max,
        } = self;
        let identity = match (cert, key) {
            (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
            (None, None) => None,
            (Some(_), None) => return Err(Invalid::AlsoNeeds("--cert", "--key")),
            (None, Some(_)) => return Err(Invalid::AlsoNeeds("--key", "--cert")),
        };
        if identity.is_none() && token_file.is_none() {
            return Err(Invalid::Nobody);
        }
        exists("--ca", &ca)?;
        if let Some(Identity { certificate, key }) = &identity {
            exists("--cert", certificate)?;
            exists("--key", key)?;
        }
        if let Some(token_file) = &token_file {
            exists("--token-file", token_file)?;
        }
        positive("--gateway-timeout-creation", gateway_timeout_creation)?;
        positive("--first-update-timeout", first_update_timeout)?;
        positive(
            "--grpc-keepalive-time-duration",
            grpc_keepalive_time_duration,
        )?;
        positive(
            "--grpc-keepalive-timeout-duration",
            grpc_keepalive_timeout_duration,
        )?;
        positive("--reconnect-delay", reconnect_delay)?;
        if reconnect_delay_max < reconnect_delay {
            return Err(Invalid::Smaller(
                "--reconnect-delay-max",
                "--reconnect-delay",
            ));
        }
        Ok(Server {
            address: server_address,
            ca,
            identity,
            token_file,
            connect_timeout: gateway_timeout_creation,
            first_update_timeout,
            keepalive: Keepalive {
                every: grpc_keepalive_time_duration,
                timeout: grpc_keepalive_timeout_duration,
            },
            reconnect: Reconnect {
                delay_min: reconnect_delay,
                delay_max: reconnect_delay_max,
            },
        })
    }
}

/// A path that is wrong from the start is told at the start; one that vanishes later is only
/// logged, because the agent can still serve.
fn exists(flag: &'static str, path: &Path) -> Result<(), Invalid> {
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Err(Invalid::Directory {
            flag,
            path: path.to_owned(),
        }),
        Ok(_) => Ok(()),
        Err(source) => Err(Invalid::File {
            flag,
            path: path.to_owned(),
            source,
        }),
    }
}

pub(crate) fn positive(flag: &'static str, duration: Duration) -> Result<(), Invalid> {
    if duration.is_zero() {
        return Err(Invalid::Zero(flag));
    }
    Ok(())
}
