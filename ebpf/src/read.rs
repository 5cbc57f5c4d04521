//! Reading kernel memory at an offset that is known at load.

use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_kernel, generated},
};

/// Reads a `T` at `base + offset`. A bad address gives `None`, never a fault.
#[inline(always)]
pub fn field<T>(base: u64, offset: &Global<u32>) -> Option<T> {
    at(base.wrapping_add(u64::from(offset.load())))
}

/// Reads a pointer at `base + offset`; null gives `None`.
#[inline(always)]
pub fn pointer(base: u64, offset: &Global<u32>) -> Option<u64> {
    match field::<u64>(base, offset) {
        Some(0) | None => None,
        some => some,
    }
}

/// Reads a `T` at a kernel address.
#[inline(always)]
pub fn at<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Copies `N` bytes at `base + offset` to `target`.
#[inline(always)]
pub fn copy<const N: usize>(target: *mut [u8; N], base: u64, offset: &Global<u32>) -> bool {
    let address = base.wrapping_add(u64::from(offset.load()));
    // SAFETY: the target has N bytes and the helper checks the source.
    unsafe { generated::bpf_probe_read_kernel(target.cast(), N as u32, address as *const _) == 0 }
}
