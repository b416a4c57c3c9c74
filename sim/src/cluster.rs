//! The simulated Kubernetes API server.
//!
//! It has two faces over one store. Over HTTP it answers what an API server answers for Pods,
//! Namespaces, Service Accounts, Nodes, Events, token requests and token reviews. In process,
//! [`ClusterHandle`] does the same without HTTP, fast enough to churn 150,000 pods. There is no
//! scheduler, no kubelet and no controller: what neither a client nor the caller does, does not
//! happen (a deleted pod excepted: it goes when its grace is over). It is no place to keep secrets:
//! there is no authorization beyond one optional bearer token.
//!
//! In reading order: a request is parsed (`route`), dispatched (`server`), read (`read`, `watch`,
//! `view`, `table`) or written (`write`, `admission`, `patch`) in the `store`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

mod admission;
mod counters;
mod discovery;
mod events;
mod json;
mod keys;
mod kind;
mod new_pod;
mod patch;
mod pods;
mod protobuf;
mod read;
mod route;
mod selector;
mod server;
mod state;
mod status;
mod store;
mod table;
mod tokens;
mod view;
mod watch;
mod write;

pub use kind::Kind;
pub use new_pod::{NewPod, Phase};
pub use status::ApiError;

use crate::certificates::Identity;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::listen::{Door, Handler, StartError};
use crate::shared::lock;

/// How a cluster is set up.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The certificate to serve HTTPS with; plain HTTP without one.
    pub identity: Option<Identity>,
    /// The bearer token every request must carry; a ServiceAccount token for the API server's own
    /// audience does as well. `None` asks for nothing.
    pub bearer_token: Option<String>,
    /// Changes of each kind that a watch may start from; older ones are 410 Gone.
    pub history_max: usize,
    /// Time between the bookmarks of a quiet watch.
    pub bookmark_interval: Duration,
    /// A deleted pod goes after its own grace or after this time, whichever is shorter.
    pub termination_max: Duration,
    /// `iss` of the tokens issued.
    pub issuer: String,
    /// Where the dice for names, identifiers and faults start.
    pub seed: u64,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            identity: None,
            bearer_token: None,
            history_max: 10_000,
            bookmark_interval: Duration::from_secs(10),
            termination_max: Duration::from_secs(1),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            seed: 0,
        }
    }
}

/// A running API server. Dropping it ends it, with every connection.
#[derive(Debug)]
pub struct Cluster {
    handle: ClusterHandle,
    door: Door,
    secure: bool,
}

impl Cluster {
    /// Starts an empty cluster: the namespaces `default` and `kube-system` and nothing else.
    pub async fn start(options: ClusterOptions) -> Result<Self, StartError> {
        let (listen, identity) = (options.listen, options.identity.clone());
        let handle = ClusterHandle(Arc::new(state::State {
            store: Mutex::new(store::Store::new(options.history_max, options.seed)),
            unfinished: Mutex::default(),
            keys: Mutex::new(keys::Keys::new()?),
            faults: Faults::new(options.seed),
            clock: Clock::start(),
            counters: counters::Counters::default(),
            options,
        }));
        for namespace in ["default", "kube-system"] {
            // The store is empty and the name is good: there is nothing to refuse.
            drop(handle.create_namespace(namespace, &[]));
        }
        let served = Arc::clone(&handle.0);
        let handler: Handler =
            Arc::new(move |request| Box::pin(server::handle(Arc::clone(&served), request)));
        let faults = handle.0.faults.clone();
        let door = Door::open(listen, identity.as_ref(), faults, handler).await?;
        Ok(Self {
            handle,
            door,
            secure: identity.is_some(),
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.door.address()
    }

    /// Where it listens, for a kubeconfig.
    pub fn url(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// The in-process face; clone it freely.
    pub const fn handle(&self) -> &ClusterHandle {
        &self.handle
    }

    /// Stops listening, closes every connection, and returns when that is done.
    pub async fn shutdown(self) {
        self.door.close().await;
    }
}

/// The cluster without HTTP: what a test or a load test does to it. Clones act on the same cluster.
///
/// Methods never wait; they may be called from any thread, those that say so only inside a runtime.
#[derive(Debug, Clone)]
pub struct ClusterHandle(Arc<state::State>);

impl ClusterHandle {
    /// The switches for what goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Forgets the history of changes and the lists half read: watches from an older revision and
    /// continue tokens are answered with 410 Gone. Watches that are up to date go on.
    pub fn compact(&self) {
        lock(&self.0.store).compact();
        lock(&self.0.unfinished).expire();
    }

    /// Signs tokens with a new key from now on; the old one stays in the key set.
    pub fn rotate_signing_key(&self) -> Result<(), StartError> {
        lock(&self.0.keys).rotate()
    }

    /// The JSON web key set that verifies the tokens issued here.
    pub fn jwks(&self) -> Value {
        lock(&self.0.keys).to_json()
    }

    /// `iss` of the tokens issued here.
    pub fn issuer(&self) -> &str {
        &self.0.options.issuer
    }

    /// A signed ServiceAccount token, bound to the pod if one is named, good for `life` from now
    /// (rounded down to seconds; zero makes one that has expired).
    pub fn issue_token(
        &self,
        namespace: &str,
        service_account: &str,
        pod: Option<&str>,
        audience: &str,
        life: Duration,
    ) -> Result<String, ApiError> {
        let audiences = vec![audience.to_owned()];
        let grant = tokens::Grant {
            namespace,
            service_account,
            pod,
            audiences,
            life,
        };
        let state = &self.0;
        let mut store = lock(&state.store);
        tokens::issue(
            &mut store,
            &lock(&state.keys),
            &state.options.issuer,
            &grant,
            state.clock.now(),
        )
    }

    /// One object, as the API shows it.
    ///
    /// `namespace` is "" for kinds that have none.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value, ApiError> {
        let object = lock(&self.0.store).get(kind, namespace, name)?;
        Ok(object.value())
    }

    /// All objects of a kind, of one namespace or of all, in order of namespace and name.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Vec<Value> {
        let objects: Vec<_> = lock(&self.0.store)
            .range(kind, namespace)
            .map(Arc::clone)
            .collect();
        objects.iter().map(|object| object.value()).collect()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        lock(&self.0.store).count(kind)
    }

    /// The number of the last change.
    pub fn revision(&self) -> u64 {
        lock(&self.0.store).revision()
    }

    /// The Events clients have recorded, as core/v1 shows them.
    pub fn events(&self) -> Vec<Value> {
        self.list(Kind::Event, None)
    }

    /// Requests served so far with this verb (`get`, `list`, `watch`, `create`, `update`, `patch`,
    /// `delete`, `deletecollection`) on this resource (`pods`, `pods/status`, `tokenreviews`, …).
    pub fn requests(&self, verb: &str, resource: &str) -> u64 {
        self.0.counters.requests(verb, resource)
    }

    /// All requests served so far, by verb and resource.
    pub fn all_requests(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.0.counters.all()
    }

    /// Watches open at this moment.
    pub fn open_watches(&self) -> u64 {
        self.0.counters.open_watches()
    }
}
