//! HTTP/1 exchanges: which request got which answer, on which socket, in which trace; and which got none, and why.
//!
//! A socket's role follows from what it was seen to do: a request that was read makes it a server, one that was
//! written a client. An exchange is complete when the answer goes the other way. What does not fit together (two
//! requests before an answer, an answer without a request) is counted and left out: nothing is made up. Time is an
//! argument; every table is bounded. Called by [`crate::pipeline`] for payload records and ends of sockets.

mod routes;
mod threads;

use std::{collections::HashMap, sync::Arc};

use tapio_kernel_abi::{DIRECTION_READ, PayloadHead, SockTuple};
use tapio_protocols::{
    http1::{self, Head, Request, Response},
    trace_context::TraceParent,
};
use tapio_schemas::intent::LinkKind;

use crate::event::{Direction, ProcessPart, TraceLink};
use routes::Routes;
pub(crate) use threads::Candidates;
use threads::Threads;

/// Sockets with a conversation that are kept.
const SOCKETS_MAX: usize = 16_384;
/// A request without an answer is given up after this.
pub(crate) const OPEN_NANOS_MAX: u64 = 300_000_000_000;
/// A socket on which nothing happens is forgotten after this.
const QUIET_NANOS_MAX: u64 = 600_000_000_000;
/// An answer that lies in the socket's queue can be read after the socket's end: so long is waited for it.
const END_GRACE_NANOS: u64 = 100_000_000;
/// How long the end of a socket is remembered, for a write whose record comes after it: the peer's reset is handled
/// within the system call that is recorded when it returns.
const END_KEPT_NANOS: u64 = 1_000_000_000;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The status came.
    Status(u16),
    /// The peer, or the network, ended the connection first.
    None,
    /// The process that served or made it ended first.
    Ended {
        /// By itself and with code 0: it may have had all that it wanted.
        in_order: bool,
    },
    /// The connection ended, and who ended it says nothing of the answer: this end did, which may have read an answer
    /// in pieces that are too small to be seen; or it was served here, and its caller went away.
    Dropped,
}

/// A request and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// Whether it was served here or called from here.
    pub(crate) direction: Direction,
    pub(crate) started_nanos: u64,
    pub(crate) ended_nanos: u64,
    pub(crate) method: Arc<str>,
    pub(crate) route: Arc<str>,
    /// The target as it was sent, where the route does not say it.
    pub(crate) target: Option<Arc<str>>,
    pub(crate) answer: Answer,
    pub(crate) trace: Option<TraceLink>,
    /// The request's head was longer than what is captured, and named no trace as far as it was seen.
    pub(crate) is_head_cut: bool,
    pub(crate) tuple: SockTuple,
    pub(crate) process: ProcessPart,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    /// Records that it was made of.
    pub(crate) records: u32,
}

/// Records that became no exchange, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestCounts {
    /// The bytes were no HTTP/1 message after all, or its first line did not fit.
    pub(crate) not_http: u64,
    /// An answer whose request was not seen: the agent came in the middle, or a record was lost.
    pub(crate) answer_alone: u64,
    /// Several requests before an answer: which answer is whose cannot be told.
    pub(crate) pipelined: u64,
    /// A request that waited too long.
    pub(crate) expired: u64,
    /// A request that was open when the agent ended.
    pub(crate) agent_ended: u64,
    /// No room to keep it.
    pub(crate) table_full: u64,
    /// Interim answers (status below 200).
    pub(crate) interim: u64,
}

impl RequestCounts {
    /// Reason and count of each, for the ledger: what was not wanted, and then what was lost.
    pub(crate) const fn filtered(&self) -> [(&'static str, u64); 2] {
        [("not-http", self.not_http), ("interim-answer", self.interim)]
    }

    pub(crate) const fn lost(&self) -> [(&'static str, u64); 5] {
        [
            ("answer-without-request", self.answer_alone),
            ("pipelined", self.pipelined),
            ("expired", self.expired),
            ("agent-ended", self.agent_ended),
            ("table-full", self.table_full),
        ]
    }
}

#[derive(Debug)]
struct Open {
    exchange: Exchange,
    thread: u32,
}

#[derive(Debug)]
struct Socket {
    tuple: SockTuple,
    open: Option<Open>,
    /// Requests without an answer since the conversation could not be followed any more.
    untold: u32,
    ended_nanos: Option<u64>,
    /// The peer ended it, or the network did.
    is_peers_end: bool,
    last_nanos: u64,
}

impl Socket {
    const fn new(tuple: SockTuple, now_nanos: u64) -> Self {
        Self { tuple, open: None, untold: 0, ended_nanos: None, is_peers_end: false, last_nanos: now_nanos }
    }
}

/// How a socket came to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketEnd {
    /// By a reset, whose record may come before that of the write that it answers.
    pub(crate) is_reset: bool,
    /// The peer ended it first, or the network did; otherwise this end.
    pub(crate) is_peers: bool,
}

/// The conversations that are under way.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    sockets: HashMap<u64, Socket>,
    /// Sockets that have ended and have an open request or are remembered for a late record.
    ended: Vec<u64>,
    threads: Threads,
    routes: Routes,
    counts: RequestCounts,
    heads_cut: u64,
    swept_nanos: u64,
}

