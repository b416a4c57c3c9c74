//! Tells application developers, as Kubernetes events on their pods, why there are no credentials.
//!
//! Noting never blocks and never fails: what cannot be queued is counted and left out. One note is
//! one event object with a count, under a name made of the pod, the reason and the message, so that
//! all replicas write to the same one. A cluster-wide rate keeps a bad rollout of ten thousand pods
//! from becoming a load on the API server.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use kiam_wire::{PodUid, UnixSeconds};
use ring::digest;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::clock::{Clock, Moment};
use crate::drain::Draining;
use crate::metrics::{EventOutcome, WriteMetrics};
use crate::pods::{ApiError, EventNote, KubeApi};

/// Notes that may wait to be written.
const QUEUE: usize = 1_000;
/// Writes of which at most so many may come at once …
const BURST: u32 = 50;
/// … and one more per this long.
const REFILL: Duration = Duration::from_millis(200);
/// The same note is written again at most this often; what happens in between is only counted.
const REPEAT: Duration = Duration::from_mins(5);
/// Notes remembered at most, for counting.
const REMEMBERED_MAX: usize = 10_000;
/// Kubernetes: an event's message.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// Why there are no credentials. kiam's reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The policy says no.
    RoleForbidden,
    /// STS says no, or nothing.
    CredentialError,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::RoleForbidden => "KiamRoleForbidden",
            Self::CredentialError => "KiamCredentialError",
        }
    }
}

/// Something to tell a developer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod.
    pub pod_uid: PodUid,
    /// What kind of trouble.
    pub reason: Reason,
    /// In words.
    pub message: String,
}

/// Takes notes.
#[derive(Debug, Clone)]
pub struct Notes {
    queue: Option<mpsc::Sender<Note>>,
    metrics: WriteMetrics,
}

impl Notes {
    /// Notes that nobody reads, for a dry run.
    pub const fn unread(metrics: WriteMetrics) -> Self {
        Self {
            queue: None,
            metrics,
        }
    }

    /// Notes something. Never waits.
    pub fn note(&self, note: Note) {
        if let Some(queue) = &self.queue
            && queue.try_send(note).is_err()
        {
            self.metrics.event(EventOutcome::Dropped);
        }
    }
}

/// Writes notes as they come.
pub fn start(
    api: KubeApi,
    metrics: WriteMetrics,
    clock: Clock,
    mut draining: Draining,
) -> (Notes, tokio::task::JoinHandle<()>) {
    let (sender, mut queue) = mpsc::channel(QUEUE);
    let notes = Notes {
        queue: Some(sender),
        metrics: metrics.clone(),
    };
    let task = tokio::spawn(async move {
        let mut written = Written::new();
        loop {
            let note = tokio::select! {
                note = queue.recv() => note,
                () = draining.started() => None,
            };
            let Some(note) = note else { return };
            let now = clock.now();
            match written.consider(&note, now.monotonic, now.wall) {
                Verdict::Limited => metrics.event(EventOutcome::Limited),
                Verdict::Counted => {}
                Verdict::Create(event) => metrics.event(create(&api, &event).await),
                Verdict::Repeat(event) => metrics.event(repeat(&api, &event).await),
            }
        }
    });
    (notes, task)
}

async fn create(api: &KubeApi, event: &EventNote) -> EventOutcome {
    match api.create_event(event).await {
        Ok(()) => EventOutcome::Written,
        // Another replica, or this one before a restart, has noted the same.
        Err(ApiError::Exists | ApiError::Conflict) => repeat(api, event).await,
        Err(error) => failed(event, &error),
    }
}

async fn repeat(api: &KubeApi, event: &EventNote) -> EventOutcome {
    match api.repeat_event(event).await {
        Ok(()) => EventOutcome::Repeated,
        // Events are forgotten after an hour.
        Err(ApiError::NotFound) => match api.create_event(event).await {
            Ok(()) => EventOutcome::Written,
            Err(error) => failed(event, &error),
        },
        Err(error) => failed(event, &error),
    }
}

fn failed(event: &EventNote, error: &ApiError) -> EventOutcome {
    match error {
        // The pod's namespace is being deleted, most likely.
        ApiError::NotFound => debug!(pod = event.pod_name, "no event: the namespace is gone"),
        ApiError::Conflict
        | ApiError::Exists
        | ApiError::Forbidden(_)
        | ApiError::Refused(_)
        | ApiError::Unavailable(_) => {
            let namespace = &event.namespace;
            warn!(pod = event.pod_name, namespace, %error, "cannot write an event");
        }
    }
    EventOutcome::Failed
}

/// What to do with a note.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Too many: leave it out.
    Limited,
    /// Noted not long ago: only counted.
    Counted,
    /// Write it.
    Create(EventNote),
    /// Write that it happened again.
    Repeat(EventNote),
}

/// What has been written. Pure.
#[derive(Debug)]
struct Written {
    seen: HashMap<String, Seen>,
    /// Writes that may be made at once.
    tokens: u32,
    refilled_at: Moment,
}

#[derive(Debug)]
struct Seen {
    first_at: UnixSeconds,
    count: u32,
    written_at: Moment,
}

