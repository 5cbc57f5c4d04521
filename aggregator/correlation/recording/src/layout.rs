//! The bytes of a file: its beginning, and the heads of its records. See the crate's documentation.

use tapio_correlation::RuleSet;
use thiserror::Error;

use crate::entry::{Entry, Head, json};

/// The format that this release writes and reads.
pub const FORMAT: u32 = 2;
/// The most bytes of a record's body: more than any frame, rule set or finding has.
pub const RECORD_BYTES_MAX: usize = 32 << 20;

/// Bytes in front of the first record.
pub(crate) const FILE_HEAD_BYTES: usize = 16;
/// Bytes in front of every body.
pub(crate) const RECORD_HEAD_BYTES: usize = 16;
pub(crate) const MAGIC: [u8; 8] = *b"TAPIOREC";

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Head,
    Rules,
    Earlier,
    Source,
    Names,
    Frame,
    CatchUp,
    Tick,
    Revision,
    End,
}

/// By their codes.
const KINDS: [Kind; 10] = [
    Kind::Head,
    Kind::Rules,
    Kind::Earlier,
    Kind::Source,
    Kind::Names,
    Kind::Frame,
    Kind::CatchUp,
    Kind::Tick,
    Kind::Revision,
    Kind::End,
];

/// Something is larger than a record may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a record would have {bytes} bytes, more than {RECORD_BYTES_MAX}")]
pub struct TooLarge {
    /// How large.
    pub bytes: usize,
}

/// Makes the bytes of one file.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    number: u64,
}

impl Encoder {
    /// Begins a file: puts everything in front of its first entry behind `out`.
    #[must_use]
    pub fn begin(head: &Head, rules: &RuleSet, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let mut encoder = Self { number: 0 };
        for (kind, body) in [(Kind::Head, json(head).as_slice()), (Kind::Rules, rules.as_bytes())] {
            // A head is short, and a rule set a fraction of what a record may be.
            let _fits = encoder.record(out, |out| {
                out.extend_from_slice(body);
                kind
            });
        }
        encoder
    }

    /// Puts an entry behind `out`.
    ///
    /// # Errors
    /// When it is too large; `out` is then as before.
    pub fn put(&mut self, entry: &Entry<'_>, out: &mut Vec<u8>) -> Result<(), TooLarge> {
        self.record(out, |out| entry.write(out))
    }

    fn record(&mut self, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>) -> Kind) -> Result<(), TooLarge> {
        let start = out.len();
        out.extend_from_slice(&[0; RECORD_HEAD_BYTES]);
        let kind = body(out);
        let written = out.get(start + RECORD_HEAD_BYTES..).unwrap_or_default();
        let bytes = written.len();
        let Some(length) = u32::try_from(bytes).ok().filter(|_| bytes <= RECORD_BYTES_MAX) else {
            out.truncate(start);
            return Err(TooLarge { bytes });
        };
        let head = RecordHead { length, kind: Some(kind), checksum: crc32c::crc32c(written) };
        if let Some(place) = out.get_mut(start..start + RECORD_HEAD_BYTES) {
            place.copy_from_slice(&head.encode(self.number));
        }
        self.number += 1;
        Ok(())
    }
}

/// What stands in front of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) length: u32,
    /// `None` is a kind that this release does not know.
    pub(crate) kind: Option<Kind>,
    pub(crate) checksum: u32,
}

impl RecordHead {
    fn encode(self, number: u64) -> [u8; RECORD_HEAD_BYTES] {
        let code = KINDS.iter().position(|kind| Some(*kind) == self.kind).unwrap_or(usize::MAX);
        let mut head = [0; RECORD_HEAD_BYTES];
        let parts = self.length.to_le_bytes().into_iter();
        let parts = parts.chain([u8::try_from(code).unwrap_or(u8::MAX), 0, 0, 0]);
        let parts = parts.chain(self.checksum.to_le_bytes());
        head.iter_mut().zip(parts).for_each(|(place, byte)| *place = byte);
        let checksum = head_checksum(&head, number);
        head.iter_mut().skip(12).zip(checksum.to_le_bytes()).for_each(|(place, byte)| *place = byte);
        head
    }

    /// `None` where the head is damaged, or of another record.
    pub(crate) fn decode(head: &[u8; RECORD_HEAD_BYTES], number: u64) -> Option<Self> {
        let [l0, l1, l2, l3, code, _, _, _, b0, b1, b2, b3, h0, h1, h2, h3] = *head;
        if u32::from_le_bytes([h0, h1, h2, h3]) != head_checksum(head, number) {
            return None;
        }
        let kind = KINDS.get(usize::from(code)).copied();
        let checksum = u32::from_le_bytes([b0, b1, b2, b3]);
        Some(Self { length: u32::from_le_bytes([l0, l1, l2, l3]), kind, checksum })
    }
}

fn head_checksum(head: &[u8; RECORD_HEAD_BYTES], number: u64) -> u32 {
    let own = head.get(..12).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), own)
}
