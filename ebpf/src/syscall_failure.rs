//! Which system calls fail?

use aya_ebpf::{
    helpers::{bpf_probe_read_user, generated::bpf_probe_read_user_str},
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use tapio_kernel_abi::*;

use crate::{
    fold::{fold, scratch},
    offsets::*,
    opened,
    outcome::{Outcome, hit},
    read::field,
    sock::{self, AF_INET, AF_INET6, mapped},
    task,
};

const AF_UNIX: u16 = 1;
const ENOENT: u64 = 2;

/// What is wanted of each system call, by number.
#[map]
static SYSCALLS: Array<SyscallRule> = Array::with_max_entries(SYSCALL_COUNT, 0);

/// The rule of the call that ends, and its number; `None` when nothing is wanted of it.
#[inline(always)]
pub fn rule(regs: u64) -> Option<(&'static SyscallRule, u32)> {
    let number = field::<u64>(regs, &REGS_NUMBER)? as u32;
    Some((SYSCALLS.get(number)?, number))
}

/// Whether the running task is in a 32-bit system call, whose number means something else.
#[inline(always)]
pub fn is_compat() -> bool {
    let mask = THREAD_STATUS_COMPAT.load();
    mask != 0 && field::<u32>(task::current(), &TASK_THREAD_STATUS).unwrap_or(0) & mask != 0
}

/// `sys_exit(regs, ret)`; the registers still hold the arguments.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn on_sys_failure(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::FailedSyscall, |stats| {
        let (regs, result) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1));
        if is_descriptor(result) {
            look_at_opened(regs);
            return Outcome::Filtered;
        }
        // Errors are -1 to -4095; beyond 127 there are only restarts, which are no failures.
        let errno = 0u64.wrapping_sub(result);
        if errno == 0 || errno > 127 {
            return Outcome::Filtered;
        }
        let Some((rule, number)) = rule(regs) else { return Outcome::Filtered };
        let allowed = if errno < 64 { rule.errnos_low >> errno } else { rule.errnos_high >> (errno - 64) };
        if allowed & 1 == 0 || task::is_agent() || is_compat() {
            return Outcome::Filtered;
        }
        let shape = rule.shape;
        let may_be_gone = rule.opens != OPENS_NONE && errno == ENOENT && opened::is_starting();
        let key = FoldKey { tgid: task::current_tgid(), number: number as u16, errno: errno as u16 };
        fold(stats, key, |record| {
            // SAFETY: the record is the processor's own scratch memory.
            unsafe {
                describe(record, regs, number, errno, shape);
                if may_be_gone && opened::is_vanished(record) {
                    (*record).flags |= FLAG_VANISHED;
                }
            }
        })
    })
}

/// Whether a result may be the descriptor of a file that was opened: a process that starts has few.
#[inline(always)]
fn is_descriptor(result: u64) -> bool {
    result.wrapping_sub(3) < 1021
}

/// What a call that succeeded says of the files that a program needs.
#[inline(always)]
fn look_at_opened(regs: u64) {
    let Some((rule, number)) = rule(regs) else { return };
    if rule.opens == OPENS_NONE || !opened::is_starting() || task::is_agent() || is_compat() {
        return;
    }
    let Some(record) = scratch() else { return };
    // SAFETY: the record is the processor's own scratch memory.
    unsafe {
        describe(record, regs, number, 0, rule.shape);
        opened::found(record, regs, rule.opens);
    }
}

#[inline(always)]
unsafe fn describe(record: *mut FailedSyscall, regs: u64, number: u32, errno: u64, shape: u16) {
    let first = field::<u64>(regs, &REGS_FIRST).unwrap_or(0);
    let second = field::<u64>(regs, &REGS_SECOND).unwrap_or(0);
    // SAFETY: the caller vouches for the record.
    unsafe {
        (*record).number = number as u16;
        (*record).errno = errno as u16;
        (*record).fd = match shape {
            SHAPE_NONE | SHAPE_PATH_FIRST => -1,
            _ => first as i32,
        };
        (*record).flags = 0;
        (*record).path_bytes = 0;
        (*record).family = 0;
        (*record).port = 0;
        (*record).address = [0; 16];
        (*record).network = 0;
        (*record).reserved = 0;
        (*record).path = [0; PATH_BYTES];
        match shape {
            SHAPE_PATH_FIRST => write_path(record, first),
            SHAPE_PATH_SECOND => write_path(record, second),
            SHAPE_ADDRESS => {
                write_address(record, second);
                write_network(record, first & 0xffff_ffff);
            }
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn write_path(record: *mut FailedSyscall, path: u64) {
    // SAFETY: the caller vouches for the record; the helper checks the path's address.
    unsafe {
        let read =
            bpf_probe_read_user_str((&raw mut (*record).path).cast(), PATH_BYTES as u32, path as *const _);
        (*record).path_bytes = if read > 0 { (read - 1) as u16 } else { 0 };
        (*record).flags |= FLAG_PATH
            | if read < 0 { FLAG_PATH_UNREADABLE } else { 0 }
            | if read == PATH_BYTES as i64 { FLAG_PATH_CUT } else { 0 };
    }
}

#[inline(always)]
unsafe fn write_address(record: *mut FailedSyscall, address: u64) {
    // Layouts of sockaddr_in, sockaddr_in6 and sockaddr_un are part of the kernel's interface.
    // SAFETY: the caller vouches for the record; the helper checks the addresses.
    unsafe {
        let Ok(family) = bpf_probe_read_user(address as *const u16) else { return };
        if family == AF_UNIX {
            write_path(record, address + 2);
        } else if family == AF_INET || family == AF_INET6 {
            let Ok(port) = bpf_probe_read_user((address + 2) as *const u16) else { return };
            let host = if family == AF_INET {
                bpf_probe_read_user((address + 4) as *const [u8; 4]).map(mapped)
            } else {
                bpf_probe_read_user((address + 8) as *const [u8; 16])
            };
            let Ok(host) = host else { return };
            (*record).family = family;
            (*record).port = u16::from_be(port);
            (*record).address = host;
            (*record).flags |= FLAG_ADDRESS;
        }
    }
}

/// Where the address means something: in the network of the socket.
#[inline(always)]
unsafe fn write_network(record: *mut FailedSyscall, fd: u64) {
    let Some(sock) = sock::of_descriptor(fd) else { return };
    // SAFETY: the caller vouches for the record.
    unsafe {
        (*record).network = sock::network(sock);
        (*record).flags |= FLAG_TCP;
    }
}
