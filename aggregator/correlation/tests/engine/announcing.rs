//! Findings over time: one id, few revisions, an end.

use tapio_correlation::{Announcer, announce::Owner};
use tapio_schemas::{
    finding::{Finding, FindingState, Resolution, Unobserved},
    ids::{ClusterId, TenantId},
    intent::LinkKind,
    verdict::{Outcome, Role, Stance},
};

use crate::{
    oom::{PodNames, pods},
    story::{Story, at, classic, rules, trace},
};

struct Desk {
    announcer: Announcer,
    tenant: TenantId,
    cluster: ClusterId,
}

impl Desk {
    fn new() -> Self {
        Self {
            announcer: Announcer::default(),
            tenant: "default".parse().unwrap(),
            cluster: "demo".parse().unwrap(),
        }
    }

    fn fold(&mut self, story: &Story, now: i64) -> Vec<Finding> {
        let mut engine = story.engine(now);
        let verdicts = engine.verdicts();
        let pods = pods();
        let names = PodNames { engine: &engine, pods: &pods };
        self.announcer.follow(&engine);
        let owner = Owner { tenant: &self.tenant, cluster: &self.cluster };
        self.announcer.fold(&verdicts, &names, at(now), owner, &rules())
    }
}

/// Scenario: the symptom goes on, counts grow at every look, then it stops.
/// Guarantees: the id stays, growing counts are told at most every two seconds, and the end is told once.
#[test]
fn a_finding_keeps_its_id_and_ends() {
    let mut desk = Desk::new();
    let mut story = classic();
    let first = desk.fold(&story, 500);
    assert_eq!((first.len(), first[0].revision, first[0].state), (1, 1, FindingState::Open));
    assert_eq!(desk.fold(&story, 600), []);
    let mut told = Vec::new();
    for step in 1..=20 {
        let now = 500 + step * 500;
        story = story.refused(now - 10, "shop", 81, 10).heard(now - 500, now);
        told.extend(desk.fold(&story, now));
    }
    assert_eq!(told.len(), 5, "ten seconds, every two seconds");
    assert!(
        told.iter().all(|finding| finding.id == first[0].id && finding.incident_id == first[0].incident_id)
    );
    story = story.heard(10_500, 60_000);
    let mut ended = desk.fold(&story, 60_000);
    ended.retain(|finding| finding.state == FindingState::Resolved);
    assert_eq!(ended.len(), 1);
    assert_eq!(desk.fold(&story, 61_000), []);
}

/// Scenario: two containers are killed; each fails its own caller.
/// Guarantees: two findings in two incidents.
#[test]
fn two_faults_are_two_incidents() {
    let story = classic()
        .listens(-60_000, "search", 90)
        .listens(-60_000, "index", 91)
        .killed(5, "index")
        .exits(6, "index")
        .unanswered(7, "search", 91, trace(9), LinkKind::Observed)
        .fails(8, "search", 30, Some(trace(9)))
        .heard(500, 3_000);
    let findings = Desk::new().fold(&story, 3_000);
    assert_eq!(findings.len(), 2);
    assert_ne!(findings[0].incident_id, findings[1].incident_id);
    assert_ne!(findings[0].id, findings[1].id);
}

/// Scenario: evidence that came late takes the ground from an announced finding.
/// Guarantees: the same finding is revised and says so; it is not silently kept.
#[test]
fn later_evidence_revises() {
    let mut desk = Desk::new();
    let story = Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "shop", 81)
        .heard(-120_000, -10)
        .killed(0, "payment")
        .exits(1, "payment")
        .refused(2, "shop", 81, 10)
        .fails(10, "shop", 20, None)
        .heard(-10, 3_000);
    let first = desk.fold(&story, 3_000);
    let late = (1..20).fold(story, |story, second| story.fails(-1_000 * second, "shop", 20, None));
    let revised = desk.fold(&late, 3_100);
    assert_eq!((revised[0].id.clone(), revised[0].revision), (first[0].id.clone(), 2));
    assert_eq!(revised[0].verdict.outcome, Outcome::Hypothesis);
    assert!(
        revised[0].lines.iter().any(|line| {
            line.text.starts_with("against it: shop")
                && (line.step.as_str(), line.role, line.stance)
                    == ("symptom", Role::Symptom, Stance::Contradicting)
        }),
        "{:#?}",
        revised[0].lines
    );
}

