//! An STS with moods, that remembers what it gave to whom.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiam_server::clock::{Clock, Moment};
use kiam_server::policy::RoleRequest;
use kiam_server::sts::{IssueError, Issued, Issuer};
use kiam_wire::{CredentialId, UnixSeconds};
use zeroize::Zeroizing;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Slow,
    Down,
    Throttling,
    /// Trusts nobody with role 1.
    Refusing,
}

impl Mood {
    pub(crate) const ALL: [Self; 5] = [
        Self::Well,
        Self::Slow,
        Self::Down,
        Self::Throttling,
        Self::Refusing,
    ];
}

/// Calls at one time, and a second.
pub(crate) const FETCHERS: usize = 2;
pub(crate) const CALLS_PER_S: f64 = 2.0;

#[derive(Debug)]
pub(crate) struct Sts {
    /// Always right.
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    running: HashSet<CredentialId>,
    started: Vec<Moment>,
    /// Which role each key id was given for.
    issued: HashMap<String, String>,
    broken: Option<String>,
}

impl Sts {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: Mutex::new(State {
                mood: Mood::Well,
                running: HashSet::new(),
                started: Vec::new(),
                issued: HashMap::new(),
                broken: None,
            }),
        }
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// A restarted server's calls are nobody's any more.
    pub(crate) fn hung_up(&self) {
        let mut state = self.state.lock().unwrap();
        state.running.clear();
        state.started.clear();
    }

    /// The role that a key id was given for.
    pub(crate) fn role_of(&self, key: &str) -> Option<String> {
        self.state.lock().unwrap().issued.get(key).cloned()
    }

    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().started.len()
    }

    /// What a caller did that it must not.
    pub(crate) fn broken(&self) -> Option<String> {
        self.state.lock().unwrap().broken.clone()
    }

    fn begin(&self, id: CredentialId) -> Mood {
        let now = self.clock.now().monotonic;
        let mut state = self.state.lock().unwrap();
        if !state.running.insert(id) {
            state.broken = Some("two calls at once for one id".into());
        }
        if state.running.len() > FETCHERS {
            state.broken = Some(format!("{} calls at once", state.running.len()));
        }
        state.started.push(now);
        // In every window that ends now: a bucket's burst and what flows into it.
        let started = state.started.iter().rev().enumerate().take(200);
        let mut too_many = started.filter_map(|(calls, first)| {
            let passed = now.since(*first);
            let most = passed.as_secs_f64() * CALLS_PER_S + CALLS_PER_S + 1.0;
            let calls = u32::try_from(calls + 1).unwrap();
            (f64::from(calls) > most).then(|| format!("{calls} calls within {passed:?}"))
        });
        let too_many = too_many.next_back();
        state.broken = state.broken.take().or(too_many);
        state.mood
    }

    fn end(&self, request: &RoleRequest, mood: Mood) -> Result<String, IssueError> {
        let mut state = self.state.lock().unwrap();
        state.running.remove(&request.id());
        let role = request.role().name().to_owned();
        match mood {
            Mood::Down => Err(IssueError::Unreachable("down".into())),
            Mood::Throttling => Err(IssueError::Throttled("throttling".into())),
            Mood::Refusing if role == "role-1" => Err(IssueError::Denied("no trust".into())),
            Mood::Well | Mood::Slow | Mood::Refusing => {
                let key = format!("ASIA{:08}", state.issued.len());
                state.issued.insert(key.clone(), role);
                Ok(key)
            }
        }
    }
}

impl Issuer for Sts {
    async fn issue(&self, request: Arc<RoleRequest>) -> Result<Issued, IssueError> {
        let asked = self.clock.now();
        let mood = self.begin(request.id());
        let seconds = if mood == Mood::Slow { 20 } else { 1 };
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let key = self.end(&request, mood)?;
        let duration = request.session().duration;
        Ok(Issued {
            access_key_id: key,
            secret_access_key: Zeroizing::new("s".into()),
            session_token: Zeroizing::new("t".into()),
            expires_at: asked.wall.after(duration),
            duration,
            asked_at: asked.monotonic,
        })
    }
}

/// Where every clock of a case begins.
pub(crate) const START: UnixSeconds = UnixSeconds::new(1_800_000_000);
