//! Repeats become one event with a count: what keeps a busy node's bytes bounded without losing one in silence.
//!
//! Normal work folds within a window; failures ship one by one, with their traces, up to a number per second and key,
//! and fold above it. Every record that an event stands for is told to the [`Tally`] exactly once. Time is an
//! argument. Called by [`crate::pipeline`], emptied by [`crate::capture`].

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use tapio_schemas::{intent, ledger::Fate};

use crate::{
    event::{Event, NetworkPart, ProcessPart},
    tally::Tally,
};

/// Events that are equal within this are one.
pub(crate) const WINDOW_NANOS: u64 = 1_000_000_000;
/// Different events of one window; beyond, they ship one by one.
const GROUPS_MAX: usize = 8_192;
/// Failures of one key that ship one by one within a window.
const SINGLE_MAX: u32 = 256;
/// Begins and ends of processes, and files that are gone, of one key that ship one by one within a window.
const PROCESS_SINGLE_MAX: u32 = 128;
/// Events that wait for the groups of their window; beyond, they ship before them.
const BEHIND_MAX: usize = 4_096;

/// What is folded by: a hash of everything that makes two events different things. 128 bits make a collision, which
/// would add one event's count to another's, less likely than a memory error.
type Key = (u64, u64);

/// The events of the present window.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    began_nanos: u64,
    groups: HashMap<Key, Event>,
    singles: HashMap<Key, u32>,
    /// What ships when the window closes, behind its groups.
    behind: Vec<Event>,
    ready: Vec<Event>,
    oldest_nanos: Option<u64>,
}

/// How an event is treated.
enum Policy {
    /// It ships at once.
    Single,
    /// It ships at once up to so many per window and key, and folds above.
    Up(u32),
    /// It folds.
    Fold,
}

fn policy(event: &Event) -> Policy {
    match event.intent {
        intent::REQUEST_SERVED
        | intent::REQUEST_CALLED
        | intent::CONNECTION_OPENED
        | intent::CONNECTION_CLOSED
        | intent::RESET_SENT
        | intent::RETRANSMISSION
        | intent::SYSCALL_FAILED
        | intent::FILE_ACCESS_FAILED
        | intent::ADDRESS_IN_USE => Policy::Fold,
        intent::REQUEST_SERVED_ERROR
        | intent::REQUEST_CALLED_ERROR
        | intent::REQUEST_UNANSWERED
        | intent::REQUEST_UNFINISHED
        | intent::CONNECTION_REFUSED
        | intent::CONNECTION_RESET
        | intent::CONNECTION_TIMED_OUT
        | intent::CONNECTION_FAILED
        | intent::FATAL_SIGNAL => Policy::Up(SINGLE_MAX),
        intent::PROCESS_STARTED
        | intent::PROCESS_EXECUTED
        | intent::PROCESS_EXITED
        | intent::PROCESS_FAILED
        | intent::PROCESS_KILLED
        | intent::CONTAINER_FAILED
        | intent::FILE_VANISHED => Policy::Up(PROCESS_SINGLE_MAX),
        _ => Policy::Single,
    }
}

impl Fold {
    /// Takes an event in.
    pub(crate) fn push(&mut self, event: Event, tally: &mut Tally) {
        let most = match policy(&event) {
            Policy::Single => u32::MAX,
            Policy::Up(most) => most,
            Policy::Fold => 0,
        };
        if most == u32::MAX {
            self.ship(event, tally);
            return;
        }
        let key = key_of(&event);
        if self.takes_single(key, most) {
            self.ship(event, tally);
        } else {
            self.merge(key, event, tally);
        }
    }

    /// Whether one more event of this key ships by itself.
    fn takes_single(&mut self, key: Key, most: u32) -> bool {
        if most == 0 {
            return false;
        }
        let used = self.singles.entry(key).or_insert(0);
        let takes = *used < most;
        *used += u32::from(takes);
        takes
    }