/// Scenario: the victim is not restarted, and shop answers HTTP 500 every second, longer than the rule looks and longer
/// than the engine derives a verdict; then it stops. In the middle one record is lost that may have been such an answer.
/// Guarantees: the finding stays open, what it counts keeps up with what happens by a few revisions, the rarer the longer
/// it lasts, and it is resolved after the end. From the loss on the count says that it may be more.
#[test]
fn a_symptom_that_goes_on_keeps_its_finding_open() {
    let mut desk = Desk::new();
    let mut story = classic();
    desk.fold(&story, 500);
    let mut revisions = 0;
    for second in (2..=900).step_by(2) {
        let now = second * 1_000;
        let lost = u64::from(second == 500);
        story = story.fails(now - 500, "shop", 1, None).heard_with(now - 2_000, now, "payload", lost);
        // Looked at now and then: a test of the fold, not of its speed.
        if second % 10 == 0 {
            let told = desk.fold(&story, now);
            assert!(told.iter().all(|finding| finding.state == FindingState::Open), "at {second} s");
            revisions += if second > 600 { told.len() } else { 0 };
            let finding = desk.announcer.findings().next().unwrap();
            let symptom = finding.verdict.first(Role::Symptom).unwrap();
            let told = symptom.count + finding.continuation.count;
            let happened = 398 + u64::try_from(second / 2).unwrap();
            assert!(told <= happened && told + 25 > happened, "at {second} s: {told} of {happened}");
            assert!(second >= 500 || !finding.continuation.at_least, "at {second} s");
        }
    }
    let open: Vec<_> = desk.announcer.findings().map(|finding| finding.state).collect();
    assert_eq!(open, [FindingState::Open]);
    assert!((8..=15).contains(&revisions), "{revisions}");
    let ended = desk.fold(&story.heard(900_000, 960_000), 960_000);
    let of = |finding: &Finding| {
        let symptom = finding.verdict.first(Role::Symptom).unwrap();
        (finding.state, finding.resolution, symptom.count + finding.continuation.count)
    };
    assert_eq!(
        ended.iter().map(of).collect::<Vec<_>>(),
        [(FindingState::Resolved, Resolution::SymptomsStopped, 398 + 450)]
    );
    assert!(ended[0].continuation.at_least);
}

/// Scenario: a job calls a service that is killed and never comes back; the job's calls are refused for five minutes,
/// then no more. It serves nothing itself: its broken calls are the symptom.
/// Guarantees: the finding stays open while calls are refused, and is resolved after the end.
#[test]
fn broken_calls_that_go_on_keep_their_finding_open() {
    let mut desk = Desk::new();
    let mut story = Story::new()
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "job", 81)
        .heard(-120_000, -10)
        .grows(-5_000, "payment")
        .killed(0, "payment")
        .exits(1, "payment")
        .refused(2, "job", 81, 5)
        .heard(-10, 3_000);
    assert_eq!(desk.fold(&story, 3_000).len(), 1);
    for second in (4..=300).step_by(2) {
        let now = second * 1_000;
        story = story.refused(now - 500, "job", 81, 1).heard(now - 2_000, now);
        if second % 20 == 0 {
            let told = desk.fold(&story, now);
            assert!(told.iter().all(|finding| finding.state == FindingState::Open), "at {second} s");
        }
    }
    let ended = desk.fold(&story.heard(300_000, 400_000), 400_000);
    assert_eq!(ended.iter().map(|finding| finding.state).collect::<Vec<_>>(), [FindingState::Resolved]);
}

/// The states that were told, one a line: revision, state, reason, the nodes that are not observed and since when.
fn told(findings: &[Finding]) -> Vec<(u32, FindingState, Resolution, Vec<Unobserved>)> {
    let of = |it: &Finding| (it.revision, it.state, it.resolution, it.unobserved.clone());
    findings.iter().map(of).collect()
}

