//! Makes the calls that the schedule decides on.
//!
//! One task holds the schedule, every call is a task of its own, and answers wait their turn beside both. So
//! the holder never waits on whoever takes the answers, who may at that moment be waiting for room to
//! give an order. Answers are taken in the order they were given, and a command says how many had been taken
//! when it was decided: a call that is ordered again on account of its answer is a new call, and one that is
//! ordered before its answer was seen is not made twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::CredentialId;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::task::{Id, JoinError, JoinSet};

use super::metrics::Metrics;
use super::schedule::{Ended, Limits, Next, Schedule, Urgency};
use super::{IssueError, Issued, Issuer};
use crate::clock::{Clock, Moment};
use crate::policy::RoleRequest;

/// What the fetchers are told.
#[derive(Debug, Clone)]
pub enum Order {
    /// Make this call; once more for a call that has not begun changes its urgency.
    Fetch(Arc<RoleRequest>, Urgency),
    /// Change the urgency of a call, if it has not begun.
    Hurry(CredentialId, Urgency),
    /// Nobody needs it any more. A call that has begun is finished and answered.
    Cancel(CredentialId),
}

/// An order, and what was known when it was decided.
#[derive(Debug, Clone)]
pub struct Command {
    /// It.
    pub order: Order,
    /// How many answers had been taken by then.
    pub answers_taken: u64,
}

/// How a call ended.
#[derive(Debug)]
pub struct Answer {
    /// Of which request.
    pub id: CredentialId,
    /// What came of it.
    pub outcome: Result<Issued, IssueError>,
}

/// Whatever an issuer promises of its time-outs, no call holds a fetcher for longer.
const CALL_MAX: Duration = Duration::from_secs(30);

/// Fetches as ordered until the orders end; then finishes the calls it has begun.
#[derive(Debug)]
pub struct Fetchers<I> {
    issuer: Arc<I>,
    clock: Clock,
    metrics: Metrics,
    schedule: Schedule,
    answers: Sender<Answer>,
    most: usize,
    calls: JoinSet<Result<Issued, IssueError>>,
    ids: HashMap<Id, CredentialId>,
    /// Answers that there was no room for yet. No call begins while there are as many as fetchers.
    undelivered: VecDeque<Answer>,
    /// How many answers there have been.
    answered: u64,
    /// The latest of them by their numbers: those that may not have been taken yet.
    on_the_way: VecDeque<(u64, CredentialId)>,
}

impl<I: Issuer> Fetchers<I> {
    /// Fetchers at rest.
    pub fn new(
        issuer: Arc<I>,
        limits: Limits,
        clock: Clock,
        metrics: Metrics,
        answers: Sender<Answer>,
    ) -> Self {
        Self {
            issuer,
            clock,
            metrics,
            schedule: Schedule::new(limits, clock.now().monotonic),
            answers,
            most: limits.fetchers.get(),
            calls: JoinSet::new(),
            ids: HashMap::new(),
            undelivered: VecDeque::new(),
            answered: 0,
            on_the_way: VecDeque::new(),
        }
    }

    /// Runs until `commands` ends.
    pub async fn run(mut self, mut commands: Receiver<Command>) {
        let answers = self.answers.clone();
        loop {
            let wake_at = self.start_due();
            let timer = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(self.clock.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(ended) = self.calls.join_next_with_id() => self.finish(ended),
                room = answers.reserve(), if !self.undelivered.is_empty() => match room {
                    Ok(room) => {
                        if let Some(answer) = self.undelivered.pop_front() {
                            room.send(answer);
                        }
                    }
                    // Nobody takes answers any more, and soon nobody will give orders.
                    Err(_closed) => self.undelivered.clear(),
                },
                () = timer => {}
            }
        }
        while let Some(ended) = self.calls.join_next_with_id().await {
            self.finish(ended);
        }
        for answer in self.undelivered {
            if answers.send(answer).await.is_err() {
                break;
            }
        }
    }

    fn command(&mut self, command: Command) {
        let Command {
            order,
            answers_taken,
        } = command;
        let is_taken = |(number, _id): &mut (u64, CredentialId)| *number <= answers_taken;
        while self.on_the_way.pop_front_if(is_taken).is_some() {}
        if let Order::Fetch(request, _urgency) = &order
            && self
                .on_the_way
                .iter()
                .any(|(_number, id)| *id == request.id())
        {
            return;
        }
        self.schedule.order(order);
    }

