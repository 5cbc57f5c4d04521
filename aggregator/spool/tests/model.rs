//! The spool against a model that is a list in memory.

// The whole program is a test, its helpers too: lints that spare tests shall see it as one.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use proptest::prelude::*;
use tapio_spool::{GapReason, Item, Ordinal, QuotaPolicy, Spool, SpoolConfig, SpoolError, SyncPolicy};

const CONFIG: SpoolConfig = SpoolConfig {
    segment_bytes_max: 400,
    quota_bytes: 1600,
    quota_policy: QuotaPolicy::EvictOldest,
    reserve_bytes: 0,
    sync: SyncPolicy::ByCaller,
};

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Vec<u8>>),
    Trim(usize),
    Sync,
    Close,
    Kill,
    /// Cut this share of the last segment's bytes off, as a torn write would.
    Tear(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let records = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 1..4);
    prop_oneof![
        8 => records.prop_map(Step::Append),
        2 => (0usize..12).prop_map(Step::Trim),
        1 => Just(Step::Sync),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => any::<u8>().prop_map(Step::Tear),
    ]
}

/// Everything a reader finds from `from` on: the records, and that they rise without holes beside gaps.
fn read_all(spool: &Spool, from: Ordinal) -> BTreeMap<Ordinal, Vec<u8>> {
    let mut reader = spool.read_from(from);
    let mut found = BTreeMap::new();
    let mut at = from;
    loop {
        match reader.next_item().expect("readable") {
            None => break,
            Some(Item::Record { ordinal, payload }) => {
                assert_eq!(ordinal, at, "no ordinal is passed over without a gap");
                at = ordinal.next();
                found.insert(ordinal, payload.to_vec());
            }
            Some(Item::Gap(gap)) => {
                assert!(gap.from == at && gap.until > gap.from, "{gap:?} at {at}");
                assert!(!matches!(gap.reason, GapReason::Damaged { .. }), "{gap:?}");
                at = gap.until;
            }
        }
    }
    assert_eq!(at, spool.next(), "a reader reaches the end");
    found
}

fn last_segment(dir: &Path) -> std::path::PathBuf {
    let mut segments: Vec<_> = std::fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    segments.sort();
    segments.pop().expect("a spool has a segment")
}

fn check(steps: Vec<Step>, quota_policy: QuotaPolicy) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = SpoolConfig { quota_policy, ..CONFIG };
    let open = || Spool::open(dir.path(), config.clone()).expect("opened");
    let (mut spool, _) = open();
    // Every record that was ever appended and must still be there.
    let mut model: BTreeMap<Ordinal, Vec<u8>> = BTreeMap::new();
    let mut highest = Ordinal::FIRST;
    for step in steps {
        match step {
            Step::Append(records) => {
                let parts: Vec<Vec<&[u8]>> =
                    records.iter().map(|record| record.chunks(7).collect()).collect();
                let batch: Vec<&[&[u8]]> = parts.iter().map(Vec::as_slice).collect();
                match spool.append_batch(&batch) {
                    Ok(appended) => {
                        assert!(appended.ordinals.start >= highest, "ordinals never repeat");
                        assert_eq!(appended.ordinals.end.0 - appended.ordinals.start.0, records.len() as u64);
                        highest = appended.ordinals.end;
                        let before = model.len() as u64;
                        model.retain(|&ordinal, _| ordinal >= spool.first());
                        assert_eq!(before - model.len() as u64, appended.evicted.records);
                        for (at, record) in records.into_iter().enumerate() {
                            model.insert(Ordinal(appended.ordinals.start.0 + at as u64), record);
                        }
                    }
                    Err(SpoolError::Full { .. }) => assert_eq!(quota_policy, QuotaPolicy::Refuse),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Trim(count) => {
                let until = model.keys().nth(count).copied().unwrap_or(spool.next());
                spool.trim_until(until).expect("trimmed");
                model.retain(|&ordinal, _| ordinal >= until);
            }
            Step::Sync => assert_eq!(spool.sync().expect("synced"), spool.next()),
            Step::Close => {
                spool.close().expect("closed");
                let (reopened, report) = open();
                assert_eq!((report.torn_bytes, report.ordinals_skipped), (0, 0));
                assert_eq!(report.next, highest);
                spool = reopened;
            }
            Step::Kill => {
                drop(spool);
                let (reopened, report) = open();
                assert_eq!((report.torn_bytes, report.ordinals_skipped), (0, 0));
                assert_eq!(report.next, highest);
                spool = reopened;
            }
            Step::Tear(share) => {
                drop(spool);
                let path = last_segment(dir.path());
                let file = File::options().write(true).open(&path).expect("a segment");
                let bytes = file.metadata().expect("a size").len();
                let records = bytes - tapio_spool::SEGMENT_HEADER_BYTES;
                file.set_len(bytes - records * u64::from(share) / 255).expect("torn");
                let (reopened, report) = open();
                assert!(report.next >= report.first);
                let there = read_all(&reopened, reopened.low());
                // What is left is what was there, up to some record.
                assert!(
                    there.iter().all(|(ordinal, record)| model
                        .get(ordinal)
                        .is_none_or(|expected| expected == record))
                );
                let lost_from = there.keys().next_back().map_or(Ordinal::FIRST, |last| last.next());
                assert!(model.keys().all(|ordinal| there.contains_key(ordinal) || *ordinal >= lost_from));
                model.retain(|ordinal, _| there.contains_key(ordinal));
                highest = report.next;
                spool = reopened;
            }
        }
        assert!(spool.used_bytes() <= config.quota_bytes, "the quota holds");
        let mut there = read_all(&spool, Ordinal::FIRST);
        there.retain(|&ordinal, _| ordinal >= spool.low());
        assert_eq!(there, model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Scenario: appends, trims, syncs, closes, kills and torn last segments in any order, evicting.
    /// Guarantees: what was appended, not trimmed, not counted as evicted and not torn is read back in
    /// order, unchanged; ordinals never repeat; the quota holds; gaps are always announced.
    #[test]
    fn it_does_what_a_list_does(steps in prop::collection::vec(step(), 1..40)) {
        check(steps, QuotaPolicy::EvictOldest);
    }

    /// Scenario: the same with a quota that refuses.
    /// Guarantees: the same, and nothing is ever evicted.
    #[test]
    fn it_does_what_a_list_does_and_refuses_when_full(steps in prop::collection::vec(step(), 1..40)) {
        check(steps, QuotaPolicy::Refuse);
    }
}
