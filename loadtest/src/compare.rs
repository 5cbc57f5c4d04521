//! The comparer: what the running system said, held against what really happened.
//!
//! The only reader of [`Truth`]. Reads findings as REST gives them, so that a change of their shape shows here as
//! well. Never feeds anything back into the system. Called by the demo after the fact, and by tests.

use serde::Serialize;
use serde_json::Value;

use crate::scenario::{Kind, Truth};

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
}

/// What the system ought to say.
#[must_use]
pub const fn expected(kind: Kind) -> Outcome {
    match kind {
        Kind::Leak => Outcome::Finding,
        Kind::Healthy => Outcome::None,
    }
}

/// Whether a finding speaks of the run's own containers at all. A machine may run other things, of which the comparer
/// knows no truth.
#[must_use]
pub fn is_about(truth: &Truth, finding: &Value) -> bool {
    let own = |entity: Option<&Value>| {
        entity.is_some_and(|entity| {
            let id = text(entity, "/id");
            truth.containers.iter().any(|container| container == id) || truth.pods.iter().any(|pod| pod == id)
        })
    };
    let evidence = finding.pointer("/verdict/evidence").and_then(Value::as_array);
    own(finding.pointer("/verdict/cause"))
        || evidence.into_iter().flatten().any(|line| own(line.get("subject")) || own(line.get("peer")))
}

/// Judges all findings of a run that are about it. Superseded ones are corrected errors and do not count; of the others, every single
/// one must be right, and a leak needs at least one.
#[must_use]
pub fn judge(truth: &Truth, findings: &[Value]) -> Judgement {
    let standing: Vec<&Value> = findings
        .iter()
        .filter(|finding| text(finding, "/state") != "superseded" && is_about(truth, finding))
        .collect();
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
    match cause.and_then(|cause| pod_of(finding, cause, &culprit.container_id, &culprit.pod_uid)) {
        Some(pod) if pod == culprit.pod_uid => {}
        Some(pod) => {
            return Some(format!("the cause is pod {}, the finding names pod {pod}", culprit.pod_uid));
        }
        None => return Some(format!("the finding's cause belongs to no pod: {cause:?}")),
    }
    let evidence = finding.pointer("/verdict/evidence").and_then(Value::as_array);
    let killed = evidence.into_iter().flatten().any(|step| {
        text(step, "/role") == "fault"
            && text(step, "/stance") != "contradicting"
            && step.pointer("/intents/oom-kill").is_some()
    });
    if killed { None } else { Some("the fault is an oom-kill, and the finding's chain has none".to_owned()) }
}

/// The pod that an entity is or runs in, as the finding itself says.
fn pod_of(finding: &Value, entity: &Value, container_id: &str, its_pod: &str) -> Option<String> {
    match text(entity, "/kind") {
        "pod" => return Some(text(entity, "/id").to_owned()),
        "container" if text(entity, "/id") == container_id => return Some(its_pod.to_owned()),
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
    use crate::scenario::{Kind, Pace, Scenario, Truth};

    fn truth(kind: Kind) -> Truth {
        Scenario::draw(kind, 3, Pace::Demo).truth()
    }

    fn finding(cause: Value, intent: &str) -> Value {
        let intents: Value =
            [(intent.to_owned(), json!(1))].into_iter().collect::<serde_json::Map<_, _>>().into();
        let own = truth(Kind::Leak).containers[0].clone();
        json!({
            "title": "a is failing", "state": "open",
            "names": [{"entity": {"kind": "process", "id": "n/1/2"}, "name": "a", "pod": {"pod_uid": "other"}}],
            "verdict": {"outcome": "finding", "cause": cause,
                "evidence": [{"role": "fault", "stance": "supporting", "intents": intents,
                    "peer": {"kind": "container", "id": own}}]},
        })
    }

    /// Scenario: findings that name the culprit by pod or container, another pod, no pod, or another fault.
    /// Guarantees: only the culprit with the fault is right, and every judgement says why.
    #[test]
    fn only_the_culprit_and_its_fault_are_right() {
        let truth = truth(Kind::Leak);
        let culprit = truth.culprit.clone().unwrap();
        let by_pod = json!({"kind": "pod", "id": culprit.pod_uid});
        let by_container = json!({"kind": "container", "id": culprit.container_id});
        for cause in [by_pod.clone(), by_container] {
            let judgement = judge(&truth, &[finding(cause, "oom-kill")]);
            assert!(judgement.right, "{}", judgement.wrong_because);
        }
        let other = json!({"kind": "container", "id": "f00"});
        let process = json!({"kind": "process", "id": "n/1/2"});
        for (cause, intent) in [(other, "oom-kill"), (process, "oom-kill"), (by_pod.clone(), "fatal-signal")]
        {
            let judgement = judge(&truth, &[finding(by_pod.clone(), "oom-kill"), finding(cause, intent)]);
            assert!(!judgement.right && !judgement.wrong_because.is_empty());
            assert_eq!(judgement.outcome, Outcome::Finding);
        }
    }

    /// Scenario: beside a healthy run, something else on the machine fails and is found.
    /// Guarantees: only what speaks of the run's own containers is judged.
    #[test]
    fn other_things_on_the_machine_are_not_judged() {
        let mut other = finding(json!({"kind": "container", "id": "f00"}), "oom-kill");
        other["verdict"]["evidence"][0]["peer"] = json!({"kind": "container", "id": "f01"});
        let judgement = judge(&truth(Kind::Healthy), &[other]);
        assert_eq!((judgement.outcome, judgement.right), (Outcome::None, true));
    }

    /// Scenario: a leak without a finding, one that is undetermined, one whose wrong finding was superseded; a healthy
    /// run with and without a finding.
    /// Guarantees: silence is right for the healthy twin alone, and indecision never is.
    #[test]
    fn silence_and_indecision_are_judged() {
        let leak = truth(Kind::Leak);
        let cause = json!({"kind": "pod", "id": leak.culprit.clone().unwrap().pod_uid});
        let right = finding(cause.clone(), "oom-kill");
        let mut undetermined = right.clone();
        undetermined["verdict"]["outcome"] = json!("undetermined");
        let mut superseded = finding(json!({"kind": "pod", "id": "x"}), "oom-kill");
        superseded["state"] = json!("superseded");
        assert_eq!((judge(&leak, &[]).outcome, judge(&leak, &[]).right), (Outcome::None, false));
        let judgement = judge(&leak, &[undetermined]);
        assert_eq!((judgement.outcome, judgement.right), (Outcome::Undetermined, false));
        assert!(judge(&leak, &[superseded, right.clone()]).right);
        let healthy = truth(Kind::Healthy);
        assert!(judge(&healthy, &[]).right);
        assert!(!judge(&healthy, &[right]).right);
    }
}
