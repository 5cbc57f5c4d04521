use std::sync::Arc;

use tapio_kernel_abi::{COMM_BYTES, Header, RESET_SENT};

use super::*;
use crate::attribute::Container;

fn header(time_nanos: u64) -> Header {
    Header {
        kind: 0,
        record_bytes: 0,
        cpu: 0,
        time_nanos,
        tgid: 0,
        tid: 0,
        cgroup_id: 0,
        start_nanos: 0,
        comm: [0; COMM_BYTES],
    }
}

const fn loopback(last: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, last]
}

const fn tuple(local_port: u16, remote_port: u16) -> SockTuple {
    SockTuple { network: 1, local_port, remote_port, local_address: loopback(1), remote_address: loopback(1) }
}

const OWNER: Owner = Owner { tgid: 10, tid: 11, cgroup_id: 7, start_nanos: 1 };

fn state(old_state: u8, new_state: u8, sock_errno: u16, local_port: u16) -> TcpState {
    TcpState {
        header: header(u64::from(new_state)),
        owner: OWNER,
        sock_key: 1,
        tuple: tuple(local_port, 80),
        old_state,
        new_state,
        sock_errno,
        reserved: 0,
    }
}

fn reset(direction: u8, socket_state: u8) -> TcpReset {
    TcpReset {
        header: header(5),
        owner: Owner::default(),
        sock_key: 1,
        tuple: tuple(40_000, 80),
        direction,
        state: socket_state,
        reserved: 0,
        reason: 0,
    }
}

fn container(id: &str) -> Arc<Container> {
    Arc::new(Container { id: id.into(), pod_uid: String::new(), group: String::new() })
}

/// Scenario: attempts that end in each of the kernel's errors; a refusal's record has lost its port by then.
/// Guarantees: each error has its intent, and the reset that came before gives the port back.
#[test]
fn attempts_fail_by_name() {
    for (errno, expected) in [
        (111, intent::CONNECTION_REFUSED),
        (110, intent::CONNECTION_TIMED_OUT),
        (113, intent::CONNECTION_FAILED),
        (0, intent::CONNECTION_FAILED),
    ] {
        let mut connections = Connections::default();
        assert_eq!(connections.reset(&reset(RESET_RECEIVED, SYN_SENT)), None);
        let meaning = connections.state(&state(SYN_SENT, CLOSE, errno, 0)).unwrap();
        assert_eq!((meaning.intent, meaning.errno, meaning.direction), (expected, errno, Direction::Out));
        assert_eq!((meaning.tuple.local_port, meaning.owner), (40_000, OWNER));
        assert_eq!(connections.sizes().0, 0);
    }
}

/// Scenario: a connection is opened and reset by its peer; another is closed in order; a third is reset while the
/// probe for resets does not work.
/// Guarantees: one event tells each end, with the time that it was open.
#[test]
fn an_end_is_told_once() {
    let mut connections = Connections::default();
    assert_eq!(
        connections.state(&state(SYN_SENT, ESTABLISHED, 0, 40_000)).unwrap().intent,
        intent::CONNECTION_OPENED
    );
    let meaning = connections.reset(&reset(RESET_RECEIVED, ESTABLISHED)).unwrap();
    assert_eq!(
        (meaning.intent, meaning.owner, meaning.opened_nanos),
        (intent::CONNECTION_RESET, OWNER, Some(1))
    );
    assert_eq!(connections.state(&state(ESTABLISHED, CLOSE, 104, 0)), None);

    connections.state(&state(SYN_SENT, ESTABLISHED, 0, 40_001));
    assert_eq!(connections.state(&state(ESTABLISHED, CLOSE_WAIT, 0, 40_001)), None);
    let meaning = connections.state(&state(9, CLOSE, 0, 0)).unwrap();
    assert_eq!((meaning.intent, meaning.tuple.local_port), (intent::CONNECTION_CLOSED, 40_001));

    connections.state(&state(SYN_SENT, ESTABLISHED, 0, 40_002));
    assert_eq!(
        connections.state(&state(ESTABLISHED, CLOSE, 104, 0)).unwrap().intent,
        intent::CONNECTION_RESET
    );
    // A reset that only answers what came after the close is no news.
    assert_eq!(connections.reset(&reset(RESET_RECEIVED, 9)), None);
    assert_eq!(connections.reset(&TcpReset { sock_key: 0, ..reset(RESET_SENT, 0) }), None);
    assert_eq!(connections.reset(&reset(RESET_SENT, ESTABLISHED)).unwrap().intent, intent::RESET_SENT);
}

fn user(container: Option<Arc<Container>>) -> Listening {
    Listening { container, owner: Owner::default(), comm: [0; COMM_BYTES], since_nanos: 0 }
}

