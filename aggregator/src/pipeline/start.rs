//! What is on the disk at a start: the spool, the marks, how far each source came, and what each said that it can see.
//!
//! Called once by [`crate::run`], before any thread runs. It blocks as long as the disk needs to read a spool through.

use std::{collections::HashMap, path::Path, sync::Arc};

use tapio_schemas::{ids::SourceId, units::UnixMicros};
use tapio_spool::{GapReason, Item, Spool, SpoolConfig, SpoolError, disk::Disk};
use tapio_wire::{Position, frame::FrameHeader};
use thiserror::Error;

use super::{
    cut::{Cut, Marks, SentAgain, Stored},
    positions::Positions,
    record::{Kind, Record},
};
use crate::{
    source::{Announcement, GivenUp},
    state::StateError,
};

/// Why the road cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The spool cannot be opened or read.
    #[error("the spool cannot be opened")]
    Spool(#[from] SpoolError),
    /// The marks cannot be read or written.
    #[error("what is stored is not known")]
    State(#[from] StateError),
    /// The system gives no random number.
    #[error("no random number can be had: {0}")]
    Random(String),
}

/// What the state directory holds of the road.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) spool: Spool,
    pub(crate) marks: Marks,
    pub(crate) stored: Stored,
    pub(crate) pending: Option<Cut>,
    /// The latest announcement of each source, with its node's name.
    pub(crate) announcements: Vec<(String, Announcement)>,
}

/// Where the road's state is, and what a start needs beside it.
pub(crate) struct Place<'a> {
    pub(crate) disk: Arc<dyn Disk>,
    /// The state directory.
    pub(crate) root: &'a Path,
    /// The spool of received frames, in it.
    pub(crate) spool: &'a Path,
    pub(crate) config: SpoolConfig,
    pub(crate) now: UnixMicros,
    /// Makes the number of a new spool: 128 random bits.
    pub(crate) random: &'a mut dyn FnMut() -> Result<u128, String>,
}

/// Opens the spool and sets how far each source's frames are received and stored.
pub(crate) fn open(place: Place<'_>, positions: &Positions) -> Result<Opened, StartError> {
    let Place { disk, root, spool, config, now, random } = place;
    let (spool, _recovery) = Spool::open_on(Arc::clone(&disk), spool, config)?;
    let marks = Marks::new(disk, root);
    let (mut stored, mut pending) = load_marks(&marks, &spool, now, random)?;
    for (source, position) in stored.positions() {
        positions.stored(source, position);
    }
    let scanned = scan(&spool, positions, &stored, pending.as_ref())?;
    let is_damaged = stored.sent_again != scanned.sent_again;
    if is_damaged {
        tracing::error!(
            ranges = ?scanned.sent_again,
            "records of the spool are damaged and not stored: frames from there on are sent again"
        );
    }
    // A block that cannot be cut again the same must not have the token of the first: the store is asked instead what it
    // has of it.
    let is_other = pending.take_if(|cut| !scanned.has_whole(cut, &stored, &spool)).is_some();
    if is_other {
        tracing::error!("a block that was cut is no longer whole: the store is asked what it has of it");
        stored.spool = new_number(random)?;
        stored.is_anew = true;
    }
    stored.sent_again = scanned.sent_again;
    // Also where nothing changed: after a sync that failed, what was read may be in the page cache only.
    marks.write_stored(&stored)?;
    if let Some(cut) = &pending {
        marks.write_cut(cut)?;
    }
    if stored.is_anew {
        // Only now: without it, and without a mark that is anew, nobody would ask what the store has of it.
        marks.forget_cut()?;
    }
    Ok(Opened { spool, marks, stored, pending, announcements: scanned.announcements })
}

/// A number of 128 random bits, as text.
fn new_number(random: &mut dyn FnMut() -> Result<u128, String>) -> Result<String, StartError> {
    random().map(|number| format!("{number:032x}")).map_err(StartError::Random)
}

