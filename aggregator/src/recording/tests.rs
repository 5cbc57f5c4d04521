//! The ends of a recording together: what is written, and what happens where there is no room.

use std::{fs::File, path::PathBuf};

use tapio_correlation::{AnalysisLimits, RuleSet};
use tapio_daemon::{Health, Registry};
use tapio_recording::{End, Entry, Reader};
use tapio_schemas::entity::PodIdentity;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{config::RecordConfig, metrics::Metrics};

/// A recording whose writer is run by [`World::write`].
struct World {
    directory: tempfile::TempDir,
    runtime: Runtime,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
    writer: Option<Writer>,
}

impl World {
    fn new(bytes_max: u64) -> (Self, Tape, Recorder) {
        let (tape, recorder, source) = recording();
        let directory = tempfile::tempdir().unwrap();
        let (runtime, health, stop) = (Runtime::new().unwrap(), Health::new(), CancellationToken::new());
        let metrics = Metrics::register(&Registry::new());
        let config = RecordConfig { directory: directory.path().join("recordings"), bytes_max };
        let parts = Parts {
            rules: Arc::new(RuleSet::new(Vec::new()).unwrap()),
            tenant: "default".parse().unwrap(),
            cluster: "demo".parse().unwrap(),
            limits: AnalysisLimits::default(),
            reserve_bytes: 0,
            began: UnixMicros(7),
            source,
            runtime: runtime.handle().clone(),
            metrics: metrics.recording.clone(),
            progress: health.component("recording", Duration::from_secs(30)),
            stop: stop.clone(),
        };
        let writer = Some(Writer::open(&config, parts).unwrap());
        (Self { directory, runtime, health, metrics, stop, writer }, tape, recorder)
    }

    /// Writes everything that was handed over.
    fn write(&mut self) {
        self.writer.take().unwrap().run();
    }

    fn files(&self) -> Vec<PathBuf> {
        let folder = self.directory.path().join("recordings");
        let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some()).collect();
        files.sort();
        files
    }

    /// The part of a file, what its entries are, and how it ends.
    fn read(&self, place: usize) -> (u32, Vec<String>, Option<End>) {
        let file = File::open(&self.files()[place]).unwrap();
        let (mut reader, head, _rules) = Reader::open(file).unwrap();
        let mut kinds = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            kinds.push(match entry {
                Entry::Source(fact) => format!("source {} {}", fact.node, fact.missing_probes.len()),
                Entry::Names(change) => format!("names +{} -{}", change.named.len(), change.gone.len()),
                Entry::Frame { node, bytes, .. } => format!("frame {node} {}", bytes.len()),
                Entry::CatchUp(now) => format!("catch-up {}", now.0),
                Entry::Tick { now, revisions } => format!("tick {} {revisions}", now.0),
                Entry::Revision(bytes) => format!("revision {}", String::from_utf8_lossy(bytes)),
                Entry::Earlier(_) => "earlier".to_owned(),
                Entry::End(_) => continue,
            });
        }
        (head.part, kinds, reader.end())
    }
}

fn pods(uids: &[&str]) -> Arc<Pods> {
    let pod = |uid: &&str| {
        ((*uid).to_owned(), PodIdentity { pod_uid: (*uid).to_owned(), ..PodIdentity::default() })
    };
    Arc::new(Pods::new(uids.iter().map(pod).collect(), 1))
}

