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
    story::{Story, at, before, container, rules, trace},
};

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
/// configuration, then for what it needs only to complain, and ends.
fn crash(story: Story, millis: i64, number: u64) -> Story {
    let name = format!("payment-{number}");
    story
        .runs_in(millis, &name, "payment")
        .misses(millis, &name, number, "/etc/override.json")
        .misses(millis + 1, &name, number, "")
        .misses_gone(millis + 2, &name, number, "/etc/config.json")
        .misses(millis + 3, &name, number, "/app/messages.de")
        .exits_failing(millis + 4, &name, number)
}

pub(crate) fn classic() -> Story {
    crash(crash(restarted(), 300, 1), 1_300, 2).heard(-30_000, 4_000)
}

fn verdict(story: &Story) -> Verdict {
    let mut verdicts = story.verdicts_of("missing-file", 4_000);
    assert_eq!(verdicts.len(), 1, "one fault, one verdict: {verdicts:#?}");
    verdicts.remove(0)
}

/// Scenario: payment's container is restarted in place, and its configuration is gone: two containers of its pod end with an error; shop
/// is refused from the first container's end on.
/// Guarantees: one finding about the pod, which names the file that is gone and none that may be absent; the symptom is shop's, and its refused calls are an effect; the rule about memory says nothing.
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
            "server in payment finds no /etc/config.json, which was there before | observed  openat ENOENT",
            "payment no longer listens | observed  tcp listen socket",
            "payment starts and exits with code 1 ×2 | observed  exit",
            "shop→payment reset, then refused ×412 | observed  payload, tcp reset recv, tcp state",
            "shop fails with HTTP 500 ×398, trace 4b4b… | observed  http, same request",
        ]
    );
}

/// Scenario: several files are gone; the second was told in a frame that left when the node's clock was less sure.
/// Guarantees: the first is named, where this start parts from those that went well.
#[test]
fn the_first_that_is_gone_is_named() {
    let started = |mut story: Story, millis: i64, number: u64| {
        let name = format!("payment-{number}");
        story =
            story.runs_in(millis, &name, "payment").misses_gone(millis, &name, number, "/etc/config.json");
        story.error_micros = 5_000;
        story = story.misses_gone(millis + 1, &name, number, "/etc/fallback.json");
        story.error_micros = 40;
        story.exits_failing(millis + 2, &name, number)
    };
    let story = started(started(restarted(), 300, 1), 1_300, 2).heard(-30_000, 4_000);
    assert_eq!(verdict(&story).outcome, Outcome::Finding);
    assert_eq!(cause_path(&verdict(&story)), "/etc/config.json");
}

