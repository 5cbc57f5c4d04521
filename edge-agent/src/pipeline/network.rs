//! Records of sockets: connections, resets, requests.

use tapio_kernel_abi::{
    DIRECTION_WRITE, Owner, PayloadHead, ProbeId, RESET_RECEIVED, TcpReset, TcpRetransmit, TcpState,
};
use tapio_schemas::{
    intent::{self, EventKind, Severity},
    ledger::Fate,
};

use super::Pipeline;
use crate::{
    attribute::{Host, Place},
    config::Scope,
    connections::{Listening, Meaning, state_name},
    event::{Direction, Event, NetworkPart, ProcessPart, TraceLink},
    requests::{Answer, Exchange, OPEN_NANOS_MAX, SocketEnd},
};

const LISTEN: u8 = 10;
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const SYN_SENT: u8 = 2;
const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// Whether an answer of HTTP/1 is one that another follows (RFC 9110, section 15.2).
fn is_interim(bytes: &[u8]) -> bool {
    bytes.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2)) == Some(&b'1')
}

impl<H: Host> Pipeline<H> {
    pub(super) fn tcp_state(&mut self, record: &TcpState) {
        let now = record.header.time_nanos;
        if record.new_state == ESTABLISHED || record.new_state == LISTEN {
            self.requests.socket_began(record.sock_key, now, &mut self.exchanges);
        }
        // Asked before the end is told: afterwards the call is no longer the socket's.
        let call = self.requests.trace_of_call(record.sock_key);
        if record.new_state == CLOSE && record.old_state != LISTEN {
            let is_failed = record.sock_errno != 0;
            // Where this end has said that it is done, whatever came then says nothing of what it waited for.
            let is_done = matches!(record.old_state, FIN_WAIT_1 | FIN_WAIT_2 | CLOSING);
            let end = SocketEnd {
                is_reset: is_failed && record.old_state != SYN_SENT,
                is_peers: is_failed && !is_done || matches!(record.old_state, CLOSE_WAIT | LAST_ACK),
            };
            self.requests.socket_ended(record.sock_key, &record.tuple, end, now);
        }
        let meaning = self.connections.state(record);
        let owner = meaning.map_or(record.owner, |meaning| meaning.owner);
        let place = self.owner_place(&owner, now);
        let container = place.as_ref().and_then(Place::container).cloned();
        match (record.old_state, record.new_state) {
            (_, LISTEN) => {
                let (comm, since_nanos) = (record.header.comm, now);
                let user = Listening { container, owner, comm, since_nanos };
                self.endpoints.listening(record.sock_key, &record.tuple, user);
            }
            (LISTEN, _) => self.endpoints.listening_ended(record.sock_key, &record.tuple, now),
            (_, ESTABLISHED) if place.is_some() => {
                self.endpoints.connected(record.sock_key, &record.tuple, container, now);
            }
            _ => {}
        }
        match meaning {
            None => self.merged(ProbeId::TcpState),
            Some(meaning) => {
                let trace = self.trace_of(&meaning, call);
                let states = (state_name(record.old_state), state_name(record.new_state));
                self.connection(ProbeId::TcpState, now, &meaning, place, trace, states);
            }
        }
        if record.new_state == CLOSE {
            self.endpoints.disconnected(record.sock_key);
        }
        self.tell_exchanges(now);
    }

    /// The trace that the end of a connection belongs to: of an attempt, the request that its thread works on; of an
    /// open connection, the call that waits on it. A connection at rest in a pool belongs to nobody.
    fn trace_of(&self, meaning: &Meaning, call: Option<TraceLink>) -> Option<TraceLink> {
        match meaning.intent {
            intent::CONNECTION_REFUSED | intent::CONNECTION_TIMED_OUT | intent::CONNECTION_FAILED
                if meaning.opened_nanos.is_none() =>
            {
                let Owner { tgid, tid, start_nanos, .. } = meaning.owner;
                meaning.owner.is_known().then(|| self.requests.candidates(tgid, start_nanos, tid).link())?
            }
            intent::CONNECTION_RESET | intent::CONNECTION_TIMED_OUT => call,
            _ => None,
        }
    }

