//! Rule files as people write them: what compiles, what is refused, and how it is said.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests stop at the first surprise"
)]

use std::collections::BTreeMap;

use tapio_compiler::{compile_builtin, compile_builtin_and_dir, compile_dir, compile_texts};
use tapio_correlation::{
    RuleSet, RuleSetError,
    rule::{About, LinkTo, Scope, Tell},
};
use tapio_schemas::{
    entity::{EntityKey, EntityKind},
    ids::{EventId, SourceId},
    intent::{LinkKind, Severity},
    observation::{Observation, Value},
    units::{Micros, TimeInterval, UnixMicros},
};

const SMALL: &str = "\
version: 1
id: small
title: \"{kill.name} was killed\"
severity: error
scope: node
steps:
  - id: kill
    role: fault
    presence: required
    observe: [oom-kill]
    where: CONDITION
";

fn with_condition(condition: &str) -> Result<RuleSet, String> {
    let text = SMALL.replace("CONDITION", &format!("\"{condition}\""));
    compile_texts([("small.yaml", text.as_str())]).map_err(|faults| faults.to_string())
}

fn observation(fields: &[(&str, Value)]) -> Observation {
    let now = UnixMicros(1);
    Observation {
        id: EventId::default(),
        intent: "oom-kill".into(),
        time: TimeInterval::around(now, Micros(0)),
        duration: Micros(2_000_000),
        source: SourceId::default(),
        probe: "oom_victim".into(),
        severity: Severity::Error,
        count: 3,
        subject: EntityKey::new(EntityKind::Container, "c"),
        process: None,
        peer: None,
        local: None,
        trace: None,
        trace_link: LinkKind::None,
        attributes: fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect::<BTreeMap<_, _>>(),
    }
}

fn holds(condition: &str, observation: &Observation) -> bool {
    let rules = with_condition(condition).unwrap();
    rules.rules()[0].steps[0].condition.as_ref().unwrap().holds(observation)
}

/// Scenario: the built-in rules are compiled twice, archived and read again.
/// Guarantees: equal bytes and versions; reading gives the same rules; the node's part is only the node's.
#[test]
fn the_builtin_rules_compile_to_equal_bytes() {
    let rules = compile_builtin().unwrap_or_else(|faults| panic!("{faults}"));
    let again = compile_builtin().unwrap();
    assert_eq!((rules.as_bytes(), rules.version()), (again.as_bytes(), again.version()));
    assert_eq!(RuleSet::from_bytes(rules.as_bytes()).unwrap(), rules);
    let node = rules.node_scope().unwrap();
    let ids: Vec<_> = node.rules().iter().map(|rule| (rule.id.as_str(), rule.scope)).collect();
    assert_eq!(ids, [("container-oom-node", Scope::Node)]);
    assert_ne!(node.version(), rules.version());
    assert!(
        rules.needs("connection-refused")
            && !node.needs("connection-refused")
            && !rules.needs("syscall-failed")
    );
}

/// Scenario: the bytes of a rule set are cut, changed, of another format, or something else.
/// Guarantees: each is refused by name; no bytes make a panic.
#[test]
fn damaged_bytes_are_refused() {
    let bytes = compile_builtin().unwrap().as_bytes().to_vec();
    for length in 0..bytes.len() {
        assert!(RuleSet::from_bytes(&bytes[..length]).is_err());
    }
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 0x55;
        // Most changes break the structure or the meaning; others only change a text. None may panic.
        if let Ok(rules) = RuleSet::from_bytes(&changed) {
            assert_ne!(rules.version(), compile_builtin().unwrap().version());
        }
    }
    let mut newer = bytes;
    newer[8] = 9;
    assert!(matches!(RuleSet::from_bytes(&newer), Err(RuleSetError::Format { found: 9 })));
    assert!(matches!(RuleSet::from_bytes(b"something else altogether"), Err(RuleSetError::NoRuleSet)));
}

