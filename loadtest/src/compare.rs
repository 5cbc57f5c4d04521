//! The comparer: what the running system said, held against what really happened.
//!
//! The only reader of [`Truth`]. Reads findings as REST gives them, so that a change of their shape shows here as
//! well. Never feeds anything back into the system. Called by the demo after the fact, and by tests.

use serde::Serialize;
use serde_json::Value;

use crate::scenario::{Culprit, Holder, Kind, Members, Truth};

/// What the system said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// At least one finding.
    Finding,
    /// Nothing.
    None,
    /// It could not decide.
    Undetermined,
}

/// What the comparer thinks of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// What the system said.
    pub outcome: Outcome,
    /// Whether that is what happened.
    pub right: bool,
    /// Why not, for a person; empty where right.
    pub wrong_because: String,
    /// The finding that decides, as REST gave it: a wrong one, if there is any.
    pub finding: Option<Value>,
    /// Findings that are not about the run.
    pub others: usize,
}

/// What the system ought to say.
#[must_use]
pub const fn expected(kind: Kind) -> Outcome {
    if kind.is_twin() { Outcome::None } else { Outcome::Finding }
}

/// Whether a finding speaks of the run's own containers at all. A machine may run other things, of which the comparer
/// knows no truth.
#[must_use]
pub fn is_about(members: &Members, finding: &Value) -> bool {
    let own = |entity: Option<&Value>| entity.is_some_and(|entity| members.contains(text(entity, "/id")));
    let evidence = finding.pointer("/verdict/evidence").and_then(Value::as_array);
    own(finding.pointer("/verdict/cause"))
        || evidence.into_iter().flatten().any(|line| own(line.get("subject")) || own(line.get("peer")))
}

/// Judges all findings that are about a run's `members`. Superseded ones are corrected errors and do not count; of the
/// others, every single one must be right, and a failure needs at least one.
#[must_use]
pub fn judge(truth: &Truth, members: &Members, findings: &[Value]) -> Judgement {
    let (own, others): (Vec<&Value>, Vec<&Value>) =
        findings.iter().partition(|finding| is_about(members, finding));
    let standing: Vec<&Value> =
        own.into_iter().filter(|finding| text(finding, "/state") != "superseded").collect();
    let decided: Vec<&Value> =
        standing.iter().copied().filter(|finding| text(finding, "/verdict/outcome") == "finding").collect();
    let outcome = match (decided.is_empty(), standing.is_empty()) {
        (false, _) => Outcome::Finding,
        (true, false) => Outcome::Undetermined,
        (true, true) => Outcome::None,
    };
    let fault = decided.iter().find_map(|finding| fault_of(truth, finding).map(|why| (*finding, why)));
    let judged = |wrong_because: String, finding: Option<&Value>| Judgement {
        outcome,
        right: wrong_because.is_empty(),
        wrong_because,
        finding: finding.cloned(),
        others: others.len(),
    };
    match fault {
        Some((finding, why)) => judged(why, Some(finding)),
        None if outcome == expected(truth.kind) => judged(String::new(), decided.first().copied()),
        None => {
            let why = format!("{:?} was expected, the system said {outcome:?}", expected(truth.kind));
            judged(why, standing.first().copied())
        }
    }
}

