//! Which connections are made, refused, ended; which listeners come and go?

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tapio_kernel_abi::{KIND_TCP_STATE, ProbeId, TcpState};

use crate::{
    offsets::*,
    outcome::{Outcome, emit, hit},
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

/// `inet_sock_set_state(sock, old, new)`, in any context; only `connect` is sure to be the owner's.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn on_tcp_state(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::TcpState, |stats| {
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
    })
}
