//! What a session hands over: records into the spooler's queue, inputs into the engine's.
//!
//! The spooler comes first: a frame is durable whether or not the engine keeps up. Both queues are bounded. What finds
//! no room is kept here and waited for by the session's one loop, which meanwhile takes no further frame, so that what a session holds is bounded too: one record, and [`AHEAD_INPUTS_MAX`] inputs and those of one frame.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use bytes::Bytes;
use tapio_schemas::{observation::Input, units::UnixMicros};
use tapio_wire::Position;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    engine::queue::{Place, Queue},
    intake::ROOM_UNIT_BYTES,
    pipeline::spooler::Command,
    recording::Kept,
};

/// Inputs that a session holds for a busy engine before it takes no more frames.
pub(super) const AHEAD_INPUTS_MAX: usize = 4_096;

/// Something that is waited for across the turns of a loop, so that its place in the line is kept.
type Waiting<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// A record for the spool.
pub(super) struct Outgoing {
    pub(super) head: Vec<u8>,
    pub(super) body: Bytes,
    pub(super) content: Content,
}

/// What it is, and what follows when it is handed over.
pub(super) enum Content {
    /// What the source says that it can see.
    Announcement,
    /// A frame: what the engine needs of it, its events, and the frames before it that its source gave up.
    Frame { position: Position, gap: u64, arrival: UnixMicros, inputs: Vec<Input>, events: u32 },
    /// A frame that is given up.
    GivenUp { position: Position, gap: u64 },
}

/// Room in the spooler's queue, and among the bytes that are under way.
pub(super) struct ToSpool {
    pub(super) place: mpsc::OwnedPermit<Command>,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// What there was room for.
pub(super) enum Room {
    /// The record that waited: hand it over.
    Spool(Outgoing, ToSpool),
    /// Inputs, which are handed over.
    Engine,
    /// A queue has ended.
    Ended,
}

/// What waits.
pub(super) struct Handover {
    spooler: mpsc::Sender<Command>,
    engine: Queue,
    room: Arc<Semaphore>,
    held: Option<(Outgoing, Waiting<ToSpool>)>,
    ahead: VecDeque<(Vec<Input>, Option<Kept>)>,
    ahead_inputs: usize,
    to_engine: Option<Waiting<Place>>,
}

impl Handover {
    pub(super) fn new(spooler: mpsc::Sender<Command>, engine: Queue, room: Arc<Semaphore>) -> Self {
        Self { spooler, engine, room, held: None, ahead: VecDeque::new(), ahead_inputs: 0, to_engine: None }
    }

    /// Whether more may be taken from the source.
    pub(super) fn has_room(&self) -> bool {
        self.held.is_none() && self.ahead_inputs < AHEAD_INPUTS_MAX
    }

    /// Whether a record waits for the spooler.
    pub(super) const fn holds_a_record(&self) -> bool {
        self.held.is_some()
    }

    /// Gives a record back with its room, or keeps it until there is some: then [`Self::room`] returns it. Must
    /// not be called while one waits already.
    pub(super) fn offer(&mut self, outgoing: Outgoing) -> Option<(Outgoing, ToSpool)> {
        let units = outgoing.units();
        if let Some(room) = self.try_spool_room(units) {
            return Some((outgoing, room));
        }
        let (spooler, all) = (self.spooler.clone(), Arc::clone(&self.room));
        let waiting = async move {
            let room = match units {
                0 => None,
                units => Some(all.acquire_many_owned(units).await.ok()?),
            };
            Some(ToSpool { place: spooler.reserve_owned().await.ok()?, room })
        };
        self.held = Some((outgoing, Box::pin(waiting)));
        None
    }

    fn try_spool_room(&self, units: u32) -> Option<ToSpool> {
        let room = match units {
            0 => None,
            units => Some(Arc::clone(&self.room).try_acquire_many_owned(units).ok()?),
        };
        Some(ToSpool { place: self.spooler.clone().try_reserve_owned().ok()?, room })
    }

