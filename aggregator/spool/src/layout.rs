//! The bytes of a segment: a header, then records. Little-endian, and never a length that is believed
//! before its checksum was.

use crate::Ordinal;

/// Bytes in front of a segment's first record.
pub const SEGMENT_HEADER_BYTES: u64 = 48;
/// Bytes in front of every record's payload.
pub const RECORD_HEADER_BYTES: u64 = 20;
/// No segment holds more records than this.
///
/// When it is unknown how many ordinals of a segment were handed out (a power cut, damage), the next
/// segment starts this far behind, so that none is used twice.
pub const ORDINALS_PER_SEGMENT_MAX: u64 = 1 << 24;

const SEGMENT_MAGIC: [u8; 8] = *b"TAPIOSEG";
const SEGMENT_VERSION: u32 = 1;
const RECORD_MAGIC: [u8; 4] = *b"tREC";

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Ordinal of the segment's first record.
    pub(crate) base: Ordinal,
    /// Where the segment before it ended. Less than `base` when ordinals were skipped.
    pub(crate) previous_end: Ordinal,
    /// The boot during which it was made: within one boot a killed process loses no written byte.
    pub(crate) boot_id: [u8; 16],
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.base.0.to_le_bytes());
        bytes.extend_from_slice(&self.previous_end.0.to_le_bytes());
        bytes.extend_from_slice(&self.boot_id);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; 48]) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (base, rest) = rest.split_first_chunk::<8>()?;
        let (previous_end, rest) = rest.split_first_chunk::<8>()?;
        let boot_id = *rest.first_chunk::<16>()?;
        let header = Self {
            base: Ordinal(u64::from_le_bytes(*base)),
            previous_end: Ordinal(u64::from_le_bytes(*previous_end)),
            boot_id,
        };
        let sound = *magic == SEGMENT_MAGIC
            && u32::from_le_bytes(*version) == SEGMENT_VERSION
            && u32::from_le_bytes(*checksum) == crc32c::crc32c(body)
            && header.previous_end <= header.base;
        sound.then_some(header)
    }
}

/// The header of a record. Its checksum covers ordinal, length and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) ordinal: Ordinal,
    pub(crate) payload_bytes: u32,
    pub(crate) checksum: u32,
}

impl RecordHeader {
    /// Reads the header of the record that must be `expected`.
    pub(crate) fn decode(bytes: &[u8; 20], expected: Ordinal) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        let (ordinal, rest) = rest.split_first_chunk::<8>()?;
        let header = Self {
            ordinal: Ordinal(u64::from_le_bytes(*ordinal)),
            payload_bytes: u32::from_le_bytes(*rest.first_chunk::<4>()?),
            checksum: u32::from_le_bytes(*checksum),
        };
        (*magic == RECORD_MAGIC && header.ordinal == expected).then_some(header)
    }

    /// Bytes of the whole record.
    pub(crate) fn record_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES + u64::from(self.payload_bytes)
    }

    pub(crate) fn matches(&self, payload: &[u8]) -> bool {
        let checksum = checksum_of_header(self.ordinal, self.payload_bytes);
        crc32c::crc32c_append(checksum, payload) == self.checksum
    }
}

fn checksum_of_header(ordinal: Ordinal, payload_bytes: u32) -> u32 {
    let checksum = crc32c::crc32c(&ordinal.0.to_le_bytes());
    crc32c::crc32c_append(checksum, &payload_bytes.to_le_bytes())
}

/// Appends one record to `out`. `payload_bytes` is the sum of the parts' lengths.
pub(crate) fn encode_record(out: &mut Vec<u8>, ordinal: Ordinal, payload_bytes: u32, parts: &[&[u8]]) {
    let mut checksum = checksum_of_header(ordinal, payload_bytes);
    for part in parts {
        checksum = crc32c::crc32c_append(checksum, part);
    }
    out.extend_from_slice(&RECORD_MAGIC);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&ordinal.0.to_le_bytes());
    out.extend_from_slice(&payload_bytes.to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}
