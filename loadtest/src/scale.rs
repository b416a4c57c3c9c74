//! One server against a large cluster: thousands of simulated agents, a hundred thousand pods.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kiam_sim::cluster::{Kind, NewPod, Phase};
use kiam_sim::faults::Latency;

use crate::cast;
use crate::clock;
use crate::fleet::{self, Seen, Way};
use crate::gate::{self, Gate, Named};
use crate::progress::Progress;
use crate::report::Usage;
use crate::simulation::Simulation;
use crate::system::ServerAlone;

/// Runs one server against a large simulated cluster with simulated agents.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Scale {
    /// Nodes, each with an agent: a connection and a stream of its own.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    nodes: u32,
    /// Pods, shared out among the nodes.
    #[arg(long, value_name = "N", default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pods: u32,
    /// Roles, shared out among the pods.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    roles: u32,
    /// Pods replaced each second once every node is served.
    #[arg(long, value_name = "N", default_value_t = 100)]
    changes_per_second: u32,
    /// Seconds of changes.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    seconds: u64,
    /// Lets every agent connect again at the same moment, in the end.
    #[arg(long)]
    reconnect_all: bool,
    /// What each call to STS takes, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 50)]
    sts_latency_ms: u64,
    /// How long a session lasts, in seconds, whatever the server asks for; it is refreshed at half of
    /// that, so that refreshes can be weighed.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(2..=43_200))]
    sts_lifetime_seconds: Option<u64>,
    /// How long serving every node may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience_seconds: u64,
    /// A condition on a figure, for example 'violations=0' or 'cold_start_s<=30'; may be given several
    /// times. If one does not hold the exit code is 1.
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<Gate>,
    /// Writes the figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A flag handed to the server as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    server_flag: Vec<std::ffi::OsString>,
}

/// Every figure of such a run.
const FIGURES: &[&str] = &[
    "cold_start_s",
    "cold_start_cpu_s",
    "cold_bytes_per_pod",
    "server_rss_quiet_mib",
    "server_rss_mib",
    "bytes_per_pod",
    "push_min_ms",
    "push_p50_ms",
    "push_p99_ms",
    "push_max_ms",
    "changes",
    "changes_lost",
    "cpu_per_change_us",
    "bytes_per_change",
    "server_cpu_share",
    "refreshes",
    "bytes_per_refresh",
    "sts_calls_cold",
    "sts_calls",
    "updates",
    "streams",
    "disconnects",
    "violations",
    "reconnect_s",
    "reconnect_cpu_s",
    "reconnect_rss_mib",
    "reconnect_sts_calls",
];

impl Scale {
    /// Why gates are shut, each in a line.
    pub(crate) fn shut(&self, figures: &Named) -> Vec<String> {
        gate::judge(&self.gates, figures, None)
    }

