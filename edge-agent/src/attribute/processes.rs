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

    /// A record spoke of the process. Returns its parent, zero when that is not known.
    pub(crate) fn saw(&mut self, pid: u32, start_nanos: u64, cgroup_id: u64) -> u32 {
        if let Some(known) = self.processes.get_mut(&pid) {
            if known.start_nanos != start_nanos && known.start_nanos != 0 {
                // The pid belongs to another process by now.
                known.parent_pid = 0;
            }
            known.start_nanos = start_nanos;
            known.cgroup_id = cgroup_id;
            return known.parent_pid;
        }
        self.insert(pid, Process { start_nanos, parent_pid: 0, cgroup_id });
        0
    }

    /// A record told the process's parent.
    pub(crate) fn began(&mut self, pid: u32, process: Process) {
        self.insert(pid, process);
    }

    /// The process ended.
    pub(crate) fn ended(&mut self, pid: u32) -> Option<Process> {
        self.processes.remove(&pid)
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

    /// Scenario: a pid is used by one process, then by another, in a table that holds two.
    /// Guarantees: the second does not inherit the first's parent, and a third process is counted, not kept.
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
        assert_eq!(processes.get(10).unwrap().start_nanos, 6);
        assert_eq!(processes.saw(12, 9, 1), 0);
        assert_eq!((processes.get(12), processes.refused()), (None, 1));
        assert!(processes.ended(11).is_some() && processes.ended(11).is_none());
    }
}
