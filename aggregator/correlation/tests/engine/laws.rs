//! The laws of the engine, as properties over drawn stories.

use proptest::prelude::*;
use tapio_correlation::{Engine, Limits};
use tapio_schemas::{
    ids::EventId,
    intent::LinkKind,
    ledger::{Fate, Stage},
    observation::Input,
    units::UnixMicros,
    verdict::{Outcome, Role, Stance, Verdict},
};

use crate::story::{Story, at, container, rules, trace};

const NAMES: [&str; 4] = ["shop", "payment", "ledger", "stock"];

/// The node on which each of them runs.
const NODES: [&str; 4] = ["node-b", "node-a", "node-a", "node-b"];

/// What is not as it should be in a drawn story.
#[derive(Clone, Copy, Debug)]
struct Flaws {
    /// Another listens where payment does: who calls payment is only inferred.
    is_shared: bool,
    /// A frame of this node never arrives.
    gap: Option<&'static str>,
    /// So many request records of this node were lost before the fault.
    lost: (usize, u64),
    /// The probe that sees kills does not work on this node.
    blind: Option<&'static str>,
}

fn node() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![3 => Just(None), 1 => Just(Some("node-a")), 1 => Just(Some("node-b"))]
}

fn flaws() -> impl Strategy<Value = Flaws> {
    let lost = prop_oneof![2 => Just(0_u64), 1 => 1_u64..400];
    (prop::bool::weighted(0.3), node(), (0..2_usize, lost), node())
        .prop_map(|(is_shared, gap, lost, blind)| Flaws { is_shared, gap, lost, blind })
}

fn base(flaws: Flaws) -> Story {
    let mut story = Story::new()
        .listens(-60_000, "payment", 81)
        .listens(-60_000, "ledger", 82)
        .calls(-50_000, "payment", 82)
        .on("node-b")
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "stock", 83)
        .calls(-50_000, "shop", 81)
        .calls(-50_000, "shop", 83);
    if flaws.is_shared {
        story = story.on("node-a").listens(-59_000, "other", 81).listens(-55_000, "payment", 81);
    }
    for (place, node) in ["node-a", "node-b"].into_iter().enumerate() {
        let lost = if flaws.lost.0 == place { flaws.lost.1 } else { 0 };
        story = story.on(node).heard_with(-120_000, -40_000, "payload", lost);
    }
    story
}

/// The frames after the base's, up to the end of the story.
fn ended(mut story: Story, flaws: Flaws) -> Story {
    for node in ["node-a", "node-b"] {
        story = story.on(node);
        if flaws.blind == Some(node) {
            story = story.without_probe("oom_victim");
        }
        story = if flaws.gap == Some(node) {
            story.unheard().heard(-20_000, 10_000)
        } else {
            story.heard(-40_000, 10_000)
        };
    }
    story
}

/// One thing that happens: what, to whom, when, how often.
fn happening() -> impl Strategy<Value = (u8, usize, i64, u64, u8)> {
    (0_u8..16, 0..NAMES.len(), -30_000_i64..8_000, 1_u64..40, 0_u8..4)
}

fn told(happenings: &[(u8, usize, i64, u64, u8)], flaws: Flaws) -> Story {
    let mut story = base(flaws);
    for (what, who, millis, count, of) in happenings {
        let name = NAMES[*who];
        let port = [81, 82, 83][usize::from(*of) % 3];
        story = story.on(NODES[*who]);
        story = match what {
            0 => story.killed(*millis / 10, name),
            1 => story.exits(*millis / 10 + 1, name),
            2 => story.grows(*millis, name),
            3 => story.reset(*millis, name, port),
            4 => story.refused(*millis, name, port, *count),
            5 => story.unanswered(*millis, name, port, trace(*of), LinkKind::Observed),
            6 => story.fails(*millis, name, *count, Some(trace(*of))),
            7 => story.fails(*millis, name, *count, None),
            // A pod's later containers have names of their own; its processes have few pids, so that some meet.
            9 => story.stops_listening(*millis / 10, name),
            10 | 11 => {
                let later = format!("{name}{}", of % 2);
                let (pid, path) = (u64::from(*of % 3), ["", "/conf", "/optional"][usize::from(*of) % 3]);
                let story = story.runs_in(*millis / 10, &later, name);
                let story = if *who < 2 {
                    story.misses_gone(*millis / 10, &later, pid, path)
                } else {
                    story.misses(*millis / 10, &later, pid, path)
                };
                if *what == 10 { story.exits_failing(*millis / 10 + 1, &later, pid) } else { story }
            }
            13 | 14 => {
                let later = format!("{name}{}", of % 2);
                let (pid, who) = (u64::from(*of % 3), container(["other", "stock"][usize::from(*of) % 2]));
                let story = story.runs_in(*millis / 10, &later, name);
                let story = story.bind_fails(*millis / 10, &later, pid, port).exits_failing(
                    *millis / 10 + 1,
                    &later,
                    pid,
                );
                if *what == 13 {
                    story
                } else {
                    let endpoint = ["10.0.0.1:81", "10.0.0.1:82", "node-a|0.0.0.0:83"][usize::from(*of) % 3];
                    story.holds((*millis / 10 - 5, *millis / 10), &who, &later, endpoint)
                }
            }
            12 => story.exits_failing(*millis / 10, &format!("{name}1"), u64::from(*of % 3)),
            15 => {
                let (later, pid) = (format!("{name}{}", of % 2), u64::from(*of % 3));
                let intent = ["listening", "connection-refused", "process-failed"][*who % 3];
                story.of_process(intent, "tcp_state", *millis / 10, &later, pid, |_| {})
            }
            _ => story.executes(*millis, name, "sh"),
        };
    }
    ended(story, flaws)
}

