//! What this agent takes over from the one before it, and leaves for the one after.
//!
//! Nothing here can keep the agent from starting: what cannot be used is logged with its reason, and
//! the agent begins with nothing.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use kiam_wire::process::seldom::Seldom;
use kiam_wire::{PodUid, Update};
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep};
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use super::succession::{Shared, Succession};
use crate::clock::{Now, later, monotonic, since_boot};
use crate::control::served::SharedServed;
use crate::data::TokenKey;
use crate::fence::Fence;
use crate::handover::directory::Directory;
use crate::handover::listeners::{self, Taken};
use crate::handover::snapshot::{self, Addresses, Handover, Here};
use crate::handover::{boot_id, token_key, watched};
use crate::intercept::record::Record;
use crate::intercept::rules::Rules;
use crate::snapshot::Store;

/// A burst of updates is written once.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// At most one part in so many of the control thread's time goes into writing.
const SHARE: u32 = 20;

/// What the kernel has told about addresses, as last written down by the fence.
#[derive(Debug, Clone)]
pub(super) struct Known(Arc<watch::Sender<Addresses>>);

impl Known {
    pub(super) fn new(addresses: Addresses) -> Self {
        Self(Arc::new(watch::Sender::new(addresses)))
    }

    pub(super) fn set(&self, kernel: &Fence) {
        let addresses = Addresses {
            interfaces: kernel.interfaces(),
            // The store knows these.
            fenced: Vec::new(),
            superseded: Vec::new(),
            left: kernel.left(),
        };
        self.0.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
    }

    pub(super) fn get(&self) -> Addresses {
        self.0.borrow().clone()
    }
}

/// The hand-over directory, in use.
#[derive(Debug)]
pub(super) struct Inheritance {
    directory: Directory,
    boot_id: String,
    node_name: String,
    /// Writing fails, time and again when the file system is full.
    trouble: Mutex<Seldom<std::time::Instant>>,
}

impl Inheritance {
    /// `None` when there is nothing fit to use.
    pub(super) fn open(path: Option<&Path>, node_name: &str) -> Option<Self> {
        let opened = Directory::open(path?)
            .map_err(anyhow::Error::from)
            .and_then(|directory| {
                let boot_id = boot_id().context("the kernel does not name this boot")?;
                Ok(Self {
                    directory,
                    boot_id,
                    node_name: node_name.to_owned(),
                    trouble: Mutex::default(),
                })
            });
        opened
            .inspect_err(|error| {
                let error = format!("{error:#}");
                error!(
                    error,
                    "nothing is taken over from an earlier agent, nor left for a later one"
                );
            })
            .ok()
    }

    /// The listening sockets of the agent that still runs, if one does and has them to give.
    pub(super) fn take_listeners(&self) -> Option<Taken> {
        match listeners::take(&self.directory) {
            Ok(taken) => taken,
            Err(error) => {
                warn!(%error, "the running agent does not hand its ports over");
                None
            }
        }
    }

    /// Offers `sockets` to the next agent.
    pub(super) fn offer(&self, sockets: Vec<TcpListener>, shared: Shared) -> Option<Succession> {
        Succession::open(&self.directory, sockets, shared)
            .inspect_err(|error| warn!(%error, "the next agent cannot take over without a gap"))
            .ok()
    }

