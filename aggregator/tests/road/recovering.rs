//! What was received is stored once, although marks are lost, blocks are half known and disks are damaged.

use std::{fs, os::unix::fs::FileExt as _};

use serde_json::{Value, json};
use tapio_store::{
    client::{ReadLimits, Reader},
    engine::{EmbeddedEngine, EngineConfig},
    migrations,
};
use tapio_wire::Position;

use super::{
    storing::{DISTINCT, EVENTS, ROWS, send},
    support::{World, engine_is_here, number, store},
    waiting::{LARGE_ROWS, large},
};

/// Lines of nodes' ledgers.
const LEDGER: &str = "SELECT count() AS n FROM tapio.ledger WHERE node = 'n1'";

/// Scenario: a node's frames are stored; then the marks and the spool are moved away, as the advice says, and the node
/// sends what it still holds, and more, before the store is back.
/// Guarantees: no frame that the store has is stored again, and the new one is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_that_are_moved_away_double_nothing() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=10).await;
    node.until_stored(10).await;
    running.stop().await.unwrap();

    let state = world.path().join("state");
    for gone in ["stored.json", "cut.json", "spool"] {
        fs::rename(state.join(gone), world.path().join(gone)).unwrap();
    }
    let running = world.without_store().await;
    let mut node = world.node(&running, "n1", 1).await;
    assert_eq!(node.session.received(), Position::START);
    send(&mut node, 1, 1..=10).await;
    node.until_received(10).await;
    running.stop().await.unwrap();

    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 11..=11).await;
    node.until_stored(11).await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, 11 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 11 * ROWS);
    running.stop().await.unwrap();
}

/// Scenario: a block has reached the events and the ledger, and neither the table of frames nor the roll-up, when the
/// aggregator's disk is lost; its node sends all again, and more.
/// Guarantees: what the tables have of those frames is left out, what they lack is stored, and the roll-up says what the
/// events say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_has_in_part_is_completed() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=6).await;
    node.until_stored(6).await;
    let lines = number(&store(&running), LEDGER).await;
    running.stop().await.unwrap();

    let state = world.path().join("state");
    let engine = EmbeddedEngine::start(EngineConfig::new(state.join("clickhouse")).unwrap()).await.unwrap();
    let writer = Reader::new(&engine.writer_endpoint().unwrap(), ReadLimits::default());
    for lost in ["frames DELETE WHERE sequence > 3", "events_per_minute DELETE WHERE 1"] {
        let statement = format!("ALTER TABLE tapio.{lost} SETTINGS mutations_sync = 1");
        writer.execute(&statement, &[]).await.unwrap();
    }
    engine.stop().await.unwrap();
    for gone in ["stored.json", "cut.json", "spool"] {
        fs::rename(state.join(gone), world.path().join(gone)).unwrap();
    }

    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=6).await;
    node.until_stored(6).await;
    let reader = store(&running);
    assert_eq!(number(&reader, LEDGER).await, lines);
    send(&mut node, 1, 7..=7).await;
    node.until_stored(7).await;
    assert_eq!(number(&reader, EVENTS).await, 7 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 7 * ROWS);
    assert_eq!(number(&reader, "SELECT count() AS n FROM tapio.frames").await, 7);
    let minutes = "SELECT toStartOfMinute(time_micros) FROM tapio.events WHERE sequence > 3";
    let rolled_up = format!("SELECT sum(rows) AS n FROM tapio.events_per_minute WHERE minute IN ({minutes})");
    let events = format!("{EVENTS} WHERE toStartOfMinute(time_micros) IN ({minutes})");
    assert_eq!(number(&reader, &rolled_up).await, number(&reader, &events).await);
    running.stop().await.unwrap();
}