impl Requests {
    /// A message began on a socket.
    pub(crate) fn payload(&mut self, record: &PayloadHead, bytes: &[u8], out: &mut Vec<Exchange>) {
        let Some(head) = http1::parse(bytes) else {
            self.counts.not_http += 1;
            return;
        };
        self.settle_reuse(record, out);
        match head {
            Head::Request(request) => self.request(record, &request),
            Head::Response(response) => self.response(record, response, out),
        }
    }

    fn request(&mut self, record: &PayloadHead, request: &Request<'_>) {
        let is_read = record.direction == DIRECTION_READ;
        let header = &record.header;
        let is_head_cut = !request.is_complete && request.trace.is_none();
        self.heads_cut += u64::from(is_head_cut);
        let exchange = Exchange {
            direction: if is_read { Direction::In } else { Direction::Out },
            started_nanos: header.time_nanos,
            ended_nanos: header.time_nanos,
            method: self.routes.method(request.method),
            route: self.routes.route(header.cgroup_id, request.target),
            target: None,
            answer: Answer::None,
            trace: self.link(request.trace, is_read, header.tgid, header.start_nanos, header.tid),
            is_head_cut,
            tuple: record.tuple,
            process: ProcessPart::of_header(header),
            request_bytes: u64::from(record.total_bytes),
            response_bytes: 0,
            records: 1,
        };
        let target = (&*exchange.route != request.target).then(|| Arc::from(request.target));
        let open = Open { exchange: Exchange { target, ..exchange }, thread: header.tid };
        if self.sockets.len() >= SOCKETS_MAX && !self.sockets.contains_key(&record.sock_key) {
            self.counts.table_full += 1;
            return;
        }
        let socket = self.sockets.entry(record.sock_key).or_insert_with(|| Socket::new(record.tuple, 0));
        socket.last_nanos = header.time_nanos;
        if socket.untold > 0 || socket.open.is_some() {
            // Two requests wait: from here on, answers cannot be told apart until all are there.
            socket.untold += 1 + u32::from(socket.open.is_some());
            self.counts.pipelined += 1 + u64::from(socket.open.is_some());
            if socket.open.take().is_some_and(|open| open.exchange.direction == Direction::In) {
                self.threads.closed(record.sock_key);
            }
            return;
        }
        if is_read {
            let trace = request.trace;
            self.threads.opened(record.sock_key, header.tgid, header.start_nanos, header.tid, trace);
        }
        socket.open = Some(open);
    }

    fn link(
        &self,
        seen: Option<TraceParent>,
        is_read: bool,
        tgid: u32,
        start: u64,
        tid: u32,
    ) -> Option<TraceLink> {
        match (seen, is_read) {
            (Some(parent), true) => Some(TraceLink::served(parent)),
            (Some(parent), false) => Some(TraceLink::called(parent)),
            (None, true) => None,
            (None, false) => self.candidates(tgid, start, tid).link(),
        }
    }

    fn response(&mut self, record: &PayloadHead, response: Response, out: &mut Vec<Exchange>) {
        if response.is_interim() {
            self.counts.interim += 1;
            return;
        }
        let answered = if record.direction == DIRECTION_READ { Direction::Out } else { Direction::In };
        let Some(socket) = self.sockets.get_mut(&record.sock_key) else {
            self.counts.answer_alone += 1;
            return;
        };
        socket.last_nanos = record.header.time_nanos;
        if socket.untold > 0 {
            socket.untold -= 1;
            self.counts.pipelined += 1;
            return;
        }
        let Some(open) = socket.open.take_if(|open| open.exchange.direction == answered) else {
            self.counts.answer_alone += 1;
            return;
        };
        if answered == Direction::In {
            self.threads.answered(record.sock_key, open.thread, record.header.tid);
        }
        let mut exchange = open.exchange;
        exchange.ended_nanos = record.header.time_nanos.max(exchange.started_nanos);
        exchange.answer = Answer::Status(response.status);
        exchange.response_bytes = u64::from(record.total_bytes);
        exchange.records += 1;
        out.push(exchange);
    }

