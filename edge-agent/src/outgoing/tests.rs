use std::sync::mpsc::{Receiver, sync_channel};

use tapio_schemas::{
    intent::{self, EventKind},
    ledger::Ledger,
};
use tapio_wire::frame::FrameDecoder;

use super::*;

fn outgoing(channel: usize) -> (Outgoing, Receiver<Outbound>) {
    let (frames, taken) = sync_channel(channel);
    (Outgoing::new(SourceId([1; 16]), Incarnation(3), frames, UnixMicros(1_000)).unwrap(), taken)
}

/// Writes an event, which is `bytes` long and does not compress, and makes its frame.
fn flush(outgoing: &mut Outgoing, tally: &mut Tally, number: u64, bytes: usize) -> bool {
    let mut state = number;
    let mut noise = String::new();
    while noise.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.push_str(&format!("{:016x}", state ^ (state >> 33)));
    }
    let clock = ClockOffset::default();
    let parts = noise.as_bytes().chunks(4_000).map(|part| String::from_utf8(part.to_vec()).unwrap());
    for attributes in parts.chain(Some(String::new()).filter(|_| bytes == 0)) {
        let event = Event {
            attributes: Some(attributes.into_boxed_str()),
            ..Event::new(number, intent::AGENT_STARTED, EventKind::Agent, "agent")
        };
        assert!(outgoing.write(&event, clock, number, tally));
    }
    tally.add(Fate::Lost, "exec", "ring-full", 1);
    outgoing.flush(UnixMicros(1_000 + number), clock, number, tally).is_some()
}

/// The sums of all frames' ledgers, whose windows must follow each other, and their sequence numbers.
fn ledgers(frames: &[Outbound]) -> (Ledger, Vec<u64>, u64) {
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    let (mut sums, mut numbers, mut rows) =
        (Ledger { until: UnixMicros(1_000), ..Ledger::default() }, vec![], 0);
    for frame in frames {
        let (header, view) = decoder.decode(&frame.bytes, None).unwrap();
        assert_eq!(header.meta.events, frame.events);
        numbers.push(header.meta.id.sequence.0);
        rows += u64::from(view.rows());
        let ledger = view.ledger();
        assert_eq!(ledger.since, sums.until, "a window is missing");
        sums.until = ledger.until;
        for LedgerEntry { stage, fate, subject, reason, count } in ledger.entries {
            sums.add(stage, fate, &subject, &reason, count);
        }
    }
    (sums, numbers, rows)
}

/// Scenario: the clock that times are told by is set back an hour, and then stumbles by some microseconds.
/// Guarantees: windows begin anew where the clock is, and follow each other from there on; nothing is lost by it.
#[test]
fn a_clock_that_is_set_back_begins_a_new_window() {
    let (mut outgoing, taken) = outgoing(8);
    let mut tally = Tally::default();
    let hour = 3_600_000_000;
    for until in [hour + 9_000, 9_000, 19_000, 18_998, 29_000] {
        tally.add(Fate::Lost, "exec", "ring-full", 1);
        assert!(outgoing.flush(UnixMicros(until), ClockOffset::default(), 0, &mut tally).is_some());
    }
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    let mut windows = Vec::new();
    for frame in taken.try_iter() {
        let ledger = decoder.decode(&frame.bytes, None).unwrap().1.ledger();
        assert_eq!(ledger.entries.iter().filter(|entry| entry.fate == Fate::Lost).count(), 1);
        windows.push((ledger.since.0, ledger.until.0));
    }
    let after = [(9_000, 9_000), (9_000, 19_000), (19_000, 19_000), (19_000, 29_000)];
    assert_eq!((windows[0], &windows[1..]), ((1_000, hour + 9_000), &after[..]));
}

/// Scenario: the spool's thread takes nothing for a while, then everything.
/// Guarantees: frames wait in order, and none is given up while they fit the limit.
#[test]
fn frames_wait_for_a_slow_disk() {
    let (mut outgoing, taken) = outgoing(2);
    let mut tally = Tally::default();
    for number in 1..=100 {
        assert!(flush(&mut outgoing, &mut tally, number, 0));
    }
    assert_eq!(outgoing.waiting.len(), 98);
    let end = std::thread::spawn(move || outgoing.finish());
    let frames: Vec<Outbound> = taken.iter().take(100).collect();
    end.join().unwrap();
    let (sums, numbers, rows) = ledgers(&frames);
    assert_eq!((numbers, rows), ((1..=100).collect(), 100));
    assert_eq!((sums.lost(), sums.total(Stage::Batch, Fate::Carried)), (100, 100));
}

/// Scenario: the spool's thread takes nothing for so long that frames are given up, then it takes them again.
/// Guarantees: every count of every ledger arrives exactly once, over windows without a hole; the events of what was
/// given up are counted as lost and not as carried; numbers have no hole either, for nothing of it was ever shipped.
#[test]
fn a_frame_that_is_given_up_leaves_its_ledger() {
    let (mut outgoing, taken) = outgoing(1);
    let mut tally = Tally::default();
    let mut given_up = 0;
    for number in 1..=60 {
        given_up += u64::from(!flush(&mut outgoing, &mut tally, number, 900_000));
    }
    assert!(given_up > 5, "{given_up}");
    assert!(outgoing.waiting_bytes <= BYTES_WAITING_MAX);
    let mut frames = Vec::new();
    for number in 61..=110 {
        frames.extend(taken.try_iter());
        assert!(flush(&mut outgoing, &mut tally, number, 0), "{number}");
    }
    let end = std::thread::spawn(move || outgoing.finish());
    frames.extend(taken.iter());
    end.join().unwrap();
    let (sums, numbers, rows) = ledgers(&frames);
    assert_eq!(numbers, (1..=110 - given_up).collect::<Vec<u64>>());
    assert_eq!(sums.total(Stage::Capture, Fate::Lost), 110);
    assert_eq!(sums.total(Stage::Batch, Fate::Carried), rows);
    assert_eq!(sums.total(Stage::Batch, Fate::Lost), given_up * 225);
    let of = |entry: &&LedgerEntry| entry.stage == Stage::Batch && entry.fate == Fate::Lost;
    assert!(sums.entries.iter().filter(of).all(|entry| entry.reason == "spool-behind"));
}
