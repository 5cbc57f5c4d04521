//! What a recording says, entry by entry, and the bodies of its records.

use serde::{Deserialize, Serialize};
use tapio_correlation::AnalysisLimits;
use tapio_schemas::{
    entity::PodIdentity,
    ids::{ClusterId, RuleSetVersion, TenantId},
    units::UnixMicros,
};

use crate::layout::Kind;

/// What a file of a recording is: whose, of which release, with which limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The release of the aggregator.
    pub release: String,
    /// Whose.
    pub tenant: TenantId,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// When the recording began, which tells it from others; all its parts have it.
    pub began: UnixMicros,
    /// Which part of the recording this file is, from 1.
    pub part: u32,
    /// The rules in force.
    pub rule_set: RuleSetVersion,
    /// The limits in force.
    pub limits: AnalysisLimits,
}

/// What a node cannot see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFact {
    /// The node's name.
    pub node: String,
    /// The probes that do not work there, each with why.
    pub missing_probes: Vec<String>,
}

/// A change of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameChange {
    /// Pods that have these names from here on.
    pub named: Vec<PodIdentity>,
    /// Uids of pods that have no names any more.
    pub gone: Vec<String>,
}

/// Why a file of a recording ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The recording goes on in the next part.
    Continues,
    /// The aggregator ended in order.
    Drained,
    /// What was to be recorded came faster than it was written: recording waits for nobody.
    Behind,
    /// More arrived than may wait while the engine saw again, at its start, what the spool held.
    Crowded,
    /// The disk was full.
    DiskFull,
    /// The disk failed otherwise.
    DiskFailed,
    /// Something was larger than a record may be, or what every file begins with than the files.
    TooLarge,
    /// The engine ended by a fault.
    Failed,
}

impl Ending {
    /// Its name, for counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Continues => "continues",
            Self::Drained => "drained",
            Self::Behind => "behind",
            Self::Crowded => "crowded",
            Self::DiskFull => "disk-full",
            Self::DiskFailed => "disk-failed",
            Self::TooLarge => "too-large",
            Self::Failed => "failed",
        }
    }

    /// As a person reads it: "the recording ends because ...".
    #[must_use]
    pub const fn because(self) -> &'static str {
        match self {
            Self::Continues => "it goes on in the next part",
            Self::Drained => "the aggregator ended in order",
            Self::Behind => "it came faster than it could be written, and recording waits for nobody",
            Self::Crowded => {
                "more arrived than may be kept while the engine saw again, at its start, what the spool held"
            }
            Self::DiskFull => "the disk was full",
            Self::DiskFailed => "the disk failed",
            Self::TooLarge => "something was larger than its files may hold",
            Self::Failed => "the engine ended by a fault",
        }
    }
}

/// One thing that the engine took, or that followed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A revision that was announced before this process started, as its bytes.
    Earlier(&'a [u8]),
    /// What a node cannot see, from here on.
    Source(SourceFact),
    /// A change of names.
    Names(NameChange),
    /// A frame.
    Frame {
        /// When it arrived, by the aggregator's clock.
        arrival: UnixMicros,
        /// The node that it is from.
        node: &'a str,
        /// Its bytes, header included.
        bytes: &'a [u8],
    },
    /// The time, while the spool is seen again.
    CatchUp(UnixMicros),
    /// The time.
    Tick {
        /// As it was told.
        now: UnixMicros,
        /// How many revisions follow from it.
        revisions: u32,
    },
    /// A revision as it was announced live, as its bytes.
    Revision(&'a [u8]),
    /// The file ends.
    End(Ending),
}

impl<'a> Entry<'a> {
    /// Puts the body behind `out` and says what it is.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Kind {
        match self {
            Self::Earlier(bytes) => put(out, Kind::Earlier, &[bytes]),
            Self::Source(fact) => put(out, Kind::Source, &[&json(fact)]),
            Self::Names(change) => put(out, Kind::Names, &[&json(change)]),
            Self::Frame { arrival, node, bytes } => {
                // A node's name is a DNS subdomain of at most 253 bytes.
                let node_bytes = u16::try_from(node.len()).unwrap_or(u16::MAX);
                let node = node.as_bytes().get(..usize::from(node_bytes)).unwrap_or_default();
                let lengths = (arrival.0.to_le_bytes(), node_bytes.to_le_bytes());
                put(out, Kind::Frame, &[&lengths.0, &lengths.1, node, bytes])
            }
            Self::CatchUp(now) => put(out, Kind::CatchUp, &[&now.0.to_le_bytes()]),
            Self::Tick { now, revisions } => {
                put(out, Kind::Tick, &[&now.0.to_le_bytes(), &revisions.to_le_bytes()])
            }
            Self::Revision(bytes) => put(out, Kind::Revision, &[bytes]),
            Self::End(ending) => put(out, Kind::End, &[&json(ending)]),
        }
    }

    /// Reads the body of a record; `None` where it is no such body.
    pub(crate) fn read(kind: Kind, body: &'a [u8]) -> Option<Self> {
        Some(match kind {
            Kind::Head | Kind::Rules => return None,
            Kind::Earlier => Self::Earlier(body),
            Kind::Source => Self::Source(serde_json::from_slice(body).ok()?),
            Kind::Names => Self::Names(serde_json::from_slice(body).ok()?),
            Kind::Frame => {
                let (arrival, rest) = body.split_first_chunk()?;
                let (node_bytes, rest) = rest.split_first_chunk()?;
                let (node, bytes) = rest.split_at_checked(usize::from(u16::from_le_bytes(*node_bytes)))?;
                let node = std::str::from_utf8(node).ok()?;
                Self::Frame { arrival: UnixMicros(u64::from_le_bytes(*arrival)), node, bytes }
            }
            Kind::CatchUp => Self::CatchUp(UnixMicros(u64::from_le_bytes(*exactly(body)?))),
            Kind::Tick => {
                let (now, revisions) = body.split_first_chunk()?;
                let now = UnixMicros(u64::from_le_bytes(*now));
                Self::Tick { now, revisions: u32::from_le_bytes(*exactly(revisions)?) }
            }
            Kind::Revision => Self::Revision(body),
            Kind::End => Self::End(serde_json::from_slice(body).ok()?),
        })
    }
}

fn put(out: &mut Vec<u8>, kind: Kind, parts: &[&[u8]]) -> Kind {
    parts.iter().for_each(|part| out.extend_from_slice(part));
    kind
}

fn exactly<const N: usize>(body: &[u8]) -> Option<&[u8; N]> {
    body.try_into().ok()
}

/// What is written here has text keys only, so it always has a JSON form.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