    /// Starts what may start; returns when there may be more.
    fn start_due(&mut self) -> Option<Moment> {
        let wake_at = loop {
            if self.undelivered.len() >= self.most {
                break None;
            }
            match self.schedule.next(self.clock.now().monotonic) {
                Next::Start(request) => self.start(request),
                Next::At(at) => break Some(at),
                Next::Idle => break None,
            }
        };
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.current.set(count(self.schedule.running()));
        self.metrics.queue.set(count(self.schedule.waiting()));
        self.metrics.rate.set(self.schedule.calls_per_s());
        wake_at
    }

    fn start(&mut self, request: Arc<RoleRequest>) {
        let id = request.id();
        let issuer = Arc::clone(&self.issuer);
        let (clock, metrics) = (self.clock, self.metrics.clone());
        let call = self.calls.spawn(async move {
            let begun = clock.now().monotonic;
            let outcome = tokio::time::timeout(CALL_MAX, issuer.issue(request))
                .await
                .unwrap_or_else(|_elapsed| {
                    Err(IssueError::Unreachable("it took too long".to_owned()))
                });
            let took = clock.now().monotonic.since(begun);
            metrics.ended(outcome.as_ref().err(), took.as_secs_f64());
            outcome
        });
        self.ids.insert(call.id(), id);
    }

    fn finish(&mut self, ended: Result<(Id, Result<Issued, IssueError>), JoinError>) {
        let (task, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // It ended without an answer, and whoever ordered it would wait for ever.
                let broken = IssueError::Unreachable("the call was broken off".to_owned());
                (error.id(), Err(broken))
            }
        };
        let Some(id) = self.ids.remove(&task) else {
            return;
        };
        let ended = match outcome {
            Err(IssueError::Throttled(_)) => Ended::Throttled,
            Ok(_) | Err(_) => Ended::Answered,
        };
        let now = self.clock.now().monotonic;
        self.schedule.finished(id, ended, now);
        self.answered += 1;
        self.on_the_way.push_back((self.answered, id));
        self.undelivered.push_back(Answer { id, outcome });
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use kiam_wire::UnixSeconds;
    use prometheus_client::registry::Registry;
    use tokio::sync::mpsc;

    use super::*;
    use crate::arn::RoleArn;
    use crate::policy::Session;
    use crate::sts::fake;

    fn request(role: &str) -> Arc<RoleRequest> {
        Arc::new(RoleRequest::new(Session {
            role: RoleArn::parse(&arn(role)).unwrap(),
            name: "kiam-kiam".into(),
            external_id: None,
            tags: vec![],
            transitive_keys: vec![],
            policy_arns: vec![],
            source_identity: None,
            duration: Duration::from_hours(1),
        }))
    }

    fn arn(role: &str) -> String {
        format!("arn:aws:iam::123456789012:role/{role}")
    }

    struct Bench {
        sts: Arc<fake::Sts>,
        orders: Sender<Command>,
        answers: Receiver<Answer>,
        registry: Registry,
    }

    fn bench(fetchers: usize, latency: Duration) -> Bench {
        let clock = Clock::starting_at(UnixSeconds::new(1_800_000_000));
        let sts = Arc::new(fake::Sts::new(clock).with_latency(latency));
        let mut registry = Registry::default();
        let (orders, taken) = mpsc::channel(8);
        let (given, answers) = mpsc::channel(1);
        let limits = Limits {
            fetchers: NonZeroUsize::new(fetchers).unwrap(),
            calls_per_s_max: 1000.0,
        };
        let metrics = Metrics::new(&mut registry);
        let fetchers = Fetchers::new(Arc::clone(&sts), limits, clock, metrics, given);
        tokio::spawn(fetchers.run(taken));
        Bench {
            sts,
            orders,
            answers,
            registry,
        }
    }

