//! TCP connections: what a socket's changes of state mean, which way it went, and who is at the other end.
//!
//! Must never name an owner or a peer that was not seen: an end that two containers could be is nobody's. Time is an
//! argument; tables are bounded. Called by [`crate::pipeline`].

mod endpoints;
mod existing;

use std::collections::HashMap;

use tapio_kernel_abi::{Owner, RESET_RECEIVED, SockTuple, TcpReset, TcpState};
use tapio_schemas::intent::{self, Severity};

use crate::event::Direction;
pub(crate) use endpoints::{Endpoints, Holder, Listening};
pub(crate) use existing::{Existing, listeners};

/// Connections that are kept.
const SOCKETS_MAX: usize = 32_768;
/// A connection whose end was not seen is forgotten when nothing was heard of it for this long.
const QUIET_NANOS_MAX: u64 = 3_600_000_000_000;

// `include/net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

// `errno.h`, the same on all architectures that matter here.
const EPIPE: u16 = 32;
const ECONNRESET: u16 = 104;
const ETIMEDOUT: u16 = 110;
const ECONNREFUSED: u16 = 111;

/// The kernel's names of a connection's states.
pub(crate) const fn state_name(state: u8) -> &'static str {
    match state {
        1 => "established",
        2 => "syn-sent",
        3 => "syn-received",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "closed",
        8 => "close-wait",
        9 => "last-ack",
        10 => "listen",
        11 => "closing",
        12 => "new-syn-received",
        _ => "",
    }
}

/// What a record means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) intent: &'static str,
    pub(crate) severity: Severity,
    pub(crate) direction: Direction,
    /// Both ends, completed from what was known before.
    pub(crate) tuple: SockTuple,
    /// Who uses the socket, as far as that is known.
    pub(crate) owner: Owner,
    pub(crate) errno: u16,
    /// Since when the connection was open, where that was seen.
    pub(crate) opened_nanos: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Socket {
    tuple: SockTuple,
    owner: Owner,
    direction: Direction,
    opened_nanos: Option<u64>,
    last_nanos: u64,
    /// Its end was told already.
    is_told: bool,
}

/// The connections that are known.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    sockets: HashMap<u64, Socket>,
    refused: u64,
}

impl Connections {
    /// What a change of state means; `None` when another record tells it, or has told it.
    pub(crate) fn state(&mut self, record: &TcpState) -> Option<Meaning> {
        let now = record.header.time_nanos;
        match (record.old_state, record.new_state) {
            (_, LISTEN) => {
                self.insert(record.sock_key, record.tuple, record.owner, Direction::In, None, now);
                self.meaning(record, intent::LISTENING, Severity::Info)
            }
            (LISTEN, _) => {
                let meaning = self.meaning(record, intent::LISTENING_ENDED, Severity::Notice);
                self.sockets.remove(&record.sock_key);
                meaning
            }
            (_, ESTABLISHED) => {
                self.insert(record.sock_key, record.tuple, record.owner, Direction::Out, Some(now), now);
                self.meaning(record, intent::CONNECTION_OPENED, Severity::Info)
            }
            (SYN_SENT, CLOSE) => {
                let (intent, severity) = match record.sock_errno {
                    ECONNREFUSED => (intent::CONNECTION_REFUSED, Severity::Error),
                    ETIMEDOUT => (intent::CONNECTION_TIMED_OUT, Severity::Error),
                    // The caller itself gave up, within its own time limit.
                    0 => (intent::CONNECTION_FAILED, Severity::Notice),
                    _ => (intent::CONNECTION_FAILED, Severity::Error),
                };
                let meaning = self.meaning(record, intent, severity);
                self.sockets.remove(&record.sock_key);
                meaning.map(|meaning| Meaning { direction: Direction::Out, ..meaning })
            }
            (_, CLOSE) => self.closed(record),
            // The peer's end of stream; the close tells the rest.
            _ => {
                self.touch(record.sock_key, &record.tuple, &record.owner, now);
                None
            }
        }
    }

    fn closed(&mut self, record: &TcpState) -> Option<Meaning> {
        let is_open = matches!(record.old_state, ESTABLISHED | CLOSE_WAIT);
        let (intent, severity) = match record.sock_errno {
            ECONNRESET | EPIPE if is_open => (intent::CONNECTION_RESET, Severity::Warning),
            ETIMEDOUT => (intent::CONNECTION_TIMED_OUT, Severity::Error),
            _ => (intent::CONNECTION_CLOSED, Severity::Info),
        };
        let meaning = self.meaning(record, intent, severity);
        let is_told = self.sockets.remove(&record.sock_key).is_some_and(|socket| socket.is_told);
        if is_told { None } else { meaning }
    }

