//! Frames end to end: what is encoded is decoded, what is faulty is refused by name, old frames stay readable.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and prints what it measured"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder, BatchFault},
    event::UnifiedEvent,
    field::column,
    ids::{FrameId, Incarnation, RuleSetVersion, Sequence, SourceId},
    ledger::{Fate, Stage},
    units::{ClockOffset, UnixMicros},
};
use tapio_wire::frame::{
    FrameDecoder, FrameEncoder, FrameFault, FrameHeader, FrameLimits, FrameMeta, HEADER_BYTES, Lane,
};

const SOURCE: SourceId = SourceId([0xAB; 16]);

fn frame_id() -> FrameId {
    FrameId { source: SOURCE, incarnation: Incarnation(7), sequence: Sequence(41) }
}

fn meta(events: u32) -> FrameMeta {
    FrameMeta {
        lane: Lane::Urgent,
        config_generation: 12,
        rule_set: RuleSetVersion(0x0123_4567_89AB_CDEF),
        clock: ClockOffset { boot_to_unix_nanos: 1_700_000_000_000_000_001, error_micros: 40 },
        ..FrameMeta::new(frame_id(), events)
    }
}

/// A batch that never changes: the golden frame is made of it.
fn batch(rows: u32) -> AlignedVec {
    let mut builder = BatchBuilder::default();
    for number in 0..u64::from(rows) {
        let mut row = builder.begin_row().unwrap();
        row.unsigned(column::core::time_micros, 1_700_000_000_000_000 + number * 1_003)
            .unsigned(column::core::kind, 5)
            .unsigned(column::core::duration_micros, 700 + number * number % 1_000)
            .text(column::core::probe, "http")
            .text(column::core::intent, if number % 7 == 0 { "request-failed" } else { "request-served" })
            .unsigned(column::network::status, if number % 7 == 0 { 500 } else { 200 })
            .text(column::network::route, "/orders/{id}")
            .text(column::entity::container_id, &"c0ffee".repeat(10));
        if number % 3 == 0 {
            row.sixteen(column::trace::trace_id, u128::from(number * 7_919 + 1).to_be_bytes());
        }
        row.commit().unwrap();
    }
    let ledger = builder.ledger_mut();
    ledger.since = UnixMicros(1_699_999_999_000_000);
    ledger.until = UnixMicros(1_700_000_000_500_000);
    ledger.add(Stage::Kernel, Fate::Carried, "http", "", u64::from(rows) + 2);
    ledger.add(Stage::Capture, Fate::Lost, "http", "ring-full", 2);
    let mut out = AlignedVec::new();
    builder.finish(&mut out).unwrap();
    out
}

fn frame(rows: u32) -> Vec<u8> {
    let mut out = Vec::new();
    FrameEncoder::new(FrameLimits::default()).unwrap().encode(meta(rows), &batch(rows), &mut out).unwrap();
    out
}

fn decoded(frame: &[u8]) -> Result<(FrameHeader, Vec<UnifiedEvent>), FrameFault> {
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    let (header, view) = decoder.decode(frame, Some(SOURCE))?;
    Ok((header, (0..view.rows()).map(|row| view.event(row, header.meta.id)).collect()))
}

/// Writes the header's checksum anew, after a test changed the header.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&frame[..92]);
    let behind = usize::from(u16::from_le_bytes([frame[4], frame[5]]));
    let crc = crc32c::crc32c_append(crc, &frame[96..behind]);
    frame[92..96].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// Scenario: frames are made and opened with one encoder and one decoder, of several sizes.
/// Guarantees: header, events and ledger come back.
#[test]
fn frames_come_back() {
    let mut encoder = FrameEncoder::new(FrameLimits::default()).unwrap();
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    for rows in [0, 1, 1_000, 10, 5_000, 3] {
        let mut out = b"before".to_vec();
        let header = encoder.encode(meta(rows), &batch(rows), &mut out).unwrap();
        let bytes = &out[6..];
        assert_eq!(FrameHeader::parse(bytes), Ok(header));
        assert_eq!((header.meta, header.frame_bytes()), (meta(rows), bytes.len()));
        let (again, view) = decoder.decode(bytes, Some(SOURCE)).unwrap();
        assert_eq!((again, view.rows()), (header, rows));
        assert_eq!(view.ledger().lost(), 2);
        for row in view.iter() {
            let failed = row.row() % 7 == 0;
            assert_eq!(row.unsigned(column::network::status), if failed { 500 } else { 200 });
        }
    }
}

