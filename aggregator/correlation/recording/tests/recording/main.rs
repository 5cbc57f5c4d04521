//! Recordings and their replay, over drawn arrivals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop at the first surprise"
)]

mod live;

use std::time::Instant;

use proptest::prelude::*;
use tapio_recording::{
    Comparison, Encoder, End, Ending, Entry, FORMAT, ReadError, Reader, Replay, Rules, revision_bytes,
};
use tapio_schemas::{finding::Finding, units::UnixMicros};

use crate::live::{Live, Step, rules, story};

/// What a replay of a file gives.
struct Replayed {
    revisions: Vec<Finding>,
    comparison: Comparison,
    end: Option<End>,
}

fn replay(file: &[u8]) -> Result<Replayed, ReadError> {
    let (mut reader, head, recorded) = Reader::open(file)?;
    assert_eq!(recorded, rules().as_bytes());
    let mut replay = Replay::new(&head, Rules::Recorded(rules())).unwrap();
    let mut revisions = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        revisions.extend(replay.take(entry).unwrap());
    }
    Ok(Replayed { revisions, comparison: replay.comparison().clone(), end: reader.end() })
}

fn bytes_of(revisions: &[Finding]) -> Vec<Vec<u8>> {
    revisions.iter().map(revision_bytes).collect()
}

/// Where each record of a file ends.
fn boundaries(file: &[u8]) -> Vec<usize> {
    let mut ends = vec![16];
    while let Some(head) = file.get(*ends.last().unwrap()..).filter(|rest| rest.len() >= 16) {
        let length = u32::from_le_bytes(*head.first_chunk().unwrap());
        ends.push(ends.last().unwrap() + 16 + length as usize);
    }
    ends
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..3, 0_u64..4_000).prop_map(|(node, since)| Step::Quiet { node, since }),
        2 => (0_u8..3, 0_u64..9_000).prop_map(|(node, since)| Step::Story { node, since }),
        1 => (0_u8..3, 0_u8..4).prop_map(|(node, missing)| Step::Blind { node, missing }),
        1 => (0_u8..4, prop::bool::ANY).prop_map(|(pod, named)| Step::Name { pod, named }),
        8 => (0_u64..12_000).prop_map(Step::Tick),
        1 => Just(Step::CatchUp),
    ]
}

fn lives() -> impl Strategy<Value = Live> {
    (prop::collection::vec(step(), 1..60), 0_usize..3).prop_map(|(steps, earlier)| Live::of(&steps, earlier))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Scenario: frames, names, capabilities and times in any order, also after a restart; recorded, replayed twice.
    /// Guarantees: both replays give the revisions that were live, byte for byte.
    #[test]
    fn a_replay_is_what_was_live(live in lives()) {
        let file = live.file(Some(Ending::Drained));
        let first = replay(&file).unwrap();
        prop_assert_eq!(&first.comparison.difference, &None);
        prop_assert_eq!(bytes_of(&first.revisions), live.revisions.clone());
        prop_assert_eq!(first.comparison.live, live.revisions.len() as u64);
        prop_assert_eq!(first.end, Some(End::Closed(Ending::Drained)));
        let second = replay(&file).unwrap();
        prop_assert_eq!(bytes_of(&second.revisions), live.revisions.clone());
        prop_assert_eq!(second.comparison, first.comparison);
    }

    /// Scenario: a file is cut off anywhere, as it is when its writer is killed; zeros that nobody wrote may follow.
    /// Guarantees: what is whole is replayed, nothing of it differs, and it is said where the file was cut.
    #[test]
    fn a_file_that_is_cut_is_replayed_as_far_as_it_goes(
        live in lives(),
        place in any::<prop::sample::Index>(),
        is_at_boundary in prop::bool::ANY,
        zeros in prop_oneof![Just(0_usize), Just(1_024)],
    ) {
        let whole = live.file(None);
        let ends = boundaries(&whole);
        let cut = if is_at_boundary {
            ends[place.index(ends.len())]
        } else {
            place.index(whole.len())
        };
        let mut file = whole[..cut].to_owned();
        file.extend(std::iter::repeat_n(0, zeros));
        // Zeros may be what was cut off.
        let is_whole = |end: &&usize| whole.get(..**end) == file.get(..**end);
        let kept = *ends.iter().rfind(is_whole).unwrap_or(&0);
        match replay(&file) {
            Ok(replayed) => {
                prop_assert_eq!(&replayed.comparison.difference, &None);
                let expected = End::Open { at: kept as u64, cut_bytes: (file.len() - kept) as u64 };
                prop_assert_eq!(replayed.end, Some(expected));
                let bytes = bytes_of(&replayed.revisions);
                prop_assert_eq!(&bytes[..], &live.revisions[..bytes.len()]);
            }
            Err(ReadError::Empty | ReadError::NoHead { .. }) => prop_assert!(kept < ends[2]),
            Err(ReadError::NoRecording) => prop_assert!(cut < 8 && zeros > 0),
            Err(failure) => prop_assert!(false, "{:?}", failure),
        }
    }

    /// Scenario: one bit of a file is another than was written; or a record is missing, or there twice.
    /// Guarantees: it is told as damage: what is behind it is not replayed.
    #[test]
    fn damage_is_told(live in lives(), place in any::<prop::sample::Index>(), bit in 0_u8..8, how in 0_u8..3) {
        let whole = live.file(Some(Ending::Drained));
        let ends = boundaries(&whole);
        let record = place.index(ends.len() - 1);
        let record = ends[record]..ends[record + 1];
        let file = match how {
            0 => {
                let mut file = whole.clone();
                file[place.index(whole.len())] ^= 1 << bit;
                file
            }
            1 => [&whole[..record.start], &whole[record.end..]].concat(),
            _ => [&whole[..record.end], &whole[record.start..]].concat(),
        };
        match replay(&file) {
            Err(_told) => {}
            // Without its last record it is a file that was cut.
            Ok(replayed) => {
                prop_assert!(how == 1 && record.end == whole.len());
                let is_open = matches!(replayed.end, Some(End::Open { .. }));
                prop_assert!(is_open);
            }
        }
    }
}

