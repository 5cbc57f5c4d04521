//! What every request goes through: request ids, entity tags, the page to try the API.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tapio_central::api::rest::page::List;
use tapio_schemas::{finding::Finding, units::Micros};

use crate::{
    samples::finding,
    world::{World, now, problem},
};

/// Scenario: requests with a request id, without, and with one that would break the log; answered and refused.
/// Guarantees: a sane id comes back in the header and in the problem; every other request gets one of its own.
#[test]
fn requests_are_named() {
    let Some(world) = World::start() else { return };
    for (path, status) in [("/api/v1/health", 200), ("/api/v1/findings?limit=0", 400), ("/nowhere", 404)] {
        let answer = world.ask_with("GET", path, &[("x-request-id", "from-the_client.1")]);
        assert_eq!((answer.status, answer.request_id.as_str()), (status, "from-the_client.1"), "{path}");
        if status != 200 {
            assert_eq!(problem(&answer, path).request_id.as_deref(), Some("from-the_client.1"));
        }
        let [first, second] = [0; 2].map(|_| world.ask_with("GET", path, &[("x-request-id", "a b")]));
        assert_eq!(first.request_id.len(), 16, "{path}: {first:?}");
        assert_ne!(first.request_id, second.request_id);
        if status != 200 {
            assert_eq!(problem(&first, path).request_id.as_deref(), Some(first.request_id.as_str()));
        }
    }
    let refused = world.ask("POST", "/api/v1/findings");
    assert_eq!((refused.status, refused.request_id.len(), refused.allow.as_str()), (405, 16, "GET,HEAD"));
}

/// What central logs in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The first line that says `what` of request `id`; it is written once the answer is on its way.
    fn line(&self, id: &str, what: &str) -> String {
        let (of, deadline) = (format!("request{{id=\"{id}\"}}"), Instant::now() + Duration::from_secs(30));
        loop {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if let Some(line) = text.lines().find(|line| line.contains(&of) && line.contains(what)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "no line of {of} says {what:?}: {text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Scenario: requests that are answered, refused, and that fail because the store is gone, each with an id.
/// Guarantees: the log has each under its id with method, route and status, and the store's fault under the id of the
/// request that met it.
#[test]
fn the_log_names_requests() {
    let log = Log::default();
    let lines = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).init();
    let Some(mut world) = World::start() else { return };
    let ask =
        |world: &World, path: &str, id: &str| world.ask_with("GET", path, &[("x-request-id", id)]).status;

    assert_eq!(ask(&world, "/api/v1/findings", "answered-1"), 200);
    assert_eq!(ask(&world, "/api/v1/findings?limit=0", "refused-2"), 400);
    world.stop_engine();
    assert_eq!(ask(&world, "/api/v1/findings", "failed-3"), 503);

    for (id, what, status) in [
        ("answered-1", "a request was answered", 200),
        ("refused-2", "a request was answered", 400),
        ("failed-3", "a request failed", 503),
    ] {
        let line = log.line(id, what);
        for part in ["method=GET", "route=\"/api/v1/findings\"", &format!("status={status}")] {
            assert!(line.contains(part), "no {part}: {line}");
        }
    }
    assert!(log.line("failed-3", "a query failed").contains("error="));
}

/// Scenario: single resources and lists are asked for twice, the second time with the tag of the first; then a finding
/// is revised and another announced.
/// Guarantees: nothing is sent again that the client has, and what changed has another tag; a page that another follows
/// has a weak tag, because its cursor is another each time; errors have none.
#[test]
fn what_the_client_has_is_not_sent_again() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    world.insert_findings(&[finding(1, at), finding(2, at)]);
    let one = "/api/v1/findings/f-0000000000000001";
    let (list, page) = ("/api/v1/findings", "/api/v1/findings?limit=1");
    let known = |world: &World, path: &str, tag: &str| {
        let answer = world.ask_with("GET", path, &[("if-none-match", tag)]);
        assert_eq!(answer.body.is_empty(), answer.status == 304, "{path}: {answer:?}");
        (answer.status, answer.etag)
    };
    let mut tags = Vec::new();
    for (path, weak) in
        [(one, false), (list, false), (page, true), ("/api/v1/openapi.json", false), ("/api/v1/docs", false)]
    {
        let first = world.ask("GET", path);
        assert_eq!((first.status, first.etag.starts_with("W/")), (200, weak), "{path}: {}", first.etag);
        for condition in [first.etag.clone(), format!("\"other\", {}", first.etag), "*".to_owned()] {
            assert_eq!(known(&world, path, &condition), (304, first.etag.clone()), "{path}: {condition}");
        }
        assert_eq!(known(&world, path, "\"other\"").0, 200, "{path}");
        let head = world.ask_with("HEAD", path, &[("if-none-match", &first.etag)]);
        assert_eq!(head.status, 304, "{path}");
        tags.push(first.etag);
    }
    let again = world.ask("GET", list);
    assert_eq!(again.body, world.ask("GET", list).body, "a strong tag is of equal bytes");

    let revised = Finding { revision: 2, title: "another".to_owned(), ..finding(1, at) };
    world.insert_findings(&[revised]);
    assert_eq!(known(&world, one, &tags[0]).0, 200);
    assert_eq!(known(&world, list, &tags[1]).0, 200);
    assert_eq!(known(&world, page, &tags[2]).0, 304, "the first page holds finding 2 alone");
    world.insert_findings(&[finding(3, at)]);
    assert_eq!(known(&world, page, &tags[2]).0, 200);

    let next: List<Finding> = world.api.get("/findings", &[("limit", "1")]).unwrap();
    assert!(next.next_cursor.is_some());
    assert_eq!(world.ask("GET", "/api/v1/findings?limit=0").etag, "");
}

/// Scenario: a browser opens the page to try the API, with its script and style.
/// Guarantees: all come from this server with their media types, name nothing elsewhere, and may not be made to.
#[test]
fn the_page_needs_no_internet() {
    let Some(world) = World::start() else { return };
    for (path, kind) in [("", "text/html"), (".js", "text/javascript"), (".css", "text/css")] {
        let answer = world.ask("GET", &format!("/api/v1/docs{path}"));
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.content_type, format!("{kind}; charset=utf-8"));
        assert!(!answer.body.contains("http:") && !answer.body.contains("https:"), "{path}");
        assert!(answer.policy.starts_with("default-src 'none'; script-src 'self'"), "{}", answer.policy);
    }
}
