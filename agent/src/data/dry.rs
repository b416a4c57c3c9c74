//! The data plane without sockets: bytes in, bytes out.
//!
//! For what must not depend on a machine's network: counting instructions, measuring single
//! answers, and feeding it whatever a fuzzer thinks of. It goes the same way as a connection's
//! bytes.

use std::net::IpAddr;

use super::DataConfig;
use super::answer::{Answerer, Asking, Door, Outcome};
use super::moment::Moment;
use super::passthrough::Fetcher;
use super::request::{Parsed, parse, target_range};
use crate::clock::Now;
use crate::snapshot::Snapshot;
use crate::tally::Tallies;

/// What would become of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dry {
    /// This many bytes were a request and its answer has been appended, with this status.
    Answered {
        /// Bytes of the request.
        bytes: usize,
        /// Status of the answer.
        status: u16,
    },
    /// The connection would end after the appended refusal.
    Refused,
    /// More bytes are needed.
    Partial,
    /// The request would wait for its pod.
    Parked,
    /// The real service would be asked for what is at these places of the buffer.
    Fetched {
        /// First byte of the path.
        from: usize,
        /// The byte behind it.
        to: usize,
    },
    /// The request is for the real service, which is not to be asked that.
    Withheld,
}

/// One worker's answers.
#[derive(Debug)]
pub struct DryRun {
    answerer: Answerer,
    fetcher: Option<Fetcher>,
    moment: Moment,
}

impl DryRun {
    /// Answers as a worker with this configuration would at `now`; `None` when `tallies` are for
    /// no worker at all.
    pub fn new(config: &DataConfig, tallies: &Tallies, now: Now) -> Option<Self> {
        Some(Self {
            answerer: Answerer::new(config, tallies.of(0)?),
            fetcher: config.passthrough.as_ref().map(Fetcher::new),
            moment: Moment::new(now),
        })
    }

    /// What the metadata door would make of `buffer` from `peer`.
    pub fn metadata(
        &self,
        buffer: &[u8],
        peer: IpAddr,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Dry {
        self.answer(Door::Metadata, buffer, peer, snapshot, out)
    }

    /// What the container door would make of `buffer` from `peer`.
    pub fn container(
        &self,
        buffer: &[u8],
        peer: IpAddr,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Dry {
        self.answer(Door::Container, buffer, peer, snapshot, out)
    }

    fn answer(
        &self,
        door: Door,
        buffer: &[u8],
        peer: IpAddr,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Dry {
        let request = match parse(buffer) {
            Parsed::Whole(request) => request,
            Parsed::Partial | Parsed::Bodyless { .. } => return Dry::Partial,
            Parsed::Refused(status) => {
                self.answerer.refuse(status, &self.moment, out);
                return Dry::Refused;
            }
        };
        let asking = Asking {
            door,
            peer,
            request: &request,
            snapshot,
            moment: &self.moment,
            out_of_time: false,
        };
        let bytes = request.bytes;
        match self.answerer.answer(asking, out) {
            Outcome::Answered(_, status) => Dry::Answered { bytes, status },
            Outcome::Token => Dry::Answered { bytes, status: 200 },
            Outcome::Park(_) => Dry::Parked,
            Outcome::Fetch(path) => {
                let target = target_range(buffer, &request).start;
                let (from, to) = (target + path.start, target + path.end);
                let path = buffer.get(from..to).unwrap_or_default();
                let path = std::str::from_utf8(path).unwrap_or_default();
                match &self.fetcher {
                    Some(fetcher) if fetcher.allows(path) => Dry::Fetched { from, to },
                    Some(_) | None => Dry::Withheld,
                }
            }
        }
    }
}
