//! The rows of the tables: what each is called, which figure it shows, and what that may be at most.

use super::unit::Unit;

/// One row: what it is called, the figure, how it is written, and its budget.
pub(crate) struct Row(
    pub &'static str,
    pub &'static str,
    pub Unit,
    pub Option<f64>,
);

/// Of the agent against the null server.
pub(crate) const AGAINST_NULL: [Row; 15] = [
    Row(
        "p50, agent by null server",
        "p50_ratio",
        Unit::Ratio,
        Some(1.15),
    ),
    Row(
        "p99, agent by null server",
        "p99_ratio",
        Unit::Ratio,
        Some(1.25),
    ),
    Row(
        "CPU a request, agent by null server",
        "cpu_ratio",
        Unit::Ratio,
        Some(1.20),
    ),
    Row("agent p50", "request_p50_us", Unit::Micros, None),
    Row("agent p99", "request_p99_us", Unit::Micros, None),
    Row("agent p99.9", "request_p999_us", Unit::Micros, None),
    Row("null server p50", "null_request_p50_us", Unit::Micros, None),
    Row("null server p99", "null_request_p99_us", Unit::Micros, None),
    Row(
        "null server p99.9",
        "null_request_p999_us",
        Unit::Micros,
        None,
    ),
    Row(
        "CPU a request, agent",
        "agent_cpu_per_request_us",
        Unit::Micros,
        None,
    ),
    Row(
        "CPU a request, null server",
        "null_cpu_per_request_us",
        Unit::Micros,
        None,
    ),
    Row("failures", "failures", Unit::Count, Some(0.0)),
    Row("requests to the agent", "requests", Unit::Count, None),
    Row(
        "dialogues started late",
        "generator_late_share",
        Unit::Percent,
        None,
    ),
    Row(
        "time stolen by the hypervisor",
        "stolen_share",
        Unit::Percent,
        None,
    ),
];

/// What stands beside the agent, the run, the prefix of its figures, the budget of its p99 by the quiet
/// slices.
pub(crate) const STRESS: [(&str, &str, &str, Option<f64>); 4] = [
    ("quiet", "stirred500", "", None),
    (
        "50 snapshots/s published",
        "stirred500",
        "stirred_",
        Some(1.10),
    ),
    (
        "three hogs, `--scheduling other`",
        "hogs_other",
        "hogged_",
        None,
    ),
    (
        "three hogs, `--scheduling rr`",
        "hogs_rr",
        "hogged_",
        Some(2.0),
    ),
];

/// Of pods that come and go.
pub(crate) const CHURN: [Row; 8] = [
    Row(
        "first credentials p50",
        "first_credential_p50_ms",
        Unit::Millis,
        None,
    ),
    Row(
        "first credentials p99",
        "first_credential_p99_ms",
        Unit::Millis,
        Some(25.0),
    ),
    Row(
        "change to served, as the server sees it, p50",
        "push_applied_p50_ms",
        Unit::Millis,
        None,
    ),
    Row(
        "change to served, as the server sees it, p99",
        "push_applied_p99_ms",
        Unit::Millis,
        None,
    ),
    Row(
        "requests that had to wait for their pod",
        "parked_share",
        Unit::Percent,
        None,
    ),
    Row(
        "STS calls for each role",
        "sts_calls_per_role",
        Unit::Ratio,
        None,
    ),
    Row(
        "STS calls for a session that was not due for renewal",
        "sts_calls_early",
        Unit::Count,
        Some(0.0),
    ),
    Row("failures", "failures", Unit::Count, Some(0.0)),
];

/// Of the server.
pub(crate) const SCALE: [Row; 13] = [
    Row(
        "cold start to every node served",
        "cold_start_s",
        Unit::Seconds,
        Some(30.0),
    ),
    Row("push, API to agent, p50", "push_p50_ms", Unit::Millis, None),
    Row(
        "push, API to agent, p99",
        "push_p99_ms",
        Unit::Millis,
        Some(250.0),
    ),
    Row(
        "memory at rest",
        "server_rss_quiet_mib",
        Unit::Mebibytes,
        Some(512.0),
    ),
    Row(
        "memory under changes",
        "server_rss_mib",
        Unit::Mebibytes,
        Some(512.0),
    ),
    Row("CPU a change", "cpu_per_change_us", Unit::Micros, None),
    Row("server CPU, cores", "server_cpu_share", Unit::Ratio, None),
    Row(
        "bytes to an agent for a change",
        "bytes_per_change",
        Unit::Bytes,
        None,
    ),
    Row(
        "bytes to an agent for a pod, cold",
        "cold_sent_bytes_per_pod",
        Unit::Bytes,
        None,
    ),
    Row("STS calls", "sts_calls", Unit::Count, None),
    Row("changes lost", "changes_lost", Unit::Count, Some(0.0)),
    Row("promises broken", "violations", Unit::Count, Some(0.0)),
    Row(
        "changes made late",
        "generator_late_share",
        Unit::Percent,
        None,
    ),
];

/// Of things that fail.
pub(crate) const FAULTS: [Row; 4] = [
    Row(
        "failed requests of pods that had been granted",
        "failures_of_known",
        Unit::Count,
        Some(0.0),
    ),
    Row("pods created", "pods_created", Unit::Count, None),
    Row("requests", "requests", Unit::Count, None),
    Row(
        "STS calls for each role",
        "sts_calls_per_role",
        Unit::Ratio,
        None,
    ),
];

/// Of the agent and of another: both figures.
pub(crate) const BESIDE: [(&str, &str, &str, Unit); 8] = [
    (
        "request p50",
        "request_p50_us",
        "other_request_p50_us",
        Unit::Micros,
    ),
    (
        "request p99",
        "request_p99_us",
        "other_request_p99_us",
        Unit::Micros,
    ),
    (
        "request p99.9",
        "request_p999_us",
        "other_request_p999_us",
        Unit::Micros,
    ),
    (
        "CPU a request",
        "agent_cpu_per_request_us",
        "other_cpu_per_request_us",
        Unit::Micros,
    ),
    (
        "first credentials p50",
        "first_credential_p50_ms",
        "other_first_credential_p50_ms",
        Unit::Millis,
    ),
    (
        "first credentials p99",
        "first_credential_p99_ms",
        "other_first_credential_p99_ms",
        Unit::Millis,
    ),
    (
        "failed dialogues of granted pods",
        "failures_of_known",
        "other_failures",
        Unit::Count,
    ),
    ("memory", "agent_rss_mib", "other_rss_mib", Unit::Mebibytes),
];
