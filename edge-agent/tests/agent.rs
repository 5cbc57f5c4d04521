//! The agent as a process, on this kernel: real services in containers' control groups, and what is in the spool
//! afterwards, compared with what was really done. There is no aggregator: the frames stay on the disk.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "what fails here fails the test, and says where"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use tapio_schemas::{
    event::UnifiedEvent,
    intent,
    intent::LinkKind,
    ledger::{Fate, Stage},
};

use support::{Agent, Container, Process, ROLE, any_probe_failed, not_proven, read_spool, wait_for};

#[path = "agent/support.rs"]
mod support;

const SERVED: usize = 200;
const FAILED: usize = 20;
const REFUSED: usize = 15;
fn request(path: &str, trace: usize) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\ntraceparent: 00-{trace:032x}-{:016x}-01\r\n\r\n", trace + 1)
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut chunk = [0; 1_024];
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        head.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8(head).ok()
}

fn serve(port_file: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Bound and closed again: nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!("{} {}", listener.local_addr().unwrap().port(), nobody.port());
    fs::write(format!("{port_file}.new"), text).unwrap();
    fs::rename(format!("{port_file}.new"), port_file).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            while let Some(head) = read_head(&mut stream) {
                let status = if head.contains(" /call/") {
                    TcpStream::connect(nobody).unwrap_err();
                    "502 Bad Gateway"
                } else if head.contains(" /fail/") {
                    "500 Oops"
                } else {
                    "200 OK"
                };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

fn call(port: &str) {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let paths = [("/ok", SERVED), ("/fail", FAILED), ("/call", REFUSED)];
    let mut trace = 1;
    for (path, count) in paths {
        for number in 0..count {
            stream.write_all(request(&format!("{path}/{number}"), trace).as_bytes()).unwrap();
            read_head(&mut stream).unwrap();
            trace += 1;
        }
    }
}

/// Scenario: none; what the other test's processes run.
/// Guarantees: nothing by itself.
#[test]
fn role() {
    let argument = std::env::var("TAPIO_TEST_ARGUMENT").unwrap_or_default();
    match std::env::var(ROLE).as_deref() {
        Ok("serve") => serve(&argument),
        Ok("call") => call(&argument),
        _ => {}
    }
}

/// Scenario: a service and its client, each in a container of its own; requests that succeed, fail, and fail because
/// a connection is refused; then the agent is asked to end.
/// Guarantees: the frames on the disk hold exactly the requests that were made, counted where they fold, each failing
/// one with its trace; each refusal is in the trace of its request, observed; what the kernel handed over is accounted
/// for to the last record.
#[test]
fn what_was_done_is_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(folder.path(), &[]);

    let (server_group, client_group) = (Container::new(1), Container::new(2));
    let ports = folder.path().join("ports");
    let server = Process::role("serve", ports.to_str().unwrap(), &server_group);
    let ports = wait_for("the server", || fs::read_to_string(&ports).ok());
    let (port, nobody) = ports.split_once(' ').unwrap();
    let mut client = Process::role("call", port, &client_group);
    assert!(client.0.wait().unwrap().success());
    drop(client);
    drop(server);

    assert!(agent.end().success());
    let (events, ledger) = read_spool(folder.path());
    if not_proven(any_probe_failed(&events)) {
        return;
    }

    let of = |name: &str, group: &Container| -> Vec<&UnifiedEvent> {
        let is_in = |event: &&UnifiedEvent| {
            event.core.intent == name
                && event.entity.as_ref().is_some_and(|entity| entity.container_id == group.id)
        };
        events.iter().filter(is_in).collect()
    };
    let occurrences =
        |events: &[&UnifiedEvent]| events.iter().map(|event| event.core.count as usize).sum::<usize>();
    let traces = |events: &[&UnifiedEvent]| {
        let trace = |event: &&UnifiedEvent| {
            let link = event.trace.as_ref().unwrap();
            assert_eq!(link.link, LinkKind::Observed, "{event:?}");
            usize::try_from(u128::from_be_bytes(link.trace_id.0)).unwrap()
        };
        let mut traces: Vec<usize> = events.iter().map(trace).collect();
        traces.sort_unstable();
        traces
    };
    assert_eq!(occurrences(&of(intent::REQUEST_SERVED, &server_group)), SERVED);
    assert_eq!(occurrences(&of(intent::REQUEST_CALLED, &client_group)), SERVED);
    let failing: Vec<usize> = (SERVED + 1..=SERVED + FAILED + REFUSED).collect();
    assert_eq!(traces(&of(intent::REQUEST_SERVED_ERROR, &server_group)), failing);
    assert_eq!(traces(&of(intent::REQUEST_CALLED_ERROR, &client_group)), failing);
    let refused = of(intent::CONNECTION_REFUSED, &server_group);
    assert_eq!(traces(&refused), failing[FAILED..]);
    assert!(refused.iter().all(|event| {
        let network = event.network.as_ref().unwrap();
        network.remote_port.to_string() == nobody && network.direction == "out"
    }));
    let route = of(intent::REQUEST_SERVED_ERROR, &server_group);
    assert!(
        route
            .iter()
            .all(|event| ["/fail/{id}", "/call/{id}"].contains(&&*event.network.as_ref().unwrap().route))
    );
    let peer = of(intent::REQUEST_CALLED_ERROR, &client_group);
    assert!(peer.iter().all(|event| event.entity.as_ref().unwrap().peer_container_id == server_group.id));

    for probe in tapio_kernel_abi::ProbeId::ALL {
        let sum = |stage: Stage, fates: &[Fate]| -> u64 {
            let lines = ledger.iter().filter(|((at, fate, subject, _), _)| {
                *at == stage && fates.contains(fate) && subject == probe.name()
            });
            lines.map(|(_, count)| count).sum()
        };
        let emitted = sum(Stage::Kernel, &[Fate::Carried]);
        let accounted = sum(Stage::Capture, &[Fate::Carried, Fate::Folded, Fate::Filtered, Fate::Lost]);
        assert_eq!(accounted, emitted, "{}: {ledger:#?}", probe.name());
        assert_eq!(sum(Stage::Kernel, &[Fate::Lost]), 0, "{}", probe.name());
    }
}
