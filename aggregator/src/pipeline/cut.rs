//! The cut record and the stored mark: which frames make the next block, and up to where all are stored.
//!
//! A cut is on the disk before the first of its inserts, so that a crash in the middle leads to the very same blocks,
//! which their tokens then keep from being inserted twice. Written by [`super::store`] only.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tapio_schemas::ids::SourceId;
use tapio_wire::Position;

use crate::state::{self, StateDirectory, StateError};

/// The version of the encoder: what rows a frame becomes. Raised when the same frame would give other rows.
pub(crate) const ENCODER_VERSION: u32 = 1;

const STORED: &str = "stored.json";
const CUT: &str = "cut.json";
const ADVICE: &str = "restore it, or remove the whole state directory: what agents still hold is sent again";

/// Where a block was cut out of the spool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cut {
    /// The first record of the block.
    pub(crate) from: u64,
    /// The first record behind it.
    pub(crate) until: u64,
    /// The encoder that cut it.
    pub(crate) encoder: u32,
    /// The tables that it goes to.
    pub(crate) tables: Vec<String>,
}

/// Up to where everything is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    /// Which spool this speaks of: a random number, so that the tokens of two spools never meet.
    pub(crate) spool: String,
    /// Every record below is in every table.
    pub(crate) until: u64,
    /// The last stored frame of each source: its incarnation and sequence.
    pub(crate) sources: BTreeMap<SourceId, (u64, u64)>,
}

impl Stored {
    /// Notes that a source's frames up to `position` are stored.
    pub(crate) fn note(&mut self, source: SourceId, position: Position) {
        let last = self.sources.entry(source).or_default();
        *last = (position.incarnation.0, position.sequence.0).max(*last);
    }

    /// The last stored frame of each source.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (SourceId, Position)> {
        self.sources
            .iter()
            .map(|(source, (incarnation, sequence))| (*source, Position::new(*incarnation, *sequence)))
    }
}

/// The two small files.
#[derive(Debug)]
pub(crate) struct Marks {
    stored_path: PathBuf,
    cut_path: PathBuf,
}

impl Marks {
    pub(crate) fn new(state: &StateDirectory) -> Self {
        Self { stored_path: state.root().join(STORED), cut_path: state.root().join(CUT) }
    }

    /// Reads both; a cut that is already stored is none.
    pub(crate) fn load(&self) -> Result<(Option<Stored>, Option<Cut>), StateError> {
        let stored = state::read_json::<Stored>(&self.stored_path, ADVICE)?;
        let cut = state::read_json::<Cut>(&self.cut_path, ADVICE)?;
        let until = stored.as_ref().map_or(0, |stored| stored.until);
        Ok((stored, cut.filter(|cut| cut.until > until)))
    }

    /// Writes the cut; on the disk when this returns.
    pub(crate) fn write_cut(&self, cut: &Cut) -> Result<(), StateError> {
        state::replace_json(&self.cut_path, cut)
    }

    /// Writes how far everything is stored; on the disk when this returns.
    pub(crate) fn write_stored(&self, stored: &Stored) -> Result<(), StateError> {
        state::replace_json(&self.stored_path, stored)
    }

    /// Forgets a cut of a spool that is gone.
    pub(crate) fn forget_cut(&self) -> Result<(), StateError> {
        state::remove(&self.cut_path)
    }
}

/// What makes an insert of this cut into `table` the same insert, however often it is tried.
pub(crate) fn token(spool: &str, cut: &Cut, table: &str) -> String {
    format!("{spool}-{}-{}-{table}", cut.from, cut.until)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a cut is written, the process ends, a second one reads it; then its block is stored.
    /// Guarantees: the same cut comes back until it is stored, and then none; its token does not change.
    #[test]
    fn a_cut_outlives_the_process_until_it_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let cut = Cut { from: 3, until: 9, encoder: ENCODER_VERSION, tables: vec!["events".into()] };
        let marks = Marks::new(&state);
        marks.write_cut(&cut).unwrap();
        let (stored, again) = Marks::new(&state).load().unwrap();
        assert_eq!((stored, again.clone()), (None, Some(cut.clone())));
        assert_eq!(token("aa", &cut, "events"), token("aa", &again.unwrap(), "events"));
        let mut stored = Stored { spool: "aa".into(), until: 9, ..Stored::default() };
        stored.note(SourceId([1; 16]), Position::new(2, 5));
        marks.write_stored(&stored).unwrap();
        assert_eq!(Marks::new(&state).load().unwrap(), (Some(stored), None));
    }
}
