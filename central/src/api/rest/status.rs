//! `GET /status`: whether to trust the system now, with what speaks against it. Judged here, by one clock, over the
//! whole fleet; what cannot be asked speaks against it too.

use std::{cmp::Reverse, collections::BTreeSet, fmt::Display, sync::Arc};

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapio_schemas::{
    finding::Finding,
    units::{Micros, UnixMicros},
};

use super::{answer::Answer, page::Page, params::Params, problem::Problem};
use crate::{
    api::ApiState,
    history::{
        HistoryError,
        clusters::{FINDINGS_SINCE, NodeCounts},
        findings::FindingFilter,
        status::{ClusterStatus, LossStatus, NAMED_MAX, NamedNode, TIERS_MAX, TierStatus, is_on_node},
    },
};

/// Losses of this time count.
const LOSSES_SINCE: Micros = Micros::from_secs(300);
/// Live nodes always ship something: when nothing newer than this is stored, the road to the store is behind.
const BEHIND_AFTER: Micros = Micros::from_secs(60);
/// An aggregator says every ten seconds how it is.
const TIER_SILENT_AFTER: Micros = Micros::from_secs(45);
/// A part of the records above which what is missing may hide a cause: one in a hundred.
const LOST_PARTS_MAX: u64 = 100;
/// Of nodes, clusters and losses a reason names so many.
const NAMED: usize = 3;

/// Whether to trust the system now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusAnswer {
    /// The answer.
    pub trust: Trust,
    /// What speaks against it, the heaviest first.
    pub reasons: Vec<String>,
    /// Which central answers.
    pub central: String,
    /// The version of the software.
    pub version: String,
    /// When, by its clock.
    pub at: UnixMicros,
    /// What is known of the fleet; what is not known is absent, and a reason says why.
    #[serde(flatten)]
    pub fleet: Fleet,
}

/// How far to trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Everything that was asked for is seen.
    Yes,
    /// What is said is right, but some of what happens is not seen.
    Partly,
    /// So much is not seen that silence means nothing.
    No,
}

/// What is known of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fleet {
    /// The clusters that were heard in the last day: those that are worst off first, at most ten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<Vec<ClusterStatus>>,
    /// How many clusters there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_count: Option<u64>,
    /// The nodes of the last hour, of all clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// The silent nodes, the longest silent first, at most ten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<Vec<NamedNode>>,
    /// What the aggregators of the last hour say of themselves: those that are worst off first, at most ten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregators: Option<Vec<TierStatus>>,
    /// What was lost in the last 5 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<LossStatus>,
    /// How many findings of the last 30 days are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_findings: Option<u64>,
    /// The newest of them, at most ten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_findings: Option<Vec<Finding>>,
}

impl Trust {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Partly => "partly",
            Self::No => "no",
        }
    }
}

pub(crate) async fn status(State(state): State<Arc<ApiState>>, params: Params) -> Result<Answer, Problem> {
    let now = params.now();
    params.finish()?;
    let history = &state.history;
    let open =
        FindingFilter { state: Some("open"), since: now.minus(FINDINGS_SINCE), ..FindingFilter::default() };
    let newest = Page::first(u32::try_from(NAMED_MAX).unwrap_or(u32::MAX), now);
    let (clusters, silent, tiers, losses, open_count, newest) = tokio::join!(
        history.cluster_states(now),
        history.longest_silent(now),
        history.tiers(now),
        history.losses(now.minus(LOSSES_SINCE)),
        history.open_count(now),
        history.findings(&open, &newest),
    );
    let mut unknown = Unknown::default();
    let clusters = unknown.unless(clusters, "clusters and nodes");
    let tiers = unknown.unless(tiers, "aggregators");
    let mut fleet = Fleet {
        silent: unknown.unless(silent, "silent nodes"),
        losses: unknown.unless(losses, "losses"),
        open_findings: unknown.unless(open_count, "open findings"),
        newest_findings: unknown.unless(newest, "the newest findings").map(|mut findings| {
            findings.truncate(NAMED_MAX);
            findings
        }),
        ..Fleet::default()
    };
    let mut reasons = unknown.reasons();
    let unknown_tiers = clusters.as_ref().zip(tiers.as_ref());
    let unknown_tiers = unknown_tiers.map(|(clusters, tiers)| of_unknown_tiers(clusters, tiers));
    if let Some(mut clusters) = clusters {
        clusters.sort_by_key(|cluster| Reverse(badness(cluster, now)));
        reasons.extend(of_clusters(&clusters, fleet.silent.as_deref().unwrap_or_default(), now));
        let sum = |part: fn(&NodeCounts) -> u64| clusters.iter().map(|cluster| part(&cluster.nodes)).sum();
        fleet.nodes = Some(NodeCounts { live: sum(|nodes| nodes.live), silent: sum(|nodes| nodes.silent) });
        fleet.cluster_count = Some(clusters.len() as u64);
        clusters.truncate(NAMED_MAX);
        fleet.clusters = Some(clusters);
    }
    reasons.extend(unknown_tiers.into_iter().flatten());
    if let Some(mut tiers) = tiers {
        reasons.extend(of_tiers(&tiers, now));
        tiers.truncate(NAMED_MAX);
        fleet.aggregators = Some(tiers);
    }
    reasons.extend(fleet.losses.as_ref().into_iter().flat_map(of_losses));
    let (trust, reasons) = judged(reasons);
    Answer::whole(&StatusAnswer {
        trust,
        reasons,
        central: state.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at: now,
        fleet,
    })
}

