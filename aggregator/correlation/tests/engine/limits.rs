//! What the engine gives up, or cannot see, and what its verdicts then say.

use std::sync::Arc;

use tapio_correlation::{Engine, Limits, RuleSet};
use tapio_schemas::{
    ledger::{Fate, Stage},
    observation::Input,
    verdict::{Outcome, Verdict},
};

use crate::story::{Story, at, classic, rules};

fn verdicts(rules: Arc<RuleSet>, limits: Limits, inputs: &[Input], now: i64) -> (Engine, Vec<Verdict>) {
    let mut engine = Engine::new(rules, limits);
    inputs.iter().for_each(|input| engine.insert(input.clone()));
    engine.tick(at(now));
    let mut verdicts = engine.verdicts();
    verdicts.retain(|verdict| verdict.rule == "container-oom");
    (engine, verdicts)
}

/// Scenario: more relations than the engine may keep.
/// Guarantees: they are counted, and a verdict around them commits itself no further.
#[test]
fn evicted_relations_cap_verdicts() {
    let story = (0..40).fold(classic(), |story, port| story.calls(-1, "shop", 1_000 + port));
    let limits = Limits { relations_max: 32, ..Limits::default() };
    let (engine, verdicts) = verdicts(rules(), limits, &story.inputs, 500);
    assert!(engine.stats().evicted_relations > 0);
    assert!(verdicts.iter().all(|verdict| verdict.outcome < Outcome::Finding), "{verdicts:#?}");
}

/// Scenario: ten thousand frames of one source without a loss, in order and backwards; then the same with every second
/// frame missing, with room for a thousand.
/// Guarantees: what follows without a gap costs a row per sixteen frames, in whatever order it comes, and the records
/// add up; over budget the oldest go, are counted, and a verdict around them commits itself no further.
#[test]
fn frames_without_loss_cost_little() {
    let story = (0..10_000).fold(classic(), |story, number| story.heard(500 + number, 501 + number));
    let limits = Limits { frames_max: 1_000, ..Limits::default() };
    let mut backwards = story.inputs.clone();
    backwards.reverse();
    let now = 10_500;
    let (engine, forwards) = verdicts(rules(), limits, &story.inputs, now);
    assert_eq!((engine.stats().frames, engine.stats().evicted_frames), (10_002 / 16 + 2, 0));
    assert_eq!(forwards[0].outcome, Outcome::Finding, "{}", forwards[0].reason);
    assert_eq!(forwards[0].losses.unknown_sources, Vec::<String>::new());

    let mut halves = (0..2_000).fold(Story::new(), |story, number| {
        let from = -70_000 + number * 35;
        story.heard(from, from + 35).unheard()
    });
    halves.inputs.extend(classic().inputs.into_iter().filter(|input| !matches!(input, Input::Progress(_))));
    let (engine, capped) = verdicts(rules(), limits, &halves.heard(0, 500).inputs, 500);
    assert!(engine.stats().evicted_frames > 0);
    assert_eq!(capped[0].reason, "frames of its window were evicted over budget");
    assert_eq!(verdicts(rules(), limits, &backwards, now).1, forwards);
}

/// Scenario: two faults at the same time, and room for one.
/// Guarantees: the other is counted, and what could not be compared with it is undetermined.
#[test]
fn a_fault_over_budget_caps_the_others() {
    let story = classic().killed(-5, "worker");
    let limits = Limits { faults_max: 1, ..Limits::default() };
    let (engine, capped) = verdicts(rules(), limits, &story.inputs, 500);
    assert_eq!(engine.stats().faults_skipped, 2, "one for each of the two rules");
    let skipped: Vec<_> = engine.skipped_faults().filter(|(_rule, count)| *count > 0).collect();
    assert_eq!(skipped, [("container-oom", 1), ("container-oom-node", 1)]);
    assert_eq!(
        (capped.len(), capped[0].outcome, capped[0].reason.as_str()),
        (1, Outcome::Undetermined, "faults of its window were over budget and not compared with it")
    );
    assert_eq!(verdicts(rules(), Limits::default(), &story.inputs, 500).1[1].outcome, Outcome::Finding);
}

/// Scenario: a rollout ends three hundred containers, of which one pod's cannot start any more, in an engine with room for
/// 256 faults; then three hundred whose pods' processes failed.
/// Guarantees: those that came back are counted and cap nothing; those that may be rivals do.
#[test]
fn a_rollout_leaves_room_for_the_one_that_fails() {
    let rollout = |fails: bool| {
        (0..300_u64).fold(crate::missing_file::classic(), |story, number| {
            let name = format!("worker-{number}");
            let story = story.runs_in(-1_000, &name, &name).stops_listening(-100, &name);
            if fails { story.exits_failing(10, &name, number) } else { story }
        })
    };
    let found = |inputs: &[Input]| {
        let mut engine = Engine::new(rules(), Limits::default());
        inputs.iter().for_each(|input| engine.insert(input.clone()));
        engine.tick(at(4_000));
        let is_own = |verdict: &Verdict| verdict.rule == "missing-file" && verdict.cause.id == "pod-payment";
        let outcome = engine.verdicts().into_iter().find(is_own).map(|verdict| verdict.outcome);
        (outcome, engine.stats().faults_skipped)
    };
    // Of each of the two rules whose fault is a container's end.
    assert_eq!(found(&rollout(false).inputs), (Some(Outcome::Finding), 2 * 45));
    assert_eq!(found(&rollout(true).inputs), (Some(Outcome::Undetermined), 2 * 45));
}