/// Scenario: the process ends after the last insert of a block and before it noted that; by the next start the tables
/// have forgotten the block's tokens (here: they are others).
/// Guarantees: the store is asked, and the block is not stored a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_stored_is_recognised_without_its_token() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=5).await;
    node.until_stored(5).await;
    // A later cut may be of the aggregator's own ledger alone.
    let last = number(&store(&running), "SELECT max(cut) AS n FROM tapio.frames").await;
    running.stop().await.unwrap();

    let state = world.path().join("state");
    let read = |name| serde_json::from_slice::<Value>(&fs::read(state.join(name)).unwrap()).unwrap();
    let (mut stored, mut cut) = (read("stored.json"), read("cut.json"));
    stored["until"] = json!(last);
    stored["sources"] = json!({});
    stored["stored_at"] = json!({});
    stored["spool"] = json!("00000000000000000000000000000000");
    cut["from"] = json!(last);
    fs::write(state.join("stored.json"), stored.to_string()).unwrap();
    fs::write(state.join("cut.json"), cut.to_string()).unwrap();

    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    assert_eq!(node.session.received(), Position::new(1, 5));
    send(&mut node, 1, 6..=6).await;
    node.until_stored(6).await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, 6 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 6 * ROWS);
    running.stop().await.unwrap();
}

/// Scenario: a table of the schema is told to remember few blocks.
/// Guarantees: it is refused by name, with what to do; before, the schema is fine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgetful_table_is_refused() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let engine =
        EmbeddedEngine::start(EngineConfig::new(world.path().join("engine")).unwrap()).await.unwrap();
    let server = Reader::new(&engine.writer_endpoint().unwrap(), ReadLimits::default());
    migrations::migrate(&server).await.unwrap();
    let needed = migrations::REMEMBERED_BLOCKS_MIN;
    migrations::check_deduplication(&server, needed).await.unwrap();
    let alter = "ALTER TABLE tapio.ledger MODIFY SETTING non_replicated_deduplication_window = 100";
    server.execute(alter, &[]).await.unwrap();
    let refused = migrations::check_deduplication(&server, needed).await.unwrap_err().to_string();
    assert!(refused.contains("tapio.ledger") && refused.contains("MODIFY SETTING"), "{refused}");
    engine.stop().await.unwrap();
}

/// Scenario: the store is away; frames wait in the spool, and the disk damages one of them.
/// Guarantees: no frame from there on is said to be received; the node sends them again, and each is stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_frames_are_sent_again() {
    if !engine_is_here() {
        return;
    }
    const FRAMES: u64 = 120;
    let world = World::new();
    let running = world.without_store().await;
    let mut node = world.node(&running, "n1", 1).await;
    for sequence in 1..=FRAMES {
        let frame = large(&node, sequence);
        node.offer(&frame).await;
    }
    node.until_received(FRAMES).await;
    running.stop().await.unwrap();

    let mut segments: Vec<_> = fs::read_dir(world.path().join("state/spool"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    segments.sort();
    assert!(segments.len() > 1, "{segments:?}");
    let segment = fs::File::options().read(true).write(true).open(&segments[0]).unwrap();
    let (middle, mut byte) = (segment.metadata().unwrap().len() / 2, [0]);
    segment.read_exact_at(&mut byte, middle).unwrap();
    segment.write_all_at(&[byte[0] ^ 0x55], middle).unwrap();

    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    let received = node.session.received().sequence.0;
    assert!(received > 5 && received < FRAMES, "{received}");
    for sequence in received + 1..=FRAMES {
        let frame = large(&node, sequence);
        node.offer(&frame).await;
    }
    node.until_stored(FRAMES).await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, FRAMES * LARGE_ROWS);
    assert_eq!(number(&reader, DISTINCT).await, FRAMES * LARGE_ROWS);
    running.stop().await.unwrap();

    // What was sent again stays what it is at the next start.
    let running = world.embedded().await;
    let node = world.node(&running, "n1", 1).await;
    assert_eq!(node.session.stored(), Position::new(1, FRAMES));
    assert_eq!(number(&store(&running), EVENTS).await, FRAMES * LARGE_ROWS);
    running.stop().await.unwrap();
}
