//! Who a task is: thread group, start of its leader, cgroup.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
        generated::{bpf_get_current_comm, bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_probe_read_user},
    },
    macros::map,
    maps::Array,
};
use tapio_kernel_abi::{
    AGENT_PLACES, AGENT_START, AGENT_START_ERROR_NANOS, AGENT_TGID, COMM_BYTES, COMMAND_LINE_BYTES, Header,
    NAMESPACE_FIRST, NAMESPACE_OTHER, NAMESPACE_ROOT, Owner,
};

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

/// The process that is never reported, in the places that `tapio-kernel-abi` names: programs that are pinned see one
/// agent after another.
#[map]
static AGENT: Array<u64> = Array::with_max_entries(AGENT_PLACES, 0);

#[inline(always)]
fn agent(place: u32) -> u64 {
    AGENT.get(place).copied().unwrap_or(0)
}

/// Whether the running task is the agent's.
#[inline(always)]
pub fn is_agent() -> bool {
    is_agents(current_tgid(), || start_nanos(current()))
}

/// Whether a process is the agent. An agent that is gone may have left its number to somebody else, who is told from it
/// by the start; of that the agent knows hundredths of a second.
#[inline(always)]
pub fn is_agents(tgid: u32, start_nanos: impl FnOnce() -> u64) -> bool {
    let agent_tgid = agent(AGENT_TGID);
    if agent_tgid == 0 || agent_tgid != u64::from(tgid) {
        return false;
    }
    let agent_start = agent(AGENT_START);
    agent_start == 0 || start_nanos().wrapping_sub(agent_start) < AGENT_START_ERROR_NANOS
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

/// kernfs id of the cgroup above the running task's.
#[inline(always)]
pub fn parent_cgroup_id() -> Option<u64> {
    let own = cgroup(current())?.wrapping_add(u64::from(CGROUP_SELF.load()));
    let above = pointer(own, &CSS_PARENT).and_then(|state| pointer(state, &CSS_CGROUP))?;
    field(pointer(above, &CGROUP_KN)?, &KN_ID)
}

/// The beginning of the running process's command line, arguments between zeros; `None` if it is not in memory.
#[inline(always)]
pub fn command_line() -> Option<[u64; COMMAND_LINE_BYTES / 8]> {
    let mm = pointer(current(), &TASK_MM)?;
    let (start, end) = (field::<u64>(mm, &MM_ARG_START)?, field::<u64>(mm, &MM_ARG_END)?);
    let mut bytes = end.wrapping_sub(start);
    if bytes > COMMAND_LINE_BYTES as u64 {
        bytes = COMMAND_LINE_BYTES as u64;
    }
    let mut line = [0u64; COMMAND_LINE_BYTES / 8];
    // SAFETY: the helper checks the source, and writes at most as many bytes as the line has.
    let failed = unsafe { bpf_probe_read_user(line.as_mut_ptr().cast(), bytes as u32, start as *const _) };
    (failed == 0).then_some(line)
}

/// A process's place in its pid namespace, by its leader: one of the `NAMESPACE_` constants.
#[inline(always)]
pub fn namespace_place(leader: u64) -> u8 {
    /// Bytes of a `struct upid`, which begins with the number.
    const NUMBER_BYTES: u64 = 16;
    if TASK_THREAD_PID.load() == 0 {
        return NAMESPACE_ROOT;
    }
    let place = pointer(leader, &TASK_THREAD_PID).and_then(|pid| {
        let level = u64::from(field::<u32>(pid, &PID_LEVEL)?);
        let number: u32 = field(pid.wrapping_add(level * NUMBER_BYTES), &PID_NUMBERS)?;
        Some(match (level, number) {
            (0, _) => NAMESPACE_ROOT,
            (_, 1) => NAMESPACE_FIRST,
            _ => NAMESPACE_OTHER,
        })
    });
    place.unwrap_or(NAMESPACE_ROOT)
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
