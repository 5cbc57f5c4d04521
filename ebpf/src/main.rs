//! What Tapio asks the kernel: one file per question, all of them raw tracepoints.
//!
//! A program reads kernel structures at offsets that the agent took from the running kernel's BTF and wrote into
//! the globals of [`offsets`], fills a record of `tapio-kernel-abi` in place in the ring buffer, and counts where
//! its hit ended ([`outcome`]). Programs never write to anything but their own maps, and know no policy: which
//! system calls and errors matter is data in the map of rules. `scripts/build-ebpf` is the only caller of the
//! compiler here; `edge-agent/src/probes` loads what it builds.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomics that core does not offer for this target")]

mod exec;
mod exit;
mod fold;
mod fork;
mod offsets;
mod oom;
mod opened;
mod outcome;
mod payload;
mod read;
mod signal;
mod sock;
mod syscall_failure;
mod task;
mod tcp_reset;
mod tcp_retransmit;
mod tcp_state;

/// The kernel lets programs use its tracing helpers only under a licence that it knows.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this is reachable.
    loop {}
}
