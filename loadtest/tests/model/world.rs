//! Everything together: the real owner and fetchers of a server, two nodes, and the reference beside
//! them.

#[path = "rules.rs"]
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kiam_server::annotations::{self, Annotations};
use kiam_server::clock::{Clock, Moment};
use kiam_server::nodes::{ClusterEvent, Kind, PodSeen};
use kiam_server::push::AgentWord;
use kiam_server::snapshot::Told;
use kiam_wire::{PodState, PodUid, Revision, UnixSeconds, Update};
use tokio::sync::oneshot;

use crate::node::{Answer, Node, address};
use crate::reference::{Pod, Reference};
use crate::server::{BASE, SESSION, Server, start};
use crate::sts::{Mood, START, Sts};
use crate::{Event, NAMESPACES, NODES};

/// How often it is looked whether all is well while time passes.
const STEP_S: u64 = 60;
/// Longer than the longest backoff.
const HEALING_S: u64 = 700;

pub(crate) struct World {
    reference: Reference,
    nodes: Vec<Node>,
    server: Server,
    epochs: u64,
    clock: Clock,
    wrong_by_s: &'static AtomicI64,
    sts: Arc<Sts>,
    /// Since when nothing has kept the server from renewing; `None` while something does.
    well_since: Option<Moment>,
    /// Answers with credentials.
    pub(crate) given: u64,
}

impl World {
    pub(crate) async fn new() -> Self {
        // One number for each case, for as long as the process lives.
        let wrong_by_s: &'static AtomicI64 = Box::leak(Box::default());
        let clock = Clock::steered(START, wrong_by_s);
        let sts = Arc::new(Sts::new(Clock::starting_at(START)));
        let reference = Reference::permitting(&[(0, 2), (1, 1)]);
        let server = start(1, clock, &sts);
        let mut world = Self {
            reference,
            nodes: (0..NODES)
                .map(|node| Node::new(format!("node-{node}")))
                .collect(),
            server,
            epochs: 1,
            clock,
            wrong_by_s,
            sts,
            well_since: Some(clock.now().monotonic),
            given: 0,
        };
        world.lists();
        for node in 0..NODES {
            world.opens(node).await;
        }
        world
    }

    /// Lets it happen, and everything that follows from it; then looks whether all is as it must be.
    pub(crate) async fn happen(&mut self, event: &Event) -> Result<(), String> {
        match *event {
            Event::PodBound {
                pod,
                node,
                namespace,
                role,
                ip,
            } => {
                self.goes(pod);
                self.reference.bind(pod, node, namespace, role, ip);
                self.tells(pod);
            }
            Event::PodHasAddress { pod, ip } => self.changes(pod, |pod| pod.ip = Some(ip)),
            Event::PodStops { pod } => self.changes(pod, |pod| pod.stops = true),
            Event::Annotated { pod, role } => self.changes(pod, |pod| pod.role = role),
            Event::PodGone { pod } => self.goes(pod),
            Event::Permits { namespace, what } => {
                self.reference.permits.insert(namespace, what);
                self.hears(self.namespace(namespace));
            }
            Event::Relisted => self.lists(),
            Event::Sts(mood) => self.becomes(mood),
            Event::Passes { seconds } => self.passes(u64::from(seconds)).await?,
            Event::ServersClockSet { ahead_s } => {
                self.sets_clock(i64::from(ahead_s));
                // It looks at least this often.
                self.passes(15).await?;
            }
            Event::AgentsClockSet { node, ahead_s } => {
                let node = self.node(node);
                node.wrong_by_s = i64::from(ahead_s);
                node.doubts = true;
            }
            Event::StreamBreaks { node } => {
                self.node(node).breaks();
                self.node(node).cut_off = true;
            }
            Event::StreamOpens { node } => self.opens(node).await,
            Event::Delivered { node } => self.delivers(node).await?,
            Event::Vanished { pod } => {
                if let Some((node, ip)) = self.reference.place(pod) {
                    self.node(node).vanishes(ip);
                    // Soon, or the next agent hears it from the kernel.
                    self.node(node).seals();
                }
            }
            Event::Reappeared { pod } => {
                if let Some((node, ip)) = self.reference.place(pod) {
                    self.node(node).reappears(ip);
                }
            }
            Event::Sealed { node } => self.node(node).seals(),
            Event::AgentKilled { node } => self.node(node).dies(),
            Event::ServerKilled => self.restarts(),
            Event::Asked { node, ip } => {
                if self.asks(node, ip)? == Answer::Parked {
                    self.node(node).parked.push(ip);
                }
            }
        }
        self.settles().await;
        self.checks()
    }

