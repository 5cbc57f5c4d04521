//! What an aggregator recorded gives, replayed, what it announced.

use std::{fs::File, path::Path, sync::Arc, time::Instant};

use tapio_aggregator::{Running, config::RecordConfig};
use tapio_correlation::RuleSet;
use tapio_recording::{Comparison, End, Ending, Reader, Replay, Rules};
use tapio_schemas::finding::Finding;
use tapio_wire::Position;

use super::{
    findings::story,
    support::{Node, PATIENCE, World, frame, now},
};

async fn recorded(world: &World) -> Running {
    let mut config = world.config("mode = \"server\"\nurl = \"http://127.0.0.1:9\"");
    config.record = Some(RecordConfig { directory: world.path().join("recordings"), bytes_max: 64 << 20 });
    tapio_aggregator::start(config).await.unwrap()
}

/// Every recording of a folder, replayed, the oldest first: the revisions, how they compare, how the file ends.
fn replayed(folder: &Path) -> Vec<(Vec<Finding>, Comparison, Option<End>)> {
    let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some()).collect();
    files.sort();
    let replay = |file| {
        let (mut reader, head, rules) = Reader::open(File::open(file).unwrap()).unwrap();
        let rules = Arc::new(RuleSet::from_bytes(&rules).unwrap());
        let mut replay = Replay::new(&head, Rules::Recorded(rules)).unwrap();
        let mut revisions = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            revisions.extend(replay.take(entry).unwrap());
        }
        (revisions, replay.comparison().clone(), reader.end())
    };
    files.into_iter().map(replay).collect()
}

/// Sends frames that say that the node lives until `done`.
async fn live_until(node: &mut Node, sequence: &mut u64, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "nothing came of it");
        *sequence += 1;
        node.offer(&frame(node.source, Position::new(1, *sequence), &[])).await;
        node.until_received(*sequence).await;
        node.step().await;
    }
}

/// Scenario: an aggregator records while a node tells of a kill for memory, and names of pods come; it is restarted,
/// sees again what its spool holds, and records more. There is no store.
/// Guarantees: each recording, replayed without the aggregator's files, gives byte for byte what was announced live;
/// the second begins with what was known before; no finding is announced twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_give_what_was_announced() {
    let world = World::new();
    let pods =
        r#"{"version":1,"pods":[{"pod_uid":"pod-b","namespace":"shop","pod":"p-1","service":"payment"}]}"#;
    std::fs::write(world.path().join("identities.json"), pods).unwrap();
    let running = recorded(&world).await;
    let mut node = world.node(&running, "n1", 1).await;
    let mut sequence = 1;
    node.offer(&frame(node.source, Position::new(1, sequence), &story(now()))).await;
    let recent = running.recent.clone();
    live_until(&mut node, &mut sequence, || !recent.findings().is_empty()).await;
    let first_frames = sequence;
    running.stop().await.unwrap();
    let announced = recent.findings();

    let recordings = replayed(&world.path().join("recordings"));
    let [(revisions, comparison, end)] = recordings.as_slice() else { panic!("{recordings:?}") };
    assert_eq!(comparison.difference, None);
    assert_eq!(*end, Some(End::Closed(Ending::Drained)));
    assert_eq!((comparison.frames, comparison.live), (first_frames, revisions.len() as u64));
    for finding in &announced {
        assert!(revisions.contains(finding), "{} is not in the replay", finding.id);
    }
    assert!(!announced.is_empty());

    let running = recorded(&world).await;
    let recent = running.recent.clone();
    let mut node = world.node(&running, "n1", 1).await;
    let until = sequence + 5;
    let mut sent = 0;
    live_until(&mut node, &mut sequence, || {
        sent += 1;
        sent > 5
    })
    .await;
    running.stop().await.unwrap();
    let ids =
        |findings: &[Arc<Finding>]| -> Vec<String> { findings.iter().map(|one| one.id.clone()).collect() };
    assert_eq!(ids(&recent.findings()), ids(&announced));

    let recordings = replayed(&world.path().join("recordings"));
    let [first, (_, comparison, end)] = recordings.as_slice() else { panic!("{recordings:?}") };
    assert_eq!(first.1.difference, None);
    assert_eq!((&comparison.difference, *end), (&None, Some(End::Closed(Ending::Drained))));
    assert_eq!((comparison.frames, sequence), (until, until), "all that the spool held, and what came since");
}
