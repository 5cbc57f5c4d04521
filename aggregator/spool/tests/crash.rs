//! What is left after torn writes, damage, full disks and killed processes.

// The whole program is a test, its helpers too: lints that spare tests shall see it as one.
#![cfg(test)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tapio_spool::{
    GapReason, Item, ORDINALS_PER_SEGMENT_MAX, Ordinal, QuotaPolicy, RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES, Spool, SpoolConfig, SpoolError, SyncPolicy,
};

fn config(segment_bytes_max: u64) -> SpoolConfig {
    SpoolConfig {
        segment_bytes_max,
        quota_bytes: segment_bytes_max * 64,
        quota_policy: QuotaPolicy::Refuse,
        reserve_bytes: 0,
        sync: SyncPolicy::ByCaller,
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut segments: Vec<_> = std::fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    segments.sort();
    segments
}

/// Records as text, gaps as `from..until reason`.
fn story(spool: &Spool) -> Vec<String> {
    let mut reader = spool.read_from(Ordinal::FIRST);
    let mut story = Vec::new();
    while let Some(item) = reader.next_item().expect("readable") {
        story.push(match item {
            Item::Record { ordinal, payload } => format!("{ordinal} {}", String::from_utf8_lossy(payload)),
            Item::Gap(gap) => format!("{}..{} {}", gap.from, gap.until, gap.reason.label()),
        });
    }
    story
}

/// Scenario: the last segment, with three records, cut at every one of its bytes behind the header.
/// Guarantees: exactly the whole records are left, the rest is counted, no ordinal is used again, and
/// the next append can be read.
#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let whole = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = Spool::open(whole.path(), config(4096)).expect("opened");
    let mut ends = vec![SEGMENT_HEADER_BYTES];
    for record in ["one", "", "three, which is longer"] {
        spool.append(&[record.as_bytes()]).expect("appended");
        ends.push(ends.last().expect("an end") + RECORD_HEADER_BYTES + record.len() as u64);
    }
    drop(spool);
    let segment = segments(whole.path()).pop().expect("a segment");
    let bytes = std::fs::read(&segment).expect("read");
    assert_eq!(bytes.len() as u64, *ends.last().expect("an end"));

    for cut in SEGMENT_HEADER_BYTES..=bytes.len() as u64 {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(segment.file_name().expect("a name"));
        std::fs::write(&path, &bytes[..usize::try_from(cut).expect("small")]).expect("written");
        let (mut spool, report) = Spool::open(dir.path(), config(4096)).expect("opened");
        let records = ends.iter().filter(|&&end| end <= cut).count() as u64 - 1;
        let end = ends[usize::try_from(records).expect("small")];
        assert_eq!(report.torn_bytes, cut - end, "cut at {cut}");
        let next = if cut == end { records } else { ORDINALS_PER_SEGMENT_MAX };
        assert_eq!(report.next, Ordinal(next), "cut at {cut}");
        assert_eq!(report.ordinals_skipped, next - records);
        // A segment without records is of no use and goes at once, if it is not gone on with.
        let size = std::fs::metadata(&path).map(|metadata| metadata.len());
        assert_eq!(size.ok(), (records > 0 || cut == end).then_some(end), "cut at {cut}");
        spool.append(&[b"after"]).expect("appended");
        let story = story(&spool);
        assert_eq!(story.len() as u64, records + 1 + u64::from(cut != end), "{story:?}");
        assert_eq!(story.last().expect("a record"), &format!("{next} after"));
    }
}

