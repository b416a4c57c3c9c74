//! Keeps one watch per kind going, whatever happens to the API server.

use std::time::Duration;

use futures::{StreamExt, pin_mut};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::connection::{Connection, ConnectionError};
use super::objects::{Names, Namespace, Pod, ServiceAccount, Watched};
use crate::clock::{Clock, Moment};
use crate::freshness::Freshness;
use crate::metrics::{WatchMetrics, WatchTrouble};
use crate::nodes::{ClusterEvent, Kind};

/// Objects in one page of a list.
const PAGE: u32 = 500;
const DELAY_MIN: Duration = Duration::from_millis(200);
const DELAY_MAX: Duration = Duration::from_secs(20);
/// After so many failures in a row the client is made anew: its credentials may have been replaced.
const FAILURES_PER_CLIENT: u32 = 5;
/// An API server that does not go on with a list for this long hangs; perhaps another one does not.
const LIST_SILENCE_MAX: Duration = Duration::from_mins(1);

/// What the watches need.
#[derive(Debug, Clone)]
pub struct Following {
    /// Where the API server is.
    pub connection: Connection,
    /// What to watch.
    pub kinds: Vec<Kind>,
    /// Where everything goes, with the moment it arrived. Bounded: a slow owner slows the watches
    /// down.
    pub events: mpsc::Sender<(Moment, ClusterEvent)>,
    /// The time.
    pub clock: Clock,
    /// Told how the watches go.
    pub freshness: Freshness,
    /// What happened.
    pub metrics: WatchMetrics,
}

/// Starts a watch for each kind. They end when nobody listens any more, or with the set.
pub fn follow(following: &Following) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    for kind in &following.kinds {
        let following = following.clone();
        match kind {
            Kind::Pods => watches.spawn(Watch::<Pod>::new(following).run()),
            Kind::Namespaces => watches.spawn(Watch::<Namespace>::new(following).run()),
            Kind::ServiceAccounts => watches.spawn(Watch::<ServiceAccount>::new(following).run()),
        };
    }
    watches
}

/// Why a run of a watch ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Nobody listens any more.
    Unheard,
    /// List again with the same client.
    Relist,
    /// Make a new client.
    Reconnect,
}

