//! What the cluster says, kept in one place: pods, their namespaces, who owns which address.
//!
//! Pure. It is told facts in whatever order the watches deliver them and answers which pods have to
//! be looked at again; it decides nothing about roles. Three rules live here and nowhere else: what
//! a fresh list does not name is gone; an address belongs to the one pod of a node that shows it and
//! is not stopping, and to nobody there while there are two of those; and a pod whose namespace has
//! not been seen yet is held back, because its watch may simply be slower.

mod claim;
mod listed;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use kiam_wire::{PodUid, UnixSeconds};

use crate::annotations::{self, Annotations};
use claim::{Claim, Claimants, contested_somewhere, judge};
use listed::Listed;

/// The kinds of objects that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Pods of all namespaces.
    Pods,
    /// Namespaces.
    Namespaces,
    /// `ServiceAccount`s, where their annotations count.
    ServiceAccounts,
}

impl Kind {
    /// Every kind, for metrics that start at zero.
    pub const ALL: [Self; 3] = [Self::Pods, Self::Namespaces, Self::ServiceAccounts];

    /// The word used in labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::ServiceAccounts => "serviceaccounts",
        }
    }
}

/// One thing a watch said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A list begins: what it does not name by the time it ends is gone.
    Listing(Kind),
    /// The list is complete, and everything after it is a change.
    Listed(Kind),
    /// A pod as it is now.
    Pod(PodSeen),
    /// A pod that is no more, or has run to its end.
    PodGone(PodUid),
    /// A namespace as it is now.
    Namespace {
        /// Its name.
        name: Arc<str>,
        /// Its annotations.
        annotations: Annotations,
    },
    /// A namespace that is no more.
    NamespaceGone(Arc<str>),
    /// A `ServiceAccount` as it is now.
    ServiceAccount {
        /// Its namespace and name.
        key: AccountKey,
        /// Its annotations.
        annotations: Annotations,
    },
    /// A `ServiceAccount` that is no more.
    ServiceAccountGone(AccountKey),
}

/// A `ServiceAccount`'s namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What is kept of a pod. Names that many pods share are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// The key.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    /// The `ServiceAccount` it runs as.
    pub service_account: Arc<str>,
    /// Where it runs, once it is bound.
    pub node: Option<Arc<str>>,
    /// What its status shows, each once.
    pub ips: Box<[IpAddr]>,
    /// It shares the node's addresses.
    pub host_network: bool,
    /// It is what a kubelet shows of a static pod, and wholly of that kubelet's making.
    pub is_static: bool,
    /// It has been told to stop.
    pub terminating: bool,
    /// When it was created: of two that are stopping, the newer owns an address.
    pub created_at: UnixSeconds,
    /// Those of ours.
    pub annotations: Annotations,
}

impl PodSeen {
    /// The newer is the greater; of two of one second the one with the greater uid, so that every
    /// replica agrees.
    const fn age(&self) -> (UnixSeconds, &PodUid) {
        (self.created_at, &self.uid)
    }

    fn account(&self) -> AccountKey {
        AccountKey {
            namespace: Arc::clone(&self.namespace),
            name: Arc::clone(&self.service_account),
        }
    }
}

/// What an event asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Pods to be decided (again); none of them is in `gone`.
    pub pods: HashSet<PodUid>,
    /// Pods that are no more.
    pub gone: Vec<PodUid>,
    /// Addresses that have come to be contested. It may have passed already.
    pub contested: Vec<IpAddr>,
    /// The last kind has been listed for the first time: everything is to be decided.
    pub synced: bool,
}

/// Everything known of the cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Shared with the nodes' tables, and not in place: a map's empty places are as large as its
    /// full ones.
    pods: Listed<PodUid, Arc<PodSeen>>,
    namespaces: Listed<Arc<str>, Annotations>,
    /// `None`: known to be gone, while pods still run as it.
    accounts: Listed<AccountKey, Option<Annotations>>,
    /// Which pods are in a namespace. An index of `pods`, which is the truth.
    in_namespace: HashMap<Arc<str>, HashSet<PodUid>>,
    /// Which pods show an address. An index of `pods`, which is the truth.
    claims: HashMap<IpAddr, Claimants>,
    /// Addresses that several pods of one node show of which none is stopping.
    contested: HashSet<IpAddr>,
    /// Kinds that have never been listed in full.
    unlisted: Vec<Kind>,
}

