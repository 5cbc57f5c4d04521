//! Recordings: what an aggregator's engine took, in the order in which it took it, and their replay. Sans-IO.
//!
//! Everything that can change a revision of a finding is in a recording, and nothing else: frames as they arrived,
//! what nodes said that they cannot see, names of pods, the times that the engine was told, what was announced before
//! the process started, the compiled rules, and the limits. Beside it stands what was announced live, so that a replay
//! can be held against it anywhere, without the aggregator's files. The aggregator writes recordings; `tapio replay`
//! reads them.
//!
//! # Layout
//!
//! All numbers are little-endian. A file (a *part* of a recording, which goes on in the next) is
//!
//! ```text
//! magic    8 bytes   "TAPIOREC"
//! format   u32       2
//! zero     u32
//! records, each:
//!   length u32       bytes of the body, at most 32 MiB
//!   kind   u8
//!   zero   3 bytes
//!   body   u32       CRC-32C of the body
//!   head   u32       CRC-32C of the record's number (u64, from 0 in each file) and of the 12 bytes before this
//!   body
//! ```
//!
//! | kind | body |
//! |---|---|
//! | 0 head | [`Head`], JSON; the first record |
//! | 1 rules | the compiled rule set; the second record |
//! | 2 earlier | JSON of a revision that was announced before this process started |
//! | 3 source | JSON: a node, and the probes that do not work there, from here on |
//! | 4 names | JSON: pods that have (other) names from here on, and uids that have none any more |
//! | 5 frame | arrival u64 (µs since 1970), bytes of the node's name u16, the name, the frame's bytes, header included |
//! | 6 catch-up | u64: the time, told while the spool is seen again after a start: nothing is announced then |
//! | 7 tick | u64: the time, told; u32: how many revisions follow from it |
//! | 8 revision | JSON of a revision as it was announced live; as many follow a tick as it says |
//! | 9 end | JSON: why the file ends |
//!
//! Parts after the first begin with all sources and names in force; what the engine held before is not in them.
//! Records are numbered in their checksums, so that one that is missing, doubled or moved is damage too. A file that
//! ends within a record, or in zeros, was cut when its writer was: what is before the cut is whole.

mod entry;
mod layout;
mod reader;
mod replay;

pub use entry::{Ending, Entry, Head, NameChange, SourceFact};
pub use layout::{Encoder, FORMAT, RECORD_BYTES_MAX, TooLarge};
pub use reader::{End, ReadError, Reader};
pub use replay::{Comparison, Difference, Replay, ReplayError, Rules};

use tapio_schemas::finding::Finding;

/// The bytes of a revision: what the aggregator announces and stores, and what a replay is compared by.
#[must_use]
pub fn revision_bytes(finding: &Finding) -> Vec<u8> {
    // A finding has text keys only, so it always has a JSON form.
    serde_json::to_vec(finding).unwrap_or_default()
}
