//! Events as they arrive, for whoever subscribes to them.
//!
//! The intake's end is the [`Tap`]: for a frame that was accepted it looks whether anybody subscribes, and if so puts
//! the frame's bytes, which it shares, into a bounded queue. That is all it does: it opens nothing, owns no event, and
//! waits for nobody. A thread of its own, the [`Distributor`], opens the frame again, finds the rows that each
//! subscriber wants in the columns, in place, and makes messages of those alone. Every [`Subscription`] has a bounded
//! queue; what does not fit is counted and told. Fed by [`crate::intake`], read by [`crate::grpc`].

mod distribute;
mod filter;
mod subscription;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tapio_schemas::ids::FrameId;
use tapio_wire::frame::FrameFault;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use self::subscription::Subscriber;
pub(crate) use self::{
    distribute::Distributor,
    filter::EventFilter,
    subscription::{Delivery, Missed, MissedReason, Subscription},
};
use crate::metrics::LiveMetrics;

/// Frames that may wait for the distributor.
const FRAMES_WAITING_MAX: usize = 1_024;
/// Bytes of frames that may wait for the distributor.
const BYTES_WAITING_MAX: usize = 16 << 20;
/// The unit in which bytes are counted, of frames as of messages.
const ROOM_UNIT_BYTES: usize = 1 << 10;

/// A frame on its way to the distributor, and its room, which is given back when it was looked through.
#[derive(Debug)]
struct Arrived {
    frame: FrameId,
    node: String,
    bytes: Bytes,
    events: u32,
    /// Events of frames before it that were not offered.
    left_out_before: u64,
    _room: OwnedSemaphorePermit,
}

/// Who subscribes. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    subscribers: Arc<ArcSwap<Vec<Arc<Subscriber>>>>,
    /// Held while the list is replaced: two at a time would lose one of two changes.
    change: Arc<Mutex<()>>,
    metrics: LiveMetrics,
}

/// The intake's end.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    live: Live,
    queue: mpsc::Sender<Arrived>,
    room: Arc<Semaphore>,
    left_out: Arc<AtomicU64>,
}

/// The list of subscribers, the intake's end, and the thread in between.
///
/// # Errors
/// When there is no memory for a decompressor.
pub(crate) fn live(cluster: &str, metrics: LiveMetrics) -> Result<(Live, Tap, Distributor), FrameFault> {
    let live = Live { subscribers: Arc::default(), change: Arc::default(), metrics };
    let (sender, queue) = mpsc::channel(FRAMES_WAITING_MAX);
    let room = Arc::new(Semaphore::new(BYTES_WAITING_MAX / ROOM_UNIT_BYTES));
    let left_out = Arc::default();
    let tap = Tap { live: live.clone(), queue: sender, room, left_out: Arc::clone(&left_out) };
    let distributor = Distributor::new(live.clone(), queue, left_out, cluster.to_owned())?;
    Ok((live, tap, distributor))
}

impl Live {
    /// Subscribes to the events that `filter` wants, from now on until the subscription is dropped.
    pub(crate) fn subscribe(&self, filter: EventFilter) -> Subscription {
        let (subscriber, subscription) = subscription::subscription(self.clone(), filter);
        self.replace(|subscribers| subscribers.push(subscriber));
        subscription
    }

    fn unsubscribe(&self, gone: &Arc<Subscriber>) {
        self.replace(|subscribers| subscribers.retain(|subscriber| !Arc::ptr_eq(subscriber, gone)));
    }

    fn replace(&self, change: impl FnOnce(&mut Vec<Arc<Subscriber>>)) {
        let _changing = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut subscribers = Vec::clone(&self.subscribers.load());
        change(&mut subscribers);
        self.subscribers.store(Arc::new(subscribers));
    }

    /// Counts `events` for every subscriber that could not be offered them.
    fn missed_by_all(&self, reason: MissedReason, events: u64) {
        if events == 0 {
            return;
        }
        for subscriber in self.subscribers.load().iter() {
            subscriber.miss(reason, events);
        }
    }
}

impl Tap {
    /// Whether anybody may want something of a frame of `node` that is offered now: the one thing that is asked for each
    /// frame, before it is opened.
    pub(crate) fn is_wanted(&self, node: &str) -> bool {
        self.live.subscribers.load().iter().any(|subscriber| subscriber.filter.wants_node(node))
    }

    /// Offers an accepted frame. Never waits: where there is no room its events are counted as missed.
    pub(crate) fn offer(&self, frame: FrameId, node: &str, bytes: Bytes, events: u32) {
        if events == 0 {
            return;
        }
        let units = units(bytes.len(), BYTES_WAITING_MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(units);
        // Told in its place: in front of the next frame that is offered, or when the distributor has caught up.
        let place = room.ok().zip(self.queue.try_reserve().ok());
        let Some((room, place)) = place else {
            self.left_out.fetch_add(events.into(), Ordering::Relaxed);
            return;
        };
        let left_out_before = self.left_out.swap(0, Ordering::Relaxed);
        place.send(Arrived { frame, node: node.to_owned(), bytes, events, left_out_before, _room: room });
    }
}

/// What `bytes` take of a room of `bytes_max`: more than all of it could never be had.
fn units(bytes: usize, bytes_max: usize) -> u32 {
    u32::try_from(bytes.min(bytes_max).div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
