//! Which signals end processes, and who sends them?

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tapio_kernel_abi::{
    COMM_BYTES, FAULT_KERNEL, FAULT_NONE, FAULT_NULL, FAULT_USER, FatalSignal, KIND_FATAL_SIGNAL, ProbeId,
};

use crate::{
    offsets::*,
    outcome::{Outcome, emit, hit},
    read::{copy, field},
    task,
};

const SIGILL: u64 = 4;
const SIGBUS: u64 = 7;
const SIGFPE: u64 = 8;
const SIGSEGV: u64 = 11;
/// Signals that end a process unless it took care: QUIT, ILL, TRAP, ABRT, BUS, FPE, KILL, SEGV, TERM, XCPU, XFSZ,
/// SYS. The others are either ignored by default or part of normal work (INT, ALRM, PIPE, USR1, ...).
const FATAL: u64 = 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 11
    | 1 << 15
    | 1 << 24
    | 1 << 25
    | 1 << 31;
/// `TRACE_SIGNAL_DELIVERED` and `TRACE_SIGNAL_LOSE_INFO` of `include/trace/events/signal.h`: the signal took place.
const DELIVERED: u32 = 0;
const LOSE_INFO: u32 = 4;
/// `SEND_SIG_PRIV` of `include/linux/sched/signal.h`: the kernel itself sends, without a siginfo.
const SEND_SIG_PRIV: u64 = 1;
const SI_USER: i32 = 0;
const SI_KERNEL: i32 = 0x80;

/// `signal_generate(sig, info, task, group, result)`, in the context of the sender.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn on_fatal_signal(ctx: RawTracePointContext) -> i32 {
    hit(ProbeId::FatalSignal, |_| {
        let signal = ctx.arg::<u64>(0) & 0xffff_ffff;
        let result = ctx.arg::<u64>(4) as u32;
        if signal > 31 || FATAL >> signal & 1 == 0 || (result != DELIVERED && result != LOSE_INFO) {
            return Outcome::Filtered;
        }
        let info: u64 = ctx.arg(1);
        let target: u64 = ctx.arg(2);
        let Some(tgid) = field::<u32>(target, &TASK_TGID) else { return Outcome::Unreadable };
        let code = match info {
            0 => SI_USER,
            SEND_SIG_PRIV => SI_KERNEL,
            info => match field::<i32>(info, &SIGINFO_CODE) {
                Some(code) => code,
                None => return Outcome::Unreadable,
            },
        };
        let is_fault = signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE;
        // Codes above zero come from the kernel; for the four faults their siginfo begins with the address.
        let fault = if is_fault && code > 0 && code != SI_KERNEL && info > SEND_SIG_PRIV {
            match field::<u64>(info, &SIGINFO_FIELDS) {
                None => FAULT_NONE,
                Some(address) if address < 4096 => FAULT_NULL,
                Some(address) if address >> 56 == 0 => FAULT_USER,
                Some(_) => FAULT_KERNEL,
            }
        } else {
            FAULT_NONE
        };
        emit::<FatalSignal>(|record| {
            // SAFETY: the record is reserved memory of its size.
            unsafe {
                task::write_header(&raw mut (*record).header, KIND_FATAL_SIGNAL, size_of::<FatalSignal>());
                (*record).target_tgid = tgid;
                (*record).target_tid = field(target, &TASK_PID).unwrap_or(0);
                (*record).target_cgroup_id = task::cgroup_id(target);
                (*record).target_start_nanos = task::start_nanos(target);
                (*record).code = code;
                (*record).signal = signal as u8;
                (*record).fault = fault;
                (*record).group = (ctx.arg::<u64>(3) & 0xffff_ffff != 0) as u8;
                (*record).reserved = 0;
                (*record).target_comm = [0; COMM_BYTES];
                copy(&raw mut (*record).target_comm, target, &TASK_COMM)
            }
        })
    })
}
