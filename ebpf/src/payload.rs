//! What do HTTP/1 requests and responses say at their beginning?

use aya_ebpf::{
    helpers::{bpf_probe_read_user, generated},
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};
use tapio_kernel_abi::*;

use crate::{
    offsets::*,
    outcome::{Outcome, emit_copy, hit},
    read::field,
    sock,
    syscall_failure::{is_compat, rule},
    task,
};

const TCP_CLOSE: u8 = 7;
/// The shortest HTTP/1 message head is longer.
const HEAD_BYTES_MIN: u64 = 16;

#[repr(C)]
struct PayloadRecord {
    head: PayloadHead,
    data: [u8; PAYLOAD_BYTES_MAX],
}

/// Too large for the stack.
#[map]
static PAYLOAD_SCRATCH: PerCpuArray<PayloadRecord> = PerCpuArray::with_max_entries(1, 0);

const fn word(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}

/// Whether a message begins with these eight bytes: a method and a blank (RFC 9110, 9.3; RFC 5789), or `HTTP/1.`.
#[inline(always)]
fn is_http1(first: u64) -> bool {
    const THREE: u64 = (1 << 32) - 1;
    const FOUR: u64 = (1 << 40) - 1;
    const FIVE: u64 = (1 << 48) - 1;
    const SIX: u64 = (1 << 56) - 1;
    first & SIX == word(b"HTTP/1.\0")
        || first & THREE == word(b"GET \0\0\0\0")
        || first & FOUR == word(b"POST \0\0\0")
        || first & THREE == word(b"PUT \0\0\0\0")
        || first & SIX == word(b"DELETE \0")
        || first & FOUR == word(b"HEAD \0\0\0")
        || first & FIVE == word(b"PATCH \0\0")
        || first == word(b"OPTIONS ")
        || first == word(b"CONNECT ")
        || first & FIVE == word(b"TRACE \0\0")
}

/// The first buffer of the call and how many of its bytes are known to be there.
#[inline(always)]
fn first_buffer(form: u8, argument: u64) -> Option<(u64, u64)> {
    // `struct iovec` and `struct user_msghdr` are part of the kernel's interface.
    // SAFETY: the helper checks the addresses.
    unsafe {
        let vector = match form {
            FORM_BUFFER => return Some((argument, u64::MAX)),
            FORM_MESSAGE => bpf_probe_read_user((argument + 16) as *const u64).ok()?,
            _ => argument,
        };
        let [base, bytes] = bpf_probe_read_user(vector as *const [u64; 2]).ok()?;
        Some((base, bytes))
    }
}

/// `sys_exit(regs, ret)`; the registers still hold the arguments, the buffers what was moved.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn on_payload(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::Payload, |stats| {
        let total = ctx.arg::<u64>(1);
        if total < HEAD_BYTES_MIN || total > 0x7fff_ffff {
            return Outcome::Filtered;
        }
        let regs: u64 = ctx.arg(0);
        let Some((rule, number)) = rule(regs) else { return Outcome::Filtered };
        if rule.direction == 0 {
            return Outcome::Filtered;
        }
        let Some(argument) = field::<u64>(regs, &REGS_SECOND) else { return Outcome::Unreadable };
        let Some((base, bytes)) = first_buffer(rule.form, argument) else { return unread(regs) };
        // Bytes that the caller had thrown away have no buffer (`MSG_TRUNC`).
        if bytes < HEAD_BYTES_MIN || base == 0 {
            return Outcome::Filtered;
        }
        // SAFETY: the helper checks the address.
        let Ok(first) = (unsafe { bpf_probe_read_user(base as *const u64) }) else { return unread(regs) };
        if !is_http1(first) || task::is_agent() || is_compat() {
            return Outcome::Filtered;
        }
        let Some(fd) = field::<u64>(regs, &REGS_FIRST) else { return Outcome::Unreadable };
        let fd = fd & 0xffff_ffff;
        let Some(sock) = sock::of_descriptor(fd) else { return Outcome::Filtered };
        let Some(tuple) = sock::tuple(sock) else { return Outcome::Unreadable };
        let key = sock::key(sock);
        let Some(scratch) = PAYLOAD_SCRATCH.get_ptr_mut(0) else { return Outcome::Unreadable };
        let wanted = if bytes < total { bytes } else { total };
        // SAFETY: the scratch record is this processor's own.
        unsafe {
            task::write_header(&raw mut (*scratch).head.header, KIND_PAYLOAD, 0);
            let header = &raw const (*scratch).head.header;
            // After the close there is nobody to remove the entry.
            if sock::state(sock) != TCP_CLOSE {
                let owner = Owner {
                    tgid: (*header).tgid,
                    tid: (*header).tid,
                    cgroup_id: (*header).cgroup_id,
                    start_nanos: (*header).start_nanos,
                };
                sock::set_owner(stats, key, &owner);
            }
            (*scratch).head.sock_key = key;
            (*scratch).head.tuple = tuple;
            (*scratch).head.total_bytes = total as u32;
            (*scratch).head.fd = fd as i32;
            (*scratch).head.number = number as u16;
            (*scratch).head.direction = rule.direction;
            (*scratch).head.reserved = [0; 3];
            send(scratch, base, wanted)
        }
    })
}

/// What was moved cannot be read: a loss if it was moved on a TCP socket, of no interest elsewhere.
#[inline(always)]
fn unread(regs: u64) -> Outcome {
    if task::is_agent() || is_compat() {
        return Outcome::Filtered;
    }
    let Some(fd) = field::<u64>(regs, &REGS_FIRST) else { return Outcome::Unreadable };
    if sock::of_descriptor(fd & 0xffff_ffff).is_some() { Outcome::Unreadable } else { Outcome::Filtered }
}

/// `value`, or `max` where it is more, in a register of which the verifier knows so: the compiler must not know the
/// value, or it drops the comparison. The verifier of 6.1 does not find the bound again once the value was on the stack,
/// so bound it right before each use.
#[inline(always)]
fn bounded(value: u64, max: u64) -> u64 {
    let value = core::hint::black_box(value);
    if value > max { max } else { value }
}

#[inline(always)]
unsafe fn send(scratch: *mut PayloadRecord, base: u64, wanted: u64) -> Outcome {
    let captured = bounded(wanted, PAYLOAD_BYTES_MAX as u64);
    // SAFETY: at most as many bytes as the scratch record's data has; the helper checks the source.
    unsafe {
        let data = (&raw mut (*scratch).data).cast();
        if generated::bpf_probe_read_user(data, captured as u32, base as *const _) != 0 {
            return Outcome::Unreadable;
        }
        let head = size_of::<PayloadHead>() as u64;
        (*scratch).head.captured_bytes = captured as u16;
        (*scratch).head.header.record_bytes = (head + captured) as u16;
        emit_copy(scratch.cast(), bounded(head + captured, size_of::<PayloadRecord>() as u64))
    }
}
