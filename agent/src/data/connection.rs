//! One connection: receives, has requests answered, sends; until someone has had enough.
//!
//! Requests are answered in order. The answers to pipelined ones are gathered and leave in one
//! send. A parked request stays in the receive buffer and is answered from scratch when its pod is
//! known, so that parking has no answer of its own that could differ.
//!
//! `receiving -> answering -> sending -> receiving`, and from answering to parked or fetching and
//! back. Every await is bounded by the watch.

mod receiving;

use std::io::ErrorKind;
use std::ops::Range;
use std::pin::pin;
use std::time::Instant;

use self::receiving::{INPUT_BYTES, input_bytes};
use super::answer::{Door, Outcome, Sought};
use super::descriptor::cut;
use super::hops;
use super::limits::BATCH_BYTES_MAX;
use super::passthrough::Fetched;
use super::peers::Peers;
use super::request::{Method, Parsed, Request, parse, target_range};
use super::seam::Stream;
use super::target::is_token;
use super::turns::Turns;
use super::watch::Waited;
use super::worker::{Seat, asking};
use crate::buffer::{move_to, wipe_first};
use crate::clock::{later, monotonic};
use crate::response::Status;
use crate::tally::{Handler, Limited, add};

/// Turns that a connection may take without waiting. A client that waits for its answer makes its
/// connection wait after each.
const TURNS_MAX: u32 = 4;

/// Serves one connection to its end.
pub(super) async fn serve(mut stream: Stream, seat: Seat, door: Door, now: Instant) {
    let mut connection = Connection {
        stream: &mut stream,
        new: true,
        seat,
        door,
        input: Vec::with_capacity(input_bytes(door)),
        start: 0,
        used: 0,
        output: Vec::new(),
        began: now,
        touched: now,
        done: Done::default(),
        stays_near: false,
    };
    // Why it ended has been counted where it happened, and there is nobody left to tell.
    let _ended: Result<(), Ended> = connection.run().await;
    drop(connection);
    stream.close();
}

/// The connection is over.
struct Ended;

struct Connection<'a> {
    stream: &'a mut Stream,
    /// Nothing has been received yet.
    new: bool,
    seat: Seat,
    door: Door,
    /// Received and, from `start` on, not yet answered.
    input: Vec<u8>,
    start: usize,
    /// Bytes of the input's memory that have ever held something.
    used: usize,
    /// Answered and not yet sent.
    output: Vec<u8>,
    /// When the first byte of the present request arrived.
    began: Instant,
    /// When something last happened.
    touched: Instant,
    /// What has been done about the present request.
    done: Done,
    /// Nothing that is sent travels further than a token may.
    stays_near: bool,
}

/// What has been done about a request that is not answered yet.
#[derive(Default)]
struct Done {
    /// It has been counted against the peer's rate.
    counted: bool,
    /// It has been told to go on.
    continued: bool,
    /// It has been parked long enough.
    out_of_time: bool,
}

/// What to do next.
enum Step {
    /// Everything whole has been answered.
    Receive,
    /// The client waits for a 100.
    Continue,
    /// Enough has been gathered.
    Send,
    /// An answer with a token, whose packets have a hop limit.
    SendToken {
        close: bool,
    },
    Park(Sought, usize),
    Fetch(Range<usize>, Shape),
    /// The last answer has been gathered.
    Close,
    /// The same, with something left to receive.
    Linger,
}

/// What remains to be known of a request once its bytes may move.
#[derive(Clone, Copy)]
struct Shape {
    bytes: usize,
    close: bool,
    head_only: bool,
}