fn silent_since(millis: i64) -> Vec<Unobserved> {
    vec![Unobserved { node: "node-a".to_owned(), since: at(millis) }]
}

/// Scenario: the node that shows the symptom falls silent, for a day and longer; another node is heard all the time.
/// Guarantees: the finding is not resolved: it stays open and says once since when nobody sees it, is told anew now and
/// then, and is closed after a day, as unobserved.
#[test]
fn silence_is_no_recovery() {
    let mut desk = Desk::new();
    let mut story = classic().on("node-b").heard(-30_000, 500);
    assert_eq!(desk.fold(&story, 500).len(), 1);
    story = story.heard(500, 29_000);
    assert_eq!(desk.fold(&story, 29_000), []);
    story = story.heard(29_000, 60_000);
    let open = FindingState::Open;
    assert_eq!(told(&desk.fold(&story, 60_000)), [(2, open, Resolution::Unspecified, silent_since(500))]);
    story = story.heard(60_000, 600_000);
    assert_eq!(desk.fold(&story, 600_000), []);
    // The engine knows nothing of the source any more: what was told of it stays.
    story = story.heard(600_000, 86_000_000);
    let reminded = desk.fold(&story, 86_000_000);
    assert_eq!(told(&reminded), [(3, open, Resolution::Unspecified, silent_since(500))]);
    story = story.heard(86_000_000, 86_500_000);
    let closed = desk.fold(&story, 86_500_000);
    let resolved = FindingState::Resolved;
    assert_eq!(told(&closed), [(4, resolved, Resolution::Unobserved, silent_since(500))]);
    assert_eq!(desk.fold(&story, 87_000_000), []);
    // It was not over: its node comes back, and requests still fail.
    let back = story
        .on("node-a")
        .heard(86_900_000, 87_000_000)
        .fails(87_000_000, "shop", 1, None)
        .heard(87_000_000, 87_100_000);
    let again = desk.fold(&back, 87_100_000);
    assert_eq!(told(&again), [(5, open, Resolution::Unspecified, vec![])]);
}

/// Scenario: the node that shows the symptom is silent for a minute and comes back, with a gap in what it tells; no
/// request fails any more.
/// Guarantees: the finding says that it is not observed, then that it is again, and is resolved only after the node was
/// heard without gap for as long as recovery takes.
#[test]
fn a_gap_delays_recovery() {
    let mut desk = Desk::new();
    let story = classic().on("node-b").heard(-30_000, 70_000).on("node-a");
    desk.fold(&story, 500);
    let open = |revision, silent| (revision, FindingState::Open, Resolution::Unspecified, silent);
    assert_eq!(told(&desk.fold(&story, 60_000)), [open(2, silent_since(500))]);
    let story = story.unheard().heard(65_000, 70_000);
    assert_eq!(told(&desk.fold(&story, 70_000)), [open(3, vec![])]);
    let story = story.heard(70_000, 94_000).on("node-b").heard(70_000, 94_000).on("node-a");
    assert_eq!(desk.fold(&story, 94_000), []);
    let story = story.heard(94_000, 96_000).on("node-b").heard(94_000, 96_000);
    let resolved = (4, FindingState::Resolved, Resolution::SymptomsStopped, vec![]);
    assert_eq!(told(&desk.fold(&story, 96_000)), [resolved]);
}