fn cause_path(verdict: &Verdict) -> String {
    match &verdict.first(Role::Cause).unwrap().attributes["kernel.path"] {
        Value::Text(path) => path.clone(),
        other => panic!("{other:?} is no path"),
    }
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

/// Scenario: one start fails and the next one works; two starts fail, and only one of them missed a file that was there
/// before, or both by no path that is known, or another process did, or what they missed may always have been absent:
/// before and behind whatever else ended them.
/// Guarantees: none is a finding, each for its own reason.
#[test]
fn neither_an_accident_nor_what_may_be_absent_is_a_cause() {
    let once = crash(restarted(), 300, 1).heard(-30_000, 4_000);
    assert_eq!(verdict(&once).reason, "required evidence is missing: crash");
    let fails = |story: Story| {
        let story = story.runs_in(300, "payment-1", "payment").runs_in(300, "payment-2", "payment");
        let story = story.exits_failing(305, "payment-1", 1).exits_failing(1_305, "payment-2", 2);
        verdict(&story.heard(-30_000, 4_000))
    };
    let config = "/etc/config.json";
    let only_once = restarted().misses_gone(300, "payment-1", 1, config);
    let nameless = restarted().misses_gone(300, "payment-1", 1, "").misses_gone(1_300, "payment-2", 2, "");
    let others = restarted().misses_gone(300, "payment-1", 3, config).misses_gone(1_300, "shop", 2, config);
    let optional = [(300, "payment-1", 1), (1_300, "payment-2", 2)].into_iter().fold(
        restarted(),
        |story, (millis, name, pid)| {
            story.misses(millis, name, pid, "/etc/override.json").misses(millis + 4, name, pid, "/app/de.mo")
        },
    );
    for story in [only_once, nameless, others, optional] {
        let verdict = fails(story);
        assert_eq!(verdict.outcome, Outcome::Hypothesis);
        assert_eq!(verdict.reason, "required evidence is missing: lookup");
    }
}

/// Scenario: payment is restarted and comes up; probes of it fail, of which a file is gone, while shop fails.
/// Guarantees: a process that ends with an error is no container that does.
#[test]
fn a_failed_probe_is_no_failed_start() {
    let story = restarted()
        .runs_in(300, "payment-1", "payment")
        .listens(310, "payment-1", 81)
        .misses_gone(400, "payment-1", 8, "/tmp/ready")
        .helper_fails(401, "payment-1", 8)
        .misses_gone(1_400, "payment-1", 9, "/tmp/ready")
        .helper_fails(1_401, "payment-1", 9)
        .heard(-30_000, 4_000);
    assert_eq!(verdict(&story).reason, "required evidence is missing: crash");
}

/// Scenario: the classic, and one more thing that a start, or the pod, came to.
/// Guarantees: what may as well have ended it, or shows that it needs no such file, speaks against the file.
#[test]
fn what_else_may_have_ended_it_speaks_against_the_file() {
    let of = |intent: &str, pid: u64| {
        let story = crash(crash(restarted(), 300, 1), 1_300, 2);
        story.of_process(intent, "tcp_state", 302, "payment-1", pid, |_| {}).heard(-30_000, 4_000)
    };
    for (intent, step) in [
        ("listening", "came-further"),
        ("address-in-use", "came-further"),
        ("connection-refused", "unreachable"),
        ("connection-timed-out", "unreachable"),
        ("oom-kill", "killed"),
    ] {
        let verdict = verdict(&of(intent, 1));
        assert_eq!(verdict.outcome, Outcome::Hypothesis, "{intent}");
        assert_eq!(verdict.reason, format!("{step} speaks against it"));
    }
    // Another process's is another matter.
    assert_eq!(verdict(&of("connection-refused", 7)).outcome, Outcome::Finding);
    let more = |edit: fn(Story) -> Story| {
        verdict(&edit(crash(crash(restarted(), 300, 1), 1_300, 2)).heard(-30_000, 4_000))
    };
    let denied = more(|story| story.may_not_read(301, "payment-1", 1, "/etc/key.pem"));
    assert_eq!(denied.reason, "refused-access speaks against it");
    let aborted = more(|story| {
        story.of_process("process-killed", "exit", 2_000, "payment-2", 3, |it| {
            it.attributes.insert("kernel.signal".into(), Value::Integer(6));
        })
    });
    assert_eq!(aborted.reason, "killed speaks against it");
    // A container that is ended in order is killed too, in the end.
    assert_eq!(more(|story| story.exits(0, "payment")).outcome, Outcome::Finding);
}

/// Scenario: payment is killed for memory, which takes its listener down, and cannot start again for want of a file; all
/// that the rule about memory asks for is there but its growth.
/// Guarantees: the kill is found; the file, whatever share of its own evidence is there, neither is nor keeps it from that.
#[test]
fn a_missing_file_does_not_beat_a_kill_for_memory() {
    let killed = before().killed(0, "payment").exits(1, "payment");
    let killed = killed
        .stops_listening(1, "payment")
        .reset(2, "shop", 81)
        .fails(3, "shop", 1, None)
        .refused(10, "shop", 81, 412)
        .fails(12, "shop", 397, None);
    let story = crash(crash(killed, 300, 1), 1_300, 2).heard(-30_000, 4_000);
    let outcome = |rule: &str| {
        let verdicts = story.verdicts_of(rule, 4_000);
        (verdicts[0].outcome, verdicts[0].reason.clone())
    };
    assert_eq!(outcome("missing-file"), (Outcome::Hypothesis, "killed-before speaks against it".to_owned()));
    assert_eq!(outcome("container-oom"), (Outcome::Finding, String::new()));
}

/// Scenario: the program does without a file that was there before, and cannot have its address; then records of failing
/// calls, of exits, or of sockets are lost.
/// Guarantees: what came further than its files misses none that matters; what may have come further decides nothing.
#[test]
fn who_came_as_far_as_its_address_misses_no_file() {
    let bound = |story: Story, millis: i64, number: u64| {
        let name = format!("payment-{number}");
        let story =
            story.runs_in(millis, &name, "payment").misses_gone(millis, &name, number, "/etc/config.json");
        story.bind_fails(millis + 1, &name, number, 81).exits_failing(millis + 2, &name, number)
    };
    let story = bound(bound(restarted(), 300, 1), 1_300, 2).heard(-30_000, 4_000);
    assert_eq!(verdict(&story).reason, "came-further speaks against it");
    for probe in ["syscall_failure", "exit", "tcp_state", "oom_victim", "other"] {
        let unsure = crash(crash(restarted(), 300, 1), 1_300, 2).heard_with(-30_000, 4_000, probe, 2);
        assert_eq!(verdict(&unsure).outcome, Outcome::Undetermined, "{probe}");
    }
    let gap = crash(crash(restarted(), 300, 1), 1_300, 2).heard(-30_000, 301).unheard().heard(1_000, 4_000);
    assert_eq!(verdict(&gap).outcome, Outcome::Undetermined);
}

/// Scenario: ledger's program ends with errors for want of a file while payment, another pod, is down for good.
/// Guarantees: the ends of one pod's processes are not another's.
#[test]
fn another_pods_crash_is_not_its_own() {
    let story = restarted()
        .runs_in(300, "ledger-1", "ledger")
        .misses_gone(300, "ledger-1", 1, "/etc/config.json")
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