struct Watch<K> {
    following: Following,
    names: Names,
    failures: u32,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Watched + DeserializeOwned> Watch<K> {
    fn new(following: Following) -> Self {
        Self {
            following,
            names: Names::default(),
            failures: 0,
            kind: std::marker::PhantomData,
        }
    }

    async fn run(mut self) {
        loop {
            let client = match self.client().await {
                Ok(client) => client,
                Err(error) => {
                    warn!(kind = K::KIND.as_str(), %error, "no Kubernetes client");
                    self.failed(WatchTrouble::Connect).await;
                    continue;
                }
            };
            loop {
                match self.watch(client.clone()).await {
                    End::Unheard => return,
                    End::Relist => {}
                    End::Reconnect => break,
                }
            }
        }
    }

    async fn client(&self) -> Result<Client, ConnectionError> {
        let (freshness, clock) = (self.following.freshness.clone(), self.following.clock);
        let answered = move || freshness.answered(K::KIND, clock.now().monotonic);
        self.following.connection.client_telling(answered).await
    }

    /// Lists, in pages, and watches from there.
    ///
    /// Not with a streaming list: that may be as old as the watch cache it comes from, which behind another
    /// API server may be older than what is known already, or than what an agent was told by another replica.
    /// Time would go back, and pods that are gone would return with their addresses. A list in pages is read
    /// from etcd, or waits until the cache is as new.
    async fn watch(&mut self, client: Client) -> End {
        let config = watcher::Config {
            field_selector: K::FIELDS.map(str::to_owned),
            page_size: Some(PAGE),
            timeout: Some(self.following.connection.watch_lasts_s()),
            initial_list_strategy: watcher::InitialListStrategy::ListWatch,
            ..watcher::Config::default()
        };
        let events = watcher::watcher(Api::<K>::all(client), config);
        pin_mut!(events);
        let mut listing = true;
        loop {
            // The connection's own bound is for open watches.
            let silence_max = listing.then_some(LIST_SILENCE_MAX);
            let Ok(next) = within(silence_max, events.next()).await else {
                warn!(
                    kind = K::KIND.as_str(),
                    "the API server does not go on with its list"
                );
                self.failed(WatchTrouble::List).await;
                return End::Reconnect;
            };
            match next {
                // The stream of a watcher does not end.
                None => return End::Relist,
                Some(Ok(event)) => {
                    self.note(&event, &mut listing);
                    if !self.pass_on(&event).await {
                        return End::Unheard;
                    }
                }
                Some(Err(error)) => {
                    if let Some(end) = self.trouble(&error).await {
                        return end;
                    }
                }
            }
        }
    }

    /// What an event says about the watch itself.
    fn note(&mut self, event: &Event<K>, listing: &mut bool) {
        let freshness = &self.following.freshness;
        match event {
            // A list's beginning is announced before the API server is asked, so it says nothing
            // about its health.
            Event::Init => {
                *listing = true;
                freshness.lists(K::KIND);
            }
            // The list may still break off.
            Event::InitApply(_) => self.failures = 0,
            Event::InitDone | Event::Apply(_) | Event::Delete(_) => {
                (*listing, self.failures) = (false, 0);
                freshness.goes_well(K::KIND);
            }
        }
    }

    /// Says onward what a watch said; false once nobody listens.
    async fn pass_on(&mut self, event: &Event<K>) -> bool {
        self.following.metrics.event(K::KIND);
        let said = match event {
            Event::Apply(object) | Event::InitApply(object) => object.seen(&mut self.names),
            Event::Delete(object) => object.gone(&mut self.names),
            Event::Init => Some(ClusterEvent::Listing(K::KIND)),
            Event::InitDone => {
                self.following.metrics.listed(K::KIND);
                Some(ClusterEvent::Listed(K::KIND))
            }
        };
        if let Some(said) = said {
            let at = self.following.clock.now().monotonic;
            return self.following.events.send((at, said)).await.is_ok();
        }
        self.following
            .metrics
            .trouble(K::KIND, WatchTrouble::Object);
        !self.following.events.is_closed()
    }

    /// Waits out an error, and says whether this watch can go on.
    async fn trouble(&mut self, error: &watcher::Error) -> Option<End> {
        let (trouble, code) = classify(error);
        if code == 410 {
            debug!(
                kind = K::KIND.as_str(),
                "the watch fell out of the API server's window"
            );
        } else {
            let error = in_words(error);
            warn!(
                kind = K::KIND.as_str(),
                error,
                failures = self.failures,
                "watch"
            );
        }
        self.failed(trouble).await;
        if self.following.events.is_closed() {
            return Some(End::Unheard);
        }
        if wants_new_client(self.failures, code) {
            return Some(End::Reconnect);
        }
        // A 410 within a watch is handled by the watcher; one as the answer to opening a watch is
        // not, and would be repeated for ever.
        (trouble == WatchTrouble::Start && code == 410).then_some(End::Relist)
    }

    async fn failed(&mut self, trouble: WatchTrouble) {
        self.following.metrics.trouble(K::KIND, trouble);
        let now = self.following.clock.now().monotonic;
        self.following.freshness.failed(K::KIND, now);
        let delay = delay(self.failures, fastrand::f64());
        self.failures = self.failures.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.following.events.closed() => {}
        }
    }
}

/// Whether to go on with a new client after so many failures in a row, the last with this status.
const fn wants_new_client(failures: u32, code: u16) -> bool {
    failures.is_multiple_of(FAILURES_PER_CLIENT) || code == 401
}

async fn within<T>(
    longest: Option<Duration>,
    next: impl Future<Output = T>,
) -> Result<T, tokio::time::error::Elapsed> {
    match longest {
        Some(longest) => tokio::time::timeout(longest, next).await,
        None => Ok(next.await),
    }
}

/// Full jitter on a doubling delay. `dice` is in `[0, 1)`.
fn delay(failures: u32, dice: f64) -> Duration {
    let longest = DELAY_MIN
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(DELAY_MAX);
    longest.mul_f64(dice.clamp(0.05, 1.0))
}

