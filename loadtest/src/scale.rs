//! One server against a large cluster: thousands of simulated agents, a hundred thousand pods.

mod figures;
mod pace;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kiam_sim::cluster::{Kind, NewPod, Phase};
use kiam_sim::faults::Latency;

use figures::{Cold, Counts, NAMES};
use pace::{Paced, pace};

use crate::cast;
use crate::clock;
use crate::fleet::{self, Seen, Way};
use crate::gate::{self, Gate, Named};
use crate::json;
use crate::numbers::{float, mebibytes};
use crate::progress::Progress;
use crate::report::Usage;
use crate::simulation::Simulation;
use crate::system::ServerAlone;
use crate::verdict;

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
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    changes_per_second: u32,
    /// Seconds of changes, or of watching when there are none.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
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
    /// times. If one does not hold the exit code is 1, and also if one is on the latency of changes
    /// that were made late. Unless said otherwise violations=0 is one.
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<Gate>,
    /// Writes the figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A flag handed to the server as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    server_flag: Vec<std::ffi::OsString>,
}

/// What such a run ended with.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For gates.
    pub figures: Named,
    /// Gates that are shut, and why. One on the latency of changes that were made late is.
    pub shut: Vec<String>,
    /// Why the generator's own lateness forbids a verdict on the latency of changes, if it does.
    pub no_verdict: Option<String>,
}

impl Scale {
    /// Runs to the end.
    pub(crate) fn run(&self, progress: &Progress) -> anyhow::Result<Outcome> {
        gate::check(&self.gates, NAMES, false)?;
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        let simulation = self.simulate(dir.path(), progress)?;
        progress.step("starting the server and the agents");
        let start = clock::now();
        let mut flags = vec!["--agent-auth=shared-certificate".into()];
        flags.extend(self.server_flag.iter().cloned());
        let server = ServerAlone::start(&simulation, flags)?;
        let seen = Arc::new(Seen::default());
        let way = Way::new(server.address(), simulation.files())?;
        for node in 0..self.nodes {
            let follow = fleet::agent(node_name(node), way.clone(), Arc::clone(&seen));
            drop(simulation.runtime().spawn(follow));
        }
        let served = self.wait_served(&seen, progress)?;
        let cold = Cold {
            took: served.saturating_duration_since(start),
            used: Usage::of(server.pid())?,
            bytes: seen.bytes(),
            pods: self.pods,
        };
        progress.step(&format!(
            "every node served after {:.1} s",
            cold.took.as_secs_f64()
        ));
        // A moment of rest, so that what follows is the cost of the changes alone.
        clock::sleep_until(clock::now() + Duration::from_secs(2));
        let before = Counts::read(&server, &seen, &simulation)?;
        let paced = self.change(&simulation, &seen, progress)?;
        let lost = Self::settle(&seen);
        let after = Counts::read(&server, &seen, &simulation)?;
        let mut figures = cold.figures(&before);
        figures.extend(figures::of_changes(&before, &after, paced.made));
        figures.extend(figures::of_the_fleet(&seen, &paced, lost));
        if self.reconnect_all {
            figures.extend(self.reconnect(&simulation, &server, &seen, progress)?);
        }
        debug_assert!(figures.keys().all(|name| NAMES.contains(name)));
        if let Some(path) = &self.json {
            json::write(path, &figures)?;
        }
        // There is one load, so every latency is its.
        let late = verdict::refusal_of("the changes", &paced.lag);
        let gates = gate::with_none_of(&self.gates, Some("violations"));
        Ok(Outcome {
            shut: gate::judge(&gates, &figures, None, |_figure| late.clone()),
            no_verdict: late,
            figures,
        })
    }

    /// The cluster and STS, before anybody asks them for anything.
    fn simulate(&self, dir: &Path, progress: &Progress) -> anyhow::Result<Simulation> {
        progress.step(&format!(
            "creating {} nodes, {} pods, {} roles",
            self.nodes, self.pods, self.roles
        ));
        let simulation = Simulation::start(dir, 1)?;
        self.populate(&simulation)?;
        let latency = Duration::from_millis(self.sts_latency_ms);
        simulation.sts().faults().set_latency(Latency {
            fixed: latency,
            ..Latency::default()
        });
        let lifetime = self.sts_lifetime_seconds.map(Duration::from_secs);
        simulation.sts().set_lifetime(lifetime);
        Ok(simulation)
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
        let calls = simulation.sts().total().saturating_sub(calls);
        let took = back.saturating_duration_since(start);
        Ok(gate::measured([
            ("reconnect_s", Some(took.as_secs_f64())),
            ("reconnect_cpu_s", used.cpu.map(|cpu| cpu.as_secs_f64())),
            ("reconnect_rss_mib", Some(mebibytes(used.resident_bytes))),
            ("reconnect_sts_calls", Some(float(calls))),
        ]))
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

    fn wait_served(&self, seen: &Seen, progress: &Progress) -> anyhow::Result<Instant> {
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
    ) -> anyhow::Result<Paced> {
        let (rate, length) = (self.changes_per_second, Duration::from_secs(self.seconds));
        progress.step(&format!(
            "replacing {rate} pods a second for {} s",
            self.seconds
        ));
        let cluster = simulation.cluster();
        let mut alive: VecDeque<u32> = (0..self.pods).collect();
        pace(rate, length, |number, due| {
            let new = self.pods.saturating_add(number);
            seen.expect(self.name(new), due);
            if let Some(old) = alive.pop_front() {
                cluster.delete(Kind::Pod, cast::OPEN, &self.name(old))?;
            }
            let pod = self.pod(new).ip(pod_address(new)).phase(Phase::Running);
            cluster.create_pod(pod)?;
            alive.push_back(new);
            Ok(())
        })
    }

    /// Waits until every change was heard of; says how many were not.
    fn settle(seen: &Seen) -> u64 {
        let deadline = clock::now() + SETTLES;
        while seen.outstanding() > 0 && clock::now() < deadline {
            clock::sleep_a_while();
        }
        seen.give_up()
    }
}

/// How long after the last change an agent may hear of one.
const SETTLES: Duration = Duration::from_secs(10);

fn node_name(node: u32) -> String {
    format!("node-{node:05}")
}

/// 10.0.0.1 and up: nobody sends anything there, they are only told.
fn pod_address(number: u32) -> IpAddr {
    let start = u32::from(Ipv4Addr::new(10, 0, 0, 1));
    IpAddr::from(Ipv4Addr::from(start.saturating_add(number % 0x00ff_fffe)))
}
