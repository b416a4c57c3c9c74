//! Flags about how much of the agent one pod, and all of them together, may use.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use super::server::positive;
use crate::config::Invalid;
use crate::data::Limits;
use kiam_wire::go_duration as duration;

/// The longest park that makes sense: SDKs give up after a second a try, most after one or two.
const PARK_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// What the operator typed about limits. Each holds for one worker; see --workers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits (each per worker)")]
pub(crate) struct LimitArgs {
    /// How long a request may wait for its pod, or its pod's credentials, to become known.
    ///
    /// After that it is answered 503 with Retry-After: 1. Most SDKs give each try one second.
    #[arg(long, value_name = "DURATION", default_value = default_duration(Limits::PARK_TIMEOUT), value_parser = duration::parse)]
    park_timeout: Duration,

    /// Connections of all pods together; one more is closed at once.
    #[arg(long, value_name = "COUNT", default_value_t = some(Limits::CONNECTIONS_MAX))]
    connections_max: NonZeroU32,

    /// Connections of one pod; fewer while most of --connections-max are taken, so that others find some.
    #[arg(long, value_name = "COUNT", default_value_t = some(Limits::PEER_CONNECTIONS_MAX))]
    connections_per_peer_max: NonZeroU32,

    /// Requests a second of one pod, sustained.
    #[arg(long, value_name = "COUNT", default_value_t = some(Limits::PEER_REQUESTS_PER_S))]
    requests_per_second_per_peer: NonZeroU32,

    /// Requests a pod may make at once before that rate counts; twice the rate if not given.
    #[arg(long, value_name = "COUNT")]
    request_burst_per_peer: Option<NonZeroU32>,

    /// Waiting requests of all pods together; answered 503 beyond.
    #[arg(long, value_name = "COUNT", default_value_t = some(Limits::PARKED_MAX))]
    parked_max: NonZeroU32,

    /// Waiting requests of one pod; fewer while most of --parked-max are taken.
    #[arg(long, value_name = "COUNT", default_value_t = some(Limits::PEER_PARKED_MAX))]
    parked_per_peer_max: NonZeroU32,

    /// How long a request may take to arrive, from its first byte.
    #[arg(long, value_name = "DURATION", default_value = default_duration(Limits::READ_TIMEOUT), value_parser = duration::parse)]
    read_timeout: Duration,

    /// How long a connection may be idle between two requests; at least 5s.
    #[arg(long, value_name = "DURATION", default_value = default_duration(Limits::IDLE_TIMEOUT), value_parser = duration::parse)]
    idle_timeout: Duration,

    /// How long a pod may take to read its answer.
    #[arg(long, value_name = "DURATION", default_value = default_duration(Limits::WRITE_TIMEOUT), value_parser = duration::parse)]
    write_timeout: Duration,
}

/// A default that lives beside the limit, in the words of the command line.
fn default_duration(duration: Duration) -> String {
    format!("{duration:?}")
}

fn some(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
}

impl LimitArgs {
    pub(crate) fn validate(self) -> Result<Limits, Invalid> {
        let Self {
            park_timeout,
            connections_max,
            connections_per_peer_max,
            requests_per_second_per_peer,
            request_burst_per_peer,
            parked_max,
            parked_per_peer_max,
            read_timeout,
            idle_timeout,
            write_timeout,
        } = self;
        let burst = request_burst_per_peer.map_or_else(
            || requests_per_second_per_peer.get().saturating_mul(2),
            NonZeroU32::get,
        );
        // The second of each pair is a part of the first.
        for ((large, large_value), (small, small_value)) in [
            (
                ("--connections-max", connections_max.get()),
                ("--connections-per-peer-max", connections_per_peer_max.get()),
            ),
            (
                ("--parked-max", parked_max.get()),
                ("--parked-per-peer-max", parked_per_peer_max.get()),
            ),
            // A parked request keeps its connection.
            (
                ("--connections-max", connections_max.get()),
                ("--parked-max", parked_max.get()),
            ),
        ] {
            if large_value < small_value {
                return Err(Invalid::Smaller(large, small));
            }
        }
        if burst < requests_per_second_per_peer.get() {
            return Err(Invalid::Smaller(
                "--request-burst-per-peer",
                "--requests-per-second-per-peer",
            ));
        }
        positive("--park-timeout", park_timeout)?;
        if park_timeout > PARK_TIMEOUT_MAX {
            return Err(Invalid::TooLong("--park-timeout", PARK_TIMEOUT_MAX));
        }
        positive("--read-timeout", read_timeout)?;
        positive("--write-timeout", write_timeout)?;
        if idle_timeout < Limits::IDLE_TIMEOUT_MIN {
            return Err(Invalid::TooShort(
                "--idle-timeout",
                Limits::IDLE_TIMEOUT_MIN,
            ));
        }
        Ok(Limits {
            connections_max: connections_max.get(),
            peer_connections_max: connections_per_peer_max.get(),
            peer_requests_per_s: requests_per_second_per_peer.get(),
            peer_burst: burst,
            parked_max: parked_max.get(),
            peer_parked_max: parked_per_peer_max.get(),
            park_timeout,
            read_timeout,
            idle_timeout,
            write_timeout,
        })
    }
}
