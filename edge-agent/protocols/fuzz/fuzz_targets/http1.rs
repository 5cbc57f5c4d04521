//! Any bytes as the beginning of an HTTP/1 message: they are refused or read, and what a shorter beginning said, a
//! longer one does not unsay. The kernel hands over beginnings only, so a guess would become invented evidence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tapio_protocols::http1::{Head, parse, route};

/// A route has at most this many characters per character of its target: `{id}` stands for one digit.
const ROUTE_GROWTH_MAX: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    let Some(whole) = parse(bytes) else { return };
    if let Head::Request(request) = whole {
        let route = route(request.target);
        assert!(route.len() <= ROUTE_GROWTH_MAX * request.target.len() + 8, "{route}");
    }
    for end in 0..bytes.len().min(512) {
        match (parse(&bytes[..end]), whole) {
            (None, _) => {}
            (Some(Head::Request(shorter)), Head::Request(longer)) => {
                assert_eq!((shorter.method, shorter.target), (longer.method, longer.target));
                assert!(!shorter.is_complete || shorter == longer);
                // A second `traceparent` may still come, and makes both invalid.
                assert!(shorter.trace.is_none() || longer.trace.is_none() || shorter.trace == longer.trace);
            }
            (Some(Head::Response(shorter)), Head::Response(longer)) => assert_eq!(shorter, longer),
            (Some(shorter), longer) => panic!("{shorter:?} became {longer:?}"),
        }
    }
});
