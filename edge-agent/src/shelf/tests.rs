use tapio_schemas::ids::FrameId;
use tapio_spool::disk::RealDisk;
use tapio_wire::frame::{FrameEncoder, FrameLimits, FrameMeta};

use super::*;

const SOURCE: SourceId = SourceId([1; 16]);
const OTHER: SourceId = SourceId([2; 16]);

fn frame(source: SourceId, position: Position, events: u32) -> Vec<u8> {
    let id = FrameId { source, incarnation: position.incarnation, sequence: position.sequence };
    let mut builder = tapio_schemas::batch::BatchBuilder::default();
    for _ in 0..events {
        builder.begin_row().unwrap().commit().unwrap();
    }
    let mut batch = tapio_schemas::batch::AlignedVec::new();
    builder.finish(&mut batch).unwrap();
    let mut bytes = Vec::new();
    let meta = FrameMeta::new(id, events);
    FrameEncoder::new(FrameLimits::default()).unwrap().encode(meta, &batch, &mut bytes).unwrap();
    bytes
}

fn open(folder: &Path) -> (Shelf, Arc<Losses>) {
    let losses = Arc::new(Losses::default());
    (
        Shelf::open(
            Arc::new(RealDisk),
            folder,
            Room::of_quota(0),
            SOURCE,
            Arc::clone(&losses),
            Instant::now(),
        )
        .unwrap(),
        losses,
    )
}

fn append(shelf: &Shelf, position: Position) {
    shelf.append(position, 3, &frame(SOURCE, position, 3), Instant::now()).unwrap();
}

fn positions(mut frames: Frames) -> Vec<Position> {
    std::iter::from_fn(|| frames.next_frame().unwrap()).map(|(position, _)| position).collect()
}

fn told(losses: &Losses) -> Vec<(&'static str, &'static str, u64)> {
    losses.take().filter(|(_, _, count)| *count > 0).collect()
}

/// Scenario: frames of two lives are shelved, some are stored, the agent is restarted.
/// Guarantees: reading goes on behind any position, over lives; what is stored is gone; what is not survives; an
/// empty shelf names the next frame.
#[test]
fn frames_stay_until_they_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let all = [(7, 1), (7, 2), (9, 1), (9, 2)].map(|(life, number)| Position::new(life, number));
    let (shelf, _) = open(folder.path());
    assert_eq!(shelf.oldest_or_next(Incarnation(7)), all[0]);
    for position in all {
        append(&shelf, position);
    }
    assert_eq!(positions(shelf.read_after(Position::START)), all);
    assert_eq!(positions(shelf.read_after(all[1])), all[2..]);
    shelf.stored(all[0]);
    shelf.end(Instant::now()).unwrap();
    drop(shelf);
    let (shelf, losses) = open(folder.path());
    assert_eq!((shelf.frames(), shelf.oldest_or_next(Incarnation(11))), (3, all[1]));
    assert_eq!(positions(shelf.read_after(Position::START)), all[1..]);
    shelf.stored(all[3]);
    assert_eq!((shelf.newest(), positions(shelf.read_after(all[0]))), (None, vec![]));
    let next = Position::new(11, 1);
    append(&shelf, next);
    shelf.stored(next);
    assert_eq!(shelf.oldest_or_next(Incarnation(11)), Position::new(11, 2));
    shelf.end(Instant::now()).unwrap();
    assert!(shelf.append(next, 0, b"late", Instant::now()).is_err());
    assert_eq!(told(&losses), []);
}

/// Scenario: a stored acknowledgement comes while the spool's thread waits for the disk.
/// Guarantees: it does not wait for the disk, nor does whatever else the uplink asks; the disk is told later.
#[test]
fn an_acknowledgement_does_not_wait_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (shelf, _) = open(folder.path());
    let [first, second] = [1, 2].map(|sequence| Position::new(7, sequence));
    append(&shelf, first);
    append(&shelf, second);
    // As an append or an fsync holds it: were any of these to lock it too, the test would never end.
    let disk = shelf.disk();
    let low = disk.spool.as_ref().unwrap().low();
    shelf.stored(first);
    assert_eq!(positions(shelf.read_after(Position::START)), [second]);
    assert_eq!(
        (shelf.oldest_or_next(Incarnation(7)), shelf.newest(), shelf.frames()),
        (second, Some(second), 1)
    );
    assert_eq!(disk.spool.as_ref().unwrap().low(), low);
    drop(disk);
    shelf.tend(Instant::now()).unwrap();
    assert_eq!(shelf.disk().spool.as_ref().unwrap().low(), low, "trimmed before the interval was over");
    shelf.disk().trimmed_at -= TRIM_INTERVAL;
    shelf.tend(Instant::now()).unwrap();
    assert_eq!(shelf.disk().spool.as_ref().unwrap().low(), low.next());
}

