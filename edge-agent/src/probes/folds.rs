//! The counts of repeated failures that still are in the kernel, and how they get out without losing one.
//!
//! The programs count in one of two maps. Draining makes the other one theirs, waits until no program can still be
//! running on the old one, and then empties it: nothing can be added between a read and a removal.

use std::time::Duration;

use aya::maps::{Array, HashMap, MapData};
use rustix::thread::{MembarrierCommand, membarrier};
use tapio_kernel_abi::{FLAG_MIXED, FailedSyscall, FoldKey, FoldValue};

use super::ProbesError;

/// What a drain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DrainedFolds {
    /// Combinations of process, call and errno that had been seen.
    pub keys: u64,
    /// Failures that no record had carried.
    pub failures: u64,
}

pub(super) struct Folds {
    maps: [HashMap<MapData, FoldKey, FoldValue>; 2],
    active: Array<MapData, u32>,
    is_odd_active: bool,
}

impl Folds {
    pub(super) const fn new(
        even: HashMap<MapData, FoldKey, FoldValue>,
        odd: HashMap<MapData, FoldKey, FoldValue>,
        active: Array<MapData, u32>,
    ) -> Self {
        Self { maps: [even, odd], active, is_odd_active: false }
    }

    pub(super) fn drain(
        &mut self,
        mut visit: impl FnMut(&FailedSyscall),
    ) -> Result<DrainedFolds, ProbesError> {
        let was_odd = self.is_odd_active;
        self.active
            .set(0, u32::from(!was_odd), 0)
            .map_err(|source| ProbesError::Map { map: "FOLDS_ACTIVE", source })?;
        self.is_odd_active = !was_odd;
        wait_for_running_programs()?;
        let [even, odd] = &mut self.maps;
        if was_odd { empty(odd, "FOLDS_ODD", &mut visit) } else { empty(even, "FOLDS_EVEN", &mut visit) }
    }
}

fn empty(
    map: &mut HashMap<MapData, FoldKey, FoldValue>,
    name: &'static str,
    visit: &mut impl FnMut(&FailedSyscall),
) -> Result<DrainedFolds, ProbesError> {
    let refused = |source| ProbesError::Map { map: name, source };
    let mut drained = DrainedFolds::default();
    // Keys first: removing while walking makes the kernel start over.
    let keys = map.keys().collect::<Result<Vec<_>, _>>().map_err(refused)?;
    for key in keys {
        let value = map.get(&key, 0).map_err(refused)?;
        map.remove(&key).map_err(refused)?;
        drained.keys += 1;
        if value.pending > 0 {
            drained.failures += value.pending;
            let mut record = value.sample;
            record.count = value.pending;
            record.header.time_nanos = value.last_at_nanos;
            if value.mixed != 0 {
                record.flags |= FLAG_MIXED;
            }
            visit(&record);
        }
    }
    Ok(drained)
}

/// Tracing programs run with preemption disabled or under RCU, so one RCU grace period, which is what the global
/// membarrier waits for, sees all of them end.
pub(super) fn wait_for_running_programs() -> Result<(), ProbesError> {
    match membarrier(MembarrierCommand::Global) {
        Ok(()) => Ok(()),
        // Kernels with `nohz_full` processors refuse it. A program's run takes microseconds.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        }
        Err(errno) => Err(ProbesError::GracePeriod(errno.into())),
    }
}
