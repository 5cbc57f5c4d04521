//! `tapio status`: whether to trust the system now, the answer first, in one screen whatever the size of the fleet.
//!
//! Judges what central stores, and nothing else: a fleet is counted, and of everything only the worst few are named.

use std::{
    cmp::Reverse,
    io::{self, Write},
};

use serde::{Deserialize, Serialize};
use tapio_schemas::{
    capability::ProbeState,
    finding::Finding,
    units::{Micros, UnixMicros},
};

use super::{grouped, length, short};
use crate::{
    api::rest::{health::HealthAnswer, ledger::LedgerAnswer},
    history::{clusters::StoredCluster, ledger::LedgerSum, nodes::SILENT_AFTER, sources::StoredSource},
};

/// The screen, in columns and lines, as terminals open by default.
const COLUMNS: usize = 80;
const LINES: usize = 24;
/// Of nodes, losses and findings so many are named.
const NAMED: usize = 3;
/// Live nodes always ship something: when nothing newer than this is stored, the road to the store is behind.
const BEHIND_AFTER: Micros = Micros::from_secs(60);
/// A part of the records above which what is missing may hide a cause: one in a hundred.
const LOST_PARTS_MAX: u64 = 100;

/// What `tapio status` shows.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The answer.
    pub trust: Trust,
    /// Central's own word.
    pub health: HealthAnswer,
    /// The clusters of the last day.
    pub clusters: Vec<StoredCluster>,
    /// What was carried and lost in the last minutes.
    pub ledger: LedgerAnswer,
    /// The open findings.
    pub open: Vec<Finding>,
}

/// Whether to trust the system now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The answer.
    pub answer: Answer,
    /// What speaks against it, the heaviest first.
    pub reasons: Vec<String>,
}

/// How far to trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Everything that was asked for is seen.
    Yes,
    /// What is said is right, but some of what happens is not seen.
    Partly,
    /// So much is not seen that silence means nothing.
    No,
}

impl Answer {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Partly => "partly",
            Self::No => "no",
        }
    }
}

impl Status {
    /// Judges what was answered.
    #[must_use]
    pub fn judged(
        health: HealthAnswer,
        clusters: Vec<StoredCluster>,
        ledger: LedgerAnswer,
        open: Vec<Finding>,
        now: UnixMicros,
    ) -> Self {
        let trust = judge(&health, &clusters, &ledger, now);
        Self { trust, health, clusters, ledger, open }
    }
}

fn judge(health: &HealthAnswer, clusters: &[StoredCluster], ledger: &LedgerAnswer, now: UnixMicros) -> Trust {
    let mut reasons: Vec<(Answer, String)> = Vec::new();
    let sources = &health.sources;
    let silent = silent(sources, now);
    if sources.is_empty() {
        // Either the store does not answer or nobody was heard: health says which.
        reasons.extend(health.reasons.iter().map(|reason| (Answer::No, reason.clone())));
    } else if !silent.is_empty() {
        let answer = if silent.len() * 2 > sources.len() { Answer::No } else { Answer::Partly };
        let names =
            silent.iter().map(|source| format!("{} ({})", source.node, length(now.since(source.last_seen))));
        let count = format!("{} of {} are silent", silent.len(), nodes(sources.len()));
        reasons.push((answer, format!("{count}: {}", named(names))));
    }
    if let Some(behind) = behind(clusters, now) {
        reasons.push((
            Answer::No,
            format!("the newest stored event is {} old, though nodes ship", length(behind)),
        ));
    }
    if ledger.lost > 0 {
        let is_much = ledger.lost.saturating_mul(LOST_PARTS_MAX) > ledger.records;
        let answer = if is_much { Answer::No } else { Answer::Partly };
        let lines = lost(ledger)
            .into_iter()
            .map(|line| format!("{} {} at {} ({})", line.node, grouped(line.count), line.stage, line.reason));
        let (of, all) = (grouped(ledger.lost), grouped(ledger.records));
        reasons.push((answer, format!("lost {of} of {all} records in 5 minutes: {}", named(lines))));
    }
    let blind: Vec<_> = sources.iter().filter_map(failed_probes).collect();
    if !blind.is_empty() {
        let count = format!("{} without all probes", nodes(blind.len()));
        reasons.push((Answer::Partly, format!("{count}: {}", named(blind.into_iter()))));
    }
    // Stable: of equal weight, in the order above.
    reasons.sort_by_key(|(answer, _)| Reverse(*answer));
    Trust {
        answer: reasons.first().map_or(Answer::Yes, |(answer, _)| *answer),
        reasons: reasons.into_iter().map(|(_, reason)| reason).collect(),
    }
}

