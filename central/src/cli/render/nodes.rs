//! Nodes as a table, each with what is wrong there.

use std::io::{self, Write};

use tapio_schemas::{
    capability::{ProbeCapability, ProbeState},
    units::UnixMicros,
};

use super::{grouped, length};
use crate::{api::rest::page::List, history::nodes::StoredNode};

/// A page of nodes.
///
/// # Errors
/// When `out` cannot be written.
pub(crate) fn list(list: &List<StoredNode>, now: UnixMicros, out: &mut dyn Write) -> io::Result<()> {
    if list.items.is_empty() {
        return writeln!(out, "no nodes");
    }
    writeln!(
        out,
        "{:<24}  {:<16}  {:<6}  {:>9}  {:<8}  {:<20}  {:>7}  {:>8}",
        "NODE", "CLUSTER", "STATE", "HEARD", "AGENT", "KERNEL", "PROBES", "LOST"
    )?;
    for node in &list.items {
        let working = node.capability.iter().filter(|probe| probe.state == ProbeState::Working).count();
        writeln!(
            out,
            "{:<24}  {:<16}  {:<6}  {:>9}  {:<8}  {:<20}  {:>7}  {:>8}",
            node.node,
            node.cluster,
            node.state.as_str(),
            length(now.since(node.last_seen)),
            node.agent_version.as_deref().unwrap_or("-"),
            node.kernel_release.as_deref().unwrap_or("-"),
            format!("{working}/{}", node.capability.len()),
            grouped(node.losses.iter().map(|loss| loss.count).sum()),
        )?;
        for line in node.capability.iter().filter_map(missing) {
            writeln!(out, "  {line}")?;
        }
        for loss in &node.losses {
            let (count, stage, subject) = (grouped(loss.count), &loss.stage, &loss.subject);
            writeln!(out, "  lost {count} {subject} at {stage}: {}", loss.reason)?;
        }
    }
    if list.next_cursor.is_some() {
        writeln!(out, "there are more; narrow with --cluster, --state or raise --limit")?;
    }
    Ok(())
}

fn missing(probe: &ProbeCapability) -> Option<String> {
    match &probe.state {
        ProbeState::Working => None,
        ProbeState::Disabled => Some(format!("probe {} is turned off", probe.probe)),
        ProbeState::Failed { reason } => Some(format!("probe {} does not work: {reason}", probe.probe)),
    }
}