type Reason = (Trust, String);

/// What could not be asked, by why: one fault of the store makes every question fail, and is told once.
#[derive(Default)]
struct Unknown(Vec<(String, Vec<&'static str>)>);

impl Unknown {
    /// What was answered; or notes that it is not known.
    fn unless<T>(&mut self, answer: Result<T, HistoryError>, what: &'static str) -> Option<T> {
        let error = match answer {
            Ok(answer) => return Some(answer),
            Err(error) => error.to_string(),
        };
        match self.0.iter_mut().find(|(why, _)| *why == error) {
            Some((_, whats)) => whats.push(what),
            None => self.0.push((error, vec![what])),
        }
        None
    }

    /// Silence about what is not known means nothing.
    fn reasons(self) -> Vec<Reason> {
        let reason =
            |(why, whats): (String, Vec<_>)| (Trust::No, format!("not known: {}: {why}", whats.join(", ")));
        self.0.into_iter().map(reason).collect()
    }
}

/// The heaviest reason decides, and stands first; of equal weight, as they came.
fn judged(mut reasons: Vec<Reason>) -> (Trust, Vec<String>) {
    reasons.sort_by_key(|(trust, _)| Reverse(*trust));
    let trust = reasons.first().map_or(Trust::Yes, |(trust, _)| *trust);
    (trust, reasons.into_iter().map(|(_, reason)| reason).collect())
}

fn is_dark(cluster: &ClusterStatus) -> bool {
    cluster.nodes.live == 0
}

/// How long the road to the store has been behind, where the cluster has live nodes.
fn behind(cluster: &ClusterStatus, now: UnixMicros) -> Option<Option<Micros>> {
    if is_dark(cluster) {
        return None;
    }
    let age = cluster.last_event.map(|at| now.since(at));
    age.is_none_or(|age| age > BEHIND_AFTER).then_some(age)
}

fn badness(cluster: &ClusterStatus, now: UnixMicros) -> (bool, bool, u64, u64) {
    (is_dark(cluster), behind(cluster, now).is_some(), cluster.nodes.silent, cluster.blind)
}

fn of_clusters(clusters: &[ClusterStatus], silent: &[NamedNode], now: UnixMicros) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let (live, quiet) = clusters
        .iter()
        .fold((0, 0), |(live, quiet), cluster| (live + cluster.nodes.live, quiet + cluster.nodes.silent));
    if clusters.is_empty() {
        reasons.push((Trust::No, "no node was heard in the last day".to_owned()));
    }
    let dark: Vec<_> = clusters.iter().filter(|cluster| is_dark(cluster)).collect();
    // The silent nodes of those are told with them, and not once more.
    let told: u64 = dark.iter().map(|cluster| cluster.nodes.silent).sum();
    if !dark.is_empty() {
        let is_most = dark.len() == clusters.len() || told > live;
        let trust = if is_most { Trust::No } else { Trust::Partly };
        let names =
            dark.iter().map(|cluster| format!("{} ({})", cluster.cluster, ago(now, cluster.last_seen)));
        let of = format!("{} of {}", dark.len(), counted(clusters.len() as u64, "cluster"));
        reasons.push((trust, format!("no node is heard of {of}: {}", named(names, dark.len()))));
    }
    if quiet > told {
        let (trust, all) = (if quiet > live { Trust::No } else { Trust::Partly }, quiet + live);
        let quiet = quiet - told;
        let is_told = |node: &&NamedNode| !dark.iter().any(|cluster| cluster.cluster == node.cluster);
        let names =
            silent.iter().filter(is_told).map(|node| format!("{} ({})", node.node, ago(now, node.last_seen)));
        let count = usize::try_from(quiet).unwrap_or(usize::MAX);
        let of = counted(all, "node");
        let are = if quiet == 1 { "is" } else { "are" };
        reasons.push((trust, format!("{quiet} of {of} {are} silent: {}", named(names, count))));
    }
    let late: Vec<_> = clusters.iter().filter_map(|cluster| Some((cluster, behind(cluster, now)?))).collect();
    if !late.is_empty() {
        let names = late.iter().map(|(cluster, age)| match age {
            Some(age) => format!("{} ({})", cluster.cluster, length(*age)),
            None => format!("{} (none in a day)", cluster.cluster),
        });
        let names = named(names, late.len());
        reasons.push((Trust::No, format!("nodes ship, but the newest stored event is old: {names}")));
    }
    let blind: u64 = clusters.iter().map(|cluster| cluster.blind).sum();
    if blind > 0 {
        let names = clusters.iter().filter(|cluster| cluster.blind > 0);
        let (some, count) =
            (names.clone().map(|cluster| format!("{} in {}", cluster.blind, cluster.cluster)), names.count());
        let of = counted(blind, "node");
        reasons.push((Trust::Partly, format!("on {of} some probes do not work: {}", named(some, count))));
    }
    reasons
}

fn of_tiers(tiers: &[TierStatus], now: UnixMicros) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let quiet: Vec<_> = tiers.iter().filter(|tier| !is_heard(tier, now)).collect();
    if !quiet.is_empty() {
        let names = quiet
            .iter()
            .map(|tier| format!("{} of {} ({})", tier.name, tier.cluster, ago(now, tier.reported_at)));
        let of = format!("{} of {}", quiet.len(), counted(tiers.len() as u64, "aggregator"));
        reasons.push((Trust::Partly, format!("nothing is heard of {of}: {}", named(names, quiet.len()))));
    }
    let unwell: Vec<_> =
        tiers.iter().filter(|tier| is_heard(tier, now) && tier.status != "healthy").collect();
    for tier in unwell.iter().take(NAMED) {
        let why = tier.reasons.first().map_or("it does not say why", String::as_str);
        reasons.push((Trust::Partly, format!("the aggregator of {} is not well: {why}", tier.cluster)));
    }
    if let Some(more) = unwell.len().checked_sub(NAMED).filter(|more| *more > 0) {
        reasons.push((Trust::Partly, format!("{} more are not well", counted(more as u64, "aggregator"))));
    }
    reasons
}

