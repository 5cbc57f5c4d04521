//! Which processes are made? Threads are counted and left out.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tapio_kernel_abi::{Fork, KIND_FORK, ProbeId};

use crate::{
    offsets::*,
    outcome::{Outcome, emit, hit},
    read::field,
    task,
};

/// `sched_process_fork(parent, child)`, in the parent's context.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn on_fork(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::Fork, |_| {
        let child: u64 = ctx.arg(1);
        let (Some(tid), Some(tgid)) = (field::<u32>(child, &TASK_PID), field::<u32>(child, &TASK_TGID))
        else {
            return Outcome::Unreadable;
        };
        if tid != tgid || task::is_agent() {
            return Outcome::Filtered;
        }
        emit::<Fork>(|record| {
            // SAFETY: the record is reserved memory of its size.
            unsafe {
                task::write_header(&raw mut (*record).header, KIND_FORK, size_of::<Fork>());
                (*record).child_tgid = tgid;
                (*record).child_tid = tid;
                (*record).child_start_nanos = task::start_nanos(child);
                (*record).child_cgroup_id = task::cgroup_id(child);
            }
            true
        })
    })
}