    /// What a reset means; `None` when another record tells it, or it only answers what is over.
    pub(crate) fn reset(&mut self, record: &TcpReset) -> Option<Meaning> {
        let now = record.header.time_nanos;
        if record.direction == RESET_RECEIVED {
            if record.state == SYN_SENT {
                // The refusal's own record follows, without the local port.
                self.insert(record.sock_key, record.tuple, record.owner, Direction::Out, None, now);
                return None;
            }
            if !matches!(record.state, ESTABLISHED | CLOSE_WAIT) {
                return None;
            }
            self.touch(record.sock_key, &record.tuple, &record.owner, now);
            let errno = if record.state == CLOSE_WAIT { EPIPE } else { ECONNRESET };
            let meaning = self.of(record.sock_key, &record.tuple, &record.owner, intent::CONNECTION_RESET);
            self.tell(record.sock_key);
            return Some(Meaning { severity: Severity::Warning, errno, ..meaning });
        }
        if record.sock_key == 0 || record.state == LISTEN {
            // Nobody listens, or the listener refuses: the other end's refusal says the same, with its owner.
            return None;
        }
        let meaning = self.of(record.sock_key, &record.tuple, &record.owner, intent::RESET_SENT);
        self.tell(record.sock_key);
        Some(Meaning { severity: Severity::Notice, ..meaning })
    }

    /// Somebody reads or writes on the socket: its owner, and which way it went, where no record told it.
    pub(crate) fn used(
        &mut self,
        sock_key: u64,
        tuple: &SockTuple,
        owner: Owner,
        direction: Direction,
        now: u64,
    ) {
        if let Some(socket) = self.known(sock_key, tuple) {
            socket.owner = owner;
            socket.last_nanos = now;
            if socket.direction == Direction::Unknown {
                socket.direction = direction;
            }
            return;
        }
        self.insert(sock_key, *tuple, owner, direction, None, now);
    }

    /// Whether nothing was heard of this connection yet. Once connections were not kept for want of room, none is new
    /// for certain.
    pub(crate) fn is_new(&self, sock_key: u64, tuple: &SockTuple) -> bool {
        self.refused == 0 && !self.sockets.get(&sock_key).is_some_and(|socket| is_of(socket, tuple))
    }

    /// Forgets connections that nothing was heard of for long.
    pub(crate) fn sweep(&mut self, now_nanos: u64) {
        self.sockets.retain(|_, socket| now_nanos.saturating_sub(socket.last_nanos) < QUIET_NANOS_MAX);
    }

    /// Connections that are known, and those that were not kept for want of room.
    pub(crate) fn sizes(&self) -> (usize, u64) {
        (self.sockets.len(), self.refused)
    }

    fn meaning(&self, record: &TcpState, intent: &'static str, severity: Severity) -> Option<Meaning> {
        let meaning = self.of(record.sock_key, &record.tuple, &record.owner, intent);
        Some(Meaning { severity, errno: record.sock_errno, ..meaning })
    }

    fn of(&self, sock_key: u64, tuple: &SockTuple, owner: &Owner, intent: &'static str) -> Meaning {
        let known = self.sockets.get(&sock_key);
        let mut tuple = *tuple;
        if let Some(known) = known.filter(|_| tuple.local_port == 0) {
            tuple.local_port = known.tuple.local_port;
        }
        let owner =
            if owner.is_known() { *owner } else { known.map_or_else(Owner::default, |known| known.owner) };
        Meaning {
            intent,
            severity: Severity::Info,
            direction: known.map_or(Direction::Unknown, |known| known.direction),
            tuple,
            owner,
            errno: 0,
            opened_nanos: known.and_then(|known| known.opened_nanos),
        }
    }

    fn touch(&mut self, sock_key: u64, tuple: &SockTuple, owner: &Owner, now: u64) {
        if let Some(socket) = self.known(sock_key, tuple) {
            socket.last_nanos = now;
            if owner.is_known() {
                socket.owner = *owner;
            }
            return;
        }
        self.insert(sock_key, *tuple, *owner, Direction::Unknown, None, now);
    }

    /// What is known of this connection: not of one that the kernel kept at the same place before.
    fn known(&mut self, sock_key: u64, tuple: &SockTuple) -> Option<&mut Socket> {
        self.sockets.get_mut(&sock_key).filter(|socket| is_of(socket, tuple))
    }

    fn tell(&mut self, sock_key: u64) {
        if let Some(socket) = self.sockets.get_mut(&sock_key) {
            socket.is_told = true;
        }
    }

    fn insert(
        &mut self,
        sock_key: u64,
        tuple: SockTuple,
        owner: Owner,
        direction: Direction,
        opened_nanos: Option<u64>,
        now: u64,
    ) {
        if self.sockets.len() >= SOCKETS_MAX && !self.sockets.contains_key(&sock_key) {
            self.refused += 1;
            return;
        }
        let socket = Socket { tuple, owner, direction, opened_nanos, last_nanos: now, is_told: false };
        self.sockets.insert(sock_key, socket);
    }
}

/// Whether a connection with these ends is the one that is kept.
fn is_of(socket: &Socket, tuple: &SockTuple) -> bool {
    let remote = |tuple: &SockTuple| (tuple.remote_address, tuple.remote_port);
    remote(&socket.tuple) == remote(tuple)
}

#[cfg(test)]
mod tests;