/// Why a finding is wrong; `None` where it is right.
fn fault_of(truth: &Truth, finding: &Value) -> Option<String> {
    let Some(culprit) = &truth.culprit else {
        return Some(format!("nothing failed, and the system said: {}", text(finding, "/title")));
    };
    let cause = finding.pointer("/verdict/cause");
    match cause.and_then(|cause| pod_of(finding, cause, culprit)) {
        Some(pod) if pod == culprit.pod_uid => {}
        Some(pod) => {
            return Some(format!("the cause is pod {}, the finding names pod {pod}", culprit.pod_uid));
        }
        None => return Some(format!("the finding's cause belongs to no pod: {cause:?}")),
    }
    let evidence = finding.pointer("/verdict/evidence").and_then(Value::as_array);
    let supporting: Vec<&Value> =
        evidence.into_iter().flatten().filter(|line| text(line, "/stance") == "supporting").collect();
    let has = |role: &str, fits: &dyn Fn(&Value) -> bool| {
        supporting.iter().any(|line| text(line, "/role") == role && fits(line))
    };
    let shows = truth.symptom_container_id.as_deref().unwrap_or_default();
    let is = |line: &Value, intent: &str| line.pointer(&format!("/intents/{intent}")).is_some();
    let is_shown = |line: &Value| text(line, "/subject/id") == shows;
    let speaks_of_the_culprit = |line: &Value| {
        [text(line, "/subject/id"), text(line, "/peer/id")].iter().any(|id| is_of(culprit, id))
    };
    let is_about_the_culprit = |line: &Value, intent: &str| is(line, intent) && speaks_of_the_culprit(line);
    let is_missed = |line: &Value| {
        let path = text(line, "/attributes/kernel.path");
        culprit.missing_file.as_deref().is_some_and(|file| path.ends_with(file))
    };
    let own = match truth.kind {
        Kind::MissingConfig => [
            (
                has("fault", &|line| is_about_the_culprit(line, "container-failed")),
                "the culprit exits with an error when it starts, and the finding's chain has no such exit",
            ),
            (
                has("cause", &|line| is_about_the_culprit(line, "file-vanished") && is_missed(line)),
                "the culprit misses its configuration, and the finding's chain does not show that file",
            ),
        ],
        Kind::PortInUse => [
            (
                has("fault", &|line| is_about_the_culprit(line, "address-in-use")),
                "the culprit cannot listen when it starts, and the finding's chain has no such failure",
            ),
            (
                has("cause", &|line| is(line, "address-held") && is_holder(culprit, line)),
                "another process has the culprit's port, and the finding's chain does not name that process",
            ),
        ],
        Kind::Leak | Kind::Healthy | Kind::Restart | Kind::WrongConfig | Kind::PortFree => [
            (
                has("fault", &|line| is(line, "oom-kill")),
                "the fault is an oom-kill, and the finding's chain has none",
            ),
            (
                has("cause", &speaks_of_the_culprit),
                "the culprit grew before, and the finding's chain has no growth",
            ),
        ],
    };
    let all = [
        (
            has("effect", &|line| speaks_of_the_culprit(line) || is_toward_its_port(culprit, line)),
            "calls to the culprit broke, and the finding's chain has none",
        ),
        (has("symptom", &is_shown), "the failure shows elsewhere than where the finding says"),
    ];
    own.iter().chain(&all).find(|(holds, _)| !holds).map(|(_, why)| (*why).to_owned())
}

/// Whether a line is about the process that has the culprit's port: by command name, process id, and its container, or
/// itself where it is in none.
fn is_holder(culprit: &Culprit, line: &Value) -> bool {
    let Some(Holder { command, container_id, pid: Some(pid), .. }) = &culprit.holder else { return false };
    let is_subject = match container_id {
        Some(id) => (text(line, "/subject/kind"), text(line, "/subject/id")) == ("container", id.as_str()),
        None => {
            text(line, "/subject/kind") == "process"
                && text(line, "/subject/id").split('/').nth(1) == Some(pid.to_string().as_str())
        }
    };
    is_subject
        && text(line, "/attributes/kernel.command") == command
        && line.pointer("/attributes/kernel.pid").and_then(Value::as_u64) == Some(u64::from(*pid))
}

/// Whether a line's other side is the address that the culprit had: the node names no container there once another has it.
fn is_toward_its_port(culprit: &Culprit, line: &Value) -> bool {
    let port = culprit.holder.as_ref().and_then(|holder| holder.port);
    let peer = Some(text(line, "/peer/id")).filter(|_| text(line, "/peer/kind") == "endpoint");
    let called = peer.and_then(|id| id.rsplit_once(':')).and_then(|(_, port)| port.parse().ok());
    port.is_some() && called == port
}

/// Whether an id is the culprit's: its pod's, or that of one of its containers.
fn is_of(culprit: &Culprit, id: &str) -> bool {
    culprit.pod_uid == id || culprit.container_ids.contains(id)
}