/// Scenario: a segment's header, cut at every byte, as the only and as an earlier segment.
/// Guarantees: it is reported, its ordinals are passed over and not used again, the rest is read.
#[test]
fn a_damaged_segment_header_costs_that_segment() {
    for cut in [0, 1, SEGMENT_HEADER_BYTES - 1] {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut spool, _) = Spool::open(dir.path(), config(128)).expect("opened");
        for record in [b"first", b"other", b"third"] {
            spool.append(&[record, b" is so long that it fills one"]).expect("appended");
        }
        drop(spool);
        let [first, _, third] = segments(dir.path()).try_into().expect("three segments");
        File::options().write(true).open(&first).expect("open").set_len(cut).expect("cut");
        let (spool, report) = Spool::open(dir.path(), config(128)).expect("opened");
        assert_eq!(report.damage.len(), 1);
        assert_eq!(report.damage[0].segment, first);
        let found = story(&spool);
        assert_eq!(found[0], "0..1 damaged");
        assert_eq!(found.len(), 3, "{found:?}");
        drop(spool);

        File::options().write(true).open(&third).expect("open").set_len(cut).expect("cut");
        let (mut spool, report) = Spool::open(dir.path(), config(128)).expect("opened");
        assert_eq!(report.damage.len(), 2);
        let appended = spool.append(&[b"after"]).expect("appended");
        assert!(appended.ordinals.start >= Ordinal(3), "its ordinals are not used again");
        let found = story(&spool);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[3].ends_with(" after"));
    }
}

/// Scenario: every single byte of a record in an earlier segment flipped, one at a time.
/// Guarantees: the reader never returns a wrong record: it names segment and offset, passes over the
/// rest of that segment only, and goes on with the next.
#[test]
fn damage_in_the_middle_is_named_and_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = Spool::open(dir.path(), config(130)).expect("opened");
    for record in 0..6 {
        spool.append(&[format!("record {record} of them").as_bytes()]).expect("appended");
    }
    let paths = segments(dir.path());
    assert_eq!(paths.len(), 3, "two records each");
    let record_bytes = RECORD_HEADER_BYTES + 16;
    let file = File::options().read(true).write(true).open(&paths[0]).expect("open");
    for offset in SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + record_bytes {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("read");
        file.write_all_at(&[byte[0] ^ 0x10], offset).expect("written");
        let mut reader = spool.read_from(Ordinal::FIRST);
        match reader.next_item().expect("readable") {
            Some(Item::Gap(gap)) => {
                let reason = GapReason::Damaged { segment: paths[0].clone(), offset: SEGMENT_HEADER_BYTES };
                assert_eq!((gap.from, gap.until, gap.reason), (Ordinal(0), Ordinal(2), reason));
            }
            other => panic!("byte {offset}: {other:?}"),
        }
        assert_eq!(story(&spool).len(), 1 + 4, "byte {offset}");
        file.write_all_at(&byte, offset).expect("written");
    }
    assert_eq!(story(&spool).len(), 6);
}

/// Scenario: a spool whose last segment was written during another boot, so that the page cache of then
/// is gone; once closed in order before, once not.
/// Guarantees: ordinals that a power cut may have taken are skipped and announced; after an orderly
/// close none are.
#[test]
fn another_boot_skips_ordinals_unless_closed_in_order() {
    for orderly in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut spool, _) = Spool::open(dir.path(), config(4096)).expect("opened");
        spool.append(&[b"before"]).expect("appended");
        if orderly {
            spool.close().expect("closed");
        } else {
            drop(spool);
        }
        // The boot id is the last field before the header's checksum.
        let path = segments(dir.path()).pop().expect("a segment");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[28..44].fill(7);
        let checksum = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(&path, bytes).expect("written");

        let (mut spool, report) = Spool::open(dir.path(), config(4096)).expect("opened");
        spool.append(&[b"after"]).expect("appended");
        if orderly {
            assert_eq!(report.ordinals_skipped, 0);
            assert_eq!(story(&spool), ["0 before", "1 after"]);
        } else {
            let next = ORDINALS_PER_SEGMENT_MAX;
            assert_eq!(report.ordinals_skipped, next - 1);
            assert_eq!(
                story(&spool),
                ["0 before".into(), format!("1..{next} skipped"), format!("{next} after")]
            );
        }
    }
}

/// Scenario: everything trimmed and the segments removed by hand.
/// Guarantees: the cursor alone keeps ordinals from being used again.
#[test]
fn ordinals_go_on_where_the_cursor_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = Spool::open(dir.path(), config(4096)).expect("opened");
    spool.append_batch(&[&[b"a"], &[b"b"]]).expect("appended");
    spool.trim_until(Ordinal(2)).expect("trimmed");
    drop(spool);
    for path in segments(dir.path()) {
        std::fs::remove_file(path).expect("removed");
    }
    let (mut spool, report) = Spool::open(dir.path(), config(4096)).expect("opened");
    assert_eq!((report.low, report.next), (Ordinal(2), Ordinal(2)));
    assert_eq!(spool.append(&[b"c"]).expect("appended").ordinals.start, Ordinal(2));
}