/// Scenario: conditions with every supported construct.
/// Guarantees: they evaluate as CEL does; an absent field is its type's default; an error is not true.
#[test]
fn conditions_evaluate() {
    let it = observation(&[
        ("kernel.signal", Value::Integer(9)),
        ("metric.value", Value::Float(0.5)),
        ("kernel.command", Value::Text("java".into())),
        ("network.local_address", Value::Text("10.0.0.7".into())),
    ]);
    for condition in [
        "kernel.signal == 9",
        "metric.value > 0.0",
        "metric.value < 1",
        "count >= 3 && duration_micros == 2000000",
        "kernel.command.startsWith('ja') || false",
        "!(network.status >= 500)",
        "has(kernel.signal) && !has(network.status)",
        "kernel.signal in [6, 9, 11]",
        "kernel.command in ['java', 'node']",
        "network.local_address.startsWith('10.') && network.remote_address == ''",
        "kernel.signal * 2 - 8 == 10 && kernel.signal % 2 == 1",
        "-kernel.signal < 0",
        "intent == 'oom-kill' && probe.contains('victim')",
        "true || 1 / kernel.errno == 1",
        "(count > 1 && count < 9) && (kernel.signal > 1 && kernel.signal < 10) && count != 4",
    ] {
        assert!(holds(condition, &it), "{condition}");
    }
    for condition in
        ["1 / kernel.errno == 1", "kernel.signal + 9223372036854775807 > 0", "network.route != ''"]
    {
        assert!(!holds(condition, &it), "{condition}");
    }
}

/// Scenario: conditions that the language has and the engine does not, that do not parse, or do not fit.
/// Guarantees: each is refused with its line and column and what to do.
#[test]
fn unsupported_conditions_are_refused_with_their_place() {
    for (condition, expected) in [
        ("kernel.signal == 'nine'", "small.yaml:11:27: `where`: the operands do not fit"),
        (
            "kernel.sginal == 9",
            "small.yaml:11:19: `where`: events have no field `kernel.sginal` that conditions can read; did you mean `kernel.signal`?",
        ),
        ("count + 1", "small.yaml:11:19: `where`: a condition must be true or false"),
        ("size(kernel.command) > 3", "`where`: `size` is not supported in conditions"),
        ("[1, 2].exists(x, x == count)", "`where`: macros over lists are not supported in conditions"),
        ("trace.trace_id == 'x'", "no field `trace.trace_id` that conditions can read"),
        ("count ==", "`where`: no CEL"),
        ("count == 1 ? true : false", "is not supported in conditions"),
        ("kernel.signal in [1, 'two']", "the list's values are of another type"),
        ("count > 1.5 && metric.value + 1 > 2.0", "the operands do not fit"),
    ] {
        let faults = with_condition(condition).unwrap_err();
        assert!(faults.contains(expected), "{condition}: {faults}");
    }
}

/// Scenario: one file with many faults.
/// Guarantees: all are told at once, each with its place and a suggestion where one is near.
#[test]
fn all_faults_are_told_at_once() {
    let text = "\
version: 2
id: Small One
title: \"{kil.name} {kill.sise}\"
severity: eror
scope: node
colour: red
steps:
  - id: kill
    role: fault
    presence: required
    observe: [oom-kil]
  - id: exit
    role: fault
    presense: expected
    presence: expected
    observe: [process-killed]
    after: kil within 60s
    before: kill 15m
    same-container-as: kll
";
    let faults = compile_texts([("broken.yaml", text)]).unwrap_err().to_string();
    for expected in [
        "broken.yaml:1:10: this version reads rules of `version: 1`",
        "broken.yaml:2:5: a rule's id is 1 to 63 of a-z",
        "broken.yaml:3:8: the title: the rule has no step `kil`; did you mean `kill`?",
        "broken.yaml:3:8: the title: evidence has no `sise`",
        "broken.yaml:4:11: the severity `eror` is none of: info, notice, warning, error, critical",
        "broken.yaml:6:1: a rule has no key `colour`",
        "broken.yaml:11:15: no source emits the intent `oom-kil`; did you mean `oom-kill`?",
        "broken.yaml:14:5: a step has no key `presense`; did you mean `presence`?",
        "broken.yaml:17:12: the rule has no step `kil`; did you mean `kill`?",
        "broken.yaml:18:13: `before` is written as `before: <step> within <time>`",
        "broken.yaml:19:24: the rule has no step `kll`; did you mean `kill`?",
    ] {
        assert!(faults.contains(expected), "no {expected:?} in:\n{faults}");
    }
}

