//! The cut record and the stored mark: which frames make the next block, and up to where all are stored.
//!
//! A cut is on the disk before the first of its inserts, so that a crash in the middle leads to the very same blocks,
//! which their tokens then keep from being inserted twice. Written by [`super::writer`] and, at a start, by
//! [`super::start`].

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tapio_schemas::{ids::SourceId, units::UnixMicros};
use tapio_spool::disk::Disk;
use tapio_wire::Position;

use crate::state::{self, StateError};

/// The version of the encoder: what rows a frame becomes. Raised when the same frame would give other rows.
pub(crate) const ENCODER_VERSION: u32 = 1;

const STORED: &str = "stored.json";
const CUT: &str = "cut.json";
const ADVICE: &str = "restore it; or stop the aggregator, move stored.json, cut.json and spool/ away and keep \
    clickhouse/, where the data is: agents send again what they still hold, and what is stored already is recognised";
const OTHER_ENCODER: &str = "start the release that cut it until cut.json is stored, and then this one; or stop the \
    aggregator, move stored.json, cut.json and spool/ away and keep clickhouse/: agents send again what they still hold";

/// Where a block was cut out of the spool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cut {
    /// The first record of the block.
    pub(crate) from: u64,
    /// The first record behind it.
    pub(crate) until: u64,
    /// How many records are in between; ordinals may be missing. An earlier release did not say it.
    #[serde(default)]
    pub(crate) records: Option<u64>,
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
    /// When a frame of each source was stored last, microseconds since 1970.
    #[serde(default)]
    pub(crate) stored_at: BTreeMap<SourceId, u64>,
    /// Frames that are not stored although they are in the spool, because frames before them are damaged: their
    /// sources send all of them again.
    #[serde(default)]
    pub(crate) sent_again: SentAgain,
    /// Whether the store may hold frames that this does not know of, because it was made anew.
    #[serde(default)]
    pub(crate) is_anew: bool,
    /// Frames of which some tables have their rows, and which are not complete.
    #[serde(default, skip_serializing_if = "Fragments::is_empty")]
    pub(crate) fragments: Fragments,
}

/// What some tables have of frames that are not complete. Whoever stores such a frame leaves that out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Fragment>", into = "Vec<Fragment>")]
pub(crate) struct Fragments(BTreeMap<(SourceId, u64, u64), BTreeSet<Place>>);

/// A table, or a day of one, where rows of a frame go as a whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The events of a day, counted since 1970.
    Events(u32),
    /// The ledger.
    Ledger,
}

/// Rows of a frame that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fragment {
    /// Whose frame.
    pub source: SourceId,
    /// Of which life.
    pub incarnation: u64,
    /// Its place there.
    pub sequence: u64,
    /// Where the rows are.
    pub place: Place,
}

impl Fragments {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is there of a frame.
    pub(crate) fn of(&self, source: SourceId, position: Position) -> Option<&BTreeSet<Place>> {
        self.0.get(&(source, position.incarnation.0, position.sequence.0))
    }

    /// Forgets what was there of a frame: it is complete.
    pub(crate) fn completed(&mut self, source: SourceId, position: Position) {
        self.0.remove(&(source, position.incarnation.0, position.sequence.0));
    }

    /// Forgets a source.
    fn let_go(&mut self, source: SourceId) {
        self.0.retain(|(of, ..), _| *of != source);
    }
}

impl From<Vec<Fragment>> for Fragments {
    fn from(all: Vec<Fragment>) -> Self {
        let mut fragments = Self::default();
        for Fragment { source, incarnation, sequence, place } in all {
            fragments.0.entry((source, incarnation, sequence)).or_default().insert(place);
        }
        fragments
    }
}

impl From<Fragments> for Vec<Fragment> {
    fn from(fragments: Fragments) -> Self {
        let each = |((source, incarnation, sequence), places): (_, BTreeSet<Place>)| {
            places.into_iter().map(move |place| Fragment { source, incarnation, sequence, place })
        };
        fragments.0.into_iter().flat_map(each).collect()
    }
}

/// Records of the spool whose frames are sent again: for each damage, from there to the end of what was in the spool when
/// it was found. Rising, and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SentAgainForms")]
pub(crate) struct SentAgain(Vec<Range<u64>>);

/// The forms that releases have written it in.
#[derive(Deserialize)]
#[serde(untagged)]
enum SentAgainForms {
    All(Vec<Range<u64>>),
    One { from: u64, until: u64 },
    None(()),
}

impl From<SentAgainForms> for SentAgain {
    fn from(form: SentAgainForms) -> Self {
        match form {
            SentAgainForms::All(ranges) => Self(ranges),
            SentAgainForms::One { from, until } => Self(std::iter::once(from..until).collect()),
            SentAgainForms::None(()) => Self::default(),
        }
    }
}