    /// Takes an event in that must not be told before what folds in the present window.
    pub(crate) fn push_behind(&mut self, event: Event, tally: &mut Tally) {
        if self.behind.len() >= BEHIND_MAX {
            self.push(event, tally);
            return;
        }
        let time = event.time.0.saturating_add(event.duration_nanos);
        self.oldest_nanos = Some(self.oldest_nanos.map_or(time, |oldest| oldest.min(time)));
        self.behind.push(event);
    }

    fn merge(&mut self, key: Key, event: Event, tally: &mut Tally) {
        // Of what lasted, the end is what was heard of now; the start may be long ago.
        let time = event.time.0.saturating_add(event.duration_nanos);
        if let Some(group) = self.groups.get_mut(&key) {
            group.count = group.count.saturating_add(event.count);
            group.records = group.records.saturating_add(event.records);
            group.duration_nanos = group.duration_nanos.saturating_add(event.duration_nanos);
            if event.intent == intent::FILE_ACCESS_FAILED {
                // What a process missed last, however often before, is told by its last time.
                group.time = group.time.max(event.time);
            }
            blur(group, &event);
        } else if self.groups.len() >= GROUPS_MAX {
            self.ship(event, tally);
            return;
        } else {
            self.groups.insert(key, event);
        }
        self.oldest_nanos = Some(self.oldest_nanos.map_or(time, |oldest| oldest.min(time)));
    }

    fn ship(&mut self, event: Event, tally: &mut Tally) {
        for (fate, count) in fates(&event) {
            tally.add(fate, event.probe, "", count);
        }
        self.ready.push(event);
    }

    /// Events that are held back or ready: as many rows at most.
    pub(crate) fn rows(&self) -> usize {
        self.groups.len() + self.behind.len() + self.ready.len()
    }

    /// Whether the window is over.
    pub(crate) const fn is_due(&self, now_nanos: u64) -> bool {
        now_nanos.saturating_sub(self.began_nanos) >= WINDOW_NANOS
    }

    /// Closes the window.
    pub(crate) fn close(&mut self, now_nanos: u64, tally: &mut Tally) {
        let is_over = self.is_due(now_nanos);
        let mut last = Vec::new();
        for event in std::mem::take(&mut self.behind) {
            let key = key_of(&event);
            match policy(&event) {
                Policy::Up(most) if !self.takes_single(key, most) => self.merge(key, event, tally),
                Policy::Fold => self.merge(key, event, tally),
                Policy::Up(_) | Policy::Single => last.push(event),
            }
        }
        let mut groups: Vec<Event> = std::mem::take(&mut self.groups).into_values().collect();
        groups.sort_by_key(|event| event.time);
        for event in groups.into_iter().chain(last) {
            self.ship(event, tally);
        }
        self.oldest_nanos = None;
        // A window that was closed early, because something was urgent, must not grant its allowance again.
        if is_over {
            self.began_nanos = now_nanos;
            self.singles.clear();
        }
    }

    /// The time up to which nothing is held back of what was heard up to `heard_nanos`.
    pub(crate) fn told_until(&self, heard_nanos: u64) -> u64 {
        self.oldest_nanos.map_or(heard_nanos, |oldest| oldest.min(heard_nanos))
    }

    /// The events that are to be written.
    pub(crate) const fn ready(&mut self) -> &mut Vec<Event> {
        &mut self.ready
    }
}

/// What became of the records that an event stands for. Counts that were drained from the kernel stand for none.
pub(crate) fn fates(event: &Event) -> [(Fate, u64); 2] {
    [
        (Fate::Carried, u64::from(event.records.min(1))),
        (Fate::Folded, u64::from(event.records.saturating_sub(1))),
    ]
}

/// What differs among the occurrences is no longer said of all of them.
fn blur(group: &mut Event, event: &Event) {
    if group.trace != event.trace {
        group.trace = None;
    }
    if let (Some(group), Some(event)) = (&mut group.process, &event.process) {
        blur_process(group, event);
    }
    if let (Some(group), Some(event)) = (&mut group.network, &event.network) {
        if group.tuple.local_port != event.tuple.local_port {
            group.tuple.local_port = 0;
        }
        if group.tuple.remote_port != event.tuple.remote_port {
            group.tuple.remote_port = 0;
        }
        if group.tuple.remote_address != event.tuple.remote_address {
            group.tuple.remote_address = [0; 16];
        }
        if group.target != event.target {
            group.target = None;
        }
        group.received_bytes = group.received_bytes.saturating_add(event.received_bytes);
        group.sent_bytes = group.sent_bytes.saturating_add(event.sent_bytes);
    }
}

