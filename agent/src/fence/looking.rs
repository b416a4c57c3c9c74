//! When a look at everything that the kernel has to say began. Pure.
//!
//! Reading it all may take seconds, and meanwhile a server may name another pod for an address whose pod
//! went before. What is found then is about whoever had the address when the look began: the end of the one
//! before must not be taken for the end of the next, which nothing would ever take back.

use crate::clock::Now;

/// Since when somebody looks.
#[derive(Debug, Default)]
pub(super) struct Looking(Option<Now>);

impl Looking {
    /// A look begins, or goes on: one that was broken off has not ended.
    pub(super) fn begins(&mut self, now: Now) {
        self.0.get_or_insert(now);
    }

    /// It has ended. Returns when it began.
    pub(super) fn ends(&mut self, now: Now) -> Now {
        self.0.take().unwrap_or(now)
    }

    /// When it began; `now` while nobody looks.
    pub(super) const fn since(&self, now: Now) -> Now {
        match self.0 {
            Some(since) => since,
            None => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_found_is_as_old_as_the_look() {
        let start = Now::read();
        let at = |seconds| start.after(Duration::from_secs(seconds));
        let mut looking = Looking::default();
        assert_eq!(looking.since(at(1)), at(1));
        looking.begins(at(2));
        // Broken off, and taken up again.
        looking.begins(at(4));
        assert_eq!(looking.since(at(5)), at(2));
        assert_eq!(looking.ends(at(6)), at(2));
        assert_eq!(looking.since(at(7)), at(7));
        assert_eq!(looking.ends(at(8)), at(8));
    }
}
