//! What the spool still holds at a start: how far each source came, and what each said that it can see.

use std::collections::HashMap;

use tapio_schemas::ids::SourceId;
use tapio_spool::{GapReason, Item, Spool, SpoolError};
use tapio_wire::{Position, frame::FrameHeader};

use crate::{
    pipeline::{
        cut::{SentAgain, Stored},
        positions::Positions,
        record::{Kind, Record},
    },
    source::{Announcement, GivenUp},
};

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// The latest announcement of each source, with its node's name.
    pub(super) announcements: Vec<(String, Announcement)>,
    /// Frames that their sources have to send again, because what stands before them is damaged and not stored.
    pub(super) sent_again: Option<SentAgain>,
}

/// Reads all records, frames by their headers only: sets how far each source is received. Frames behind damage that is
/// not stored do not count as received, and those that are in the spool now must not be stored: their sources send all
/// of them again, in order.
pub(super) fn scan(spool: &Spool, positions: &Positions, stored: &Stored) -> Result<Scanned, SpoolError> {
    let mut reader = spool.read_from(spool.first());
    let mut received: HashMap<SourceId, Position> = HashMap::new();
    let mut announcements: HashMap<SourceId, (String, Announcement)> = HashMap::new();
    let mut sent_again = stored.sent_again;
    while let Some(item) = reader.next_item()? {
        let (ordinal, payload) = match item {
            Item::Record { ordinal, payload } => (ordinal, payload),
            Item::Gap(gap) => {
                if matches!(gap.reason, GapReason::Damaged { .. }) && gap.until.0 > stored.until {
                    let from = gap.from.0.max(stored.until);
                    let from = sent_again.map_or(from, |range| range.from.min(from));
                    sent_again = Some(SentAgain { from, until: spool.next().0 });
                }
                continue;
            }
        };
        let counts = !sent_again.is_some_and(|range| range.contains(ordinal.0));
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
    Ok(Scanned { announcements: announcements.into_values().collect(), sent_again })
}
