//! Where a hit ends. Every program is wrapped in [`hit`], which counts it in, runs it, and counts it out once.

use aya_ebpf::{
    helpers::bpf_ringbuf_output,
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use tapio_kernel_abi::{Plain, ProbeId, ProbeStats, STATS_SLOTS};

#[map]
static STATS: PerCpuArray<ProbeStats> = PerCpuArray::with_max_entries(STATS_SLOTS, 0);

/// The agent sets the real size at load.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// The one end that a hit has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Emitted,
    Folded,
    Filtered,
    RingFull,
    Unreadable,
}

/// Counts a hit in and out around `body`. The kernel never runs a raw tracepoint program twice at once on one
/// processor (it counts the miss instead), so that plain increments of the processor's own slot suffice.
#[inline(always)]
pub fn hit(probe: ProbeId, body: impl FnOnce(*mut ProbeStats) -> Outcome) -> i32 {
    hit_in(probe as u32, body)
}

/// As [`hit`], in the counters of one program of a probe that has several.
#[inline(always)]
pub fn hit_in(slot: u32, body: impl FnOnce(*mut ProbeStats) -> Outcome) -> i32 {
    let Some(stats) = STATS.get_ptr_mut(slot) else { return 0 };
    // SAFETY: the slot is this processor's and this program's own.
    unsafe { (*stats).hits += 1 };
    let outcome = body(stats);
    // SAFETY: as above.
    unsafe {
        match outcome {
            Outcome::Filtered => (*stats).filtered += 1,
            Outcome::Emitted => (*stats).emitted += 1,
            Outcome::Folded => (*stats).folded += 1,
            Outcome::RingFull => (*stats).ring_full += 1,
            Outcome::Unreadable => (*stats).unreadable += 1,
        }
    }
    0
}

/// A full map cost the hit its owner or its folding, not its record.
#[inline(always)]
pub fn count_map_full(stats: *mut ProbeStats) {
    // SAFETY: the slot is this processor's and this program's own.
    unsafe { (*stats).map_full += 1 };
}

/// Reserves a record, lets `fill` write every byte of it in place, and submits it.
#[inline(always)]
pub fn emit<T: Plain>(fill: impl FnOnce(*mut T) -> bool) -> Outcome {
    let Some(mut entry) = RECORDS.reserve::<T>(0) else { return Outcome::RingFull };
    if fill(entry.as_mut_ptr()) {
        entry.submit(0);
        Outcome::Emitted
    } else {
        entry.discard(0);
        Outcome::Unreadable
    }
}

/// Copies a record of `bytes` bytes from a map's value.
///
/// # Safety
/// `record` points to at least `bytes` readable bytes, in a way that the verifier can see.
#[inline(always)]
pub unsafe fn emit_copy(record: *const u8, bytes: u64) -> Outcome {
    let ring = core::ptr::addr_of!(RECORDS).cast_mut().cast();
    // SAFETY: the caller vouches for the bytes; the map is the ring.
    let result = unsafe { bpf_ringbuf_output(ring, record.cast_mut().cast(), bytes, 0) };
    if result == 0 { Outcome::Emitted } else { Outcome::RingFull }
}
