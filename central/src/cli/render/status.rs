//! `tapio status`: whether to trust the system now, the answer first, in one screen whatever the size of the fleet.
//!
//! Lays out what central judged, and judges nothing.

use std::io::{self, Write};

use tapio_schemas::units::UnixMicros;

use super::{grouped, length, short};
use crate::{api::rest::status::StatusAnswer, history::status::ClusterStatus};

/// The screen, in columns and lines, as terminals open by default.
const COLUMNS: usize = 80;
const LINES: usize = 24;
/// Lines for the reasons; the other parts of the screen and the prompt leave so many.
const REASON_LINES: usize = 12;
/// Lines for one of them.
const LINES_PER_REASON: usize = 8;
/// Of clusters so many are named.
const NAMED: usize = 3;

/// One screen: the answer and what speaks against it, then nodes, clusters, losses, open findings.
///
/// # Errors
/// When `out` cannot be written.
pub fn status(status: &StatusAnswer, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = vec![format!("trust: {}", status.trust.as_str())];
    reasons(&status.reasons, &mut lines);
    lines.push(format!("central   {} {}", status.central, status.version));
    let fleet = &status.fleet;
    if let Some(nodes) = fleet.nodes {
        let (live, silent) = (grouped(nodes.live), grouped(nodes.silent));
        lines.push(format!("nodes     {live} live, {silent} silent, in the last hour"));
    }
    let clusters = fleet.clusters.as_deref().unwrap_or_default();
    lines.extend(clusters.iter().take(NAMED).map(|cluster| of_cluster(cluster, status.at)));
    let named = clusters.len().min(NAMED) as u64;
    if let Some(more) = fleet.cluster_count.and_then(|all| all.checked_sub(named)).filter(|more| *more > 0) {
        lines.push(format!("  and {} more clusters: tapio nodes", grouped(more)));
    }
    if let Some(losses) = &fleet.losses {
        let (all, lost) = (grouped(losses.records), grouped(losses.lost_records));
        lines.push(format!("records   {all} in 5 minutes, {lost} lost"));
    }
    if let Some(open) = fleet.open_findings {
        lines.push(format!("findings  {} open, of the last 30 days", grouped(open)));
        // What is left of the screen: the prompt wants a line of it, and so does how many more there are.
        let room = LINES.saturating_sub(lines.len() + 2);
        let newest = fleet.newest_findings.as_deref().unwrap_or_default();
        for finding in newest.iter().take(room) {
            lines.push(format!("  {}  {}", short(&finding.id), finding.title));
        }
        if let Some(more) = open.checked_sub(newest.len().min(room) as u64).filter(|more| *more > 0) {
            lines.push(format!("  and {} more: tapio findings --state open --since 30d", grouped(more)));
        }
    }
    for line in lines {
        writeln!(out, "{}", cut(&line))?;
    }
    Ok(())
}

fn of_cluster(cluster: &ClusterStatus, now: UnixMicros) -> String {
    let heard = length(now.since(cluster.last_seen));
    let event = cluster.last_event.map_or_else(
        || "no event is stored".to_owned(),
        |at| format!("newest event {} ago", length(now.since(at))),
    );
    format!("  {}  heard {heard} ago, {event}", cluster.cluster)
}

/// The reasons, the heaviest first: few of them have room to say all that they say, and of too many the last are counted.
fn reasons(all: &[String], lines: &mut Vec<String>) {
    let end = lines.len() + REASON_LINES;
    let told = if all.len() <= REASON_LINES { all.len() } else { REASON_LINES - 1 };
    for (place, reason) in all.iter().take(told).enumerate() {
        let (room, others) = (end.saturating_sub(lines.len()), told - place);
        wrap(reason, (room / others).clamp(1, LINES_PER_REASON), lines);
    }
    if let Some(more) = all.len().checked_sub(told).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more reasons: tapio status --json"));
    }
}

/// A reason over at most so many lines: what it begins with says what it is.
fn wrap(reason: &str, most: usize, lines: &mut Vec<String>) {
    let mut line = String::from(" ");
    let mut taken = 0;
    for word in reason.split(' ') {
        if taken + 1 < most && line.chars().count() + 1 + word.chars().count() > COLUMNS {
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
    use tapio_schemas::units::Micros;

    use super::*;
    use crate::{
        api::rest::status::{Fleet, Trust},
        history::{clusters::NodeCounts, status::LossStatus},
    };

    const NOW: UnixMicros = UnixMicros(1_000_000_000_000);

    /// Scenario: a fleet with everything wrong: long reasons of every kind, clusters with long names, many findings.
    /// Guarantees: the screen is 80 columns by 24 lines, the prompt's included, begins with the answer, and counts what it
    /// does not name.
    #[test]
    fn a_fleet_fits_one_screen() {
        let cluster = |number| ClusterStatus {
            cluster: format!("a-cluster-with-a-name-as-long-as-names-of-clusters-may-be-{number}"),
            nodes: NodeCounts { live: 500, silent: 500 },
            blind: 1_000,
            last_seen: NOW.minus(Micros::from_secs(1)),
            last_event: None,
        };
        let answer = |reasons: usize| StatusAnswer {
            trust: Trust::No,
            reasons: vec!["what speaks against it ".repeat(20); reasons],
            central: "central".to_owned(),
            version: "0.1.0".to_owned(),
            at: NOW,
            fleet: Fleet {
                clusters: Some((0..10).map(cluster).collect()),
                cluster_count: Some(100),
                nodes: Some(NodeCounts { live: 50_000, silent: 50_000 }),
                silent: None,
                aggregators: None,
                losses: Some(LossStatus::default()),
                open_findings: Some(4_000),
                newest_findings: Some(Vec::new()),
            },
        };
        for reasons in [1, 6, 10, 12, 13, 40] {
            let mut text = Vec::new();
            status(&answer(reasons), &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(text.starts_with("trust: no\n"), "{text}");
            assert!(
                text.lines().count() < LINES && text.lines().all(|line| line.chars().count() <= COLUMNS),
                "{text}"
            );
            let told = text.matches("\n  what speaks").count();
            assert_eq!(told, if reasons > 12 { 11 } else { reasons }, "{text}");
            assert_eq!(
                text.contains(&format!("and {} more reasons", reasons - told)),
                reasons > 12,
                "{text}"
            );
            for expected in
                ["50,000 live, 50,000 silent", "and 97 more clusters", "4,000 open", "and 4,000 more"]
            {
                assert!(text.contains(expected), "{expected}: {text}");
            }
        }
    }
}
