//! The queue in front of the engine: batches of inputs, bounded by the inputs in it.
//!
//! Its bound counts inputs because a batch may be one heartbeat or the signals of a whole frame. Whoever finds it full
//! keeps its batch and waits for a [`Place`]. Filled by the sessions, emptied by the engine's thread.

use std::sync::Arc;

use tapio_schemas::observation::Input;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::recording::Kept;

/// Inputs that may wait for the engine: two of the largest frames, some tens of MiB.
pub(crate) const INPUTS_MAX: usize = 131_072;
/// Batches that may wait for the engine.
pub(crate) const BATCHES_MAX: usize = 16_384;

/// The inputs of one frame, and their room in the queue, which is given back when they are taken in.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) inputs: Vec<Input>,
    /// The frame itself, where it is recorded.
    pub(crate) kept: Option<Kept>,
    _room: OwnedSemaphorePermit,
}

/// The end where batches are put in.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    sender: mpsc::Sender<Batch>,
    room: Arc<Semaphore>,
}

/// Room for one batch.
#[derive(Debug)]
pub(crate) struct Place {
    sender: mpsc::OwnedPermit<Batch>,
    room: OwnedSemaphorePermit,
}

/// A queue and the end where batches are taken out.
pub(crate) fn queue() -> (Queue, mpsc::Receiver<Batch>) {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    (Queue { sender, room: Arc::new(Semaphore::new(INPUTS_MAX)) }, receiver)
}

impl Queue {
    /// How many inputs wait.
    pub(crate) fn depth(&self) -> usize {
        INPUTS_MAX.saturating_sub(self.room.available_permits())
    }

    /// Room for a batch of `inputs`, if there is some now.
    pub(crate) fn try_reserve(&self, inputs: usize) -> Option<Place> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(units(inputs)).ok()?;
        let sender = self.sender.clone().try_reserve_owned().ok()?;
        Some(Place { sender, room })
    }

    /// Waits for room for a batch of `inputs`; `None` when the engine has ended. Cancel-safe, but who is dropped waits
    /// from the end again.
    pub(crate) async fn reserve(self, inputs: usize) -> Option<Place> {
        let room = self.room.acquire_many_owned(units(inputs)).await.ok()?;
        let sender = self.sender.reserve_owned().await.ok()?;
        Some(Place { sender, room })
    }
}

impl Place {
    /// Hands a batch to the engine.
    pub(crate) fn send(self, inputs: Vec<Input>, kept: Option<Kept>) {
        self.sender.send(Batch { inputs, kept, _room: self.room });
    }
}

/// What a batch takes of the room: one that were larger than all of it would wait for ever.
fn units(inputs: usize) -> u32 {
    u32::try_from(inputs.min(INPUTS_MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a batch takes all the room; another waits until the first is taken out.
    /// Guarantees: the queue is bounded by inputs, and room is given back.
    #[tokio::test]
    async fn room_is_counted_in_inputs() {
        let (queue, mut receiver) = queue();
        queue.try_reserve(INPUTS_MAX + 1).unwrap().send(Vec::new(), None);
        assert!(queue.try_reserve(1).is_none());
        drop(receiver.recv().await.unwrap());
        assert!(queue.reserve(1).await.is_some());
    }
}
