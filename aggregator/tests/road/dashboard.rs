//! What people's browsers get: the page, findings as they come, a place to go on from, refusals with a reason.

use std::net::SocketAddr;

use serde_json::Value;
use tapio_wire::Position;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Duration, Instant, timeout},
};

use super::{
    findings::story,
    support::{Node, PATIENCE, World, frame, now},
};

/// Sends one request in HTTP/1.0, whose answer ends with its connection and is in one piece.
async fn ask(address: SocketAddr, head: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
    BufReader::new(stream)
}

/// Status, head and body of an answer.
async fn answer(address: SocketAddr, head: &str) -> (u16, String, Vec<u8>) {
    let mut text = Vec::new();
    let mut stream = ask(address, head).await;
    timeout(PATIENCE, stream.read_to_end(&mut text)).await.unwrap().unwrap();
    let end = text.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(text[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), text[end + 4..].to_vec())
}

async fn json(address: SocketAddr, path: &str) -> Value {
    let (status, _head, body) = answer(address, &get(path, "")).await;
    assert_eq!(status, 200, "{path}");
    serde_json::from_slice(&body).unwrap()
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: localhost{more}")
}

/// An open stream of updates.
struct Updates(BufReader<TcpStream>);

#[derive(Debug)]
struct Update {
    name: String,
    id: String,
    data: Value,
}

impl Updates {
    async fn open(address: SocketAddr, last: &str) -> Self {
        let more = if last.is_empty() { String::new() } else { format!("\r\nLast-Event-ID: {last}") };
        let mut stream = ask(address, &get("/api/v1/updates", &more)).await;
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.contains(" 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
        }
        Self(stream)
    }

    /// The next event; nothing where the stream is over.
    async fn next(&mut self) -> Option<Update> {
        let mut update = Update { name: String::new(), id: String::new(), data: Value::Null };
        loop {
            let mut line = String::new();
            let read =
                timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("an event in time").unwrap();
            match line.trim_end().split_once(": ") {
                _ if read == 0 => return None,
                Some(("event", name)) => update.name = name.to_owned(),
                Some(("id", id)) => update.id = id.to_owned(),
                Some(("data", data)) => update.data = serde_json::from_str(data).unwrap(),
                Some(_) => {}
                None if update.name.is_empty() => {}
                None => return Some(update),
            }
        }
    }

    /// The next event that is no status.
    async fn change(&mut self) -> Update {
        loop {
            let update = self.next().await.expect("the stream goes on");
            if update.name != "status" {
                return update;
            }
        }
    }
}

/// Tells a story and then that time passes, until a finding comes out of the stream.
async fn until_finding(node: &mut Node, updates: &mut Updates) -> Update {
    node.offer(&frame(node.source, Position::new(1, 1), &story(now()))).await;
    let deadline = Instant::now() + PATIENCE;
    let mut change = Box::pin(updates.change());
    for sequence in 2.. {
        assert!(Instant::now() < deadline, "no finding came");
        node.offer(&frame(node.source, Position::new(1, sequence), &[])).await;
        node.step().await;
        if let Ok(update) = timeout(Duration::from_millis(50), change.as_mut()).await {
            return update;
        }
    }
    unreachable!("sequences do not end");
}

