//! Which events a subscriber wants, and the rows of a batch that are those, found in its columns in place.
//!
//! Must never make an event: a batch of which nothing is wanted costs what its columns cost.

use tapio_schemas::{
    batch::BatchView,
    field::column::{core, entity, trace},
    ids::{NodeId, TraceId},
    intent::{EventKind, Severity},
};

/// Which events: those that meet every part that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventFilter {
    /// Seen on one of these nodes; here and below, all where there are none.
    pub(crate) nodes: Vec<NodeId>,
    /// Of one of these kinds.
    pub(crate) kinds: Vec<EventKind>,
    /// At least this severe.
    pub(crate) severity_min: Severity,
    /// About one of these containers.
    pub(crate) container_ids: Vec<String>,
    /// About one of these pods.
    pub(crate) pod_uids: Vec<String>,
    /// Of one of these traces.
    pub(crate) trace_ids: Vec<TraceId>,
}

/// Buffers that are kept from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    words: Vec<u64>,
}

impl EventFilter {
    /// Whether anything of `node` is wanted.
    pub(super) fn wants_node(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.iter().any(|wanted| wanted.as_str() == node)
    }

    /// Puts the rows of a batch of `node` that are wanted into `rows`, replacing what is in it.
    pub(crate) fn select(
        &self,
        view: &BatchView<'_>,
        node: &str,
        scratch: &mut Scratch,
        rows: &mut Vec<u32>,
    ) {
        rows.clear();
        if !self.wants_node(node) {
            return;
        }
        rows.extend(0..view.rows());
        if self.severity_min > Severity::default() {
            let least = u64::from(self.severity_min.code());
            keep(view, core::severity, scratch, rows, |severity| severity >= least);
        }
        if !self.kinds.is_empty() {
            // A code of a newer release is what this one calls unknown.
            let kind_of = |word| u8::try_from(word).map_or(EventKind::Unknown, EventKind::from_code);
            keep(view, core::kind, scratch, rows, |kind| self.kinds.contains(&kind_of(kind)));
        }
        for (column, wanted) in
            [(entity::container_id, &self.container_ids), (entity::pod_uid, &self.pod_uids)]
        {
            if wanted.is_empty() || rows.is_empty() {
                continue;
            }
            // Equal texts have one code in a batch: it is looked up once, and rows are compared by it.
            let is_wanted = |code: &u32| wanted.iter().any(|wanted| view.symbol(*code) == wanted);
            let codes: Vec<u64> = (1..view.symbol_count()).filter(is_wanted).map(u64::from).collect();
            if codes.is_empty() {
                rows.clear();
            } else {
                keep(view, column, scratch, rows, |word| codes.contains(&word));
            }
        }
        if !self.trace_ids.is_empty() {
            keep(view, trace::trace_id, scratch, rows, |word| {
                word != 0 && self.trace_ids.contains(&TraceId(view.sixteen_value(word)))
            });
        }
    }
}

/// Keeps the rows whose stored integer in `column` is wanted.
fn keep(
    view: &BatchView<'_>,
    column: u16,
    scratch: &mut Scratch,
    rows: &mut Vec<u32>,
    is_wanted: impl Fn(u64) -> bool,
) {
    if rows.is_empty() {
        return;
    }
    view.copy_rows(column, &mut scratch.words);
    rows.retain(|row| scratch.words.get(*row as usize).is_some_and(|word| is_wanted(*word)));
}
