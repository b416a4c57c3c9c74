//! One node: the real agent's rooms without its sockets.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use kiam_agent::clock::{Now, later};
use kiam_agent::control::subscription::{End, Subscription, Verdict};
use kiam_agent::data::dry::{Dry, DryRun};
use kiam_agent::data::{DataConfig, TokenKey};
use kiam_agent::handover::snapshot::{Addresses, Here, decode, encode};
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::store::departed::REMEMBERED;
use kiam_agent::snapshot::{Snapshot, Store};
use kiam_agent::tally::Tallies;
use kiam_server::snapshot::Told;
use kiam_wire::update::Parsed;
use kiam_wire::{PodUid, UnixSeconds, Update, proto};
use tokio::time::Instant;

use crate::reference::Allowed;
use crate::sts::START;

/// An agent, and its stream's other end.
pub(crate) struct Node {
    name: String,
    origin: Instant,
    base: Now,
    pub(crate) wrong_by_s: i64,
    /// Its clock has jumped: what came meanwhile may have been taken for ended.
    pub(crate) doubts: bool,
    /// It has no stream and cannot open one.
    pub(crate) cut_off: bool,
    store: Store,
    subscription: Subscription,
    /// What the server has told on the present stream; `None` without one.
    pub(crate) told: Option<Option<Told>>,
    /// What the reference allowed when the server said what the agent holds.
    pub(crate) allowed: Allowed,
    /// Pods that have lost an address, the latest last: nobody there is that pod.
    gone: Vec<Gone>,
    sealed: Option<Sealed>,
    /// Addresses of requests that wait.
    pub(crate) parked: Vec<u8>,
}

/// What an agent wrote down, and what the reference says about that.
#[derive(Clone)]
struct Sealed {
    bytes: Vec<u8>,
    allowed: Allowed,
    gone: Vec<Gone>,
}

/// A pod that has lost an address.
#[derive(Clone)]
struct Gone {
    ip: u8,
    uid: u32,
    /// The kernel has seen it go; otherwise a server has named another after it.
    seen: bool,
    at: Instant,
}

/// What a pod was answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The role it was told, the key id it was given, and until when that is good.
    Given(String, String, UnixSeconds),
    Parked,
    Nothing(u16),
}

pub(crate) fn address(ip: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, ip + 1).into()
}

fn config() -> DataConfig {
    DataConfig {
        audience: "kiam".into(),
        ..DataConfig::new(TokenKey::new([7; 32]))
    }
}