/// Scenario: a page is open while a story becomes a finding; others ask for everything; a page comes back with an old
/// place, another with a place of nowhere; the aggregator ends.
/// Guarantees: the finding comes by itself, with who calls whom; the snapshot groups it, and its cursor is behind it;
/// who comes back is told what came since, or that it must start anew; the end is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn findings_come_to_a_page_and_are_resumed() {
    let world = World::new();
    let running = world.without_store().await;
    let address = running.dashboard_addr;
    let empty = json(address, "/api/v1/incidents").await;
    assert_eq!(empty["incidents"], Value::Array(Vec::new()));
    let mut updates = Updates::open(address, "").await;
    let status = updates.next().await.unwrap();
    assert_eq!((status.name.as_str(), &status.data["nodes"]["known"]), ("status", &Value::from(0)));
    assert_eq!(status.id, empty["cursor"].as_str().unwrap());

    let mut node = world.node(&running, "n1", 1).await;
    let told = until_finding(&mut node, &mut updates).await;
    assert_eq!(told.name, "finding");
    let finding = running.recent.finding(told.data["id"].as_str().unwrap()).unwrap();
    assert_eq!(told.data["title"], finding.title);
    let calls = told.data["chain"]["calls"].as_array().unwrap();
    assert!(!calls.is_empty(), "who calls whom is told: {}", told.data["chain"]);
    assert_eq!(told.data["history"].as_array().map(Vec::len), Some(1));

    let snapshot = json(address, "/api/v1/incidents").await;
    let [incident] = snapshot["incidents"].as_array().unwrap().as_slice() else { panic!("{snapshot}") };
    assert_eq!((&incident["id"], &incident["state"]), (&told.data["incident_id"], &Value::from("open")));
    assert_eq!(incident["findings"][0]["id"], told.data["id"]);
    let nodes = json(address, "/api/v1/nodes").await;
    assert_eq!((&nodes["nodes"][0]["node"], &nodes["nodes"][0]["state"]), (&"n1".into(), &"live".into()));
    // Nodes are summed up once a second at most.
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        let status = json(address, "/api/v1/status").await;
        if status["nodes"]["live"] == 1 || Instant::now() > deadline {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((&status["nodes"]["live"], &status["open_findings"]), (&1.into(), &1.into()));
    assert!(status["watermark"].as_u64().unwrap() > 0);

    let mut back = Updates::open(address, empty["cursor"].as_str().unwrap()).await;
    let again = back.change().await;
    assert_eq!((&again.data["id"], &again.id), (&told.data["id"], &told.id));
    let mut lost = Updates::open(address, "r1.ffff.0").await;
    let missed = lost.change().await;
    assert_eq!((missed.name.as_str(), &missed.data["reason"]), ("missed", &"unknown-cursor".into()));

    drop(node);
    running.stop().await.unwrap();
    loop {
        let update = updates.next().await.expect("the end is said");
        if update.name == "end" {
            break;
        }
    }
    assert!(updates.next().await.is_none());
}

/// Scenario: a browser gets the page and asks again; others come by a name that only points here, for what is not
/// there, with another method, and once more than there are streams.
/// Guarantees: the page is whole, is not sent twice, and may do nothing but its work; each of the others is refused
/// with a reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_served_and_others_are_refused() {
    let world = World::new();
    let running = world.without_store_by(|config| config.dashboard.streams_max = 1).await;
    let address = running.dashboard_addr;
    let (status, head, page) = answer(address, &get("/", "")).await;
    assert_eq!((status, page.as_slice()), (200, tapio_ui::asset("index.html").unwrap().bytes));
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff") && head.contains("no-cache"), "{head}");
    let tag = tapio_ui::asset("index.html").unwrap().etag;
    let (status, _head, body) = answer(address, &get("/", &format!("\r\nIf-None-Match: {tag}"))).await;
    assert_eq!((status, body.len()), (304, 0));
    let script = tapio_ui::ASSETS.iter().find(|asset| asset.is_immutable).unwrap();
    let (status, head, body) = answer(address, &get(&format!("/{}", script.path), "")).await;
    assert_eq!((status, body.len()), (200, script.bytes.len()));
    assert!(head.contains("immutable"), "{head}");

    let refused = async |request: &str| {
        let (status, head, body) = answer(address, request).await;
        assert!(head.contains("application/problem+json"), "{head}");
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["status"], status);
        (status, problem["detail"].as_str().unwrap().to_owned())
    };
    let foreign = refused("GET /api/v1/incidents HTTP/1.0\r\nHost: evil.example:7404").await;
    assert_eq!(foreign.0, 421);
    assert!(foreign.1.contains("127.0.0.1") && foreign.1.contains("dashboard.certificate"), "{}", foreign.1);
    assert_eq!(refused("GET /api/v1/incidents HTTP/1.0").await.0, 421, "no name is no name of this machine");
    assert_eq!(refused(&get("/api/v2", "")).await.0, 404);
    assert_eq!(refused(&get("/../Cargo.toml", "")).await.0, 404);
    assert_eq!(refused("POST /api/v1/incidents HTTP/1.0\r\nHost: localhost").await.0, 405);
    let _open = Updates::open(address, "").await;
    let full = refused(&get("/api/v1/updates", "")).await;
    assert_eq!(full.0, 503);
    assert!(full.1.contains("dashboard.streams_max"), "{}", full.1);
    running.stop().await.unwrap();
}