    /// The kernel uses a socket's memory again: what the key meant before is over.
    fn settle_reuse(&mut self, record: &PayloadHead, out: &mut Vec<Exchange>) {
        let is_other =
            self.sockets.get(&record.sock_key).is_some_and(|known| !is_same(&known.tuple, &record.tuple));
        if is_other {
            self.forget(record.sock_key, record.header.time_nanos, out);
        }
    }

    /// The socket is over: closed, or reset by its peer.
    pub(crate) fn socket_ended(&mut self, sock_key: u64, tuple: &SockTuple, end: SocketEnd, now_nanos: u64) {
        if !self.sockets.contains_key(&sock_key) {
            if !end.is_reset || self.sockets.len() >= SOCKETS_MAX {
                return;
            }
            // Remembered for the record of a write that is still to come.
            self.sockets.insert(sock_key, Socket::new(*tuple, now_nanos));
        }
        let Some(socket) = self.sockets.get_mut(&sock_key) else { return };
        socket.is_peers_end |= end.is_peers;
        if socket.ended_nanos.is_none() {
            socket.ended_nanos = Some(now_nanos);
            self.ended.push(sock_key);
        }
    }

    /// Whether something is known of this connection.
    pub(crate) fn knows(&self, sock_key: u64, tuple: &SockTuple) -> bool {
        self.sockets.get(&sock_key).is_some_and(|known| is_same(&known.tuple, tuple))
    }

    /// Whether this connection's end is remembered: what is still heard of it comes after it.
    pub(crate) fn has_ended(&self, sock_key: u64, tuple: &SockTuple) -> bool {
        let known = self.sockets.get(&sock_key).filter(|known| is_same(&known.tuple, tuple));
        known.is_some_and(|known| known.ended_nanos.is_some())
    }

    /// The earliest end of a connection whose open request is not told yet, because its answer may still come.
    pub(crate) fn untold_since(&self) -> Option<u64> {
        let sockets = self.ended.iter().filter_map(|key| self.sockets.get(key));
        sockets.filter(|socket| socket.open.is_some()).filter_map(|socket| socket.ended_nanos).min()
    }

    /// A new connection uses the key: an end that is remembered for it is not its own.
    pub(crate) fn socket_began(&mut self, sock_key: u64, now_nanos: u64, out: &mut Vec<Exchange>) {
        if self.sockets.contains_key(&sock_key) {
            self.forget(sock_key, now_nanos, out);
        }
    }

    /// The trace of the call that waits on a socket.
    pub(crate) fn trace_of_call(&self, sock_key: u64) -> Option<TraceLink> {
        let open = self.sockets.get(&sock_key)?.open.as_ref()?;
        (open.exchange.direction == Direction::Out).then_some(open.exchange.trace)?
    }

    /// Which way a connection went, as far as the request that is open on it tells.
    pub(crate) fn direction(&self, sock_key: u64) -> Direction {
        let open = self.sockets.get(&sock_key).and_then(|socket| socket.open.as_ref());
        open.map_or(Direction::Unknown, |open| open.exchange.direction)
    }

    /// Which requests a thread may be working on.
    pub(crate) fn candidates(&self, tgid: u32, start_nanos: u64, tid: u32) -> Candidates {
        self.threads.candidates(tgid, start_nanos, tid)
    }

    /// A process ended: the requests that it served, and the calls that it made, get no answer. Its sockets are closed
    /// after this, so that nobody else is blamed for them.
    pub(crate) fn process_ended(
        &mut self,
        tgid: u32,
        start_nanos: u64,
        in_order: bool,
        now_nanos: u64,
        out: &mut Vec<Exchange>,
    ) {
        self.threads.process_ended(tgid, start_nanos);
        let is_its = |open: &mut Open| {
            let process = &open.exchange.process;
            (process.pid, process.start_nanos) == (tgid, start_nanos)
        };
        let open = self.sockets.values_mut().filter_map(|socket| socket.open.take_if(is_its));
        let mut ended: Vec<Exchange> = open
            .map(|Open { exchange, .. }| Exchange {
                ended_nanos: now_nanos.max(exchange.started_nanos),
                answer: Answer::Ended { in_order },
                ..exchange
            })
            .collect();
        ended.sort_by_key(|exchange| exchange.started_nanos);
        out.append(&mut ended);
    }

