//! What must not be concluded, and what must be said when something is missing.

use tapio_schemas::{
    intent::LinkKind,
    verdict::{Outcome, Role, Stance},
};

use crate::story::{Story, at, classic, container, trace};

/// Scenario: shop answers HTTP 500, and nothing was killed.
/// Guarantees: no verdict at all.
#[test]
fn failures_without_a_kill_are_not_explained() {
    let story = Story::new().listens(-60_000, "shop", 80).fails(0, "shop", 50, None).heard(-60_000, 5_000);
    assert_eq!(story.verdicts(5_000), []);
}

/// Scenario: shop fails; at the same time a container is killed that nobody calls.
/// Guarantees: a hypothesis that lacks its symptom, never a finding.
#[test]
fn an_unrelated_kill_explains_nothing() {
    let story = Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "batch", 99)
        .killed(0, "batch")
        .exits(1, "batch")
        .fails(5, "shop", 50, None)
        .heard(-60_000, 5_000);
    let verdict = story.verdict(5_000);
    assert_eq!(verdict.outcome, Outcome::Hypothesis);
    assert_eq!(verdict.reason, "required evidence is missing: symptom");
}

/// Scenario: shop failed for twenty seconds already when payment was killed.
/// Guarantees: no finding; the earlier failures stand in the verdict as contradicting evidence.
#[test]
fn failures_that_began_before_are_not_explained() {
    let mut story = Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "shop", 81)
        .heard(-60_000, -30_000);
    for second in 1..20 {
        story = story.fails(-1_000 * second, "shop", 10, None);
    }
    let story = story
        .killed(0, "payment")
        .fails(100, "shop", 10, None)
        .fails(900, "shop", 10, None)
        .heard(-30_000, 3_000);
    let verdict = story.verdict(3_000);
    assert_eq!(verdict.outcome, Outcome::Hypothesis);
    assert_eq!(verdict.reason, "symptom began before the fault, which therefore does not explain it");
    let against: Vec<_> =
        verdict.evidence.iter().filter(|line| line.stance == Stance::Contradicting).collect();
    assert_eq!((against.len(), against[0].subject.clone(), against[0].count), (1, container("shop"), 190));
}

/// Scenario: a worker is killed that serves nothing and that nobody calls, while its sibling goes on serving.
/// Guarantees: no symptom, no finding.
#[test]
fn a_victim_that_serves_nothing_harms_nobody() {
    let story = Story::new()
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "shop", 81)
        .grows(-9_000, "worker")
        .killed(0, "worker")
        .exits(1, "worker")
        .heard(-60_000, 5_000);
    assert_eq!(story.verdict(5_000).outcome, Outcome::Hypothesis);
}

/// Scenario: two services are killed; each has a caller of its own that fails.
/// Guarantees: two findings with two causes and two symptoms.
#[test]
fn two_kills_with_their_own_symptoms_are_two_findings() {
    let story = classic()
        .listens(-60_000, "search", 90)
        .listens(-60_000, "index", 91)
        .grows(-9_000, "index")
        .killed(5, "index")
        .exits(6, "index")
        .reset(7, "search", 91)
        .unanswered(7, "search", 91, trace(9), LinkKind::Observed)
        .fails(8, "search", 30, Some(trace(9)))
        .heard(500, 1_000);
    let verdicts = story.verdicts(1_000);
    let found: Vec<_> = verdicts.iter().map(|verdict| (verdict.cause.clone(), verdict.outcome)).collect();
    assert_eq!(found, [(container("payment"), Outcome::Finding), (container("index"), Outcome::Finding)]);
}

fn two_backends() -> Story {
    Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .listens(-60_000, "stock", 83)
        .calls(-50_000, "shop", 81)
        .calls(-50_000, "shop", 83)
        .heard(-120_000, -30_000)
        .killed(0, "payment")
        .exits(1, "payment")
        .refused(2, "shop", 81, 10)
        .killed(0, "stock")
        .exits(1, "stock")
        .refused(2, "shop", 83, 10)
        .fails(10, "shop", 20, None)
        .heard(-30_000, 3_000)
}

