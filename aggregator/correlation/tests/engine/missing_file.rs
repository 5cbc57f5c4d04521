//! A pod that cannot start any more for want of a file.

use tapio_correlation::{Announcer, announce::Owner};
use tapio_schemas::{
    entity::{EntityKey, EntityKind},
    intent::LinkKind,
    observation::Value,
    verdict::{Outcome, Role, Verdict},
};

use crate::{
    oom::{PodNames, pods},
    story::{Story, at, container, rules, trace},
};

fn before() -> Story {
    Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .listens(-60_000, "ledger", 82)
        .calls(-50_000, "shop", 81)
        .calls(-50_000, "payment", 82)
        .heard(-120_000, -30_000)
}

/// Payment's container ends at time 0; shop's calls are refused from then on, and shop fails.
fn restarted() -> Story {
    before()
        .stops_listening(0, "payment")
        .reset(1, "shop", 81)
        .unanswered(1, "shop", 81, trace(0x4b), LinkKind::Observed)
        .fails(2, "shop", 1, Some(trace(0x4b)))
        .refused(10, "shop", 81, 412)
        .fails(12, "shop", 397, None)
}

/// One start of payment's program in a container of its own: it looks for what may be absent, then for its
/// configuration, and ends.
fn crash(story: Story, millis: i64, number: u64) -> Story {
    let name = format!("payment-{number}");
    story
        .runs_in(millis, &name, "payment")
        .misses(millis, &name, number, "/etc/override.json")
        .misses(millis + 1, &name, number, "")
        .misses(millis + 2, &name, number, "/etc/config.json")
        .exits_failing(millis + 3, &name, number)
}

pub(crate) fn classic() -> Story {
    crash(crash(restarted(), 300, 1), 1_300, 2).heard(-30_000, 4_000)
}

fn verdict(story: &Story) -> Verdict {
    let mut verdicts = story.verdicts_of("missing-file", 4_000);
    assert_eq!(verdicts.len(), 1, "one fault, one verdict: {verdicts:#?}");
    verdicts.remove(0)
}

/// Scenario: a rollout restarts payment, whose configuration is gone: two containers of its pod end with an error; shop
/// is refused from the first container's end on.
/// Guarantees: one finding about the pod, which names the file that was missed last and none that may be absent; the
/// symptom is shop's, and its refused calls are an effect; the rule about memory says nothing.
#[test]
fn the_missing_file_is_the_cause() {
    let story = classic();
    let verdict = verdict(&story);
    assert_eq!((verdict.outcome, verdict.reason.as_str()), (Outcome::Finding, ""));
    assert_eq!((verdict.evidence_present, verdict.evidence_expected), (6, 6));
    assert_eq!(verdict.cause, EntityKey::new(EntityKind::Pod, "pod-payment"));
    assert_eq!(verdict.first(Role::Symptom).unwrap().subject, container("shop"));
    assert_eq!(story.verdicts(4_000), []);

    let engine = story.engine(4_000);
    let pods = pods();
    let names = PodNames { engine: &engine, pods: &pods };
    let (tenant, cluster) = ("default".parse().unwrap(), "demo".parse().unwrap());
    let owner = Owner { tenant: &tenant, cluster: &cluster };
    let findings = Announcer::default().fold(&[verdict], &names, at(4_000), owner, &rules());
    let [finding] = findings.as_slice() else { panic!("one finding: {findings:#?}") };
    assert_eq!(finding.title, "shop is failing because payment cannot start without /etc/config.json");
    let told: Vec<String> =
        finding.lines.iter().map(|line| format!("{} | {}", line.text, line.basis)).collect();
    assert_eq!(
        told,
        [
            "server in payment finds no /etc/config.json | observed  openat ENOENT",
            "payment no longer listens | observed  tcp listen socket",
            "payment starts and exits with code 1 ×2 | observed  exit",
            "shop→payment refused ×412, then reset | observed  payload, tcp reset recv, tcp state",
            "shop fails with HTTP 500 ×398, trace 4b4b… | observed  http, same request",
        ]
    );
}

/// Scenario: the file that may be absent was told in a frame that left when the node's clock was less sure than later.
/// Guarantees: the file that was missed last is named all the same.
#[test]
fn how_sure_the_clock_was_orders_nothing() {
    let started = |mut story: Story, millis: i64, number: u64| {
        let name = format!("payment-{number}");
        story.error_micros = 5_000;
        story = story.runs_in(millis, &name, "payment").misses(millis, &name, number, "/etc/override.json");
        story.error_micros = 40;
        story.misses(millis + 1, &name, number, "/etc/config.json").exits_failing(millis + 2, &name, number)
    };
    let story = started(started(restarted(), 300, 1), 1_300, 2).heard(-30_000, 4_000);
    let path = verdict(&story).first(Role::Cause).unwrap().attributes["kernel.path"].clone();
    assert_eq!(path, Value::Text("/etc/config.json".to_owned()));
}

/// Scenario: a container of the pod, and a program in it, were started before the fault.
/// Guarantees: both are told as changes of the pod.
#[test]
fn what_changed_in_a_pod_is_told() {
    let story = restarted().executes(-5_000, "payment", "migrate");
    let story = crash(crash(story, 300, 1), 1_300, 2).heard(-30_000, 4_000);
    let verdict = verdict(&story);
    let changes: Vec<_> = verdict.changes.iter().map(|change| change.what.as_str()).collect();
    assert_eq!(changes, ["migrate was started"]);
}