    /// Waits for room for what waits, for ever if nothing does. Inputs that found room are with the engine when this
    /// returns. Cancel-safe: places in the line are kept.
    pub(super) async fn room(&mut self) -> Room {
        let Self { engine, held, ahead, ahead_inputs, to_engine, .. } = self;
        let spool = async {
            match held {
                Some((_outgoing, waiting)) => waiting.await,
                None => std::future::pending().await,
            }
        };
        let to_the_engine = async {
            let Some(first) = ahead.front() else { return std::future::pending().await };
            to_engine.get_or_insert_with(|| Box::pin(engine.clone().reserve(first.0.len()))).await
        };
        tokio::select! {
            biased;
            room = spool => match (held.take(), room) {
                (Some((outgoing, _done)), Some(room)) => Room::Spool(outgoing, room),
                _ => Room::Ended,
            },
            place = to_the_engine => {
                *to_engine = None;
                let (Some(place), Some((inputs, kept))) = (place, ahead.pop_front()) else { return Room::Ended };
                *ahead_inputs = ahead_inputs.saturating_sub(inputs.len());
                place.send(inputs, kept);
                Room::Engine
            }
        }
    }

    /// Hands the inputs of a frame to the engine, or keeps them until there is room; and the frame where it is recorded.
    pub(super) fn think(&mut self, inputs: Vec<Input>, kept: Option<Kept>) {
        if inputs.is_empty() {
            return;
        }
        if self.ahead.is_empty()
            && let Some(place) = self.engine.try_reserve(inputs.len())
        {
            place.send(inputs, kept);
            return;
        }
        self.ahead_inputs += inputs.len();
        self.ahead.push_back((inputs, kept));
    }

    /// Hands all inputs that are kept to the engine: their frames are durable, so they will not come again.
    pub(super) async fn finish(&mut self) {
        self.held = None;
        while !self.ahead.is_empty() && !matches!(self.room().await, Room::Ended) {}
    }
}

impl Outgoing {
    fn units(&self) -> u32 {
        match self.content {
            Content::Frame { .. } => {
                u32::try_from(self.body.len().div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX)
            }
            Content::Announcement | Content::GivenUp { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use tapio_schemas::{ids::SourceId, observation::SourceProgress, units::Micros};

    use super::*;
    use crate::engine::queue;

    fn inputs(count: usize) -> Vec<Input> {
        let progress = SourceProgress {
            id: Position::new(1, 1).of_source(SourceId([1; 16])).row(0),
            source: SourceId([1; 16]),
            node: "n1".to_owned(),
            ledger: tapio_schemas::ledger::Ledger::default(),
            clock_error: Micros(0),
            missing_probes: Vec::new(),
        };
        vec![Input::Progress(progress); count]
    }

    /// Scenario: the engine is busy and its queue full; a session has more for it; then the engine takes a batch.
    /// Guarantees: frames go to the spool all the same; beyond a bound no more are taken; everything reaches the
    /// engine once there is room.
    #[tokio::test]
    async fn a_busy_engine_does_not_hold_up_the_spool() {
        let (engine, mut batches) = queue::queue();
        engine.try_reserve(queue::INPUTS_MAX).unwrap().send(Vec::new(), None);
        let (spooler, _commands) = mpsc::channel(4);
        let mut handover = Handover::new(spooler, engine, Arc::new(Semaphore::new(16)));
        let outgoing = || Outgoing {
            head: Vec::new(),
            body: Bytes::from_static(b"frame"),
            content: Content::Frame {
                position: Position::new(1, 1),
                gap: 0,
                arrival: UnixMicros(0),
                inputs: Vec::new(),
                events: 0,
            },
        };
        handover.think(inputs(1), None);
        assert!(handover.has_room() && handover.offer(outgoing()).is_some());
        handover.think(inputs(AHEAD_INPUTS_MAX), None);
        assert!(!handover.has_room() && handover.offer(outgoing()).is_some());

        drop(batches.recv().await);
        handover.finish().await;
        assert!(handover.has_room());
        assert_eq!(batches.recv().await.unwrap().inputs.len(), 1);
        assert_eq!(batches.recv().await.unwrap().inputs.len(), AHEAD_INPUTS_MAX);
    }

    /// Scenario: the spooler's queue is full when a record is offered; then the spooler takes one.
    /// Guarantees: the record is kept, nothing more is taken meanwhile, and it comes back with its room.
    #[tokio::test]
    async fn a_record_waits_for_the_spooler() {
        let (spooler, mut commands) = mpsc::channel(1);
        spooler.try_send(Command::Trim).unwrap();
        let mut handover = Handover::new(spooler, queue::queue().0, Arc::new(Semaphore::new(16)));
        let content = Content::GivenUp { position: Position::new(1, 1), gap: 0 };
        let outgoing = Outgoing { head: Vec::new(), body: Bytes::new(), content };
        assert!(handover.offer(outgoing).is_none() && !handover.has_room() && handover.holds_a_record());
        commands.recv().await.unwrap();
        assert!(matches!(handover.room().await, Room::Spool(..)) && handover.has_room());
    }
}