/// Scenario: frames of two nodes, one of which comes to see less; names that come and go; times, one with a revision.
/// Guarantees: they stand in the file in the order in which the engine said so, what is unchanged only once; the file
/// is closed, and only its owner may read it.
#[test]
fn what_the_engine_takes_is_written_in_its_order() {
    let (mut world, tape, mut recorder) = World::new(64 << 20);
    let (sees, lacks): (Arc<[String]>, Arc<[String]>) =
        (Arc::default(), Arc::from(["exit: failed".to_owned()]));
    let frame = Bytes::from_static(b"frame");
    recorder.frame_again("n1", &sees, UnixMicros(1), b"old");
    recorder.catch_up(UnixMicros(2));
    recorder.names(&pods(&["a", "b"]));
    recorder.frame(tape.keep("n2", &lacks, UnixMicros(3), &frame));
    recorder.frame(tape.keep("n1", &sees, UnixMicros(3), &frame));
    recorder.tick(UnixMicros(4), &[b"{}".to_vec()]);
    let later = pods(&["b", "c"]);
    recorder.names(&later);
    recorder.names(&later);
    recorder.frame(tape.keep("n1", &lacks, UnixMicros(5), &frame));
    recorder.tick(UnixMicros(6), &[]);
    recorder.finish();
    world.write();
    let (part, kinds, end) = world.read(0);
    let expected = [
        "source n1 0",
        "frame n1 3",
        "catch-up 2",
        "names +2 -0",
        "source n2 1",
        "frame n2 5",
        "frame n1 5",
        "tick 4 1",
        "revision {}",
        "names +1 -0",
        "names +0 -1",
        "source n1 1",
        "frame n1 5",
        "tick 6 0",
    ];
    assert_eq!((part, kinds), (1, expected.map(str::to_owned).to_vec()));
    assert_eq!(end, Some(End::Closed(Ending::Drained)));
    assert!(world.health.status().reasons.is_empty());
    let mode =
        |path: PathBuf| std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode(world.files().remove(0)) & 0o777, 0o600);
    assert_eq!(mode(world.directory.path().join("recordings")) & 0o777, 0o700);
}

/// Scenario: more is recorded than may be kept.
/// Guarantees: the oldest parts go; those that stay say which they are, begin with what is in force and say that they
/// go on; together they stay within the quota.
#[test]
fn a_long_recording_keeps_its_latest_parts() {
    let quota = 1 << 20;
    let (mut world, tape, mut recorder) = World::new(quota);
    let (sees, frame) = (Arc::default(), Bytes::from(vec![7; 30_000]));
    recorder.names(&pods(&["a"]));
    for number in 0..60 {
        recorder.frame(tape.keep("n1", &sees, UnixMicros(number), &frame));
        recorder.tick(UnixMicros(number), &[]);
    }
    recorder.finish();
    world.write();
    let files = world.files();
    let bytes: u64 = files.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes <= quota && bytes > quota / 2, "{bytes}");
    let first = world.read(0);
    assert!(first.0 > 1, "{}", first.0);
    assert_eq!(first.1[..2], ["source n1 0".to_owned(), "names +1 -0".to_owned()]);
    assert_eq!(first.2, Some(End::Closed(Ending::Continues)));
    let last = world.read(files.len() - 1);
    assert_eq!(last.0 - first.0 + 1, u32::try_from(files.len()).unwrap());
    assert_eq!((last.1.last().unwrap().as_str(), last.2), ("tick 59 0", Some(End::Closed(Ending::Drained))));
    assert!(world.metrics.recording.removed.get() > 0);
}

/// Scenario: the disk is so slow that frames fill the room there is for them; the sessions and the engine go on.
/// Guarantees: nobody waits: the recording ends in front of the first frame that found no room, says so in the file, in
/// the health and in a counter, and what is in it is whole.
#[test]
fn a_slow_disk_ends_the_recording_and_nothing_else() {
    let (mut world, tape, mut recorder) = World::new(1 << 30);
    let (sees, frame) = (Arc::default(), Bytes::from(vec![7; 4 << 20]));
    recorder.goes_live();
    let mut kept = 0;
    for number in 0..40 {
        let one = tape.keep("n1", &sees, UnixMicros(number), &frame);
        kept += usize::from(one.is_some());
        recorder.frame(one);
        recorder.tick(UnixMicros(number), &[]);
    }
    assert_eq!(kept, BYTES_UNDER_WAY_MAX >> 22);
    let end = world.stop.clone();
    let (health, ended) = (world.health.clone(), world.metrics.recording.ended.clone());
    let reasons = thread::scope(|scope| {
        let writing = scope.spawn(|| world.write());
        let deadline = Instant::now() + Duration::from_secs(30);
        while ended.get("behind") == 0 && Instant::now() < deadline {
            thread::sleep(AGAIN_PAUSE);
        }
        let reasons = loop {
            let reasons = health.status().reasons;
            if !reasons.is_empty() || Instant::now() > deadline {
                break reasons;
            }
            thread::sleep(AGAIN_PAUSE);
        };
        end.cancel();
        writing.join().unwrap();
        reasons
    });
    assert!(reasons[0].contains("has ended: it came faster than it could be written"), "{reasons:?}");
    let (_, kinds, end) = world.read(0);
    assert_eq!((kinds.len(), end), (1 + 2 * kept, Some(End::Closed(Ending::Behind))));
    assert!(tape.keep("n1", &sees, UnixMicros(9), &Bytes::new()).is_none());
    drop(world.runtime);
}

