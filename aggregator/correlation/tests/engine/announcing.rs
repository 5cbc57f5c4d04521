//! Findings over time: one id, few revisions, an end.

use tapio_correlation::{Announcer, announce::Owner};
use tapio_schemas::{
    finding::{Finding, FindingState},
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
/// than the engine derives a verdict; then it stops.
/// Guarantees: the finding stays open without revision after revision, and is resolved after the end.
#[test]
fn a_symptom_that_goes_on_keeps_its_finding_open() {
    let mut desk = Desk::new();
    let mut story = classic();
    desk.fold(&story, 500);
    let mut revisions = 0;
    for second in (2..=900).step_by(2) {
        let now = second * 1_000;
        story = story.fails(now - 500, "shop", 1, None).heard(now - 2_000, now);
        // Looked at now and then: a test of the fold, not of its speed.
        if second % 20 == 0 {
            let told = desk.fold(&story, now);
            assert!(told.iter().all(|finding| finding.state == FindingState::Open), "at {second} s");
            revisions += if second > 80 { told.len() } else { 0 };
        }
    }
    let open: Vec<_> = desk.announcer.findings().map(|finding| finding.state).collect();
    assert_eq!((open, revisions), (vec![FindingState::Open], 0));
    let ended = desk.fold(&story.heard(900_000, 960_000), 960_000);
    assert_eq!(ended.iter().map(|finding| finding.state).collect::<Vec<_>>(), [FindingState::Resolved]);
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