/// Scenario: two services that shop calls are killed together, and nothing tells the failing requests apart.
/// Guarantees: both verdicts are undetermined and name both candidates.
#[test]
fn equal_candidates_are_undetermined() {
    let verdicts = two_backends().verdicts(3_000);
    assert_eq!(verdicts.len(), 2);
    for verdict in verdicts {
        assert_eq!(verdict.outcome, Outcome::Undetermined, "{}", verdict.reason);
        assert_eq!(verdict.candidates.len(), 2);
    }
}

/// Scenario: the same, but a failing request was seen to break at stock.
/// Guarantees: stock is the finding; payment stays undetermined and ranks second.
#[test]
fn a_request_seen_on_both_sides_decides() {
    let story = two_backends().unanswered(3, "shop", 83, trace(5), LinkKind::Observed).fails(
        4,
        "shop",
        1,
        Some(trace(5)),
    );
    let verdicts = story.verdicts(3_000);
    let of = |name| verdicts.iter().find(|verdict| verdict.cause == container(name)).unwrap();
    assert_eq!(of("stock").outcome, Outcome::Finding);
    assert_eq!(of("payment").outcome, Outcome::Undetermined);
    assert_eq!(of("payment").candidates[0].cause, container("stock"));
}

/// Scenario: the memory samples were lost in the kernel's ring.
/// Guarantees: a finding of five of six that says why the sixth is missing.
#[test]
fn lost_samples_are_said() {
    let mut story = classic();
    story.inputs.retain(|input| !matches!(input, tapio_schemas::observation::Input::Observation(it) if it.intent == "memory-growth"));
    let story = story.heard_with(500, 700, "memory", 3);
    let story = story.fails(600, "shop", 1, Some(trace(0x4b)));
    let verdict = story.verdict(700);
    assert_eq!(
        (verdict.outcome, verdict.evidence_present, verdict.evidence_expected),
        (Outcome::Finding, 5, 6)
    );
    assert_eq!(verdict.missing[0].why, "it may be among the records that were lost: 3 of memory (ring-full)");
    assert_eq!((verdict.losses.lost, verdict.losses.records), (3, 203));
}

/// Scenario: the node cannot sample memory.
/// Guarantees: the verdict names the probe and the node instead of claiming that nothing grew.
#[test]
fn a_missing_probe_is_named() {
    let mut story = classic();
    story.inputs.retain(|input| !matches!(input, tapio_schemas::observation::Input::Observation(it) if it.intent == "memory-growth"));
    let story = story.without_probe("memory: no memory controller").heard(500, 700);
    let verdict = story.verdict(700);
    assert_eq!((verdict.outcome, verdict.evidence_present), (Outcome::Finding, 5));
    assert_eq!(verdict.missing[0].why, "no probe that sees it works on node-a: memory");
    assert_eq!(verdict.missing_probes, ["memory"]);
}

/// Scenario: no request was seen on both sides, and many requests before the kill were lost.
/// Guarantees: undetermined: the lost records could have shown that shop failed before.
#[test]
fn losses_that_could_contradict_cap_the_verdict() {
    let base = |lost| {
        Story::new()
            .listens(-60_000, "shop", 80)
            .listens(-60_000, "payment", 81)
            .calls(-50_000, "shop", 81)
            .heard_with(-120_000, -10, "payload", lost)
            .killed(0, "payment")
            .exits(1, "payment")
            .refused(2, "shop", 81, 10)
            .fails(10, "shop", 20, None)
            .heard(-10, 3_000)
    };
    assert_eq!(base(0).verdict(3_000).outcome, Outcome::Finding);
    let capped = base(5_000).verdict(3_000);
    assert_eq!(capped.outcome, Outcome::Undetermined);
    assert_eq!(capped.reason, "5000 records were lost before the fault: the symptom may have begun earlier");
    // Two lost records cannot hide a beginning that would weigh against twenty failures.
    assert_eq!(base(1).verdict(3_000).outcome, Outcome::Finding);
}

