//! Repeats of one failure are counted here instead of filling the ring.
//!
//! There are two maps and one is active. To drain, the agent makes the other one active, waits until no program can
//! still be running on the old one, and empties it at leisure: no count is lost between a read and a removal.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use tapio_kernel_abi::{FailedSyscall, FoldKey, FoldValue, ProbeStats};

use crate::{
    offsets::*,
    outcome::{Outcome, count_map_full, emit_copy},
    task,
};

/// `BPF_NOEXIST` and `EEXIST`.
const NOEXIST: u64 = 1;
const EEXIST: i32 = 17;

#[map]
static FOLDS_EVEN: HashMap<FoldKey, FoldValue> = HashMap::with_max_entries(4096, 1);
#[map]
static FOLDS_ODD: HashMap<FoldKey, FoldValue> = HashMap::with_max_entries(4096, 1);
/// 0 or 1: which of them is active.
#[map]
static FOLDS_ACTIVE: Array<u32> = Array::with_max_entries(1, 0);
/// Too large for the stack.
#[map]
static FOLD_SCRATCH: PerCpuArray<FoldValue> = PerCpuArray::with_max_entries(1, 0);

/// Sends the failure, or adds it to the count of its key. `fill` writes the record's body, not its count.
#[inline(always)]
pub fn fold(stats: *mut ProbeStats, key: FoldKey, fill: impl FnOnce(*mut FailedSyscall)) -> Outcome {
    if FOLDS_ACTIVE.get(0).copied().unwrap_or(0) & 1 == 0 {
        fold_in(&FOLDS_EVEN, stats, key, fill)
    } else {
        fold_in(&FOLDS_ODD, stats, key, fill)
    }
}

#[inline(always)]
fn fold_in(
    folds: &HashMap<FoldKey, FoldValue>,
    stats: *mut ProbeStats,
    key: FoldKey,
    fill: impl FnOnce(*mut FailedSyscall),
) -> Outcome {
    let Some(scratch) = FOLD_SCRATCH.get_ptr_mut(0) else { return Outcome::Unreadable };
    let now = task::now();
    if let Some(value) = folds.get_ptr_mut(key) {
        if !is_due(value, now) {
            return Outcome::Folded;
        }
        // SAFETY: the scratch value is this processor's own; the map's value stays while programs run.
        return unsafe {
            fill(&raw mut (*scratch).sample);
            let pending = &raw mut (*value).pending;
            let count = atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(pending, 0);
            if count == 0 {
                // Another processor has just sent this hit with its own.
                return Outcome::Folded;
            }
            (*scratch).sample.count = count;
            match emit_copy((&raw const (*scratch).sample).cast(), size_of::<FailedSyscall>() as u64) {
                Outcome::Emitted => Outcome::Emitted,
                _ => {
                    add_atomically(pending, count);
                    Outcome::Folded
                }
            }
        };
    }
    // SAFETY: the scratch value is this processor's own.
    unsafe {
        fill(&raw mut (*scratch).sample);
        (*scratch).sample.count = 1;
        (*scratch).pending = 0;
        (*scratch).emitted_at_nanos = now;
        (*scratch).last_at_nanos = now;
        match folds.insert(key, &*scratch, NOEXIST) {
            Ok(()) => {}
            Err(error) if error == -EEXIST => return add(folds, key, now),
            Err(_) => count_map_full(stats),
        }
        match emit_copy((&raw const (*scratch).sample).cast(), size_of::<FailedSyscall>() as u64) {
            Outcome::Emitted => Outcome::Emitted,
            _ => add(folds, key, now),
        }
    }
}

/// Counts a repeat and says whether this processor is the one to send the count now.
#[inline(always)]
fn is_due(value: *mut FoldValue, now: u64) -> bool {
    // SAFETY: the map's value stays while programs run; all its counters are only touched atomically.
    unsafe {
        (&raw mut (*value).last_at_nanos).write_volatile(now);
        add_atomically(&raw mut (*value).pending, 1);
        let emitted_at = &raw mut (*value).emitted_at_nanos;
        let before = emitted_at.read_volatile();
        now.wrapping_sub(before) >= FOLD_INTERVAL_NANOS.load()
            && now > before
            && atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                emitted_at, before, now,
            )
            .1
    }
}

/// Adds one to a key's count, for whoever sends it next.
#[inline(always)]
fn add(folds: &HashMap<FoldKey, FoldValue>, key: FoldKey, now: u64) -> Outcome {
    let Some(value) = folds.get_ptr_mut(key) else { return Outcome::RingFull };
    // SAFETY: as in `is_due`.
    unsafe {
        (&raw mut (*value).last_at_nanos).write_volatile(now);
        add_atomically(&raw mut (*value).pending, 1);
    }
    Outcome::Folded
}

/// `core` offers no read-modify-write atomics for this target, though the instruction set (version 3) has them.
///
/// # Safety
/// `counter` is a live, aligned u64.
#[inline(always)]
unsafe fn add_atomically(counter: *mut u64, by: u64) {
    // SAFETY: the caller vouches for the counter.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}
