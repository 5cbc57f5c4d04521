//! Which programs are started?

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel_str, macros::raw_tracepoint, programs::RawTracePointContext,
};
use tapio_kernel_abi::{
    Exec, FLAG_PATH, FLAG_PATH_CUT, FLAG_PATH_UNREADABLE, KIND_EXEC, PATH_BYTES, ProbeId,
};

use crate::{
    offsets::*,
    outcome::{Outcome, emit, hit},
    read::{field, pointer},
    task,
};

/// `sched_process_exec(task, old_pid, bprm)`, after the new program is in place.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn on_exec(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::Exec, |_| {
        if task::is_agent() {
            return Outcome::Filtered;
        }
        let current: u64 = ctx.arg(0);
        let Some(name) = pointer(ctx.arg(2), &BPRM_FILENAME) else { return Outcome::Unreadable };
        emit::<Exec>(|record| {
            // SAFETY: the record is reserved memory of its size; the helper checks the name's address.
            unsafe {
                task::write_header(&raw mut (*record).header, KIND_EXEC, size_of::<Exec>());
                (*record).uid = task::uid(current);
                (*record).parent_tgid = pointer(current, &TASK_REAL_PARENT)
                    .and_then(|parent| field(parent, &TASK_TGID))
                    .unwrap_or(0);
                (*record).reserved = 0;
                (*record).path = [0; PATH_BYTES];
                let read = bpf_probe_read_kernel_str(
                    (&raw mut (*record).path).cast(),
                    PATH_BYTES as u32,
                    name as *const _,
                );
                (*record).path_bytes = if read > 0 { (read - 1) as u16 } else { 0 };
                (*record).flags = FLAG_PATH
                    | if read < 0 { FLAG_PATH_UNREADABLE } else { 0 }
                    | if read == PATH_BYTES as i64 { FLAG_PATH_CUT } else { 0 };
            }
            true
        })
    })
}