/// Scenario: a frame before the kill never arrived, and no request was seen on both sides.
/// Guarantees: undetermined, and the source is named.
#[test]
fn a_gap_before_the_fault_caps_the_verdict() {
    let story = Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "shop", 81)
        .heard(-120_000, -20_000)
        .unheard()
        .killed(0, "payment")
        .exits(1, "payment")
        .refused(2, "shop", 81, 10)
        .fails(10, "shop", 20, None)
        .heard(-10_000, 3_000);
    let verdict = story.verdict(3_000);
    assert_eq!(verdict.outcome, Outcome::Undetermined, "{}", verdict.reason);
}

/// Scenario: the same failure, asked for before expected evidence had time to come, and after.
/// Guarantees: waiting is a hypothesis; one and a half seconds after the first symptom it is decided without it.
#[test]
fn expected_evidence_is_waited_for_but_not_for_long() {
    let story = |until| {
        Story::new()
            .listens(-60_000, "shop", 80)
            .listens(-60_000, "payment", 81)
            .calls(-50_000, "shop", 81)
            .heard(-120_000, -10)
            .killed(0, "payment")
            .exits(1, "payment")
            .refused(2, "shop", 81, 10)
            .fails(10, "shop", 20, None)
            .heard(-10, until)
    };
    let early = story(1_000).verdict(1_000);
    assert_eq!(
        (early.outcome, early.reason.as_str()),
        (Outcome::Hypothesis, "expected evidence may still come: same-trace")
    );
    assert_eq!(story(1_600).verdict(1_600).outcome, Outcome::Finding);
}

/// Scenario: a second node falls silent before the symptom.
/// Guarantees: it holds the watermark for the stated time only, then verdicts go on.
#[test]
fn a_silent_source_holds_the_watermark_only_for_a_while() {
    let mut story = classic();
    story = story.on("node-b");
    let sequence_before = story.clone();
    let story = sequence_before.heard(-120_000, -100);
    assert_eq!(story.engine(500).watermark(), at(-100));
    assert_eq!(story.verdicts(500)[0].outcome, Outcome::Hypothesis);
    let story = story.on("node-a").heard(500, 3_000);
    assert_eq!(story.engine(3_000).watermark(), at(3_000));
    assert_eq!(story.verdicts(3_000)[0].outcome, Outcome::Finding);
}

/// Scenario: another container took payment's address two seconds after its death; calls to it fail later.
/// Guarantees: those later calls are not held against the dead one.
#[test]
fn an_endpoint_belongs_to_who_took_it_last() {
    let story = classic().listens(2_000, "payment-2", 81).refused(5_000, "shop", 81, 1_000).heard(500, 6_000);
    let broken: u64 = story
        .verdict(6_000)
        .evidence
        .iter()
        .filter(|line| line.step == "broken-calls")
        .map(|line| line.count)
        .sum();
    assert_eq!(broken, 414);
}

/// Scenario: a program was started in payment five minutes before it was killed; others when the agent started.
/// Guarantees: the first is told as a change, the others are not.
#[test]
fn changes_before_the_fault_are_told() {
    let story = classic().executes(-119_500, "payment", "init").executes(-40_000, "payment", "reload");
    let verdict = story.verdict(500);
    let changes: Vec<_> = verdict.changes.iter().map(|change| change.what.as_str()).collect();
    assert_eq!(changes, ["reload was started"]);
    assert_eq!(verdict.observed_since, at(-120_000));
}

/// Scenario: the kernel kills one worker of a container that goes on serving; its caller has failures of its own.
/// Guarantees: no finding without a call to it that broke.
#[test]
fn a_kill_that_broke_no_call_explains_nothing() {
    let story = Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "shop", 81)
        .heard(-120_000, -10)
        .killed(0, "payment")
        .exits(1, "payment")
        .fails(10, "shop", 20, None)
        .heard(-10, 3_000);
    let verdict = story.verdict(3_000);
    assert_eq!(
        (verdict.outcome, verdict.reason.as_str(), verdict.evidence_present),
        (Outcome::Undetermined, "no broken call to it was seen", 3)
    );
}