fn blur_process(group: &mut ProcessPart, event: &ProcessPart) {
    if group.pid != event.pid || group.start_nanos != event.start_nanos {
        // What remains is equal by the key, or looked at below.
        *group = ProcessPart {
            cgroup_id: group.cgroup_id,
            comm: group.comm,
            syscall: group.syscall,
            errno: group.errno,
            signal: group.signal,
            exit_code: group.exit_code,
            path: group.path.take(),
            ..ProcessPart::default()
        };
    }
    if group.tid != event.tid {
        group.tid = 0;
    }
    if group.cgroup_id != event.cgroup_id {
        group.cgroup_id = 0;
    }
    if group.comm != event.comm {
        group.comm = Default::default();
    }
    if group.sender_pid != event.sender_pid {
        group.sender_pid = 0;
    }
}

fn key_of(event: &Event) -> Key {
    let mut first = DefaultHasher::new();
    hash(event, &mut first);
    let mut second = DefaultHasher::new();
    0x9e37_79b9_7f4a_7c15_u64.hash(&mut second);
    hash(event, &mut second);
    (first.finish(), second.finish())
}

fn hash(event: &Event, state: &mut DefaultHasher) {
    event.intent.hash(state);
    event.probe.hash(state);
    event.severity.code().hash(state);
    event.attributes.hash(state);
    event.container.as_ref().map(|container| Arc::as_ptr(container).addr()).hash(state);
    event.peer.as_ref().map(|peer| Arc::as_ptr(peer).addr()).hash(state);
    if let Some(process) = &event.process {
        (process.syscall, process.errno, process.signal, process.exit_code, process.path.as_deref())
            .hash(state);
        // Of what a container's processes do to the network, the container is the one who does it.
        if event.network.is_none() || event.container.is_none() {
            (process.cgroup_id, process.comm).hash(state);
        }
        if !process.syscall.is_empty() {
            (process.pid, process.start_nanos).hash(state);
        }
    }
    if let Some(network) = &event.network {
        let NetworkPart { direction, method, route, status, protocol, .. } = network;
        (direction, method, route, status, protocol).hash(state);
        match direction {
            crate::event::Direction::In => {
                (network.tuple.local_port, network.tuple.local_address).hash(state)
            }
            _ => (network.tuple.remote_port, network.tuple.remote_address).hash(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tapio_kernel_abi::SockTuple;
    use tapio_schemas::intent::EventKind;

    use super::*;
    use crate::event::{Direction, TraceLink};

    fn request(intent: &'static str, status: u16, port: u16) -> Event {
        let tuple = SockTuple { local_port: 80, remote_port: port, ..SockTuple::default() };
        Event {
            records: 2,
            duration_nanos: 10,
            trace: Some(TraceLink {
                trace_id: [u8::try_from(port % 256).unwrap(); 16],
                ..TraceLink::UNDECIDED
            }),
            process: Some(ProcessPart { pid: 1, tid: u32::from(port), ..ProcessPart::default() }),
            network: Some(NetworkPart {
                tuple,
                direction: Direction::In,
                status,
                route: Some(Arc::from("/a")),
                ..NetworkPart::default()
            }),
            ..Event::new(u64::from(port), intent, EventKind::Request, "payload")
        }
    }

    /// Scenario: a second of normal requests from many ports, and a storm of failures.
    /// Guarantees: the first become one event with their sum, which claims no thread, port or trace that only some had;
    /// of the second each ships up to the bound, with its trace.
    #[test]
    fn repeats_fold_and_failures_ship() {
        let (mut fold, mut tally) = (Fold::default(), Tally::default());
        for port in 0..1_000 {
            fold.push(request(intent::REQUEST_SERVED, 200, port), &mut tally);
            fold.push(request(intent::REQUEST_SERVED_ERROR, 500, port), &mut tally);
        }
        assert_eq!(fold.ready().len(), 256);
        assert!(fold.ready().iter().all(|event| event.trace.is_some()));
        assert_eq!(fold.told_until(5_000), 10, "the end of the first request");
        fold.close(WINDOW_NANOS, &mut tally);
        let folded: Vec<_> = fold.ready().drain(256..).collect();
        let served = folded.iter().find(|event| event.intent == intent::REQUEST_SERVED).unwrap();
        assert_eq!((served.count, served.duration_nanos, served.records), (1_000, 10_000, 2_000));
        let process = served.process.as_ref().unwrap();
        assert_eq!((process.pid, process.tid, served.network.as_ref().unwrap().tuple.remote_port), (1, 0, 0));
        assert_eq!(served.trace, None);
        let failed = folded.iter().find(|event| event.intent == intent::REQUEST_SERVED_ERROR).unwrap();
        assert_eq!((failed.count, failed.trace), (1_000 - 256, None));
        assert_eq!(fold.told_until(5_000), 5_000);
    }

    /// Scenario: an exit waits for its window; a file that is looked for twice, and another in between, come after it; a
    /// storm of exits.
    /// Guarantees: the window tells the files first, the one that was missed last by its last time; of exits no more
    /// ship than may ship by themselves, the rest as one; nothing is told beyond the earliest of them.
    #[test]
    fn exits_come_behind_what_was_missed() {
        let event = |time: u64, intent: &'static str, path: Option<&str>| Event {
            process: Some(ProcessPart { pid: 1, path: path.map(Arc::from), ..ProcessPart::default() }),
            ..Event::new(time, intent, EventKind::Process, "exit")
        };
        let (mut fold, mut tally) = (Fold::default(), Tally::default());
        fold.push_behind(event(40, intent::PROCESS_FAILED, None), &mut tally);
        for (time, path) in [(10, "/a"), (20, "/b"), (30, "/a")] {
            fold.push(event(time, intent::FILE_ACCESS_FAILED, Some(path)), &mut tally);
        }
        assert_eq!((fold.ready().len(), fold.told_until(100)), (0, 10));
        fold.close(WINDOW_NANOS, &mut tally);
        let told: Vec<_> =
            fold.ready().drain(..).map(|event| (event.intent, event.time.0, event.count)).collect();
        let missed = intent::FILE_ACCESS_FAILED;
        assert_eq!(told, [(missed, 20, 1), (missed, 30, 2), (intent::PROCESS_FAILED, 40, 1)]);
        for time in 0..1_000 {
            fold.push_behind(event(time, intent::PROCESS_FAILED, None), &mut tally);
        }
        fold.close(2 * WINDOW_NANOS, &mut tally);
        let counts: Vec<_> = fold.ready().iter().map(|event| event.count).collect();
        assert_eq!((counts.len(), counts[0]), (1 + PROCESS_SINGLE_MAX as usize, 1_000 - PROCESS_SINGLE_MAX));
        assert_eq!(tally.total(), 4 + 1_000);
    }

    proptest! {
        /// Scenario: any mixture of events and window ends.
        /// Guarantees: occurrences and records are kept: what ships stands for what came, and the tally for the records.
        #[test]
        fn nothing_is_lost_by_folding(steps in prop::collection::vec((0_usize..4, 0_u16..3, 0_u16..50, any::<bool>()), 0..400)) {
            let intents = [
                intent::REQUEST_SERVED,
                intent::REQUEST_SERVED_ERROR,
                intent::PROCESS_STARTED,
                intent::OOM_KILL,
            ];
            let (mut fold, mut tally) = (Fold::default(), Tally::default());
            let mut now = 0;
            let taken = steps.len() as u64;
            for (which, status, port, close) in steps {
                fold.push(request(intents[which], status, port), &mut tally);
                now += 100_000_000;
                if close {
                    fold.close(now, &mut tally);
                }
            }
            fold.close(now + WINDOW_NANOS, &mut tally);
            let occurrences: u64 = fold.ready().iter().map(|event| u64::from(event.count)).sum();
            prop_assert_eq!(occurrences, taken);
            prop_assert_eq!(tally.total(), taken * 2);
        }
    }
}
