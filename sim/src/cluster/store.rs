//! The objects of the cluster and the recent history of their changes.
//!
//! An object is kept as the very bytes of its last watch event, so that a list, a watch and the store
//! share one allocation; it is parsed only when somebody changes it. One counter numbers all changes,
//! as in etcd. The history of a kind is bounded: whoever asks for an older change is told 410.
//! Nothing here waits, reads a clock or knows HTTP.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;

use super::json::{put, text, time};
use super::kind::Kind;
use super::status::ApiError;
use crate::shared::uuid;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Added,
    Modified,
    Deleted,
}

impl Verb {
    /// How a watch event of this kind begins; the object follows.
    pub(crate) const fn opening(self) -> &'static str {
        match self {
            Self::Added => r#"{"type":"ADDED","object":"#,
            Self::Modified => r#"{"type":"MODIFIED","object":"#,
            Self::Deleted => r#"{"type":"DELETED","object":"#,
        }
    }
}

/// How a watch event ends.
pub(crate) const CLOSING: &str = "}\n";

/// One version of an object. It never changes.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    /// The watch event that announced this version: opening, object, closing.
    frame: Bytes,
    announced: Verb,
}

impl Object {
    fn new(namespace: Arc<str>, name: Arc<str>, announced: Verb, value: &Value) -> Self {
        let mut frame = Vec::with_capacity(1024);
        frame.extend_from_slice(announced.opening().as_bytes());
        // A `Value` has text keys only and writing to memory does not fail.
        serde_json::to_writer(&mut frame, value).unwrap_or_default();
        frame.extend_from_slice(CLOSING.as_bytes());
        frame.shrink_to_fit();
        Self {
            namespace,
            name,
            frame: frame.into(),
            announced,
        }
    }

    /// The object as JSON, sharing the memory of the event.
    pub(crate) fn body(&self) -> Bytes {
        let end = self.frame.len().saturating_sub(CLOSING.len());
        self.frame.slice(self.announced.opening().len()..end)
    }

    /// The event that announced this version.
    pub(crate) fn frame(&self) -> Bytes {
        self.frame.clone()
    }

    /// What the event that announced this version said had happened.
    pub(crate) const fn announced(&self) -> Verb {
        self.announced
    }

    /// The object, parsed.
    pub(crate) fn value(&self) -> Value {
        // It was written by `new` from a `Value`.
        serde_json::from_slice(&self.body()).unwrap_or_default()
    }
}

/// One entry of the history.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) object: Arc<Object>,
    /// The version before it, for watchers whose selector it left.
    pub(crate) before: Option<Arc<Object>>,
    /// The same event with the object's metadata alone, made by the first watcher that wants it.
    pub(crate) metadata_frame: OnceLock<Bytes>,
}

impl Change {
    pub(crate) fn verb(&self) -> Verb {
        self.object.announced()
    }
}

type Key = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Shelf {
    objects: BTreeMap<Key, Arc<Object>>,
    history: VecDeque<Arc<Change>>,
    /// Changes up to and including this one are forgotten.
    compacted: u64,
    /// The last change of this kind, for those who wait for one.
    last: watch::Sender<u64>,
}

/// Everything the cluster knows.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    pods: Shelf,
    namespaces: Shelf,
    service_accounts: Shelf,
    nodes: Shelf,
    events: Shelf,
    /// Namespace names in use, so that 150,000 pods share a few.
    names: BTreeSet<Arc<str>>,
    history_max: usize,
    dice: fastrand::Rng,
}

impl Store {
    /// An empty store that remembers `history_max` changes of each kind.
    pub(crate) fn new(history_max: usize, seed: u64) -> Self {
        let shelf = || Shelf {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: 0,
            last: watch::Sender::new(0),
        };
        Self {
            revision: 0,
            pods: shelf(),
            namespaces: shelf(),
            service_accounts: shelf(),
            nodes: shelf(),
            events: shelf(),
            names: BTreeSet::new(),
            history_max: history_max.max(1),
            dice: fastrand::Rng::with_seed(seed),
        }
    }