    fn node(&mut self, node: u8) -> &mut Node {
        &mut self.nodes[usize::from(node)]
    }

    // === the cluster ===

    fn changes(&mut self, pod: u8, change: impl FnOnce(&mut Pod)) {
        if let Some(known) = self.reference.pods.get_mut(&pod) {
            change(known);
            self.tells(pod);
        }
    }

    fn goes(&mut self, pod: u8) {
        if let Some(pod) = self.reference.pods.remove(&pod) {
            self.hears(ClusterEvent::PodGone(uid(&pod)));
        }
    }

    fn tells(&self, pod: u8) {
        self.hears(ClusterEvent::Pod(seen(pod, &self.reference.pods[&pod])));
    }

    fn hears(&self, event: ClusterEvent) {
        let at = self.clock.now().monotonic;
        self.server.cluster.try_send((at, event)).unwrap();
    }

    fn namespace(&self, namespace: u8) -> ClusterEvent {
        let rule = match self.reference.permits.get(&namespace) {
            Some(2) => Some(format!("{BASE}.*")),
            Some(1) => Some(format!("{BASE}role-0")),
            _ => None,
        };
        let rule = rule.as_deref().map(|rule| (annotations::PERMITTED, rule));
        ClusterEvent::Namespace {
            name: format!("namespace-{namespace}").into(),
            annotations: rule.into_iter().collect(),
        }
    }

    /// Everything there is, as after a watch was lost.
    fn lists(&self) {
        self.hears(ClusterEvent::Listing(Kind::Namespaces));
        (0..NAMESPACES).for_each(|number| self.hears(self.namespace(number)));
        self.hears(ClusterEvent::Listed(Kind::Namespaces));
        self.hears(ClusterEvent::Listing(Kind::Pods));
        self.reference.pods.keys().for_each(|pod| self.tells(*pod));
        self.hears(ClusterEvent::Listed(Kind::Pods));
    }

    // === the programs ===

    fn becomes(&mut self, mood: Mood) {
        self.sts.set(mood);
        let now = self.clock.now().monotonic;
        let well = (mood == Mood::Well).then(|| self.well_since.unwrap_or(now));
        self.well_since = well;
    }

    /// Sets the server's wall clock. While sessions are over by it before they are of use, renewing
    /// fails, and backs off.
    fn sets_clock(&mut self, ahead_s: i64) {
        let useless = self.session_by_clock() < SESSION / 2;
        self.wrong_by_s.store(ahead_s, Ordering::Relaxed);
        if useless || self.session_by_clock() < SESSION / 2 {
            self.well_since = self.well_since.map(|_| self.clock.now().monotonic);
        }
    }

    /// How long a new session lasts by the server's wall clock, or by the right one, if that is less.
    fn session_by_clock(&self) -> Duration {
        let ahead_s = u64::try_from(self.wrong_by_s.load(Ordering::Relaxed));
        SESSION.saturating_sub(Duration::from_secs(ahead_s.unwrap_or(0)))
    }

    fn restarts(&mut self) {
        self.nodes.iter_mut().for_each(Node::breaks);
        self.sts.hung_up();
        self.epochs += 1;
        self.server = start(self.epochs, self.clock, &self.sts);
        self.lists();
    }

