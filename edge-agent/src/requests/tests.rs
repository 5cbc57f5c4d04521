use proptest::prelude::*;
use tapio_kernel_abi::{COMM_BYTES, DIRECTION_WRITE, Header, KIND_PAYLOAD};

use super::*;

const MILLI: u64 = 1_000_000;

fn tuple(local_port: u16, remote_port: u16) -> SockTuple {
    SockTuple { local_port, remote_port, ..SockTuple::default() }
}

fn record(key: u64, direction: u8, tid: u32, time_nanos: u64) -> PayloadHead {
    PayloadHead {
        header: Header {
            kind: KIND_PAYLOAD,
            record_bytes: 0,
            cpu: 0,
            time_nanos,
            tgid: 100,
            tid,
            cgroup_id: 7,
            start_nanos: 1,
            comm: [0; COMM_BYTES],
        },
        sock_key: key,
        tuple: tuple(8080, 40_000 + u16::try_from(key % 1_000).unwrap()),
        total_bytes: 100,
        fd: 3,
        captured_bytes: 0,
        number: 0,
        direction,
        reserved: [0; 3],
    }
}

fn request_with(trace: u8) -> Vec<u8> {
    format!("GET /orders/17 HTTP/1.1\r\nhost: a\r\ntraceparent: 00-{:032x}-{:016x}-01\r\n\r\n", trace, 9)
        .into_bytes()
}

const RESET: SocketEnd = SocketEnd { is_reset: true, is_peers: true };
const BY_PEER: SocketEnd = SocketEnd { is_reset: false, is_peers: true };
const BY_SELF: SocketEnd = SocketEnd { is_reset: false, is_peers: false };

const PLAIN: &[u8] = b"GET /stock HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const ERROR: &[u8] = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";

fn trace_of(exchange: &Exchange) -> u128 {
    exchange.trace.map_or(0, |link| u128::from_be_bytes(link.trace_id))
}

/// Scenario: a service reads a request, calls another without passing the trace on, and answers 500.
/// Guarantees: both exchanges are complete, timed, and in the trace of the request, observed.
#[test]
fn a_call_belongs_to_the_request_of_its_thread() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    requests.payload(&record(1, DIRECTION_READ, 5, MILLI), &request_with(3), &mut out);
    requests.payload(&record(2, DIRECTION_WRITE, 5, 2 * MILLI), PLAIN, &mut out);
    requests.payload(&record(2, DIRECTION_READ, 5, 3 * MILLI), ERROR, &mut out);
    requests.payload(&record(1, DIRECTION_WRITE, 5, 4 * MILLI), ERROR, &mut out);
    let [call, served] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!((call.direction, call.answer, trace_of(call)), (Direction::Out, Answer::Status(500), 3));
    assert_eq!(call.trace.unwrap().link, LinkKind::Observed);
    assert_eq!((served.direction, &*served.route, trace_of(served)), (Direction::In, "/orders/{id}", 3));
    assert_eq!(served.ended_nanos - served.started_nanos, 3 * MILLI);
    assert_eq!(served.target.as_deref(), Some("/orders/17"));
    assert_eq!(requests.take_counts(), RequestCounts::default());
}

/// Scenario: an event loop holds two requests when it makes a call; later it holds one again.
/// Guarantees: the call's link is inferred and names no trace, then and ever after in this process.
#[test]
fn interleaved_requests_are_never_linked() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    requests.payload(&record(1, DIRECTION_READ, 5, 1), &request_with(1), &mut out);
    requests.payload(&record(2, DIRECTION_READ, 5, 2), &request_with(2), &mut out);
    requests.payload(&record(3, DIRECTION_WRITE, 5, 3), PLAIN, &mut out);
    requests.payload(&record(3, DIRECTION_READ, 5, 4), OK, &mut out);
    assert_eq!(out[0].trace, Some(TraceLink::UNDECIDED));
    requests.payload(&record(1, DIRECTION_WRITE, 5, 5), OK, &mut out);
    assert_eq!(requests.candidates(100, 1, 5), Candidates::Several);
    // Another process with the same threads' numbers is not held to it, and has none of its requests.
    assert_eq!(requests.candidates(100, 2, 5), Candidates::None);
    let mut other = record(4, DIRECTION_READ, 5, 6);
    (other.header.tgid, other.header.start_nanos) = (101, 3);
    requests.payload(&other, &request_with(4), &mut out);
    assert!(matches!(requests.candidates(101, 3, 5), Candidates::One(Some(_))));
}

