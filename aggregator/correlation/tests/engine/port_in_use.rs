//! A pod that cannot start any more because another process has taken its port.

use tapio_correlation::{Announcer, announce::Owner, observe};
use tapio_schemas::{
    entity::{EntityKey, EntityKind},
    intent::LinkKind,
    verdict::{Outcome, Role, Verdict},
};

use crate::{
    oom::{PodNames, pods},
    story::{Story, at, before, container, rules, trace},
};

/// Payment's container ends at time 0; shop's calls are refused until another listens there, which never answers.
fn restarted() -> Story {
    before()
        .stops_listening(0, "payment")
        .reset(1, "shop", 81)
        .unanswered(1, "shop", 81, trace(0x4b), LinkKind::Observed)
        .fails(2, "shop", 1, Some(trace(0x4b)))
        .refused(10, "shop", 81, 7)
        .fails(12, "shop", 7, None)
}

/// A process outside of all containers.
fn foreigner() -> EntityKey {
    observe::process("node-a", 777, 5)
}

/// One start of payment's program in a container of its own: it looks for what may be absent, cannot listen, and ends.
fn crash(story: Story, millis: i64, number: u64) -> Story {
    let name = format!("payment-{number}");
    story
        .runs_in(millis, &name, "payment")
        .misses(millis, &name, number, "/etc/override.json")
        .bind_fails(millis + 2, &name, number, 81)
        .exits_failing(millis + 3, &name, number)
}

/// As [`crash`], and the node knows that `who` has listened on `endpoint` since 100.
fn kept_out(story: Story, millis: i64, number: u64, who: &EntityKey, endpoint: &str) -> Story {
    crash(story, millis, number).holds((100, millis + 2), who, &format!("payment-{number}"), endpoint)
}

fn classic(who: &EntityKey) -> Story {
    let story = kept_out(restarted(), 300, 1, who, "10.0.0.1:81");
    kept_out(story, 1_300, 2, who, "10.0.0.1:81")
        .given_up(2_200, "shop", 81, trace(0x5c))
        .fails(2_201, "shop", 1, Some(trace(0x5c)))
        .heard(-30_000, 4_000)
}

fn verdict(story: &Story) -> Verdict {
    let mut verdicts = story.verdicts_of("port-in-use", 4_000);
    assert_eq!(verdicts.len(), 1, "one fault, one verdict: {verdicts:#?}");
    verdicts.remove(0)
}

fn told(story: &Story, verdict: Verdict) -> (String, Vec<String>) {
    let engine = story.engine(4_000);
    let pods = pods();
    let names = PodNames { engine: &engine, pods: &pods };
    let (tenant, cluster) = ("default".parse().unwrap(), "demo".parse().unwrap());
    let owner = Owner { tenant: &tenant, cluster: &cluster };
    let findings = Announcer::default().fold(&[verdict], &names, at(4_000), owner, &rules());
    let [finding] = findings.as_slice() else { panic!("one finding: {findings:#?}") };
    let lines = finding.lines.iter().map(|line| format!("{} | {}", line.text, line.basis)).collect();
    (finding.title.clone(), lines)
}

/// Scenario: payment is restarted; in the gap a process of the host has taken its port and never answers; two containers
/// of the pod cannot listen and end.
/// Guarantees: one finding about the pod that names that process since it listened, and no other rule's; the symptom is shop's; calls from
/// before the process listened are payment's, later ones the process's.
#[test]
fn the_process_that_holds_the_port_is_the_cause() {
    let story = classic(&foreigner());
    let verdict = verdict(&story);
    assert_eq!((verdict.outcome, verdict.reason.as_str()), (Outcome::Finding, ""));
    assert_eq!((verdict.evidence_present, verdict.evidence_expected), (8, 8));
    assert_eq!(verdict.cause, EntityKey::new(EntityKind::Pod, "pod-payment"));
    let holder = verdict.first(Role::Cause).unwrap();
    assert_eq!((&holder.subject, holder.first.middle()), (&foreigner(), at(100)), "since it listened");
    assert_eq!(verdict.first(Role::Symptom).unwrap().subject, container("shop"));
    let findings: Vec<Verdict> = story.engine(4_000).verdicts();
    let findings = findings.iter().filter(|verdict| verdict.outcome == Outcome::Finding);
    assert_eq!(findings.count(), 1);
    let (title, lines) = told(&story, verdict);
    assert_eq!(title, "shop is failing because process 777 on node-a (spooler) holds port 81 of payment");
    assert_eq!(
        lines,
        [
            "process 777 on node-a (spooler[777]) listens on 10.0.0.1 port 81 | observed  tcp listen socket",
            "payment no longer listens | observed  tcp listen socket",
            "payment cannot listen on 10.0.0.1 port 81 ×2 | observed  bind EADDRINUSE",
            "payment starts and exits with code 1 ×2 | observed  exit",
            "shop→payment reset, then refused ×7 | observed  payload, tcp reset recv, tcp state",
            "shop→process 777 on node-a instead, given up | observed  payload",
            "shop fails with HTTP 500 ×9, trace 4b4b… | observed  http, same request",
        ]
    );
}