    /// What a stream does first.
    async fn opens(&mut self, node: u8) {
        self.node(node).breaks();
        self.node(node).cut_off = false;
        let (heard, taken_in) = oneshot::channel();
        let held = AgentWord::Holds {
            node: name(node),
            held: self.node(node).held(),
            heard,
        };
        self.server.words.send(held).await.unwrap();
        // As a stream does, which waits until the tables say it.
        let _dropped_unsaid = taken_in.await;
        self.settles().await;
        let named = self.node(node).opens();
        let at = self.clock.now().monotonic;
        let epoch = self.server.epoch;
        let (told, update) = self.server.nodes.with(&name(node), at, |table, _stamp| {
            let number = table.number();
            if named == Some(Revision { epoch, number }) {
                let (told, delta) = Told::unchanged(table, epoch);
                (told, Update::Delta(delta))
            } else {
                let (told, full) = Told::full(table, epoch);
                (told, Update::Full(full))
            }
        });
        let allowed = self.reference.allowed(node);
        let this = self.node(node);
        if this.takes(&update, allowed).is_ok_and(|fits| fits) {
            this.told = Some(Some(told));
        }
    }

    /// What a stream has to say, and the answers that waited for it.
    async fn delivers(&mut self, node: u8) -> Result<(), String> {
        self.settles().await;
        let at = self.clock.now().monotonic;
        let nodes = Arc::clone(&self.server.nodes);
        let allowed = self.reference.allowed(node);
        let this = self.node(node);
        let Some(Some(told)) = &mut this.told else {
            return Ok(());
        };
        let delta = nodes.with(&name(node), at, |table, _stamp| told.since(table));
        if let Some((delta, _at)) = delta {
            let fits = this.takes(&Update::Delta(delta), allowed)?;
            if !fits {
                return Err(format!("a delta to node-{node} does not follow"));
            }
        } else {
            this.is_told(allowed);
        }
        for ip in std::mem::take(&mut self.node(node).parked) {
            if self.asks(node, ip)? == Answer::Parked {
                self.node(node).parked.push(ip);
            }
        }
        self.serves_everyone(node)
    }

    /// A granted pod whose credentials the server has is answered from now on.
    fn serves_everyone(&mut self, node: u8) -> Result<(), String> {
        let allowed = self.reference.allowed(node);
        for (ip, role) in allowed.by_ip {
            let there = self.server.nodes.look(&name(node), |table| {
                let pods = table.pods().filter(|pod| pod.ips().contains(&address(ip)));
                let ids = pods.filter_map(|pod| match pod.state() {
                    PodState::Granted(id) => Some(*id),
                    _ => None,
                });
                let mut ready = ids.filter_map(|id| table.credentials(&id));
                ready.next().map(|one| one.expires_at())
            });
            let now = self.node(node).now().wall;
            let good = !self.node(node).doubts
                && !self.node(node).is_gone(ip)
                && there.flatten().is_some_and(|expires_at| expires_at > now);
            if good && !matches!(self.asks(node, ip)?, Answer::Given(..)) {
                return Err(format!(
                    "node-{node}: {} is granted role-{role}, pushed, and not served",
                    address(ip)
                ));
            }
        }
        Ok(())
    }

    /// Asks, and looks at the answer. The reference must allow it at this moment.
    fn asks(&mut self, node: u8, ip: u8) -> Result<Answer, String> {
        let answer = self.node(node).asked(ip);
        let Answer::Given(role, key, expiry) = &answer else {
            return Ok(answer);
        };
        self.given += 1;
        let this = &self.nodes[usize::from(node)];
        let allowed = this.allowed.by_ip.get(&ip);
        let allowed = allowed.map(|role| format!("role-{role}"));
        let broken = |what: String| Err(format!("node-{node}, {}: {what}", address(ip)));
        if allowed.as_ref() != Some(role) {
            let allowed = allowed.unwrap_or_else(|| "nothing".into());
            return broken(format!("given {role}, and {allowed} is what it may have"));
        }
        if this.is_gone(ip) {
            return broken(format!("given {role}, whose pod the kernel has seen go"));
        }
        if self.sts.role_of(key).as_ref() != Some(role) {
            return broken(format!("{key} was never issued for {role}"));
        }
        let now = this.now().wall;
        if *expiry <= now {
            let ago = now.get() - expiry.get();
            return broken(format!("given {key} of {role}, which ended {ago} s ago"));
        }
        Ok(answer)
    }

    // === time ===

    /// Everyone does what there is to do at this moment.
    async fn settles(&self) {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
    }

