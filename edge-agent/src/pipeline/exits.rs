//! Exits with an error, held until what the process failed to do before was read from the kernel, and until it shows
//! whether its container ended with it.
//!
//! Repeated failures are counted in the kernel and read once a second: whoever sees the exit must have them already. A
//! failed probe, helper or part of a pipeline is no failed container: the container's first process is, and what it ends
//! with where it ends as its child did (`tini`, `sh -c`). In a pid namespace of its own the kernel names the first
//! process; in the machine's own one it is whoever ended last and left nobody behind. Bounded; what has no room goes on
//! at once. Called by [`super::Pipeline`], with time as an argument.

use std::{collections::VecDeque, sync::Arc};

use tapio_kernel_abi::{Exit, NAMESPACE_OTHER};
use tapio_schemas::intent;

use crate::{
    attribute::Container,
    event::{Event, ProcessPart},
};

/// Exits that are held at a time.
const HELD_MAX: usize = 4_096;
/// An exit is held for at most this long, should the kernel's counts not be readable.
pub(super) const HELD_NANOS_MAX: u64 = 3_000_000_000;
const SIGKILL: u8 = 9;

#[derive(Debug)]
struct Held {
    event: Event,
    /// Whether its container may have ended with it.
    may_end: bool,
}

/// The exits, in the order in which they were heard of.
#[derive(Debug, Default)]
pub(super) struct HeldExits {
    exits: VecDeque<Held>,
}

impl HeldExits {
    /// Any process of `container` ended: who ended before it did not end the container. But that is how the kernel kills
    /// the others of a pid namespace whose first process has ended.
    pub(super) fn saw(&mut self, container: &Arc<Container>, exit: &Exit) {
        if exit.signal == SIGKILL {
            return;
        }
        for held in self.exits.iter_mut().filter(|held| is_in(&held.event, container)) {
            held.may_end = false;
        }
    }

    /// Holds an exit; gives the one that must make room for it.
    pub(super) fn hold(&mut self, event: Event, namespace: u8) -> Option<Event> {
        let may_end = event.container.is_some() && namespace != NAMESPACE_OTHER;
        self.exits.push_back(Held { event, may_end });
        let surplus = if self.exits.len() > HELD_MAX { self.exits.pop_front() } else { None };
        surplus.map(|held| held.event)
    }

    /// The exits of before `until_nanos`. `is_over` says whether a container has no process left.
    pub(super) fn release(&mut self, until_nanos: u64, is_over: impl Fn(&Container) -> bool) -> Vec<Event> {
        let (released, held): (Vec<Held>, _) =
            self.exits.drain(..).partition(|held| held.event.time.0 < until_nanos);
        self.exits = held.into();
        let mut events: Vec<Event> = Vec::with_capacity(released.len());
        for Held { mut event, may_end } in released {
            if may_end && event.container.as_deref().is_some_and(&is_over) {
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