    /// The number of the last change of any kind.
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Dice for names and identifiers.
    pub(crate) const fn dice(&mut self) -> &mut fastrand::Rng {
        &mut self.dice
    }

    /// Tells when the kind has changed again.
    pub(crate) fn changed(&self, kind: Kind) -> watch::Receiver<u64> {
        self.shelf(kind).last.subscribe()
    }

    pub(crate) fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>, ApiError> {
        self.shelf(kind)
            .objects
            .get(&(namespace.into(), name.into()))
            .cloned()
            .ok_or_else(|| ApiError::not_found(kind, name))
    }

    /// The objects of a kind in order of namespace and name, of one namespace or of all.
    pub(crate) fn range<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        let start: Key = (namespace.unwrap_or_default().into(), "".into());
        self.shelf(kind)
            .objects
            .range(start..)
            .map(|(_, object)| object)
            .take_while(move |object| namespace.is_none_or(|wanted| *object.namespace == *wanted))
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.shelf(kind).objects.len()
    }

    /// The changes of a kind after `revision`, oldest first, at most `limit` of them.
    pub(crate) fn since(
        &self,
        kind: Kind,
        revision: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Change>>, ApiError> {
        let shelf = self.shelf(kind);
        if revision < shelf.compacted {
            return Err(ApiError::compacted(revision, shelf.compacted));
        }
        let start = shelf
            .history
            .partition_point(|change| change.revision <= revision);
        Ok(shelf
            .history
            .range(start..)
            .take(limit)
            .map(Arc::clone)
            .collect())
    }

    /// Forgets the whole history of every kind, as a compaction of etcd does.
    pub(crate) fn compact(&mut self) {
        let revision = self.revision;
        for kind in Kind::ALL {
            let shelf = self.shelf_mut(kind);
            shelf.history.clear();
            shelf.compacted = revision;
        }
    }

    /// Adds an object that has a name and, where its kind needs one, a namespace.
    pub(crate) fn insert(
        &mut self,
        kind: Kind,
        mut value: Value,
        now: Timestamp,
    ) -> Result<Arc<Object>, ApiError> {
        let namespace = self.shared_name(text(&value, "/metadata/namespace"));
        let name: Arc<str> = text(&value, "/metadata/name").into();
        if self
            .shelf(kind)
            .objects
            .contains_key(&(Arc::clone(&namespace), Arc::clone(&name)))
        {
            return Err(ApiError::already_exists(kind, &name));
        }
        put(&mut value, &["metadata", "uid"], uuid(&mut self.dice));
        put(&mut value, &["metadata", "creationTimestamp"], time(now));
        Ok(self.record(kind, namespace, name, Verb::Added, value))
    }

    /// Puts another version in the place of an object; the same version again is no change.
    pub(crate) fn replace(
        &mut self,
        kind: Kind,
        before: &Arc<Object>,
        value: Value,
    ) -> Arc<Object> {
        let (namespace, name) = (Arc::clone(&before.namespace), Arc::clone(&before.name));
        self.record(kind, namespace, name, Verb::Modified, value)
    }

    /// Takes an object away. The version returned is the last, with the revision of its end.
    pub(crate) fn remove(&mut self, kind: Kind, object: &Arc<Object>) -> Arc<Object> {
        let (namespace, name) = (Arc::clone(&object.namespace), Arc::clone(&object.name));
        self.record(kind, namespace, name, Verb::Deleted, object.value())
    }

    fn record(
        &mut self,
        kind: Kind,
        namespace: Arc<str>,
        name: Arc<str>,
        verb: Verb,
        mut value: Value,
    ) -> Arc<Object> {
        self.revision += 1;
        let revision = self.revision;
        let history_max = self.history_max;
        put(
            &mut value,
            &["metadata", "resourceVersion"],
            revision.to_string(),
        );
        let object = Arc::new(Object::new(namespace, name, verb, &value));
        let key = (Arc::clone(&object.namespace), Arc::clone(&object.name));
        let shelf = self.shelf_mut(kind);
        let before = match verb {
            Verb::Deleted => shelf.objects.remove(&key),
            Verb::Added | Verb::Modified => shelf.objects.insert(key, Arc::clone(&object)),
        };
        if shelf.history.len() >= history_max
            && let Some(oldest) = shelf.history.pop_front()
        {
            shelf.compacted = oldest.revision;
        }
        shelf.history.push_back(Arc::new(Change {
            revision,
            object: Arc::clone(&object),
            before,
            metadata_frame: OnceLock::new(),
        }));
        shelf.last.send_replace(revision);
        object
    }

    fn shared_name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    const fn shelf(&self, kind: Kind) -> &Shelf {
        match kind {
            Kind::Pod => &self.pods,
            Kind::Namespace => &self.namespaces,
            Kind::ServiceAccount => &self.service_accounts,
            Kind::Node => &self.nodes,
            Kind::Event => &self.events,
        }
    }

    const fn shelf_mut(&mut self, kind: Kind) -> &mut Shelf {
        match kind {
            Kind::Pod => &mut self.pods,
            Kind::Namespace => &mut self.namespaces,
            Kind::ServiceAccount => &mut self.service_accounts,
            Kind::Node => &mut self.nodes,
            Kind::Event => &mut self.events,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::{Kind, Store, Verb};

    fn pod(name: &str) -> serde_json::Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "ns", "name": name}})
    }

    #[test]
    fn an_event_and_its_object_share_memory() {
        let mut store = Store::new(10, 1);
        let object = store
            .insert(Kind::Pod, pod("a"), Timestamp::UNIX_EPOCH)
            .unwrap();
        let (frame, body) = (object.frame(), object.body());
        assert!(frame.as_ptr_range().contains(&body.as_ptr()));
        let event: serde_json::Value = serde_json::from_slice(&frame).unwrap();
        assert_eq!(event["type"], "ADDED");
        assert_eq!(event["object"], object.value());
    }

    #[test]
    fn the_history_is_bounded_and_says_so() {
        let mut store = Store::new(2, 1);
        for name in ["a", "b", "c", "d"] {
            store
                .insert(Kind::Pod, pod(name), Timestamp::UNIX_EPOCH)
                .unwrap();
        }
        assert_eq!(store.since(Kind::Pod, 1, 10).unwrap_err().code(), 410);
        let changes = store.since(Kind::Pod, 2, 10).unwrap();
        assert_eq!(
            changes
                .iter()
                .map(|change| change.revision)
                .collect::<Vec<_>>(),
            [3, 4]
        );
        store.compact();
        assert_eq!(store.since(Kind::Pod, 3, 10).unwrap_err().code(), 410);
        assert!(store.since(Kind::Pod, 4, 10).unwrap().is_empty());
    }

    #[test]
    fn a_removal_carries_its_own_revision() {
        let mut store = Store::new(10, 1);
        let object = store
            .insert(Kind::Pod, pod("a"), Timestamp::UNIX_EPOCH)
            .unwrap();
        let gone = store.remove(Kind::Pod, &object);
        assert_eq!(gone.announced(), Verb::Deleted);
        assert_eq!(gone.value()["metadata"]["resourceVersion"], "2");
        assert_eq!(store.count(Kind::Pod), 0);
    }

    #[test]
    fn a_range_keeps_to_its_namespace() {
        let mut store = Store::new(10, 1);
        for namespace in ["a", "b", "bb", "c"] {
            let value = json!({"metadata": {"namespace": namespace, "name": "x"}});
            store
                .insert(Kind::Pod, value, Timestamp::UNIX_EPOCH)
                .unwrap();
        }
        let count = |namespace| store.range(Kind::Pod, namespace).count();
        assert_eq!(
            (count(None), count(Some("b")), count(Some("nothing"))),
            (4, 1, 0)
        );
    }
}