    async fn passes(&mut self, seconds: u64) -> Result<(), String> {
        let mut left = seconds;
        while left > 0 {
            let step = left.min(STEP_S);
            left -= step;
            let mut rest = step;
            while rest > 0 {
                let some = rest.min(5);
                rest -= some;
                tokio::time::advance(Duration::from_secs(some)).await;
                self.settles().await;
            }
            self.nodes.iter_mut().for_each(Node::tidies);
            self.checks()?;
            let streams: Vec<bool> = self.nodes.iter().map(|node| node.told.is_some()).collect();
            if step == STEP_S {
                // Whoever has just come is served what is there, until the call is answered.
                self.checks_renewal()?;
                // No stream is closed or says nothing for so long, unless the node is cut off; and
                // what an agent holds is written down.
                for node in 0..NODES {
                    if self.node(node).is_to_open() {
                        self.opens(node).await;
                    }
                    self.delivers(node).await?;
                    // Often enough: nobody is killed while time passes.
                    if left < STEP_S {
                        self.node(node).seals();
                    }
                    // Who has only just come back may bring what is nearly over.
                    if streams[usize::from(node)] {
                        self.checks_renewal_of(node)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Everything is made well, and after a while every granted pod must be served.
    pub(crate) async fn heal(&mut self) -> Result<(), String> {
        self.becomes(Mood::Well);
        self.sets_clock(0);
        self.nodes.iter_mut().for_each(|node| node.wrong_by_s = 0);
        self.passes(HEALING_S).await?;
        for node in 0..NODES {
            self.opens(node).await;
            if self.node(node).told.is_none() {
                // What it named did not fit; then it asks for everything.
                self.opens(node).await;
            }
            self.delivers(node).await?;
            for (ip, role) in self.reference.allowed(node).by_ip {
                self.node(node).reappears(ip);
                match self.asks(node, ip)? {
                    Answer::Given(..) => {}
                    // No pod gets an address back that another has had since.
                    _ if self.node(node).is_gone(ip) => {}
                    other => {
                        return Err(format!(
                            "node-{node}: {} is granted role-{role} and gets {other:?}",
                            address(ip)
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// How things stand, for a transcript: a line for STS and one for each node.
    pub(crate) fn standing(&self) -> Vec<String> {
        let roles = |by_ip: &BTreeMap<u8, u8>| {
            let roles = by_ip.iter();
            listed(roles.map(|(ip, role)| format!("{} = role-{role}", address(*ip))))
        };
        let nodes = (0..NODES).zip(&self.nodes).map(|(number, node)| {
            let stream = if node.told.is_some() {
                ""
            } else {
                ", no stream"
            };
            let may = roles(&self.reference.allowed(number).by_ip);
            let told = roles(&node.allowed.by_ip);
            let holds = listed(node.roles_held().into_iter());
            let fenced = listed(node.fenced().map(|ip| ip.to_string()));
            let fenced = match fenced.as_str() {
                "nothing" => String::new(),
                fenced => format!("; fences {fenced}"),
            };
            format!(
                "node-{number}{stream}: may serve {may}; was told {told}; holds {holds}{fenced}"
            )
        });
        let calls = format!("STS: calls so far: {}", self.sts.calls());
        std::iter::once(calls).chain(nodes).collect()
    }
}

fn listed(words: impl Iterator<Item = String>) -> String {
    let words: Vec<_> = words.collect();
    if words.is_empty() {
        return "nothing".into();
    }
    words.join(", ")
}

fn name(node: u8) -> Arc<str> {
    format!("node-{node}").into()
}

fn uid(pod: &Pod) -> PodUid {
    PodUid::try_new(&format!("uid-{}", pod.uid)).unwrap()
}

fn seen(number: u8, pod: &Pod) -> PodSeen {
    let role = pod.role.map(|role| format!("role-{role}"));
    let role = role.as_deref().map(|role| (annotations::ROLE, role));
    PodSeen {
        uid: uid(pod),
        namespace: format!("namespace-{}", pod.namespace).into(),
        name: format!("pod-{number}").into(),
        service_account: "default".into(),
        node: Some(name(pod.node)),
        ips: pod.ip.map(address).into_iter().collect(),
        host_network: false,
        is_static: false,
        terminating: pod.stops,
        created_at: UnixSeconds::new(i64::from(pod.uid)),
        annotations: role.into_iter().collect::<Annotations>(),
    }
}