/// Scenario: the node was renamed: its spool has frames of the source that it was, frames of its own, and a record that
/// is no frame.
/// Guarantees: only its own are offered; the others are counted, their events too, and are forgotten with the next
/// frame that is stored.
#[test]
fn frames_of_another_source_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let at = |sequence| Position::new(7, sequence);
    let (shelf, _) = open(folder.path());
    shelf.append(at(1), 5, &frame(OTHER, at(1), 5), Instant::now()).unwrap();
    shelf.append(at(2), 0, b"no frame", Instant::now()).unwrap();
    append(&shelf, at(3));
    shelf.append(at(4), 2, &frame(OTHER, at(4), 2), Instant::now()).unwrap();
    append(&shelf, at(5));
    shelf.end(Instant::now()).unwrap();
    let (shelf, losses) = open(folder.path());
    assert_eq!((shelf.frames(), shelf.oldest_or_next(Incarnation(8))), (2, at(3)));
    assert_eq!(positions(shelf.read_after(Position::START)), [at(3), at(5)]);
    assert_eq!(told(&losses), [("events", "other-source", 7), ("frames", "no-frame", 1)]);
    assert_eq!((told(&losses), losses.frames(Loss::OtherSource)), (vec![], 2));
    shelf.stored(at(5));
    shelf.end(Instant::now()).unwrap();
    let (shelf, losses) = open(folder.path());
    assert_eq!((shelf.frames(), told(&losses)), (0, vec![]));
}

/// Scenario: the quota forces frames out, and one cannot be shipped.
/// Guarantees: their events are counted, each once.
#[test]
fn what_is_lost_is_counted_in_events() {
    let folder = tempfile::tempdir().unwrap();
    let (shelf, losses) = open(folder.path());
    let large = vec![7; 3 << 20];
    for sequence in 1..=8 {
        shelf.append(Position::new(7, sequence), 10, &large, Instant::now()).unwrap();
    }
    // Two frames to a segment of 8 MiB, two segments to the quota: the third begins where the first goes.
    let kept = shelf.frames();
    assert!((2..8).contains(&kept), "{kept}");
    assert_eq!(told(&losses), [("events", "quota", (8 - kept) * 10)]);
    shelf.give_up(Position::new(7, 8), Loss::TooLarge);
    shelf.give_up(Position::new(7, 8), Loss::TooLarge);
    assert_eq!(told(&losses), [("events", "frame-too-large", 10)]);
    assert_eq!((losses.frames(Loss::Quota), losses.frames(Loss::TooLarge)), (8 - kept, 1));
}

/// Scenario: the spool's folder is deleted under the agent, so that the next segment cannot be made; later it can; and
/// once more, but for a while it cannot be opened.
/// Guarantees: the spool is opened again, frames are taken again and read by who reads on, and what was gone is counted.
#[test]
fn a_poisoned_spool_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("spool");
    let (shelf, losses) = open(&directory);
    let large = vec![7; 3 << 20];
    let poison = |from: u64| {
        std::fs::remove_dir_all(&directory).unwrap();
        (from..from + 4)
            .find(|sequence| shelf.append(Position::new(7, *sequence), 10, &large, Instant::now()).is_err())
            .unwrap()
    };
    let refused = poison(1);
    assert_eq!(told(&losses), [("events", "spool-refused", 10)]);
    let reader = shelf.read_after(Position::START);
    let next = Position::new(7, refused + 1);
    append(&shelf, next);
    assert!(!shelf.is_current(&reader));
    assert_eq!(positions(shelf.read_after(Position::START)), [next]);
    assert_eq!(told(&losses), [("events", "spool-damaged", (refused - 1) * 10)]);

    let refused = poison(refused + 2);
    std::fs::write(&directory, "in the way").unwrap();
    assert!(
        shelf.tend(Instant::now()).is_err()
            || shelf.append(Position::new(7, refused + 1), 10, &large, Instant::now()).is_err()
    );
    assert!(shelf.append(Position::new(7, refused + 2), 10, &large, Instant::now()).is_err());
    std::fs::remove_file(&directory).unwrap();
    shelf.disk().reopen_at = Instant::now();
    shelf.tend(Instant::now()).unwrap();
    let next = Position::new(7, refused + 3);
    append(&shelf, next);
    assert_eq!(positions(shelf.read_after(Position::START)), [next]);
}
