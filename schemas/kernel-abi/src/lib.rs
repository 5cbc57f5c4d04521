//! The language between the eBPF programs and the agent: every record that crosses the ring buffer, the keys and
//! values of the shared maps, and the numbers of the probes.
//!
//! Everything here is `#[repr(C)]`, made of integers only, without implicit padding, and a multiple of eight bytes
//! long, so that both sides agree on every byte whatever compiler built them. This crate never allocates, never
//! panics on outside bytes, and knows neither aya nor the kernel's own structures. `ebpf/` fills the records,
//! `edge-agent/src/probes` reads them through [`RecordRef`], the flight recorder keeps their bytes as they are.
//!
//! All times are nanoseconds of `CLOCK_BOOTTIME` (`bpf_ktime_get_boot_ns`): it runs on through suspend, as wall time
//! does, and is the clock of `task_struct.start_boottime` and of `/proc/<pid>/stat`'s start time.
#![no_std]
#![allow(unsafe_code, reason = "records are viewed in place in the bytes that the kernel wrote")]

mod probe;
mod record;
mod view;

pub use probe::*;
pub use record::*;
pub use view::{BadRecord, Plain, RecordRef};

#[cfg(test)]
mod layout_tests;
