//! Opens a frame and checks what neither its archive nor its semantic pass can know: that its times can be stored.
//!
//! Called by the sessions, for every frame, before it goes anywhere.

use tapio_schemas::{
    batch::BatchView,
    field::column,
    ids::SourceId,
    units::{Micros, UnixMicros},
};
use tapio_wire::frame::{FrameDecoder, FrameFault, FrameHeader, FrameLimits};
use thiserror::Error;

use crate::source::EVENT_AGE_MAX;

/// An event that is this far ahead is of a clock that is wrong.
const AHEAD_MAX: Micros = Micros::from_secs(86_400);

/// Why a frame is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    /// It is no sound frame.
    #[error(transparent)]
    Frame(#[from] FrameFault),
    /// Its times would make partitions of their own, one a day: the store would choke on a broken clock.
    #[error("the frame has events of {at}, its arrival is {arrival} (microseconds since 1970)")]
    Time {
        /// The time in the frame.
        at: u64,
        /// When it came.
        arrival: u64,
    },
}

impl Refusal {
    /// The refusal's name, for counters and answers.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Frame(fault) => fault.name(),
            Self::Time { .. } => "time-out-of-range",
        }
    }

    /// What whoever runs the node can do about it.
    pub(crate) const fn advice(&self) -> &'static str {
        match self {
            Self::Frame(fault) => fault.advice(),
            Self::Time { .. } => "set the node's clock",
        }
    }
}

/// Opens frames, with buffers that are kept.
pub(crate) struct Checker {
    decoder: FrameDecoder,
    source: SourceId,
    times: Vec<u64>,
}

impl Checker {
    /// A checker of the frames of `source`, as its certificate names it.
    pub(crate) fn new(source: SourceId) -> Result<Self, FrameFault> {
        Ok(Self { decoder: FrameDecoder::new(FrameLimits::default())?, source, times: Vec::new() })
    }

    /// Opens a frame that arrived at `arrival`.
    pub(crate) fn open(
        &mut self,
        frame: &[u8],
        arrival: UnixMicros,
    ) -> Result<(FrameHeader, BatchView<'_>), Refusal> {
        let (header, view) = self.decoder.decode(frame, Some(self.source))?;
        let possible = arrival.minus(EVENT_AGE_MAX).0..=arrival.plus(AHEAD_MAX).0;
        if let Some(column) = view.column(column::core::time_micros) {
            column.copy_words(&mut self.times);
            if let Some(at) = self.times.iter().find(|at| !possible.contains(at)) {
                return Err(Refusal::Time { at: *at, arrival: arrival.0 });
            }
        } else if view.rows() > 0 {
            return Err(Refusal::Time { at: 0, arrival: arrival.0 });
        }
        // The ledger's window makes partitions too.
        let window = [view.since().0, view.until().0];
        let outside = window.iter().find(|at| !possible.contains(at));
        // A batch that counted nothing may leave it out: it then has no row that a time would be needed for.
        match outside.filter(|_| window != [0, 0] || !view.ledger().entries.is_empty()) {
            Some(at) => Err(Refusal::Time { at: *at, arrival: arrival.0 }),
            None => Ok((header, view)),
        }
    }
}
