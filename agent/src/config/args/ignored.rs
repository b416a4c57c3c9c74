//! kiam's flags that mean nothing here.
//!
//! They are accepted, so that a chart written for kiam starts this agent unchanged, and named in
//! one warning. Their values are not looked at.

use clap::Args;

use crate::config::switch::Switch;

/// What the operator typed that changes nothing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Accepted from kiam and ignored")]
pub(crate) struct IgnoredArgs {
    /// Ignored: DNS is asked again at each connection attempt.
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    server_address_refresh: Option<String>,

    /// Ignored: pings are sent for as long as the connection lives.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_short_help = true)]
    grpc_keepalive_permit_without_stream: Option<Switch>,

    /// Ignored, as in kiam: metrics are added up when someone asks for them.
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    prometheus_sync_interval: Option<String>,

    /// Ignored: there is no Go profiler here.
    #[arg(long, value_name = "ADDRESS", hide_short_help = true)]
    pprof_listen_addr: Option<String>,

    /// Ignored: removed in kiam v4; use --admin-listen-addr and Prometheus.
    #[arg(long, value_name = "ADDRESS", hide_short_help = true)]
    statsd: Option<String>,

    /// Ignored, see --statsd.
    #[arg(long, value_name = "PREFIX", hide_short_help = true)]
    statsd_prefix: Option<String>,

    /// Ignored, see --statsd.
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    statsd_interval: Option<String>,
}

impl IgnoredArgs {
    /// The names of those that were given.
    pub(crate) fn validate(self) -> Vec<&'static str> {
        let Self {
            server_address_refresh,
            grpc_keepalive_permit_without_stream,
            prometheus_sync_interval,
            pprof_listen_addr,
            statsd,
            statsd_prefix,
            statsd_interval,
        } = self;
        [
            ("--server-address-refresh", server_address_refresh.is_some()),
            (
                "--grpc-keepalive-permit-without-stream",
                grpc_keepalive_permit_without_stream.is_some(),
            ),
            (
                "--prometheus-sync-interval",
                prometheus_sync_interval.is_some(),
            ),
            ("--pprof-listen-addr", pprof_listen_addr.is_some()),
            ("--statsd", statsd.is_some()),
            ("--statsd-prefix", statsd_prefix.is_some()),
            ("--statsd-interval", statsd_interval.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }
}
