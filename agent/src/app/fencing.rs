//! Stops answering for addresses whose pod the kernel has seen go.
//!
//! What an earlier agent left is compared with the kernel before anybody is answered from it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kiam_wire::PodUid;
use tokio::time::{interval, sleep};
use tracing::{debug, info, warn};

use super::inheritance::Known;
use crate::clock::Now;
use crate::control::kernel_first::Updates;
use crate::control::served::SharedServed;
use crate::fence::{Fence, FenceEvent, Heard, Signal};
use crate::handover::snapshot::Addresses;
use crate::snapshot::Store;

/// Between attempts to listen to the kernel.
const RETRY: Duration = Duration::from_secs(10);
/// How long a node may have pods that the kernel shows no way to, before that is said.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// How long an address may have somebody behind it whom no server names, before that is said.
const SHUT_OUT_MAX: Duration = Duration::from_mins(1);
/// Between looks whether it is time to say so.
const LOOK: Duration = Duration::from_secs(30);

/// Listens to the kernel, and fences in `store` what changed hands since `saved` was written.
/// `None`, with the reason in the log, when the kernel does not say.
pub(super) async fn begin(store: &mut Store, saved: &Addresses, now: Now) -> Option<Fence> {
    let (kernel, events) = open(saved).await.inspect_err(deaf).ok()?;
    for event in events {
        // Nobody has been named since: the store is what was saved with them.
        apply(store, event, now, now);
    }
    Some(kernel)
}

async fn open(saved: &Addresses) -> io::Result<(Fence, Vec<FenceEvent>)> {
    let mut kernel = Fence::open().await?;
    debug!("listening to the kernel for pods that go");
    // Gone comes last, so that it counts where both are said.
    let mut events = kernel.expect_back(&saved.left);
    events.extend(kernel.no_longer(&saved.interfaces));
    Ok((kernel, events))
}

fn deaf(error: &io::Error) {
    warn!(%error, "the kernel does not say when pods go; only the server's word counts");
}

/// One who is refused again and again for the same reason says so once.
#[derive(Debug, Default)]
struct Refusals(Option<io::ErrorKind>);

impl Refusals {
    fn are_news(&mut self, error: &io::Error) -> bool {
        self.0.replace(error.kind()) != Some(error.kind())
    }
}

/// What a new beginning is compared with, and when it was how things stood: what is gone since may belong to
/// another pod by now, which the server has named and which is still there.
#[derive(Debug)]
struct Before {
    addresses: Addresses,
    at: Now,
}

impl Before {
    /// The kernel was heard until `at`. An attempt to listen that fails tells nothing new, so it does not
    /// come here.
    fn heard(&mut self, addresses: Addresses, at: Now) {
        *self = Self { addresses, at };
    }
}

/// Follows the kernel.
pub(super) struct Fencing {
    served: SharedServed,
    /// Where what it says is written down.
    known: Known,
    /// What was known before.
    saved: Addresses,
    /// Updates that wait for what it has said.
    updates: Updates,
}

impl Fencing {
    /// What `saved` names is where this begins; what it finds out goes to `known`, before `updates`.
    pub(super) const fn new(
        served: SharedServed,
        known: Known,
        saved: Addresses,
        updates: Updates,
    ) -> Self {
        Self {
            served,
            known,
            saved,
            updates,
        }
    }

    /// For ever. `kernel` has been listened to since before the first answer.
    pub(super) async fn run(mut self, mut kernel: Option<Fence>) {
        let mut before = Before {
            addresses: self.saved.clone(),
            at: Now::read(),
        };
        let mut refusals = Refusals::default();
        loop {
            let opened = match kernel.take() {
                Some(kernel) => Ok((kernel, Vec::new())),
                None => open(&before.addresses).await,
            };
            let error = match opened {
                Ok((kernel, events)) => {
                    self.apply(events, before.at);
                    let (error, until) = self.follow(kernel).await;
                    // What was known then is what a new beginning is compared with.
                    before.heard(self.known.get(), until);
                    error
                }
                Err(error) => error,
            };
            if refusals.are_news(&error) {
                deaf(&error);
            }
            self.rest().await;
        }
    }

