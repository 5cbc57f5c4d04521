//! Exits with an error, held until what the process failed to do before was read from the kernel, and until it shows
//! whether its container ended with it.
//!
//! Repeated failures are counted in the kernel and read once a second: whoever sees the exit must have them already. A
//! failed probe, helper or part of a pipeline is no failed container: the container's first process is, and what it ends
//! with where it ends as its child did (`tini`, `sh -c`). In a pid namespace of its own the kernel names the first
//! process; in the machine's own one it is whoever ended last and left nobody behind. (Where the containers of a pod
//! share a pid namespace, its first process is none of theirs, and none of them is told as failed.) Bounded; what has no
//! room goes on at once. Called by [`super::Pipeline`], with time as an argument.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tapio_kernel_abi::{Exit, NAMESPACE_FIRST, NAMESPACE_OTHER};
use tapio_schemas::intent;

use crate::{
    attribute::Container,
    event::{Event, ProcessPart},
};

/// Exits that are held at a time.
const HELD_MAX: usize = 4_096;
/// An exit is held for at most this long: should the kernel's counts not be readable, or its container not be empty. The
/// exit is told before the kernel gives the process's memory back, which may take a while.
pub(super) const HELD_NANOS_MAX: u64 = 3_000_000_000;
/// One in the machine's own pid namespace is asked about only so long: it is most often no container's end.
const ASKED_NANOS_MAX: u64 = 1_500_000_000;
const SIGKILL: u8 = 9;

#[derive(Debug)]
struct Held {
    event: Event,
    /// Whether its container may have ended with it.
    may_end: bool,
    /// Whether it was the first of its pid namespace.
    is_first: bool,
}

/// The exits, in the order in which they were heard of.
#[derive(Debug, Default)]
pub(super) struct HeldExits {
    exits: VecDeque<Held>,
}

impl HeldExits {
    /// Any process of `container` ended: who ended before it did not end the container. But a pid namespace ends with its
    /// first process, in whatever way the others then do; and killed is who is left where a container has ended.
    pub(super) fn saw(&mut self, container: &Arc<Container>, exit: &Exit) {
        if exit.signal == SIGKILL {
            return;
        }
        let is_over = |held: &Held| exit.namespace == NAMESPACE_OTHER && held.is_first;
        for held in self.exits.iter_mut().filter(|held| is_in(&held.event, container) && !is_over(held)) {
            held.may_end = false;
        }
    }

    /// Holds an exit; gives the one that must make room for it.
    pub(super) fn hold(&mut self, event: Event, namespace: u8) -> Option<Event> {
        let may_end = event.container.is_some() && namespace != NAMESPACE_OTHER;
        self.exits.push_back(Held { event, may_end, is_first: namespace == NAMESPACE_FIRST });
        let surplus = if self.exits.len() > HELD_MAX { self.exits.pop_front() } else { None };
        surplus.map(|held| held.event)
    }

    /// The exits of before `until_nanos`, and those that are held for too long. `is_over` says whether a container has no
    /// process left; one that may have ended and is not is asked about again.
    pub(super) fn release(
        &mut self,
        until_nanos: u64,
        now_nanos: u64,
        is_over: impl Fn(&Container) -> bool,
    ) -> Vec<Event> {
        let age = |held: &Held| now_nanos.saturating_sub(held.event.time.0);
        let is_late = |held: &Held| age(held) >= HELD_NANOS_MAX;
        let is_due = |held: &Held| is_late(held) || held.event.time.0 < until_nanos;
        // Those whose containers may end yet, and whether the others have.
        let mut waiting: HashSet<*const Container> = HashSet::new();
        let mut over: HashMap<*const Container, bool> = HashMap::new();
        for held in self.exits.iter().filter(|held| held.may_end && is_due(held)) {
            let Some(container) = &held.event.container else { continue };
            let asked_max = if held.is_first { HELD_NANOS_MAX } else { ASKED_NANOS_MAX };
            let place = Arc::as_ptr(container);
            if !*over.entry(place).or_insert_with(|| is_over(container)) && age(held) < asked_max {
                waiting.insert(place);
            }
        }
        let place = |held: &Held| held.event.container.as_ref().map(Arc::as_ptr);
        // A supervisor and its child are told together.
        let waits = |held: &Held| !is_late(held) && place(held).is_some_and(|place| waiting.contains(&place));
        let (released, held): (Vec<Held>, _) =
            self.exits.drain(..).partition(|held| is_due(held) && !waits(held));
        self.exits = held.into();
        let released = released.into_iter().map(|held| {
            let has_ended = held.may_end && place(&held).and_then(|place| over.get(&place)) == Some(&true);
            (held.event, has_ended)
        });
        let mut events: Vec<Event> = Vec::new();
        for (mut event, has_ended) in released {
            if has_ended {
                match events.iter_mut().rev().find(|child| decided(child, &event)) {
                    Some(child) => child.intent = intent::CONTAINER_FAILED,
                    None => event.intent = intent::CONTAINER_FAILED,
                }
            }
            events.push(event);
        }
        events
    }

    /// The time of the earliest.
    pub(super) fn since(&self) -> Option<u64> {
        self.exits.iter().map(|held| held.event.time.0).min()
    }
}

/// Whether a supervisor ended with what its child had ended with.
fn decided(child: &Event, supervisor: &Event) -> bool {
    let (Some(container), Some(process)) = (&supervisor.container, &supervisor.process) else { return false };
    let ends_alike = |its: &ProcessPart| its.parent_pid == process.pid && its.exit_code == process.exit_code;
    is_in(child, container) && child.process.as_ref().is_some_and(ends_alike)
}

fn is_in(event: &Event, container: &Arc<Container>) -> bool {
    event.container.as_ref().is_some_and(|own| Arc::ptr_eq(own, container))
}
