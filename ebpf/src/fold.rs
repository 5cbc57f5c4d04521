//! Repeats of one failure are counted here instead of filling the ring.
//!
//! Failures of one process, call and errno are one key, whatever their paths and addresses: a program that searches
//! a thousand paths must not cost a thousand records. Whether they were all alike is remembered, so that the path of
//! one is never told of the others; and the last of them, which says most of why a process ended.
//!
//! Files that are gone are another matter: the first of them is where this start parts from those that went well. They
//! have keys of their own, and the first few of a key a record each, which is sent at once, or is lost and counted so.
//!
//! There are two maps and one is active. To drain, the agent makes the other one active, waits until no program can
//! still be running on the old one, and empties it at leisure: no count is lost between a read and a removal.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg},
    mem::offset_of,
};

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use tapio_kernel_abi::{
    FLAG_MIXED, FLAG_VANISHED, FailedSyscall, FoldKey, FoldValue, KEY_VANISHED, KIND_FAILED_SYSCALL,
    ProbeStats, VANISHED_MAX,
};

use crate::{
    offsets::*,
    opened::mixed,
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

/// Words of a record from its flags on: what [`detail_of`] hashes.
const DETAIL_AT: usize = offset_of!(FailedSyscall, flags) / 8;
const DETAIL_WORDS: usize = size_of::<FailedSyscall>() / 8 - DETAIL_AT;

/// Sends the failure, or adds it to the count of its key. `describe` writes the record, but for header and count.
#[inline(always)]
pub fn fold(stats: *mut ProbeStats, key: FoldKey, describe: impl FnOnce(*mut FailedSyscall)) -> Outcome {
    let Some(scratch) = FOLD_SCRATCH.get_ptr_mut(0) else { return Outcome::Unreadable };
    let mut key = key;
    // SAFETY: the scratch value is this processor's own.
    let detail = unsafe {
        describe(&raw mut (*scratch).sample);
        if (*scratch).sample.flags & FLAG_VANISHED != 0 {
            key.number |= KEY_VANISHED;
        }
        detail_of(&raw const (*scratch).sample)
    };
    if FOLDS_ACTIVE.get(0).copied().unwrap_or(0) & 1 == 0 {
        fold_in(&FOLDS_EVEN, stats, key, scratch, detail)
    } else {
        fold_in(&FOLDS_ODD, stats, key, scratch, detail)
    }
}

/// The processor's own record to describe a call in.
#[inline(always)]
pub fn scratch() -> Option<*mut FailedSyscall> {
    // SAFETY: the scratch value is this processor's own.
    FOLD_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &raw mut (*scratch).sample })
}

/// Hash of the path and address, 0 where there is neither. Not against somebody who seeks collisions: all that those
/// would win is that a path of their own process is told of another failure of it.
///
/// # Safety
/// The record can be read, and is described.
#[inline(always)]
unsafe fn detail_of(record: *const FailedSyscall) -> u64 {
    // SAFETY: the caller vouches for the record, whose size is a multiple of eight bytes, as is its alignment.
    unsafe {
        if (*record).flags == 0 {
            return 0;
        }
        let words = record.cast::<u64>();
        let mut hash = 0u64;
        for index in 0..DETAIL_WORDS {
            hash = mixed(hash, *words.add(DETAIL_AT + index));
        }
        hash
    }
}