impl Node {
    pub(crate) fn new(name: String) -> Self {
        let base = Now {
            wall: START,
            ..Now::read()
        };
        Self {
            name,
            origin: Instant::now(),
            base,
            wrong_by_s: 0,
            doubts: false,
            cut_off: false,
            store: Store::new(Doors::Metadata),
            subscription: Subscription::new(),
            told: None,
            allowed: Allowed::default(),
            gone: Vec::new(),
            sealed: None,
            parked: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let passed = self.origin.elapsed();
        Now {
            monotonic: later(self.base.monotonic, passed),
            wall: UnixSeconds::new(START.after(passed).get() + self.wrong_by_s),
        }
    }

    /// What Hello says is held.
    pub(crate) fn held(&self) -> Vec<kiam_wire::report::HeldCredential> {
        self.store.held()
    }

    /// The revision that Hello names.
    pub(crate) fn opens(&mut self) -> Option<kiam_wire::Revision> {
        let named = self.subscription.names(self.store.revision());
        self.subscription.opened(named);
        self.told = Some(None);
        named
    }

    pub(crate) const fn is_to_open(&self) -> bool {
        self.told.is_none() && !self.cut_off
    }

    pub(crate) fn breaks(&mut self) {
        if self.told.take().is_some() {
            self.subscription.ended(End::Failed, Duration::from_mins(1));
        }
    }

    /// Takes an update as it comes off the wire. False when it does not fit what is held.
    pub(crate) fn takes(&mut self, update: &Update, allowed: Allowed) -> Result<bool, String> {
        let message = proto::ServerMessage::from(update);
        let parsed = Parsed::try_from(message).map_err(|error| error.to_string())?;
        if let Some(malformed) = parsed.left_out.first() {
            return Err(format!("an update has a malformed part: {malformed}"));
        }
        let update = parsed.update;
        if self.subscription.heard(&update) == Verdict::Gap {
            self.subscription.ended(End::OutOfStep, Duration::ZERO);
            self.told = None;
            return Ok(false);
        }
        let revision = update.leads_to();
        let follows = matches!(update, Update::Delta(_));
        self.store
            .apply(update, self.now())
            .map_err(|gap| format!("accepted and then refused: {gap}"))?;
        self.subscription.applied(revision);
        if follows {
            self.is_told_next(&allowed);
        }
        self.allowed = allowed;
        self.forgets();
        Ok(true)
    }

    /// The server has nothing to say: this is what it has said.
    pub(crate) fn is_told(&mut self, allowed: Allowed) {
        self.allowed = allowed;
    }

    /// What follows on what was said before: whose address is another's now does not get it back.
    fn is_told_next(&mut self, allowed: &Allowed) {
        let before = std::mem::take(&mut self.allowed.owners);
        for (ip, uid) in before {
            let owner = allowed.owners.get(&ip);
            if owner.is_some_and(|owner| *owner != uid) {
                self.loses(ip, uid, false);
            }
        }
    }

    fn loses(&mut self, ip: u8, uid: u32, seen: bool) {
        let at = Instant::now();
        let known = self
            .gone
            .iter()
            .position(|one| (one.ip, one.uid) == (ip, uid));
        if let Some(known) = known
            && self.gone[known].seen
            && !seen
        {
            self.gone[known].at = at;
            return;
        }
        known.map(|known| self.gone.remove(known));
        self.gone.push(Gone { ip, uid, seen, at });
    }

    /// What is not remembered any more, by the agent and here.
    fn forgets(&mut self) {
        let now = self.now();
        self.store.forget_departed(now);
        let owners = &self.allowed.owners;
        self.gone.retain_mut(|one| {
            let is_old = one.at.elapsed() >= REMEMBERED;
            let stays = one.seen && owners.get(&one.ip) == Some(&one.uid);
            if is_old && stays {
                one.at = Instant::now();
            }
            !is_old || stays
        });
    }

    /// The kernel says that whoever was behind an address is gone.
    pub(crate) fn vanishes(&mut self, ip: u8) {
        let now = self.now();
        self.store.fence(address(ip), now);
        if let Some(owner) = self.allowed.owners.get(&ip).copied() {
            self.loses(ip, owner, true);
        }
        self.forgets();
    }

    /// The kernel says that whoever it saw go last from an address is there after all.
    pub(crate) fn reappears(&mut self, ip: u8) {
        let now = self.now();
        self.store.unfence(address(ip), now);
        let last = self
            .gone
            .iter()
            .rposition(|gone| gone.ip == ip && gone.seen);
        let owner = self.allowed.owners.get(&ip);
        if let Some(last) = last
            && owner.is_none_or(|owner| *owner == self.gone[last].uid)
        {
            self.gone.remove(last);
        }
    }

    /// Whether the pod that the server names for an address is known to have lost it.
    pub(crate) fn is_gone(&self, ip: u8) -> bool {
        let owner = self.allowed.owners.get(&ip);
        let mut gone = self.gone.iter().filter(|gone| gone.ip == ip);
        gone.any(|gone| owner == Some(&gone.uid))
    }

    /// What the agent does every second.
    pub(crate) fn tidies(&mut self) {
        let now = self.now();
        self.store.expire(now);
        self.forgets();
    }

    fn here(&self) -> Here<'_> {
        Here {
            node_name: &self.name,
            boot_id: "boot",
            now: self.now().wall,
        }
    }

