//! Flags about how much of the agent one pod, and all of them together, may use.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use clap::Args;

use super::server::positive;
use crate::config::{Invalid, Limits, duration};

/// Idle connections shorter than this would be closed between two calls of one SDK dialogue.
const IDLE_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// What the operator typed about limits.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Connections of all pods together; one more is closed at once.
    #[arg(long, value_name = "COUNT", default_value = "4096")]
    connections_max: NonZeroUsize,

    /// Connections of one pod.
    #[arg(long, value_name = "COUNT", default_value = "256")]
    connections_per_peer_max: NonZeroUsize,

    /// Requests a second of one pod; answered 429 beyond.
    #[arg(long, value_name = "COUNT", default_value = "500")]
    requests_per_second_per_peer: NonZeroU32,

    /// Waiting requests of all pods together; answered 503 beyond.
    #[arg(long, value_name = "COUNT", default_value = "2048")]
    parked_max: NonZeroUsize,

    /// Waiting requests of one pod.
    #[arg(long, value_name = "COUNT", default_value = "64")]
    parked_per_peer_max: NonZeroUsize,

    /// How long a request's head may take to arrive.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    header_timeout: Duration,

    /// How long a connection may be idle between two requests; at least 5s.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    idle_timeout: Duration,

    /// How long a pod may take to read its answer.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    write_timeout: Duration,
}

impl LimitArgs {
    pub(crate) fn validate(self) -> Result<Limits, Invalid> {
        let Self {
            connections_max,
            connections_per_peer_max,
            requests_per_second_per_peer,
            parked_max,
            parked_per_peer_max,
            header_timeout,
            idle_timeout,
            write_timeout,
        } = self;
        if connections_per_peer_max > connections_max {
            return Err(Invalid::Smaller(
                "--connections-max",
                "--connections-per-peer-max",
            ));
        }
        if parked_per_peer_max > parked_max {
            return Err(Invalid::Smaller("--parked-max", "--parked-per-peer-max"));
        }
        // A parked request keeps its connection.
        if parked_max > connections_max {
            return Err(Invalid::Smaller("--connections-max", "--parked-max"));
        }
        positive("--header-timeout", header_timeout)?;
        positive("--write-timeout", write_timeout)?;
        if idle_timeout < IDLE_TIMEOUT_MIN {
            return Err(Invalid::TooShort("--idle-timeout", IDLE_TIMEOUT_MIN));
        }
        Ok(Limits {
            connections_max,
            connections_per_peer_max,
            requests_per_second_per_peer,
            parked_max,
            parked_per_peer_max,
            header_timeout,
            idle_timeout,
            write_timeout,
        })
    }
}
