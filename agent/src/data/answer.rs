//! Who gets which answer: peer, request and snapshot in; bytes out, or *park*.
//!
//! It decides and copies, and touches nothing else: no socket, no clock. The table it follows is in
//! `docs/architecture.md`; in short, what is known is answered at once, and what is not known yet is
//! parked, because no status makes clients come back in time.

mod container;
mod metadata;

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::Range;

use kiam_wire::PodUid;

use super::DataConfig;
use super::fixed::{Fixed, problem};
use super::jwt::{Bearers, Untrusted};
use super::moment::Moment;
use super::request::{Method, Request};
use super::token::Tokens;
use crate::clock::Now;
use crate::readiness::Following;
use crate::response::{Manner, Response, Status};
use crate::snapshot::{Entry, Snapshot, Standing};
use crate::tally::{Handler, TallyOf, add};

/// Which of its two doors a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The metadata service: who asks is known by the address.
    Metadata,
    /// Container credentials: who asks is known by the token.
    Container,
}

/// What one worker answers from, besides the snapshot.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own, none a state"
)]
pub(super) struct Answerer {
    imds_v2_only: bool,
    allow_ip_query: bool,
    passthrough: bool,
    audit: bool,
    tokens: Tokens,
    bearers: RefCell<Bearers>,
    untrusted: [Response; Untrusted::ALL.len()],
    pub(super) fixed: Fixed,
    following: Following,
    tally: TallyOf,
}

/// One request and everything its answer depends on.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) door: Door,
    pub(super) peer: IpAddr,
    pub(super) request: &'a Request<'a>,
    pub(super) snapshot: &'a Snapshot,
    pub(super) moment: &'a Moment,
    /// It has been parked long enough: what would be parked is answered 503.
    pub(super) out_of_time: bool,
}

impl Asking<'_> {
    const fn manner(&self) -> Manner<'_> {
        Manner {
            date: &self.moment.date,
            close: self.request.close,
            head_only: matches!(self.request.method, Method::Head),
        }
    }

    const fn reads(&self) -> bool {
        matches!(self.request.method, Method::Get | Method::Head)
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The answer has been appended.
    Answered(Handler, u16),
    /// As [`Outcome::Answered`], with a token: its packets may have a hop limit of their own.
    Token,
    /// Nothing has been appended; ask again when this pod can be answered.
    Park(Sought),
    /// Nothing has been appended; the raw path, within the target, is to be fetched.
    Fetch(Range<usize>),
}

/// Whom a parked request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sought {
    /// The pod that owns this address.
    Address(IpAddr),
    /// The pod with this uid, whose token has been verified.
    Uid(PodUid),
    /// Anyone, and keys to know them by: no server has spoken yet.
    Anyone,
}

impl Sought {
    /// Whether it would be parked again.
    pub(super) fn is_missing(&self, snapshot: &Snapshot, now: Now) -> bool {
        let entry = match self {
            Self::Address(ip) => snapshot.by_ip(*ip),
            Self::Uid(uid) => snapshot.by_uid(uid.as_str()),
            Self::Anyone => return snapshot.revision().is_none(),
        };
        entry.is_none_or(|entry| is_pending(entry, now))
    }
}

/// Expired credentials are no credentials.
fn is_pending(entry: &Entry, now: Now) -> bool {
    match &entry.standing {
        Standing::Pending => true,
        Standing::Granted(answers) => answers.expiry().has_passed(now),
        Standing::Refused(..) | Standing::NoRole => false,
    }
}

impl Answerer {
    pub(super) fn new(config: &DataConfig, tally: TallyOf) -> Self {
        Self {
            imds_v2_only: config.imds_v2_only,
            allow_ip_query: config.allow_ip_query,
            passthrough: config.passthrough.is_some(),
            audit: config.audit_log,
            tokens: Tokens::new(&config.token_key),
            bearers: RefCell::new(Bearers::new(config.audience.clone())),
            untrusted: Untrusted::ALL
                .map(|why| problem(Status::Unauthorized, "InvalidToken", &why.to_string())),
            fixed: Fixed::new(
                config.region.as_deref(),
                config.availability_zone.as_deref(),
            ),
            following: config.following.clone(),
            tally,
        }
    }

    /// Answers a request by appending to `out`, or says what else becomes of it.
    pub(super) fn answer(&self, asking: Asking<'_>, out: &mut Vec<u8>) -> Outcome {
        match asking.door {
            Door::Metadata => self.answer_metadata(asking, out),
            Door::Container => self.answer_container(asking, out),
        }
    }

    /// Answers what is too much.
    pub(super) fn slow_down(&self, asking: Asking<'_>, out: &mut Vec<u8>) -> Outcome {
        let (handler, response) = match asking.door {
            Door::Metadata => (Handler::Refused, &self.fixed.unavailable),
            Door::Container => (Handler::Container, &self.fixed.container.slow_down),
        };
        give(asking, handler, response, out)
    }

    /// Answers what could not even be read; the connection ends.
    pub(super) fn refuse(&self, status: Status, moment: &Moment, out: &mut Vec<u8>) -> Outcome {
        let response = self.fixed.refusal(status);
        let manner = Manner {
            date: &moment.date,
            close: true,
            head_only: false,
        };
        response.copy_to(out, manner);
        Outcome::Answered(Handler::Refused, response.status())
    }

    /// Parks, or answers 503 when there is no time left.
    fn park(
        &self,
        asking: Asking<'_>,
        handler: Handler,
        sought: Sought,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if !asking.out_of_time {
            return Outcome::Park(sought);
        }
        let response = match asking.door {
            Door::Metadata => &self.fixed.unavailable,
            Door::Container => &self.fixed.container.unavailable,
        };
        add(match handler {
            Handler::RoleName => &self.tally.find_role_errors,
            Handler::Credentials
            | Handler::Token
            | Handler::Info
            | Handler::Health
            | Handler::Proxy
            | Handler::Container
            | Handler::Refused => &self.tally.credential_fetch_errors,
        });
        give(asking, handler, response, out)
    }

    /// One line per credential served: who, which, never the secret.
    fn audit(&self, entry: &Entry, access_key_id: &str, role_arn: &str, peer: IpAddr) {
        if self.audit {
            tracing::info!(
                target: "kiam_agent::audit",
                namespace = entry.namespace,
                pod = entry.name,
                uid = entry.uid.as_str(),
                role = role_arn,
                access_key_id,
                %peer,
                "credentials served"
            );
        }
    }
}

fn give(asking: Asking<'_>, handler: Handler, response: &Response, out: &mut Vec<u8>) -> Outcome {
    response.copy_to(out, asking.manner());
    Outcome::Answered(handler, response.status())
}