/// What is known around a pod, for deciding about it.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The namespace's annotations.
    pub namespace: &'a Annotations,
    /// The `ServiceAccount`'s, if it has any and they are watched.
    pub service_account: Option<&'a Annotations>,
}

impl Cluster {
    /// Nothing known. It is in sync once each of `kinds` has been listed.
    pub fn new(kinds: &[Kind]) -> Self {
        Self {
            pods: Listed::new(),
            namespaces: Listed::new(),
            accounts: Listed::new(),
            in_namespace: HashMap::new(),
            claims: HashMap::new(),
            contested: HashSet::new(),
            unlisted: kinds.to_vec(),
        }
    }

    /// Whether every kind has been listed in full at least once.
    pub const fn synced(&self) -> bool {
        self.unlisted.is_empty()
    }

    /// Takes in what a watch said, and adds what it touches.
    pub fn on(&mut self, event: ClusterEvent, touched: &mut Touched) {
        match event {
            ClusterEvent::Listing(kind) => self.listing(kind),
            ClusterEvent::Listed(kind) => self.listed(kind, touched),
            ClusterEvent::Pod(pod) => self.pod(&Arc::new(pod), touched),
            ClusterEvent::PodGone(uid) => self.pod_gone(&uid, touched),
            ClusterEvent::Namespace { name, annotations } => {
                if self.namespaces.put(Arc::clone(&name), annotations.clone()) != Some(annotations)
                {
                    self.touch_namespace(&name, touched);
                }
            }
            ClusterEvent::NamespaceGone(name) => self.namespace_gone(&name, touched),
            ClusterEvent::ServiceAccount { key, annotations } => {
                let annotations = Some(annotations);
                if self.accounts.put(key.clone(), annotations.clone()) != Some(annotations) {
                    self.touch_account(&key, touched);
                }
            }
            ClusterEvent::ServiceAccountGone(key) => self.account_gone(&key, touched),
        }
    }

    /// The pod with this uid.
    pub fn get(&self, uid: &PodUid) -> Option<&Arc<PodSeen>> {
        self.pods.get(uid)
    }

    /// How many pods are known.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// No pods are known.
    pub fn is_empty(&self) -> bool {
        self.pods.len() == 0
    }

    /// Every pod.
    pub fn pods(&self) -> impl Iterator<Item = &PodSeen> {
        self.pods.values().map(Arc::as_ref)
    }

    /// The pod called this; of several that only follow one another, the one that is not stopping.
    pub fn find(&self, namespace: &str, name: &str) -> Option<&PodSeen> {
        let uids = self.in_namespace.get(namespace)?;
        let named = uids.iter().filter_map(|uid| Some(&**self.get(uid)?));
        named
            .filter(|pod| &*pod.name == name)
            .max_by_key(|pod| (!pod.terminating, pod.age()))
    }

    /// The annotations of a namespace, once it has been seen.
    pub fn namespace(&self, name: &Arc<str>) -> Option<&Annotations> {
        self.namespaces.get(name)
    }