/// Scenario: steps about pods, with a wrong word, a wrong number, a container of a pod, a count on the anchor.
/// Guarantees: what fits compiles to what it says; each fault is told with its place and what to write.
#[test]
fn steps_about_pods_and_counts_are_read() {
    let head = "version: 1\nid: small\ntitle: t\nseverity: error\nscope: node\nsteps:\n";
    let rule = |kill: &str, crash: &str| {
        let text = format!(
            "{head}  - id: kill\n    role: fault\n    presence: required\n    observe: [oom-kill]\n{kill}\
             \x20\x20- id: crash\n    role: fault\n    presence: expected\n    observe: [process-failed]\n\
             \x20\x20\x20\x20after: kill within 1s\n{crash}"
        );
        compile_texts([("r.yaml", text.as_str())]).map_err(|faults| faults.to_string())
    };
    let rules = rule("    about: pod\n", "    about: pod\n    at-least: 3\n    same-pod-as: kill\n").unwrap();
    let [kill, crash] = rules.rules()[0].steps.as_slice() else { panic!("two steps") };
    assert_eq!((kill.about, kill.at_least, kill.tell), (About::Pod, 1, Tell::First));
    assert_eq!((crash.about, crash.at_least, crash.links[0].to), (About::Pod, 3, LinkTo::SamePod));
    assert_eq!(RuleSet::from_bytes(rules.as_bytes()).unwrap(), rules);
    for (kill, crash, expected) in [
        ("    tell: last\n", "", "r.yaml:11:11: `tell` `last` is none of: first, latest"),
        ("    about: node\n", "", "r.yaml:11:12: `about` `node` is none of: container, pod"),
        (
            "",
            "    at-least: 0\n",
            "r.yaml:16:15: `at-least` is how often it must have happened: a number from 1",
        ),
        ("", "    at-least: often\n", "r.yaml:16:15: `at-least` is how often"),
        ("    at-least: 2\n", "", "r.yaml:11:15: `at-least` belongs to a step that is `before` or `after`"),
        (
            "    about: pod\n",
            "    same-container-as: kill\n",
            "r.yaml:17:24: the step `kill` is about a pod: write `same-pod-as`",
        ),
    ] {
        let faults = rule(kill, crash).unwrap_err();
        assert!(faults.contains(expected), "no {expected:?} in:\n{faults}");
    }
}

/// Scenario: steps that refer to each other in a circle, no anchor, a step without a time, no YAML at all.
/// Guarantees: each is refused with a sentence that says what to do.
#[test]
fn rules_that_cannot_be_evaluated_are_refused() {
    let head = "version: 1\nid: small\ntitle: t\nseverity: error\nscope: node\nsteps:\n";
    let kill = "  - {id: kill, role: fault, presence: required, observe: [oom-kill]}\n";
    let compile =
        |steps: &str| compile_texts([("r.yaml", format!("{head}{steps}").as_str())]).unwrap_err().to_string();
    let step = |id: &str, other: &str| {
        format!(
            "  - {{id: {id}, role: effect, presence: expected, observe: [oom-kill], after: {other} within 1s}}\n"
        )
    };
    assert!(compile(&format!("{kill}{}{}", step("a", "b"), step("b", "a"))).contains("in a circle: a, b"));
    assert!(compile(&step("a", "a")).contains("exactly one required step of role `fault`"));
    let untimed = "  - {id: a, role: effect, presence: expected, observe: [oom-kill]}\n";
    assert!(compile(&format!("{kill}{untimed}")).contains("the step `a` needs a time"));
    assert!(compile_texts([("r.yaml", "a: [")]).unwrap_err().to_string().contains("r.yaml:"));
}

/// Scenario: a user's folder with a rule of their own, one with a built-in id, a file that is no rule.
/// Guarantees: rules of a folder compile beside the built-in ones; an id that exists is refused with both files.
#[test]
fn a_folder_of_rules_is_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("own.yaml", SMALL.replace("CONDITION", "count > 1"));
    write("README.md", "no rule".to_owned());
    assert_eq!(compile_dir(folder.path()).unwrap().rules().len(), 1);
    assert_eq!(compile_builtin_and_dir(folder.path()).unwrap().rules().len(), 5);
    write("twice.yml", SMALL.replace("CONDITION", "count > 2").replace("id: small", "id: container-oom"));
    let faults = compile_builtin_and_dir(folder.path()).unwrap_err().to_string();
    assert!(faults.contains("rule container-oom exists already in container-oom.yaml"), "{faults}");
    assert!(compile_dir(&folder.path().join("absent")).unwrap_err().to_string().contains("cannot be read"));
}
