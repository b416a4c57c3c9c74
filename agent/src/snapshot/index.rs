//! Where entries are found, made so that a new version of it is cheap.
//!
//! A snapshot is a whole new index that differs from the last in an entry or two. Cloning one map
//! of ten thousand shared entries touches every one of them (its count of references), which took
//! 280 µs and as much again to free. Here only the part that holds the changed key is cloned; the
//! others are shared with the snapshot before.

use std::borrow::Borrow;
use std::hash::{BuildHasher as _, Hash};
use std::sync::Arc;

use rustc_hash::{FxBuildHasher, FxHashMap};

use super::Entry;

/// Parts of an index. Few enough that sharing them all costs less than copying a small map.
const PARTS: usize = 16;
/// Which bits of a key's hash name its part: not the lowest, by which a map places it, and not the
/// upper half, which this hash mixes badly.
const PART_SHIFT: u32 = 20;
const PART_MASK: u64 = 15;
const _: () = assert!(PARTS.is_power_of_two() && PARTS == 16 && PART_MASK == 15);

type Part<K> = Arc<FxHashMap<K, Arc<Entry>>>;

/// Entries by key.
#[derive(Debug, Clone)]
pub(super) struct Index<K> {
    parts: [Part<K>; PARTS],
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self {
            parts: std::array::from_fn(|_| Part::default()),
        }
    }
}

impl<K: Hash + Eq + Clone> Index<K> {
    pub(super) fn get<Q>(&self, key: &Q) -> Option<&Arc<Entry>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.parts.get(part(key))?.get(key)
    }

    pub(super) fn insert(&mut self, key: K, entry: Arc<Entry>) {
        if let Some(map) = self.parts.get_mut(part(&key)) {
            Arc::make_mut(map).insert(key, entry);
        }
    }

    pub(super) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(map) = self.parts.get_mut(part(key))
            && map.contains_key(key)
        {
            Arc::make_mut(map).remove(key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|map| map.len()).sum()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.parts.iter().flat_map(|map| map.values())
    }
}

fn part<Q: Hash + ?Sized>(key: &Q) -> usize {
    let hash = FxBuildHasher.hash_one(key);
    usize::try_from(hash >> PART_SHIFT & PART_MASK).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn the_addresses_of_a_node_are_spread_over_the_parts() {
        let mut counts = [0; PARTS];
        for n in 0..=255 {
            let ip = IpAddr::from(Ipv4Addr::new(10, 1, 2, n));
            counts[part(&ip)] += 1;
        }
        // Sixteen each would be perfect.
        assert!(counts.iter().all(|count| *count <= 32), "{counts:?}");
    }

    #[test]
    fn a_uid_is_found_by_its_text() {
        let uid = kiam_wire::PodUid::try_new("6f1a").unwrap();
        assert_eq!(part(&uid), part("6f1a"));
    }
}