/// Scenario: the same, and the port is held by a container of another pod; by one that listens on all addresses.
/// Guarantees: the container is named.
#[test]
fn a_container_may_hold_it() {
    let ledger = container("ledger");
    let named = verdict(&classic(&ledger));
    assert_eq!((named.outcome, &named.first(Role::Cause).unwrap().subject), (Outcome::Finding, &ledger));
    let everywhere = "node-a|0.0.0.0:81";
    let story = kept_out(kept_out(restarted(), 300, 1, &ledger, everywhere), 1_300, 2, &ledger, everywhere);
    let named = verdict(&story.heard(-30_000, 4_000));
    assert_eq!((named.outcome, &named.first(Role::Cause).unwrap().subject), (Outcome::Finding, &ledger));
}

/// Scenario: the same restart, and the program starts well at once; after one failed bind; it fails twice, and retries
/// itself until it can listen, without an exit.
/// Guarantees: no finding.
#[test]
fn a_port_that_comes_free_in_time_is_no_fault() {
    let well = restarted().runs_in(300, "payment-1", "payment").listens(310, "payment-1", 81);
    assert_eq!(verdict(&well.heard(-30_000, 4_000)).reason, "required evidence is missing: crash");
    let once = kept_out(restarted(), 300, 1, &foreigner(), "10.0.0.1:81")
        .runs_in(1_300, "payment-2", "payment")
        .listens(1_310, "payment-2", 81)
        .heard(-30_000, 4_000);
    assert_eq!(verdict(&once).outcome, Outcome::Hypothesis);
    let retried = restarted()
        .runs_in(300, "payment-1", "payment")
        .bind_fails(310, "payment-1", 1, 81)
        .bind_fails(810, "payment-1", 1, 81)
        .holds((100, 310), &foreigner(), "payment-1", "10.0.0.1:81")
        .listens(1_310, "payment-1", 81)
        .heard(-30_000, 4_000);
    assert_eq!(verdict(&retried).outcome, Outcome::Hypothesis);
}

/// Scenario: nobody was seen to listen there; who was holds another port; keeps another pod's container out; is of
/// another node.
/// Guarantees: no finding of either rule, and the verdict says that the holder is what is missing.
#[test]
fn only_who_keeps_it_out_is_named() {
    let failing = || crash(crash(restarted(), 300, 1), 1_300, 2);
    let foreigner = foreigner();
    let elsewhere = failing().holds((100, 302), &foreigner, "payment-1", "10.0.0.1:82");
    let anothers = failing().holds((100, 302), &foreigner, "ledger", "10.0.0.1:81");
    let far = failing().on("node-b").holds((100, 302), &foreigner, "payment-1", "10.0.0.1:81");
    let far = far.heard(-120_000, 4_000).on("node-a");
    for story in [failing(), elsewhere, anothers, far] {
        let story = story.heard(-30_000, 4_000);
        let verdict = verdict(&story);
        assert_eq!(verdict.outcome, Outcome::Hypothesis);
        assert_eq!(verdict.reason, "required evidence is missing: holder");
        assert!(story.engine(4_000).verdicts().iter().all(|it| it.outcome == Outcome::Hypothesis));
    }
}