impl Connection<'_> {
    async fn run(&mut self) -> Result<(), Ended> {
        let mut turns = Turns::new(TURNS_MAX);
        loop {
            turns.take(pin!(self.turn())).await?;
            let worker = &self.seat.worker;
            if Peers::is_over(&self.seat.peer) {
                self.rest().await;
            } else if turns.are_up() {
                worker.let_others().await;
            }
        }
    }

    /// Answers what has arrived, and waits for more.
    async fn turn(&mut self) -> Result<(), Ended> {
        match self.step() {
            Step::Receive => {
                self.send().await?;
                self.receive().await
            }
            Step::Continue => {
                self.output
                    .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                self.send().await?;
                self.receive().await
            }
            Step::Send => self.send().await,
            Step::SendToken { close } => {
                self.send_token().await?;
                if close { Err(Ended) } else { Ok(()) }
            }
            // What is rare has a place of its own on the heap: every connection would carry it.
            Step::Park(sought, bytes) => {
                self.send().await?;
                Box::pin(self.park(sought, bytes)).await
            }
            Step::Fetch(target, shape) => {
                self.send().await?;
                Box::pin(self.fetch(target, shape)).await
            }
            Step::Close => {
                self.send().await?;
                Err(Ended)
            }
            Step::Linger => {
                self.send().await?;
                Box::pin(self.linger()).await
            }
        }
    }

    /// Takes nothing more in until the peer's rate allows it: what it sends meanwhile fills its own
    /// socket. Were each request refused instead, refusing would take the processor from others.
    async fn rest(&mut self) {
        let worker = &self.seat.worker;
        let began = monotonic();
        while !worker.is_draining() && !worker.peers.may_go_on(&self.seat.peer, monotonic()) {
            worker.next_sweep().await;
        }
        // That time was ours; what the request took before was not.
        self.touched = monotonic();
        let rested = self.touched.saturating_duration_since(began);
        self.began = later(self.began, rested);
    }

    /// Answers what has arrived, until something has to be waited for.
    fn step(&mut self) -> Step {
        loop {
            let buffer = self.input.get(self.start..).unwrap_or_default();
            if buffer.is_empty() {
                return Step::Receive;
            }
            if self.output.capacity() == 0 {
                self.output = self.seat.worker.buffer();
            }
            let mut request = match parse(buffer) {
                Parsed::Whole(request) => request,
                Parsed::Partial => return Step::Receive,
                Parsed::Bodyless { expects } => {
                    if expects && !std::mem::replace(&mut self.done.continued, true) {
                        return Step::Continue;
                    }
                    return Step::Receive;
                }
                Parsed::Refused(status) => return self.refuse(status),
            };
            let worker = &self.seat.worker;
            request.close |= worker.is_draining();
            let within_rate = self.done.counted || self.may_ask(&request);
            self.done.counted = true;
            let (door, peer, out_of_time) = (self.door, self.seat.peer.ip, self.done.out_of_time);
            let outcome = worker.look(|snapshot, moment| {
                let asking = asking(door, peer, &request, snapshot, moment, out_of_time);
                if within_rate {
                    worker.answerer.answer(asking, &mut self.output)
                } else {
                    worker.tally.limited(Limited::PeerRequests);
                    worker.answerer.slow_down(asking, &mut self.output)
                }
            });
            let (handler, status) = match outcome {
                Outcome::Answered(handler, status) => (handler, status),
                Outcome::Token => (Handler::Token, 200),
                Outcome::Park(sought) => return Step::Park(sought, request.bytes),
                Outcome::Fetch(path) => {
                    let target = target_range(&self.input, &request).start;
                    let shape = Shape {
                        bytes: request.bytes,
                        close: request.close,
                        head_only: request.method == Method::Head,
                    };
                    return Step::Fetch(target + path.start..target + path.end, shape);
                }
            };
            tracing::debug!(
                %peer,
                method = ?request.method,
                target = request.target,
                status,
                handler = handler.as_str(),
                "answered"
            );
            let (bytes, close) = (request.bytes, request.close);
            self.answered(handler, status, bytes);
            if self.seat.worker.token_hop_limit.is_some() && handler == Handler::Token {
                return Step::SendToken { close };
            }
            if close {
                // What came after the last request is not read; see `linger`.
                let is_all = self.start >= self.input.len();
                return if is_all { Step::Close } else { Step::Linger };
            }
            if self.output.len() >= BATCH_BYTES_MAX {
                return Step::Send;
            }
        }
    }

    /// Whether the peer's rate allows the present request. A PUT for a token is never refused: that
    /// sends some SDKs back to IMDSv1 for good. Too many of them are taken in more slowly.
    fn may_ask(&self, request: &Request<'_>) -> bool {
        let for_token = self.door == Door::Metadata
            && request.method == Method::Put
            && is_token(request.target);
        let (peers, peer) = (&self.seat.worker.peers, &self.seat.peer);
        if for_token {
            peers.asks_for_token(peer, self.began);
        }
        for_token || peers.may_ask(peer, self.began)
    }

    /// The present request is done; the next one begins.
    fn answered(&mut self, handler: Handler, status: u16, bytes: usize) {
        let now = monotonic();
        let took = now.saturating_duration_since(self.began);
        self.seat.worker.tally.answered(handler, status, took);
        self.start += bytes;
        self.began = now;
        self.touched = now;
        self.done = Done::default();
    }

    fn refuse(&mut self, status: Status) -> Step {
        let worker = &self.seat.worker;
        let outcome =
            worker.look(|_, moment| worker.answerer.refuse(status, moment, &mut self.output));
        if let Outcome::Answered(handler, status) = outcome {
            self.answered(handler, status, 0);
        }
        Step::Linger
    }

    /// Sends what has been gathered.
    async fn send(&mut self) -> Result<(), Ended> {
        if self.output.is_empty() {
            if self.output.capacity() > 0 {
                self.seat.worker.give_back(std::mem::take(&mut self.output));
            }
            return Ok(());
        }
        let mut sent = match self.stream.send_now(&self.output) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_gone) => return Err(Ended),
        };
        let limits = &self.seat.worker.limits;
        self.seat
            .watch
            .until(later(self.touched, limits.write_timeout));
        while sent < self.output.len() {
            let buffer = std::mem::take(&mut self.output);
            let number = self.stream.number();
            let sending = self.stream.send(buffer, sent);
            let attempt = self.seat.watch.within_or_cut(sending, || cut(number));
            let (result, buffer) = match attempt.await {
                Ok(sent) => sent,
                Err(late) => {
                    // To be wiped.
                    self.output = late.map(|(_, buffer)| buffer).unwrap_or_default();
                    self.seat.worker.tally.limited(Limited::WriteTimeout);
                    return Err(Ended);
                }
            };
            self.output = buffer;
            match result {
                Ok(bytes) if bytes > 0 => sent += bytes,
                Ok(_) | Err(_) => return Err(Ended),
            }
        }
        let worker = &self.seat.worker;
        worker.give_back(std::mem::take(&mut self.output));
        // The one reading of the clock that this costs is 25 ns, once for all pipelined answers.
        let composed = std::mem::replace(&mut self.touched, monotonic());
        let took = self.touched.saturating_duration_since(composed);
        worker.tally.sending.record(took);
        Ok(())
    }

    /// Sends what has been gathered in packets that do not travel far. So does all that follows on
    /// this connection: the kernel sends a lost packet again with the limit of that moment.
    async fn send_token(&mut self) -> Result<(), Ended> {
        if let Some(limit) = self.seat.worker.token_hop_limit
            && !self.stays_near
        {
            hops::limit(self.stream.number(), limit).map_err(|error| {
                tracing::warn!(%error, "cannot set the hop limit of a token; the connection is closed");
                Ended
            })?;
            self.stays_near = true;
        }
        self.send().await
    }

    /// Waits until the pod can be answered, the time is up, or the client has gone.
    async fn park(&mut self, sought: Sought, request_bytes: usize) -> Result<(), Ended> {
        let timeout = self.seat.worker.limits.park_timeout;
        let Some(_place) = self.seat.park(&sought, later(self.began, timeout)) else {
            // Too many wait: answered as if it had.
            self.done.out_of_time = true;
            return Ok(());
        };
        let parked_at = monotonic();
        let outcome = loop {
            let waited = if self.input.len() < self.start + request_bytes + INPUT_BYTES {
                self.seat.watch.found_or(self.stream.readable()).await
            } else {
                // Enough of the next requests has been taken in; a client that goes away now is
                // noticed when it is answered.
                self.seat.watch.found_or(std::future::pending()).await
            };
            match waited {
                Waited::Found => break Ok(()),
                Waited::Overdue => {
                    self.done.out_of_time = true;
                    add(&self.seat.worker.tally.parked_timed_out);
                    break Ok(());
                }
                // It cannot be waited for, so nobody would notice that time is up.
                Waited::Other(Err(_)) => break Err(Ended),
                Waited::Other(Ok(())) => {
                    if self.input.len() == self.input.capacity() {
                        let room = self.input.len() + INPUT_BYTES;
                        move_to(&mut self.input, room);
                    }
                    let (result, buffer) =
                        self.stream.receive(std::mem::take(&mut self.input)).await;
                    self.used = self.used.max(buffer.len());
                    self.input = buffer;
                    if !result.is_ok_and(|bytes| bytes > 0) {
                        add(&self.seat.worker.tally.parked_gone);
                        break Err(Ended);
                    }
                }
            }
        };
        self.touched = monotonic();
        self.seat
            .worker
            .tally
            .parked_for
            .record(self.touched.saturating_duration_since(parked_at));
        outcome
    }

    /// Has the real metadata service answer, if it may.
    async fn fetch(&mut self, path: Range<usize>, shape: Shape) -> Result<(), Ended> {
        let worker = std::rc::Rc::clone(&self.seat.worker);
        let path = self.input.get(path).unwrap_or_default();
        let path = std::str::from_utf8(path).unwrap_or_default();
        let fetched = match &worker.fetcher {
            Some(fetcher) if fetcher.allows(path) => {
                let watch = &self.seat.watch;
                let (date, close) = (worker.look(|_, moment| moment.date), shape.close);
                fetcher
                    .fetch(watch, self.stream, path, (close, shape.head_only), &date)
                    .await
            }
            Some(_) | None => {
                add(&worker.tally.proxy_blocked);
                Fetched::Instead(Status::NotFound)
            }
        };
        let (status, close) = match fetched {
            Fetched::Passed { status, close } => (status, close),
            Fetched::Broken => return Err(Ended),
            Fetched::Instead(status) => {
                let response = worker.answerer.fixed.refusal(status);
                self.output = worker.buffer();
                worker.look(|_, moment| {
                    let manner = crate::response::Manner {
                        date: &moment.date,
                        close: shape.close,
                        head_only: shape.head_only,
                    };
                    response.copy_to(&mut self.output, manner);
                });
                (response.status(), shape.close)
            }
        };
        self.answered(Handler::Proxy, status, shape.bytes);
        if close {
            self.send().await?;
            return Err(Ended);
        }
        Ok(())
    }
}

/// Tokens have been received and credentials gathered. Also after a panic.
impl Drop for Connection<'_> {
    fn drop(&mut self) {
        wipe_first(&mut self.input, self.used);
        if self.output.capacity() > 0 {
            self.seat.worker.give_back(std::mem::take(&mut self.output));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every idle connection costs beside its receive buffer and its socket.
    const FUTURE_BYTES_MAX: usize = 1280;

    fn future_bytes<F: Future>(_serve: impl Fn(Stream, Seat, Door, Instant) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        let bytes = future_bytes(serve);
        assert!(bytes <= FUTURE_BYTES_MAX, "{bytes} bytes");
        assert!(
            bytes + INPUT_BYTES <= 4096,
            "design: 4 KiB for an idle connection"
        );
    }
}
