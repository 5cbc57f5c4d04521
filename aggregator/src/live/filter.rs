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
    /// Seen on this node.
    pub(crate) node: Option<NodeId>,
    /// Of one of these kinds; all where there are none.
    pub(crate) kinds: Vec<EventKind>,
    /// At least this severe.
    pub(crate) severity_min: Severity,
    /// About this container.
    pub(crate) container_id: Option<String>,
    /// About this pod.
    pub(crate) pod_uid: Option<String>,
    /// Of this trace.
    pub(crate) trace_id: Option<TraceId>,
}

/// Buffers that are kept from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    words: Vec<u64>,
}

impl EventFilter {
    /// Puts the rows of a batch of `node` that are wanted into `rows`, replacing what is in it.
    pub(crate) fn select(
        &self,
        view: &BatchView<'_>,
        node: &str,
        scratch: &mut Scratch,
        rows: &mut Vec<u32>,
    ) {
        rows.clear();
        if self.node.as_ref().is_some_and(|wanted| wanted.as_str() != node) {
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
        for (column, wanted) in [(entity::container_id, &self.container_id), (entity::pod_uid, &self.pod_uid)]
        {
            if let Some(wanted) = wanted {
                // Equal texts have one code in a batch: it is looked up once, and rows are compared by it.
                let code = (1..view.symbol_count()).find(|code| view.symbol(*code) == wanted);
                match code.filter(|_| !rows.is_empty()) {
                    Some(code) => keep(view, column, scratch, rows, |word| word == u64::from(code)),
                    None => rows.clear(),
                }
            }
        }
        if let Some(TraceId(wanted)) = self.trace_id {
            keep(view, trace::trace_id, scratch, rows, |word| {
                word != 0 && view.sixteen_value(word) == wanted
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