    pub(crate) fn seals(&mut self) {
        if let Some(full) = self.store.export() {
            let owned = |(ip, uid): (IpAddr, &PodUid)| (ip, uid.clone());
            let addresses = Addresses {
                fenced: self.store.fenced().map(owned).collect(),
                superseded: self.store.superseded().map(owned).collect(),
                ..Addresses::default()
            };
            self.sealed = Some(Sealed {
                bytes: encode(full, &addresses, self.here()).to_vec(),
                allowed: self.allowed.clone(),
                gone: self.gone.clone(),
            });
        }
    }

    /// Dies, and another takes over what it wrote down last.
    pub(crate) fn dies(&mut self) {
        self.store = Store::new(Doors::Metadata);
        self.subscription = Subscription::new();
        self.told = None;
        self.parked.clear();
        self.allowed = Allowed::default();
        self.gone.clear();
        let Some(sealed) = self.sealed.clone() else {
            return;
        };
        // Too old or from the future: as if there were none.
        if let Ok(left) = decode(&sealed.bytes, self.here()) {
            let now = self.now();
            let applied = self.store.apply(Update::Full(left.full), now);
            applied.unwrap();
            for (ip, uid) in &left.addresses.fenced {
                self.store.restore_fence(*ip, uid, now);
            }
            for (ip, uid) in &left.addresses.superseded {
                self.store.restore_superseded(*ip, uid, now);
            }
            self.allowed = sealed.allowed;
            self.gone = sealed.gone;
            let restored = Instant::now();
            self.gone.iter_mut().for_each(|one| one.at = restored);
        }
    }

    /// Names of the roles whose credentials are held, good or not.
    pub(crate) fn roles_held(&self) -> Vec<String> {
        let full = self.store.export();
        let credentials = full.iter().flat_map(|full| full.credentials.iter());
        credentials.map(|one| one.role_name().to_owned()).collect()
    }

    /// Addresses that are not answered, because the kernel has seen their pod go.
    pub(crate) fn fenced(&self) -> impl Iterator<Item = IpAddr> {
        let mut fenced: Vec<IpAddr> = self.store.fenced().map(|(ip, _uid)| ip).collect();
        fenced.sort_unstable();
        fenced.into_iter()
    }

    /// What whoever is behind an address is answered: the list, then the credentials.
    pub(crate) fn asked(&mut self, ip: u8) -> Answer {
        self.forgets();
        let now = self.now();
        let tallies = Tallies::new(1);
        let snapshot = self.store.snapshot(now);
        let dry = DryRun::new(&config(), &tallies, now).unwrap();
        let gets = |path: &str| gets(&dry, &snapshot, ip, path);
        let document = gets("").and_then(|role| Ok((gets(&role)?, role)));
        let (document, role) = match document {
            Ok(document) => document,
            Err(nothing) => return nothing,
        };
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        let text = |name: &str| document[name].as_str().unwrap().to_owned();
        let expiry: jiff::Timestamp = text("Expiration").parse().unwrap();
        let expiry = UnixSeconds::new(expiry.as_second());
        Answer::Given(role, text("AccessKeyId"), expiry)
    }
}

fn gets(dry: &DryRun, snapshot: &Snapshot, ip: u8, path: &str) -> Result<String, Answer> {
    let request = format!(
        "GET /latest/meta-data/iam/security-credentials/{path} HTTP/1.1\r\nhost: x\r\n\r\n"
    );
    let mut out = Vec::new();
    match dry.metadata(request.as_bytes(), address(ip), snapshot, &mut out) {
        Dry::Answered { status: 200, .. } => {
            let text = String::from_utf8(out).unwrap();
            Ok(text.split_once("\r\n\r\n").unwrap().1.to_owned())
        }
        Dry::Answered { status, .. } => Err(Answer::Nothing(status)),
        Dry::Parked => Err(Answer::Parked),
        other => panic!("{other:?}"),
    }
}
