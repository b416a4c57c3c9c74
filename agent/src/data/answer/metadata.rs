//! The metadata door: who asks is known by the address.

use std::net::IpAddr;

use super::super::request::Method;
use super::super::target::{
    Route, Scratch, decode, is_dotted, is_plain, path, query, route, usual,
};
use super::super::token::{TOKEN_BYTES, ttl};
use super::{Answerer, Asking, Outcome, Sought, give, is_pending};
use crate::buffer::reserve;
use crate::response::{DATE_BYTES, Response};
use crate::snapshot::{Answers, Entry, Standing};
use crate::tally::{Handler, add};

/// Which part of a pod's role is asked for.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    List,
    Credentials(&'a str),
    Extended(&'a str),
    Info,
}

impl Wanted<'_> {
    const fn handler(self) -> Handler {
        match self {
            Self::List => Handler::RoleName,
            Self::Credentials(_) | Self::Extended(_) => Handler::Credentials,
            Self::Info => Handler::Info,
        }
    }
}

impl Answerer {
    pub(super) fn answer_metadata(&self, asking: Asking<'_>, out: &mut Vec<u8>) -> Outcome {
        let target = asking.request.target;
        if let Some(route) = usual(target) {
            return self.routed(asking, route, target, out);
        }
        let raw = path(target);
        if is_plain(raw) {
            return self.routed(asking, route(raw), raw, out);
        }
        // Kept out of the usual way: the scratch space is as large as a head.
        self.answer_decoded(asking, raw, out)
    }

    #[cold]
    #[inline(never)]
    fn answer_decoded(&self, asking: Asking<'_>, raw: &str, out: &mut Vec<u8>) -> Outcome {
        let mut scratch = Scratch::new();
        match decode(raw, &mut scratch) {
            Ok(decoded) if is_dotted(decoded) => self.routed(asking, Route::Other, raw, out),
            Ok(decoded) => self.routed(asking, route(decoded), raw, out),
            Err(_undecodable) => give(asking, Handler::Refused, &self.fixed.bad_request, out),
        }
    }

    fn routed(
        &self,
        asking: Asking<'_>,
        route: Route<'_>,
        raw: &str,
        out: &mut Vec<u8>,
    ) -> Outcome {
        match route {
            Route::Token => self.token(asking, out),
            Route::RoleList => self.role(asking, Wanted::List, out),
            Route::Credentials(role) => self.role(asking, Wanted::Credentials(role), out),
            Route::Extended(role) => self.role(asking, Wanted::Extended(role), out),
            Route::Info => self.role(asking, Wanted::Info, out),
            Route::Region => self.place(asking, self.fixed.region.as_ref(), raw, out),
            Route::AvailabilityZone => {
                self.place(asking, self.fixed.availability_zone.as_ref(), raw, out)
            }
            Route::IdentityDocument => {
                self.place(asking, self.fixed.identity_document.as_ref(), raw, out)
            }
            Route::Ping => give(asking, Handler::Health, &self.fixed.pong, out),
            Route::Health => self.health(asking, out),
            Route::ContainerCredentials | Route::Other => self.other(asking, raw, out),
        }
    }

    /// Never parked and never refused for want of a pod: a token PUT that fails sends some SDKs
    /// back to IMDSv1 for good.
    fn token(&self, asking: Asking<'_>, out: &mut Vec<u8>) -> Outcome {
        let request = asking.request;
        let refusal = if request.method != Method::Put {
            &self.fixed.method_put
        } else if request.forwarded {
            &self.fixed.forbidden
        } else if let Some(ttl_s) = request.token_ttl.and_then(ttl) {
            let peer = self.asker(asking);
            let token = self.tokens.make(peer, ttl_s, asking.moment.token_time);
            write_token(asking, ttl_s, &token, out);
            return Outcome::Token;
        } else {
            &self.fixed.bad_request
        };
        give(asking, Handler::Token, refusal, out)
    }

    fn role(&self, asking: Asking<'_>, wanted: Wanted<'_>, out: &mut Vec<u8>) -> Outcome {
        let handler = wanted.handler();
        let peer = self.asker(asking);
        let entry = asking.snapshot.by_ip(peer);
        if let Some(refusal) = self.turned_away(asking, peer, entry.map(|entry| &**entry)) {
            return give(asking, handler, refusal, out);
        }
        let now = asking.moment.now;
        let Some(entry) = entry.filter(|entry| !is_pending(entry, now)) else {
            return self.park(asking, handler, Sought::Address(peer), out);
        };
        match &entry.standing {
            Standing::Granted(answers) => {
                let response = self.granted(entry, answers, wanted, peer);
                give(asking, handler, response, out)
            }
            Standing::NoRole | Standing::Pending => {
                add(&self.tally.empty_role);
                give(asking, handler, &self.fixed.not_found, out)
            }
            Standing::Refused(reason, refusals) => {
                self.tally.refused(*reason);
                give(asking, handler, &refusals.metadata, out)
            }
        }
    }