impl Written {
    fn new() -> Self {
        Self {
            seen: HashMap::new(),
            tokens: BURST,
            refilled_at: Moment::ORIGIN,
        }
    }

    fn consider(&mut self, note: &Note, now: Moment, wall: UnixSeconds) -> Verdict {
        let name = event_name(note);
        if let Some(seen) = self.seen.get_mut(&name) {
            seen.count = seen.count.saturating_add(1);
            if now.since(seen.written_at) < REPEAT {
                return Verdict::Counted;
            }
        }
        if !self.take_token(now) {
            return Verdict::Limited;
        }
        if self.seen.len() >= REMEMBERED_MAX {
            self.seen
                .retain(|_name, seen| now.since(seen.written_at) < REPEAT);
        }
        let full = self.seen.len() >= REMEMBERED_MAX;
        let repeated = self.seen.contains_key(&name);
        let mut fresh = Seen {
            first_at: wall,
            count: 1,
            written_at: now,
        };
        let seen = if full && !repeated {
            &mut fresh
        } else {
            self.seen.entry(name.clone()).or_insert(fresh)
        };
        seen.written_at = now;
        let event = EventNote {
            event_name: name,
            namespace: note.namespace.clone(),
            pod_name: note.pod_name.clone(),
            pod_uid: note.pod_uid.as_str().to_owned(),
            reason: note.reason.as_str(),
            message: cut(&note.message),
            first_at: seen.first_at.to_string(),
            last_at: wall.to_string(),
            count: seen.count,
        };
        if repeated {
            Verdict::Repeat(event)
        } else {
            Verdict::Create(event)
        }
    }

    fn take_token(&mut self, now: Moment) -> bool {
        let since = now.since(self.refilled_at).as_millis() / REFILL.as_millis();
        let refill = u32::try_from(since).unwrap_or(u32::MAX);
        if refill > 0 {
            self.tokens = self.tokens.saturating_add(refill).min(BURST);
            self.refilled_at = now;
        }
        let Some(left) = self.tokens.checked_sub(1) else {
            return false;
        };
        self.tokens = left;
        true
    }
}

/// The same for the same note, on every replica; a legal object name.
fn event_name(note: &Note) -> String {
    let text = format!(
        "{}\n{}\n{}",
        note.pod_uid,
        note.reason.as_str(),
        note.message
    );
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let mut hex = String::new();
    for byte in digest.as_ref().iter().take(8) {
        // Writing to a String cannot fail.
        let _infallible = write!(hex, "{byte:02x}").is_ok();
    }
    // Names have at most 253 characters, and the digest is what makes this one unique.
    let pod: String = note.pod_name.chars().take(230).collect();
    format!("{pod}.{hex}")
}

fn cut(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(pod: &str) -> Note {
        Note {
            namespace: "default".into(),
            pod_name: pod.into(),
            pod_uid: PodUid::try_new(pod).unwrap(),
            reason: Reason::RoleForbidden,
            message: "no".into(),
        }
    }

    fn at(seconds: u64) -> (Moment, UnixSeconds) {
        let moment = Moment::new(Duration::from_secs(seconds));
        (moment, UnixSeconds::new(i64::try_from(seconds).unwrap()))
    }

    #[track_caller]
    fn check(written: &mut Written, pod: &str, seconds: u64, expected: &str) {
        let (moment, wall) = at(seconds);
        let got = match written.consider(&note(pod), moment, wall) {
            Verdict::Limited => "limited".to_owned(),
            Verdict::Counted => "counted".to_owned(),
            Verdict::Create(event) => format!("create x{}", event.count),
            Verdict::Repeat(event) => format!("repeat x{} since {}", event.count, event.first_at),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn the_same_note_is_one_event_with_a_count() {
        let mut written = Written::new();
        check(&mut written, "a", 0, "create x1");
        check(&mut written, "a", 1, "counted");
        check(&mut written, "b", 1, "create x1");
        check(
            &mut written,
            "a",
            301,
            "repeat x3 since 1970-01-01T00:00:00Z",
        );
    }

    #[test]
    fn a_flood_is_cut_to_a_rate() {
        let mut written = Written::new();
        for n in 0..BURST {
            check(&mut written, &format!("p{n}"), 0, "create x1");
        }
        check(&mut written, "late", 0, "limited");
        check(&mut written, "late", 1, "create x1");
    }

    #[test]
    fn memory_is_bounded() {
        let mut written = Written::new();
        for n in 0..REMEMBERED_MAX + 10 {
            let (moment, wall) = at(u64::try_from(n).unwrap() / 10);
            written.consider(&note(&format!("p{n}")), moment, wall);
        }
        assert!(written.seen.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn names_are_legal_and_the_same_everywhere() {
        let long = Note {
            pod_name: "p".repeat(253),
            ..note("a")
        };
        assert!(event_name(&long).len() <= 253);
        assert_eq!(event_name(&note("a")), event_name(&note("a")));
        assert_ne!(event_name(&note("a")), event_name(&note("b")));
        assert_eq!(cut(&"\u{e9}".repeat(600)).len(), MESSAGE_BYTES_MAX);
    }
}
