//! What a probe has counted, and what the kernel has counted about it.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::programs::ProgramFd;
use tapio_kernel_abi::{ProbeId, ProbeStats};

/// One probe's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeCounters {
    /// Which probe.
    pub probe: ProbeId,
    /// Its own counters, summed over all processors.
    pub stats: ProbeStats,
    /// The kernel's, `None` when the probe is not loaded.
    pub run: Option<KernelRun>,
}

/// What the kernel has counted about a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KernelRun {
    /// Hits that the kernel did not deliver because the program was already running on that processor, and that no other
    /// program of the probe took.
    pub recursion_misses: u64,
    /// Time spent in it, only while `kernel.bpf_stats_enabled` is 1.
    pub run_nanos: u64,
    /// Runs, only while `kernel.bpf_stats_enabled` is 1.
    pub runs: u64,
    /// Hits that came while the program was running, and that the probe's second program took.
    pub taken_by_second: u64,
}

impl KernelRun {
    /// Of a probe with a second program, which took `taken` of the hits that this one missed, and ran for nothing but its
    /// time at all others. (Runs and time are counted by the kernel, and only while it counts them.)
    pub(super) const fn with_second(self, second: Self, taken: u64) -> Self {
        Self {
            recursion_misses: self.recursion_misses.saturating_sub(taken),
            run_nanos: self.run_nanos.saturating_add(second.run_nanos),
            runs: self.runs,
            taken_by_second: taken,
        }
    }
}

/// Reads `/proc/self/fdinfo` of the program: aya's program info lacks the misses.
pub(super) fn kernel_run(program: &ProgramFd) -> Option<KernelRun> {
    let descriptor = program.as_fd().as_raw_fd();
    Some(parse(&std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?))
}

fn parse(info: &str) -> KernelRun {
    let mut run = KernelRun::default();
    for line in info.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let Ok(value) = value.trim().parse() else { continue };
        match key {
            "recursion_misses" => run.recursion_misses = value,
            "run_time_ns" => run.run_nanos = value,
            "run_cnt" => run.runs = value,
            _ => {}
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a program's fdinfo as the kernel prints it, and one that lacks everything.
    /// Guarantees: known keys are read, others and absent ones do no harm.
    #[test]
    fn fdinfo_is_read() {
        let info = "pos:\t0\nprog_type:\t17\nrun_time_ns:\t1200\nrun_cnt:\t10\nrecursion_misses:\t3\n";
        let run = KernelRun { recursion_misses: 3, run_nanos: 1200, runs: 10, ..KernelRun::default() };
        assert_eq!(parse(info), run);
        assert_eq!(parse("nonsense"), KernelRun::default());
    }

    /// Scenario: the first program missed three hits, of which the second took two; it took all; it is not loaded.
    /// Guarantees: what nobody took is missed; the time of both counts.
    #[test]
    fn what_a_second_program_takes_is_not_missed() {
        let run = KernelRun { recursion_misses: 3, run_nanos: 1_200, runs: 10, ..KernelRun::default() };
        let second = KernelRun { recursion_misses: 1, run_nanos: 100, runs: 12, ..KernelRun::default() };
        let both = KernelRun { recursion_misses: 1, run_nanos: 1_300, runs: 10, taken_by_second: 2 };
        assert_eq!(run.with_second(second, 2), both);
        assert_eq!(run.with_second(second, 3).recursion_misses, 0);
        assert_eq!(run.with_second(KernelRun::default(), 0), run);
    }
}