/// Scenario: no request fails any more, while as many records of the probe that saw them fail are lost as would show it, in
/// frames that follow each other; then nothing is lost. And the same with few losses.
/// Guarantees: what is lost is no recovery, and is told; the finding is resolved once enough was heard behind it. Few
/// losses could not hide it.
#[test]
fn what_is_lost_is_no_recovery() {
    let mut desk = Desk::new();
    let story = classic();
    desk.fold(&story, 500);
    let lossy = story.heard_with(500, 31_000, "payload", 1_000).heard(31_000, 40_000);
    let unobserved = desk.fold(&lossy, 40_000);
    assert_eq!(
        unobserved.iter().map(|it| (it.state, it.unobserved.len())).collect::<Vec<_>>(),
        [(FindingState::Open, 1)]
    );
    let again = lossy.heard(40_000, 62_000);
    let resolved = (3, FindingState::Resolved, Resolution::SymptomsStopped, vec![]);
    assert_eq!(told(&desk.fold(&again, 62_000)), [resolved]);

    let mut desk = Desk::new();
    let story = classic();
    desk.fold(&story, 500);
    let few = story.heard_with(500, 31_000, "payload", 3).heard(31_000, 40_000);
    let resolved = (2, FindingState::Resolved, Resolution::SymptomsStopped, vec![]);
    assert_eq!(told(&desk.fold(&few, 40_000)), [resolved]);
}

/// Scenario: the node goes on, but the probe that saw the symptom does not work any more.
/// Guarantees: that nothing is seen is no recovery.
#[test]
fn a_blind_node_is_no_recovery() {
    let mut desk = Desk::new();
    let story = classic();
    desk.fold(&story, 500);
    let story = story.without_probe("payload: refused").heard(500, 60_000);
    let blind = desk.fold(&story, 60_000);
    assert_eq!(
        blind.iter().map(|it| (it.state, it.unobserved.len())).collect::<Vec<_>>(),
        [(FindingState::Open, 1)]
    );
}

/// Scenario: findings are taken over after a restart that took minutes; the node's frames come a little later.
/// Guarantees: for as long as a recovery takes nothing is told of silence.
#[test]
fn a_restart_grants_time_to_be_heard() {
    let story = classic();
    let mut desk = Desk::new();
    let first = desk.fold(&story, 500);
    let mut desk = Desk::new();
    desk.announcer.adopt(first);
    assert_eq!(desk.fold(&story, 200_000), []);
    assert_eq!(desk.fold(&story, 220_000), []);
    let told = told(&desk.fold(&story, 240_000));
    assert_eq!(told.iter().map(|told| told.3.len()).collect::<Vec<_>>(), [1]);
}

/// Scenario: a finding of a service that had a few failures before, too few to be their beginning.
/// Guarantees: each line says its step, its place in the chain and which way it points.
#[test]
fn each_line_says_which_way_it_points() {
    let story = (1..20).fold(classic(), |story, second| story.fails(-1_000 * second, "shop", 20, None));
    let findings = Desk::new().fold(&story, 500);
    let lines: Vec<_> =
        findings[0].lines.iter().map(|line| (line.step.as_str(), line.role, line.stance)).collect();
    assert_eq!(
        lines,
        [
            ("growth", Role::Cause, Stance::Supporting),
            ("kill", Role::Fault, Stance::Supporting),
            ("broken-calls", Role::Effect, Stance::Supporting),
            ("symptom", Role::Symptom, Stance::Supporting),
        ]
    );
}

/// Scenario: payment is killed every thirty seconds for half an hour, and each time a request of shop's fails with it.
/// Guarantees: the engine cuts the fault into parts of at most ten minutes; the finding keeps its id over all of them.
#[test]
fn a_fault_without_end_is_one_finding_of_bounded_parts() {
    let mut desk = Desk::new();
    let mut story = classic();
    let mut ids = std::collections::BTreeSet::new();
    for round in 1..60_i64 {
        let now = round * 30_000;
        let of = trace(u8::try_from(round).unwrap());
        story = story
            .killed(now, "payment")
            .exits(now + 1, "payment")
            .reset(now + 2, "shop", 81)
            .unanswered(now + 2, "shop", 81, of, LinkKind::Observed)
            .fails(now + 3, "shop", 1, Some(of))
            .heard(now - 29_500, now + 500);
        ids.extend(desk.fold(&story, now + 500).into_iter().map(|finding| finding.id));
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let parts = story.verdicts(1_770_500);
    assert!(parts.len() > 1);
    for part in parts {
        let fault = part.first(Role::Fault).unwrap();
        assert!(fault.last.latest.since(fault.first.earliest).0 <= 600_000_000 && fault.event_count <= 21);
    }
}