impl SentAgain {
    /// Whether a record is one of them.
    pub(crate) fn contains(&self, ordinal: u64) -> bool {
        self.0.iter().any(|range| range.contains(&ordinal))
    }

    /// Whether one of them is in between.
    pub(crate) fn overlaps(&self, from: u64, until: u64) -> bool {
        self.0.iter().any(|range| range.start < until && range.end > from)
    }

    /// Adds a damage, found when the spool ended at `end`. What stands between two damages was sent again after the first,
    /// and is sound: it stays out.
    pub(crate) fn add(&mut self, damage: Range<u64>, end: u64) {
        if let Some(from) = self.first_beyond(damage) {
            self.0.retain(|range| range.end <= from);
            self.0.push(from..end);
        }
    }

    /// The first of some records that is none of them.
    pub(crate) fn first_beyond(&self, records: Range<u64>) -> Option<u64> {
        let mut from = records.start;
        while let Some(known) = self.0.iter().find(|range| range.contains(&from)) {
            from = known.end;
        }
        (from < records.end).then_some(from)
    }

    /// Forgets those that everything behind is stored of.
    fn trim(&mut self, stored_until: u64) {
        self.0.retain(|range| range.end > stored_until);
    }
}

impl Stored {
    /// Notes that every record below `until` is stored.
    pub(crate) fn advance(&mut self, until: u64) {
        self.until = until;
        self.sent_again.trim(until);
    }

    /// Notes that a source's frames up to `position` are stored.
    pub(crate) fn note(&mut self, source: SourceId, position: Position, now: UnixMicros) {
        let last = self.sources.entry(source).or_default();
        *last = (position.incarnation.0, position.sequence.0).max(*last);
        self.stored_at.insert(source, now.0);
    }

    /// Whether a frame is stored, as far as this knows.
    pub(crate) fn has(&self, source: SourceId, position: Position) -> bool {
        self.sources.get(&source).is_some_and(|last| (position.incarnation.0, position.sequence.0) <= *last)
    }

    /// Sources of which it is not known when a frame was stored last count from now on.
    pub(crate) fn date(&mut self, now: UnixMicros) {
        for source in self.sources.keys() {
            self.stored_at.entry(*source).or_insert(now.0);
        }
    }

    /// Lets go of the sources of which no frame was stored since `before` and that `may_go`; returns how many.
    pub(crate) fn let_go(&mut self, before: UnixMicros, mut may_go: impl FnMut(SourceId) -> bool) -> u64 {
        let old: Vec<SourceId> = self
            .stored_at
            .iter()
            .filter(|(source, at)| **at < before.0 && may_go(**source))
            .map(|(source, _)| *source)
            .collect();
        for source in &old {
            self.stored_at.remove(source);
            self.sources.remove(source);
            self.fragments.let_go(*source);
        }
        old.len() as u64
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
    disk: Arc<dyn Disk>,
    stored_path: PathBuf,
    cut_path: PathBuf,
}

impl Marks {
    /// Those of the state directory `root`.
    pub(crate) fn new(disk: Arc<dyn Disk>, root: &Path) -> Self {
        Self { disk, stored_path: root.join(STORED), cut_path: root.join(CUT) }
    }

    /// Reads both; a cut that is already stored is none.
    pub(crate) fn load(&self) -> Result<(Option<Stored>, Option<Cut>), StateError> {
        let stored = state::read_json::<Stored>(&*self.disk, &self.stored_path, ADVICE)?;
        let cut = state::read_json::<Cut>(&*self.disk, &self.cut_path, ADVICE)?;
        let until = stored.as_ref().map_or(0, |stored| stored.until);
        let cut = cut.filter(|cut| cut.until > until);
        match &cut {
            // The rows of another encoder under the same token would be half of the one and half of the other.
            Some(cut) if cut.encoder != ENCODER_VERSION => Err(StateError::OtherRelease {
                path: self.cut_path.clone(),
                reason: format!(
                    "a block was cut by encoder version {}, and this release has {ENCODER_VERSION}",
                    cut.encoder
                ),
                advice: OTHER_ENCODER,
            }),
            _ => Ok((stored, cut)),
        }
    }

    /// Writes the cut; on the disk when this returns.
    pub(crate) fn write_cut(&self, cut: &Cut) -> Result<(), StateError> {
        state::replace_json(&*self.disk, &self.cut_path, cut)
    }

    /// Writes how far everything is stored; on the disk when this returns.
    pub(crate) fn write_stored(&self, stored: &Stored) -> Result<(), StateError> {
        state::replace_json(&*self.disk, &self.stored_path, stored)
    }