    /// A role that is not the pod's is 404, never 403: SDKs that cache the name then list again.
    fn granted<'a>(
        &'a self,
        entry: &Entry,
        answers: &'a Answers,
        wanted: Wanted<'_>,
        peer: IpAddr,
    ) -> &'a Response {
        let (role, response) = match wanted {
            Wanted::List => return &answers.list,
            Wanted::Info => return &answers.info,
            Wanted::Credentials(role) => (role, &answers.credentials),
            Wanted::Extended(role) => (role, &answers.extended),
        };
        if !answers.is_role(role) {
            return &self.fixed.not_found;
        }
        self.audit(entry, answers.access_key_id(), answers.role_arn(), peer);
        response
    }

    /// What stands before any pod's answer: method, proxies, tokens.
    fn turned_away(
        &self,
        asking: Asking<'_>,
        peer: IpAddr,
        entry: Option<&Entry>,
    ) -> Option<&Response> {
        if !asking.reads() {
            return Some(&self.fixed.method_get);
        }
        if asking.request.forwarded {
            return Some(&self.fixed.forbidden);
        }
        let accepted = asking.request.token.map_or_else(
            || !self.imds_v2_only && entry.is_none_or(|entry| !entry.imds_v2_required),
            |token| self.tokens.accepts(token, peer, asking.moment.token_time),
        );
        (!accepted).then_some(&self.fixed.unauthorized)
    }

    /// A value given by flag; without one as any other path.
    fn place(
        &self,
        asking: Asking<'_>,
        given: Option<&Response>,
        raw: &str,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let Some(given) = given else {
            return self.other(asking, raw, out);
        };
        let peer = self.asker(asking);
        let entry = asking.snapshot.by_ip(peer).map(|entry| &**entry);
        let response = self.turned_away(asking, peer, entry).unwrap_or(given);
        give(asking, Handler::Info, response, out)
    }

    /// What is not ours: fetched if that is allowed at all, else 404 at once.
    fn other(&self, asking: Asking<'_>, raw: &str, out: &mut Vec<u8>) -> Outcome {
        if !self.passthrough || !asking.reads() {
            add(&self.tally.proxy_blocked);
            return give(asking, Handler::Proxy, &self.fixed.not_found, out);
        }
        let peer = self.asker(asking);
        let entry = asking.snapshot.by_ip(peer).map(|entry| &**entry);
        match self.turned_away(asking, peer, entry) {
            Some(refusal) => give(asking, Handler::Proxy, refusal, out),
            None => Outcome::Fetch(0..raw.len()),
        }
    }

    /// 200 while there is something to answer from; with `deep` a server must be followed as well.
    fn health(&self, asking: Asking<'_>, out: &mut Vec<u8>) -> Outcome {
        let deep = query(asking.request.target).split('&').any(|pair| {
            pair.strip_prefix("deep=")
                .is_some_and(|value| !value.is_empty())
        });
        let response = if asking.snapshot.revision().is_none() {
            &self.fixed.unhealthy
        } else if deep && !self.following.get() {
            &self.fixed.deaf
        } else {
            &self.fixed.healthy
        };
        give(asking, Handler::Health, response, out)
    }

    /// Who asks: the peer, unless `?ip=` is allowed to say otherwise.
    fn asker(&self, asking: Asking<'_>) -> IpAddr {
        if !self.allow_ip_query {
            return asking.peer;
        }
        query(asking.request.target)
            .split('&')
            .find_map(|pair| pair.strip_prefix("ip=")?.parse().ok())
            .unwrap_or(asking.peer)
    }
}

/// The only answer that is not rendered beforehand.
fn write_token(asking: Asking<'_>, ttl_s: u32, token: &[u8; TOKEN_BYTES], out: &mut Vec<u8>) {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 55\r\n\
                          Server: EC2ws\r\nX-aws-ec2-metadata-token-ttl-seconds: ";
    const CLOSE: &[u8] = b"\r\nConnection: close";
    const REST_BYTES: usize = 5 + 8 + DATE_BYTES + CLOSE.len() + 4 + TOKEN_BYTES;
    const _: () = assert!(TOKEN_BYTES == 55);
    reserve(out, HEAD.len() + REST_BYTES);
    out.extend_from_slice(HEAD);
    let mut place = 10_000;
    while place > 0 {
        if ttl_s >= place {
            let digit = u8::try_from(ttl_s / place % 10).unwrap_or(0);
            out.push(b'0' + digit);
        }
        place /= 10;
    }
    out.extend_from_slice(b"\r\nDate: ");
    out.extend_from_slice(&asking.moment.date);
    if asking.request.close {
        out.extend_from_slice(CLOSE);
    }
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(token);
}
