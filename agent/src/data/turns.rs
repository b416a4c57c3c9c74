//! Taking turns: nobody on a worker keeps the others from theirs.
//!
//! What has arrived is received at once. A connection that is fed faster than it is answered would
//! therefore never wait, and as long as nobody waits the ring asks the kernel for nobody's news, and
//! epoll seldom: no accept, no doorbell, no other connection. Waking oneself does not help, the runtime goes
//! on with whoever is awake. So whoever has not waited for some turns waits for the next beat of its
//! worker, which comes through the kernel like all other news.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Poll, Waker};

/// Turns in a row that waited for nothing.
#[derive(Debug)]
pub(super) struct Turns {
    taken: u32,
    max: u32,
}

impl Turns {
    /// At most `max` before others come first.
    pub(super) const fn new(max: u32) -> Self {
        Self { taken: 0, max }
    }

    /// Takes one.
    pub(super) async fn take<F: Future>(&mut self, mut turn: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| {
            let polled = turn.as_mut().poll(cx);
            if polled.is_pending() {
                self.taken = 0;
            }
            polled
        })
        .await
    }

    /// Counts the turn just taken; `true` when it is the others' turn. Asking begins anew.
    pub(super) const fn are_up(&mut self) -> bool {
        self.taken += 1;
        let up = self.taken >= self.max;
        if up {
            self.taken = 0;
        }
        up
    }
}

/// Something that happens again and again on one thread, and that may be waited for.
#[derive(Debug, Default)]
pub(super) struct Beat {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Beat {
    /// It happens.
    pub(super) fn happen(&self) {
        self.count.set(self.count.get().wrapping_add(1));
        for waker in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// Waits for the next time.
    pub(super) async fn next(&self) {
        let seen = self.count.get();
        poll_fn(|cx| {
            if self.count.get() != seen {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt as _;

    use super::*;

    fn taken_at_once(turns: &mut Turns) -> bool {
        turns
            .take(pin!(std::future::ready(())))
            .now_or_never()
            .unwrap();
        turns.are_up()
    }

    #[test]
    fn turns_that_wait_for_nothing_are_counted() {
        let mut turns = Turns::new(3);
        let up: Vec<bool> = (0..7).map(|_| taken_at_once(&mut turns)).collect();
        assert_eq!(up, [false, false, true, false, false, true, false]);
    }

    #[test]
    fn whoever_waits_begins_anew() {
        let (mut turns, beat) = (Turns::new(2), Beat::default());
        for _ in 0..5 {
            assert!(!taken_at_once(&mut turns));
            {
                let mut next = pin!(beat.next());
                let mut taking = pin!(turns.take(next.as_mut()));
                assert!(taking.as_mut().now_or_never().is_none());
                beat.happen();
                taking.as_mut().now_or_never().unwrap();
            }
            assert!(!turns.are_up());
            assert!(turns.are_up());
        }
    }
}
