//! What each account may do.

use std::io::{Read, Write};
use std::time::Duration;

use tapio_store::client::{
    BlockWriter, ClientError, Credentials, DeduplicationToken, Endpoint, ReadLimits, Reader,
};

use crate::Store;

/// ClickHouse's ACCESS_DENIED, READONLY and AUTHENTICATION_FAILED.
const DENIED: &[u32] = &[497, 164, 516];

fn assert_denied<T: std::fmt::Debug>(outcome: Result<T, ClientError>, statement: &str) {
    match outcome {
        Err(ClientError::Server { code, .. }) if DENIED.contains(&code) => {}
        other => panic!("{statement} should be denied and gave {other:?}"),
    }
}

/// What a request by hand gets.
fn http(url: &str, target: &str, headers: &str) -> String {
    let address = url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {target} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Scenario: the account for people's SQL reads, and tries everything else.
/// Guarantees: it reads `tapio`; it cannot insert, drop, create, read users or files, reach the network, or lift its
/// own limits.
#[tokio::test(flavor = "multi_thread")]
async fn people_can_only_read() {
    let Some(store) = Store::start().await else { return };
    let token = DeduplicationToken::new("a").unwrap();
    let block = crate::blocks::frames(0, 1);
    store.blocks.insert("frames", &block, &token).await.unwrap();

    let rows: Vec<serde_json::Value> =
        store.reader.rows("SELECT sequence FROM tapio.frames", &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    let tables: Vec<serde_json::Value> = store.reader.rows("SHOW TABLES FROM tapio", &[]).await.unwrap();
    assert!(!tables.is_empty());

    for statement in [
        "INSERT INTO tapio.frames (sequence) SELECT 1",
        "DROP TABLE tapio.frames",
        "TRUNCATE TABLE tapio.frames",
        "ALTER TABLE tapio.frames DELETE WHERE 1",
        "CREATE TABLE tapio.mine (a UInt8) ENGINE = MergeTree ORDER BY a",
        "CREATE TEMPORARY TABLE mine (a UInt8) ENGINE = Memory",
        "CREATE DATABASE mine",
        "SYSTEM STOP LISTEN HTTP",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
    ] {
        assert_denied(store.reader.execute(statement, &[]).await, statement);
    }
    for statement in [
        "SELECT * FROM system.users",
        "SELECT * FROM system.server_settings",
        "SELECT * FROM system.processes",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString', 'a String')",
        "SELECT * FROM remote('127.0.0.1', 'system', 'one')",
    ] {
        assert_denied(store.reader.answer(statement, &[]).await, statement);
    }
    // SETTING_CONSTRAINT_VIOLATION
    let unlimited = "SELECT 1 SETTINGS max_execution_time = 0, max_memory_usage = 0";
    match store.reader.execute(unlimited, &[]).await {
        Err(ClientError::Server { code: 452, .. }) => {}
        other => panic!("limits should not be liftable: {other:?}"),
    }
    let people = BlockWriter::new(store.engine.reader_endpoint().unwrap(), Duration::from_secs(10));
    assert_denied(people.insert("frames", &block, &token).await, "insert of a block");
    store.stop().await;
}

/// Scenario: the writer leaves its database; the engine's own passwordless account is used from outside; a wrong
/// password is given.
/// Guarantees: none of it works, and the engine still answers afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn the_writer_and_the_own_account_are_confined() {
    let Some(store) = Store::start().await else { return };
    for statement in [
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString', 'a String')",
    ] {
        assert_denied(store.writer.answer(statement, &[]).await, statement);
    }
    for statement in [
        "CREATE TABLE tapio.files (a String) ENGINE = File(CSV)",
        "CREATE DATABASE other",
        "SYSTEM STOP LISTEN HTTP",
        "GRANT SELECT ON system.* TO tapio_reader",
    ] {
        assert_denied(store.writer.execute(statement, &[]).await, statement);
    }

    let as_user = |user: &str, password: &str| {
        let credentials = Credentials { user: user.to_owned(), password: password.to_owned() };
        Reader::new(&Endpoint::new(&store.engine.http_url(), credentials).unwrap(), ReadLimits::default())
    };
    // The engine's own account has no password: no way of naming it, or nobody, may lead to it.
    let own = as_user("default", "");
    for statement in ["SELECT 1", "SELECT file('/etc/passwd')", "SYSTEM STOP LISTEN HTTP"] {
        let answer = own.execute(statement, &[]).await;
        assert!(matches!(answer, Err(ClientError::NotClickHouse { .. })), "{statement}: {answer:?}");
    }
    let reader = store.engine.reader().clone();
    let named = format!("X-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\n", reader.user, reader.password);
    for (target, headers) in [
        ("/?query=SELECT%201", ""),
        ("/?query=SELECT%201&user=default", ""),
        ("/?query=SELECT%201&user=default&password=", named.as_str()),
        ("/?query=SELECT%201", "Authorization: Basic ZGVmYXVsdDo=\r\n"),
        ("/?query=SELECT%201", "Authorization: Basic ZGVmYXVsdDo=\r\nX-ClickHouse-User: tapio_reader\r\n"),
        ("/?query=SELECT%201", "X-ClickHouse-User: tapio_reader\r\nX-ClickHouse-User: default\r\n"),
        ("/?query=SELECT%201", "X-ClickHouse-User: default\r\nX-ClickHouse-User: tapio_reader\r\n"),
        ("/play", ""),
        ("/replicas_status", ""),
    ] {
        let answer = http(&store.engine.http_url(), target, headers);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "400" | "401" | "403" | "404"), "{target} {headers}: {answer}");
    }
    assert!(http(&store.engine.http_url(), "/?query=SELECT%201", &named).ends_with("\r\n\r\n1\n"));
    let wrong = as_user("tapio_writer", "wrong").answer("SELECT 1", &[]).await;
    assert_denied(wrong, "a wrong password");
    assert_eq!(store.number("SELECT 1 AS n").await, 1);
    store.stop().await;
}
