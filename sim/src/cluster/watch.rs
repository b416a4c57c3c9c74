//! GET with `watch`: the changes of a kind as JSON lines, for as long as the client listens.
//!
//! A watcher owns nothing but a position in the shared history: it wakes when its kind changes,
//! takes the changes after its position and sends their shared bytes. One that is too slow finds its
//! position forgotten and is told 410 Gone; nobody waits for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::counters::OpenWatch;
use super::route::Query;
use super::selector::Selector;
use super::state::State;
use super::status::ApiError;
use super::store::{Change, Object, Store, Verb};
use super::view::View;
use crate::faults::Weather;
use crate::listen::Body;
use crate::shared::lock;

/// Changes taken from the history at once, so that the store is never held for long.
const BATCH_MAX: usize = 256;
/// A watch that names no `timeoutSeconds` lasts this long, as with the real API server's minimum.
const LASTS_DEFAULT: Duration = Duration::from_mins(30);

struct Watcher {
    state: Arc<State>,
    view: View,
    namespace: Option<String>,
    selector: Selector,
    /// Everything up to this revision has been sent or is in `ready`.
    position: u64,
    ready: VecDeque<Bytes>,
    /// Objects that were there before the watch, still to be sent as added.
    initial: VecDeque<Arc<Object>>,
    /// Whether the end of `initial` is to be marked.
    marks_initial_end: bool,
    bookmarks: Option<Duration>,
    next_bookmark: Instant,
    ends_at: Instant,
    changed: watch::Receiver<u64>,
    weather: watch::Receiver<Weather>,
    arrived: Weather,
    ended: bool,
    _open: OpenWatch,
}

/// Why a quiet watcher stirred, other than for a change.
enum Woken {
    ToBookmark,
    AfterItsTime,
    ToEnd,
    ToExpire,
}

/// Starts a watch, or refuses it as an API server would.
pub(crate) fn start(
    state: &Arc<State>,
    view: View,
    namespace: Option<String>,
    query: &Query,
) -> Result<Body, ApiError> {
    let selector = query.selector(view.kind)?;
    let lasts = query
        .number("timeoutSeconds")?
        .filter(|seconds| *seconds > 0);
    let lasts = lasts.map_or(LASTS_DEFAULT, |seconds| {
        Duration::from_secs(seconds.min(86_400))
    });
    let wanted = query.number("resourceVersion")?.unwrap_or_default();
    let sends_initial = query.flag("sendInitialEvents");
    if sends_initial && query.text("resourceVersionMatch") != "NotOlderThan" {
        return Err(ApiError::bad_request(
            "resourceVersionMatch: Required value: must be NotOlderThan when sendInitialEvents is true",
        ));
    }
    let bookmarks = query
        .flag("allowWatchBookmarks")
        .then_some(state.options.bookmark_interval);
    let store = lock(&state.store);
    if wanted > store.revision() {
        return Err(ApiError::from_the_future(wanted, store.revision()));
    }
    // A watch from nowhere in particular begins with what is there.
    let from_nowhere = wanted == 0 && query.text("sendInitialEvents") != "false";
    let initial = if sends_initial || from_nowhere {
        select(&store, view, namespace.as_deref(), &selector)
    } else {
        if wanted != 0 {
            store.since(view.kind, wanted, 0)?;
        }
        VecDeque::new()
    };
    let position = if sends_initial || wanted == 0 {
        store.revision()
    } else {
        wanted
    };
    let changed = store.changed(view.kind);
    drop(store);
    let now = Instant::now();
    let mut weather = state.faults.weather();
    let arrived = *weather.borrow_and_update();
    let watcher = Watcher {
        view,
        namespace,
        selector,
        position,
        ready: VecDeque::new(),
        initial,
        marks_initial_end: sends_initial,
        bookmarks,
        next_bookmark: bookmarks.map_or(now, |every| now + every),
        ends_at: now + lasts,
        changed,
        weather,
        arrived,
        ended: false,
        _open: state.counters.open_watch(),
        state: Arc::clone(state),
    };
    let frames = stream::unfold(watcher, |mut watcher| async move {
        let bytes = watcher.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), watcher))
    });
    Ok(StreamBody::new(frames).boxed_unsync())
}