/// Scenario: the same, and the call of a job, that has nothing to do with shop, broke.
/// Guarantees: the job is the symptom; shop's failures are not laid to it.
#[test]
fn a_broken_call_of_another_explains_only_that_other() {
    let story = Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "shop", 81)
        .heard(-120_000, -10)
        .killed(0, "payment")
        .exits(1, "payment")
        .reset(2, "job", 81)
        .fails(10, "shop", 20, None)
        .heard(-10, 3_000);
    let verdict = story.verdict(3_000);
    assert_eq!(verdict.outcome, Outcome::Finding, "{}", verdict.reason);
    assert_eq!(verdict.first(Role::Symptom).unwrap().subject, container("job"));
}

/// Scenario: shop called payment ten minutes ago, and not since.
/// Guarantees: it is no caller any more, and its failures are no symptom.
#[test]
fn who_called_long_ago_is_no_caller() {
    let story = Story::new()
        .listens(-600_000, "payment", 81)
        .calls(-600_000, "shop", 81)
        .heard(-700_000, -10)
        .killed(0, "payment")
        .exits(1, "payment")
        .fails(10, "shop", 20, None)
        .heard(-10, 3_000);
    assert_eq!(story.verdict(3_000).reason, "required evidence is missing: symptom");
}

fn three_tiers() -> Story {
    Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .listens(-60_000, "ledger", 82)
        .calls(-50_000, "shop", 81)
        .calls(-50_000, "payment", 82)
        .heard(-120_000, -10)
        .killed(0, "ledger")
        .exits(1, "ledger")
        .refused(2, "payment", 82, 10)
        .fails(5, "payment", 20, None)
}

/// Scenario: payment surely fails by the kill of ledger. Of shop, further up, it is not sure whether it calls payment.
/// Guarantees: what shop's failure adds does not take the finding away; the surer symptom is shown.
#[test]
fn an_unsure_symptom_takes_nothing_from_a_sure_one() {
    let without = three_tiers().listens(-59_000, "other", 81).listens(-40_000, "payment", 81);
    let with = without.clone().fails(10, "shop", 1, None);
    for story in [without, with] {
        let verdict = story.heard(-10, 3_000).verdict(3_000);
        assert_eq!(verdict.outcome, Outcome::Finding, "{}", verdict.reason);
        assert_eq!(verdict.first(Role::Symptom).unwrap().subject, container("payment"));
    }
}

/// Scenario: shop, further up than payment, runs on a node whose ledger has a gap before the kill.
/// Guarantees: the finding stands on payment, and shows payment; with the whole ledger it shows shop.
#[test]
fn a_gap_at_one_symptom_leaves_the_other() {
    let story = |has_gap: bool| {
        let story = three_tiers().heard(-10, 3_000).on("node-b").heard(-120_000, -20_000);
        let story = if has_gap { story.unheard() } else { story.heard(-20_000, -10_000) };
        story.fails(10, "shop", 20, None).heard(-10_000, 3_000)
    };
    for (has_gap, symptom) in [(false, "shop"), (true, "payment")] {
        let verdict = story(has_gap).verdict(3_000);
        assert_eq!(verdict.outcome, Outcome::Finding, "{}", verdict.reason);
        assert_eq!(verdict.first(Role::Symptom).unwrap().subject, container(symptom));
    }
}

/// Shop, payment on node-a and stock on node-b; shop calls both, and payment is killed.
fn with_stock_elsewhere(edit: impl Fn(Story) -> Story) -> Story {
    let story = Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .calls(-50_000, "shop", 81)
        .calls(-50_000, "shop", 83)
        .heard(-120_000, -10)
        .killed(0, "payment")
        .exits(1, "payment")
        .refused(2, "shop", 81, 10)
        .fails(10, "shop", 20, None)
        .heard(-10, 3_000)
        .on("node-b")
        .listens(-60_000, "stock", 83);
    edit(story)
}