    pub(super) fn tcp_reset(&mut self, record: &TcpReset) {
        let now = record.header.time_nanos;
        let probe = if record.direction == RESET_RECEIVED {
            ProbeId::TcpResetReceived
        } else {
            ProbeId::TcpResetSent
        };
        let call = self.requests.trace_of_call(record.sock_key);
        let is_open = matches!(record.state, ESTABLISHED | CLOSE_WAIT);
        if record.sock_key != 0 && record.direction == RESET_RECEIVED && is_open {
            let end = SocketEnd { is_reset: true, is_peers: true };
            self.requests.socket_ended(record.sock_key, &record.tuple, end, now);
        }
        match self.connections.reset(record) {
            None => self.merged(probe),
            Some(meaning) => {
                let place = self.owner_place(&meaning.owner, now);
                let trace = self.trace_of(&meaning, call);
                self.connection(probe, now, &meaning, place, trace, (state_name(record.state), ""));
            }
        }
        self.tell_exchanges(now);
    }

    pub(super) fn tcp_retransmit(&mut self, record: &TcpRetransmit) {
        let now = record.header.time_nanos;
        let place = self.owner_place(&record.owner, now);
        let meaning = Meaning {
            intent: intent::RETRANSMISSION,
            severity: Severity::Info,
            direction: Direction::Unknown,
            tuple: record.tuple,
            owner: record.owner,
            errno: 0,
            opened_nanos: None,
        };
        self.connection(ProbeId::TcpRetransmit, now, &meaning, place, None, (state_name(record.state), ""));
    }

    fn connection(
        &mut self,
        probe: ProbeId,
        now: u64,
        meaning: &Meaning,
        place: Option<Place>,
        trace: Option<TraceLink>,
        (old_state, new_state): (&'static str, &'static str),
    ) {
        let peer = self.endpoints.peer(&meaning.tuple, now);
        let container = match &place {
            Some(place) => place.container().cloned(),
            // An accepted connection that nobody has read from yet is its listener's.
            None => self.endpoints.local(&meaning.tuple, now),
        };
        if container.is_none() && self.scope == Scope::Containers {
            let is_unknown = place == Some(Place::Unknown);
            if !is_unknown && place.is_none() {
                self.without_owner(probe, now);
                return;
            }
            if !is_unknown && peer.is_none() {
                self.filtered(probe, "host");
                return;
            }
        }
        let process = meaning.owner.is_known().then(|| ProcessPart {
            errno: meaning.errno,
            parent_pid: self.processes.saw(
                meaning.owner.tgid,
                meaning.owner.start_nanos,
                meaning.owner.cgroup_id,
            ),
            ..ProcessPart::of_owner(&meaning.owner)
        });
        let began = meaning.opened_nanos.filter(|_| meaning.intent == intent::CONNECTION_CLOSED);
        self.push(Event {
            severity: meaning.severity,
            duration_nanos: began.map_or(0, |began| now.saturating_sub(began)),
            trace,
            container,
            peer,
            process,
            network: Some(NetworkPart {
                tuple: meaning.tuple,
                protocol: "tcp",
                direction: meaning.direction,
                old_state,
                new_state,
                ..NetworkPart::default()
            }),
            ..Event::new(began.unwrap_or(now), meaning.intent, EventKind::Network, probe.name())
        });
    }

    pub(super) fn payload(&mut self, head: &PayloadHead, bytes: &[u8]) {
        let header = &head.header;
        let now = header.time_nanos;
        let place = self.place(header.cgroup_id, header.tgid, now);
        let owner = Owner {
            tgid: header.tgid,
            tid: header.tid,
            cgroup_id: header.cgroup_id,
            start_nanos: header.start_nanos,
        };
        let parsed = self.exchanges.len();
        // A record that comes after the end of its connection must not bring it back.
        let has_ended = self.requests.has_ended(head.sock_key, &head.tuple);
        if !has_ended {
            self.endpoints.connected(head.sock_key, &head.tuple, place.container().cloned(), now);
        }
        if self.is_out_of_scope(&place) && !self.is_call_to_container(head, bytes) {
            // Before the conversation is followed: what is not wanted must not show as lost.
            self.filtered(ProbeId::Payload, "host");
        } else if self.is_of_before(head, bytes) {
            self.filtered(ProbeId::Payload, "request-before-start");
            if is_interim(bytes) {
                // The answer itself follows, and is of before too.
                return;
            }
        } else {
            self.requests.payload(head, bytes, &mut self.exchanges);
        }
        if !has_ended {
            let direction = self.requests.direction(head.sock_key);
            self.connections.used(head.sock_key, &head.tuple, owner, direction, now);
        }
        if self.exchanges.len() > parsed {
            self.tell_exchanges(now);
        }
    }