/// Scenario: a work-stealing runtime reads on one thread and answers on another.
/// Guarantees: from then on the process's calls are not linked by thread.
#[test]
fn requests_that_move_between_threads_are_never_linked() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    requests.payload(&record(1, DIRECTION_READ, 5, 1), &request_with(1), &mut out);
    requests.payload(&record(1, DIRECTION_WRITE, 6, 2), OK, &mut out);
    requests.payload(&record(2, DIRECTION_READ, 6, 3), &request_with(2), &mut out);
    assert_eq!(requests.candidates(100, 1, 6), Candidates::Several);
}

/// Scenario: a call's connection is reset; another's peer ends its stream with the answer still in the queue.
/// Guarantees: the first is unanswered, after a grace; the second is answered.
#[test]
fn a_call_whose_connection_ends_is_unanswered() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    requests.payload(&record(1, DIRECTION_WRITE, 5, MILLI), &request_with(3), &mut out);
    requests.payload(&record(2, DIRECTION_WRITE, 6, MILLI), &request_with(4), &mut out);
    requests.socket_ended(1, &record(1, 0, 0, 0).tuple, RESET, 5 * MILLI);
    assert_eq!(requests.trace_of_call(1).map(|link| link.trace_id[15]), Some(3));
    requests.socket_ended(2, &record(2, 0, 0, 0).tuple, BY_PEER, 6 * MILLI);
    assert_eq!(requests.untold_since(), Some(5 * MILLI));
    requests.payload(&record(2, DIRECTION_READ, 6, 6 * MILLI), OK, &mut out);
    requests.tick(50 * MILLI, &mut out);
    assert_eq!((out.len(), requests.untold_since()), (1, Some(5 * MILLI)));
    requests.tick(200 * MILLI, &mut out);
    let [answered, unanswered] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(answered.answer, Answer::Status(200));
    assert_eq!((unanswered.answer, trace_of(unanswered)), (Answer::None, 3));
    assert_eq!((unanswered.started_nanos, unanswered.ended_nanos), (MILLI, 5 * MILLI));
    assert_eq!(requests.untold_since(), None);
}

/// Scenario: a client closes a connection by itself, having read an answer in pieces that are too small to be seen; a
/// server's caller goes away before it has answered.
/// Guarantees: neither is told as a fault of the server, and no record of them is lost.
#[test]
fn who_closes_may_have_had_its_answer() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    requests.payload(&record(1, DIRECTION_WRITE, 5, MILLI), &request_with(3), &mut out);
    requests.socket_ended(1, &record(1, 0, 0, 0).tuple, BY_SELF, 5 * MILLI);
    requests.payload(&record(2, DIRECTION_READ, 6, MILLI), &request_with(4), &mut out);
    requests.socket_ended(2, &record(2, 0, 0, 0).tuple, BY_PEER, 5 * MILLI);
    requests.tick(200 * MILLI, &mut out);
    let seen: Vec<_> = out.iter().map(|exchange| (exchange.direction, exchange.answer)).collect();
    assert_eq!(seen, [(Direction::Out, Answer::Dropped), (Direction::In, Answer::Dropped)]);
    assert_eq!(requests.take_counts(), RequestCounts::default());
}

