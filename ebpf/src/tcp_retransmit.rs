//! Which connections lose segments?

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tapio_kernel_abi::{KIND_TCP_RETRANSMIT, ProbeId, TcpRetransmit};

use crate::{
    outcome::{Outcome, emit, hit},
    sock, task,
};

/// `tcp_retransmit_skb(sock, skb[, err])`.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn on_retransmit(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::TcpRetransmit, |_| {
        let sock: u64 = ctx.arg(0);
        let key = sock::key(sock);
        let owner = sock::owner(key);
        if task::is_agents(owner.tgid, || owner.start_nanos) {
            return Outcome::Filtered;
        }
        let Some(tuple) = sock::tuple(sock) else { return Outcome::Unreadable };
        emit::<TcpRetransmit>(|record| {
            // SAFETY: the record is reserved memory of its size.
            unsafe {
                task::write_header(
                    &raw mut (*record).header,
                    KIND_TCP_RETRANSMIT,
                    size_of::<TcpRetransmit>(),
                );
                (*record).owner = owner;
                (*record).sock_key = key;
                (*record).tuple = tuple;
                (*record).state = sock::state(sock);
                (*record).reserved = [0; 7];
            }
            true
        })
    })
}