    fn here(&self, now: Now) -> Here<'_> {
        Here {
            node_name: &self.node_name,
            boot_id: &self.boot_id,
            now: now.wall,
        }
    }

    /// The key that this node's agents share, or `fresh` when they cannot.
    pub(super) fn token_key(&self, fresh: &Zeroizing<[u8; TokenKey::BYTES]>) -> TokenKey {
        match token_key::load_or_create(&self.directory, fresh) {
            Ok(key) => TokenKey::new(*key),
            Err(error) => {
                warn!(%error, "the next agent will not know the tokens of this one");
                TokenKey::new(**fresh)
            }
        }
    }

    /// Puts what an earlier agent left into the store, its fences included; returns what it knew of
    /// the addresses.
    pub(super) fn receive(&self, store: &mut Store, now: Now) -> Addresses {
        let Some(left) = self.left(now) else {
            return Addresses::default();
        };
        if let Err(gap) = store.apply(Update::Full(left.full), now) {
            // A Full starts anywhere, so this does not happen.
            warn!(%gap, "what an earlier agent left is not used");
        }
        for (ip, uid) in &left.addresses.fenced {
            store.restore_fence(*ip, uid, now);
        }
        for (ip, uid) in &left.addresses.superseded {
            store.restore_superseded(*ip, uid, now);
        }
        left.addresses
    }

    /// Stops answering addresses that may have changed hands since an agent last watched, until a server
    /// has spoken. Where each of `compared` lies was compared with what the kernel says now.
    pub(super) fn doubt(&self, store: &mut Store, compared: Option<&Addresses>) {
        if watched::is_recent(&self.directory, since_boot()) {
            return;
        }
        let interfaces = compared.into_iter().flat_map(|known| &known.interfaces);
        let vouched = interfaces.map(|(ip, _)| *ip).collect();
        let addresses = store.doubt_all_but(&vouched);
        if addresses > 0 {
            warn!(
                addresses,
                "for some time no agent watched over these addresses, and the network does not tell \
                 whether they changed hands: requests from there wait for a server"
            );
        }
    }

    fn left(&self, now: Now) -> Option<Handover> {
        match snapshot::read(&self.directory, self.here(now)) {
            Ok(Some(left)) => {
                log(&left);
                Some(left)
            }
            Ok(None) => {
                info!("no earlier agent left a snapshot");
                None
            }
            Err(error) => {
                warn!(%error, "what an earlier agent left is not used");
                None
            }
        }
    }

    /// What an installer said about `rules` in this boot.
    pub(super) fn vouched(&self, rules: &Rules) -> Option<Record> {
        Record::read(&self.directory)
            .inspect_err(|error| warn!(%error, "the installer's record cannot be read"))
            .ok()
            .flatten()
            .filter(|record| record.vouches_for(rules, &self.boot_id))
    }

    /// Writes down every change soon after it was made, for ever.
    pub(super) async fn keep(self: Arc<Self>, served: SharedServed, known: Known) {
        let (mut changes, mut kernel) = (served.lock().changes(), known.0.subscribe());
        let mut renewal = interval(watched::RENEWAL);
        loop {
            let began = Instant::now();
            let mut left = self.leave(&served, &known);
            sleep(PAUSE_MIN.max(began.elapsed() * SHARE)).await;
            // The senders live as long as what is served and known, which is held here.
            loop {
                tokio::select! {
                    served = changes.changed() => break drop(served),
                    known = kernel.changed() => break drop(known),
                    _ = renewal.tick() => {
                        left = if left { self.vouch(&served) } else { self.leave(&served, &known) };
                    }
                }
            }
        }
    }

    /// Says that what is left is how things stand at this moment. Not while it is in doubt: what this agent
    /// was left is then as old as before.
    fn vouch(&self, served: &SharedServed) -> bool {
        if served.lock().store().has_doubts() {
            return false;
        }
        self.has_worked(watched::renew(&self.directory, since_boot()))
    }

    fn has_worked(&self, written: io::Result<()>) -> bool {
        written
            .inspect_err(|error| {
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(times) = trouble.happened(monotonic(), later) {
                    warn!(%error, times, "the snapshot cannot be left for the next agent");
                }
            })
            .is_ok()
    }

    /// Writes down how things stand. `false` when what is there is not that.
    pub(super) fn leave(&self, served: &SharedServed, known: &Known) -> bool {
        let mut addresses = known.get();
        let full = {
            let served = served.lock();
            let store = served.store();
            let owned = |(ip, uid): (IpAddr, &PodUid)| (ip, uid.clone());
            addresses.fenced = store.fenced().map(owned).collect();
            addresses.superseded = store.superseded().map(owned).collect();
            store.export()
        };
        let Some(full) = full else {
            return false;
        };
        let here = self.here(Now::read());
        let written = snapshot::write(&self.directory, full, &addresses, here);
        self.has_worked(written) && self.vouch(served)
    }
}

fn log(left: &Handover) {
    info!(
        pods = left.full.pods.len(),
        credentials = left.full.credentials.len(),
        expired = left.expired,
        left_out = left.left_out.len(),
        written_at = %left.written_at,
        "took over what an earlier agent left"
    );
}
