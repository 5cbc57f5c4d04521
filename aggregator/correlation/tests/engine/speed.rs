//! What inserting and asking cost, printed; and that asking again costs far less than the first time.

use std::time::Instant;

use tapio_correlation::{Engine, Limits};

use crate::story::{Story, at, classic, rules};

/// Scenario: ten thousand observations around one fault, then ticks at which nothing or one thing is new.
/// Guarantees: a tick without news costs at least five times less than the evaluation of the fault.
#[test]
fn asking_again_is_cheap() {
    let mut story = classic();
    for number in 0..10_000_i64 {
        story = story.fails(20 + number / 25, "shop", 1, None);
    }
    let story = story.heard(500, 1_000);
    let mut engine = Engine::new(rules(), Limits::default());
    let inputs = story.inputs.clone();
    let count = inputs.len();
    let start = Instant::now();
    inputs.into_iter().for_each(|input| engine.insert(input));
    let insert = start.elapsed();
    engine.tick(at(1_000));
    let time = |engine: &mut Engine| {
        let start = Instant::now();
        let verdicts = engine.verdicts();
        assert_eq!(verdicts.len(), 2);
        start.elapsed()
    };
    let first = time(&mut engine);
    let again = (0..5).map(|_round| time(&mut engine)).min().unwrap();
    println!(
        "insert {} ns each of {count}; evaluate one fault {} µs; tick without news {} µs; ratio {:.1}",
        insert.as_nanos() / u128::try_from(count).unwrap(),
        first.as_micros(),
        again.as_micros(),
        first.as_secs_f64() / again.as_secs_f64(),
    );
    let evaluated = engine.stats().evaluated;
    engine.insert(Story::new().on("node-z").grows(-10_000_000, "other").inputs.remove(0));
    time(&mut engine);
    assert_eq!(engine.stats().evaluated, evaluated, "what falls into no window makes no draft stale");
    let elsewhere =
        Story::new().calls(600, "other", 4_711).calls(600, "shop", 9_999).listens(600, "other", 90);
    let again_here = Story::new().calls(700, "shop", 81).calls(800, "shop", 81).listens(800, "payment", 81);
    for input in elsewhere.inputs.into_iter().chain(again_here.inputs) {
        engine.insert(input);
        time(&mut engine);
    }
    assert_eq!(
        engine.stats().evaluated,
        evaluated,
        "nor do relations that it did not look at, or that only go on"
    );
    Story::new().calls(600, "other", 81).inputs.into_iter().for_each(|input| engine.insert(input));
    time(&mut engine);
    assert_eq!(engine.stats().evaluated, evaluated + 1, "a new caller of the victim does");
    assert!(first.as_nanos() > again.as_nanos() * 5, "{first:?} against {again:?}");
}

/// Scenario: ten thousand pods; at each of two hundred ticks one of them restarts: its container ends, another one runs in
/// the pod, starts, fails and listens again.
/// Guarantees: a tick groups the faults of that pod anew and binds its drafts, and no others.
#[test]
fn a_restart_concerns_its_own_pod() {
    const PODS: i64 = 10_000;
    let mut engine = Engine::new(rules(), Limits::default());
    let insert =
        |engine: &mut Engine, story: Story| story.inputs.into_iter().for_each(|it| engine.insert(it));
    let restart = |story: Story, millis: i64, pod: i64, life: i64| {
        let (name, next) = (format!("{pod}-{life}"), format!("{pod}-{}", life + 1));
        let pid = u64::try_from(pod).unwrap();
        let story = story.stops_listening(millis, &name).runs_in(millis + 1, &next, &pod.to_string());
        story.executes(millis + 1, &next, "server").exits_failing(millis + 2, &next, pid)
    };
    for pod in 0..PODS {
        let story = Story::new().runs_in(-120_000, &format!("{pod}-0"), &pod.to_string());
        insert(&mut engine, restart(story, -60_000 + pod * 6, pod, 0));
    }
    engine.tick(at(0));
    engine.verdicts();
    let before = engine.stats();
    let start = Instant::now();
    for tick in 0..200_i64 {
        let pod = tick * 37 % PODS;
        insert(&mut engine, restart(Story::new(), 61_000 + tick * 50, pod, 1));
        engine.tick(at(61_000 + tick * 50 + 10));
        engine.verdicts();
    }
    let (stats, elapsed) = (engine.stats(), start.elapsed());
    let (regrouped, evaluated) = (stats.regrouped - before.regrouped, stats.evaluated - before.evaluated);
    println!(
        "{PODS} pods: {} µs per tick, {regrouped} regrouped, {evaluated} of {} drafts bound in 200 ticks",
        elapsed.as_micros() / 200,
        stats.drafts
    );
    assert!(regrouped <= 200 * 2 * 3, "{regrouped}");
    assert!(evaluated <= 200 * 2 * 12, "{evaluated}");
}