/// Scenario: a process dies that serves a request and waits for the answer to a call; then the kernel closes its
/// sockets. A process of the same number, which started later, has a request too.
/// Guarantees: its two requests are told at once, as ended with it; its call is nobody else's fault; the other
/// process's stays open.
#[test]
fn a_process_takes_its_requests_along() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    requests.payload(&record(1, DIRECTION_READ, 5, MILLI), &request_with(1), &mut out);
    requests.payload(&record(2, DIRECTION_WRITE, 5, 2 * MILLI), &request_with(1), &mut out);
    let mut later = record(3, DIRECTION_READ, 5, 3 * MILLI);
    later.header.start_nanos = 2;
    requests.payload(&later, &request_with(2), &mut out);
    requests.process_ended(100, 1, false, 4 * MILLI, &mut out);
    for key in [1, 2] {
        requests.socket_ended(key, &record(key, 0, 0, 0).tuple, BY_PEER, 5 * MILLI);
    }
    requests.tick(2_000 * MILLI, &mut out);
    let seen: Vec<_> =
        out.iter().map(|exchange| (exchange.direction, exchange.answer, exchange.ended_nanos)).collect();
    let ended = Answer::Ended { in_order: false };
    assert_eq!(seen, [(Direction::In, ended, 4 * MILLI), (Direction::Out, ended, 4 * MILLI)]);
    assert_eq!(requests.candidates(100, 1, 5), Candidates::None);
    assert!(matches!(requests.candidates(100, 2, 5), Candidates::One(Some(_))));
    // The agent's own end: what is open is counted.
    requests.finish(3_000 * MILLI, &mut out);
    assert_eq!(requests.take_counts(), RequestCounts { agent_ended: 1, ..RequestCounts::default() });
    assert_eq!(out.len(), 2);
}

/// Scenario: requests whose head is not captured to its end, with the trace before and behind the cut.
/// Guarantees: only the one that may have named a trace that was not seen says so.
#[test]
fn a_cut_head_is_told() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    let whole = request_with(3);
    for (key, bytes) in [(1, &whole[..30]), (2, &whole[..whole.len() - 2]), (3, PLAIN)] {
        requests.payload(&record(key, DIRECTION_READ, 5, MILLI), bytes, &mut out);
        requests.payload(&record(key, DIRECTION_WRITE, 5, MILLI), OK, &mut out);
    }
    let cut: Vec<_> = out.iter().map(|exchange| (exchange.is_head_cut, trace_of(exchange))).collect();
    assert_eq!((cut, requests.heads_cut()), (vec![(true, 0), (false, 3), (false, 0)], 1));
}

/// Scenario: a write on a kept connection meets the dead peer's reset before the write's own record is there, and
/// the kernel has taken the local port away.
/// Guarantees: the call is unanswered all the same.
#[test]
fn a_reset_may_come_before_its_request() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    let mut late = record(1, DIRECTION_WRITE, 5, 10 * MILLI);
    requests.socket_ended(1, &late.tuple, RESET, 9 * MILLI);
    late.tuple.local_port = 0;
    requests.payload(&late, &request_with(3), &mut out);
    requests.tick(200 * MILLI, &mut out);
    assert_eq!(out.iter().map(|exchange| exchange.answer).collect::<Vec<_>>(), [Answer::None]);
    // Nothing was open when this one ended: it is remembered for a while, and no request is made up.
    requests.socket_ended(2, &record(2, 0, 0, 0).tuple, RESET, 200 * MILLI);
    requests.tick(5_000 * MILLI, &mut out);
    assert_eq!((out.len(), requests.sizes().0), (1, 0));
}

/// Scenario: the kernel uses a socket's memory again, with and without a record of the new connection's begin.
/// Guarantees: the old call is unanswered, the new one gets its own answer.
#[test]
fn a_reused_key_is_another_socket() {
    for is_told in [true, false] {
        let mut requests = Requests::default();
        let mut out = Vec::new();
        requests.payload(&record(1, DIRECTION_WRITE, 5, 1), &request_with(1), &mut out);
        requests.socket_ended(1, &record(1, 0, 0, 0).tuple, BY_PEER, 2);
        if is_told {
            requests.socket_began(1, 3, &mut out);
        }
        let mut second = record(1, DIRECTION_WRITE, 5, 4);
        second.tuple = tuple(50_000, 99);
        requests.payload(&second, &request_with(2), &mut out);
        let mut answer = record(1, DIRECTION_READ, 5, 5);
        answer.tuple = second.tuple;
        requests.payload(&answer, OK, &mut out);
        let seen: Vec<_> = out.iter().map(|exchange| (trace_of(exchange), exchange.answer)).collect();
        assert_eq!(seen, [(1, Answer::None), (2, Answer::Status(200))]);
    }
}

