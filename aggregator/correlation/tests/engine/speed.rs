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