fn stories() -> impl Strategy<Value = Story> {
    (prop::collection::vec(happening(), 1..40), flaws())
        .prop_map(|(happenings, flaws)| told(&happenings, flaws))
}

fn engine_of<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> Engine {
    Story::engine_of(inputs.into_iter().cloned(), 10_000)
}

fn parts(story: &Story, choices: &[bool]) -> (Vec<Input>, Vec<Input>) {
    let mut choices = choices.iter().cycle();
    story.inputs.iter().cloned().partition(|_input| *choices.next().unwrap())
}

/// Whether two verdicts are of the same fault, whatever the rule: rules about one fault are no rivals.
fn is_same_fault(a: &Verdict, b: &Verdict) -> bool {
    let fault = |verdict: &Verdict| verdict.first(Role::Fault).map(|line| line.first);
    a.cause == b.cause && fault(a) == fault(b)
}

fn is_same(a: &Verdict, b: &Verdict) -> bool {
    a.rule == b.rule && is_same_fault(a, b)
}

/// When an engine is asked after so many inputs: never later than at the end, because time does not go back.
fn in_between(place: usize) -> UnixMicros {
    at((-40_000 + i64::try_from(place).unwrap() * 500).min(10_000))
}

fn supported_by(verdicts: &[Verdict], event: EventId) -> impl Iterator<Item = &Verdict> {
    verdicts.iter().filter(move |verdict| verdict.evidence.iter().any(|line| line.events.contains(&event)))
}

