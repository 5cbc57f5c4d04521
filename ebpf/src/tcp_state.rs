//! Which connections are made, refused, ended; which listeners come and go?

use aya_ebpf::{
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};
use tapio_kernel_abi::{KIND_TCP_STATE, ProbeId, ProbeStats, TCP_STATE_AGAIN_SLOT, TcpState};

use crate::{
    offsets::*,
    outcome::{Outcome, emit, hit, hit_in},
    read::field,
    sock, task,
};

// `include/net/tcp_states.h`.
const ESTABLISHED: u64 = 1;
const SYN_SENT: u64 = 2;
const SYN_RECV: u64 = 3;
const CLOSE: u64 = 7;
const CLOSE_WAIT: u64 = 8;
const LISTEN: u64 = 10;

/// Places per processor for what the first program takes: a power of two.
const TAKEN_SLOTS: u32 = 256;

/// Which state change the first program takes on this processor, by socket. The second program runs right behind it for
/// the same one, and acts on those that it does not find here. What interrupts is about another socket, most often in
/// another place: the interrupted task holds its own.
#[map]
static TAKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(TAKEN_SLOTS, 0);

/// A state change, and its place in [`TAKEN`]. Never zero.
#[inline(always)]
fn change(ctx: &RawTracePointContext) -> (u64, Option<*mut u64>) {
    let (sock, old, new) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2));
    // A kernel address tells nothing in its upper 16 bits; states are less than 16. Sockets are some KiB apart.
    let change = sock << 16 | (new & 0xff) << 8 | (old & 0xff);
    let place = (sock >> 6 ^ sock >> 14) as u32 & (TAKEN_SLOTS - 1);
    (change, TAKEN.get_ptr_mut(place))
}

/// `inet_sock_set_state(sock, old, new)`, in any context; only `connect` is sure to be the owner's.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn on_tcp_state(ctx: RawTracePointContext) -> i32 {
    if let (change, Some(taken)) = change(&ctx) {
        // SAFETY: the place is this processor's.
        unsafe { taken.write_volatile(change) };
    }
    hit(ProbeId::TcpState, |stats| state_changed(&ctx, stats))
}

/// The same, for what the kernel did not deliver to [`on_tcp_state`] because that was running.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn on_tcp_again(ctx: RawTracePointContext) -> i32 {
    if let (change, Some(taken)) = change(&ctx) {
        // SAFETY: the place is this processor's.
        unsafe {
            if taken.read_volatile() == change {
                taken.write_volatile(0);
                return 0;
            }
        }
    }
    hit_in(TCP_STATE_AGAIN_SLOT, |stats| state_changed(&ctx, stats))
}

#[inline(always)]
fn state_changed(ctx: &RawTracePointContext, stats: *mut ProbeStats) -> Outcome {
    let sock: u64 = ctx.arg(0);
    let old = ctx.arg::<u64>(1) & 0xffff_ffff;
    let new = ctx.arg::<u64>(2) & 0xffff_ffff;
    if !sock::is_tcp(sock) {
        return Outcome::Filtered;
    }
    let key = sock::key(sock);
    if new == SYN_SENT && old == CLOSE {
        sock::set_owner(stats, key, &task::current_owner());
        return Outcome::Filtered;
    }
    if new == SYN_RECV {
        // A new child of a listener: whoever used the same memory before is not its owner.
        sock::forget_owner(key);
        return Outcome::Filtered;
    }
    let wanted = match new {
        CLOSE => old != CLOSE,
        ESTABLISHED => old == SYN_SENT,
        CLOSE_WAIT => old == ESTABLISHED,
        LISTEN => old != LISTEN,
        _ => false,
    };
    if !wanted {
        return Outcome::Filtered;
    }
    // `listen` runs in the owner's context and `SYN_SENT` has recorded it; others may be a softirq's victim.
    let owner = if new == LISTEN { task::current_owner() } else { sock::owner(key) };
    if new == LISTEN {
        sock::set_owner(stats, key, &owner);
    } else if new == CLOSE {
        sock::forget_owner(key);
    }
    if owner.tgid != 0 && owner.tgid == AGENT_TGID.load() {
        return Outcome::Filtered;
    }
    let Some(tuple) = sock::tuple(sock) else { return Outcome::Unreadable };
    emit::<TcpState>(|record| {
        // SAFETY: the record is reserved memory of its size.
        unsafe {
            task::write_header(&raw mut (*record).header, KIND_TCP_STATE, size_of::<TcpState>());
            (*record).owner = owner;
            (*record).sock_key = key;
            (*record).tuple = tuple;
            (*record).old_state = old as u8;
            (*record).new_state = new as u8;
            (*record).sock_errno = field::<u32>(sock, &SK_ERR).unwrap_or(0) as u16;
            (*record).reserved = 0;
        }
        true
    })
}