/// Scenario: more arrives than may be kept while the engine still sees again what the spool held; then it comes to that.
/// Guarantees: what was kept is recorded; the recording ends then, and says that the start was the reason, not the disk.
#[test]
fn a_start_that_takes_long_is_told() {
    let (mut world, tape, mut recorder) = World::new(1 << 30);
    let (sees, frame) = (Arc::default(), Bytes::from(vec![7; 4 << 20]));
    let arrived: Vec<_> = (0..20).map(|number| tape.keep("n1", &sees, UnixMicros(number), &frame)).collect();
    recorder.goes_live();
    arrived.into_iter().for_each(|kept| recorder.frame(kept));
    drop(recorder);
    world.stop.cancel();
    world.write();
    let (_, kinds, end) = world.read(0);
    let expected = (1 + (BYTES_UNDER_WAY_MAX >> 22), Some(End::Closed(Ending::Crowded)));
    assert_eq!((kinds.len(), end), expected);
    assert_eq!(world.metrics.recording.ended.get("crowded"), 1);
}

/// Scenario: a thousand pods have names, and parts are smaller than those are; then with a quota that they nearly fill.
/// Guarantees: a part holds more than what it begins with, so that the quota is not spent on that; where the quota is too
/// small for it, the recording ends and says so.
#[test]
fn many_names_leave_room_in_each_part() {
    let uids: Vec<String> = (0..1_000).map(|number| format!("{number:0>36}")).collect();
    let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
    let frame = Bytes::from(vec![7; 1_000]);
    for (quota, ending) in [(2 << 20, Ending::Drained), (256 << 10, Ending::TooLarge)] {
        let (mut world, tape, mut recorder) = World::new(quota);
        recorder.names(&pods(&uids));
        for number in 0..3_000 {
            recorder.frame(tape.keep("n1", &Arc::default(), UnixMicros(number), &frame));
        }
        recorder.finish();
        world.stop.cancel();
        world.write();
        let files = world.files();
        let sizes: Vec<u64> = files.iter().map(|path| path.metadata().unwrap().len()).collect();
        assert_eq!(world.read(files.len() - 1).2, Some(End::Closed(ending)), "{sizes:?}");
        if ending == Ending::Drained {
            assert!(sizes.iter().sum::<u64>() <= quota + (256 << 10), "{sizes:?}");
            let frames = world.read(0).1.iter().filter(|kind| kind.starts_with("frame")).count();
            assert!(frames > 50, "{frames} in a part of {} bytes", sizes[0]);
        }
    }
}

/// Scenario: somebody moves the folder away while it is recorded into, so that no further part can be made.
/// Guarantees: the recording ends with that as its reason, and its last file is whole and says so.
#[test]
fn a_folder_that_is_gone_ends_the_recording() {
    let (mut world, tape, mut recorder) = World::new(1 << 20);
    let (sees, frame) = (Arc::default(), Bytes::from(vec![7; 30_000]));
    let folder = world.directory.path().join("recordings");
    let elsewhere = world.directory.path().join("elsewhere");
    std::fs::rename(&folder, &elsewhere).unwrap();
    for number in 0..20 {
        recorder.frame(tape.keep("n1", &sees, UnixMicros(number), &frame));
    }
    world.stop.cancel();
    world.write();
    std::fs::rename(&elsewhere, &folder).unwrap();
    assert_eq!(world.files().len(), 1);
    assert_eq!(world.read(0).2, Some(End::Closed(Ending::DiskFailed)));
    assert_eq!(world.metrics.recording.ended.get("disk-failed"), 1);
}

/// Scenario: the engine's thread fails: it drops its end without a word.
/// Guarantees: the file does not look as if the aggregator had ended in order.
#[test]
fn an_engine_that_fails_is_told() {
    let (mut world, _tape, mut recorder) = World::new(64 << 20);
    recorder.tick(UnixMicros(1), &[]);
    drop(recorder);
    world.stop.cancel();
    world.write();
    assert_eq!(world.read(0).2, Some(End::Closed(Ending::Failed)));
}
