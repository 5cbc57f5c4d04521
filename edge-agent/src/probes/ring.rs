//! The reading end of the ring buffer, for a thread of its own. Views records in place; allocates nothing.
//!
//! Reading and giving back are two steps: a record stays in the ring, where it outlives this process if the ring is
//! pinned, until its place is given back ([`RingReader::release`]). Whoever reads a pinned ring does so once what the
//! records became is in the spool.
#![expect(
    unsafe_code,
    reason = "the ring is memory that the kernel shares, which no safe wrapper lets be held back"
)]

use std::{
    os::fd::{AsFd, AsRawFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence},
    time::Duration,
};

use aya::maps::{MapData, MapError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tapio_kernel_abi::{BadRecord, PROBE_COUNT, ProbeId, RESET_SENT, RecordRef};

use super::progress::Freed;

/// `BPF_RINGBUF_BUSY_BIT`, `BPF_RINGBUF_DISCARD_BIT` and `BPF_RINGBUF_HDR_SZ` of `include/uapi/linux/bpf.h`.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER_BYTES: usize = 8;

/// What can go wrong while waiting for records.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The ring buffer cannot be asked about.
    #[error("the ring buffer cannot be used")]
    Map(#[from] MapError),
    /// The ring buffer cannot be mapped.
    #[error("the ring buffer cannot be mapped")]
    Mapping(#[source] std::io::Error),
    /// Waiting failed.
    #[error("waiting for records failed")]
    Poll(#[source] std::io::Error),
}

/// Records that were no records, by reason. Anything but zero means that object and agent do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BadCounts {
    /// Shorter than a header.
    pub short: u64,
    /// Not at a multiple of eight bytes.
    pub misaligned: u64,
    /// Of a length that is not its kind's.
    pub length: u64,
    /// Of an unknown kind.
    pub kind: u64,
}

impl BadCounts {
    const fn count(&mut self, bad: BadRecord) {
        match bad {
            BadRecord::Short => self.short += 1,
            BadRecord::Misaligned => self.misaligned += 1,
            BadRecord::Length => self.length += 1,
            BadRecord::Kind => self.kind += 1,
        }
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.short + self.misaligned + self.length + self.kind
    }
}

/// A place in the ring's records, and how many records of each probe are before it, since the ring was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RingPlace {
    /// Bytes since the ring was made.
    pub position: u64,
    /// Records by [`ProbeId`]'s number.
    pub taken: [u64; PROBE_COUNT as usize],
}

/// Memory that the ring's map is seen through.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is the mapping's alone, and nothing of it is bound to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Of the map from `page` on.
    fn new(map: &MapData, page: usize, bytes: usize, protection: i32) -> Result<Self, RingError> {
        let offset = i64::try_from(page * rustix::param::page_size()).unwrap_or(i64::MAX);
        let descriptor = map.fd().as_fd().as_raw_fd();
        // SAFETY: the kernel chooses a place where nothing else is mapped.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, descriptor, offset) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start: start.cast(), bytes }),
            _ => Err(RingError::Mapping(std::io::Error::last_os_error())),
        }
    }

    /// A position that kernel and agent share: the first word of the mapping.
    const fn position(&self) -> &AtomicUsize {
        // SAFETY: the mapping is a page at least, aligned to one, and lives as long as the reference.
        unsafe { self.start.cast::<AtomicUsize>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody refers to it any more.
        let _unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Reads the records in the order in which the kernel reserved them.
pub struct RingReader {
    map: MapData,
    /// How far records were given back; the kernel reads it.
    consumer: Mapping,
    /// How far records were reserved, and behind that page all records, twice in a row.
    producer: Mapping,
    page_bytes: usize,
    ring_bytes: usize,
    place: RingPlace,
    released: usize,
    bad: BadCounts,
    /// Where is written down what is given back early, if the ring is pinned.
    freed: Option<Freed>,
}

impl RingReader {
    /// Reads on where records were last given back.
    pub(super) fn new(map: MapData) -> Result<Self, RingError> {
        let page_bytes = rustix::param::page_size();
        let ring_bytes = usize::try_from(map.info()?.max_entries()).unwrap_or(0);
        let consumer = Mapping::new(&map, 0, page_bytes, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Mapping::new(&map, 1, page_bytes + 2 * ring_bytes, libc::PROT_READ)?;
        let mut reader = Self {
            map,
            consumer,
            producer,
            page_bytes,
            ring_bytes,
            place: RingPlace::default(),
            released: 0,
            bad: BadCounts::default(),
            freed: None,
        };
        reader.released = reader.consumer.position().load(Ordering::Acquire);
        reader.place.position = wide(reader.released);
        Ok(reader)
    }

    /// Writes down what is given back early.
    pub(super) fn write_down(&mut self, freed: Option<Freed>) {
        self.freed = freed;
    }

    /// How far records were given back before this reader was made.
    pub(super) fn first(&self) -> u64 {
        wide(self.released)
    }

    /// Reads on from `place`; what is before it is given back. Nothing happens if that is no place of the ring.
    pub(super) fn resume(&mut self, place: RingPlace) -> bool {
        let position = usize::try_from(place.position).unwrap_or(usize::MAX);
        let reserved = self.producer.position().load(Ordering::Acquire);
        if position < self.released || position > reserved || reserved - self.released > self.ring_bytes {
            return false;
        }
        self.place = place;
        self.release(place.position);
        true
    }

    /// Where the next record is read.
    #[must_use]
    pub const fn place(&self) -> RingPlace {
        self.place
    }

    /// Bytes that were read and not given back.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.position().wrapping_sub(self.released)
    }

    /// Bytes that the ring has room for.
    #[must_use]
    pub const fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// Waits until there may be records, at most `timeout`. `false` when it ran out or a signal came. Only while nothing
    /// is held: the kernel tells nobody of a record before which others lie that were not given back.
    ///
    /// # Errors
    /// The kernel refuses to wait; there is no use in trying again.
    pub fn poll(&self, timeout: Duration) -> Result<bool, RingError> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut descriptors = [PollFd::from_borrowed_fd(self.map.fd().as_fd(), PollFlags::IN)];
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(RingError::Poll(errno.into())),
        }
    }

    /// Visits the records that are there, at most `limit` of them, and frees their place in the ring. Returns how
    /// many it took, bad ones included; fewer than `limit` means that the ring was empty.
    pub fn for_each(&mut self, limit: usize, mut visit: impl FnMut(RecordRef<'_>)) -> usize {
        let taken = self.read(limit, |record| {
            visit(record);
            true
        });
        self.release(self.place.position);
        taken
    }

    /// Visits the records that are there until `visit` says no, at most `limit` of them, and leaves them in the ring.
    /// Returns how many it took, bad ones included.
    pub fn read(&mut self, limit: usize, mut visit: impl FnMut(RecordRef<'_>) -> bool) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some((bytes, length)) = self.next() else { break };
            self.place.position = self.place.position.wrapping_add(wide(length));
            let Some(bytes) = bytes else { continue };
            taken += 1;
            match RecordRef::parse(bytes) {
                Ok(record) => {
                    if let Some(taken) = self.place.taken.get_mut(probe_of(&record) as usize) {
                        *taken = taken.wrapping_add(1);
                    }
                    if !visit(record) {
                        break;
                    }
                }
                Err(bad) => self.bad.count(bad),
            }
        }
        taken
    }

    /// Gives the place of all records before `position` back to the kernel. A position that was given back, or was not
    /// read yet, changes nothing.
    pub fn release(&mut self, position: u64) {
        let position = usize::try_from(position).unwrap_or(usize::MAX);
        if position > self.released && position <= self.position() {
            self.released = position;
            // Behind the last look at the records: the kernel may write there from now on.
            self.consumer.position().store(position, Ordering::Release);
            // Either the next look sees a record, or its producer sees the position and tells who waits.
            fence(Ordering::SeqCst);
        }
    }

    /// As [`Self::release`], of records that are nowhere else yet: should this process be killed, the next one counts them
    /// as lost.
    ///
    /// # Errors
    /// It cannot be written down which; then they stay.
    pub fn release_early(&mut self, place: RingPlace) -> Result<(), MapError> {
        if let Some(freed) = &mut self.freed {
            freed.set(place)?;
        }
        self.release(place.position);
        Ok(())
    }

    /// Records that were none, since the last call.
    #[must_use]
    pub const fn take_bad(&mut self) -> BadCounts {
        let none = BadCounts { short: 0, misaligned: 0, length: 0, kind: 0 };
        std::mem::replace(&mut self.bad, none)
    }

    fn position(&self) -> usize {
        usize::try_from(self.place.position).unwrap_or(usize::MAX)
    }

    /// The record at the present place, `None` if it was discarded, and how far the next one is; nothing while it is not
    /// there or still being written.
    fn next<'a>(&self) -> Option<(Option<&'a [u8]>, usize)> {
        let position = self.position();
        let reserved = self.producer.position().load(Ordering::Acquire);
        if position >= reserved {
            return None;
        }
        let offset = self.page_bytes + (position & (self.ring_bytes - 1));
        // SAFETY: the offset is inside the first of the two pictures of the records, at a multiple of eight bytes.
        let header = unsafe { self.producer.start.add(offset).cast::<AtomicU32>().as_ref() };
        let word = header.load(Ordering::Acquire);
        if word & BUSY != 0 {
            return None;
        }
        let bytes = usize::try_from(word & !(BUSY | DISCARDED)).unwrap_or(usize::MAX);
        let length = bytes.saturating_add(HEADER_BYTES).next_multiple_of(8);
        if length > reserved - position || length > self.ring_bytes {
            // Not what the kernel writes: nothing behind it can be found.
            return Some((Some(&[]), reserved - position));
        }
        if word & DISCARDED != 0 {
            return Some((None, length));
        }
        // SAFETY: the record ends within the two pictures; the kernel does not write to it until its place is given back,
        // which takes `&mut self` behind the visit.
        let record = unsafe {
            let start = self.producer.start.add(offset + HEADER_BYTES);
            std::slice::from_raw_parts(start.as_ptr(), bytes)
        };
        Some((Some(record), length))
    }
}

/// The probe that counted a record as sent.
const fn probe_of(record: &RecordRef<'_>) -> ProbeId {
    match record {
        RecordRef::Fork(_) => ProbeId::Fork,
        RecordRef::Exec(_) => ProbeId::Exec,
        RecordRef::Exit(_) => ProbeId::Exit,
        RecordRef::OomVictim(_) => ProbeId::OomVictim,
        RecordRef::TcpState(_) => ProbeId::TcpState,
        RecordRef::TcpReset(reset) if reset.direction == RESET_SENT => ProbeId::TcpResetSent,
        RecordRef::TcpReset(_) => ProbeId::TcpResetReceived,
        RecordRef::TcpRetransmit(_) => ProbeId::TcpRetransmit,
        RecordRef::FailedSyscall(_) => ProbeId::FailedSyscall,
        RecordRef::FatalSignal(_) => ProbeId::FatalSignal,
        RecordRef::Payload(..) => ProbeId::Payload,
    }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
