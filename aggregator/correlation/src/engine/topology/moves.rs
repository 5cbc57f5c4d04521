//! What changed in the topology since drafts were last brought up to date, as coarsely as drafts need to know it.
//!
//! Every batch confirms relations, which moves their ends; only what an answer can depend on is noted, by port. Bounded
//! by the number of ports.

use std::collections::BTreeMap;

use tapio_schemas::units::UnixMicros;

type Range = Option<(UnixMicros, UnixMicros)>;

/// What changed at one port.
#[derive(Clone, Copy, Debug, Default)]
struct Move {
    /// Who owns its endpoints, or something that is not worth telling apart.
    whole: bool,
    /// Over which time new calls were seen.
    calls: Range,
    /// Over which time the beginnings of calls moved.
    begins: Range,
    /// Over which time the ends of calls moved.
    ends: Range,
}

/// The changes, by port; what has none is told as port 0.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Moves {
    ports: BTreeMap<u16, Move>,
    /// Which containers are of which pod.
    homes: bool,
    all: bool,
}

fn widen(range: &mut Range, from: UnixMicros, until: UnixMicros) {
    *range = Some(range.map_or((from, until), |(low, high)| (low.min(from), high.max(until))));
}

impl Moves {
    /// Any answer may have changed.
    pub(super) const fn everything(&mut self) {
        self.all = true;
    }

    pub(super) const fn homes(&mut self) {
        self.homes = true;
    }

    pub(super) fn owners(&mut self, port: u16) {
        self.ports.entry(port).or_default().whole = true;
    }

    pub(super) fn call_added(&mut self, port: u16, since: UnixMicros, until: UnixMicros) {
        widen(&mut self.ports.entry(port).or_default().calls, since, until);
    }

    pub(super) fn call_begins(&mut self, port: u16, now: UnixMicros, before: UnixMicros) {
        widen(&mut self.ports.entry(port).or_default().begins, now, before);
    }

    pub(super) fn call_ends(&mut self, port: u16, before: UnixMicros, now: UnixMicros) {
        widen(&mut self.ports.entry(port).or_default().ends, before, now);
    }

    /// Whether a container may have come to a pod, or gone from one.
    pub(in crate::engine) const fn concern_homes(&self) -> bool {
        self.homes
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        !self.all && self.ports.is_empty()
    }

    pub(super) const fn is_everything(&self) -> bool {
        self.all
    }

    /// Whether who calls an endpoint at `port` within `[from, until]` may have changed.
    pub(super) fn concern(&self, port: u16, from: UnixMicros, until: UnixMicros) -> bool {
        let Some(moved) = self.ports.get(&port) else { return false };
        let overlaps = |range: Range| range.is_some_and(|(low, high)| low <= until && high >= from);
        let begins = moved.begins.is_some_and(|(now, before)| now <= until && until < before);
        let ends = moved.ends.is_some_and(|(before, now)| before < from && from <= now);
        moved.whole || overlaps(moved.calls) || begins || ends
    }
}