    /// Forgets a cut of a spool that is gone.
    pub(crate) fn forget_cut(&self) -> Result<(), StateError> {
        state::remove(&*self.disk, &self.cut_path)
    }
}

/// What makes an insert of this cut into `table` the same insert, however often it is tried.
pub(crate) fn token(spool: &str, cut: &Cut, table: &str) -> String {
    format!("{spool}-{}-{}-{table}", cut.from, cut.until)
}

#[cfg(test)]
mod tests {
    use tapio_spool::disk::RealDisk;

    use super::*;

    fn marks(directory: &tempfile::TempDir) -> Marks {
        Marks::new(Arc::new(RealDisk), directory.path())
    }

    /// Scenario: a cut is written, the process ends, a second one reads it; then its block is stored.
    /// Guarantees: the same cut comes back until it is stored, and then none; its token does not change.
    #[test]
    fn a_cut_outlives_the_process_until_it_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let cut = Cut {
            from: 3,
            until: 9,
            records: Some(6),
            encoder: ENCODER_VERSION,
            tables: vec!["events".into()],
        };
        let written = marks(&directory);
        written.write_cut(&cut).unwrap();
        let (stored, again) = marks(&directory).load().unwrap();
        assert_eq!((stored, again.clone()), (None, Some(cut.clone())));
        assert_eq!(token("aa", &cut, "events"), token("aa", &again.unwrap(), "events"));
        let mut stored = Stored { spool: "aa".into(), until: 9, ..Stored::default() };
        stored.note(SourceId([1; 16]), Position::new(2, 5), UnixMicros(7));
        written.write_stored(&stored).unwrap();
        assert_eq!(marks(&directory).load().unwrap(), (Some(stored), None));
    }

    /// Scenario: a release with another encoder cut a block and ended before it was stored; then it was stored.
    /// Guarantees: the block is refused with what to do; once it is stored, nothing is in the way.
    #[test]
    fn a_cut_of_another_encoder_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let written = marks(&directory);
        let cut = Cut { from: 0, until: 9, records: None, encoder: ENCODER_VERSION + 1, tables: Vec::new() };
        written.write_cut(&cut).unwrap();
        let refused = written.load().unwrap_err().to_string();
        assert!(refused.contains("encoder version 2") && refused.contains("keep clickhouse/"), "{refused}");
        written.write_stored(&Stored { until: 9, ..Stored::default() }).unwrap();
        assert_eq!(marks(&directory).load().unwrap().1, None);
    }

    /// Scenario: a mark of an earlier release, without times; then the sources are silent for long, one with a session.
    /// Guarantees: it is read; sources count from then on; only those that may go are let go.
    #[test]
    fn sources_that_are_silent_for_long_are_let_go() {
        let source = |number| SourceId([number; 16]);
        let text = format!(
            "{{\"spool\":\"aa\",\"until\":3,\"sources\":{{\"{}\":[1,2],\"{}\":[1,9]}}}}",
            source(1),
            source(2)
        );
        let mut stored: Stored = serde_json::from_str(&text).unwrap();
        assert!(!stored.is_anew && stored.sent_again == SentAgain::default());
        stored.date(UnixMicros(100));
        assert_eq!(stored.let_go(UnixMicros(100), |_| true), 0);
        stored.note(source(3), Position::new(1, 1), UnixMicros(200));
        assert_eq!(stored.let_go(UnixMicros(150), |at| at == source(2)), 1);
        assert!(stored.has(source(1), Position::new(1, 2)) && !stored.has(source(1), Position::new(1, 3)));
        assert!(!stored.has(source(2), Position::new(1, 1)) && stored.has(source(3), Position::new(1, 1)));
    }

    /// Scenario: marks of earlier releases; damage; the same again at the next start; more behind what was sent again, also
    /// such that begins in what was damaged before; damage in front of all.
    /// Guarantees: all forms are read; what was sent again and is sound is not sent once more; everything behind what is
    /// newly damaged is.
    #[test]
    fn only_what_is_behind_new_damage_is_sent_again() {
        let read = |text: &str| serde_json::from_str::<SentAgain>(text).unwrap();
        assert_eq!(read("null"), SentAgain::default());
        let mut again = read("{\"from\":10,\"until\":20}");
        assert_eq!(read(&serde_json::to_string(&again).unwrap()), again);
        again.add(10..15, 30);
        assert!(again.contains(19) && !again.contains(20));
        again.add(18..24, 30);
        assert!(again.contains(20) && again.contains(29) && !again.contains(30));
        again.add(40..41, 50);
        assert!(!again.contains(30) && !again.contains(39) && again.contains(49) && again.overlaps(38, 41));
        again.trim(30);
        assert!(!again.contains(19) && again.contains(49));
        again.add(5..6, 60);
        assert!(again.contains(5) && again.contains(35) && again.contains(59));
    }
}
