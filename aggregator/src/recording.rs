//! Recording what the engine takes, for `tapio replay`: who hands what over, and what is given up first.
//!
//! The sessions keep a frame's shared bytes with what they hand to the engine ([`Tape`]); the engine's thread says in
//! which order it took what, and what followed ([`Recorder`]); a thread of its own writes ([`Writer`]). Recording must
//! never hold up anybody: where there is no room, or the disk fails, it ends there, with a reason that is counted,
//! logged and shown in the health. What was written until then is a whole recording of that time. Only what the spool
//! holds at a start, which nobody waits for yet, waits for the writer, and that not for long. (What is live waits for the
//! engine then: where more arrives meanwhile than may be kept, the recording ends as soon as the engine comes to it.)

pub(crate) mod files;
mod writer;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tapio_correlation::Pods;
use tapio_recording::{Ending, revision_bytes};
use tapio_schemas::{entity::PodIdentity, finding::Finding, units::UnixMicros};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use self::writer::{Parts, Writer};

/// Messages that may wait for the writer.
const MESSAGES_MAX: usize = 8_192;
/// Bytes of frames and revisions on their way from the sessions to the file.
const BYTES_UNDER_WAY_MAX: usize = 64 << 20;
/// The unit in which they are counted.
const ROOM_UNIT_BYTES: usize = 1 << 10;
/// Bytes of frames that the spool holds at a start, on their way to the file.
const AGAIN_BYTES_MAX: usize = 8 << 20;
/// How long all that the spool holds at a start waits for the writer, together.
const AGAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long to wait before trying again then.
const AGAIN_PAUSE: Duration = Duration::from_millis(1);

/// What all ends know of each other.
#[derive(Debug)]
struct Shared {
    room: Arc<Semaphore>,
    /// Apart: what is live and what the engine still sees again do not take each other's.
    room_again: Arc<Semaphore>,
    is_on: AtomicBool,
    /// The engine still sees again what was: it takes nothing that is live.
    sees_again: AtomicBool,
    /// Meanwhile, there was no room for what is live.
    is_crowded: AtomicBool,
    /// Why it ended, said by whoever noticed first.
    ending: OnceLock<Ending>,
}

impl Shared {
    fn end(&self, why: Ending) {
        self.is_on.store(false, Ordering::Release);
        // The first word counts.
        let _known = self.ending.set(why);
    }

    fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        room_in(&self.room, bytes)
    }

    /// Why there was no room for what is live.
    fn crowded(&self) -> Ending {
        if self.is_crowded.load(Ordering::Acquire) { Ending::Crowded } else { Ending::Behind }
    }
}

fn room_in(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let units = u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES)).ok()?;
    Arc::clone(room).try_acquire_many_owned(units).ok()
}

/// About how many bytes names take.
fn names_bytes(pods: &Pods) -> usize {
    let texts = |pod: &PodIdentity| {
        let all = [&pod.pod_uid, &pod.namespace, &pod.pod, &pod.workload, &pod.service, &pod.node];
        all.iter().map(|text| text.len()).sum::<usize>()
    };
    pods.iter().map(|pod| size_of::<PodIdentity>() + texts(pod)).sum()
}

/// A frame that is kept for the recording, with its room.
#[derive(Debug)]
pub(crate) struct Kept {
    node: String,
    missing_probes: Arc<[String]>,
    arrival: UnixMicros,
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// What the writer is told.
#[derive(Debug)]
enum Message {
    Earlier { revision: Vec<u8>, _room: OwnedSemaphorePermit },
    Frame(Kept),
    Names { pods: Arc<Pods>, _room: OwnedSemaphorePermit },
    CatchUp(UnixMicros),
    Tick { now: UnixMicros, revisions: Vec<Vec<u8>>, _room: Option<OwnedSemaphorePermit> },
}

/// The sessions' end.
#[derive(Clone, Debug)]
pub(crate) struct Tape {
    shared: Option<Arc<Shared>>,
}

/// The engine's end. Dropping it without [`Recorder::finish`] says that the engine failed.
#[derive(Debug)]
pub(crate) struct Recorder {
    writer: Option<SyncSender<Message>>,
    shared: Option<Arc<Shared>>,
    /// The names that the writer was told last.
    pods: Arc<Pods>,
    /// What is left of the time that the start may wait for the writer.
    again_wait: Duration,
}

/// The writer's end.
#[derive(Debug)]
pub(crate) struct Source {
    messages: Receiver<Message>,
    shared: Arc<Shared>,
}

/// The ends of a recording.
pub(crate) fn recording() -> (Tape, Recorder, Source) {
    let (writer, messages) = sync_channel(MESSAGES_MAX);
    let shared = Arc::new(Shared {
        room: Arc::new(Semaphore::new(BYTES_UNDER_WAY_MAX / ROOM_UNIT_BYTES)),
        room_again: Arc::new(Semaphore::new(AGAIN_BYTES_MAX / ROOM_UNIT_BYTES)),
        is_on: AtomicBool::new(true),
        sees_again: AtomicBool::new(true),
        is_crowded: AtomicBool::new(false),
        ending: OnceLock::new(),
    });
    let recorder =
        Recorder { writer: Some(writer), shared: Some(Arc::clone(&shared)), ..Recorder::nothing() };
    (Tape { shared: Some(Arc::clone(&shared)) }, recorder, Source { messages, shared })
}

/// Ends of no recording.
pub(crate) fn nothing() -> (Tape, Recorder) {
    (Tape { shared: None }, Recorder::nothing())
}

impl Tape {
    /// Keeps a frame for the recording. `None` where nothing is recorded, and where there is no room: the engine then
    /// ends the recording in front of this frame.
    pub(crate) fn keep(
        &self,
        node: &str,
        missing_probes: &Arc<[String]>,
        arrival: UnixMicros,
        bytes: &Bytes,
    ) -> Option<Kept> {
        let shared = self.shared.as_ref().filter(|shared| shared.is_on.load(Ordering::Acquire))?;
        let Some(room) = shared.room(bytes.len()) else {
            shared.is_crowded.fetch_or(shared.sees_again.load(Ordering::Acquire), Ordering::AcqRel);
            return None;
        };
        Some(Kept {
            _room: room,
            node: node.to_owned(),
            missing_probes: Arc::clone(missing_probes),
            arrival,
            bytes: bytes.clone(),
        })
    }
}

impl Recorder {
    fn nothing() -> Self {
        Self { writer: None, shared: None, pods: Arc::default(), again_wait: AGAIN_WAIT_MAX }
    }

