//! How a worker reaches into its connections: to end what takes too long, and to wake what waits.
//!
//! The runtime's timers would cost every request more than all of our own code, so there are none.
//! A connection writes down by when it wants to be done; the worker looks through all of them on its
//! ticks. Everything here stays on one thread.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::answer::Sought;
use crate::clock::{later, monotonic};

/// How long what was cut off may take to come to its end. The kernel does it at once.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// One connection as its worker sees it.
#[derive(Debug)]
pub(super) struct Watch {
    deadline: Cell<Instant>,
    /// Nothing of a request has arrived: the connection may be closed without anyone missing it.
    idle: Cell<bool>,
    overdue: Cell<bool>,
    found: Cell<bool>,
    sought: RefCell<Option<Sought>>,
    waker: RefCell<Option<Waker>>,
}

/// It took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overdue;

/// How waiting for a pod went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited<T> {
    /// The pod can be answered.
    Found,
    /// The time is up.
    Overdue,
    /// The other thing happened first.
    Other(T),
}

impl Watch {
    pub(super) fn new(deadline: Instant) -> Self {
        Self {
            deadline: Cell::new(deadline),
            idle: Cell::new(true),
            overdue: Cell::new(false),
            found: Cell::new(false),
            sought: RefCell::default(),
            waker: RefCell::default(),
        }
    }

    /// From now on the connection wants to be done by `deadline`.
    pub(super) fn until(&self, deadline: Instant) {
        self.deadline.set(deadline);
        self.idle.set(false);
        self.overdue.set(false);
    }

    /// From now on the connection has nothing to do, until `deadline`.
    pub(super) fn idle_until(&self, deadline: Instant) {
        self.until(deadline);
        self.idle.set(true);
    }

    /// From now on the connection waits for `sought`.
    pub(super) fn seek(&self, sought: Sought, deadline: Instant) {
        self.until(deadline);
        self.found.set(false);
        *self.sought.borrow_mut() = Some(sought);
    }

    /// Does `future` unless it takes too long. Dropping it then must do no harm.
    pub(super) async fn within<F: Future>(&self, future: F) -> Result<F::Output, Overdue> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if self.overdue.get() {
                return Poll::Ready(Err(Overdue));
            }
            self.remember(cx.waker());
            Poll::Pending
        })
        .await
    }

    /// As [`Watch::within`], for what should not be dropped: once it has taken too long, `cut` is
    /// called to make it end, and what it ends with is given in the error; nothing, if it does not, or
    /// if `cut` says that it will not.
    pub(super) async fn within_or_cut<F: Future>(
        &self,
        future: F,
        cut: impl FnOnce() -> bool,
    ) -> Result<F::Output, Option<F::Output>> {
        let mut future = pin!(future);
        let mut cut = Some(cut);
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Poll::Ready(match cut {
                        Some(_) => Ok(output),
                        None => Err(Some(output)),
                    });
                }
                if !self.overdue.get() {
                    self.remember(cx.waker());
                    return Poll::Pending;
                }
                let Some(cut) = cut.take() else {
                    return Poll::Ready(Err(None));
                };
                // From now on: whoever is ended because it is idle has its deadline far ahead.
                self.until(later(monotonic(), CUT_GRACE));
                if !cut() {
                    return Poll::Ready(Err(None));
                }
            }
        })
        .await
    }

    /// Waits for what is sought, the deadline, or `other`.
    pub(super) async fn found_or<F: Future>(&self, other: F) -> Waited<F::Output> {
        let mut other = pin!(other);
        poll_fn(|cx| {
            if self.found.get() {
                return Poll::Ready(Waited::Found);
            }
            if self.overdue.get() {
                return Poll::Ready(Waited::Overdue);
            }
            if let Poll::Ready(output) = other.as_mut().poll(cx) {
                return Poll::Ready(Waited::Other(output));
            }
            self.remember(cx.waker());
            Poll::Pending
        })
        .await
    }

    fn remember(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if known.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// Ends what is past its deadline.
    pub(super) fn sweep(&self, now: Instant) {
        if self.deadline.get() <= now {
            self.end();
        }
    }

    /// Ends it if nobody would miss it.
    pub(super) fn end_if_idle(&self) {
        if self.idle.get() {
            self.end();
        }
    }

    fn end(&self) {
        self.overdue.set(true);
        self.wake();
    }

    /// Wakes it if what it seeks is no longer missing.
    pub(super) fn wake_if(&self, present: impl FnOnce(&Sought) -> bool) {
        if self.sought.borrow().as_ref().is_some_and(present) {
            self.found.set(true);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt as _;

    use super::*;

    fn idle() -> Watch {
        let watch = Watch::new(monotonic());
        watch.idle_until(later(monotonic(), Duration::from_mins(1)));
        watch
    }

    #[test]
    fn what_cannot_be_cut_is_not_waited_for() {
        let watch = idle();
        let mut receiving = pin!(watch.within_or_cut(pending::<()>(), || false));
        assert_eq!(receiving.as_mut().now_or_never(), None);
        watch.end_if_idle();
        assert_eq!(receiving.now_or_never(), Some(Err(None)));
    }

    #[test]
    fn what_is_cut_while_idle_ends_soon() {
        let watch = idle();
        let mut receiving = pin!(watch.within_or_cut(pending::<()>(), || true));
        assert_eq!(receiving.as_mut().now_or_never(), None);
        watch.end_if_idle();
        assert_eq!(receiving.as_mut().now_or_never(), None);
        watch.sweep(later(monotonic(), CUT_GRACE));
        assert_eq!(receiving.now_or_never(), Some(Err(None)));
    }
}
