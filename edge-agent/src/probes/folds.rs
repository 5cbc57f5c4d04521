//! The counts of repeated failures that still are in the kernel, and how they get out without losing one.
//!
//! The programs count in one of two maps. Draining makes the other one theirs, waits until no program can still be
//! running on the old one, and then empties it: nothing can be added between a read and a removal.
//!
//! Maps that outlive the agent are emptied one step later: when what was read of them is in the spool. Drains are numbered
//! by the word that says which map is active, and a frame's mark says which drain it has told: so the next agent knows
//! whether what it finds was told.

use std::time::{Duration, Instant};

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
    /// The drain's number: it is told when all of its failures are in the spool.
    pub number: u64,
}

pub(super) struct Folds {
    maps: [HashMap<MapData, FoldKey, FoldValue>; 2],
    active: Array<MapData, u32>,
    /// Rises with each drain; its last bit says which map is active.
    number: u32,
    /// Whether they outlive the agent.
    is_pinned: bool,
    other: Other,
}

/// The map that is not active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    Empty,
    /// An agent that is gone may have read it, but has not told it.
    Unread,
    /// Read, and not emptied yet.
    Read(Instant),
}

/// A drain that is not told for so long is emptied all the same: the maps must not fill up.
const TELL_WAIT_MAX: Duration = Duration::from_secs(10);

impl Folds {
    pub(super) const fn new(
        even: HashMap<MapData, FoldKey, FoldValue>,
        odd: HashMap<MapData, FoldKey, FoldValue>,
        active: Array<MapData, u32>,
    ) -> Self {
        Self { maps: [even, odd], active, number: 0, is_pinned: false, other: Other::Empty }
    }

    /// Goes on with pinned maps, of which `told` is the last drain that is in the spool.
    pub(super) fn resume(&mut self, told: u64) -> Result<(), ProbesError> {
        self.is_pinned = true;
        self.number =
            self.active.get(&0, 0).map_err(|source| ProbesError::Map { map: "FOLDS_ACTIVE", source })?;
        if told < u64::from(self.number) {
            self.other = Other::Unread;
            return Ok(());
        }
        self.empty()
    }

    /// Visits what is in the map that was active; nothing while the drain before, of which `told` says, waits to be told.
    pub(super) fn drain(
        &mut self,
        told: u64,
        mut visit: impl FnMut(&FailedSyscall),
    ) -> Result<Option<DrainedFolds>, ProbesError> {
        match self.other {
            Other::Read(at) if told < u64::from(self.number) && at.elapsed() < TELL_WAIT_MAX => {
                return Ok(None);
            }
            Other::Read(_) => self.empty()?,
            Other::Empty | Other::Unread => {}
        }
        if self.other == Other::Empty {
            let next = self.number.wrapping_add(1);
            self.active.set(0, next, 0).map_err(|source| ProbesError::Map { map: "FOLDS_ACTIVE", source })?;
            self.number = next;
            wait_for_running_programs()?;
        }
        let number = u64::from(self.number);
        let (map, name) = self.inactive();
        let drained = read(map, name, &mut visit)?;
        self.other = Other::Read(Instant::now());
        if !self.is_pinned {
            self.empty()?;
        }
        Ok(Some(DrainedFolds { number, ..drained }))
    }

    /// Visits what is in both maps, which no program uses any more, but for what drain `told` has told; gives the number of
    /// a drain that has told all of it.
    pub(super) fn read_all(
        &self,
        told: u64,
        mut visit: impl FnMut(&FailedSyscall),
    ) -> Result<u64, ProbesError> {
        let last = self.active.get(&0, 0);
        let last = last.map_err(|source| ProbesError::Map { map: "FOLDS_ACTIVE", source })?;
        let [even, odd] = &self.maps;
        let (active, inactive) = if last & 1 == 0 { (even, odd) } else { (odd, even) };
        if told < u64::from(last) {
            read(inactive, "FOLDS", &mut visit)?;
        }
        if told <= u64::from(last) {
            read(active, "FOLDS", &mut visit)?;
        }
        Ok(u64::from(last) + 1)
    }

    fn empty(&mut self) -> Result<(), ProbesError> {
        let (map, name) = self.inactive();
        let refused = |source| ProbesError::Map { map: name, source };
        // Keys first: removing while walking makes the kernel start over.
        let keys = map.keys().collect::<Result<Vec<_>, _>>().map_err(refused)?;
        for key in keys {
            map.remove(&key).map_err(refused)?;
        }
        self.other = Other::Empty;
        Ok(())
    }

    const fn inactive(&mut self) -> (&mut HashMap<MapData, FoldKey, FoldValue>, &'static str) {
        let [even, odd] = &mut self.maps;
        if self.number & 1 == 0 { (odd, "FOLDS_ODD") } else { (even, "FOLDS_EVEN") }
    }
}

fn read(
    map: &HashMap<MapData, FoldKey, FoldValue>,
    name: &'static str,
    visit: &mut impl FnMut(&FailedSyscall),
) -> Result<DrainedFolds, ProbesError> {
    let refused = |source| ProbesError::Map { map: name, source };
    let mut drained = DrainedFolds::default();
    for key in map.keys() {
        let value = map.get(&key.map_err(refused)?, 0).map_err(refused)?;
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