/// Scenario: a kill for memory and what followed from it, while another node was not heard yet; and with it alone.
/// Guarantees: while nothing is announced of it, the replay tells what was weighed and why that is no finding; of what
/// is announced it tells nothing.
#[test]
fn what_was_weighed_is_told() {
    let weighed_of = |live: &Live| {
        let mut replay = Replay::new(&live.head(), Rules::Recorded(rules())).unwrap();
        let mut weighed = Vec::new();
        for entry in live.entries() {
            let is_tick = matches!(entry, Entry::Tick { .. });
            let announced = replay.take(entry).unwrap();
            if is_tick {
                let hypotheses = replay.hypotheses();
                let is_announced = |cause| announced.iter().any(|finding| finding.verdict.cause == cause);
                assert!(
                    !hypotheses.iter().any(|verdict| is_announced(verdict.cause.clone())),
                    "{hypotheses:?}"
                );
                weighed.extend(hypotheses);
            }
        }
        assert_eq!(replay.comparison().difference, None);
        weighed
    };
    let early = [
        Step::Quiet { node: 0, since: 0 },
        Step::Quiet { node: 1, since: 0 },
        Step::Tick(10_000),
        Step::Quiet { node: 0, since: 0 },
        Step::Quiet { node: 1, since: 0 },
        Step::Story { node: 0, since: 0 },
        Step::Tick(50),
    ];
    let live = Live::of(&early, 0);
    assert_eq!(live.findings.len(), 0);
    let weighed = weighed_of(&live);
    let of_the_kill = weighed.iter().find(|verdict| verdict.rule.contains("oom")).unwrap();
    assert!(!of_the_kill.reason.is_empty(), "{of_the_kill:?}");
    weighed_of(&story());
}

/// Scenario: the story of a kill for memory, with names that come late, until it is resolved.
/// Guarantees: the recording of it has revisions at all, with the names, and of each of its states.
#[test]
fn a_story_has_revisions() {
    let live = story();
    let states: Vec<_> = live.findings.iter().map(|finding| finding.state.as_str()).collect();
    assert!(states.contains(&"open") && states.contains(&"resolved"), "{states:?}");
    assert!(live.findings.iter().any(|finding| finding.title.contains("payment")), "{:?}", live.findings);
    let replayed = replay(&live.file(Some(Ending::Drained))).unwrap();
    assert_eq!(bytes_of(&replayed.revisions), live.revisions);
    assert_eq!(replayed.comparison.difference, None);
}

/// Scenario: what was announced live is not what the recording says followed from its tick: changed, left out, added.
/// Guarantees: the first difference is told, with both sides.
#[test]
fn a_difference_is_told() {
    let live = story();
    let mut changed = live.clone();
    changed.rewrite(0, |bytes| bytes.replace("payment", "someone"));
    let difference = replay(&changed.file(None)).unwrap().comparison.difference.unwrap();
    assert!(String::from_utf8(difference.live.unwrap()).unwrap().contains("someone"));
    assert_eq!(difference.replayed.unwrap(), live.revisions[0]);

    let mut fewer = live.clone();
    fewer.remove(0);
    let difference = replay(&fewer.file(None)).unwrap().comparison.difference.unwrap();
    assert_eq!((difference.live, difference.replayed.unwrap()), (None, live.revisions[0].clone()));

    let mut more = live.clone();
    more.double_last();
    let difference = replay(&more.file(None)).unwrap().comparison.difference.unwrap();
    assert_eq!((difference.live.as_ref(), difference.replayed), (live.revisions.last(), None));
}