    /// Decided before any answer was taken.
    fn early(order: Order) -> Command {
        Command {
            order,
            answers_taken: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_order_is_answered_within_the_bound() {
        let mut bench = bench(3, Duration::from_millis(50));
        let orders = bench.orders.clone();
        let ordering = async move {
            for i in 0..20 {
                let order = Order::Fetch(request(&format!("r{i}")), Urgency::New);
                orders.send(early(order)).await.unwrap();
            }
        };
        let taking = async {
            for _ in 0..20 {
                bench.answers.recv().await.unwrap().outcome.unwrap();
            }
        };
        tokio::join!(ordering, taking);
        assert_eq!(bench.sts.calls().len(), 20);
        assert_eq!(bench.sts.most_outstanding(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_broken_off_and_counted() {
        let mut bench = bench(1, Duration::from_hours(1));
        let order = Order::Fetch(request("slow"), Urgency::New);
        bench.orders.send(early(order)).await.unwrap();
        let answer = bench.answers.recv().await.unwrap();
        assert_eq!(
            answer.outcome.unwrap_err(),
            IssueError::Unreachable("it took too long".into())
        );
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &bench.registry).unwrap();
        for line in [
            "kiam_sts_issuing_errors_total{reason=\"unreachable\"} 1",
            "kiam_sts_issuing_errors_total{reason=\"denied\"} 0",
            "kiam_sts_assumerole_calls_total 1",
            "kiam_sts_assumerole_timing_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_on_account_of_an_answer_is_a_new_call() {
        let mut bench = bench(2, Duration::from_millis(10));
        let again = |answers_taken| Command {
            order: Order::Fetch(request("again"), Urgency::New),
            answers_taken,
        };
        bench.orders.send(again(0)).await.unwrap();
        // Many times, because it depends on which of two things is seen first.
        for round in 1..=50 {
            let answer = tokio::time::timeout(Duration::from_mins(1), bench.answers.recv()).await;
            assert!(answer.is_ok(), "the order of round {round} was lost");
            bench.orders.send(again(round)).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_not_made_again_before_its_answer_was_seen() {
        let mut bench = bench(2, Duration::from_millis(10));
        let fetch = || Order::Fetch(request("role"), Urgency::New);
        bench.orders.send(early(fetch())).await.unwrap();
        // Long after the call has ended; its answer waits to be taken.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let id = request("role").id();
        bench.orders.send(early(Order::Cancel(id))).await.unwrap();
        bench.orders.send(early(fetch())).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(bench.sts.calls().len(), 1);
        assert_eq!(bench.answers.recv().await.unwrap().id, id);
        // Now it is known, and whoever orders it means a new one.
        let command = Command {
            order: fetch(),
            answers_taken: 1,
        };
        bench.orders.send(command).await.unwrap();
        assert_eq!(bench.answers.recv().await.unwrap().id, id);
        assert_eq!(bench.sts.calls().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_takes_hold_up_further_calls() {
        let mut bench = bench(2, Duration::from_millis(10));
        for i in 0..8 {
            let order = Order::Fetch(request(&format!("r{i}")), Urgency::New);
            bench.orders.send(early(order)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let begun = bench.sts.calls().len();
        assert!(begun < 8, "{begun} calls begun");
        for _ in 0..8 {
            bench.answers.recv().await.unwrap().outcome.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_role_holds_nobody_up() {
        let mut bench = bench(2, Duration::from_millis(10));
        let denied = IssueError::Denied("no".into());
        bench.sts.refuse(&arn("refused"), denied.clone());
        for role in ["refused", "fine"] {
            let order = Order::Fetch(request(role), Urgency::New);
            bench.orders.send(early(order)).await.unwrap();
        }
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            outcomes.push(bench.answers.recv().await.unwrap().outcome.map(drop));
        }
        assert!(outcomes.contains(&Ok(())) && outcomes.contains(&Err(denied)));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_have_begun_are_answered_after_the_orders_end() {
        let mut bench = bench(2, Duration::from_millis(10));
        let order = Order::Fetch(request("last"), Urgency::New);
        bench.orders.send(early(order)).await.unwrap();
        tokio::task::yield_now().await;
        drop(bench.orders);
        assert!(bench.answers.recv().await.unwrap().outcome.is_ok());
        assert!(bench.answers.recv().await.is_none());
    }
}