/// The marks of this spool. One that is shorter than its mark is another spool: it gets a number of its own, so that
/// its blocks are not taken for those of the one before.
fn load_marks(
    marks: &Marks,
    spool: &Spool,
    now: UnixMicros,
    random: &mut dyn FnMut() -> Result<u128, String>,
) -> Result<(Stored, Option<Cut>), StartError> {
    let (stored, cut) = marks.load()?;
    match stored {
        Some(mut stored) if stored.until <= spool.next().0 => {
            stored.date(now);
            // A cut of before the mark was made anew is of no use: its token is not ours any more.
            let cut = cut.filter(|_| !stored.is_anew);
            Ok((stored, cut))
        }
        other => {
            if other.is_some() {
                tracing::error!("the spool is not the one that the stored mark speaks of: it starts anew");
            }
            let other = other.unwrap_or_default();
            let mut stored = Stored {
                spool: new_number(random)?,
                until: spool.first().0,
                sent_again: SentAgain::default(),
                is_anew: true,
                ..other
            };
            stored.date(now);
            marks.write_stored(&stored)?;
            Ok((stored, None))
        }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
struct Scanned {
    /// The latest announcement of each source, with its node's name.
    announcements: Vec<(String, Announcement)>,
    /// How many records of the pending cut are there.
    of_cut: u64,
    /// Frames that their sources have to send again, because what stands before them is damaged and not stored.
    sent_again: SentAgain,
}

impl Scanned {
    /// Whether the same records make the same block as when it was cut.
    fn has_whole(&self, cut: &Cut, stored: &Stored, spool: &Spool) -> bool {
        cut.from == stored.until
            && cut.until <= spool.next().0
            && cut.records.is_none_or(|records| records == self.of_cut)
            && !self.sent_again.overlaps(cut.from, cut.until)
    }
}

/// Reads all records, frames by their headers only: sets how far each source is received. Frames behind damage that is
/// not stored do not count as received, and those that are in the spool now must not be stored: their sources send all
/// of them again, in order.
fn scan(
    spool: &Spool,
    positions: &Positions,
    stored: &Stored,
    pending: Option<&Cut>,
) -> Result<Scanned, SpoolError> {
    let mut reader = spool.read_from(spool.first());
    let mut received: HashMap<SourceId, Position> = HashMap::new();
    let mut announcements: HashMap<SourceId, (String, Announcement)> = HashMap::new();
    let (mut sent_again, mut of_cut) = (stored.sent_again.clone(), 0);
    while let Some(item) = reader.next_item()? {
        let (ordinal, payload) = match item {
            Item::Record { ordinal, payload } => (ordinal, payload),
            Item::Gap(gap) => {
                if matches!(gap.reason, GapReason::Damaged { .. }) && gap.until.0 > stored.until {
                    sent_again.add(gap.from.0.max(stored.until)..gap.until.0, spool.next().0);
                }
                continue;
            }
        };
        of_cut += u64::from(pending.is_some_and(|cut| (cut.from..cut.until).contains(&ordinal.0)));
        // What was left out below the mark is not stored, and says nothing: the mark knows how far each source came.
        let counts = ordinal.0 >= stored.until && !sent_again.contains(ordinal.0);
        let Ok(record) = Record::read(payload) else {
            // The feeder meets it too, and counts it.
            tracing::warn!(%ordinal, "a record of the spool cannot be read");
            continue;
        };
        match record.kind {
            Kind::Frame if counts => {
                if let Ok(header) = FrameHeader::parse(record.body) {
                    let last = received.entry(header.meta.id.source).or_default();
                    *last = Position::from(header.meta.id).max(*last);
                }
            }
            Kind::Source => {
                if let Ok(announcement) = serde_json::from_slice::<Announcement>(record.body) {
                    announcements.insert(announcement.source, (record.name.to_owned(), announcement));
                }
            }
            Kind::GivenUp if counts => {
                if let Ok(given_up) = serde_json::from_slice::<GivenUp>(record.body) {
                    let last = received.entry(given_up.source).or_default();
                    *last = Position::new(given_up.incarnation, given_up.sequence).max(*last);
                }
            }
            Kind::Frame | Kind::GivenUp | Kind::OwnLedger => {}
        }
    }
    for (source, position) in received {
        positions.received(source, position);
    }
    Ok(Scanned { announcements: announcements.into_values().collect(), of_cut, sent_again })
}
