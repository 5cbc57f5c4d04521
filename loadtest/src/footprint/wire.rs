//! What the agent's events weigh on the wire, from the frames of the run itself: as they were shipped, and packed anew
//! in batches of a thousand.
//!
//! Reads the aggregator's spool after its end, in which every frame stands as it arrived. Called by [`super::run`].

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use tapio_schemas::batch::{AlignedVec, BatchBuilder, BatchLimits};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ledger::{Fate, Stage};
use tapio_spool::{Item, Spool, SpoolConfig};
use tapio_wire::frame::{FrameDecoder, FrameEncoder, FrameLimits, FrameMeta, MAGIC};

/// Events of a batch that is packed anew.
const ROWS: u32 = 1_000;

/// Sums over the frames of a run.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Weight {
    /// Frames that held events.
    pub(super) frames: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Their events.
    pub(super) events: u64,
    /// Events with a trace.
    pub(super) traced: u64,
    /// Records that crossed the ring meanwhile, as the frames' own ledgers say.
    pub(super) records: u64,
    /// Bytes of the same events in batches of a thousand.
    pub(super) packed_bytes: u64,
    /// Events in them: what is left over at the end fills no batch.
    pub(super) packed_events: u64,
    /// What was lost before it was a frame, by stage, probe and reason.
    pub(super) lost: BTreeMap<(String, String, String), u64>,
}

/// Weighs the frames in the spool at `directory`.
///
/// # Errors
/// The spool cannot be read, or holds nothing that fills a batch.
pub(super) fn weigh(directory: &Path) -> anyhow::Result<Weight> {
    let (spool, _recovery) = Spool::open(directory, SpoolConfig::default())
        .with_context(|| format!("cannot read the spool {}", directory.display()))?;
    let mut reader = spool.read_from(spool.first());
    let mut decoder = FrameDecoder::new(FrameLimits::default())?;
    let mut packing = Packing::new()?;
    let mut weight = Weight::default();
    while let Some(item) = reader.next_item()? {
        let Item::Record { payload, .. } = item else { continue };
        // Before the frame stands what the aggregator noted about it; other records hold none.
        let Some(at) = payload.windows(MAGIC.len()).position(|window| window == MAGIC) else { continue };
        let frame = payload.get(at..).unwrap_or_default();
        let Ok((header, view)) = decoder.decode(frame, None) else { continue };
        for entry in view.ledger().entries {
            if entry.stage == Stage::Kernel && entry.fate == Fate::Carried {
                weight.records += entry.count;
            }
            if entry.fate == Fate::Lost {
                let line = (entry.stage.as_str().to_owned(), entry.subject, entry.reason);
                *weight.lost.entry(line).or_default() += entry.count;
            }
        }
        weight.frames += 1;
        weight.bytes += frame.len() as u64;
        weight.events += u64::from(view.rows());
        for row in 0..view.rows() {
            let event = view.event(row, header.meta.id);
            weight.traced += u64::from(event.trace.is_some());
            packing.take(&event, header.meta, &mut weight)?;
        }
    }
    ensure!(weight.packed_events > 0, "the run shipped {} events, too few to fill a batch", weight.events);
    Ok(weight)
}

/// Packs events into batches of a thousand.
struct Packing {
    batch: BatchBuilder,
    encoder: FrameEncoder,
    bytes: AlignedVec,
    frame: Vec<u8>,
}

impl Packing {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            batch: BatchBuilder::new(BatchLimits { rows_max: ROWS, ..BatchLimits::default() }),
            encoder: FrameEncoder::new(FrameLimits::default())?,
            bytes: AlignedVec::new(),
            frame: Vec::new(),
        })
    }

    fn take(&mut self, event: &UnifiedEvent, meta: FrameMeta, weight: &mut Weight) -> anyhow::Result<()> {
        self.batch.push_event(event).context("an event does not fit a batch")?;
        if self.batch.rows() < ROWS {
            return Ok(());
        }
        let summary = self.batch.finish(&mut self.bytes)?;
        self.frame.clear();
        self.encoder.encode(FrameMeta { events: summary.rows, ..meta }, &self.bytes, &mut self.frame)?;
        weight.packed_bytes += self.frame.len() as u64;
        weight.packed_events += u64::from(summary.rows);
        Ok(())
    }
}