    /// What a decision about the pod needs; `None` while its namespace, or a `ServiceAccount` that
    /// may carry its role, has not been seen yet. A pod that names a role itself asks its account
    /// for nothing, so that it does not wait for it either.
    pub fn surroundings(&self, pod: &PodSeen, accounts: bool) -> Option<Surroundings<'_>> {
        let namespace = self.namespaces.get(&pod.namespace)?;
        let asks_itself = pod.annotations.get(annotations::ROLE).is_some();
        let service_account = if accounts && !asks_itself && !pod.service_account.is_empty() {
            self.accounts.get(&pod.account())?.as_ref()
        } else {
            None
        };
        Some(Surroundings {
            namespace,
            service_account,
        })
    }

    /// Every pod that shows this address; hostNetwork pods never do.
    pub fn claimants(&self, ip: IpAddr) -> impl Iterator<Item = &PodSeen> {
        let uids = self.claims.get(&ip).into_iter().flat_map(Claimants::iter);
        uids.filter_map(|uid| Some(&**self.get(uid)?))
    }

    /// The pod that owns this address in the whole cluster, for those who do not say on which node
    /// they saw it; nobody does while running pods of any nodes show it.
    pub fn owner(&self, ip: IpAddr) -> Option<&PodSeen> {
        match judge(self.claimants(ip)) {
            Claim::Of(pod) => Some(pod),
            Claim::Free | Claim::Contested => None,
        }
    }

    /// The pod of this node that owns the address there. What pods of other nodes show does not
    /// count: no request of theirs reaches this node's agent, and a node that is gone, or lies,
    /// would take addresses away from others.
    pub fn owner_on(&self, node: &str, ip: IpAddr) -> Option<&PodSeen> {
        let here = |pod: &&PodSeen| pod.node.as_deref() == Some(node);
        match judge(self.claimants(ip).filter(here)) {
            Claim::Of(pod) => Some(pod),
            Claim::Free | Claim::Contested => None,
        }
    }

    /// Whether several pods of one node show this address of which none is stopping: it is nobody's
    /// there then.
    pub fn is_contested(&self, ip: IpAddr) -> bool {
        self.contested.contains(&ip)
    }

    /// How many addresses are contested.
    pub fn contested(&self) -> usize {
        self.contested.len()
    }

    /// The addresses that the pod shows and owns on its node.
    pub fn owned_ips(&self, pod: &PodSeen) -> Vec<IpAddr> {
        let Some(node) = pod.node.as_deref() else {
            return Vec::new();
        };
        let owns = |ip: &&IpAddr| {
            let owner = self.owner_on(node, **ip);
            owner.is_some_and(|owner| owner.uid == pod.uid)
        };
        pod.ips.iter().filter(owns).copied().collect()
    }

    const fn listing(&mut self, kind: Kind) {
        match kind {
            Kind::Pods => self.pods.begin(),
            Kind::Namespaces => self.namespaces.begin(),
            Kind::ServiceAccounts => self.accounts.begin(),
        }
    }

    fn listed(&mut self, kind: Kind, touched: &mut Touched) {
        match kind {
            Kind::Pods => {
                for uid in self.pods.end() {
                    self.pod_gone(&uid, touched);
                }
            }
            Kind::Namespaces => {
                for name in self.namespaces.end() {
                    self.namespace_gone(&name, touched);
                }
            }
            Kind::ServiceAccounts => {
                for key in self.accounts.end() {
                    self.account_unlisted(&key, touched);
                }
                self.settle_accounts(touched);
            }
        }
        let before = self.unlisted.len();
        self.unlisted.retain(|unlisted| *unlisted != kind);
        touched.synced |= before > 0 && self.unlisted.is_empty();
    }

    fn pod(&mut self, pod: &Arc<PodSeen>, touched: &mut Touched) {
        let uid = pod.uid.clone();
        if self.pods.repeats(&uid, pod) {
            return;
        }
        let old = self.pods.put(uid.clone(), Arc::clone(pod));
        match &old {
            Some(old) => self.unclaim(&uid, &old.ips, touched),
            None => {
                self.in_namespace
                    .entry(Arc::clone(&pod.namespace))
                    .or_default()
                    .insert(uid.clone());
            }
        }
        for ip in &pod.ips {
            match self.claims.entry(*ip) {
                Entry::Vacant(free) => {
                    free.insert(Claimants::one(uid.clone()));
                }
                Entry::Occupied(mut claimed) => {
                    touched.pods.extend(claimed.get().iter().cloned());
                    claimed.get_mut().add(uid.clone());
                }
            }
        }
        // Once everything has its place: an address given up and taken again is not news.
        if let Some(old) = old {
            self.judge_again(&old.ips, touched);
        }
        self.judge_again(&pod.ips, touched);
        touched.pods.insert(uid);
    }

    fn pod_gone(&mut self, uid: &PodUid, touched: &mut Touched) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        self.unclaim(uid, &pod.ips, touched);
        self.judge_again(&pod.ips, touched);
        if let Entry::Occupied(mut pods) = self.in_namespace.entry(Arc::clone(&pod.namespace)) {
            pods.get_mut().remove(uid);
            if pods.get().is_empty() {
                pods.remove();
            }
        }
        touched.pods.remove(uid);
        touched.gone.push(uid.clone());
    }

    /// Gives up addresses; whoever else claims them may own them now.
    fn unclaim(&mut self, uid: &PodUid, ips: &[IpAddr], touched: &mut Touched) {
        for ip in ips {
            if let Entry::Occupied(mut claims) = self.claims.entry(*ip) {
                if claims.get_mut().remove(uid) {
                    claims.remove();
                } else {
                    touched.pods.extend(claims.get().iter().cloned());
                }
            }
        }
    }

    /// Notes which of these addresses are contested now.
    fn judge_again(&mut self, ips: &[IpAddr], touched: &mut Touched) {
        for ip in ips {
            if !contested_somewhere(self.claimants(*ip)) {
                self.contested.remove(ip);
            } else if self.contested.insert(*ip) {
                touched.contested.push(*ip);
            }
        }
    }

    /// Pods that run as it have no defaults any more, which is not the same as defaults that have
    /// not arrived yet. That goes for pods which are seen only after it, too; so it is remembered
    /// for as long as its namespace is there, or until a list.
    fn account_gone(&mut self, key: &AccountKey, touched: &mut Touched) {
        let has_pods = self.account_pods(key).next().is_some();
        if has_pods || self.namespaces.get(&key.namespace).is_some() {
            self.accounts.put(key.clone(), None);
        } else {
            self.accounts.remove(key);
        }
        self.touch_account(key, touched);
    }

    /// As no list names it: without pods there is nothing to remember.
    fn account_unlisted(&mut self, key: &AccountKey, touched: &mut Touched) {
        let was = self.accounts.remove(key);
        if self.account_pods(key).next().is_some() {
            self.accounts.put(key.clone(), None);
            if was.flatten().is_some() {
                self.touch_account(key, touched);
            }
        }
    }

    fn namespace_gone(&mut self, name: &Arc<str>, touched: &mut Touched) {
        if self.namespaces.remove(name).is_none() {
            return;
        }
        let (in_namespace, pods) = (self.in_namespace.get(name), &self.pods);
        self.accounts.retain(|key, annotations| {
            let runs = |uid: &PodUid| {
                let pod = pods.get(uid);
                pod.is_some_and(|pod| pod.service_account == key.name)
            };
            annotations.is_some()
                || key.namespace != *name
                || in_namespace.into_iter().flatten().any(runs)
        });
        self.touch_namespace(name, touched);
    }

    /// After a list, a pod's `ServiceAccount` that was not in it does not exist. Without this, a
    /// pod that outlived its account would be held back for ever after a restart.
    fn settle_accounts(&mut self, touched: &mut Touched) {
        let absent: HashSet<AccountKey> = self
            .pods()
            .map(PodSeen::account)
            .filter(|key| !key.name.is_empty() && self.accounts.get(key).is_none())
            .collect();
        for key in absent {
            self.accounts.put(key.clone(), None);
            self.touch_account(&key, touched);
        }
    }

    fn account_pods(&self, key: &AccountKey) -> impl Iterator<Item = &PodSeen> {
        let uids = self.in_namespace.get(&key.namespace).into_iter().flatten();
        let name = Arc::clone(&key.name);
        uids.filter_map(|uid| Some(&**self.get(uid)?))
            .filter(move |pod| pod.service_account == name)
    }

    fn touch_account(&self, key: &AccountKey, touched: &mut Touched) {
        let pods = self.account_pods(key).map(|pod| pod.uid.clone());
        touched.pods.extend(pods);
    }

    fn touch_namespace(&self, name: &Arc<str>, touched: &mut Touched) {
        let pods = self.in_namespace.get(name).into_iter().flatten();
        touched.pods.extend(pods.cloned());
    }
}

#[cfg(test)]
mod tests;
