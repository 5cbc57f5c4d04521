//! What a record of the aggregator's spool holds: a received frame with its arrival, or the aggregator's own ledger.
//!
//! The head is frozen: `version u8, kind u8, name length u16, zero u32, arrival u64` (little endian), the name, the
//! body. The body of a frame is the bytes as they arrived; they are decoded again where they are used, which costs
//! less than spooling them unpacked. Must never be given bytes that the intake did not accept.

use std::str;

use tapio_schemas::units::UnixMicros;
use thiserror::Error;

/// The version of the head.
const VERSION: u8 = 1;
/// Bytes before the name.
const HEAD_BYTES: usize = 16;
/// Bytes of a name: a node's name is a DNS subdomain.
const NAME_BYTES_MAX: usize = 253;

/// What the body of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A frame as it arrived.
    Frame,
    /// The aggregator's own ledger, JSON.
    OwnLedger,
    /// What a source says that it can see, JSON.
    Source,
    /// A frame that was given up for what is in it, JSON: its place is taken, its events are counted.
    GivenUp,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Frame => 1,
            Self::OwnLedger => 2,
            Self::Source => 3,
            Self::GivenUp => 4,
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Frame),
            2 => Some(Self::OwnLedger),
            3 => Some(Self::Source),
            4 => Some(Self::GivenUp),
            _ => None,
        }
    }
}

/// A record, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// What the body is.
    pub(crate) kind: Kind,
    /// The aggregator's time of arrival.
    pub(crate) arrival: UnixMicros,
    /// The node (or aggregator) that it is from.
    pub(crate) name: &'a str,
    /// The body.
    pub(crate) body: &'a [u8],
}

/// A record that cannot be read. It was written by a newer version, or the spool's checksum failed us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RecordError {
    /// It is shorter than its head says.
    #[error("the record is cut short")]
    Short,
    /// Its version or kind is of another release.
    #[error("version {version}, kind {kind} of a record is not known to this release")]
    Unknown {
        /// Its version.
        version: u8,
        /// Its kind.
        kind: u8,
    },
    /// Its name is no UTF-8.
    #[error("the record's name is no text")]
    Name,
}

/// The head and name of a record, to be written before its body. A name is at most 253 bytes and is cut there.
pub(crate) fn head(kind: Kind, arrival: UnixMicros, name: &str) -> Vec<u8> {
    let name = name.as_bytes().get(..NAME_BYTES_MAX).unwrap_or(name.as_bytes());
    let mut head = Vec::with_capacity(HEAD_BYTES + name.len());
    head.extend_from_slice(&[VERSION, kind.code()]);
    head.extend_from_slice(&u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    head.extend_from_slice(&arrival.0.to_le_bytes());
    head.extend_from_slice(name);
    head
}

impl<'a> Record<'a> {
    /// Reads a record.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(RecordError::Short)?;
        let [version, kind, low, high, _, _, _, _, arrival @ ..] = head;
        let known = (*version == VERSION).then(|| Kind::of_code(*kind)).flatten();
        let kind = known.ok_or(RecordError::Unknown { version: *version, kind: *kind })?;
        let name_bytes = usize::from(u16::from_le_bytes([*low, *high]));
        let (name, body) = rest.split_at_checked(name_bytes).ok_or(RecordError::Short)?;
        let name = str::from_utf8(name).map_err(|_invalid| RecordError::Name)?;
        Ok(Self { kind, arrival: UnixMicros(u64::from_le_bytes(*arrival)), name, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a record is written and read; then it is cut short, and its version changed.
    /// Guarantees: what was written comes back in place, anything else is refused by name.
    #[test]
    fn records_round_trip() {
        let mut bytes = head(Kind::Frame, UnixMicros(77), "node-1");
        bytes.extend_from_slice(b"frame");
        let record = Record::read(&bytes).unwrap();
        assert_eq!(
            record,
            Record { kind: Kind::Frame, arrival: UnixMicros(77), name: "node-1", body: b"frame" }
        );
        assert_eq!(Record::read(&bytes[..17]), Err(RecordError::Short));
        bytes[0] = 9;
        assert_eq!(Record::read(&bytes), Err(RecordError::Unknown { version: 9, kind: 1 }));
    }
}