#[inline(always)]
fn fold_in(
    folds: &HashMap<FoldKey, FoldValue>,
    stats: *mut ProbeStats,
    key: FoldKey,
    scratch: *mut FoldValue,
    detail: u64,
) -> Outcome {
    let now = task::now();
    let is_vanished = key.number & KEY_VANISHED != 0;
    if let Some(value) = folds.get_ptr_mut(key) {
        // SAFETY: the map's value stays while programs run.
        if is_vanished && unsafe { is_untold(value, detail) } {
            // SAFETY: the scratch value is this processor's own.
            return unsafe {
                write_header(scratch);
                send_alone(scratch)
            };
        }
        if !is_due(value, scratch, now, detail) {
            return Outcome::Folded;
        }
        // SAFETY: the scratch value is this processor's own; the map's value stays while programs run.
        return unsafe {
            write_header(scratch);
            let pending = &raw mut (*value).pending;
            let count = atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(pending, 0);
            if count == 0 {
                // Another processor has just sent this hit with its own.
                return Outcome::Folded;
            }
            (*scratch).sample.count = count;
            // Read behind the exchange: whoever is in the count has said before whether it differs.
            if count > 1 && (&raw const (*value).mixed).read_volatile() != 0 {
                (*scratch).sample.flags |= FLAG_MIXED;
            }
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
        write_header(scratch);
        (*scratch).pending = 0;
        (*scratch).detail = detail;
        (*scratch).mixed = 0;
        (*scratch).writing = 0;
        (*scratch).told = [0; VANISHED_MAX];
        (*scratch).told[0] = detail;
        (*scratch).emitted_at_nanos = now;
        (*scratch).last_at_nanos = now;
        match folds.insert(key, &*scratch, NOEXIST) {
            Ok(()) => {}
            Err(error) if error == -EEXIST => return add(folds, key, scratch, now, detail),
            Err(_) => count_map_full(stats),
        }
        match send_alone(scratch) {
            Outcome::RingFull if !is_vanished => add(folds, key, scratch, now, detail),
            outcome => outcome,
        }
    }
}

/// Sends the failure by itself.
///
/// # Safety
/// The scratch value, which describes the failure and has its header, is this processor's own.
#[inline(always)]
unsafe fn send_alone(scratch: *mut FoldValue) -> Outcome {
    // SAFETY: the caller vouches for the value.
    unsafe {
        (*scratch).sample.count = 1;
        emit_copy((&raw const (*scratch).sample).cast(), size_of::<FailedSyscall>() as u64)
    }
}

/// Whether a file that is gone has had no record of its own, and may have one: then it counts as told.
///
/// # Safety
/// `value` is a live value of the map.
#[inline(always)]
unsafe fn is_untold(value: *mut FoldValue, detail: u64) -> bool {
    for place in 0..VANISHED_MAX {
        // SAFETY: the caller vouches for the value; its places are only touched atomically.
        unsafe {
            let told = &raw mut (*value).told[place];
            let known = told.read_volatile();
            if known == detail {
                return false;
            }
            if known == 0
                && atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                    told, 0, detail,
                )
                .1
            {
                return true;
            }
        }
    }
    false
}

/// # Safety
/// The scratch value is this processor's own.
#[inline(always)]
unsafe fn write_header(scratch: *mut FoldValue) {
    // SAFETY: the caller vouches for the value.
    unsafe {
        let header = &raw mut (*scratch).sample.header;
        task::write_header(header, KIND_FAILED_SYSCALL, size_of::<FailedSyscall>());
    }
}

/// Counts a failure that no record carries yet.
///
/// # Safety
/// `value` is a live value of the map, and the scratch value, which describes the failure, is this processor's own.
#[inline(always)]
unsafe fn count(value: *mut FoldValue, scratch: *mut FoldValue, now: u64, detail: u64) {
    // SAFETY: the caller vouches for the values; what changes in the map's is only touched atomically.
    unsafe {
        (&raw mut (*value).last_at_nanos).write_volatile(now);
        if (&raw const (*value).detail).read_volatile() != detail {
            let mixed = &raw mut (*value).mixed;
            if mixed.read_volatile() == 0 {
                atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(mixed, 1);
            }
            remember(value, scratch, detail);
        }
        add_atomically(&raw mut (*value).pending, 1);
    }
}

/// Keeps the failure as the key's last one, unless another processor is writing at this very moment: then that one's
/// happened just as late. The map's value is read only when no program can be running on it.
///
/// # Safety
/// As [`count`].
#[inline(always)]
unsafe fn remember(value: *mut FoldValue, scratch: *mut FoldValue, detail: u64) {
    // SAFETY: the caller vouches for the values; whoever has set `writing` is alone with the sample.
    unsafe {
        let writing = &raw mut (*value).writing;
        if !atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(writing, 0, 1).1 {
            return;
        }
        write_header(scratch);
        (*value).sample = (*scratch).sample;
        (&raw mut (*value).detail).write_volatile(detail);
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(writing, 0);
    }
}

/// Counts a repeat and says whether this processor is the one to send the count now.
#[inline(always)]
fn is_due(value: *mut FoldValue, scratch: *mut FoldValue, now: u64, detail: u64) -> bool {
    // SAFETY: the map's value stays while programs run; all its counters are only touched atomically.
    unsafe {
        count(value, scratch, now, detail);
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
fn add(
    folds: &HashMap<FoldKey, FoldValue>,
    key: FoldKey,
    scratch: *mut FoldValue,
    now: u64,
    detail: u64,
) -> Outcome {
    let Some(value) = folds.get_ptr_mut(key) else { return Outcome::RingFull };
    // SAFETY: as in `is_due`.
    unsafe { count(value, scratch, now, detail) };
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