/// The pod that an entity is or runs in, as the finding itself says.
fn pod_of(finding: &Value, entity: &Value, culprit: &Culprit) -> Option<String> {
    match text(entity, "/kind") {
        "pod" => return Some(text(entity, "/id").to_owned()),
        "container" if culprit.container_ids.contains(text(entity, "/id")) => {
            return Some(culprit.pod_uid.clone());
        }
        _ => {}
    }
    let names = finding.pointer("/names").and_then(Value::as_array)?;
    let named = names.iter().find(|named| named.pointer("/entity") == Some(entity))?;
    Some(text(named, "/pod/pod_uid").to_owned()).filter(|uid| !uid.is_empty())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Outcome, judge};
    use crate::scenario::{Kind, Members, Pace, Scenario, Truth};

    fn truth(kind: Kind) -> (Truth, Members) {
        let scenario = Scenario::draw(kind, 3, Pace::Demo);
        (scenario.truth(), scenario.members())
    }

    /// A right finding of the leak.
    fn right() -> Value {
        let (truth, _) = truth(Kind::Leak);
        let culprit = json!({"kind": "container", "id": truth.culprit.unwrap().container_id});
        let shows = json!({"kind": "container", "id": truth.symptom_container_id.unwrap()});
        let line = |role: &str, intent: &str, subject: &Value, peer: &Value| {
            let mut intents = serde_json::Map::new();
            intents.insert(intent.to_owned(), json!(1));
            json!({"role": role, "stance": "supporting", "intents": intents, "subject": subject, "peer": peer})
        };
        json!({
            "title": "a is failing", "state": "open",
            "names": [{"entity": {"kind": "process", "id": "n/1/2"}, "name": "a", "pod": {"pod_uid": "other"}}],
            "verdict": {"outcome": "finding", "cause": culprit.clone(), "evidence": [
                line("cause", "memory-growth", &culprit, &Value::Null),
                line("fault", "oom-kill", &culprit, &Value::Null),
                line("effect", "connection-refused", &shows, &culprit),
                line("symptom", "request-served-error", &shows, &Value::Null),
            ]},
        })
    }

    fn with_cause(cause: Value) -> Value {
        let mut finding = right();
        finding["verdict"]["cause"] = cause;
        finding
    }

    /// Scenario: findings that name the culprit by pod or container, another container, a process of another pod.
    /// Guarantees: only the culprit is right, a wrong finding beside a right one is wrong, and every judgement says why.
    #[test]
    fn only_the_culprit_is_right() {
        let (truth, members) = truth(Kind::Leak);
        let by_pod = json!({"kind": "pod", "id": truth.culprit.clone().unwrap().pod_uid});
        for finding in [right(), with_cause(by_pod)] {
            let judgement = judge(&truth, &members, &[finding]);
            assert!(judgement.right, "{}", judgement.wrong_because);
        }
        for cause in [json!({"kind": "container", "id": "f00"}), json!({"kind": "process", "id": "n/1/2"})] {
            let judgement = judge(&truth, &members, &[right(), with_cause(cause)]);
            assert!(!judgement.right && !judgement.wrong_because.is_empty());
            assert_eq!(judgement.outcome, Outcome::Finding);
        }
    }

    /// Scenario: a right finding that lacks one of its lines, or has it as a contradiction, or shows the symptom in
    /// another container.
    /// Guarantees: the whole chain is judged, not the name alone.
    #[test]
    fn the_whole_chain_must_be_right() {
        let (truth, members) = truth(Kind::Leak);
        for line in 0..4 {
            let mut lacking = right();
            lacking["verdict"]["evidence"].as_array_mut().unwrap().remove(line);
            assert!(!judge(&truth, &members, &[lacking]).right, "without line {line}");
            let mut contradicting = right();
            contradicting["verdict"]["evidence"][line]["stance"] = json!("contradicting");
            assert!(!judge(&truth, &members, &[contradicting]).right, "with line {line} against it");
        }
        let mut elsewhere = right();
        elsewhere["verdict"]["evidence"][3]["subject"]["id"] = json!("f00");
        assert!(!judge(&truth, &members, &[elsewhere]).right);
        let mut other_fault = right();
        other_fault["verdict"]["evidence"][1]["intents"] = json!({"fatal-signal": 1});
        assert!(!judge(&truth, &members, &[other_fault]).right);
    }

    /// Scenario: a right finding of a missing configuration; the same with another file, with the pod's first container
    /// in the place of a later one, with the chain of a leak, and as the finding of the healthy twin.
    /// Guarantees: the file decides, whichever of the pod's containers is named; a finding of another failure is wrong.
    #[test]
    fn the_missing_file_must_be_named() {
        let (fails, members) = truth(Kind::MissingConfig);
        let culprit = fails.culprit.clone().unwrap();
        let pod = json!({"kind": "pod", "id": culprit.pod_uid});
        let mut finding = with_cause(pod.clone());
        let lines = finding["verdict"]["evidence"].as_array_mut().unwrap();
        lines[0]["intents"] = json!({"file-vanished": 2});
        lines[0]["subject"] = pod.clone();
        lines[0]["attributes"] = json!({"kernel.path": format!("/run{}", culprit.missing_file.unwrap())});
        lines[1]["intents"] = json!({"container-failed": 2});
        lines[1]["subject"] = pod;
        let shows = json!({"kind": "container", "id": fails.symptom_container_id.clone().unwrap()});
        let last = culprit.container_ids.last().unwrap();
        lines[2]["peer"] = json!({"kind": "container", "id": last});
        lines[3]["subject"] = shows;
        let judged = |finding: &Value| judge(&fails, &members, std::slice::from_ref(finding));
        assert!(judged(&finding).right, "{}", judged(&finding).wrong_because);
        let mut of_container = finding.clone();
        of_container["verdict"]["cause"] = json!({"kind": "container", "id": last});
        assert!(judged(&of_container).right);
        let mut other_file = finding.clone();
        other_file["verdict"]["evidence"][0]["attributes"]["kernel.path"] = json!("/etc/locale.alias");
        assert!(judged(&other_file).wrong_because.contains("does not show that file"));
        assert!(!judged(&right()).right);
        let (twin, members) = truth(Kind::Restart);
        assert!(!judge(&twin, &members, &[finding]).right);
        assert!(judge(&twin, &members, &[]).right);
    }

    /// Scenario: a right finding of a port that another process has, in a container and outside of all; the same with
    /// another process id, command or container; as the finding of the healthy twin.
    /// Guarantees: the process must be named.
    #[test]
    fn the_holder_of_the_port_must_be_named() {
        let (mut fails, members) = truth(Kind::PortInUse);
        let culprit = fails.culprit.clone().unwrap();
        let pod = json!({"kind": "pod", "id": culprit.pod_uid});
        let mut finding = with_cause(pod.clone());
        let lines = finding["verdict"]["evidence"].as_array_mut().unwrap();
        lines[0]["intents"] = json!({"address-held": 2});
        lines[0]["attributes"] = json!({"kernel.command": "spoolerd", "kernel.pid": 77});
        lines[1]["intents"] = json!({"address-in-use": 2});
        lines[1]["subject"] = pod;
        let last = culprit.container_ids.last().unwrap();
        lines[2]["peer"] = json!({"kind": "container", "id": last});
        lines[3]["subject"] = json!({"kind": "container", "id": fails.symptom_container_id.clone().unwrap()});
        let places = [
            (
                None,
                json!({"kind": "process", "id": "node/77/5"}),
                json!({"kind": "process", "id": "node/78/5"}),
            ),
            (
                Some("f00"),
                json!({"kind": "container", "id": "f00"}),
                json!({"kind": "process", "id": "node/77/5"}),
            ),
        ];
        for (container_id, subject, other) in places {
            let holder = super::Holder {
                command: "spoolerd".to_owned(),
                container_id: container_id.map(str::to_owned),
                pid: Some(77),
                port: Some(80),
            };
            fails.culprit.as_mut().unwrap().holder = Some(holder);
            let judged = |finding: &Value| judge(&fails, &members, std::slice::from_ref(finding));
            let mut finding = finding.clone();
            finding["verdict"]["evidence"][0]["subject"] = subject;
            assert!(judged(&finding).right, "{}", judged(&finding).wrong_because);
            let changes: [(&str, Value); 3] = [
                ("/verdict/evidence/0/attributes/kernel.pid", json!(78)),
                ("/verdict/evidence/0/attributes/kernel.command", json!("syncd")),
                ("/verdict/evidence/0/subject", other),
            ];
            for (at, value) in changes {
                let mut wrong = finding.clone();
                *wrong.pointer_mut(at).unwrap() = value;
                assert!(judged(&wrong).wrong_because.contains("does not name that process"), "{at}");
            }
            let (twin, members) = truth(Kind::PortFree);
            assert!(!judge(&twin, &members, &[finding]).right);
        }
    }

    /// Scenario: beside a healthy run, something else on the machine fails and is found.
    /// Guarantees: only what speaks of the run's own containers is judged.
    #[test]
    fn other_things_on_the_machine_are_not_judged() {
        let mut other = with_cause(json!({"kind": "container", "id": "f00"}));
        for line in other["verdict"]["evidence"].as_array_mut().unwrap() {
            line["subject"]["id"] = json!("f00");
            line["peer"] = json!({"kind": "container", "id": "f01"});
        }
        let (truth, members) = truth(Kind::Healthy);
        let judgement = judge(&truth, &members, &[other]);
        assert_eq!((judgement.outcome, judgement.right, judgement.others), (Outcome::None, true, 1));
    }

    /// Scenario: a leak without a finding, one that is undetermined, one whose wrong finding was superseded; a healthy
    /// run with and without a finding.
    /// Guarantees: silence is right for the healthy twin alone, and indecision never is.
    #[test]
    fn silence_and_indecision_are_judged() {
        let (leak, members) = truth(Kind::Leak);
        let mut undetermined = right();
        undetermined["verdict"]["outcome"] = json!("undetermined");
        let mut superseded = with_cause(json!({"kind": "pod", "id": "x"}));
        superseded["state"] = json!("superseded");
        let silence = judge(&leak, &members, &[]);
        assert_eq!((silence.outcome, silence.right), (Outcome::None, false));
        let judgement = judge(&leak, &members, &[undetermined]);
        assert_eq!((judgement.outcome, judgement.right), (Outcome::Undetermined, false));
        assert!(judge(&leak, &members, &[superseded, right()]).right);
        let (healthy, members) = truth(Kind::Healthy);
        assert!(judge(&healthy, &members, &[]).right);
        assert!(!judge(&healthy, &members, &[right()]).right);
    }
}