/// Scenario: records of sockets were lost on the node around the fault; then records of another probe.
/// Guarantees: the holder's end may be among the first, so that nothing is decided; the others hide nothing of it.
#[test]
fn a_holder_whose_end_may_be_lost_decides_nothing() {
    let foreigner = foreigner();
    let story = || {
        let story = kept_out(restarted(), 300, 1, &foreigner, "10.0.0.1:81");
        kept_out(story, 1_300, 2, &foreigner, "10.0.0.1:81")
    };
    let unsure = verdict(&story().heard_with(-30_000, 4_000, "tcp_state", 3));
    assert_eq!(unsure.outcome, Outcome::Undetermined);
    assert_eq!(unsure.reason, "holder is what node-a saw, and its end may be in what node-a lost");
    let sure = verdict(&story().heard_with(-30_000, 4_000, "oom_victim", 3));
    assert_eq!(sure.outcome, Outcome::Finding, "{}", sure.reason);
}

/// Scenario: only a client that serves nothing calls payment; its calls are refused, and then whoever took the port answers
/// them with 404, one with 200, and one call stays unanswered.
/// Guarantees: the failure goes on as long as calls are answered with errors by another than was meant; each failed call is
/// counted once, and the one that went well is not.
#[test]
fn calls_that_reach_another_go_on_failing() {
    let story = |until: i64| {
        let begun = Story::new()
            .listens(-60_000, "payment", 81)
            .calls(-50_000, "job", 81)
            .heard(-120_000, -30_000)
            .stops_listening(0, "payment")
            .reset(1, "job", 81)
            .refused(10, "job", 81, 7);
        let begun = kept_out(begun, 300, 1, &foreigner(), "10.0.0.1:81");
        kept_out(begun, 1_300, 2, &foreigner(), "10.0.0.1:81")
            .answered(500, "job", 81, 404, 5)
            .answered(70_000, "job", 81, 404, 20)
            .answered(80_000, "job", 81, 200, 1)
            .unanswered(85_000, "job", 81, trace(0x5c), LinkKind::Observed)
            .answered(90_000, "job", 81, 404, 3)
            .heard(-30_000, until)
    };
    let first = verdict(&story(4_000));
    assert_eq!((first.outcome, first.reason.as_str()), (Outcome::Finding, ""));
    assert_eq!(first.first(Role::Symptom).unwrap().subject, container("job"));
    let engine = story(100_000).engine(100_000);
    let seen_until = engine.symptom_seen_until(&first);
    assert!((at(89_000)..at(91_000)).contains(&seen_until), "{seen_until:?}");
    let (count, last) = engine.symptom_count(&first, at(60_000), at(100_000));
    assert_eq!((count, last), (24, Some(seen_until)));
    // What the verdict tells of the calls that reach another is not counted once more behind its symptom's last.
    let symptom = first.first(Role::Symptom).unwrap().last.latest;
    let told = first.evidence.iter().filter(|line| line.role == Role::Effect).map(|line| line.last.latest);
    assert!(told.max().unwrap() > symptom);
    assert_eq!(engine.symptom_count(&first, symptom, at(60_000)), (0, None));
}

/// Scenario: a client that serves nothing calls payment; its agent knows first who answers there, and then only the
/// address; half an hour later its calls are still refused, and nobody knows any more whose address that was.
/// Guarantees: the failure goes on.
#[test]
fn a_failure_goes_on_when_its_address_has_no_owner_any_more() {
    let later = 1_900_000;
    let story = |until: i64| {
        let begun = Story::new()
            .listens(-60_000, "payment", 81)
            .calls(-50_000, "job", 81)
            .heard(-120_000, -30_000)
            .stops_listening(0, "payment")
            .refused_by(1, "job", &container("payment"), 3)
            .reset(10, "job", 81)
            .refused(20, "job", 81, 7);
        let begun = kept_out(begun, 300, 1, &foreigner(), "10.0.0.1:81");
        kept_out(begun, 1_300, 2, &foreigner(), "10.0.0.1:81")
            .refused(later, "job", 81, 5)
            .heard(-30_000, until)
    };
    let first = verdict(&story(4_000));
    assert_eq!((first.outcome, first.reason.as_str()), (Outcome::Finding, ""));
    let engine = story(later + 60_000).engine(later + 60_000);
    let seen_until = engine.symptom_seen_until(&first);
    assert!(seen_until >= at(later), "{seen_until:?}");
}
