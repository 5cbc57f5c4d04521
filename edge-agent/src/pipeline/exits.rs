//! Exits with an error, held until what the process failed to do before was read from the kernel.
//!
//! Repeated failures are counted in the kernel and read once a second. What a process missed last is often why it ends:
//! whoever sees the exit must have that already, or would take an earlier failure for the last. Bounded; what has no
//! room goes on at once. Called by [`super::Pipeline`], with time as an argument.

use std::collections::VecDeque;

use crate::event::Event;

/// Exits that are held at a time.
const HELD_MAX: usize = 4_096;
/// An exit is held for at most this long, should the kernel's counts not be readable.
pub(super) const HELD_NANOS_MAX: u64 = 3_000_000_000;

/// The exits, in the order in which they were heard of.
#[derive(Debug, Default)]
pub(super) struct HeldExits {
    events: VecDeque<Event>,
}

impl HeldExits {
    /// Holds an exit; gives the one that must make room for it.
    pub(super) fn hold(&mut self, event: Event) -> Option<Event> {
        self.events.push_back(event);
        if self.events.len() > HELD_MAX { self.events.pop_front() } else { None }
    }

    /// The exits of before `until_nanos`.
    pub(super) fn release(&mut self, until_nanos: u64) -> Vec<Event> {
        let (released, held) = self.events.drain(..).partition(|event| event.time.0 < until_nanos);
        self.events = held;
        Vec::from_iter::<VecDeque<Event>>(released)
    }

    /// The time of the earliest.
    pub(super) fn since(&self) -> Option<u64> {
        self.events.iter().map(|event| event.time.0).min()
    }
}