/// The inputs without those observations that are dropped; where a frame covers their time, its ledger tells of them.
fn lose(inputs: &[Input], drops: &[bool]) -> Vec<Input> {
    let is_lost = |(input, drop): &(&Input, &bool)| matches!(input, Input::Observation(_)) && **drop;
    let (lost, kept): (Vec<_>, Vec<_>) = inputs.iter().zip(drops.iter().cycle()).partition(is_lost);
    let mut kept: Vec<Input> = kept.into_iter().map(|(input, _drop)| input.clone()).collect();
    for (input, _drop) in lost {
        let Input::Observation(lost) = input else { continue };
        for input in &mut kept {
            if let Input::Progress(frame) = input
                && frame.source == lost.source
                && frame.ledger.since <= lost.time.latest
                && frame.ledger.until >= lost.time.earliest
            {
                frame.ledger.add(Stage::Kernel, Fate::Lost, &lost.probe, "ring-full", lost.count);
            }
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Scenario: the inputs of a drawn story arrive in any order, some of them several times.
    /// Guarantees: at the same watermark the verdicts are the same.
    #[test]
    fn order_and_repetition_change_nothing(
        story in stories(),
        seeds in prop::collection::vec(any::<u64>(), 1..200),
    ) {
        let expected = engine_of(&story.inputs).verdicts();
        let mut shuffled: Vec<(u64, &Input)> = story.inputs.iter().zip(seeds.iter().copied().cycle())
            .map(|(input, seed)| (seed, input)).collect();
        shuffled.extend(story.inputs.iter().take(7).map(|input| (seeds[0], input)));
        shuffled.sort_by_key(|(seed, _input)| *seed);
        prop_assert_eq!(engine_of(shuffled.into_iter().map(|(_seed, input)| input)).verdicts(), expected);
    }

    /// Scenario: the inputs are spread over several engines that are merged in different ways.
    /// Guarantees: merging is a union: commutative, associative, idempotent.
    #[test]
    fn merging_is_a_union(story in stories(), choices in prop::collection::vec(any::<bool>(), 1..50)) {
        let (left, right) = parts(&story, &choices);
        let (a, b) = (engine_of(&left), engine_of(&right));
        let whole = engine_of(&story.inputs).verdicts();
        let (mut ab, mut ba) = (a.clone(), b.clone());
        ab.merge(&b);
        ba.merge(&a);
        ab.tick(at(10_000));
        ba.tick(at(10_000));
        prop_assert_eq!(&ab.verdicts(), &whole);
        prop_assert_eq!(&ba.verdicts(), &whole);
        ab.merge(&ba);
        ab.merge(&ab.clone());
        prop_assert_eq!(&ab.verdicts(), &whole);
    }

    /// Scenario: inputs arrive one after the other, in their order or in any, verdicts are asked for in between.
    /// Guarantees: what is kept between two questions never changes an answer.
    #[test]
    fn incremental_equals_from_scratch(
        story in stories(),
        every in 1_usize..9,
        seeds in prop::collection::vec(any::<u64>(), 1..200),
        is_shuffled in any::<bool>(),
    ) {
        let mut engine = Engine::new(rules(), Limits::default());
        let mut inputs: Vec<(u64, &Input)> = seeds.iter().copied().cycle().zip(&story.inputs).collect();
        if is_shuffled {
            inputs.sort_by_key(|(seed, _input)| *seed);
        }
        for (place, (_seed, input)) in inputs.into_iter().enumerate() {
            engine.insert(input.clone());
            if place % every == 0 {
                engine.tick(in_between(place));
                let scratch = engine.verdicts_from_scratch();
                prop_assert_eq!(engine.verdicts(), scratch);
            }
        }
        engine.tick(at(10_000));
        prop_assert_eq!(engine.verdicts(), engine_of(&story.inputs).verdicts());
    }

    /// Scenario: the same with room for few observations and faults, so that most of them come and go; at the end
    /// everything comes again in any order.
    /// Guarantees: what is kept between two questions never changes an answer, and the order of arrival does not either.
    #[test]
    fn so_it_is_over_budget(
        story in stories(),
        every in 1_usize..9,
        seeds in prop::collection::vec(any::<u64>(), 1..200),
        most in 3_usize..30,
    ) {
        let limits = Limits { observations_max: most, faults_max: 2, ..Limits::default() };
        let mut engine = Engine::new(rules(), limits);
        let mut inputs: Vec<(u64, &Input)> = seeds.iter().copied().cycle().zip(&story.inputs).collect();
        for (place, (_seed, input)) in inputs.iter().enumerate() {
            engine.insert((*input).clone());
            if place % every == 0 {
                engine.tick(in_between(place));
                let scratch = engine.verdicts_from_scratch();
                prop_assert_eq!(engine.verdicts(), scratch);
            }
        }
        engine.tick(at(10_000));
        inputs.sort_by_key(|(seed, _input)| *seed);
        let mut shuffled = Engine::new(rules(), limits);
        inputs.iter().for_each(|(_seed, input)| shuffled.insert((*input).clone()));
        shuffled.tick(at(10_000));
        prop_assert_eq!(engine.verdicts(), shuffled.verdicts());
    }

    /// Scenario: any observations of a drawn story are lost, whatever they spoke for, and the ledgers of their frames say
    /// so, by probe.
    /// Guarantees: no cause becomes a finding by that which was none before.
    #[test]
    fn a_declared_loss_never_finds_a_cause(
        story in stories(),
        drops in prop::collection::vec(prop::bool::weighted(0.15), 1..200),
    ) {
        let found = |inputs: &[Input]| {
            let mut verdicts = engine_of(inputs).verdicts();
            verdicts.retain(|verdict| verdict.outcome == Outcome::Finding);
            verdicts
        };
        let after = found(&lose(&story.inputs, &drops));
        let before = found(&story.inputs);
        for verdict in after {
            let is_known = |other: &Verdict| other.rule == verdict.rule && other.cause == verdict.cause;
            prop_assert!(before.iter().any(is_known), "found by losing: {verdict:#?}");
        }
    }

    /// Scenario: one of the events that support a verdict, and no rival of it, is taken away; faults stay. Listeners are
    /// ambiguous, ledgers have gaps, records were lost and probes do not work, on either of two nodes.
    /// Guarantees: the verdict neither commits itself further nor counts more evidence.
    #[test]
    fn less_support_never_means_more_confidence(story in stories(), pick in any::<prop::sample::Index>()) {
        let before = engine_of(&story.inputs).verdicts();
        for verdict in before.iter().filter(|verdict| verdict.outcome != Outcome::Hypothesis) {
            let support: Vec<_> = verdict.evidence.iter()
                .filter(|line| line.stance == Stance::Supporting && !["kill", "down"].contains(&line.step.as_str()))
                .flat_map(|line| line.events.iter().copied())
                .filter(|event| supported_by(&before, *event).all(|other| is_same_fault(other, verdict)))
                .collect();
            if support.is_empty() {
                continue;
            }
            let removed = *pick.get(&support);
            let kept = story.inputs.iter()
                .filter(|input| !matches!(input, Input::Observation(it) if it.id == removed));
            let after = engine_of(kept).verdicts();
            if let Some(after) = after.iter().find(|other| is_same(other, verdict)) {
                prop_assert!(after.outcome <= verdict.outcome, "{} became {:?}", removed, after.outcome);
                prop_assert!(after.evidence_present <= verdict.evidence_present);
                prop_assert_eq!(after.evidence_expected, verdict.evidence_expected);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Scenario: a pod's program starts some times for want of files that are gone, may look for others, and may come
    /// further in one start or another; some of what its node saw since the pod went down is lost, which the node's ledger
    /// says, or does not know.
    /// Guarantees: what is found then was found with everything; with less, nothing is found at all.
    #[test]
    fn what_is_lost_never_makes_another_cause(
        starts in prop::collection::vec((prop::collection::vec((0_u8..4, 0_usize..3), 0..5), any::<bool>()), 1..4),
        lost in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        is_known in any::<bool>(),
    ) {
        let calm = |story: Story| story
            .listens(-60_000, "shop", 80).listens(-60_000, "payment", 81)
            .calls(-50_000, "shop", 81).heard(-120_000, -30_000).heard(-30_000, -10);
        let mut story = calm(Story::new()).stops_listening(0, "payment").refused(10, "shop", 81, 9).fails(12, "shop", 9, None);
        for (number, (lookups, comes_further)) in (1_u16..).zip(&starts) {
            let (name, millis, pid) = (format!("payment-{number}"), i64::from(number) * 300, number.into());
            story = story.runs_in(millis, &name, "payment");
            for (later, (what, path)) in (1..).zip(lookups) {
                let path = ["/a", "/b", "/c"][*path];
                story = match what {
                    0 => story.misses(millis + later, &name, pid, path),
                    1 if *comes_further => story.may_not_read(millis + later, &name, pid, path),
                    _ => story.misses_gone(millis + later, &name, pid, path),
                };
            }
            story = story.exits_failing(millis + 9, &name, pid);
        }
        let found = |story: &Story| {
            let verdict = story.verdicts_of("missing-file", 4_000).pop();
            let verdict = verdict.filter(|verdict| verdict.outcome == Outcome::Finding);
            verdict.map(|verdict| verdict.first(Role::Cause).unwrap().attributes["kernel.path"].clone())
        };
        let whole = found(&story.clone().heard(-10, 4_000));
        // The agent tells nothing of itself in place of what it lost.
        let of_processes: Vec<EventId> = story.inputs.iter().filter_map(|input| match input {
            Input::Observation(it) if ["exit", "syscall_failure"].contains(&it.probe.as_str()) => Some(it.id),
            _ => None,
        }).collect();
        let gone: Vec<EventId> = lost.iter().map(|index| *index.get(&of_processes)).collect();
        story.inputs.retain(|input| !matches!(input, Input::Observation(it) if gone.contains(&it.id)));
        let count = u64::try_from(gone.len()).unwrap();
        let less = if is_known {
            story.heard_with(-10, 4_000, "other", count)
        } else {
            story.unheard().heard(3_000, 4_000)
        };
        prop_assert_eq!(found(&less), None, "with everything {:?}", whole);
    }
}

/// Scenario: more observations than the engine may keep.
/// Guarantees: the oldest go, whatever came last; a verdict whose window overlaps them commits itself no further.
#[test]
fn evictions_cap_verdicts() {
    let story = crate::story::classic();
    let limits = Limits { observations_max: 8, ..Limits::default() };
    let run = |inputs: Vec<Input>| {
        let mut engine = Engine::new(rules(), limits);
        inputs.into_iter().for_each(|input| engine.insert(input));
        engine.tick(at(500));
        (engine.verdicts(), engine.stats().observations)
    };
    let mut backwards = story.inputs.clone();
    backwards.reverse();
    let (verdicts, observations) = run(story.inputs);
    assert_eq!((observations, verdicts.len()), (8, 2));
    assert!(verdicts.iter().all(|verdict| verdict.outcome < Outcome::Finding));
    assert_eq!(run(backwards).0, verdicts);
}