/// Scenario: a frame is damaged in each way that has a name.
/// Guarantees: it is refused by that name.
#[test]
fn every_fault_has_its_name() {
    let good = frame(20);
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let name = |frame: &[u8]| decoded(frame).map_err(|fault| fault.name()).err();
    assert_eq!(name(&good), None);
    for length in [0, 3, 4, 95, 96, good.len() - 1] {
        assert_eq!(name(&good[..length]), Some("truncated"), "{length}");
    }
    assert_eq!(name(&with(0, b"TAPG")), Some("bad-magic"));
    assert_eq!(name(b"{}"), Some("bad-magic"));
    assert_eq!(name(&with(4, &95_u16.to_le_bytes())), Some("header-length"));
    assert_eq!(name(&with(4, &5_000_u16.to_le_bytes())), Some("header-length"));
    assert_eq!(name(&with(40, &[42])), Some("header-checksum"));
    assert_eq!(name(&sealed(with(6, &[0, 0]))), Some("unknown-batch-version"));
    assert_eq!(name(&sealed(with(6, &[3, 0]))), Some("unknown-batch-version"));
    assert_eq!(name(&sealed(with(6, &[2, 0]))), Some("contradiction"));
    assert_eq!(name(&sealed(with(12, &[9]))), Some("unknown-dictionary"));
    assert_eq!(name(&sealed(with(16, &[1]))), Some("wrong-source"));
    assert_eq!(name(&sealed(with(80, &u32::MAX.to_le_bytes()))), Some("too-large"));
    assert_eq!(name(&sealed(with(84, &u32::MAX.to_le_bytes()))), Some("too-large"));
    assert_eq!(name(&sealed(with(88, &[19]))), Some("contradiction"));
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(name(&longer), Some("length-mismatch"));
    // The payload's own checksum stands at its end.
    assert_eq!(name(&with(good.len() - 1, &[good[good.len() - 1] ^ 1])), Some("corrupt-payload"));
    let declared = u32::from_le_bytes(good[84..88].try_into().unwrap());
    assert_eq!(name(&sealed(with(84, &(declared - 1).to_le_bytes()))), Some("corrupt-payload"));
    assert_eq!(name(&sealed(with(84, &(declared + 1).to_le_bytes()))), Some("length-mismatch"));
    let mut out = Vec::new();
    let mut encoder = FrameEncoder::new(FrameLimits::default()).unwrap();
    encoder.encode(meta(0), &batch(0)[..40], &mut out).unwrap();
    assert_eq!(decoded(&out).err(), Some(FrameFault::Batch(BatchFault::Truncated)));
}

/// Scenario: a payload of some kilobytes unpacks to many megabytes, and its header says so, or lies.
/// Guarantees: it is refused before anything of that size is allocated.
#[test]
fn decompression_bombs_are_refused() {
    let zeros = vec![0; 64 << 20];
    let limits = FrameLimits { batch_bytes_max: usize::MAX, ..FrameLimits::default() };
    let mut bomb = Vec::new();
    FrameEncoder::new(limits).unwrap().encode(meta(0), &zeros, &mut bomb).unwrap();
    assert!(bomb.len() < zeros.len() / 200);
    assert_eq!(decoded(&bomb).err().map(|fault| fault.name()), Some("too-large"));
    bomb[84..88].copy_from_slice(&1_000_u32.to_le_bytes());
    assert_eq!(decoded(&sealed(bomb)).err(), Some(FrameFault::CorruptPayload));
}

