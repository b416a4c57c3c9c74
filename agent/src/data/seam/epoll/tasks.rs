//! Tasks of one thread, and which of them have something to do.
//!
//! Wakers may be sent anywhere, so says their type; those of this runtime belong to the thread that
//! runs it. Used on another one they call nobody, then or later. That is all the data plane needs: news of
//! other threads comes in by the doorbell, as for the ring.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use slab::Slab;

thread_local! {
    /// Whoever was called and has not had a turn since, in that order.
    static CALLED: RefCell<VecDeque<Arc<Call>>> = const { RefCell::new(VecDeque::new()) };
}

/// How one task is called.
#[derive(Debug)]
pub(super) struct Call {
    /// Its place among the tasks; none for the future that the runtime was started with.
    place: Option<usize>,
    /// It is in the queue.
    called: AtomicBool,
}

impl Call {
    /// Of the future that the runtime was started with.
    pub(super) fn of_root() -> Arc<Self> {
        Self::of(None)
    }

    fn of(place: Option<usize>) -> Arc<Self> {
        let called = AtomicBool::new(false);
        Arc::new(Self { place, called })
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        if self.called.swap(true, Ordering::Relaxed) {
            return;
        }
        // Gone only while its thread ends, when nobody has a turn any more.
        let _ended = CALLED.try_with(|called| {
            let mut called = called.borrow_mut();
            match self.place {
                Some(_) => called.push_back(self),
                // It hears the doorbell, on which deadlines hang, and has little to do.
                None => called.push_front(self),
            }
        });
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.called.load(Ordering::Relaxed) {
            Arc::clone(self).wake();
        }
    }
}

/// Who was called first, once; `None` when nobody was.
pub(super) fn next() -> Option<Arc<Call>> {
    let call = CALLED.with_borrow_mut(VecDeque::pop_front)?;
    call.called.store(false, Ordering::Relaxed);
    Some(call)
}

/// Whether nobody has been called.
pub(super) fn all_wait() -> bool {
    CALLED.with_borrow(VecDeque::is_empty)
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    /// `None` while it has its turn.
    future: Option<Running>,
    call: Arc<Call>,
    waker: Waker,
}

/// All tasks of one runtime.
#[derive(Default)]
pub(super) struct Tasks(RefCell<Slab<Task>>);

impl Tasks {
    /// One more, whose first turn comes with the others'.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.borrow_mut();
        let entry = tasks.vacant_entry();
        let call = Call::of(Some(entry.key()));
        let waker = Waker::from(Arc::clone(&call));
        waker.wake_by_ref();
        entry.insert(Task {
            future: Some(Box::pin(future)),
            call,
            waker,
        });
    }

    /// Gives the task that was called its turn; `false` when it was none of these.
    pub(super) fn turn(&self, called: &Arc<Call>) -> bool {
        let Some(place) = called.place else {
            return false;
        };
        let mut tasks = self.0.borrow_mut();
        // Its place may have been given to another since it was called.
        let task = tasks
            .get_mut(place)
            .filter(|task| Arc::ptr_eq(&task.call, called));
        let Some((mut future, waker)) =
            task.and_then(|task| Some((task.future.take()?, task.waker.clone())))
        else {
            return true;
        };
        // It may spawn others.
        drop(tasks);
        if future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            drop(future);
            self.0.borrow_mut().remove(place);
        } else if let Some(task) = self.0.borrow_mut().get_mut(place) {
            task.future = Some(future);
        }
        true
    }

    /// Drops those that are not done.
    pub(super) fn clear(&self) {
        loop {
            // What is dropped may call or spawn others.
            let tasks = self.0.take();
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        CALLED.with_borrow_mut(VecDeque::clear);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, poll_fn};
    use std::rc::Rc;
    use std::task::Poll;

    use super::*;

    fn all_have_their_turns(tasks: &Tasks) -> usize {
        let mut turns = 0;
        while let Some(call) = next() {
            assert!(tasks.turn(&call));
            turns += 1;
        }
        turns
    }

    #[test]
    fn a_late_call_of_a_task_that_has_ended_is_nobodys() {
        let tasks = Tasks::default();
        let late: Rc<Cell<Option<Waker>>> = Rc::default();
        let kept = Rc::clone(&late);
        tasks.spawn(poll_fn(move |cx| {
            kept.set(Some(cx.waker().clone()));
            Poll::Ready(())
        }));
        assert_eq!(all_have_their_turns(&tasks), 1);
        let polls = Rc::new(Cell::new(0));
        let counted = Rc::clone(&polls);
        // At the same place.
        tasks.spawn(poll_fn(move |_| {
            counted.set(counted.get() + 1);
            Poll::Pending
        }));
        all_have_their_turns(&tasks);
        late.take().unwrap().wake();
        all_have_their_turns(&tasks);
        assert_eq!(polls.get(), 1);
    }

    #[test]
    fn who_is_called_twice_has_one_turn_and_who_calls_itself_another() {
        let tasks = Tasks::default();
        let mut left = 3;
        tasks.spawn(poll_fn(move |cx| {
            left -= 1;
            if left == 0 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        assert_eq!(all_have_their_turns(&tasks), 3);
        assert!(all_wait());
    }

    #[test]
    fn who_hears_the_doorbell_comes_first() {
        let (tasks, root) = (Tasks::default(), Call::of_root());
        for _ in 0..300 {
            tasks.spawn(pending());
        }
        Waker::from(Arc::clone(&root)).wake();
        assert!(next().is_some_and(|first| Arc::ptr_eq(&first, &root)));
        assert_eq!(all_have_their_turns(&tasks), 300);
    }

    #[test]
    fn what_is_cleared_may_spawn_and_call() {
        struct Spawner(Rc<Tasks>);

        impl Drop for Spawner {
            fn drop(&mut self) {
                self.0.spawn(pending());
            }
        }

        let tasks = Rc::new(Tasks::default());
        let spawner = Spawner(Rc::clone(&tasks));
        tasks.spawn(async move {
            pending::<()>().await;
            drop(spawner);
        });
        all_have_their_turns(&tasks);
        tasks.clear();
        assert!(all_wait());
        assert!(tasks.0.borrow().is_empty());
    }
}