fn select(
    store: &Store,
    view: View,
    namespace: Option<&str>,
    selector: &Selector,
) -> VecDeque<Arc<Object>> {
    store
        .range(view.kind, namespace)
        .filter(|object| selector.is_empty() || selector.matches(object))
        .map(Arc::clone)
        .collect()
}

impl Watcher {
    /// The next line, or none when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            if let Some(object) = self.initial.pop_front() {
                return Some(
                    self.view
                        .event(Verb::Added, &object, self.state.clock.now()),
                );
            }
            if std::mem::take(&mut self.marks_initial_end) {
                return Some(self.view.bookmark(self.position, true));
            }
            if self.advance() {
                continue;
            }
            self.wait().await;
        }
    }

    /// Takes the next changes from the history. False if there are none.
    fn advance(&mut self) -> bool {
        self.changed.mark_unchanged();
        let store = lock(&self.state.store);
        let changes = store.since(self.view.kind, self.position, BATCH_MAX);
        let current = store.revision();
        drop(store);
        match changes {
            Ok(changes) => {
                // With the history read to its end, changes of other kinds are behind us as well.
                let at_end = changes.len() < BATCH_MAX;
                let last = changes.last().map(|change| change.revision);
                for change in &changes {
                    self.take(change);
                }
                self.position = if at_end {
                    current
                } else {
                    last.unwrap_or(current)
                };
                !changes.is_empty()
            }
            Err(error) => {
                self.fail(&error);
                true
            }
        }
    }

    /// Puts one change into words for this watcher, if it concerns it.
    fn take(&mut self, change: &Change) {
        if self
            .namespace
            .as_deref()
            .is_some_and(|wanted| *change.object.namespace != *wanted)
        {
            return;
        }
        let now = self.state.clock.now();
        if self.selector.is_empty() {
            self.ready.push_back(self.view.change(change, now));
            return;
        }
        let was = change
            .before
            .as_ref()
            .is_some_and(|before| self.selector.matches(before));
        let is = change.verb() != Verb::Deleted && self.selector.matches(&change.object);
        let verb = match (was, is) {
            (false, false) => return,
            (false, true) => Verb::Added,
            (true, true) => Verb::Modified,
            // Left the selection, or the world.
            (true, false) => Verb::Deleted,
        };
        self.ready
            .push_back(self.view.event(verb, &change.object, now));
    }

    /// Says why the watch is over.
    fn fail(&mut self, error: &ApiError) {
        self.ready
            .push_back(format!("{}\n", json!({"type": "ERROR", "object": error.to_json()})).into());
        self.ended = true;
    }

    /// Waits until there may be something to say.
    async fn wait(&mut self) {
        let arrived = self.arrived;
        let ordered_to_end = self.weather.wait_for(|now| {
            now.watch_drops != arrived.watch_drops || now.watch_expiries != arrived.watch_expiries
        });
        let woken = tokio::select! {
            // The store is there for as long as this watcher, so this is always news.
            _ = self.changed.changed() => return,
            weather = ordered_to_end => match weather {
                Ok(now) if now.watch_expiries != arrived.watch_expiries => Woken::ToExpire,
                Ok(_) | Err(_) => Woken::ToEnd,
            },
            () = sleep_until(self.ends_at) => Woken::AfterItsTime,
            () = sleep_until(self.next_bookmark), if self.bookmarks.is_some() => Woken::ToBookmark,
        };
        match woken {
            Woken::ToExpire => self.fail(&ApiError::compacted(self.position, self.position)),
            Woken::ToEnd => self.ended = true,
            Woken::AfterItsTime => {
                self.bookmark();
                self.ended = true;
            }
            Woken::ToBookmark => self.bookmark(),
        }
    }

    fn bookmark(&mut self) {
        if let Some(every) = self.bookmarks {
            self.ready
                .push_back(self.view.bookmark(self.position, false));
            self.next_bookmark = Instant::now() + every;
        }
    }
}