/// Scenario: a later version's header is longer than this version's.
/// Guarantees: what stands behind is skipped, and covered by the checksum.
#[test]
fn longer_headers_are_read() {
    let good = frame(3);
    let mut longer = good[..HEADER_BYTES].to_vec();
    longer[4..6].copy_from_slice(&112_u16.to_le_bytes());
    longer.extend_from_slice(&[0x5A; 16]);
    longer.extend_from_slice(&good[HEADER_BYTES..]);
    let longer = sealed(longer);
    assert_eq!(decoded(&longer).unwrap().1, decoded(&good).unwrap().1);
    let mut changed = longer;
    changed[100] ^= 1;
    assert_eq!(decoded(&changed).err(), Some(FrameFault::HeaderChecksum));
}

/// Scenario: frames are compressed with a dictionary that the reader gets to know.
/// Guarantees: they are refused by name before, and read after.
#[test]
fn dictionaries_are_named() {
    let dictionary = batch(200).to_vec();
    let mut encoder = FrameEncoder::with_dictionary(5, &dictionary, FrameLimits::default()).unwrap();
    let mut out = Vec::new();
    encoder.encode(meta(10), &batch(10), &mut out).unwrap();
    assert!(out.len() < frame(10).len());
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    assert_eq!(decoder.decode(&out, None).err(), Some(FrameFault::UnknownDictionary(5)));
    for id in 1..40 {
        decoder.add_dictionary(id, &dictionary).unwrap();
    }
    assert_eq!(decoder.decode(&out, None).err(), Some(FrameFault::UnknownDictionary(5)));
    decoder.add_dictionary(5, &dictionary).unwrap();
    assert_eq!(decoder.decode(&out, None).unwrap().1.rows(), 10);
    assert_eq!(decoder.decode(&frame(7), None).unwrap().1.rows(), 7);
}

proptest! {
    /// Scenario: any bits of a frame flip.
    /// Guarantees: it is refused by name, whatever they are; nothing panics.
    #[test]
    fn flipped_bits_are_refused(flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let good = frame(30);
        let mut bytes = good.clone();
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        match decoded(&bytes) {
            // Two flips of one bit, or bits of zstd's that have no meaning.
            Ok((_header, events)) => prop_assert_eq!(events, decoded(&good).unwrap().1),
            Err(fault) => prop_assert!(!fault.name().is_empty()),
        }
    }

    /// Scenario: any bytes at all, with and without the magic number.
    /// Guarantees: they are refused; nothing panics.
    #[test]
    fn any_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        if magic && bytes.len() >= 100 {
            bytes[..4].copy_from_slice(b"TAPF");
            bytes[4..6].copy_from_slice(&96_u16.to_le_bytes());
            bytes = sealed(bytes);
        }
        prop_assert!(decoded(&bytes).is_err());
    }
}

/// Scenario: frames that earlier builds of this batch version made, as they were checked in: the first knew only plain
/// columns.
/// Guarantees: each is still read, field by field, and the last is what this code writes. `TAPIO_BLESS=1` writes that one,
/// which is a new file for each form that is added.
#[test]
fn golden_frames_stay_readable() {
    const NEWEST: &str = "batch-1-forms.frame";
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if std::env::var_os("TAPIO_BLESS").is_some() {
        fs::write(folder.join(NEWEST), frame(64)).unwrap();
    }
    let payload = ["batch-1.frame", NEWEST].map(|name| golden_batch(&folder.join(name)));
    // The batch itself is byte for byte what this code writes; the compressed form may differ between zstd releases.
    assert!(payload[1] == batch(64).as_slice(), "{NEWEST} is not what this code writes");
    assert!(payload[0] != payload[1]);
}

/// Reads a golden frame, and returns its batch.
fn golden_batch(path: &Path) -> Vec<u8> {
    let golden = fs::read(path)
        .unwrap_or_else(|error| panic!("{}: {error}; make it with TAPIO_BLESS=1", path.display()));
    let (header, events) = decoded(&golden).unwrap();
    assert_eq!(header.meta, meta(64));
    assert_eq!(events, decoded(&frame(64)).unwrap().1);
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    let (_header, view) = decoder.decode(&golden, None).unwrap();
    let ledger = view.ledger();
    assert_eq!(ledger.lost(), 2);
    assert_eq!(ledger.until, UnixMicros(1_700_000_000_500_000));
    zstd::bulk::decompress(&golden[HEADER_BYTES..], 1 << 20).unwrap()
}
