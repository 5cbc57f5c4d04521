//! Which files did a pod's programs find when they started, and which of those do they not find any more?
//!
//! Programs look for many files that need not be there, before and behind the one that they cannot do without; what
//! tells that one from the others is that it was there before. So what programs open for reading while they start is
//! remembered per pod and command line (without its numbers, which may change), for as long as there is room: this is no count. What was forgotten costs an
//! answer; a wrong one it gives only of a file that came and went, and whose first absence is the one that was forgotten.
//! What a program looked for in vain first, or made itself, may be absent; and so may what it has lived without since.

use aya_ebpf::{helpers::bpf_probe_read_user, macros::map, maps::LruHashMap};
use tapio_kernel_abi::*;

use crate::{offsets::*, read::field, task};

/// `fcntl.h`, of the kernel's interface on all architectures that the agent runs on.
const O_ACCMODE: u64 = 3;
const O_CREAT: u64 = 0o100;
/// `BPF_NOEXIST` and `BPF_ANY`.
const NOEXIST: u64 = 1;
const ANY: u64 = 0;

#[map]
static FILES: LruHashMap<FileKey, u64> = LruHashMap::with_max_entries(32_768, 0);
/// How many files are remembered of a pod, so that none costs the others theirs.
#[map]
static POD_FILES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// Whether the running process is starting.
#[inline(always)]
pub fn is_starting() -> bool {
    let start = task::start_nanos(task::current());
    start != 0 && task::now().wrapping_sub(start) < STARTING_NANOS
}

/// A file that was opened, and whose path the record carries, is remembered.
///
/// # Safety
/// The record can be read, and is described.
#[inline(always)]
pub unsafe fn found(record: *const FailedSyscall, regs: u64, opens: u8) {
    // SAFETY: the caller vouches for the record.
    let Some(key) = (unsafe { key_of(record) }) else { return };
    let Some(flags) = flags_of(regs, opens) else { return };
    if flags & O_CREAT != 0 {
        // Who makes it does without it.
        if FILES.get_ptr(key).is_some() {
            let _ = FILES.insert(key, FILE_OPTIONAL, ANY);
        } else {
            remember(key, FILE_OPTIONAL);
        }
    } else if flags & O_ACCMODE == 0 {
        remember(key, FILE_FOUND);
    }
}

/// Whether a file that was not found was always found before; that it was not is remembered.
///
/// # Safety
/// As [`found`].
#[inline(always)]
pub unsafe fn is_vanished(record: *const FailedSyscall) -> bool {
    // SAFETY: the caller vouches for the record.
    let Some(key) = (unsafe { key_of(record) }) else { return false };
    let Some(state) = FILES.get_ptr_mut(key) else {
        remember(key, FILE_OPTIONAL);
        return false;
    };
    let now = task::now();
    // SAFETY: an entry's memory is never unmapped; one that is reused at this moment gives another file's answer, as two
    // files of one hash do.
    unsafe {
        let known = state.read_volatile();
        let is_gone = match known {
            FILE_OPTIONAL => false,
            FILE_FOUND => true,
            missed_at => now.wrapping_sub(missed_at) < LIVED_NANOS,
        };
        // A time, boot nanoseconds, is neither of the states.
        state.write_volatile(if is_gone { now } else { FILE_OPTIONAL });
        is_gone
    }
}

/// Remembers what is not known yet, as far as the pod has room.
#[inline(always)]
fn remember(key: FileKey, state: u64) {
    if FILES.get_ptr(key).is_some() {
        return;
    }
    if let Some(count) = POD_FILES.get_ptr_mut(key.pod) {
        // SAFETY: as in `is_vanished`. Two processors that count at once may remember one file too many.
        unsafe {
            if count.read_volatile() >= POD_FILES_MAX {
                return;
            }
            count.write_volatile(count.read_volatile() + 1);
        }
    } else {
        let _ = POD_FILES.insert(key.pod, 1, ANY);
    }
    let _ = FILES.insert(key, state, NOEXIST);
}

/// # Safety
/// As [`found`].
#[inline(always)]
unsafe fn key_of(record: *const FailedSyscall) -> Option<FileKey> {
    // SAFETY: the caller vouches for the record.
    unsafe {
        if (*record).flags != FLAG_PATH || (*record).path_bytes == 0 {
            return None;
        }
        let mut file = 0;
        let mut taken = 0;
        for word in task::command_line()? {
            for byte in word.to_le_bytes() {
                // Without branches, each of which the kernel would follow.
                let is_wanted = !is_digit(byte) & is_below(taken, COMMAND_LINE_CHARS);
                file ^= (mixed(file, u64::from(byte)) ^ file) & is_wanted;
                taken += is_wanted & 1;
            }
        }
        let words = (&raw const (*record).path).cast::<u64>();
        for index in 0..PATH_BYTES / 8 {
            file = mixed(file, *words.add(index));
        }
        Some(FileKey { pod: task::parent_cgroup_id()?, file })
    }
}

/// All bits where `a` is below `b`, else none; both are small.
#[inline(always)]
fn is_below(a: u64, b: u64) -> u64 {
    0u64.wrapping_sub(a.wrapping_sub(b) >> 63)
}

/// All bits where a byte is a decimal digit, else none.
#[inline(always)]
fn is_digit(byte: u8) -> u64 {
    is_below(u64::from(byte).wrapping_sub(0x30) & 0xff, 10)
}

/// A step of a hash. Not against somebody who seeks collisions: all that those would win is about their own processes.
#[inline(always)]
pub fn mixed(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 32
}

/// How the file was opened.
#[inline(always)]
fn flags_of(regs: u64, opens: u8) -> Option<u64> {
    match opens {
        OPENS_SECOND => field(regs, &REGS_SECOND),
        OPENS_THIRD => field(regs, &REGS_THIRD),
        _ => {
            let how = field::<u64>(regs, &REGS_THIRD)?;
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_user(how as *const u64) }.ok()
        }
    }
}