/// Scenario: two containers of one node talk; the server ends; another container takes its port; two share one.
/// Guarantees: each end finds the other, a missing server is remembered, and what is ambiguous is not named.
#[test]
fn peers_are_found_where_they_are_certain() {
    let (shop, payment, other) = (container("shop"), container("payment"), container("other"));
    let mut endpoints = Endpoints::default();
    let any = SockTuple { local_address: [0; 16], ..tuple(80, 0) };
    endpoints.listening(1, &any, user(Some(payment.clone())));
    assert_eq!(endpoints.peer(&tuple(40_000, 80), 0), Some(payment.clone()));
    endpoints.connected(2, &tuple(40_000, 80), Some(shop.clone()), 0);
    assert_eq!(endpoints.peer(&tuple(80, 40_000), 0), Some(shop));
    endpoints.disconnected(2);
    assert_eq!(endpoints.peer(&tuple(80, 40_000), 0), None);

    endpoints.listening_ended(1, &SockTuple { local_port: 0, ..any }, 0);
    assert_eq!(endpoints.peer(&tuple(40_000, 80), 1), Some(payment));
    assert_eq!(endpoints.peer(&tuple(40_000, 80), 61_000_000_000), None);
    endpoints.listening(3, &any, user(Some(other.clone())));
    assert_eq!(endpoints.peer(&tuple(40_000, 80), 1), Some(other));
    endpoints.listening(4, &any, user(None));
    assert_eq!(endpoints.peer(&tuple(40_000, 80), 1), None);
    // A wildcard listener says nothing about addresses that may be another namespace's.
    let far = SockTuple { remote_address: [0xfd; 16], ..tuple(40_000, 80) };
    assert_eq!(endpoints.peer(&far, 1), None);
    endpoints.sweep(100_000_000_000);
    assert_eq!(endpoints.refused(), 0);
}

/// Scenario: two pods with network namespaces of their own both have a proxy on port 15001 of loopback, whose callers
/// connect from the same port; a third caller's namespace is not known.
/// Guarantees: each caller finds the proxy of its own pod and each proxy its own caller, the third none.
#[test]
fn loopback_ends_at_the_namespace() {
    let names = ["proxy-a", "app-a", "proxy-b", "app-b"].map(container);
    let [proxy_a, app_a, proxy_b, app_b] = &names;
    let mut endpoints = Endpoints::default();
    let within = |network: u32, tuple: SockTuple| SockTuple { network, ..tuple };
    let any = SockTuple { local_address: [0; 16], remote_address: [0; 16], ..tuple(15_001, 0) };
    let (out, back) = (tuple(40_000, 15_001), tuple(15_001, 40_000));
    for (key, network, proxy, app) in [(1, 7, proxy_a, app_a), (3, 8, proxy_b, app_b)] {
        endpoints.listening(key, &within(network, any), user(Some(proxy.clone())));
        endpoints.connected(key + 1, &within(network, out), Some(app.clone()), 0);
    }
    assert_eq!(endpoints.peer(&within(7, out), 0).as_ref(), Some(proxy_a));
    assert_eq!(endpoints.peer(&within(8, out), 0).as_ref(), Some(proxy_b));
    assert_eq!(endpoints.peer(&within(7, back), 0).as_ref(), Some(app_a));
    assert_eq!(endpoints.peer(&within(8, back), 0).as_ref(), Some(app_b));
    for network in [0, 9] {
        assert_eq!(endpoints.peer(&within(network, out), 0), None);
        assert_eq!(endpoints.peer(&within(network, back), 0), None);
    }
    // An end whose close was not seen is forgotten when it has been quiet for long.
    endpoints.connected(2, &within(7, out), Some(app_a.clone()), 500_000_000_000);
    endpoints.sweep(700_000_000_000);
    assert_eq!(endpoints.peer(&within(7, back), 0).as_ref(), Some(app_a));
    assert_eq!(endpoints.peer(&within(8, back), 0), None);
}

/// Scenario: the kernel keeps a connection where it kept another, whose end was not seen, and the other's reset had been
/// told.
/// Guarantees: the new one inherits neither its begin nor its direction, and its own end is told.
#[test]
fn a_connection_inherits_nothing_from_its_place() {
    let mut connections = Connections::default();
    connections.state(&state(SYN_SENT, ESTABLISHED, 0, 40_000));
    connections.reset(&reset(RESET_RECEIVED, ESTABLISHED)).unwrap();
    let served = tuple(80, 50_000);
    connections.used(1, &served, OWNER, Direction::In, 9);
    let close = TcpState { tuple: served, ..state(CLOSE_WAIT, CLOSE, 0, 80) };
    let meaning = connections.state(&close).unwrap();
    assert_eq!((meaning.direction, meaning.opened_nanos), (Direction::In, None));
}
