//! How the writer reads records of the spool into a block.

use std::time::Duration;

use tapio_schemas::{ids::SourceId, ledger::Stage};
use tapio_spool::{Gap, GapReason, Item, Ordinal};
use tapio_wire::{Position, frame::FrameHeader};

use super::{
    BLOCK_FRAME_BYTES, BLOCK_ROWS, BLOCK_WAIT, Block, Cut, Moment, State, Stored, Writer, WriterError,
};
use crate::{
    pipeline::record::{Kind, Record},
    source::GivenUp,
};

/// What was read.
enum Read {
    /// A record of so many bytes, or nothing.
    Bytes(usize),
    /// Damage that the start did not find.
    Damaged(Gap),
}

impl Writer {
    /// Reads records into the block until it is full, its first record has waited long enough, or damage is met; says how
    /// long to wait for more otherwise.
    pub(super) fn fill(&mut self, at: Moment) -> Result<Option<Duration>, WriterError> {
        let State::Filling { since, bytes } = self.state else { return Ok(None) };
        let mut bytes = bytes;
        while self.reader.position().0 < at.synced {
            match self.read_one()? {
                Read::Bytes(read) => bytes += read,
                Read::Damaged(gap) => {
                    let cut = self.cut_until(gap.from.0);
                    self.state = State::Cutting(Block { cut, damaged: Some(gap) });
                    return Ok(None);
                }
            }
            self.state = State::Filling { since, bytes };
            if self.encoder.event_rows() >= BLOCK_ROWS || bytes >= BLOCK_FRAME_BYTES {
                break;
            }
        }
        let is_full = self.encoder.event_rows() >= BLOCK_ROWS || bytes >= BLOCK_FRAME_BYTES;
        let waited = at.now.saturating_duration_since(since);
        if !is_full && !at.is_draining && waited < BLOCK_WAIT {
            return Ok(Some(BLOCK_WAIT - waited));
        }
        let cut = self.cut_until(self.reader.position().0);
        self.state = State::Cutting(Block { cut, damaged: None });
        Ok(None)
    }

    /// Reads exactly the records of a cut that was written before a crash.
    pub(super) fn refill(&mut self, cut: &Cut, at: Moment) -> Result<(), WriterError> {
        tracing::info!(
            from = cut.from,
            until = cut.until,
            "a block that was cut before is cut again the same"
        );
        self.encoder.begin(cut.from);
        while self.reader.position().0 < cut.until {
            match self.read_one()? {
                // The start would have found it, so it came in between: the next start finds it.
                Read::Damaged(gap) => {
                    return Err(WriterError::Damaged { from: gap.from.0, until: gap.until.0 });
                }
                Read::Bytes(0) if self.reader.position().0 >= at.synced => break,
                Read::Bytes(_) => {}
            }
        }
        Ok(())
    }

    /// Reads the next record, or gap, into the encoder; returns the record's bytes.
    fn read_one(&mut self) -> Result<Read, WriterError> {
        let (ordinal, bytes, dropped) = match self.reader.next_item()? {
            None => return Ok(Read::Bytes(0)),
            Some(Item::Gap(gap)) if matches!(gap.reason, GapReason::Damaged { .. }) => {
                if self.stored.sent_again.first_beyond(gap.from.0..gap.until.0).is_some() {
                    return Ok(Read::Damaged(gap));
                }
                tracing::error!(from = gap.from.0, until = gap.until.0, "records of the spool are damaged");
                self.metrics.drops.add(gap.reason.label(), lost_records(&gap));
                return Ok(Read::Bytes(0));
            }
            Some(Item::Gap(gap)) => {
                let lost = lost_records(&gap);
                if lost > 0 {
                    tracing::error!(
                        from = gap.from.0,
                        until = gap.until.0,
                        reason = gap.reason.label(),
                        "records of the spool are lost"
                    );
                    self.metrics.drops.add(gap.reason.label(), lost);
                    self.losses.lost(Stage::Store, "frames", gap.reason.label(), lost);
                }
                return Ok(Read::Bytes(0));
            }
            Some(Item::Record { ordinal, payload }) => {
                self.records += 1;
                let (encoder, stored) = (&mut self.encoder, &self.stored);
                let pushed = Record::read(payload).map_err(|error| error.to_string()).and_then(|record| {
                    if is_left_out(&record, ordinal, stored) {
                        return Ok(false);
                    }
                    encoder.push(ordinal.0, &record, &stored.fragments).map(|()| true)
                });
                if pushed == Ok(false) {
                    self.losses.folded(Stage::Store, "frames", "sent-again", 1);
                }
                (ordinal, payload.len(), pushed.err())
            }
        };
        if let Some(fault) = dropped {
            // The intake checked these very bytes and the spool's checksum held, so this is our own fault; one record
            // must not keep all others from being stored.
            tracing::error!(%ordinal, fault, "a record of the spool cannot be stored");
            self.metrics.drops.add("undecodable", 1);
            self.losses.lost(Stage::Store, "frames", "undecodable", 1);
        }
        Ok(Read::Bytes(bytes))
    }
}

/// Whether a record is of a frame that is stored already, or that its source sends again.
fn is_left_out(record: &Record<'_>, ordinal: Ordinal, stored: &Stored) -> bool {
    frame_of(record).is_some_and(|(source, position)| {
        stored.has(source, position) || stored.sent_again.contains(ordinal.0)
    })
}

/// The frame whose place a record takes.
fn frame_of(record: &Record<'_>) -> Option<(SourceId, Position)> {
    match record.kind {
        Kind::Frame => {
            FrameHeader::parse(record.body).ok().map(|header| (header.meta.id.source, header.meta.id.into()))
        }
        Kind::GivenUp => serde_json::from_slice::<GivenUp>(record.body)
            .ok()
            .map(|given_up| (given_up.source, Position::new(given_up.incarnation, given_up.sequence))),
        Kind::OwnLedger | Kind::Source => None,
    }
}

/// How many records a gap lost: ordinals that were skipped were never used.
pub(crate) fn lost_records(gap: &Gap) -> u64 {
    match gap.reason {
        GapReason::Skipped => 0,
        _ => gap.until.0.saturating_sub(gap.from.max(Ordinal::FIRST).0),
    }
}