/// Scenario: a directory that is in use; a cursor that was overwritten.
/// Guarantees: both are refused by name, with what to do.
#[test]
fn two_owners_and_damaged_cursors_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = Spool::open(dir.path(), config(4096)).expect("opened");
    let error = Spool::open(dir.path(), config(4096)).expect_err("two owners");
    assert!(matches!(error, SpoolError::Locked { .. }), "{error}");
    spool.append(&[b"a"]).expect("appended");
    spool.trim_until(Ordinal(1)).expect("trimmed");
    drop(spool);
    std::fs::write(dir.path().join("cursor"), [0; 5000]).expect("written");
    let error = Spool::open(dir.path(), config(4096)).expect_err("a damaged cursor");
    assert!(error.to_string().contains("cursor is damaged"), "{error}");
}

/// Scenario: configurations and records that cannot work.
/// Guarantees: they are refused, and the spool goes on.
#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let narrow = SpoolConfig { quota_bytes: 7000, ..config(4096) };
    assert!(matches!(Spool::open(dir.path(), narrow), Err(SpoolError::Config(_))));
    assert!(matches!(Spool::open(dir.path(), config(10)), Err(SpoolError::Config(_))));
    let (mut spool, _) = Spool::open(dir.path(), config(128)).expect("opened");
    let error = spool.append(&[&[0; 61]]).expect_err("too large");
    assert!(matches!(error, SpoolError::TooLarge { bytes: 81, limit_bytes: 80 }), "{error}");
    spool.append(&[&[0; 60]]).expect("it fits exactly");
}

/// Scenario: readers on threads of their own while the writer appends, rolls and trims.
/// Guarantees: each sees every record once, in order, and the writer never waits for them.
#[test]
fn readers_follow_a_writer() {
    const RECORDS: u64 = 20_000;
    let dir = tempfile::tempdir().expect("a directory");
    let quota = SpoolConfig { quota_bytes: 64 << 20, ..config(8192) };
    let (mut spool, _) =
        Spool::open(dir.path(), SpoolConfig { sync: SyncPolicy::Never, ..quota }).expect("opened");
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let mut reader = spool.read_from(Ordinal::FIRST);
            std::thread::spawn(move || {
                let mut expected = 0;
                while expected < RECORDS {
                    match reader.next_item().expect("readable") {
                        Some(Item::Record { ordinal, payload }) => {
                            assert_eq!((ordinal.0, payload), (expected, &expected.to_le_bytes()[..]));
                            expected += 1;
                        }
                        Some(Item::Gap(gap)) => panic!("{gap:?}"),
                        None => std::thread::yield_now(),
                    }
                }
            })
        })
        .collect();
    for record in 0..RECORDS {
        spool.append(&[&record.to_le_bytes()]).expect("appended");
    }
    for reader in readers {
        reader.join().expect("a reader");
    }
    spool.trim_until(spool.next()).expect("trimmed");
    assert_eq!(segments(dir.path()).len(), 1);
    let mut late = spool.read_from(Ordinal::FIRST);
    assert!(matches!(late.next_item(), Ok(Some(Item::Gap(gap))) if gap.reason == GapReason::Removed));
}

const CHILD_DIR: &str = "TAPIO_SPOOL_TEST_DIR";

fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD_DIR, dir);
    command
}

