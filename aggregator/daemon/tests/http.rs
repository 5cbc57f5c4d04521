//! The metrics and health server over real sockets.

// The whole program is a test, its helpers too: lints that spare tests shall see it as one.
#![cfg(test)]

use std::time::Duration;

use tapio_daemon::http::{CONNECTIONS_MAX, HttpError, serve};
use tapio_daemon::{Health, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered and closed");
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

/// Scenario: a server asked for everything that it has and for what it has not; a component that fails.
/// Guarantees: each gets its status, the health is JSON with its reasons, and the server ends when told.
#[tokio::test]
async fn it_answers_and_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let (registry, health, token) = (Registry::new(), Health::new(), CancellationToken::new());
    registry.subsystem("test").counter("things", "Things").inc();
    let server = tokio::spawn(serve(listener, registry, health.clone(), token.clone()));

    let metrics = ask(address, &get("/metrics")).await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK"), "{metrics}");
    assert!(metrics.contains("tapio_test_things_total 1"));

    let progress = health.component("store", Duration::from_secs(60));
    let healthy = ask(address, &get("/healthz")).await;
    assert!(healthy.starts_with("HTTP/1.1 200 OK"), "{healthy}");
    progress.fault("no \"server\"");
    let degraded = ask(address, &get("/healthz")).await;
    assert!(degraded.starts_with("HTTP/1.1 503"), "{degraded}");
    let (_, body) = degraded.split_once("\r\n\r\n").expect("a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["status"], "degraded");
    assert_eq!(body["reasons"][0], "store: no \"server\"");
    assert_eq!(body["components"][0]["state"], "active");

    assert!(ask(address, &get("/")).await.starts_with("HTTP/1.1 404"));
    let post = "POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
    assert!(ask(address, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));

    token.cancel();
    server.await.expect("no panic").expect("ended in order");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

/// Scenario: as many silent connections as are served at a time.
/// Guarantees: a further one waits, and is answered as soon as one of them is gone.
#[tokio::test]
async fn silent_connections_are_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let token = CancellationToken::new();
    let server = tokio::spawn(serve(listener, Registry::new(), Health::new(), token.clone()));
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    let request = get("/healthz");
    let mut waiting = Box::pin(ask(address, &request));
    // They were all connected before, and are accepted in that order: while they hold on, no answer comes.
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    silent.pop();
    assert!(waiting.await.starts_with("HTTP/1.1 200 OK"));
    token.cancel();
    server.await.expect("no panic").expect("ended in order, although connections were open");
}

/// Scenario: a listener that other machines can reach.
/// Guarantees: it is refused, because nothing is encrypted.
#[tokio::test]
async fn it_serves_on_loopback_only() {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("bound");
    let result = serve(listener, Registry::new(), Health::new(), CancellationToken::new()).await;
    assert!(matches!(result, Err(HttpError::NotLoopback { .. })));
}