    /// Until the next attempt. Updates need not wait for a kernel that says nothing.
    async fn rest(&mut self) {
        let end = sleep(RETRY);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                waiting = self.updates.waiting() => drop(waiting),
            }
        }
    }

    /// Returns why it ended, and until when what is known is how things stood.
    async fn follow(&mut self, mut kernel: Fence) -> (io::Error, Now) {
        let mut silence = Silence::default();
        let mut shut_out = ShutOut::default();
        let mut look = interval(LOOK);
        loop {
            self.known.set(&kernel);
            let (heard, waiting) = tokio::select! {
                heard = kernel.next() => (heard, None),
                waiting = self.updates.waiting() => (kernel.drain().await, Some(waiting)),
                _ = look.tick() => {
                    let now = Now::read().monotonic;
                    let pods = self.pods();
                    silence.look(kernel.signal(pods.iter().copied()), !pods.is_empty(), now);
                    shut_out.look(&self.served, &kernel, now);
                    continue;
                }
            };
            match heard {
                Ok(Heard { events, seen }) => self.apply(events, seen),
                Err(error) => return (error, kernel.known_until(Now::read())),
            }
            // Only now may the update be applied.
            drop(waiting);
        }
    }

    /// The addresses of pods to which the kernel should show a way.
    fn pods(&self) -> Vec<IpAddr> {
        let served = self.served.lock();
        let store = served.store();
        let gone: HashSet<IpAddr> = store.fenced_owned().map(|(ip, _)| ip).collect();
        store
            .pods()
            .filter(|view| !view.pod.host_network)
            .flat_map(|view| &view.pod.ips)
            .copied()
            .filter(|ip| !ip.is_loopback() && !gone.contains(ip))
            .collect()
    }

    fn apply(&self, events: Vec<FenceEvent>, seen: Now) {
        let now = Now::read();
        for event in events {
            self.served
                .lock()
                .change(now, |store| apply(store, event, seen, now));
        }
    }
}

/// Says once that the kernel tells when pods go, or that it does not: when this node has had pods for
/// a while and the kernel shows no way to any of them. On a bridge it shows one only once a pod has
/// spoken.
#[derive(Debug, Default)]
struct Silence {
    said: Option<Signal>,
    since: Option<Instant>,
}

impl Silence {
    fn look(&mut self, signal: Signal, has_pods: bool, now: Instant) {
        if self.said == Some(signal) {
            return;
        }
        if signal != Signal::None {
            self.said = Some(signal);
            info!(?signal, "the kernel tells when pods go");
            return;
        }
        if !has_pods {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= SILENCE_MAX {
            self.said = Some(signal);
            warn!(
                "this node's network does not tell when a pod goes (eBPF host routing, macvlan or \
                 ipvlan?): until the server says that an address has another pod, requests from \
                 it are answered with the former pod's credentials"
            );
        }
    }
}

/// Says once of each fenced address that somebody has been behind it for a while whom no server names:
/// either it is behind, or it is the same pod with a new sandbox and the same address, which looks exactly
/// like another pod.
#[derive(Debug, Default)]
struct ShutOut(HashMap<(IpAddr, PodUid), Since>);

#[derive(Debug, Clone, Copy)]
struct Since {
    seen: Instant,
    said: bool,
}

impl ShutOut {
    fn look(&mut self, served: &SharedServed, kernel: &Fence, now: Instant) {
        let served = served.lock();
        let store = served.store();
        let there = store
            .fenced_owned()
            .filter(|(ip, _)| kernel.is_reachable(*ip))
            .map(|(ip, uid)| (ip, uid.clone()))
            .collect();
        for (ip, uid) in self.news(there, now) {
            let pod = store.pods().find(|view| view.pod.uid == uid);
            let pod = pod.map(|view| (&*view.pod.namespace, &*view.pod.name));
            let (namespace, name) = pod.unwrap_or_default();
            warn!(
                %ip, namespace, name,
                "this pod's network went, and somebody else's came up at its address whom no server has \
                 named since; requests from there wait. If the pod runs on with a new sandbox and the same \
                 address, delete it"
            );
        }
    }