/// Where it failed, and the status code, 0 without one.
fn classify(error: &watcher::Error) -> (WatchTrouble, u16) {
    let of = |error: &kube::Error| {
        if let kube::Error::Api(status) = error {
            status.code
        } else {
            0
        }
    };
    match error {
        watcher::Error::InitialListFailed(error) => (WatchTrouble::List, of(error)),
        watcher::Error::WatchStartFailed(error) => (WatchTrouble::Start, of(error)),
        watcher::Error::WatchError(status) => (WatchTrouble::Watch, status.code),
        watcher::Error::WatchFailed(error) => (WatchTrouble::Watch, of(error)),
        watcher::Error::NoResourceVersion => (WatchTrouble::Watch, 0),
    }
}

/// What went wrong, down to the cause: a refused connection is three errors deep, and what the API
/// server itself said comes with a page of fields.
fn in_words(error: &watcher::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            words.push(format!("{} ({})", status.message, status.code));
            break;
        }
        let text = match error.downcast_ref() {
            Some(watcher::Error::InitialListFailed(_)) => "cannot list".to_owned(),
            Some(watcher::Error::WatchStartFailed(_)) => "cannot watch".to_owned(),
            Some(watcher::Error::WatchFailed(_)) => "the watch broke".to_owned(),
            Some(watcher::Error::WatchError(status)) => {
                let (message, code) = (&status.message, status.code);
                return format!("the watch was ended: {message} ({code})");
            }
            Some(watcher::Error::NoResourceVersion) | None => error.to_string(),
        };
        next = error.source();
        // Many an error's text ends with its cause's.
        if words.last().is_none_or(|last| !last.ends_with(&text)) {
            words.push(text);
        }
    }
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::pods::Source;

    #[test]
    fn delays_grow_are_jittered_and_end() {
        assert_eq!(delay(0, 1.0), DELAY_MIN);
        assert_eq!(delay(3, 1.0), DELAY_MIN * 8);
        assert_eq!(delay(30, 1.0), DELAY_MAX);
        assert_eq!(delay(400, 0.5), DELAY_MAX / 2);
        assert!(delay(0, 0.0) > Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_stays_away_is_asked_ever_more_rarely() {
        let (events, _heard) = mpsc::channel(1);
        let clock = Clock::starting_at(kiam_wire::UnixSeconds::new(0));
        let mut watch = Watch::<Pod>::new(Following {
            connection: Connection::new(Source::Kubeconfig("/nowhere".into())),
            kinds: vec![Kind::Pods],
            events,
            clock,
            freshness: Freshness::default(),
            metrics: Metrics::new().watch,
        });
        let forbidden = kube::core::Status::failure("no", "Forbidden").with_code(403);
        let error = watcher::Error::InitialListFailed(kube::Error::Api(forbidden.boxed()));
        let (mut longest, mut new_clients) = (Duration::ZERO, 0);
        for _ in 0..100 {
            let before = clock.now().monotonic;
            let end = watch.trouble(&error).await;
            longest = longest.max(clock.now().monotonic.since(before));
            new_clients += u32::from(end == Some(End::Reconnect));
        }
        assert!(
            longest > DELAY_MAX / 2 && longest <= DELAY_MAX,
            "{longest:?}"
        );
        assert_eq!(new_clients, 100 / FAILURES_PER_CLIENT);
    }

    #[test]
    fn errors_are_told_apart_by_status() {
        let gone = kube::core::Status::failure("too old", "Expired")
            .with_code(410)
            .boxed();
        let error = watcher::Error::WatchStartFailed(kube::Error::Api(gone));
        assert_eq!(classify(&error), (WatchTrouble::Start, 410));
        let error = watcher::Error::NoResourceVersion;
        assert_eq!(classify(&error), (WatchTrouble::Watch, 0));
    }

    #[test]
    fn errors_are_said_briefly_and_down_to_the_cause() {
        let forbidden = kube::core::Status::failure("pods is forbidden", "Forbidden")
            .with_code(403)
            .boxed();
        let error = watcher::Error::InitialListFailed(kube::Error::Api(forbidden));
        assert_eq!(in_words(&error), "cannot list: pods is forbidden (403)");
        let refused = std::io::Error::other("connection refused");
        let error = watcher::Error::WatchStartFailed(kube::Error::Service(Box::new(refused)));
        let said = in_words(&error);
        assert!(said.starts_with("cannot watch: "), "{said}");
        assert!(said.ends_with("connection refused"), "{said}");
    }
}