    /// Runs to the end.
    pub(crate) fn run(&self, progress: &Progress) -> anyhow::Result<Named> {
        gate::check(&self.gates, FIGURES, false)?;
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        progress.step(&format!(
            "creating {} nodes, {} pods, {} roles",
            self.nodes, self.pods, self.roles
        ));
        let simulation = Simulation::start(dir.path(), 1)?;
        self.populate(&simulation)?;
        let latency = Duration::from_millis(self.sts_latency_ms);
        simulation.sts().faults().set_latency(Latency {
            fixed: latency,
            ..Latency::default()
        });
        let lifetime = self.sts_lifetime_seconds.map(Duration::from_secs);
        simulation.sts().set_lifetime(lifetime);
        progress.step("starting the server and the agents");
        let cold = clock::now();
        let mut flags = vec!["--agent-auth=shared-certificate".into()];
        flags.extend(self.server_flag.iter().cloned());
        let server = ServerAlone::start(&simulation, flags)?;
        let seen = Arc::new(Seen::default());
        let way = Way::new(server.address(), simulation.files())?;
        for node in 0..self.nodes {
            let follow = fleet::agent(node_name(node), way.clone(), Arc::clone(&seen));
            drop(simulation.runtime().spawn(follow));
        }
        let served = self
            .wait_served(&seen, progress)?
            .saturating_duration_since(cold);
        let (cold_cpu, cold_bytes) = (Usage::of(server.pid())?, seen.bytes());
        progress.step(&format!(
            "every node served after {:.1} s",
            served.as_secs_f64()
        ));
        // A moment of rest, so that what follows is the cost of the changes alone.
        clock::sleep_until(clock::now() + Duration::from_secs(2));
        let sts_calls_cold = simulation.sts().total();
        let before = Usage::of(server.pid())?;
        let before_bytes = seen.bytes();
        let changes = self.change(&simulation, &seen, progress)?;
        let changed_bytes = seen.bytes().saturating_sub(before_bytes);
        let after = Usage::of(server.pid())?;
        let mut figures = self.figures(&seen, Usage::between(before, after), changes);
        let quiet = float(before.resident_bytes);
        figures.extend([
            ("cold_start_s", served.as_secs_f64()),
            ("cold_start_cpu_s", cold_cpu.cpu.as_secs_f64()),
            ("server_rss_quiet_mib", quiet / f64::from(1 << 20)),
            ("bytes_per_pod", quiet / f64::from(self.pods)),
            (
                "cold_bytes_per_pod",
                float(cold_bytes) / f64::from(self.pods),
            ),
            (
                "bytes_per_change",
                float(changed_bytes) / f64::from(changes.max(1)),
            ),
            ("sts_calls_cold", float(sts_calls_cold)),
            ("sts_calls", float(simulation.sts().total())),
        ]);
        if self.reconnect_all {
            figures.extend(self.reconnect(&simulation, &server, &seen, progress)?);
        }
        debug_assert!(figures.keys().all(|name| FIGURES.contains(name)));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&figures)? + "\n";
            std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(figures)
    }

    /// Every agent comes back at once and is served again.
    fn reconnect(
        &self,
        simulation: &Simulation,
        server: &ServerAlone,
        seen: &Seen,
        progress: &Progress,
    ) -> anyhow::Result<Named> {
        progress.step("letting every agent connect again at once");
        let (before, calls) = (Usage::of(server.pid())?, simulation.sts().total());
        let start = clock::now();
        seen.reconnect_all();
        // The order has arrived when somebody has gone.
        while seen.granted() >= u64::from(self.pods) && seen.streams() >= u64::from(self.nodes) {
            let waited = clock::sleep_a_while().saturating_duration_since(start);
            anyhow::ensure!(waited < Duration::from_secs(30), "nobody hung up");
        }
        let back = self.wait_served(seen, progress)?;
        let after = Usage::of(server.pid())?;
        let used = Usage::between(before, after);
        Ok(Named::from([
            (
                "reconnect_s",
                back.saturating_duration_since(start).as_secs_f64(),
            ),
            ("reconnect_cpu_s", used.cpu.as_secs_f64()),
            (
                "reconnect_rss_mib",
                float(after.resident_bytes) / f64::from(1 << 20),
            ),
            (
                "reconnect_sts_calls",
                float(simulation.sts().total().saturating_sub(calls)),
            ),
        ]))
    }

    fn figures(&self, seen: &Seen, used: Usage, changes: u32) -> Named {
        let latencies = seen.latencies();
        let ms = |latency: Duration| latency.as_secs_f64() * 1e3;
        let cpu = used.cpu.as_secs_f64();
        let (refreshed, refresh_bytes) = seen.refreshes();
        let lost = u32::try_from(seen.outstanding()).unwrap_or(u32::MAX);
        Named::from([
            (
                "server_rss_mib",
                float(used.resident_bytes) / f64::from(1 << 20),
            ),
            ("changes", f64::from(changes)),
            ("changes_lost", f64::from(lost)),
            ("push_min_ms", ms(latencies.min())),
            ("push_p50_ms", ms(latencies.quantile(0.5))),
            ("push_p99_ms", ms(latencies.quantile(0.99))),
            ("push_max_ms", ms(latencies.max())),
            ("cpu_per_change_us", cpu * 1e6 / f64::from(changes.max(1))),
            ("server_cpu_share", cpu / float(self.seconds.max(1))),
            ("refreshes", float(refreshed)),
            (
                "bytes_per_refresh",
                float(refresh_bytes) / float(refreshed.max(1)),
            ),
            ("updates", float(seen.updates())),
            ("streams", float(seen.streams())),
            ("disconnects", float(seen.disconnects())),
            ("violations", float(seen.violations())),
        ])
    }

    fn populate(&self, simulation: &Simulation) -> anyhow::Result<()> {
        let cluster = simulation.cluster();
        for node in 0..self.nodes {
            cluster.create_node(&node_name(node), &[])?;
        }
        let pods = (0..self.pods).map(|number| {
            self.pod(number)
                .ip(pod_address(number))
                .phase(Phase::Running)
        });
        Ok(cluster.create_pods(pods)?)
    }

    fn name(&self, number: u32) -> String {
        format!("{}.{number}", node_name(number % self.nodes))
    }

    fn pod(&self, number: u32) -> NewPod {
        // Not the node's own stride, so that a node has pods of many roles.
        let role = (number / self.nodes).wrapping_add(number) % self.roles;
        NewPod::new(cast::OPEN, self.name(number))
            .node(node_name(number % self.nodes))
            .annotation("iam.amazonaws.com/role", format!("role-{role:05}"))
    }

    fn wait_served(&self, seen: &Seen, progress: &Progress) -> anyhow::Result<std::time::Instant> {
        let start = clock::now();
        let mut told = start;
        while seen.granted() < u64::from(self.pods) {
            let now = clock::sleep_a_while();
            let waited = now.saturating_duration_since(start);
            anyhow::ensure!(
                waited < Duration::from_secs(self.patience_seconds),
                "after {waited:?} only {} of {} pods are served, over {} streams",
                seen.granted(),
                self.pods,
                seen.streams()
            );
            if now.saturating_duration_since(told) > Duration::from_secs(5) {
                told = now;
                progress.step(&format!(
                    "{} pods over {} streams",
                    seen.granted(),
                    seen.streams()
                ));
            }
        }
        Ok(clock::now())
    }

    /// Replaces pods: the oldest goes, a new one comes with its address.
    fn change(
        &self,
        simulation: &Simulation,
        seen: &Seen,
        progress: &Progress,
    ) -> anyhow::Result<u32> {
        let changes = u32::try_from(self.seconds)
            .unwrap_or(u32::MAX)
            .saturating_mul(self.changes_per_second);
        progress.step(&format!("replacing {changes} pods"));
        let cluster = simulation.cluster();
        let mut alive: VecDeque<u32> = (0..self.pods).collect();
        let start = clock::now();
        let gap = Duration::from_secs(1)
            .checked_div(self.changes_per_second)
            .unwrap_or_default();
        for change in 0..changes {
            clock::sleep_until(start + gap.saturating_mul(change));
            let (Some(old), new) = (alive.pop_front(), self.pods.saturating_add(change)) else {
                break;
            };
            cluster.delete(Kind::Pod, cast::OPEN, &self.name(old))?;
            let pod = self.pod(new).ip(pod_address(new)).phase(Phase::Running);
            seen.expect(self.name(new));
            cluster.create_pod(pod)?;
            alive.push_back(new);
        }
        let deadline = clock::now() + Duration::from_secs(10);
        while seen.outstanding() > 0 && clock::now() < deadline {
            clock::sleep_a_while();
        }
        Ok(changes)
    }
}

fn node_name(node: u32) -> String {
    format!("node-{node:05}")
}

/// 10.0.0.1 and up: nobody sends anything there, they are only told.
fn pod_address(number: u32) -> IpAddr {
    let start = u32::from(Ipv4Addr::new(10, 0, 0, 1));
    IpAddr::from(Ipv4Addr::from(start.saturating_add(number % 0x00ff_fffe)))
}

fn float(count: u64) -> f64 {
    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "counts below 2^52"
    )]
    let float = count as f64;
    float
}
