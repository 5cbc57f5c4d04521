//! Which thread works on which request: what links a call without a trace of its own to the request that caused it.
//!
//! A link is claimed only for a thread that holds exactly one open request, in a process that was never seen to
//! interleave them: where another thread answered than the one that read, or one thread held two, requests move
//! between threads, and holding one says nothing.

use std::collections::{HashMap, HashSet};

use tapio_protocols::trace_context::TraceParent;

/// Threads that are kept.
const THREADS_MAX: usize = 16_384;
/// Open requests that are kept per thread; a thread with more interleaves anyhow.
const OPEN_PER_THREAD_MAX: usize = 8;
/// Processes that are known to interleave.
const PROCESSES_MAX: usize = 4_096;

/// The requests that a thread may be working on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Candidates {
    /// It holds none.
    None,
    /// Exactly one, with the trace that it carries.
    One(Option<TraceParent>),
    /// Several, or its process moves requests between threads.
    Several,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    sock_key: u64,
    trace: Option<TraceParent>,
}

/// A process: pid and start.
type ProcessKey = (u32, u64);

/// The threads that hold open requests. A thread is known by its number and its process: numbers are used again.
#[derive(Debug, Default)]
pub(super) struct Threads {
    held: HashMap<(u32, ProcessKey), Vec<Held>>,
    /// Socket → the thread that read the request there, and its process.
    reader: HashMap<u64, (u32, ProcessKey)>,
    interleaving: HashSet<ProcessKey>,
}

impl Threads {
    /// A thread read a request.
    pub(super) fn opened(
        &mut self,
        sock_key: u64,
        tgid: u32,
        start: u64,
        tid: u32,
        trace: Option<TraceParent>,
    ) {
        let process = (tgid, start);
        let thread = (tid, process);
        if self.held.len() >= THREADS_MAX && !self.held.contains_key(&thread) {
            // Without room to follow it, nothing may be claimed for the process.
            self.mark(process);
            return;
        }
        let held = self.held.entry(thread).or_default();
        if !held.is_empty() {
            self.interleaving.insert(process);
        }
        if held.len() < OPEN_PER_THREAD_MAX {
            held.push(Held { sock_key, trace });
            self.reader.insert(sock_key, thread);
        }
        self.bound();
    }

    /// A thread wrote the answer to a request that `reader` read.
    pub(super) fn answered(&mut self, sock_key: u64, reader: u32, writer: u32) {
        if let Some((_, process)) = self.reader.get(&sock_key).copied()
            && reader != writer
        {
            self.mark(process);
        }
        self.closed(sock_key);
    }

    /// The request on a socket is no longer open.
    pub(super) fn closed(&mut self, sock_key: u64) {
        let Some(thread) = self.reader.remove(&sock_key) else { return };
        if let Some(held) = self.held.get_mut(&thread) {
            held.retain(|held| held.sock_key != sock_key);
            if held.is_empty() {
                self.held.remove(&thread);
            }
        }
    }

    pub(super) fn process_ended(&mut self, tgid: u32, start: u64) {
        self.interleaving.remove(&(tgid, start));
        let Self { held, reader, .. } = self;
        reader.retain(|_, thread| {
            let is_other = thread.1 != (tgid, start);
            if !is_other {
                held.remove(thread);
            }
            is_other
        });
    }

    pub(super) fn candidates(&self, tgid: u32, start: u64, tid: u32) -> Candidates {
        match self.held.get(&(tid, (tgid, start))).map(Vec::as_slice) {
            _ if self.interleaving.contains(&(tgid, start)) => Candidates::Several,
            None | Some([]) => Candidates::None,
            Some([one]) => Candidates::One(one.trace),
            Some(_) => Candidates::Several,
        }
    }

    fn mark(&mut self, process: ProcessKey) {
        self.interleaving.insert(process);
        self.bound();
    }

    /// A host with so many interleaving processes loses links, not truth: those that are forgotten are those whose
    /// threads hold nothing at this moment, or else all links are given up until the table has room.
    fn bound(&mut self) {
        if self.interleaving.len() > PROCESSES_MAX {
            let active: HashSet<ProcessKey> = self.reader.values().map(|(_, process)| *process).collect();
            self.interleaving.retain(|process| active.contains(process));
        }
    }
}