fn is_heard(tier: &TierStatus, now: UnixMicros) -> bool {
    now.since(tier.reported_at) <= TIER_SILENT_AFTER
}

/// Clusters whose nodes ship, while no aggregator of them was heard for an hour or ever: whether anything is found there
/// is not known.
fn of_unknown_tiers(clusters: &[ClusterStatus], tiers: &[TierStatus]) -> Vec<Reason> {
    if tiers.len() >= TIERS_MAX {
        return vec![(
            Trust::Partly,
            format!("of more than {TIERS_MAX} aggregators the healthy ones are not looked at"),
        )];
    }
    let known: BTreeSet<&str> = tiers.iter().map(|tier| tier.cluster.as_str()).collect();
    let is_unknown =
        |cluster: &&ClusterStatus| !is_dark(cluster) && !known.contains(cluster.cluster.as_str());
    let unknown: Vec<_> = clusters.iter().filter(is_unknown).collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    let names = named(unknown.iter().map(|cluster| &cluster.cluster), unknown.len());
    let of = counted(unknown.len() as u64, "cluster");
    vec![(Trust::Partly, format!("no aggregator says how it is, in {of} whose nodes ship: {names}"))]
}

fn of_losses(losses: &LossStatus) -> Vec<Reason> {
    let LossStatus { records, lost_records, lost_behind, worst } = losses;
    let mut reasons = Vec::new();
    let lines = |on_node: bool| {
        let lines = worst.iter().filter(|line| is_on_node(line) == on_node).take(NAMED);
        let said = lines.map(|line| {
            let whose = if line.node.is_empty() { &line.cluster } else { &line.node };
            format!("{whose} {} {} at {} ({})", line.count, line.subject, line.stage, line.reason)
        });
        match said.collect::<Vec<_>>() {
            none if none.is_empty() => "not named here".to_owned(),
            some => some.join(", "),
        }
    };
    if *lost_records > 0 {
        let is_much = lost_records.saturating_mul(LOST_PARTS_MAX) > *records;
        let trust = if is_much { Trust::No } else { Trust::Partly };
        reasons.push((
            trust,
            format!("lost {lost_records} of {records} records in 5 minutes, most of them: {}", lines(true)),
        ));
    }
    if *lost_behind > 0 {
        let said =
            format!("lost {lost_behind} behind the nodes in 5 minutes, most of them: {}", lines(false));
        reasons.push((Trust::Partly, said));
    }
    reasons
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn ago(now: UnixMicros, at: UnixMicros) -> String {
    length(now.since(at))
}

fn length(time: Micros) -> String {
    match time.0 / 1_000_000 {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

/// The first few of `count`, and how many there are besides.
fn named(all: impl Iterator<Item = impl Display>, count: usize) -> String {
    let mut names: Vec<String> = all.take(NAMED).map(|name| name.to_string()).collect();
    if names.is_empty() {
        return "not named here".to_owned();
    }
    if let Some(more) = count.checked_sub(names.len()).filter(|more| *more > 0) {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::ledger::LedgerSum;

    const NOW: UnixMicros = UnixMicros(1_000_000_000_000);

    fn before(seconds: u64) -> UnixMicros {
        NOW.minus(Micros::from_secs(seconds))
    }

    fn cluster(name: &str, live: u64, silent: u64) -> ClusterStatus {
        ClusterStatus {
            cluster: name.to_owned(),
            nodes: NodeCounts { live, silent },
            blind: 0,
            last_seen: before(1),
            last_event: Some(before(2)),
        }
    }

    /// Scenario: aggregators that are well, one that says what is wrong, one that was not heard for a while.
    /// Guarantees: each is told, by its cluster, with its own words; one that is not heard is not believed to be well.
    #[test]
    fn aggregators_are_heard() {
        let tier = |cluster: &str, ago, status: &str, reasons: &[&str]| TierStatus {
            cluster: cluster.to_owned(),
            name: format!("aggregator-{cluster}"),
            version: "0.1.0".to_owned(),
            status: status.to_owned(),
            reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
            reported_at: before(ago),
        };
        let well = tier("c1", 5, "healthy", &[]);
        assert_eq!(of_tiers(std::slice::from_ref(&well), NOW), []);
        let tiers = [tier("c2", 9, "degraded", &["engine: stuck"]), tier("c3", 300, "healthy", &[]), well];
        let (trust, reasons) = judged(of_tiers(&tiers, NOW));
        assert_eq!(trust, Trust::Partly);
        assert_eq!(
            reasons,
            [
                "nothing is heard of 1 of 3 aggregators: aggregator-c3 of c3 (5 min)",
                "the aggregator of c2 is not well: engine: stuck",
            ]
        );
    }

    /// Scenario: clusters whose nodes ship, with an aggregator that was heard, with one that fell silent, and with none; one
    /// that is dark; more aggregators than are looked at.
    /// Guarantees: where nothing is known of the aggregator, that is said; nobody takes it for well.
    #[test]
    fn unknown_aggregators_are_not_well() {
        let tier = |cluster: &str, ago| TierStatus {
            cluster: cluster.to_owned(),
            name: format!("aggregator-{cluster}"),
            version: "0.1.0".to_owned(),
            status: "healthy".to_owned(),
            reasons: Vec::new(),
            reported_at: before(ago),
        };
        let clusters = [cluster("c1", 2, 0), cluster("c2", 2, 0), cluster("c3", 2, 0), cluster("c4", 0, 2)];
        let told = of_unknown_tiers(&clusters, &[tier("c1", 5), tier("c2", 300)]);
        let expected = "no aggregator says how it is, in 1 cluster whose nodes ship: c3".to_owned();
        assert_eq!(told, [(Trust::Partly, expected)]);
        assert!(of_unknown_tiers(&clusters[..2], &[tier("c1", 5), tier("c2", 300)]).is_empty());
        let many: Vec<_> = (0..TIERS_MAX).map(|_| tier("c1", 5)).collect();
        assert!(of_unknown_tiers(&clusters[..1], &many)[0].1.contains("are not looked at"));
    }

    fn judge(clusters: &[ClusterStatus], losses: &LossStatus) -> (Trust, Vec<String>) {
        let silent = [NamedNode { cluster: "c1".to_owned(), node: "n1".to_owned(), last_seen: before(500) }];
        let mut reasons = of_clusters(clusters, &silent, NOW);
        reasons.extend(of_losses(losses));
        judged(reasons)
    }

    fn lost(records: u64, node: u64, behind: u64) -> LossStatus {
        let line = |stage: &str, count| LedgerSum {
            cluster: "c1".to_owned(),
            node: "n1".to_owned(),
            stage: stage.to_owned(),
            fate: "lost".to_owned(),
            subject: "payload".to_owned(),
            reason: "full".to_owned(),
            count,
        };
        let worst = vec![line("kernel", node), line("engine", behind)];
        LossStatus {
            records,
            lost_records: node,
            lost_behind: behind,
            worst: worst.into_iter().filter(|line| line.count > 0).collect(),
        }
    }

    /// Scenario: nothing is wrong; single faults of each kind and size.
    /// Guarantees: the answer follows from how much is not seen; the heaviest reason stands first.
    #[test]
    fn trust_follows_from_what_is_seen() {
        let quiet = lost(1_000, 0, 0);
        let one = |reason: &str, trust, (answer, reasons): (Trust, Vec<String>)| {
            assert_eq!((answer, reasons.len()), (trust, 1), "{reasons:?}");
            assert!(reasons[0].starts_with(reason), "{reasons:?}");
        };
        assert_eq!(judge(&[cluster("c1", 2, 0)], &quiet), (Trust::Yes, Vec::new()));
        one("no node was heard", Trust::No, judge(&[], &quiet));
        one("1 of 4 nodes is silent: n1 (8 min)", Trust::Partly, judge(&[cluster("c1", 3, 1)], &quiet));
        one(
            "3 of 4 nodes are silent: n1 (8 min), and 2 more",
            Trust::No,
            judge(&[cluster("c1", 1, 3)], &quiet),
        );
        let dark = ClusterStatus { last_seen: before(9_000), ..cluster("c2", 0, 0) };
        one(
            "no node is heard of 1 of 2 clusters: c2 (2 h)",
            Trust::Partly,
            judge(&[cluster("c1", 9, 0), dark.clone()], &quiet),
        );
        one("no node is heard of 1 of 1 cluster: c2", Trust::No, judge(&[dark], &quiet));
        // Nodes of a cluster of which nothing is heard are not told once more, nor named beside others.
        let gone = ClusterStatus { nodes: NodeCounts { live: 0, silent: 3 }, ..cluster("c1", 0, 0) };
        one("no node is heard of 1 of 1 cluster: c1", Trust::No, judge(std::slice::from_ref(&gone), &quiet));
        let (_, reasons) = judge(&[cluster("c2", 9, 1), gone], &quiet);
        assert!(
            reasons.len() == 2 && reasons[1].starts_with("1 of 13 nodes is silent: not named here"),
            "{reasons:?}"
        );
        let blind = ClusterStatus { blind: 2, ..cluster("c1", 9, 0) };
        one("on 2 nodes some probes do not work: 2 in c1", Trust::Partly, judge(&[blind], &quiet));
        // One cluster's fresh events say nothing about another's.
        let late = ClusterStatus { last_event: Some(before(90)), ..cluster("c2", 9, 0) };
        let never = ClusterStatus { last_event: None, ..cluster("c3", 9, 0) };
        one(
            "nodes ship, but the newest stored event is old: c2 (90 s), c3 (none in a day)",
            Trust::No,
            judge(&[cluster("c1", 9, 0), late, never], &quiet),
        );
        let well = [cluster("c1", 2, 0)];
        one("lost 10 of 1000 records", Trust::Partly, judge(&well, &lost(1_000, 10, 0)));
        one("lost 11 of 1000 records", Trust::No, judge(&well, &lost(1_000, 11, 0)));
        one(
            "lost 40 behind the nodes in 5 minutes, most of them: n1 40 payload at engine",
            Trust::Partly,
            judge(&well, &lost(9, 0, 40)),
        );
        let (trust, reasons) = judge(&[cluster("c1", 3, 1)], &lost(1_000, 11, 0));
        assert!(trust == Trust::No && reasons[0].starts_with("lost 11") && reasons.len() == 2, "{reasons:?}");
    }
}
