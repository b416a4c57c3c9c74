//! Objects of one kind, and which of them the last list named.
//!
//! A list may break off and begin again, so each object remembers the number of the list that named
//! it last, and only a list's end says what is gone.

use std::collections::HashMap;
use std::hash::Hash;

/// Objects of one kind, each with the list that last named it.
#[derive(Debug)]
pub(super) struct Listed<K, V> {
    objects: HashMap<K, (V, u32)>,
    list: u32,
    /// Between the beginning and the end of a list.
    listing: bool,
}

impl<K: Hash + Eq + Clone, V: PartialEq> Listed<K, V> {
    pub(super) fn new() -> Self {
        Self {
            objects: HashMap::new(),
            list: 0,
            listing: false,
        }
    }

    pub(super) const fn begin(&mut self) {
        self.list = self.list.wrapping_add(1);
        self.listing = true;
    }

    /// Ends the list and says what it did not name. An end without a beginning says nothing.
    pub(super) fn end(&mut self) -> Vec<K> {
        if !std::mem::take(&mut self.listing) {
            return Vec::new();
        }
        self.objects
            .iter()
            .filter(|(_key, (_object, list))| *list != self.list)
            .map(|(key, _object)| key.clone())
            .collect()
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.objects.get(key).map(|(object, _list)| object)
    }

    pub(super) fn put(&mut self, key: K, object: V) -> Option<V> {
        self.objects
            .insert(key, (object, self.list))
            .map(|(old, _list)| old)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.objects.remove(key).map(|(object, _list)| object)
    }

    /// Whether this is what is known already. If so, the list has named it.
    pub(super) fn repeats(&mut self, key: &K, object: &V) -> bool {
        match self.objects.get_mut(key) {
            Some((known, list)) if known == object => {
                *list = self.list;
                true
            }
            Some(_) | None => false,
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        self.objects
            .retain(|key, (object, _list)| keep(key, object));
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.objects.values().map(|(object, _list)| object)
    }
}
