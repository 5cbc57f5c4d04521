//! Whom does the kernel kill for memory?

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tapio_kernel_abi::{COMM_BYTES, KIND_OOM_VICTIM, OOM_LAYOUT_PID, OOM_LAYOUT_TASK, OomVictim, ProbeId};

use crate::{
    offsets::*,
    outcome::{emit, hit},
    read::{at, copy, field, pointer},
    task,
};

/// Places of the counters in `mm_struct.rss_stat` (`include/linux/mm_types_task.h`).
const MM_FILEPAGES: u64 = 0;
const MM_ANONPAGES: u64 = 1;
const MM_SHMEMPAGES: u64 = 3;

#[inline(always)]
fn resident_bytes(mm: u64, counter: u64) -> u64 {
    let address = mm + u64::from(MM_RSS.load()) + counter * u64::from(MM_RSS_STRIDE.load());
    // The approximate counter of a few pages may be below zero.
    let pages = at::<i64>(address).unwrap_or(0);
    if pages > 0 { pages as u64 * u64::from(PAGE_BYTES.load()) } else { 0 }
}

/// `mark_victim(pid)` before Linux 6.8, `mark_victim(task, uid)` since. Never filtered, the agent not even by itself:
/// a kill for memory is told whomever it hits.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn on_oom_victim(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::OomVictim, |_| {
        emit::<OomVictim>(|record| {
            // SAFETY: the record is reserved memory of its size.
            unsafe {
                task::write_header(&raw mut (*record).header, KIND_OOM_VICTIM, size_of::<OomVictim>());
                (*record).page_bytes = PAGE_BYTES.load();
                (*record).victim_comm = [0; COMM_BYTES];
                if OOM_TASK_ARGUMENT.load() == 0 {
                    (*record).victim_tgid = ctx.arg::<u64>(0) as u32;
                    (*record).uid = u32::MAX;
                    (*record).victim_cgroup_id = 0;
                    (*record).victim_start_nanos = 0;
                    (*record).total_vm_bytes = 0;
                    (*record).anon_rss_bytes = 0;
                    (*record).file_rss_bytes = 0;
                    (*record).shmem_rss_bytes = 0;
                    (*record).oom_score_adj = 0;
                    (*record).layout = OOM_LAYOUT_PID;
                    return true;
                }
                let victim: u64 = ctx.arg(0);
                let Some(tgid) = field::<u32>(victim, &TASK_TGID) else { return false };
                let mm = pointer(victim, &TASK_MM).unwrap_or(0);
                (*record).victim_tgid = tgid;
                (*record).uid = task::uid(victim);
                (*record).victim_cgroup_id = task::cgroup_id(victim);
                (*record).victim_start_nanos = task::start_nanos(victim);
                (*record).total_vm_bytes =
                    field::<u64>(mm, &MM_TOTAL_VM).unwrap_or(0) * u64::from(PAGE_BYTES.load());
                (*record).anon_rss_bytes = resident_bytes(mm, MM_ANONPAGES);
                (*record).file_rss_bytes = resident_bytes(mm, MM_FILEPAGES);
                (*record).shmem_rss_bytes = resident_bytes(mm, MM_SHMEMPAGES);
                (*record).oom_score_adj = pointer(victim, &TASK_SIGNAL)
                    .and_then(|signal| field(signal, &SIGNAL_OOM_SCORE_ADJ))
                    .unwrap_or(0);
                (*record).layout = OOM_LAYOUT_TASK;
                copy(&raw mut (*record).victim_comm, victim, &TASK_COMM)
            }
        })
    })
}
