use proptest::prelude::*;

use super::*;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn request_of(bytes: &[u8]) -> Request<'_> {
    match parse(bytes) {
        Some(Head::Request(request)) => request,
        other => panic!("{other:?}"),
    }
}

/// Scenario: a whole request with a trace.
/// Guarantees: method, target and trace are what was sent, and the head is known to be whole.
#[test]
fn a_whole_request_is_read() {
    let text = format!(
        "POST /orders/17?x=1 HTTP/1.1\r\nhost: a\r\nTraceParent: {TRACE}\r\ncontent-length: 5\r\n\r\nhello"
    );
    let request = request_of(text.as_bytes());
    assert_eq!((request.method, request.target), ("POST", "/orders/17?x=1"));
    assert_eq!(request.trace.unwrap().parent_id, 0x00f0_67aa_0ba9_02b7);
    assert!(request.is_complete);
}

/// Scenario: the same request, cut at every byte.
/// Guarantees: nothing before the end of the version is a request, and a header is read only when it is whole.
#[test]
fn a_cut_request_claims_only_what_is_there() {
    let text = format!("GET /a HTTP/1.1\r\nhost: a\r\ntraceparent: {TRACE}\r\n\r\n");
    let line_end = text.find("\r\n").unwrap();
    let trace_end = text.find(TRACE).unwrap() + TRACE.len();
    for cut in 0..text.len() {
        match parse(&text.as_bytes()[..cut]) {
            None => assert!(cut <= line_end + 1, "{cut}"),
            Some(Head::Request(request)) => {
                assert!(cut >= line_end, "{cut}");
                assert_eq!(request.target, "/a");
                assert!(!request.is_complete);
                assert!(request.trace.is_none() || cut > trace_end, "{cut}");
            }
            Some(Head::Response(_)) => panic!("a request is no response"),
        }
    }
}

/// Scenario: responses, whole and cut, and an interim one.
/// Guarantees: a status is claimed only when all of its digits were there.
#[test]
fn responses_are_read() {
    let whole = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n";
    let Some(Head::Response(response)) = parse(whole) else { panic!("no response") };
    assert_eq!(response.status, 503);
    for cut in 0..whole.len() {
        if let Some(Head::Response(response)) = parse(&whole[..cut]) {
            assert_eq!(response.status, 503, "{cut}");
        }
    }
    assert!(matches!(parse(b"HTTP/1.1 100 Continue\r\n\r\n"), Some(Head::Response(r)) if r.is_interim()));
    assert!(matches!(parse(b"HTTP/1.1 101 Switching\r\n\r\n"), Some(Head::Response(r)) if !r.is_interim()));
    assert_eq!(parse(b"HTTP/1.1 99 Low\r\n\r\n"), None);
}

/// Scenario: a request with two `traceparent` headers.
/// Guarantees: an ambiguous trace is no trace.
#[test]
fn ambiguity_is_not_resolved_by_guessing() {
    let other = TRACE.replace("4bf9", "4bf8");
    let text = format!("GET / HTTP/1.1\r\ntraceparent: {TRACE}\r\ntraceparent: {other}\r\n\r\n");
    assert_eq!(request_of(text.as_bytes()).trace, None);
}

/// Scenario: other protocols' first bytes.
/// Guarantees: they are not HTTP/1.
#[test]
fn other_protocols_are_not_claimed() {
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"*1\r\n$4\r\nPING\r\n",
        b"get / http/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        assert_eq!(parse(bytes), None, "{bytes:?}");
    }
}

/// Scenario: a message with more headers than are looked at.
/// Guarantees: it is still a request, and known to be incompletely read.
#[test]
fn many_headers_do_not_hide_a_request() {
    let text = format!("GET /x HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
    let request = request_of(text.as_bytes());
    assert_eq!((request.target, request.is_complete), ("/x", false));
}

/// Scenario: targets with ids of the common shapes, and without.
/// Guarantees: ids are replaced, words are kept, every form of target has a route.
#[test]
fn ids_are_replaced_in_routes() {
    for (target, expected) in [
        ("/", "/"),
        ("/orders", "/orders"),
        ("/orders/17", "/orders/{id}"),
        ("/orders/17/items?page=2", "/orders/{id}/items"),
        ("/u/4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "/u/{id}"),
        ("/blob/deadbeef01", "/blob/{id}"),
        ("/v1/feedback", "/v1/feedback"),
        ("/facade", "/facade"),
        ("/o/ORD-2024-1", "/o/{id}"),
        ("http://shop/cart/9#top", "/cart/{id}"),
        ("*", "*"),
        ("shop:443", "/"),
        ("/a/b/c/d/e/f/g/h/i/j", "/a/b/c/d/e/f/g/h/{rest}"),
    ] {
        assert_eq!(route(target), expected, "{target}");
    }
}

proptest! {
    /// Scenario: any bytes, and any bytes behind a plausible beginning.
    /// Guarantees: no panic.
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, start in 0_usize..5) {
        let starts: [&[u8]; 5] = [b"", b"GET ", b"HTTP/1.1 2", b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n"];
        let mut message = starts[start].to_vec();
        message.extend(bytes);
        let _ = parse(&message);
    }

    /// Scenario: any text as a target.
    /// Guarantees: a route has a bounded number of segments and no number in it is a segment of its own.
    #[test]
    fn routes_are_bounded(target: String) {
        let route = route(&target);
        prop_assert!(route.split('/').count() <= SEGMENTS_MAX + 2);
        prop_assert!(!route.split('/').any(|segment| segment.parse::<u64>().is_ok()));
    }
}
