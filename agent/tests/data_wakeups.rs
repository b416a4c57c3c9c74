//! No publication is slept through: publish, park and wake in every interleaving there is, and then
//! as fast as real threads can.
//!
//! The model has no ticker. In the agent it would hide a wake-up that was lost, for 25 ms.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

/// The protocol as the agent has it, made of the model checker's atomics.
#[path = "../src/doorbell/protocol.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the agent uses the rest, and shows it to others"
)]
mod protocol;

/// What the protocol is made of.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

mod model {
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::protocol::{Eager, Rung, published};

    /// What a publisher and a worker share.
    struct Shared {
        /// Stands for the snapshot's pointer, with the orderings of the real one.
        newest: AtomicUsize,
        eager: Eager,
        rung: Rung,
        /// Bytes on the socket pair. Whoever does not send or receive one learns nothing by it.
        wire: Mutex<usize>,
    }

    impl Shared {
        fn new() -> Self {
            Self {
                newest: AtomicUsize::new(0),
                eager: Eager::new(),
                rung: Rung::new(),
                wire: Mutex::new(0),
            }
        }

        fn publish(&self, number: usize) {
            self.newest.swap(number, Ordering::AcqRel);
        }

        fn ring(&self) {
            if self.eager.get() && self.rung.ring() {
                *self.wire.lock().unwrap() += 1;
            }
        }

        fn publish_and_ring(&self, number: usize) {
            self.publish(number);
            published();
            self.ring();
        }

        fn knows(&self, number: usize) -> bool {
            self.newest.load(Ordering::Relaxed) >= number
        }

        /// Takes a byte; without one the worker would sleep.
        fn hear(&self) -> bool {
            let mut bytes = self.wire.lock().unwrap();
            let any = *bytes > 0;
            *bytes -= usize::from(any);
            any
        }

        /// A request is parked until the `number`-th publication: whether it saw it, or would sleep.
        fn park(&self, number: usize) -> bool {
            self.eager.begin();
            while !self.knows(number) {
                if !self.hear() {
                    return false;
                }
                self.rung.answer();
            }
            self.eager.end();
            true
        }
    }

    /// In whatever order both go: when all is published, the worker has seen it, or there is a byte
    /// that wakes it.
    fn check(publisher: fn(&Shared), worker: fn(&Shared) -> bool) {
        loom::model(move || {
            let shared = Arc::new(Shared::new());
            let parked = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || worker(&shared))
            };
            publisher(&shared);
            let saw = parked.join().unwrap();
            assert!(saw || shared.hear(), "slept through");
        });
    }

    #[test]
    fn what_is_published_while_a_request_parks_wakes_it() {
        check(|shared| shared.publish_and_ring(1), |shared| shared.park(1));
    }

    #[test]
    fn the_last_of_several_publications_wakes_it_too() {
        check(
            |shared| {
                shared.publish_and_ring(1);
                shared.publish_and_ring(2);
                shared.publish_and_ring(3);
            },
            |shared| shared.park(3),
        );
    }

    #[test]
    fn parking_again_hears_again() {
        check(
            |shared| {
                shared.publish_and_ring(1);
                shared.publish_and_ring(2);
            },
            |shared| shared.park(1) && shared.park(2),
        );
    }

    #[test]
    #[should_panic(expected = "slept through")]
    fn the_model_finds_a_worker_that_looks_before_it_answers() {
        check(
            |shared| {
                shared.publish_and_ring(1);
                shared.publish_and_ring(2);
            },
            |shared| {
                shared.eager.begin();
                let mut known = shared.knows(2);
                while !known {
                    if !shared.hear() {
                        return false;
                    }
                    known = shared.knows(2);
                    shared.rung.answer();
                }
                true
            },
        );
    }

    #[test]
    #[should_panic(expected = "slept through")]
    fn the_model_finds_a_worker_that_looks_before_it_is_eager() {
        check(
            |shared| shared.publish_and_ring(1),
            |shared| {
                let known = shared.knows(1);
                shared.eager.begin();
                known
            },
        );
    }

    #[test]
    #[should_panic(expected = "slept through")]
    fn the_model_finds_a_publisher_that_does_not_keep_the_order() {
        check(
            |shared| {
                // As published, without what stands between the two.
                shared.publish(1);
                shared.ring();
            },
            |shared| shared.park(1),
        );
    }
}

mod threads {
    use std::io::Read as _;
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;
    use std::thread;
    use std::time::Duration;

    use kiam_agent::clock::Now;
    use kiam_agent::doorbell::{Eager, pair, published};
    use kiam_agent::snapshot::store::Doors;
    use kiam_agent::snapshot::{Publisher, Store};
    use kiam_wire::{Full, Revision, Update};

    const ROUNDS: u64 = 20_000;
    /// A wake-up that takes this long was lost, on however busy a machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn numbered(number: u64) -> kiam_agent::snapshot::Snapshot {
        let now = Now::read();
        let mut store = Store::new(Doors::Metadata);
        let full = Full {
            revision: Revision { epoch: 1, number },
            pods: vec![],
            credentials: vec![],
            keys: None,
        };
        store.apply(Update::Full(full), now).unwrap();
        store.snapshot(now)
    }

    #[test]
    fn twenty_thousand_publications_are_all_heard() {
        let mut publisher = Publisher::new(Now::read());
        let mut reader = publisher.reader();
        let (bell, doorbell, mut wire) = pair().unwrap();
        let eager = Arc::new(Eager::new());
        wire.set_read_timeout(Some(PATIENCE)).unwrap();
        let (seen, next) = sync_channel::<()>(1);
        let worker = {
            let eager = Arc::clone(&eager);
            thread::spawn(move || {
                let mut rings = 0_u64;
                for wanted in 1..=ROUNDS {
                    eager.begin();
                    let knows = |reader: &mut kiam_agent::snapshot::Reader| {
                        let revision = reader.current().revision();
                        revision.is_some_and(|revision| revision.number >= wanted)
                    };
                    while !knows(&mut reader) {
                        let bytes = wire.read(&mut [0; 8]).expect("a wake-up was lost");
                        assert!(bytes > 0);
                        doorbell.answer();
                        rings += 1;
                    }
                    eager.end();
                    if wanted % 3 == 0 {
                        // Now and then in step, otherwise the publisher runs ahead.
                        seen.send(()).unwrap();
                    }
                }
                rings
            })
        };
        for number in 1..=ROUNDS {
            publisher.publish(numbered(number));
            published();
            if eager.get() {
                bell.ring();
            }
            if number % 3 == 0 {
                next.recv_timeout(PATIENCE).expect("the worker goes on");
            }
        }
        let rings = worker.join().unwrap();
        assert!(rings > 0, "it did wait");
    }
}