/// The sources that are not heard, the longest first.
fn silent(sources: &[StoredSource], now: UnixMicros) -> Vec<&StoredSource> {
    let mut silent: Vec<_> =
        sources.iter().filter(|source| now.since(source.last_seen) > SILENT_AFTER).collect();
    silent.sort_by_key(|source| source.last_seen);
    silent
}

/// How old the newest event of any cluster is, where nodes are live and it is too old.
fn behind(clusters: &[StoredCluster], now: UnixMicros) -> Option<Micros> {
    let is_live = clusters.iter().any(|cluster| cluster.nodes.live > 0);
    let newest = clusters.iter().filter_map(|cluster| cluster.last_event).max()?;
    Some(now.since(newest)).filter(|age| is_live && *age > BEHIND_AFTER)
}

/// The lines of what was lost, the most first.
fn lost(ledger: &LedgerAnswer) -> Vec<&LedgerSum> {
    let mut lines: Vec<_> = ledger.items.iter().filter(|line| line.fate == "lost").collect();
    lines.sort_by_key(|line| Reverse(line.count));
    lines
}

fn failed_probes(source: &StoredSource) -> Option<String> {
    let failed: Vec<&str> = source
        .capability
        .iter()
        .filter(|probe| matches!(probe.state, ProbeState::Failed { .. }))
        .map(|probe| probe.probe.as_str())
        .collect();
    (!failed.is_empty()).then(|| format!("{} ({})", source.node, failed.join(", ")))
}

fn nodes(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{} nodes", grouped(count as u64)) }
}

/// The first few, and how many there are besides.
fn named(all: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = all.collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    if more > 0 {
        names.push(format!("and {} more", grouped(more as u64)));
    }
    names.join(", ")
}

/// One screen: the answer and what speaks against it, then nodes, store, losses, open findings.
///
/// # Errors
/// When `out` cannot be written.
pub fn status(status: &Status, now: UnixMicros, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = vec![format!("trust: {}", status.trust.answer.as_str())];
    for reason in &status.trust.reasons {
        wrap(reason, &mut lines);
    }
    let health = &status.health;
    let silent = silent(&health.sources, now).len();
    lines.push(format!("central   {} {}", health.central, health.version));
    lines.push(format!("nodes     {} live, {silent} silent, in the last day", health.sources.len() - silent));
    for cluster in status.clusters.iter().take(NAMED) {
        let heard = length(now.since(cluster.last_seen));
        let event = cluster.last_event.map_or_else(
            || "no event is stored".to_owned(),
            |at| format!("newest event {} ago", length(now.since(at))),
        );
        lines.push(format!("  {}  heard {heard} ago, {event}", cluster.cluster));
    }
    if let Some(more) = status.clusters.len().checked_sub(NAMED).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more clusters: tapio nodes"));
    }
    let ledger = &status.ledger;
    lines.push(format!("records   {} in 5 minutes, {} lost", grouped(ledger.records), grouped(ledger.lost)));
    lines.push(format!("findings  {} open", status.open.len()));
    // What is left of the screen: the prompt wants a line of it.
    let room = LINES.saturating_sub(lines.len() + 2);
    for finding in status.open.iter().take(room) {
        lines.push(format!("  {}  {}", short(&finding.id), finding.title));
    }
    if let Some(more) = status.open.len().checked_sub(room).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more: tapio findings --state open"));
    }
    for line in lines {
        writeln!(out, "{}", cut(&line))?;
    }
    Ok(())
}

/// A reason over at most two lines: what it begins with says what it is.
fn wrap(reason: &str, lines: &mut Vec<String>) {
    let mut line = String::from(" ");
    let mut taken = 0;
    for word in reason.split(' ') {
        if taken == 0 && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push(std::mem::replace(&mut line, String::from("   ")));
            taken += 1;
        }
        line.push(' ');
        line.push_str(word);
    }
    lines.push(line);
}

