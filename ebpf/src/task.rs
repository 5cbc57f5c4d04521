//! Who a task is: thread group, start of its leader, cgroup.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
    generated::{bpf_get_current_comm, bpf_get_current_task, bpf_ktime_get_boot_ns},
};
use tapio_kernel_abi::{COMM_BYTES, Header, Owner};

use crate::{
    offsets::*,
    read::{field, pointer},
};

/// The running task.
#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: reads a register of the kernel.
    unsafe { bpf_get_current_task() as u64 }
}

/// Its thread group.
#[inline(always)]
pub fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Now, `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Whether the running task is the agent's.
#[inline(always)]
pub fn is_agent() -> bool {
    current_tgid() == AGENT_TGID.load()
}

/// Start of a task's thread group leader.
#[inline(always)]
pub fn start_nanos(task: u64) -> u64 {
    pointer(task, &TASK_GROUP_LEADER).and_then(|leader| field(leader, &TASK_START_BOOTTIME)).unwrap_or(0)
}

/// kernfs id of a task's cgroup, 0 when it cannot be read.
#[inline(always)]
pub fn cgroup_id(task: u64) -> u64 {
    cgroup(task)
        .and_then(|cgroup| pointer(cgroup, &CGROUP_KN))
        .and_then(|node| field(node, &KN_ID))
        .unwrap_or(0)
}

#[inline(always)]
fn cgroup(task: u64) -> Option<u64> {
    let set = pointer(task, &TASK_CGROUPS)?;
    let state = pointer(set, &CSS_SET_POINTER)?;
    if CSS_SET_INDIRECT.load() == 0 { Some(state) } else { pointer(state, &CSS_CGROUP) }
}

/// Real user id of a task.
#[inline(always)]
pub fn uid(task: u64) -> u32 {
    pointer(task, &TASK_CRED).and_then(|cred| field(cred, &CRED_UID)).unwrap_or(u32::MAX)
}

/// The running task as the owner of a socket.
#[inline(always)]
pub fn current_owner() -> Owner {
    let id = bpf_get_current_pid_tgid();
    let task = current();
    Owner {
        tgid: (id >> 32) as u32,
        tid: id as u32,
        cgroup_id: cgroup_id(task),
        start_nanos: start_nanos(task),
    }
}

/// Writes a whole header for the running task.
///
/// # Safety
/// `header` points to writable bytes of its size.
#[inline(always)]
pub unsafe fn write_header(header: *mut Header, kind: u16, record_bytes: usize) {
    let id = bpf_get_current_pid_tgid();
    let task = current();
    // SAFETY: the caller vouches for the target.
    unsafe {
        (*header).kind = kind;
        (*header).record_bytes = record_bytes as u16;
        (*header).cpu = bpf_get_smp_processor_id();
        (*header).time_nanos = now();
        (*header).tgid = (id >> 32) as u32;
        (*header).tid = id as u32;
        (*header).cgroup_id = cgroup_id(task);
        (*header).start_nanos = start_nanos(task);
        (*header).comm = [0; COMM_BYTES];
        bpf_get_current_comm(core::ptr::addr_of_mut!((*header).comm).cast(), COMM_BYTES as u32);
    }
}
