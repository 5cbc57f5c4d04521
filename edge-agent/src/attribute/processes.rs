//! The processes that run: what joins a pid to its start, its parent and its group.

use std::collections::HashMap;

use super::hierarchy::Running;

/// A process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Start, boot clock; zero for one that ran before the agent, until it is heard of.
    pub(crate) start_nanos: u64,
    /// The parent when it was last known.
    pub(crate) parent_pid: u32,
    /// Its group when it was last known.
    pub(crate) cgroup_id: u64,
}

/// The table of running processes, bounded.
#[derive(Debug)]
pub(crate) struct Processes {
    processes: HashMap<u32, Process>,
    most: usize,
    refused: u64,
}

impl Processes {
    pub(crate) fn new(most: usize) -> Self {
        Self { processes: HashMap::new(), most, refused: 0 }
    }

    /// Adds those that run already; what records said meanwhile wins.
    pub(crate) fn adopt(&mut self, running: &[Running]) {
        for process in running {
            if !self.processes.contains_key(&process.pid) {
                let known =
                    Process { start_nanos: 0, parent_pid: process.parent_pid, cgroup_id: process.cgroup_id };
                self.insert(process.pid, known);
            }
        }
    }

    /// A record spoke of the process, which may have ended by then. Returns its parent, zero when that is not known.
    ///
    /// Completes what is known, and adds nobody: records of sockets come after the end of their process, and who was
    /// added then would never be removed.
    pub(crate) fn saw(&mut self, pid: u32, start_nanos: u64, cgroup_id: u64) -> u32 {
        let Some(known) = self.processes.get_mut(&pid) else { return 0 };
        if known.start_nanos > start_nanos {
            // The pid belongs to another process by now.
            return 0;
        }
        if known.start_nanos != start_nanos && known.start_nanos != 0 {
            known.parent_pid = 0;
        }
        known.start_nanos = start_nanos;
        known.cgroup_id = cgroup_id;
        known.parent_pid
    }

    /// A record told the process's parent.
    pub(crate) fn began(&mut self, pid: u32, process: Process) {
        self.insert(pid, process);
    }

    /// The process ended. Returns what was known of it, unless another one has the pid already.
    pub(crate) fn ended(&mut self, pid: u32, start_nanos: u64) -> Option<Process> {
        if self.processes.get(&pid)?.start_nanos > start_nanos {
            return None;
        }
        self.processes.remove(&pid).filter(|known| known.start_nanos == 0 || known.start_nanos == start_nanos)
    }

    pub(crate) fn get(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// How many were not kept for want of room.
    pub(crate) const fn refused(&self) -> u64 {
        self.refused
    }

    fn insert(&mut self, pid: u32, process: Process) {
        if self.processes.len() >= self.most && !self.processes.contains_key(&pid) {
            self.refused += 1;
            return;
        }
        self.processes.insert(pid, process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a pid is used by one process, then by another, in a table that holds two; a socket of a process that
    /// has ended closes.
    /// Guarantees: the second does not inherit the first's parent, nor the first the second's; a third process is
    /// counted, not kept; who has ended is not added again.
    #[test]
    fn a_pid_is_not_a_process() {
        let mut processes = Processes::new(2);
        processes.began(10, Process { start_nanos: 5, parent_pid: 1, cgroup_id: 7 });
        assert_eq!(processes.saw(10, 5, 8), 1);
        assert_eq!(processes.saw(10, 6, 8), 0);
        processes.adopt(&[
            Running { pid: 10, parent_pid: 3, cgroup_id: 1 },
            Running { pid: 11, parent_pid: 1, cgroup_id: 1 },
        ]);
        assert_eq!(processes.saw(10, 5, 8), 0);
        assert_eq!(processes.get(10).unwrap().start_nanos, 6);
        processes.began(12, Process { start_nanos: 9, parent_pid: 1, cgroup_id: 1 });
        assert_eq!((processes.get(12), processes.refused()), (None, 1));
        assert!(processes.ended(10, 5).is_none() && processes.get(10).is_some());
        assert!(processes.ended(11, 3).is_some() && processes.ended(11, 3).is_none());
        assert_eq!((processes.saw(11, 3, 1), processes.get(11)), (0, None));
    }
}