fn cut(line: &str) -> String {
    if line.chars().count() <= COLUMNS {
        return line.to_owned();
    }
    line.chars().take(COLUMNS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use tapio_schemas::capability::ProbeCapability;

    use super::*;
    use crate::history::clusters::NodeCounts;

    const NOW: UnixMicros = UnixMicros(1_000_000_000_000);

    fn source(number: usize, ago: u64, state: ProbeState) -> StoredSource {
        StoredSource {
            cluster: "c1".to_owned(),
            node: format!("node-with-a-long-name-{number}"),
            name: String::new(),
            last_seen: NOW.minus(Micros::from_secs(ago)),
            capability: vec![ProbeCapability { probe: "payload".to_owned(), state }],
        }
    }

    fn health(sources: Vec<StoredSource>, reasons: &[&str]) -> HealthAnswer {
        HealthAnswer {
            status: String::new(),
            reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
            central: "central".to_owned(),
            version: "0.1.0".to_owned(),
            sources,
        }
    }

    fn ledger(records: u64, lost: &[u64]) -> LedgerAnswer {
        let line = |(number, count): (usize, &u64)| LedgerSum {
            cluster: "c1".to_owned(),
            node: format!("n{number}"),
            stage: "kernel".to_owned(),
            fate: "lost".to_owned(),
            subject: "payload".to_owned(),
            reason: "ring-full".to_owned(),
            count: *count,
        };
        LedgerAnswer {
            records,
            lost: lost.iter().sum(),
            items: lost.iter().enumerate().map(line).collect(),
            ..LedgerAnswer::default()
        }
    }

    fn cluster(name: &str, event_ago: u64) -> StoredCluster {
        StoredCluster {
            tenant: "default".to_owned(),
            cluster: name.to_owned(),
            nodes: NodeCounts { live: 1, silent: 0 },
            last_seen: NOW.minus(Micros::from_secs(1)),
            last_event: Some(NOW.minus(Micros::from_secs(event_ago))),
            open_findings: std::collections::BTreeMap::new(),
        }
    }

    /// Scenario: nothing is wrong; single faults of each kind; a store that does not answer; a road that is behind.
    /// Guarantees: the answer follows from how much is not seen, and the heaviest reason stands first.
    #[test]
    fn trust_follows_from_what_is_seen() {
        let well = || vec![source(1, 1, ProbeState::Working), source(2, 1, ProbeState::Disabled)];
        let answer = |health: &HealthAnswer, clusters: &[StoredCluster], ledger: &LedgerAnswer| {
            judge(health, clusters, ledger, NOW)
        };
        let (quiet, near) = (ledger(1_000, &[]), [cluster("c1", 2)]);
        let all = answer(&health(well(), &[]), &near, &quiet);
        assert_eq!((all.answer, all.reasons.len()), (Answer::Yes, 0));
        let failed = ProbeState::Failed { reason: "EPERM".to_owned() };
        let mixed = health(
            vec![
                source(1, 500, ProbeState::Working),
                source(2, 1, failed),
                source(3, 1, ProbeState::Working),
            ],
            &[],
        );
        let partly = answer(&mixed, &near, &ledger(1_000, &[1, 9]));
        assert_eq!((partly.answer, partly.reasons.len()), (Answer::Partly, 3), "{partly:?}");
        assert!(partly.reasons[0].starts_with("1 of 3 nodes are silent: node-with-a-long-name-1 (8 min)"));
        assert!(
            partly.reasons[1].ends_with("n1 9 at kernel (ring-full), n0 1 at kernel (ring-full)"),
            "{partly:?}"
        );
        let much = answer(&mixed, &near, &ledger(1_000, &[11]));
        assert!(much.answer == Answer::No && much.reasons[0].starts_with("lost 11 of 1,000"), "{much:?}");
        let late = answer(&health(well(), &[]), &[cluster("c1", 90)], &quiet);
        assert_eq!((late.answer, late.reasons.len()), (Answer::No, 1));
        let dark = answer(&health(vec![], &["the store does not answer"]), &[], &quiet);
        assert_eq!((dark.answer, dark.reasons), (Answer::No, vec!["the store does not answer".to_owned()]));
    }

    /// Scenario: a thousand nodes with long names, half of them silent, all of them blind, losses on many, a hundred
    /// clusters.
    /// Guarantees: the screen is 80 columns by 24 lines, begins with the answer, and counts what it does not name.
    #[test]
    fn a_fleet_fits_one_screen() {
        let failed = || ProbeState::Failed { reason: "EPERM".to_owned() };
        let sources = (0..1_000).map(|number| source(number, (number as u64 % 2) * 400, failed())).collect();
        let clusters = (0..100).map(|number| cluster(&format!("cluster-{number}"), 3)).collect();
        let fleet =
            Status::judged(health(sources, &[]), clusters, ledger(1_000_000, &[7; 500]), Vec::new(), NOW);
        let mut text = Vec::new();
        status(&fleet, NOW, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("trust: partly\n"), "{text}");
        assert!(
            text.lines().count() <= LINES && text.lines().all(|line| line.chars().count() <= COLUMNS),
            "{text}"
        );
        assert!(
            text.contains("500 of 1,000 nodes are silent") && text.contains("and 97 more clusters"),
            "{text}"
        );
    }
}
