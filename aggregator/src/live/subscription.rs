//! One subscriber: its bounded queue, and the count of what did not fit.
//!
//! The distributor never waits for it. Its queue is bounded in messages and in bytes; what does not fit is counted by
//! reason and told in front of what comes after it, or at once when the queue is empty.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prost::Message as _;
use tapio_proto::v1;
use tokio::sync::{
    Notify, OwnedSemaphorePermit, Semaphore,
    mpsc::{
        self,
        error::{TryRecvError, TrySendError},
    },
};

use super::{EventFilter, Live, units};

/// Messages that may wait for a subscriber.
const MESSAGES_WAITING_MAX: usize = 1_024;
/// Bytes of messages that may wait for a subscriber, as they are in memory.
pub(super) const BYTES_WAITING_MAX: usize = 8 << 20;
/// Events of one message.
pub(super) const MESSAGE_EVENTS_MAX: usize = 256;
/// A message that has so many bytes takes no further event. With the largest event it is below the 4 MiB that clients
/// accept where they are not told otherwise.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// A message is begun where there is room for one of small events.
const ROOM_BEGIN: usize = MESSAGE_EVENTS_MAX * size_of::<v1::Event>() / super::ROOM_UNIT_BYTES;

/// Why events were not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MissedReason {
    /// The subscriber's queue was full.
    SlowSubscriber,
    /// The distributor's queue was full.
    ServerBusy,
}

/// What was not sent, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missed {
    pub(crate) slow_subscriber: u64,
    pub(crate) server_busy: u64,
}

impl Missed {
    pub(crate) const fn is_none(&self) -> bool {
        self.slow_subscriber == 0 && self.server_busy == 0
    }

    fn add(&mut self, reason: MissedReason, events: u64) {
        let count = match reason {
            MissedReason::SlowSubscriber => &mut self.slow_subscriber,
            MissedReason::ServerBusy => &mut self.server_busy,
        };
        *count = count.saturating_add(events);
    }
}

impl MissedReason {
    /// The reason as a metric's label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::SlowSubscriber => "slow-subscriber",
            Self::ServerBusy => "server-busy",
        }
    }
}

/// What a subscriber gets: what it missed before, and events; one of the two may be nothing.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    pub(crate) missed: Missed,
    pub(crate) events: Vec<v1::Event>,
    /// Given back when the delivery is taken.
    _room: Option<OwnedSemaphorePermit>,
}

/// The distributor's end.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) filter: EventFilter,
    queue: mpsc::Sender<Delivery>,
    room: Arc<Semaphore>,
    /// Held while something is put into the queue or counted, so that both are told in their order.
    missed: Mutex<Missed>,
    /// Woken when something was missed.
    wake: Notify,
    live: Live,
}

/// The subscriber's end. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    queue: mpsc::Receiver<Delivery>,
    subscriber: Arc<Subscriber>,
}

pub(super) fn subscription(live: Live, filter: EventFilter) -> (Arc<Subscriber>, Subscription) {
    let (sender, queue) = mpsc::channel(MESSAGES_WAITING_MAX);
    let subscriber = Arc::new(Subscriber {
        filter,
        queue: sender,
        room: Arc::new(Semaphore::new(BYTES_WAITING_MAX.div_ceil(super::ROOM_UNIT_BYTES))),
        missed: Mutex::default(),
        wake: Notify::new(),
        live,
    });
    let subscription = Subscription { queue, subscriber: Arc::clone(&subscriber) };
    (subscriber, subscription)
}

impl Subscriber {
    /// Puts the events of `rows` into the queue as far as there is room, and counts the others.
    pub(super) fn deliver(&self, rows: &[u32], event: impl Fn(u32) -> v1::Event) {
        // A message's limit is of the wire, the queue's is of memory.
        let (mut events, mut bytes) = (Vec::new(), 0);
        for (taken, row) in (1_usize..).zip(rows) {
            // Only this thread takes room, so that what there is when a message is begun is there when it is sent.
            if events.is_empty() && (self.room.available_permits() < ROOM_BEGIN || self.queue.capacity() == 0)
            {
                // Not even made: a subscriber that does not keep up costs no more than the count.
                let left = rows.len() - taken + 1;
                return self.miss(MissedReason::SlowSubscriber, left as u64);
            }
            let made = event(*row);
            bytes += made.encoded_len();
            events.push(made);
            if events.len() >= MESSAGE_EVENTS_MAX || bytes >= MESSAGE_BYTES_MAX {
                self.send(mem::take(&mut events), mem::take(&mut bytes));
            }
        }
        if !events.is_empty() {
            self.send(events, bytes);
        }
    }

    fn send(&self, events: Vec<v1::Event>, bytes: usize) {
        let count = events.len() as u64;
        let held = bytes + events.capacity() * size_of::<v1::Event>();
        let room = Arc::clone(&self.room).try_acquire_many_owned(units(held, BYTES_WAITING_MAX));
        let mut missed = self.missed();
        let fits = room.is_ok_and(|room| {
            let delivery = Delivery { missed: *missed, events, _room: Some(room) };
            // One that is gone missed nothing.
            !matches!(self.queue.try_send(delivery), Err(TrySendError::Full(_)))
        });
        if fits {
            *missed = Missed::default();
        } else {
            drop(missed);
            self.miss(MissedReason::SlowSubscriber, count);
        }
    }

    /// Counts events that are not sent.
    pub(super) fn miss(&self, reason: MissedReason, events: u64) {
        self.missed().add(reason, events);
        self.live.metrics.missed.add(reason.label(), events);
        self.wake.notify_one();
    }

    fn missed(&self) -> MutexGuard<'_, Missed> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// What comes next. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Delivery {
        loop {
            if let Some(delivery) = self.try_next() {
                return delivery;
            }
            // Both branches are cancel-safe: a wake-up that is lost here is found by looking again.
            tokio::select! {
                delivery = self.queue.recv() => match delivery {
                    Some(delivery) => return delivery,
                    // The sender is held by the subscriber, which we hold.
                    None => std::future::pending().await,
                },
                () = self.subscriber.wake.notified() => {}
            }
        }
    }

    /// What is there now, if anything: first what waits, then what was missed behind it.
    pub(crate) fn try_next(&mut self) -> Option<Delivery> {
        let mut missed = self.subscriber.missed();
        match self.queue.try_recv() {
            Ok(delivery) => Some(delivery),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) if missed.is_none() => None,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                Some(Delivery { missed: mem::take(&mut *missed), ..Delivery::default() })
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.subscriber.live.unsubscribe(&self.subscriber);
    }
}
