//! What the spool still holds at a start: how far each source came, and what each said that it can see.

use std::collections::HashMap;

use tapio_schemas::ids::SourceId;
use tapio_spool::{Item, Spool, SpoolError};
use tapio_wire::{Position, frame::FrameHeader};

use crate::{
    pipeline::{
        positions::Positions,
        record::{Kind, Record},
    },
    source::{Announcement, GivenUp},
};

/// Reads all records, frames by their headers only: sets how far each source is received, and returns the latest
/// announcement of each.
pub(super) fn scan(spool: &Spool, positions: &Positions) -> Result<Vec<Announcement>, SpoolError> {
    let mut reader = spool.read_from(spool.first());
    let mut received: HashMap<SourceId, Position> = HashMap::new();
    let mut announcements: HashMap<SourceId, Announcement> = HashMap::new();
    while let Some(item) = reader.next_item()? {
        let Item::Record { ordinal, payload } = item else { continue };
        let Ok(record) = Record::read(payload) else {
            // The feeder meets it too, and counts it.
            tracing::warn!(%ordinal, "a record of the spool cannot be read");
            continue;
        };
        match record.kind {
            Kind::Frame => {
                if let Ok(header) = FrameHeader::parse(record.body) {
                    let last = received.entry(header.meta.id.source).or_default();
                    *last = Position::from(header.meta.id).max(*last);
                }
            }
            Kind::Source => {
                if let Ok(announcement) = serde_json::from_slice::<Announcement>(record.body) {
                    announcements.insert(announcement.source, announcement);
                }
            }
            Kind::GivenUp => {
                if let Ok(given_up) = serde_json::from_slice::<GivenUp>(record.body) {
                    let last = received.entry(given_up.source).or_default();
                    *last = Position::new(given_up.incarnation, given_up.sequence).max(*last);
                }
            }
            Kind::OwnLedger => {}
        }
    }
    for (source, position) in received {
        positions.received(source, position);
    }
    Ok(announcements.into_values().collect())
}
