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

/// A task's change, a softirq's that interrupts it, and what a preempted task left.
const TAKEN_DEPTH: usize = 4;

/// The state changes that the first program took on this processor, and the second was not there for yet: it runs right
/// behind the first for the same one, and acts on those that it does not find here. What interrupts comes behind what it
/// interrupts, and is gone before that goes on, but for what the second program was kept from: that goes along with what
/// was in front of it. The first program does not interrupt itself, so nobody else writes while it does.
#[repr(C)]
#[derive(Clone, Copy)]
struct Taken {
    depth: u64,
    changes: [u64; TAKEN_DEPTH],
}

#[map]
static TAKEN: PerCpuArray<Taken> = PerCpuArray::with_max_entries(1, 0);

/// A state change, by socket. Never zero.
#[inline(always)]
fn change(ctx: &RawTracePointContext) -> u64 {
    // A kernel address tells nothing in its upper 16 bits; states are less than 16.
    ctx.arg::<u64>(0) << 16 | (ctx.arg::<u64>(2) & 0xff) << 8 | (ctx.arg::<u64>(1) & 0xff)
}

/// Notes that the first program takes a change.
#[inline(always)]
fn take(change: u64) {
    let Some(taken) = TAKEN.get_ptr_mut(0) else { return };
    // SAFETY: the place is this processor's; the index is bounded by the mask.
    unsafe {
        let depth = (&raw const (*taken).depth).read_volatile();
        // Deeper than anybody nests: what is left there is nobody's any more.
        let depth = if depth < TAKEN_DEPTH as u64 { depth } else { 0 };
        let place = depth as usize & (TAKEN_DEPTH - 1);
        (&raw mut (*taken).changes[place]).write_volatile(change);
        (&raw mut (*taken).depth).write_volatile(depth + 1);
    }
}

/// Whether the first program took a change; it and what is behind it are then forgotten.
#[inline(always)]
fn was_taken(change: u64) -> bool {
    let Some(taken) = TAKEN.get_ptr_mut(0) else { return false };
    for place in 0..TAKEN_DEPTH {
        // SAFETY: the place is this processor's.
        unsafe {
            let is_in_use = (place as u64) < (&raw const (*taken).depth).read_volatile();
            if is_in_use && (&raw const (*taken).changes[place]).read_volatile() == change {
                (&raw mut (*taken).depth).write_volatile(place as u64);
                return true;
            }
        }
    }
    false
}

/// `inet_sock_set_state(sock, old, new)`, in any context; only `connect` is sure to be the owner's.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn on_tcp_state(ctx: RawTracePointContext) -> i32 {
    take(change(&ctx));
    hit(ProbeId::TcpState, |stats| state_changed(&ctx, stats))
}

/// The same, for what the kernel did not deliver to [`on_tcp_state`] because that was running.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn on_tcp_again(ctx: RawTracePointContext) -> i32 {
    if was_taken(change(&ctx)) {
        return 0;
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
    if task::is_agents(owner.tgid, || owner.start_nanos) {
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
