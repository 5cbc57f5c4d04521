//! The frame's header: fixed places, little-endian, frozen for ever.
//!
//! | offset | bytes | what |
//! |---:|---:|---|
//! | 0 | 4 | magic, `TAPF` |
//! | 4 | 2 | length of the header, this version 96; what stands behind byte 96 is skipped |
//! | 6 | 2 | version of the batch |
//! | 8 | 1 | lane: 0 urgent, 1 bulk |
//! | 9 | 1 | flags, none defined: written as 0, not looked at |
//! | 10 | 2 | zero, not looked at |
//! | 12 | 4 | id of the compression dictionary, 0 for none |
//! | 16 | 16 | source id |
//! | 32 | 8 | incarnation |
//! | 40 | 8 | sequence |
//! | 48 | 8 | generation of the configuration in force |
//! | 56 | 8 | version of the rule set in force |
//! | 64 | 8 | nanoseconds to add to the source's boot clock for Unix time |
//! | 72 | 8 | how wrong the source's clock may be, microseconds |
//! | 80 | 4 | length of the payload (compressed) |
//! | 84 | 4 | length of the batch (uncompressed) |
//! | 88 | 4 | number of events |
//! | 92 | 4 | CRC-32C (RFC 3720) of the header without these four bytes |

use tapio_schemas::{
    batch::{BATCH_VERSION, is_readable},
    ids::{FrameId, Incarnation, RuleSetVersion, Sequence, SourceId},
    units::ClockOffset,
};

use super::FrameFault;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"TAPF";

/// The length of the header that this version writes.
pub const HEADER_BYTES: usize = 96;

/// The longest header that a reader accepts.
pub const HEADER_BYTES_MAX: usize = 4_096;

const CHECKSUM_OFFSET: usize = 92;

/// How urgently a frame is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// It carries signals: ship it at once.
    Urgent = 0,
    /// Everything else. A lane of a newer version reads as this.
    #[default]
    Bulk = 1,
}

/// What the source says of a frame, beside the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// Which frame.
    pub id: FrameId,
    /// How urgently it is wanted.
    pub lane: Lane,
    /// The version of the batch.
    pub batch_version: u16,
    /// The generation of the configuration in force.
    pub config_generation: u64,
    /// The version of the rule set in force.
    pub rule_set: RuleSetVersion,
    /// The source's clock.
    pub clock: ClockOffset,
    /// How many events the batch has.
    pub events: u32,
}

impl FrameMeta {
    /// What is said of frame `id` when nothing else is known: a bulk frame of this version, no rules, no clock.
    #[must_use]
    pub fn new(id: FrameId, events: u32) -> Self {
        Self {
            id,
            lane: Lane::default(),
            batch_version: BATCH_VERSION,
            config_generation: 0,
            rule_set: RuleSetVersion::default(),
            clock: ClockOffset::default(),
            events,
        }
    }
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the source says of the frame.
    pub meta: FrameMeta,
    /// The dictionary that the payload is compressed with; 0 for none.
    pub dictionary: u32,
    /// The length of this header in bytes.
    pub header_bytes: usize,
    /// The length of the payload in bytes.
    pub payload_bytes: usize,
    /// The length of the batch in bytes.
    pub batch_bytes: usize,
}

/// Reads fixed fields one behind the other. Past the end it reads zeros; the caller has checked the length.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

fn checksum(header: &[u8]) -> Option<u32> {
    let before = header.get(..CHECKSUM_OFFSET)?;
    let behind = header.get(CHECKSUM_OFFSET + 4..)?;
    Some(crc32c::crc32c_append(crc32c::crc32c(before), behind))
}

