//! The connections of a worker, each at a place of its own.
//!
//! Places are used again, the last one left first: it is the one that the processor still knows.

use std::rc::Rc;

use super::watch::Watch;

/// Who sits where.
#[derive(Debug, Default)]
pub(super) struct Places {
    seats: Vec<Option<Rc<Watch>>>,
    free: Vec<usize>,
}

impl Places {
    /// Takes a place, to be left with [`Places::leave`].
    pub(super) fn take(&mut self, watch: Rc<Watch>) -> usize {
        let place = self.free.pop().unwrap_or_else(|| {
            self.seats.push(None);
            self.seats.len() - 1
        });
        if let Some(seat) = self.seats.get_mut(place) {
            *seat = Some(watch);
        }
        place
    }

    /// Leaves it. Somebody who has no place may be told so again.
    pub(super) fn leave(&mut self, place: usize) {
        if let Some(seat) = self.seats.get_mut(place)
            && seat.take().is_some()
        {
            self.free.push(place);
        }
    }

    /// How many are taken.
    pub(super) const fn len(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    /// Everyone.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Rc<Watch>> {
        self.seats.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    #[test]
    fn places_are_used_again() {
        let mut places = Places::default();
        let watch = || Rc::new(Watch::new(monotonic()));
        let (first, second) = (places.take(watch()), places.take(watch()));
        assert_eq!((first, second, places.len()), (0, 1, 2));
        places.leave(first);
        places.leave(first);
        assert_eq!((places.len(), places.iter().count()), (1, 1));
        assert_eq!(places.take(watch()), first);
        assert_eq!(places.take(watch()), 2);
        for place in 0..4 {
            places.leave(place);
        }
        assert_eq!((places.len(), places.iter().count()), (0, 0));
    }
}
