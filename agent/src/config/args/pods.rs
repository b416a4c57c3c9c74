//! Flags about how pods are answered.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use clap::{Args, ValueEnum};
use regex::Regex;

use super::server::positive;
use crate::config::endpoint::MetadataEndpoint;
use crate::config::listen::Listen;
use crate::config::switch::{Switch, is_on};
use crate::config::{ContainerDoor, Invalid, Passthrough, Pods, Workers};
use crate::data::{DriverChoice, Scheduling};
use kiam_wire::go_duration as duration;

/// What the operator typed about pods.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answering pods")]
pub(crate) struct PodArgs {
    /// The port that answers as the metadata service.
    #[arg(long, value_name = "PORT", default_value = "3100")]
    port: u16,

    /// The address that --port is opened on; every one of both families by default.
    #[arg(long, value_name = "ADDRESS")]
    listen_addr: Option<IpAddr>,

    /// Threads that answer; at most one per core.
    #[arg(long, value_name = "COUNT", default_value = "1")]
    workers: NonZeroUsize,

    /// Keep each worker on a core of its own.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pin_workers: Option<Switch>,

    /// How workers wait for the network.
    ///
    /// With auto, io_uring where the kernel and the seccomp profile allow it and epoll where they
    /// do not; the log says which and why. With io_uring, no start without it.
    #[arg(long, value_name = "DRIVER", value_enum, default_value = "auto")]
    driver: DriverWord,

    /// How the kernel schedules the workers on a busy node.
    ///
    /// With rr or nice a node full of CPU-bound pods does not slow the answers down; both need
    /// CAP_SYS_NICE, and rr is bounded in run time so that it cannot starve the node.
    #[arg(long, value_name = "CLASS", value_enum, default_value = "other")]
    scheduling: SchedulingWord,

    /// Answer requests without an IMDSv2 token with 401.
    ///
    /// For one namespace: the annotation iam.amazonaws.com/imds-v2: required.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    imds_v2_only: Option<Switch>,

    /// The IP hop limit of a connection from its first token on; the kernel's default if not given.
    #[arg(long, value_name = "HOPS")]
    token_hop_limit: Option<NonZeroU8>,

    /// Raise a metric while served credentials have less than this left.
    #[arg(long, value_name = "DURATION", default_value = "25m", value_parser = duration::parse)]
    min_remaining: Duration,

    /// Where to serve container credentials (AWS_CONTAINER_CREDENTIALS_FULL_URI). Repeatable.
    ///
    /// Pods prove themselves with a projected ServiceAccount token, so this works for hostNetwork
    /// pods and without interception. SDKs take plain HTTP only from loopback addresses,
    /// 169.254.170.2, 169.254.170.23 and fd00:ec2::23.
    #[arg(long, value_name = "ADDRESS:PORT")]
    container_credentials_listen: Vec<Listen>,

    /// The audience that those tokens must be for.
    #[arg(
        long,
        value_name = "AUDIENCE",
        default_value = "pods.eks.amazonaws.com"
    )]
    container_credentials_audience: String,

    /// Metadata paths, besides credentials, that pods may read: a regular expression.
    ///
    /// Unanchored, as in kiam. Paths below iam/, identity-credentials/, user-data and api/token
    /// are never passed on unless the expression names them exactly.
    #[arg(
        long,
        alias = "whitelist-route-regexp",
        value_name = "REGEXP",
        default_value = "^$"
    )]
    allow_route_regexp: String,

    /// The real metadata service, for what --allow-route-regexp allows.
    #[arg(long, value_name = "URL", default_value = "http://169.254.169.254")]
    metadata_endpoint: MetadataEndpoint,

    /// How long one fetch from there may take.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    metadata_timeout: Duration,

    /// Bytes of one answer from there.
    #[arg(long, value_name = "BYTES", default_value = "1048576")]
    metadata_bytes_max: NonZeroU64,

    /// Answer placement/region with this, without asking the real metadata service.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,

    /// Answer placement/availability-zone with this; --region follows from it.
    #[arg(long, value_name = "ZONE")]
    availability_zone: Option<String>,

    /// For development: let a request say which pod it comes from with ?ip=.
    ///
    /// Anyone who can reach the port then gets any pod's credentials.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_ip_query: Option<Switch>,

    /// Log one line for each time credentials are handed out: pod, role and access key id.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    audit_log: Option<Switch>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverWord {
    Auto,
    #[value(name = "io_uring", alias = "io-uring")]
    IoUring,
    Epoll,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SchedulingWord {
    Other,
    Nice,
    Rr,
}

