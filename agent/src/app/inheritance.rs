//! What this agent takes over from the one before it, and leaves for the one after.
//!
//! Nothing here can keep the agent from starting: what cannot be used is logged with its reason, and
//! the agent begins with nothing.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use kiam_wire::Update;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::clock::Now;
use crate::control::served::SharedServed;
use crate::data::TokenKey;
use crate::fence::InterfaceIndex;
use crate::handover::directory::Directory;
use crate::handover::snapshot::{self, Handover, Here};
use crate::handover::{boot_id, token_key};
use crate::intercept::record::Record;
use crate::intercept::rules::Rules;
use crate::snapshot::Store;

/// A burst of updates is written once.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// At most one part in so many of the control thread's time goes into writing.
const SHARE: u32 = 20;

/// Which interface each address lies behind, as far as the kernel has told. Written by the fence.
#[derive(Debug, Clone, Default)]
pub(super) struct Interfaces(Arc<Mutex<Vec<(IpAddr, InterfaceIndex)>>>);

impl Interfaces {
    pub(super) fn set(&self, interfaces: Vec<(IpAddr, InterfaceIndex)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = interfaces;
    }

    pub(super) fn get(&self) -> Vec<(IpAddr, InterfaceIndex)> {
        let interfaces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        interfaces.clone()
    }
}

/// The hand-over directory, in use.
#[derive(Debug)]
pub(super) struct Inheritance {
    directory: Directory,
    boot_id: String,
    node_name: String,
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

    /// Puts what an earlier agent left into the store; returns where it saw the addresses.
    pub(super) fn receive(&self, store: &mut Store, now: Now) -> Vec<(IpAddr, InterfaceIndex)> {
        let Some(left) = self.left(now) else {
            return Vec::new();
        };
        if let Err(gap) = store.apply(Update::Full(left.full), now) {
            // A Full starts anywhere, so this does not happen.
            warn!(%gap, "what an earlier agent left is not used");
        }
        left.interfaces
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
    pub(super) async fn keep(self: Arc<Self>, served: SharedServed, interfaces: Interfaces) {
        let mut changes = served.lock().changes();
        loop {
            let began = Instant::now();
            self.leave(&served, &interfaces);
            sleep(PAUSE_MIN.max(began.elapsed() * SHARE)).await;
            // The sender lives as long as what is served, which is held here.
            drop(changes.changed().await);
        }
    }

    /// Writes down how things stand.
    pub(super) fn leave(&self, served: &SharedServed, interfaces: &Interfaces) {
        let Some(full) = served.lock().store().export() else {
            return;
        };
        let here = self.here(Now::read());
        if let Err(error) = snapshot::write(&self.directory, full, &interfaces.get(), here) {
            warn!(%error, "the snapshot cannot be left for the next agent");
        }
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