    /// Settles what waited for a late record, and forgets what is quiet.
    pub(crate) fn tick(&mut self, now_nanos: u64, out: &mut Vec<Exchange>) {
        let mut settled = Vec::new();
        self.ended.retain(|key| {
            let Some(socket) = self.sockets.get(key) else { return false };
            let Some(at) = socket.ended_nanos else { return false };
            let grace = if socket.open.is_some() { END_GRACE_NANOS } else { END_KEPT_NANOS };
            let since = at.max(socket.last_nanos);
            let is_over = now_nanos.saturating_sub(since) >= grace;
            if is_over {
                settled.push(*key);
            }
            !is_over
        });
        for key in settled {
            self.forget(key, now_nanos, out);
        }
        if now_nanos.saturating_sub(self.swept_nanos) >= 1_000_000_000 {
            self.swept_nanos = now_nanos;
            self.sweep(now_nanos);
        }
    }

    fn sweep(&mut self, now_nanos: u64) {
        let Self { sockets, threads, counts, .. } = self;
        sockets.retain(|key, socket| {
            let quiet = now_nanos.saturating_sub(socket.last_nanos);
            if quiet >= OPEN_NANOS_MAX
                && let Some(open) = socket.open.take()
            {
                counts.expired += u64::from(open.exchange.records);
                threads.closed(*key);
            }
            quiet < QUIET_NANOS_MAX
        });
    }

    fn forget(&mut self, sock_key: u64, now_nanos: u64, out: &mut Vec<Exchange>) {
        let Some(socket) = self.sockets.remove(&sock_key) else { return };
        let Some(open) = socket.open else { return };
        self.threads.closed(sock_key);
        let mut exchange = open.exchange;
        let ended = socket.ended_nanos.unwrap_or(now_nanos);
        exchange.ended_nanos = ended.max(exchange.started_nanos);
        let is_unanswered = exchange.direction == Direction::Out && socket.is_peers_end;
        exchange.answer = if is_unanswered { Answer::None } else { Answer::Dropped };
        out.push(exchange);
    }

    /// The agent ends: what has ended is told, what is open is counted.
    pub(crate) fn finish(&mut self, now_nanos: u64, out: &mut Vec<Exchange>) {
        for key in std::mem::take(&mut self.ended) {
            // The kernel may use the place again, for a connection that is open.
            if self.sockets.get(&key).is_some_and(|socket| socket.ended_nanos.is_some()) {
                self.forget(key, now_nanos, out);
            }
        }
        let open = self.sockets.drain().filter_map(|(_, socket)| socket.open);
        self.counts.agent_ended += open.map(|open| u64::from(open.exchange.records)).sum::<u64>();
        self.threads = Threads::default();
    }

    /// Heads since the start that were cut before they named a trace.
    pub(crate) const fn heads_cut(&self) -> u64 {
        self.heads_cut
    }

    /// What was counted since the last call.
    pub(crate) fn take_counts(&mut self) -> RequestCounts {
        std::mem::take(&mut self.counts)
    }

    /// Sockets and routes that are kept, for the metrics.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.sockets.len(), self.routes.len())
    }
}

impl Candidates {
    /// What a call without a trace of its own belongs to.
    pub(crate) const fn link(&self) -> Option<TraceLink> {
        match self {
            Self::None | Self::One(None) => None,
            Self::One(Some(parent)) => Some(TraceLink {
                trace_id: parent.trace_id,
                span_id: 0,
                parent_span_id: 0,
                flags: parent.flags,
                link: LinkKind::Observed,
            }),
            Self::Several => Some(TraceLink::UNDECIDED),
        }
    }
}

/// Whether two readings of a socket's ends are of the same connection. A closed socket has given its port back.
fn is_same(one: &SockTuple, other: &SockTuple) -> bool {
    let ports = one.local_port == other.local_port || one.local_port == 0 || other.local_port == 0;
    ports && one.remote_port == other.remote_port && one.remote_address == other.remote_address
}

#[cfg(test)]
mod tests;