    /// A revision that was announced before this process started. May wait.
    pub(crate) fn earlier(&mut self, finding: &Finding) {
        if self.writer.is_none() {
            return;
        }
        let revision = revision_bytes(finding);
        if let Some(room) = self.room_again(revision.len()) {
            self.send_again(Message::Earlier { revision, _room: room });
        }
    }

    /// A frame that the spool still held at the start. May wait.
    pub(crate) fn frame_again(
        &mut self,
        node: &str,
        missing_probes: &Arc<[String]>,
        arrival: UnixMicros,
        bytes: &[u8],
    ) {
        let Some(room) = self.room_again(bytes.len()) else { return };
        let kept = Kept {
            node: node.to_owned(),
            missing_probes: Arc::clone(missing_probes),
            arrival,
            bytes: Bytes::copy_from_slice(bytes),
            _room: room,
        };
        self.send_again(Message::Frame(kept));
    }

    /// Waits for room for what is seen again; where there is none, the recording ends.
    fn room_again(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let shared = self.shared.as_ref().filter(|_| self.writer.is_some())?;
        // What is larger than all the room there is has all of it.
        let wanted = bytes.min(AGAIN_BYTES_MAX);
        let began = Instant::now();
        let room = loop {
            match room_in(&shared.room_again, wanted) {
                None if began.elapsed() < self.again_wait && shared.is_on.load(Ordering::Acquire) => {
                    thread::sleep(AGAIN_PAUSE);
                }
                room => break room,
            }
        };
        self.again_wait = self.again_wait.saturating_sub(began.elapsed());
        if room.is_none() {
            self.end(Ending::Behind);
        }
        room
    }

    /// Everything was seen again: from now on the engine takes what is live.
    pub(crate) fn goes_live(&self) {
        if let Some(shared) = &self.shared {
            shared.sees_again.store(false, Ordering::Release);
        }
    }

    /// The time, told while the spool is seen again. May wait.
    pub(crate) fn catch_up(&mut self, now: UnixMicros) {
        self.send_again(Message::CatchUp(now));
    }

    /// A frame, as its session kept it.
    pub(crate) fn frame(&mut self, kept: Option<Kept>) {
        match kept {
            Some(kept) => self.send(Message::Frame(kept), Duration::ZERO),
            None => self.end_crowded(),
        }
    }

    /// The names in force from now on.
    pub(crate) fn names(&mut self, pods: &Arc<Pods>) {
        let Some(shared) = self.shared.as_ref().filter(|_| self.writer.is_some()) else { return };
        if Arc::ptr_eq(&self.pods, pods) {
            return;
        }
        // What is larger than all the room there is has all of it.
        let Some(room) = shared.room(names_bytes(pods).min(BYTES_UNDER_WAY_MAX)) else {
            return self.end_crowded();
        };
        self.pods = Arc::clone(pods);
        self.send(Message::Names { pods: Arc::clone(pods), _room: room }, Duration::ZERO);
    }

    /// The time, and the bytes of the revisions that followed from it.
    pub(crate) fn tick(&mut self, now: UnixMicros, revisions: &[Vec<u8>]) {
        let Some(shared) = self.shared.as_ref().filter(|_| self.writer.is_some()) else { return };
        let bytes = revisions.iter().map(Vec::len).sum();
        let room = match bytes {
            0 => None,
            bytes => match shared.room(bytes) {
                None => return self.end_crowded(),
                room => room,
            },
        };
        self.send(Message::Tick { now, revisions: revisions.to_vec(), _room: room }, Duration::ZERO);
    }

    /// The engine has ended in order.
    pub(crate) fn finish(mut self) {
        self.end(Ending::Drained);
    }

    fn end_crowded(&mut self) {
        let why = self.shared.as_ref().map_or(Ending::Behind, |shared| shared.crowded());
        self.end(why);
    }

    fn end(&mut self, why: Ending) {
        if let (Some(shared), Some(_writer)) = (&self.shared, self.writer.take()) {
            shared.end(why);
        }
    }

    fn send_again(&mut self, message: Message) {
        let began = Instant::now();
        self.send(message, self.again_wait);
        self.again_wait = self.again_wait.saturating_sub(began.elapsed());
    }

    fn send(&mut self, mut message: Message, wait_max: Duration) {
        let Some(writer) = &self.writer else { return };
        let deadline = Instant::now() + wait_max;
        loop {
            match writer.try_send(message) {
                Ok(()) => return,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    message = back;
                    thread::sleep(AGAIN_PAUSE);
                }
                Err(TrySendError::Full(_)) => return self.end(Ending::Behind),
                // The writer ended by itself and has said why.
                Err(TrySendError::Disconnected(_)) => {
                    self.writer = None;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
