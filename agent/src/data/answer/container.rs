//! The container door: who asks is known by the token.
//!
//! The `Host` header is not checked: what it protects against, a web page that makes a browser ask,
//! cannot present a pod's token.

use kiam_wire::PodUid;

use super::super::jwt::Untrusted;
use super::super::target::{Route, path, route};
use super::{Answerer, Asking, Outcome, Sought, give, is_pending};
use crate::response::Response;
use crate::snapshot::Standing;
use crate::tally::{Handler, add};

impl Answerer {
    pub(super) fn answer_container(&self, asking: Asking<'_>, out: &mut Vec<u8>) -> Outcome {
        let fixed = &self.fixed.container;
        let refusal = if route(path(asking.request.target)) != Route::ContainerCredentials {
            &fixed.not_found
        } else if !asking.reads() {
            &fixed.method
        } else if let Some(header) = asking.request.authorization {
            return self.identified(asking, bare(header), out);
        } else {
            &fixed.no_token
        };
        give(asking, Handler::Container, refusal, out)
    }

    fn identified(&self, asking: Asking<'_>, token: &[u8], out: &mut Vec<u8>) -> Outcome {
        let mut bearers = self.bearers.borrow_mut();
        let wall = asking.moment.now.wall;
        let bearer = match bearers.identify(token, asking.snapshot.keys(), wall) {
            Ok(bearer) => bearer,
            Err(Untrusted::NoKeys) if asking.snapshot.revision().is_none() => {
                return self.park(asking, Handler::Container, Sought::Anyone, out);
            }
            Err(why) => return give(asking, Handler::Container, self.untrusted(why), out),
        };
        let now = asking.moment.now;
        let entry = asking.snapshot.by_uid(&bearer.pod_uid);
        // The signature says so, and the server says otherwise: one of them is out of date.
        if entry.is_some_and(|entry| {
            entry.namespace != *bearer.namespace || entry.service_account != *bearer.service_account
        }) {
            return give(
                asking,
                Handler::Container,
                self.untrusted(Untrusted::NoPod),
                out,
            );
        }
        let Some(entry) = entry.filter(|entry| !is_pending(entry, now)) else {
            return match PodUid::try_new(&bearer.pod_uid) {
                Ok(uid) => self.park(asking, Handler::Container, Sought::Uid(uid), out),
                Err(_malformed) => give(
                    asking,
                    Handler::Container,
                    self.untrusted(Untrusted::NoPod),
                    out,
                ),
            };
        };
        let response = match &entry.standing {
            Standing::Granted(answers) => {
                self.audit(
                    entry,
                    answers.access_key_id(),
                    answers.role_arn(),
                    asking.peer,
                );
                &answers.container
            }
            Standing::NoRole | Standing::Pending => {
                add(&self.tally.empty_role);
                &self.fixed.container.no_role
            }
            Standing::Refused(reason, refusals) => {
                self.tally.refused(*reason);
                &refusals.container
            }
        };
        give(asking, Handler::Container, response, out)
    }

    fn untrusted(&self, why: Untrusted) -> &Response {
        Untrusted::ALL
            .iter()
            .position(|one| *one == why)
            .and_then(|place| self.untrusted.get(place))
            .unwrap_or(&self.fixed.container.no_token)
    }
}

/// SDKs send the token as it is; people and other tools put `Bearer` before it.
fn bare(header: &[u8]) -> &[u8] {
    match header.split_first_chunk::<7>() {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
        _ => header,
    }
}