/// Scenario: a second service that shop calls lives on a node that cannot see kills, or whose frames are not all there.
/// Guarantees: undetermined, with the node named: a kill there would explain the symptom as well.
#[test]
fn a_rival_that_could_not_be_seen_caps_the_verdict() {
    let whole = with_stock_elsewhere(|story| story.heard(-120_000, -10).heard(-10, 3_000)).verdict(3_000);
    assert_eq!(whole.outcome, Outcome::Finding, "{}", whole.reason);
    let blind = with_stock_elsewhere(|story| {
        story.without_probe("oom_victim: refused").heard(-120_000, -10).heard(-10, 3_000)
    });
    let blind = blind.verdict(3_000);
    assert_eq!(
        (blind.outcome, blind.reason.as_str()),
        (
            Outcome::Undetermined,
            "another fault may explain it: oom_victim does not work on node-b, which it calls too"
        )
    );
    let gap = with_stock_elsewhere(|story| story.heard(-120_000, -10).unheard().heard(2_000, 3_000));
    let gap = gap.verdict(3_000);
    assert_eq!(
        (gap.outcome, gap.reason.as_str()),
        (
            Outcome::Undetermined,
            "another fault may explain it: not everything was heard from node-b, which it calls too"
        )
    );
    let lost = with_stock_elsewhere(|story| {
        story.heard_with(-120_000, -10, "oom_victim", 1).heard_with(-10, 3_000, "exec", 50)
    });
    assert_eq!(lost.verdict(3_000).outcome, Outcome::Undetermined);
    let others = with_stock_elsewhere(|story| story.heard_with(-120_000, -10, "exec", 1).heard(-10, 3_000));
    assert_eq!(others.verdict(3_000).outcome, Outcome::Finding, "other probes' losses hide no kill");
}

/// Scenario: the agent began to observe a second before the kill; shop may have failed for an hour.
/// Guarantees: undetermined; with an agent that watched for two seconds, a finding.
#[test]
fn what_nobody_watched_did_not_go_well() {
    let story = |began: i64| {
        Story::new()
            .listens(-900, "shop", 80)
            .listens(-900, "payment", 81)
            .calls(-800, "shop", 81)
            .heard(began, -10)
            .killed(0, "payment")
            .exits(1, "payment")
            .refused(2, "shop", 81, 10)
            .fails(10, "shop", 20, None)
            .heard(-10, 3_000)
    };
    let verdict = story(-1_000).verdict(3_000);
    assert_eq!(
        (verdict.outcome, verdict.reason.as_str()),
        (
            Outcome::Undetermined,
            "node-a was watched for too short before the fault: the symptom may have begun earlier"
        )
    );
    assert_eq!(story(-2_100).verdict(3_000).outcome, Outcome::Finding);
}

/// Scenario: one node's clock runs an hour ahead.
/// Guarantees: it neither moves the watermark nor makes the engine forget what the others told.
#[test]
fn a_fast_clock_moves_no_watermark() {
    let story = classic().on("node-b").heard(3_590_000, 3_600_000);
    let mut engine = story.engine(500);
    assert_eq!(engine.watermark(), at(500));
    let mut verdicts = engine.verdicts();
    verdicts.retain(|verdict| verdict.rule == "container-oom");
    assert_eq!(verdicts[0].outcome, Outcome::Finding, "{}", verdicts[0].reason);
    // Within what silence is granted it takes part, but nothing is believed to be heard before it happened.
    assert_eq!(classic().on("node-b").heard(-120_000, 2_000).engine(300).watermark(), at(300));
}

/// Scenario: what the pod no longer listens on is a port that nobody calls, while calls to another port of it break.
/// Guarantees: those calls are no effect of that end, and there is no finding; with the port that is called there is.
#[test]
fn an_end_that_nobody_calls_explains_nothing() {
    let ended = |endpoint: &str| {
        let mut story = crate::missing_file::classic();
        for input in &mut story.inputs {
            if let tapio_schemas::observation::Input::Observation(it) = input
                && it.intent == "listening-ended"
            {
                it.local = Some(tapio_schemas::entity::EntityKey::new(
                    tapio_schemas::entity::EntityKind::Endpoint,
                    endpoint,
                ));
            }
        }
        story.verdicts_of("missing-file", 4_000).remove(0).outcome
    };
    assert_eq!(ended("10.0.0.1:81"), Outcome::Finding);
    assert_eq!(ended("node-a|0.0.0.0:81"), Outcome::Finding);
    assert!(ended("10.0.0.1:9100") < Outcome::Finding);
}