/// Scenario: the agent comes in the middle of a conversation; a client sends two requests at once.
/// Guarantees: nothing is made up, everything is counted, and the conversation is followed again afterwards.
#[test]
fn what_does_not_fit_is_counted() {
    let mut requests = Requests::default();
    let mut out = Vec::new();
    requests.payload(&record(1, DIRECTION_READ, 5, 1), OK, &mut out);
    for time in [2, 3] {
        requests.payload(&record(2, DIRECTION_READ, 5, time), PLAIN, &mut out);
    }
    for time in [4, 5] {
        requests.payload(&record(2, DIRECTION_WRITE, 5, time), OK, &mut out);
    }
    assert!(out.is_empty());
    requests.payload(&record(2, DIRECTION_READ, 5, 6), PLAIN, &mut out);
    requests.payload(&record(2, DIRECTION_WRITE, 5, 6), b"HTTP/1.1 100 Continue\r\n\r\n", &mut out);
    requests.payload(&record(2, DIRECTION_WRITE, 5, 7), OK, &mut out);
    assert_eq!(out.len(), 1);
    let counts = requests.take_counts();
    let expected = RequestCounts { answer_alone: 1, pipelined: 4, interim: 1, ..counts };
    assert_eq!(counts, expected);
}

#[derive(Clone, Debug)]
enum Step {
    Payload { key: u64, is_read: bool, is_request: bool, tid: u32 },
    End { key: u64, is_reset: bool, is_peers: bool },
    Begin { key: u64 },
    ProcessEnd { in_order: bool },
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u64..4, any::<bool>(), any::<bool>(), 0_u32..3)
            .prop_map(|(key, is_read, is_request, tid)| Step::Payload { key, is_read, is_request, tid }),
        1 => (0_u64..4, any::<bool>(), any::<bool>())
            .prop_map(|(key, is_reset, is_peers)| Step::End { key, is_reset, is_peers }),
        1 => any::<bool>().prop_map(|in_order| Step::ProcessEnd { in_order }),
        1 => (0_u64..4).prop_map(|key| Step::Begin { key }),
        1 => Just(Step::Tick),
    ]
}

proptest! {
    /// Scenario: any order of messages and ends on a few sockets, until they are quiet or the agent ends.
    /// Guarantees: every record ends in exactly one place, an exchange or a count.
    #[test]
    fn every_record_is_accounted_for(steps in prop::collection::vec(step(), 0..200), is_finished: bool) {
        let mut requests = Requests::default();
        let mut out = Vec::new();
        let mut taken = 0_u64;
        let mut now = 0;
        for step in steps {
            now += 30 * MILLI;
            match step {
                Step::Payload { key, is_read, is_request, tid } => {
                    taken += 1;
                    let direction = if is_read { DIRECTION_READ } else { DIRECTION_WRITE };
                    requests.payload(&record(key, direction, tid, now), if is_request { PLAIN } else { OK }, &mut out);
                }
                Step::End { key, is_reset, is_peers } => {
                    let end = SocketEnd { is_reset, is_peers };
                    requests.socket_ended(key, &record(key, 0, 0, 0).tuple, end, now);
                }
                Step::ProcessEnd { in_order } => requests.process_ended(100, 1, in_order, now, &mut out),
                Step::Begin { key } => requests.socket_began(key, now, &mut out),
                Step::Tick => requests.tick(now, &mut out),
            }
        }
        if is_finished {
            requests.finish(now, &mut out);
        } else {
            requests.tick(now + 1_000_000 * MILLI, &mut out);
        }
        let counts = requests.take_counts();
        let counted: u64 = counts.filtered().iter().chain(&counts.lost()).map(|(_, count)| count).sum();
        let exchanged: u64 = out.iter().map(|exchange| u64::from(exchange.records)).sum();
        prop_assert_eq!(counted + exchanged, taken);
        prop_assert_eq!(requests.sizes().0, 0);
    }
}