impl PodArgs {
    /// `cores` is what the machine lets this process use.
    pub(crate) fn validate(self, cores: NonZeroUsize) -> Result<Pods, Invalid> {
        let Self {
            port,
            listen_addr,
            workers,
            pin_workers,
            driver,
            scheduling,
            imds_v2_only,
            token_hop_limit,
            min_remaining,
            container_credentials_listen,
            container_credentials_audience,
            allow_route_regexp,
            metadata_endpoint,
            metadata_timeout,
            metadata_bytes_max,
            region,
            availability_zone,
            allow_ip_query,
            audit_log,
        } = self;
        if workers > cores {
            return Err(Invalid::Workers { workers, cores });
        }
        positive("--metadata-timeout", metadata_timeout)?;
        let availability_zone = place("--availability-zone", availability_zone)?;
        let region = region_of(place("--region", region)?, availability_zone.as_deref())?;
        // Both families: the socket takes IPv4 in IPv6 clothes.
        let ip = listen_addr.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        Ok(Pods {
            listen: SocketAddr::new(ip, port),
            workers: Workers {
                count: workers,
                pinned: is_on(pin_workers),
                driver: driver.into(),
                scheduling: scheduling.into(),
            },
            imds_v2_only: is_on(imds_v2_only),
            token_hop_limit,
            min_remaining,
            container: container(container_credentials_listen, container_credentials_audience)?,
            passthrough: route_regexp(&allow_route_regexp)?.map(|allow| Passthrough {
                allow,
                endpoint: metadata_endpoint.address(),
                timeout: metadata_timeout,
                body_bytes_max: metadata_bytes_max.get(),
            }),
            region,
            availability_zone,
            allow_ip_query: is_on(allow_ip_query),
            audit_log: is_on(audit_log),
        })
    }
}

fn container(listen: Vec<Listen>, audience: String) -> Result<Option<ContainerDoor>, Invalid> {
    if listen.is_empty() {
        return Ok(None);
    }
    if audience.is_empty() {
        return Err(Invalid::Empty("--container-credentials-audience"));
    }
    Ok(Some(ContainerDoor {
        listen: listen.into_iter().map(Listen::address).collect(),
        audience,
    }))
}

/// kiam's default, `^$`, and the empty expression it replaced by that, allow nothing.
fn route_regexp(allow: &str) -> Result<Option<Regex>, Invalid> {
    if allow.is_empty() || allow == "^$" {
        return Ok(None);
    }
    // Go's \d, \w, \s and \b are ASCII. Ours are not, but paths that get this far are.
    Regex::new(allow)
        .map(Some)
        .map_err(|source| Invalid::Regexp(Box::new(source)))
}

/// Both values end up in a response, and in SDKs' endpoint names.
fn place(flag: &'static str, value: Option<String>) -> Result<Option<String>, Invalid> {
    let fits = |value: &String| {
        let byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !value.is_empty() && value.len() <= 64 && value.bytes().all(byte)
    };
    match value {
        Some(value) if !fits(&value) => Err(Invalid::Place(flag)),
        value => Ok(value),
    }
}

/// A zone is its region and one letter (`eu-west-1a`), or its region and the name of a local or
/// wavelength zone (`us-west-2-lax-1a`).
fn region_of(region: Option<String>, zone: Option<&str>) -> Result<Option<String>, Invalid> {
    match (region, zone) {
        (Some(region), Some(zone)) if !zone.starts_with(&region) => Err(Invalid::Contradiction(
            "--availability-zone",
            "--region (a zone's name begins with its region's)",
        )),
        (None, Some(zone)) => {
            let region = zone.trim_end_matches(|c: char| c.is_ascii_lowercase());
            let whole =
                region.split('-').count() == 3 && region.ends_with(|c: char| c.is_ascii_digit());
            if whole {
                Ok(Some(region.to_owned()))
            } else {
                Err(Invalid::AlsoNeeds("--availability-zone", "--region"))
            }
        }
        (region, _) => Ok(region),
    }
}

impl From<DriverWord> for DriverChoice {
    fn from(word: DriverWord) -> Self {
        match word {
            DriverWord::Auto => Self::Auto,
            DriverWord::IoUring => Self::IoUring,
            DriverWord::Epoll => Self::Epoll,
        }
    }
}

impl From<SchedulingWord> for Scheduling {
    fn from(word: SchedulingWord) -> Self {
        match word {
            SchedulingWord::Other => Self::Other,
            SchedulingWord::Nice => Self::Nice,
            SchedulingWord::Rr => Self::RoundRobin,
        }
    }
}
