//! Which connections are reset, and by whom?

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tapio_kernel_abi::{KIND_TCP_RESET, Owner, ProbeId, RESET_RECEIVED, RESET_SENT, SockTuple, TcpReset};

use crate::{
    offsets::*,
    outcome::{Outcome, emit, hit},
    sock, task,
};

#[inline(always)]
fn reset(sock: u64, tuple: Option<SockTuple>, direction: u8, reason: u32) -> Outcome {
    let Some(tuple) = tuple else { return Outcome::Unreadable };
    let (key, owner, state) = if sock == 0 {
        (0, Owner::default(), 0)
    } else {
        let key = sock::key(sock);
        (key, sock::owner(key), sock::state(sock))
    };
    if task::is_agents(owner.tgid, || owner.start_nanos) {
        return Outcome::Filtered;
    }
    emit::<TcpReset>(|record| {
        // SAFETY: the record is reserved memory of its size.
        unsafe {
            task::write_header(&raw mut (*record).header, KIND_TCP_RESET, size_of::<TcpReset>());
            (*record).owner = owner;
            (*record).sock_key = key;
            (*record).tuple = tuple;
            (*record).direction = direction;
            (*record).state = state;
            (*record).reserved = 0;
            (*record).reason = reason;
        }
        true
    })
}

/// `tcp_send_reset(sock, skb[, reason])`: without a socket when nothing listens, without a segment when this end
/// gives up by itself (it has closed by then, so its owner is in the close's record and, most often, is the task that
/// runs). The segment is the one that is answered, so it knows the other end even if the socket is a listener. Kernels
/// before 6.10 say nothing of a reset without a socket; the other end's `tcp_receive_reset` still does.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn on_rst_sent(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::TcpResetSent, |_| {
        let sock: u64 = ctx.arg(0);
        let skb: u64 = ctx.arg(1);
        let reason = if RESET_REASON_ARGUMENT.load() != 0 { ctx.arg::<u64>(2) as u32 } else { 0 };
        let tuple = if skb == 0 {
            sock::tuple(sock)
        } else {
            let network = if sock == 0 { 0 } else { sock::network(sock) };
            sock::tuple_of_received(skb).map(|tuple| SockTuple { network, ..tuple })
        };
        reset(sock, tuple, RESET_SENT, reason)
    })
}

/// `tcp_receive_reset(sock)`.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn on_rst_received(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::TcpResetReceived, |_| {
        let sock: u64 = ctx.arg(0);
        reset(sock, sock::tuple(sock), RESET_RECEIVED, 0)
    })
}