/// Scenario: a revision stands in front of every tick; one that a tick announces is not there, as the recording goes on
/// or ends.
/// Guarantees: neither passes as the same.
#[test]
fn a_writer_that_forgets_is_told() {
    let tick = |now| Entry::Tick { now: UnixMicros(now), revisions: u32::from(now == 1) };
    for entries in [
        vec![Entry::Revision(b"{}"), tick(2)],
        vec![tick(1), tick(2)],
        vec![tick(1), Entry::End(Ending::Drained)],
    ] {
        let mut file = Vec::new();
        let mut encoder = Encoder::begin(&story().head(), &rules(), &mut file);
        entries.iter().for_each(|entry| encoder.put(entry, &mut file).unwrap());
        assert!(replay(&file).unwrap().comparison.difference.is_some(), "{entries:?}");
    }
}

/// Scenario: a file of the same format, whole, that says what only another release knows: in its head, in a record.
/// Guarantees: it is told as that, not as damage.
#[test]
fn another_release_is_no_damage() {
    let whole = story().file(None);
    let ends = boundaries(&whole);
    let mut file = whole[..ends[2]].to_owned();
    file.extend(sealed(42, b"{}", 2));
    assert!(matches!(replay(&file), Err(ReadError::OtherRelease { .. })));
    let mut file = whole[..16].to_owned();
    file.extend(sealed(0, br#"{"release": "9"}"#, 0));
    assert!(matches!(replay(&file), Err(ReadError::OtherRelease { .. })));
}

/// A record of any kind, with right checksums.
fn sealed(kind: u8, body: &[u8], number: u64) -> Vec<u8> {
    let mut head = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    head.extend([kind, 0, 0, 0]);
    head.extend(crc32c::crc32c(body).to_le_bytes());
    let own = crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &head);
    [head, own.to_le_bytes().to_vec(), body.to_vec()].concat()
}

/// Scenario: files that are none of ours: empty, a text, of a newer format, one that ends within its head.
/// Guarantees: each is refused for what it is.
#[test]
fn other_files_are_refused() {
    let refused = |file: &[u8]| Reader::open(file).unwrap_err();
    assert!(matches!(refused(b""), ReadError::Empty));
    assert!(matches!(refused(b"version: 1\nid: a-rule\n"), ReadError::NoRecording));
    assert!(matches!(refused(b"no"), ReadError::NoRecording));
    let whole = story().file(None);
    let mut newer = whole.clone();
    newer[8] += 1;
    assert!(matches!(refused(&newer), ReadError::Format { found } if found == FORMAT + 1));
    assert!(matches!(refused(&whole[..10]), ReadError::NoHead { at: 10 }));
    assert!(matches!(refused(&whole[..40]), ReadError::NoHead { at: 40 }));
    let mut behind = story().file(Some(Ending::Drained));
    behind.push(0);
    assert!(matches!(replay(&behind), Err(ReadError::Damaged { .. })));
}

/// Scenario: every kind of entry is written and read.
/// Guarantees: it comes back as it was.
#[test]
fn entries_round_trip() {
    let live = story();
    let file = live.file(Some(Ending::Behind));
    let (mut reader, head, _rules) = Reader::open(&file[..]).unwrap();
    assert_eq!(head, live.head());
    let mut expected = live.entries();
    expected.push(Entry::End(Ending::Behind));
    for entry in &expected {
        assert_eq!(reader.next_entry().unwrap().as_ref(), Some(entry));
    }
    assert_eq!(reader.next_entry().unwrap(), None);
}

/// Scenario: half an hour of a node's frames, one a second, now and then with a kill; the engine told the time every 50
/// ms; replayed.
/// Guarantees: beside a frame's own bytes a recording takes at most 64, and at most 32 for being told the time; a replay
/// takes at most a tenth of the time that passed (the figures are printed).
#[test]
fn a_recording_is_small_and_a_replay_fast() {
    let ticks = (0_u32..36_000).flat_map(|number| {
        let frame = match number {
            _ if number % 6_000 == 40 => Some(Step::Story { node: 0, since: 300 }),
            _ if number % 20 == 0 => Some(Step::Quiet { node: 0, since: 1_000 }),
            _ => None,
        };
        frame.into_iter().chain([Step::Tick(50)])
    });
    let live = Live::of(&ticks.collect::<Vec<_>>(), 0);
    let file = live.file(Some(Ending::Drained));
    let (frames, bytes) = live.frames();
    let revisions: usize = live.revisions.iter().map(|revision| revision.len() + 16).sum();
    let beside = file.len() - bytes - revisions - rules().as_bytes().len();
    let start = Instant::now();
    let replayed = replay(&file).unwrap();
    let took = start.elapsed();
    println!(
        "{frames} frames of {} bytes: {} bytes beside each second; {} revisions of {} bytes; replayed in {} ms",
        bytes / frames,
        beside / 1_800,
        live.revisions.len(),
        revisions / live.revisions.len(),
        took.as_millis()
    );
    assert_eq!(replayed.comparison.difference, None);
    assert!(beside < frames * 64 + 36_000 * 32 + 4_096, "{beside}");
    assert!(took.as_secs() < 180, "{took:?}");
}