impl FrameHeader {
    /// Reads the header at the beginning of `bytes`, which may be longer.
    ///
    /// # Errors
    /// [`FrameFault::Truncated`], `BadMagic`, `HeaderLength`, `HeaderChecksum` or `UnknownBatchVersion`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameFault> {
        let start = bytes.get(..MAGIC.len().min(bytes.len())).unwrap_or_default();
        if !MAGIC.starts_with(start) {
            return Err(FrameFault::BadMagic);
        }
        let mut fields = Fields(bytes.get(..HEADER_BYTES).ok_or(FrameFault::Truncated)?);
        let _magic: [u8; 4] = fields.take();
        let declared = fields.u16();
        let header_bytes = usize::from(declared);
        if !(HEADER_BYTES..=HEADER_BYTES_MAX).contains(&header_bytes) {
            return Err(FrameFault::HeaderLength(declared));
        }
        let header = bytes.get(..header_bytes).ok_or(FrameFault::Truncated)?;
        let batch_version = fields.u16();
        let lane = if fields.take() == [Lane::Urgent as u8] { Lane::Urgent } else { Lane::Bulk };
        let _flags_and_zeros: [u8; 3] = fields.take();
        let dictionary = fields.u32();
        let id = FrameId {
            source: SourceId(fields.take()),
            incarnation: Incarnation(fields.u64()),
            sequence: Sequence(fields.u64()),
        };
        let config_generation = fields.u64();
        let rule_set = RuleSetVersion(fields.u64());
        let clock = ClockOffset { boot_to_unix_nanos: fields.u64(), error_micros: fields.u64() };
        let (payload_bytes, batch_bytes) = (fields.u32() as usize, fields.u32() as usize);
        let events = fields.u32();
        if checksum(header) != Some(fields.u32()) {
            return Err(FrameFault::HeaderChecksum);
        }
        if !is_readable(batch_version) {
            return Err(FrameFault::UnknownBatchVersion(batch_version));
        }
        let meta = FrameMeta { id, lane, batch_version, config_generation, rule_set, clock, events };
        Ok(Self { meta, dictionary, header_bytes, payload_bytes, batch_bytes })
    }

    /// The length of the whole frame in bytes.
    #[must_use]
    pub const fn frame_bytes(&self) -> usize {
        self.header_bytes + self.payload_bytes
    }

    /// The header as this version writes it; its length is [`HEADER_BYTES`] whatever `header_bytes` says.
    ///
    /// # Errors
    /// [`FrameFault::TooLarge`] if a length does not fit its field.
    pub fn to_bytes(&self) -> Result<[u8; HEADER_BYTES], FrameFault> {
        let length = |what, bytes: usize| {
            u32::try_from(bytes).map_err(|_large| FrameFault::TooLarge {
                what,
                declared: bytes as u64,
                limit: u64::from(u32::MAX),
            })
        };
        let FrameMeta { id, lane, batch_version, config_generation, rule_set, clock, events } = self.meta;
        #[expect(clippy::cast_possible_truncation, reason = "the constant 96")]
        let header_bytes = HEADER_BYTES as u16;
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            for (place, byte) in bytes.iter_mut().skip(at).zip(field) {
                *place = *byte;
            }
            at += field.len();
        };
        put(&MAGIC);
        put(&header_bytes.to_le_bytes());
        put(&batch_version.to_le_bytes());
        put(&[lane as u8, 0, 0, 0]);
        put(&self.dictionary.to_le_bytes());
        put(&id.source.0);
        put(&id.incarnation.0.to_le_bytes());
        put(&id.sequence.0.to_le_bytes());
        put(&config_generation.to_le_bytes());
        put(&rule_set.0.to_le_bytes());
        put(&clock.boot_to_unix_nanos.to_le_bytes());
        put(&clock.error_micros.to_le_bytes());
        put(&length("payload", self.payload_bytes)?.to_le_bytes());
        put(&length("batch", self.batch_bytes)?.to_le_bytes());
        put(&events.to_le_bytes());
        let crc = checksum(&bytes).unwrap_or(0);
        for (place, byte) in bytes.iter_mut().skip(CHECKSUM_OFFSET).zip(crc.to_le_bytes()) {
            *place = byte;
        }
        Ok(bytes)
    }
}