/// Scenario: the same restart, and the program starts well; it misses the files that may be absent, as ever.
/// Guarantees: no finding.
#[test]
fn a_restart_that_works_is_no_fault() {
    let story = restarted()
        .runs_in(300, "payment-1", "payment")
        .misses(300, "payment-1", 1, "/etc/override.json")
        .listens(310, "payment-1", 81)
        .heard(-30_000, 4_000);
    let verdict = verdict(&story);
    assert_eq!(verdict.outcome, Outcome::Hypothesis);
    assert_eq!(verdict.reason, "required evidence is missing: crash");
}

/// Scenario: one start fails and the next one works; two starts fail, and their processes missed nothing by its path;
/// others miss files while payment's processes end.
/// Guarantees: none is a finding, each for its own reason.
#[test]
fn neither_an_accident_nor_another_process_is_a_cause() {
    let once = crash(restarted(), 300, 1).heard(-30_000, 4_000);
    assert_eq!(verdict(&once).reason, "required evidence is missing: crash");
    let nameless = restarted()
        .runs_in(300, "payment-1", "payment")
        .misses(300, "payment-1", 1, "")
        .exits_failing(301, "payment-1", 1)
        .exits_failing(1_301, "payment-1", 2)
        .misses(1_300, "payment-1", 3, "/etc/config.json")
        .misses(1_300, "shop", 4, "/etc/config.json")
        .heard(-30_000, 4_000);
    assert_eq!(verdict(&nameless).reason, "required evidence is missing: lookup");
    assert_eq!(verdict(&nameless).outcome, Outcome::Hypothesis);
}

/// Scenario: the program says in the user's language that its configuration is missing, and looks for the catalogue of its
/// messages, the language's and the clock's files.
/// Guarantees: the configuration is named, though it was not missed last.
#[test]
fn what_is_needed_only_to_complain_is_no_cause() {
    let complaints =
        ["/usr/share/locale/de/LC_MESSAGES/libc.mo", "/usr/lib/locale/locale-archive", "/app/de.cat"];
    let started = |story: Story, millis: i64, number: u64| {
        let name = format!("payment-{number}");
        let story = story.runs_in(millis, &name, "payment").misses(millis, &name, number, "/etc/config.json");
        let story = (1..)
            .zip(complaints)
            .fold(story, |story, (later, path)| story.misses(millis + later, &name, number, path));
        story.exits_failing(millis + 9, &name, number)
    };
    let story = started(started(restarted(), 300, 1), 1_300, 2).heard(-30_000, 4_000);
    let verdict = verdict(&story);
    assert_eq!(verdict.outcome, Outcome::Finding, "{}", verdict.reason);
    let path = verdict.first(Role::Cause).unwrap().attributes["kernel.path"].clone();
    assert_eq!(path, Value::Text("/etc/config.json".to_owned()));
}

/// Scenario: the program has all files that it needs, misses one that may be absent, and cannot have its address; then
/// records of failing calls are lost.
/// Guarantees: what came further than its files misses none that matters; what may have come further decides nothing.
#[test]
fn who_came_as_far_as_its_address_misses_no_file() {
    let bound = |story: Story, millis: i64, number: u64| {
        let name = format!("payment-{number}");
        let story =
            story.runs_in(millis, &name, "payment").misses(millis, &name, number, "/etc/override.json");
        story.bind_fails(millis + 1, &name, number, 81).exits_failing(millis + 2, &name, number)
    };
    let story = bound(bound(restarted(), 300, 1), 1_300, 2).heard(-30_000, 4_000);
    assert_eq!(verdict(&story).reason, "came-further speaks against it");
    let unsure = crash(crash(restarted(), 300, 1), 1_300, 2).heard_with(-30_000, 4_000, "syscall_failure", 2);
    assert_eq!(verdict(&unsure).outcome, Outcome::Undetermined);
}

/// Scenario: ledger's program ends with errors for want of a file while payment, another pod, is down for good.
/// Guarantees: the ends of one pod's processes are not another's.
#[test]
fn another_pods_crash_is_not_its_own() {
    let story = restarted()
        .runs_in(300, "ledger-1", "ledger")
        .misses(300, "ledger-1", 1, "/etc/config.json")
        .exits_failing(301, "ledger-1", 1)
        .exits_failing(1_301, "ledger-1", 1)
        .heard(-30_000, 4_000);
    assert_eq!(verdict(&story).reason, "required evidence is missing: crash");
}

/// Scenario: shop failed already before payment's container ended.
/// Guarantees: no finding.
#[test]
fn failures_from_before_the_restart_are_not_explained() {
    let mut story = before();
    for second in 1..20 {
        story = story.fails(-1_000 * second, "shop", 100, None);
    }
    let story = story.stops_listening(0, "payment").refused(10, "shop", 81, 4).fails(12, "shop", 40, None);
    let story = crash(crash(story, 300, 1), 1_300, 2).heard(-30_000, 4_000);
    assert!(verdict(&story).outcome < Outcome::Finding);
}

/// Scenario: a pod's containers become known only after everything else was heard and judged.
/// Guarantees: what was kept from before is not taken for the answer.
#[test]
fn a_container_that_comes_to_its_pod_late_counts() {
    let story = classic();
    let (homes, others): (Vec<_>, Vec<_>) = story.inputs.iter().cloned().partition(|input| {
        let is_later = |it: &tapio_schemas::entity::Relation| {
            it.to.kind == EntityKind::Pod && it.from.id.contains("payment-")
        };
        matches!(input, tapio_schemas::observation::Input::Relation(it) if is_later(it))
    });
    let mut engine = Story::engine_of(others, 4_000);
    let found = |engine: &mut tapio_correlation::Engine| {
        engine.verdicts().iter().any(|verdict| verdict.outcome == Outcome::Finding)
    };
    assert!(!found(&mut engine));
    homes.into_iter().for_each(|input| engine.insert(input));
    assert!(found(&mut engine));
    assert_eq!(engine.verdicts(), engine.verdicts_from_scratch());
}