/// Scenario: the same rollout of three hundred that fail, far from shop, while payment is killed for memory.
/// Guarantees: the rule about files has no room for all of its faults, and that keeps no other rule from its finding.
#[test]
fn the_storm_of_one_rule_is_not_anothers() {
    let story = (0..300_u64).fold(classic(), |story, number| {
        let name = format!("worker-{number}");
        let story = story.runs_in(-1_000, &name, &name).stops_listening(-100, &name);
        story.exits_failing(10, &name, number)
    });
    let (engine, found) = verdicts(rules(), Limits::default(), &story.inputs, 500);
    assert!(engine.stats().faults_skipped > 0);
    assert_eq!((found[0].outcome, found[0].reason.as_str()), (Outcome::Finding, ""));
}

/// Scenario: around a missing file, five thousand files vanish from a pod far away; then from a process of the pod itself;
/// then one looks in vain for five thousand that never were, which no step of a rule looks for. There is room for two hundred observations.
/// Guarantees: the noise evicts its own, in any order the same, and caps nobody else; in the pod itself it keeps the
/// rules that look for files from a finding, and only them; what nobody looks for is not kept.
#[test]
fn noise_evicts_its_own() {
    let limits = Limits { observations_max: 200, ..Limits::default() };
    let run = |inputs: &mut dyn Iterator<Item = &Input>, rule: &str| {
        let mut engine = Engine::new(rules(), limits);
        inputs.for_each(|input| engine.insert(input.clone()));
        engine.tick(at(4_000));
        let mut verdicts = engine.verdicts();
        assert_eq!(engine.verdicts_from_scratch(), verdicts);
        verdicts.retain(|verdict| verdict.rule == rule);
        (engine.stats(), verdicts)
    };
    let noise = |mut story: Story, who: &str| {
        for number in 0..5_000 {
            story = story.misses_gone(-1_000 + number / 2, who, 77, &format!("/tmp/{number}"));
        }
        story
    };
    let both = |story: &Story, rule: &str| {
        let (stats, verdicts) = run(&mut story.inputs.iter(), rule);
        assert_eq!(run(&mut story.inputs.iter().rev(), rule).1, verdicts);
        assert!(stats.observations <= 200);
        (stats, verdicts)
    };
    let far = noise(crate::missing_file::classic(), "elsewhere");
    let (stats, found) = both(&far, "missing-file");
    assert!(stats.evicted_observations > 4_700);
    assert_eq!((found[0].outcome, found[0].reason.as_str()), (Outcome::Finding, ""));

    let own = noise(crate::missing_file::classic(), "payment-1");
    assert_ne!(both(&own, "missing-file").1[0].outcome, Outcome::Finding);
    let killed = noise(classic(), "payment");
    assert_eq!(both(&killed, "container-oom").1[0].outcome, Outcome::Finding);

    let optional = (0..5_000).fold(Story::new(), |story, number| {
        story.misses(-1_000 + number / 2, "payment-1", 77, &format!("/tmp/{number}"))
    });
    let (stats, _verdicts) = run(&mut optional.inputs.iter(), "missing-file");
    assert_eq!((stats.observations, stats.evicted_observations, stats.not_needed), (0, 0, 5_000));
}

const CONTRADICTED: &str = "
  - id: restart
    role: cause
    presence: contradicts
    observe: [process-executed]
    same-container-as: kill
    before: kill within 10s
    probes: [exec]
    line: \"{restart.name} was restarted\"
";

/// Scenario: a rule with a step that speaks against it, on a node whose probe for that step does not work, or lost.
/// Guarantees: undetermined, and the verdict says what could not be seen; with the probe a finding, with the step none.
#[test]
fn what_could_have_contradicted_caps_the_verdict() {
    let text = format!("{}{CONTRADICTED}", include_str!("../../rules/container-oom.yaml"));
    let rules = tapio_compiler::compile_texts([("oom.yaml", text.as_str())]);
    let rules = Arc::new(rules.unwrap_or_else(|faults| panic!("{faults}")));
    let outcome = |story: &Story| {
        let (_engine, mut verdicts) = verdicts(Arc::clone(&rules), Limits::default(), &story.inputs, 700);
        let verdict = verdicts.remove(0);
        (verdict.outcome, verdict.reason)
    };
    assert_eq!(outcome(&classic().heard(500, 700)), (Outcome::Finding, String::new()));
    let (against, reason) = outcome(&classic().executes(-1_000, "payment", "sh").heard(500, 700));
    assert_eq!((against, reason.as_str()), (Outcome::Hypothesis, "restart speaks against it"));
    let (blind, reason) = outcome(&classic().without_probe("exec: refused").heard(500, 700));
    assert_eq!(
        (blind, reason.as_str()),
        (Outcome::Undetermined, "restart would speak against it, and exec does not work on node-a")
    );
    let mut lossy = classic();
    for input in &mut lossy.inputs {
        if let Input::Progress(it) = input {
            it.ledger.add(Stage::Kernel, Fate::Lost, "exec", "ring-full", 1);
        }
    }
    let (lost, reason) = outcome(&lossy.heard(500, 700));
    assert_eq!(
        (lost, reason.as_str()),
        (Outcome::Undetermined, "restart would speak against it, and may be in what node-a lost")
    );
}