    /// Whether a message of a process of the host belongs to a call of a container: its beginning, or what follows it.
    fn is_call_to_container(&self, head: &PayloadHead, bytes: &[u8]) -> bool {
        let is_request = head.direction == DIRECTION_WRITE && !bytes.starts_with(b"HTTP/");
        self.requests.knows(head.sock_key, &head.tuple)
            || is_request && self.endpoints.peer(&head.tuple, head.header.time_nanos).is_some()
    }

    /// Whether this is the answer to a request of before the agent's start: the first that is heard of its connection,
    /// whose beginning was not heard either. Nothing of it was lost; from the next request on, it is followed. Later no
    /// request of before would be waited for any more.
    fn is_of_before(&self, head: &PayloadHead, bytes: &[u8]) -> bool {
        head.header.time_nanos.saturating_sub(self.began_nanos) < OPEN_NANOS_MAX
            && bytes.starts_with(b"HTTP/")
            && !self.requests.knows(head.sock_key, &head.tuple)
            && self.connections.is_new(head.sock_key, &head.tuple)
    }

    /// Exchanges that are complete become events.
    pub(super) fn tell_exchanges(&mut self, now_nanos: u64) {
        for exchange in std::mem::take(&mut self.exchanges) {
            self.exchange(exchange, now_nanos);
        }
    }

    fn exchange(&mut self, exchange: Exchange, now_nanos: u64) {
        let place = self.place(exchange.process.cgroup_id, exchange.process.pid, now_nanos);
        let peer = self.endpoints.peer(&exchange.tuple, now_nanos);
        let is_served = exchange.direction == Direction::In;
        if self.is_out_of_scope(&place) {
            // Of the host's own traffic, what a container failed to answer is the container's.
            let is_failed = match exchange.answer {
                Answer::Status(status) => status >= 500,
                Answer::None | Answer::Ended { .. } => true,
                Answer::Dropped => false,
            };
            if is_served || peer.is_none() || !is_failed {
                let records = u64::from(exchange.records);
                self.tally.add(Fate::Filtered, ProbeId::Payload.name(), "host", records);
                return;
            }
        }
        let (intent, severity, status) = match exchange.answer {
            Answer::None => (intent::REQUEST_UNANSWERED, Severity::Error, 0),
            Answer::Ended { in_order: false } => (intent::REQUEST_UNFINISHED, Severity::Error, 0),
            Answer::Ended { in_order: true } | Answer::Dropped => {
                (intent::REQUEST_UNFINISHED, Severity::Notice, 0)
            }
            Answer::Status(status) if status >= 500 && is_served => {
                (intent::REQUEST_SERVED_ERROR, Severity::Error, status)
            }
            Answer::Status(status) if status >= 500 => {
                (intent::REQUEST_CALLED_ERROR, Severity::Warning, status)
            }
            Answer::Status(status) if is_served => (intent::REQUEST_SERVED, Severity::Info, status),
            Answer::Status(status) => (intent::REQUEST_CALLED, Severity::Info, status),
        };
        let (received_bytes, sent_bytes) = if is_served {
            (exchange.request_bytes, exchange.response_bytes)
        } else {
            (exchange.response_bytes, exchange.request_bytes)
        };
        let is_failure = severity >= Severity::Warning;
        self.push(Event {
            severity,
            records: exchange.records,
            duration_nanos: exchange.ended_nanos.saturating_sub(exchange.started_nanos),
            trace: exchange.trace,
            attributes: attributes(&exchange),
            container: place.container().cloned(),
            peer,
            process: Some(exchange.process),
            network: Some(NetworkPart {
                tuple: exchange.tuple,
                protocol: "http",
                direction: exchange.direction,
                method: Some(exchange.method),
                route: Some(exchange.route),
                target: exchange.target.filter(|_| is_failure),
                status,
                received_bytes,
                sent_bytes,
                ..NetworkPart::default()
            }),
            ..Event::new(exchange.started_nanos, intent, EventKind::Request, ProbeId::Payload.name())
        });
    }
}

/// What an exchange says beside its columns.
fn attributes(exchange: &Exchange) -> Option<Box<str>> {
    let ended = match exchange.answer {
        Answer::Ended { .. } => "ended=process",
        Answer::Dropped => "ended=connection",
        Answer::Status(_) | Answer::None => "",
    };
    let head = if exchange.is_head_cut { "head=cut" } else { "" };
    let said: Vec<&str> = [ended, head].into_iter().filter(|text| !text.is_empty()).collect();
    (!said.is_empty()).then(|| said.join(" ").into_boxed_str())
}
