//! Events as lines.

use std::io::{self, Write};

use tapio_schemas::units::UnixMicros;

use super::clock;
use crate::{api::rest::page::List, history::events::StoredEvent};

/// Of a container's or pod's id, so much tells those of a node apart.
const SHORT_CHARS: usize = 12;

/// A page of events, the newest last, as a terminal shows them.
///
/// # Errors
/// When `out` cannot be written.
pub(crate) fn list(list: &List<StoredEvent>, out: &mut dyn Write) -> io::Result<()> {
    if list.items.is_empty() {
        return writeln!(out, "no events");
    }
    if list.next_cursor.is_some() {
        writeln!(out, "there are older ones; narrow with --since, --intent, --node or raise --limit")?;
    }
    list.items.iter().rev().try_for_each(|event| line(event, out))
}

/// One event: when, where, how bad, what, and its particulars.
///
/// # Errors
/// When `out` cannot be written.
pub(crate) fn line(stored: &StoredEvent, out: &mut dyn Write) -> io::Result<()> {
    let core = &stored.event.core;
    let what = if core.intent.is_empty() { core.kind.as_str() } else { &core.intent };
    write!(
        out,
        "{}  {:<16} {:<8} {what:<24}",
        clock(UnixMicros(core.time_micros)),
        stored.node,
        core.severity.as_str()
    )?;
    if core.count > 1 {
        write!(out, " x{}", core.count)?;
    }
    for particular in particulars(stored) {
        write!(out, " {particular}")?;
    }
    writeln!(out)
}

/// What a person asks next: who, which program, which file, which request.
fn particulars(stored: &StoredEvent) -> Vec<String> {
    let mut found = Vec::new();
    let event = &stored.event;
    if let Some(entity) = &event.entity {
        let short = |id: &str| id.get(..SHORT_CHARS).unwrap_or(id).to_owned();
        let pod = stored.pod.clone().unwrap_or_else(|| short(&entity.pod_uid));
        let named = [("pod", pod), ("container", short(&entity.container_id))];
        found.extend(named.iter().filter(|(_, id)| !id.is_empty()).map(|(name, id)| format!("{name}={id}")));
    }
    if let Some(kernel) = &event.kernel {
        if !kernel.command.is_empty() {
            found.push(format!("{}[{}]", kernel.command, kernel.pid));
        }
        if !kernel.syscall.is_empty() {
            found.push(format!("{} errno={}", kernel.syscall, kernel.errno));
        }
        if !kernel.path.is_empty() {
            found.push(kernel.path.clone());
        }
    }
    if let Some(network) = &event.network {
        if !network.method.is_empty() {
            let status = if network.status == 0 { "no answer".into() } else { network.status.to_string() };
            found.push(format!("{} {} {status}", network.method, network.route));
        }
        if network.remote_port != 0 {
            let way = if network.direction == "in" { "from" } else { "to" };
            let peer = render_peer(&network.remote_address.to_string(), network.remote_port);
            found.push(format!("{way} {peer}"));
        }
    }
    found
}

fn render_peer(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
