//! How the agent comes to see the kernel: its folder in bpffs is held, probes are taken over or loaded, and what outlived
//! an agent is put in the order in which it is read. Called by the start, before the host is looked at.

use std::collections::VecDeque;

use tapio_daemon::with_causes;
use tapio_schemas::units::UnixMicros;

use super::{AgentError, spooler::Marks};
use crate::{
    attribute::Hierarchy,
    capture::{Continued, Taking},
    config::{Config, OnExit},
    pipeline::Pipeline,
    probes::{Capability, Earlier, Found, Left, Pins, PinsError, Probes, ProbesConfig},
    shelf::Shelf,
};

/// What the agent sees the kernel with.
pub(super) struct Sight {
    pub(super) probes: Probes,
    pub(super) capabilities: Vec<Capability>,
    /// The rings that outlived an agent, in the order in which they are read, and what is written down of each.
    pub(super) continued: VecDeque<Continued>,
    pub(super) marks: VecDeque<Marks>,
    pub(super) taking: Taking,
    /// Since when everything is seen.
    pub(super) since: UnixMicros,
}

/// Loads the probes, or takes them over.
pub(super) fn open_eyes(
    config: &Config,
    pins: Option<&Pins>,
    shelf: &Shelf,
    pipeline: &mut Pipeline<Hierarchy>,
    now: UnixMicros,
) -> Sight {
    let wanted = ProbesConfig {
        ring_bytes: config.ring_bytes,
        disabled: config.disabled_probes.clone(),
        ..ProbesConfig::default()
    };
    let (mut probes, capabilities) = match pins {
        Some(pins) => Probes::load_pinned(&wanted, pins, shelf.newest()),
        None => Probes::load(&wanted),
    };
    let (mut continued, mut marks, mut since) = (VecDeque::new(), VecDeque::new(), now);
    if let Some((found, progress)) = probes.take_found().zip(probes.take_progress()) {
        since = told_until(&found, &capabilities, now);
        for mut earlier in found.earlier {
            if let Some(Left { resume, ring, progress, counters, folded, drained }) = earlier.left.take() {
                continued.push_back(Continued { ring, resume, counters, folded, drained });
                marks.push_back(Marks::new(progress, resume.mark, Some(earlier)));
                continue;
            }
            pipeline.unreadable_version();
            if let Err(error) = earlier.remove() {
                let error = with_causes(&error);
                tracing::warn!(error, "what another version pinned cannot be removed");
            }
        }
        if let Some(ring) = probes.take_ring() {
            let (resume, counters) = (found.resume, probes.stats().unwrap_or_default());
            let (folded, drained) = (Vec::new(), resume.mark.reached.drained);
            continued.push_back(Continued { ring, resume, counters, folded, drained });
            marks.push_back(Marks::new(progress, resume.mark, None));
        }
    }
    let is_pinned = !marks.is_empty();
    let taking = Taking::new(is_pinned, is_pinned && config.on_exit == OnExit::Keep);
    Sight { probes, capabilities, continued, marks, taking, since }
}

/// Holds the folder in which probes outlive the agent; without one, says why, and they end with it.
pub(super) fn hold_pins(config: &Config) -> Result<(Option<Pins>, Option<String>), AgentError> {
    let Some(root) = &config.pins else { return Ok((None, None)) };
    match Pins::hold(root, config.node.as_str()) {
        Ok(pins) => Ok((Some(pins), None)),
        Err(error @ PinsError::Held { .. }) => Err(error.into()),
        Err(error) => {
            let error = with_causes(&error);
            tracing::warn!(
                error,
                "probes end with the agent: what happens until the next one starts is not seen"
            );
            Ok((None, Some(format!("probes end with the agent: {error}"))))
        }
    }
}

/// The time up to which an agent before has told what happened, if nothing has gone unseen since; else `now`.
fn told_until(found: &Found, capabilities: &[Capability], now: UnixMicros) -> UnixMicros {
    let is_seen =
        |capability: &Capability| !capability.is_working() || found.adopted.contains(&capability.probe);
    let told = UnixMicros(found.resume.mark.until_micros);
    tracing::info!(
        adopted = found.adopted.len(),
        records_lost = found.resume.lost.iter().sum::<u64>(),
        replaced = ?found.earlier.iter().map(Earlier::name).collect::<Vec<_>>(),
        "probes outlive the agent"
    );
    if told.0 > 0 && capabilities.iter().all(is_seen) { told.min(now) } else { now }
}
