//! Which processes end, and how?

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tapio_kernel_abi::{Exit, KIND_EXIT, NAMESPACE_ROOT, ProbeId};

use crate::{
    offsets::*,
    outcome::{Outcome, emit, hit},
    read::{field, pointer},
    task,
};

/// `SIGNAL_GROUP_EXIT` of `include/linux/sched/signal.h`: `group_exit_code` holds the status.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// `sched_process_exit(task[, group_dead])`, in the context of the thread that ends. The tracepoint carries no
/// status, so it is read as `wait_task_zombie` does.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn on_exit(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::Exit, |_| {
        let task: u64 = ctx.arg(0);
        let Some(signal) = pointer(task, &TASK_SIGNAL) else { return Outcome::Unreadable };
        // Without the argument two last threads that end at once may both read zero; the reader knows a process by
        // (tgid, start) and takes the first record.
        let group_dead = if EXIT_GROUP_DEAD_ARGUMENT.load() != 0 {
            ctx.arg::<u64>(1) & 0xff != 0
        } else {
            field::<u32>(signal, &SIGNAL_LIVE) == Some(0)
        };
        if !group_dead || task::is_agent() {
            return Outcome::Filtered;
        }
        let Some(flags) = field::<u32>(signal, &SIGNAL_FLAGS) else { return Outcome::Unreadable };
        let status = if flags & SIGNAL_GROUP_EXIT != 0 {
            field::<u32>(signal, &SIGNAL_GROUP_EXIT_CODE)
        } else {
            pointer(task, &TASK_GROUP_LEADER).and_then(|leader| field::<u32>(leader, &TASK_EXIT_CODE))
        };
        let Some(status) = status else { return Outcome::Unreadable };
        let namespace = pointer(task, &TASK_GROUP_LEADER).map_or(NAMESPACE_ROOT, task::namespace_place);
        emit::<Exit>(|record| {
            let signal = (status & 0x7f) as u8;
            // SAFETY: the record is reserved memory of its size.
            unsafe {
                task::write_header(&raw mut (*record).header, KIND_EXIT, size_of::<Exit>());
                (*record).wait_status = status;
                (*record).signal = signal;
                (*record).exit_code = if signal == 0 { (status >> 8) as u8 } else { 0 };
                (*record).core_dumped = (status >> 7 & 1) as u8;
                (*record).namespace = namespace;
            }
            true
        })
    })
}
