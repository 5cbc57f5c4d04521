//! Sessions as a fence: what the server does with inserts of a session that is open, closed, or forgotten.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use tapio_store::client::session::Sessions;
use tapio_store::client::{Advice, DeduplicationToken, ReadLimits, SessionId};

use crate::{Store, blocks::frames};

/// Scenario: an insert in a session that was never opened; that is open; that was closed; that is opened anew; that the
/// server forgot, because it was restarted.
/// Guarantees: only in an open session anything is inserted; a refusal says that the session is not open.
#[tokio::test(flavor = "multi_thread")]
async fn only_an_open_session_inserts() {
    let Some(store) = Store::start().await else { return };
    let sessions = Sessions::new(&store.engine.writer_endpoint().unwrap(), ReadLimits::default());
    let session = SessionId::new("life-1").unwrap();
    let inside = store.blocks.in_session(session.clone());
    let count = "SELECT count() AS n FROM tapio.frames";
    let insert = async |number: u64| {
        let token = DeduplicationToken::new(format!("cut-{number}")).unwrap();
        inside.insert("frames", &frames(number, 1), &token).await
    };
    assert!(insert(1).await.unwrap_err().is_session_closed());
    sessions.open(&session).await.unwrap();
    insert(1).await.unwrap();
    sessions.close(&session).await.unwrap();
    // Closed already is closed too.
    sessions.close(&session).await.unwrap();
    assert!(insert(2).await.unwrap_err().is_session_closed());
    assert_eq!(store.number(count).await, 1);
    sessions.open(&session).await.unwrap();
    insert(2).await.unwrap();
    assert_eq!(store.number(count).await, 2);
    store.stop().await;
}

/// Scenario: an insert whose client has sent a part of it, and dies; meanwhile the session is to be closed.
/// Guarantees: it is not closed while the insert may still be carried out, with the advice to retry; then it is, and of the
/// insert nothing is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_closed_under_an_insert() {
    let Some(store) = Store::start().await else { return };
    let endpoint = store.engine.writer_endpoint().unwrap();
    let sessions = Sessions::new(&endpoint, ReadLimits::default());
    let session = SessionId::new("life-1").unwrap();
    sessions.open(&session).await.unwrap();

    let block = frames(1, 1_000);
    let host = endpoint.url().strip_prefix("http://").unwrap();
    let mut half = TcpStream::connect(host).unwrap();
    let columns = block.columns().join(",");
    let head = format!(
        "POST /?session_id=life-1&session_check=1&query=INSERT%20INTO%20tapio.frames%20({columns})%20FORMAT%20Native \
         HTTP/1.1\r\nHost: {host}\r\nX-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\nContent-Length: {}\r\n\r\n",
        endpoint.credentials().user,
        endpoint.credentials().password,
        block.bytes().len()
    );
    half.write_all(head.as_bytes()).unwrap();
    half.write_all(&block.bytes()[..block.bytes().len() / 2]).unwrap();
    half.flush().unwrap();
    let mut refused = None;
    for _try in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Err(error) = sessions.close(&session).await {
            refused = Some(error);
            break;
        }
        // The insert had not begun.
        sessions.open(&session).await.unwrap();
    }
    let refused = refused.expect("a session that is held is not closed");
    assert_eq!(refused.advice(), Advice::Retry, "{refused}");
    drop(half);
    let closed = async {
        while sessions.close(&session).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), closed).await.unwrap();
    assert_eq!(store.number("SELECT count() AS n FROM tapio.frames").await, 0);
    store.stop().await;
}