/// Scenario: a process that appends as fast as it can, and is killed with SIGKILL, several times over.
/// Guarantees: every record whose append had returned is there, in order, and ordinals go on behind it.
#[test]
fn a_killed_writer_loses_nothing_that_it_was_told_is_there() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        let (mut spool, _) = Spool::open(Path::new(&dir), config(64 << 10)).expect("opened");
        let mut out = std::io::stdout().lock();
        loop {
            let text = format!("record {}", spool.next());
            match spool.append(&[text.as_bytes(), &[b'.'; 500]]) {
                Ok(appended) => writeln!(out, "appended {}", appended.ordinals.start).expect("told"),
                Err(SpoolError::Full { .. }) => spool.trim_until(spool.next()).expect("trimmed"),
                Err(error) => panic!("{error}"),
            }
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..5u64 {
        let mut writer = child("a_killed_writer_loses_nothing_that_it_was_told_is_there", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut last = None;
        let mut lines = BufReader::new(writer.stdout.take().expect("its output")).lines();
        for line in lines.by_ref() {
            let line = line.expect("a line");
            let Some(ordinal) = line.strip_prefix("appended ") else { continue };
            last = Some(ordinal.parse::<u64>().expect("an ordinal"));
            if last.is_some_and(|last| last % 1000 == 300 + round * 97) {
                writer.kill().expect("killed");
            }
        }
        writer.wait().expect("reaped");
        // The pipe may have been cut in the middle of the last line; the one before it was whole.
        let told = last.expect("something was appended").saturating_sub(1);
        let (spool, report) = Spool::open(dir.path(), config(64 << 10)).expect("opened");
        assert!(report.next.0 > told, "{report:?}, told {told}");
        assert!(report.damage.is_empty());
        let mut reader = spool.read_from(spool.low());
        let mut read = Vec::new();
        while let Some(item) = reader.next_item().expect("readable") {
            match item {
                Item::Record { ordinal, payload } => {
                    let text = format!("record {ordinal}");
                    assert!(payload.starts_with(text.as_bytes()));
                    read.push(ordinal.0);
                }
                Item::Gap(gap) => assert_eq!(gap.reason, GapReason::Skipped),
            }
        }
        assert!(read.contains(&told), "told {told}, there {:?}..{:?}", read.first(), read.last());
    }
}

/// Scenario: a file system of 256 KiB (a tmpfs in a mount namespace of its own), a spool that may use
/// more than that.
/// Guarantees: the append that does not fit is refused as a full disk and leaves nothing behind; what
/// was there is read; after a trim the spool goes on; one that keeps more free than there is takes nothing.
#[test]
fn a_full_disk_is_refused_and_survived() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        let dir = Path::new(&dir);
        let (mut spool, _) = Spool::open(dir, config(32 << 10)).expect("opened");
        let record = [7; 1000];
        let error = loop {
            if let Err(error) = spool.append(&[&record]) {
                break error;
            }
        };
        assert!(matches!(error, SpoolError::DiskFull { .. }), "{error}");
        let appended = spool.next().0;
        assert_eq!(story(&spool).len() as u64, appended);
        assert!(spool.append(&[&record]).is_err(), "still full");
        drop(spool);
        let (mut spool, report) = Spool::open(dir, config(32 << 10)).expect("opened on a full disk");
        assert_eq!((report.next.0, report.torn_bytes), (appended, 0));
        spool.trim_until(Ordinal(appended)).expect("trimming needs next to nothing");
        spool.append(&[&record]).expect("there is room again");
        drop(spool);
        let keeping = SpoolConfig { reserve_bytes: 1 << 20, ..config(32 << 10) };
        let (mut spool, _) = Spool::open(dir, keeping).expect("opened");
        let error = spool.append(&[&record]).expect_err("more is kept free than there is");
        assert!(matches!(error, SpoolError::DiskFull { .. }), "{error}");
        println!("survived {appended}");
        return;
    }
    let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
        assert!(
            allowed.split(',').any(|name| name.trim() == "mount"),
            "cannot mount in a namespace of its own"
        );
        println!("not proven: mount: a full disk is refused and survived");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let inner = child("a_full_disk_is_refused_and_survived", dir.path());
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-c", "mount -t tmpfs -o size=256k tapio-test \"$0\" && exec \"$@\""]);
    outer.arg(dir.path()).arg(inner.get_program()).args(inner.get_args()).env(CHILD_DIR, dir.path());
    let output = outer.output().expect("unshare (util-linux)");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("survived "), "{text}{errors}");
}