    /// Which of those who are `there` have been for so long that it is to be said now.
    fn news(&mut self, there: Vec<(IpAddr, PodUid)>, now: Instant) -> Vec<(IpAddr, PodUid)> {
        let before = std::mem::take(&mut self.0);
        let mut news = Vec::new();
        for key in there {
            let mut since = before.get(&key).copied().unwrap_or(Since {
                seen: now,
                said: false,
            });
            if !since.said && now.saturating_duration_since(since.seen) >= SHUT_OUT_MAX {
                since.said = true;
                news.push(key.clone());
            }
            self.0.insert(key, since);
        }
        news
    }
}

/// Whether it made a difference. `seen` is when the pods were last known to be there that an event
/// says are gone.
fn apply(store: &mut Store, event: FenceEvent, seen: Now, now: Now) -> bool {
    match event {
        FenceEvent::Gone(ip) => {
            let fenced = store.fence_as_of(ip, seen, now);
            debug!(%ip, fenced, "an address has nobody behind it");
            fenced
        }
        FenceEvent::Back(ip) => store.unfence(ip, now),
    }
}

#[cfg(test)]
mod tests {
    use kiam_wire::{Full, Pod, PodState, Revision, Update};

    use super::*;
    use crate::snapshot::store::Doors;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    /// A server says that this pod has the address.
    fn named(store: &mut Store, uid: &str, now: Now) {
        let pod = Pod {
            uid: PodUid::try_new(uid).unwrap(),
            namespace: "n".into(),
            name: "p".into(),
            service_account: "s".into(),
            ips: vec![IP],
            host_network: false,
            imds_v2_required: false,
            state: PodState::NoRole,
        };
        let full = Full {
            revision: Revision {
                epoch: 1,
                number: 1,
            },
            pods: vec![pod],
            credentials: vec![],
            keys: None,
        };
        store.apply(Update::Full(full), now).unwrap();
    }

    /// What listening finds out that fails and fails again is about who was there when it last went well.
    #[test]
    fn who_came_while_nobody_listened_is_not_taken_for_who_went() {
        let start = Now::read();
        let at = |seconds| start.after(Duration::from_secs(seconds));
        let mut before = Before {
            addresses: Addresses::default(),
            at: at(0),
        };
        let gone = |store: &mut Store, before: &Before| {
            apply(store, FenceEvent::Gone(IP), before.at, at(30))
        };
        let mut store = Store::new(Doors::Metadata);
        named(&mut store, "first", at(1));
        before.heard(Addresses::default(), at(10));
        assert!(gone(&mut store, &before), "it was there at the end");

        let mut store = Store::new(Doors::Metadata);
        named(&mut store, "first", at(1));
        // The attempts after 10 and 20 s fail; in between another pod is named.
        named(&mut store, "second", at(15));
        assert!(!gone(&mut store, &before));
        assert!(store.snapshot(at(30)).by_ip(IP).is_some());
    }

    #[test]
    fn the_same_refusal_is_said_once() {
        let mut refusals = Refusals::default();
        let said: Vec<bool> = [1, 1, 13, 13, 1]
            .map(|errno| refusals.are_news(&io::Error::from_raw_os_error(errno)))
            .into();
        // 1 and 13 are both a lack of permission.
        assert_eq!(said, [true, false, false, false, false]);
        assert!(refusals.are_news(&io::ErrorKind::OutOfMemory.into()));
    }

    #[test]
    fn a_network_that_tells_nothing_is_named_once_there_are_pods() {
        let mut silence = Silence::default();
        let start = Now::read().monotonic;
        let mut check = |after_s, signal, has_pods, said| {
            silence.look(signal, has_pods, start + Duration::from_secs(after_s));
            assert_eq!(silence.said, said, "after {after_s} s");
        };
        check(0, Signal::None, false, None);
        check(100, Signal::None, true, None);
        check(159, Signal::None, true, None);
        check(160, Signal::None, true, Some(Signal::None));
        check(200, Signal::Bridge, true, Some(Signal::Bridge));
        check(300, Signal::Bridge, true, Some(Signal::Bridge));
    }

    #[test]
    fn who_is_shut_out_for_long_is_named_once() {
        let mut shut_out = ShutOut::default();
        let start = Now::read().monotonic;
        let one = (IpAddr::from([10, 0, 0, 1]), PodUid::try_new("a").unwrap());
        let mut check = |after_s, there: bool, said: bool| {
            let there = there.then(|| one.clone()).into_iter().collect();
            let news = shut_out.news(there, start + Duration::from_secs(after_s));
            assert_eq!(!news.is_empty(), said, "after {after_s} s");
        };
        check(0, true, false);
        check(59, true, false);
        check(60, true, true);
        check(120, true, false);
        // Named, and another time.
        check(130, false, false);
        check(140, true, false);
        check(199, true, false);
        check(200, true, true);
    }
}
