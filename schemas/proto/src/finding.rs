//! A finding as a message.

use tapio_schemas::{
    entity::{EntityKey, PodIdentity},
    finding::{Continuation, EvidenceLine, Finding, NamedEntity, Unobserved},
    ledger::{LedgerEntry, LossSummary},
    observation::Value,
    units::TimeInterval,
    verdict::{Candidate, Change, Evidence, MissingEvidence, Verdict},
};

use crate::v1;

/// Each of `items` as a message.
fn all<'a, T: 'a, M: From<&'a T>>(items: &'a [T]) -> Vec<M> {
    items.iter().map(M::from).collect()
}

/// The number of a value whose enumeration has "unspecified" for zero: its code and one.
fn specified(code: u8) -> i32 {
    i32::from(code) + 1
}

/// Each of `items` as text.
fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

impl From<&Finding> for v1::Finding {
    fn from(finding: &Finding) -> Self {
        let Finding {
            id,
            incident_id,
            tenant,
            cluster,
            revision,
            state,
            resolution,
            unobserved,
            continuation,
            announced_at,
            revised_at,
            first_symptom_at,
            found_after,
            title,
            lines,
            recommended_action,
            names,
            verdict,
        } = finding;
        Self {
            id: id.clone(),
            incident_id: incident_id.clone(),
            tenant: tenant.to_string(),
            cluster: cluster.to_string(),
            revision: *revision,
            state: specified(state.code()),
            resolution: resolution.code().into(),
            unobserved: all(unobserved),
            continuation: Some(continuation.into()),
            announced_at_micros: announced_at.0,
            revised_at_micros: revised_at.0,
            first_symptom_at_micros: first_symptom_at.0,
            found_after_micros: found_after.0,
            title: title.clone(),
            lines: all(lines),
            recommended_action: recommended_action.clone(),
            names: all(names),
            verdict: Some(verdict.into()),
        }
    }
}

impl From<&Unobserved> for v1::Unobserved {
    fn from(unobserved: &Unobserved) -> Self {
        let Unobserved { node, since } = unobserved;
        Self { node: node.clone(), since_micros: since.0 }
    }
}

impl From<&Continuation> for v1::Continuation {
    fn from(continuation: &Continuation) -> Self {
        let Continuation { count, last, counted_until, at_least } = continuation;
        Self {
            count: *count,
            last_micros: last.0,
            counted_until_micros: counted_until.0,
            at_least: *at_least,
        }
    }
}

impl From<&EvidenceLine> for v1::EvidenceLine {
    fn from(line: &EvidenceLine) -> Self {
        let EvidenceLine { step, role, stance, at, text, basis } = line;
        Self {
            step: step.clone(),
            role: specified(role.code()),
            stance: specified(stance.code()),
            at_micros: at.0,
            text: text.clone(),
            basis: basis.clone(),
        }
    }
}

impl From<&NamedEntity> for v1::NamedEntity {
    fn from(named: &NamedEntity) -> Self {
        let NamedEntity { entity, name, pod } = named;
        Self { entity: Some(entity.into()), name: name.clone(), pod: pod.as_ref().map(Into::into) }
    }
}

impl From<&PodIdentity> for v1::PodIdentity {
    fn from(identity: &PodIdentity) -> Self {
        let PodIdentity { pod_uid, namespace, pod, workload, workload_kind, service, node } =
            identity.clone();
        Self { pod_uid, namespace, pod, workload, workload_kind, service, node }
    }
}

impl From<&EntityKey> for v1::EntityKey {
    fn from(key: &EntityKey) -> Self {
        let EntityKey { kind, id } = key;
        Self { kind: kind.code().into(), id: id.clone() }
    }
}

impl From<&TimeInterval> for v1::TimeInterval {
    fn from(interval: &TimeInterval) -> Self {
        let TimeInterval { earliest, latest } = interval;
        Self { earliest_micros: earliest.0, latest_micros: latest.0 }
    }
}

impl From<&Value> for v1::Value {
    fn from(value: &Value) -> Self {
        use v1::value::Kind;
        let kind = match value {
            Value::Bool(yes) => Kind::BoolValue(*yes),
            Value::Integer(number) => Kind::IntegerValue(*number),
            Value::Float(number) => Kind::FloatValue(*number),
            Value::Text(text) => Kind::TextValue(text.clone()),
        };
        Self { kind: Some(kind) }
    }
}

impl From<&Verdict> for v1::Verdict {
    fn from(verdict: &Verdict) -> Self {
        let Verdict {
            rule,
            rule_set,
            watermark,
            outcome,
            reason,
            severity,
            cause,
            evidence,
            evidence_present,
            evidence_expected,
            missing,
            candidates,
            changes,
            observed_since,
            symptom_seen_until,
            losses,
            clock_error,
            missing_probes,
            signature,
        } = verdict;
        Self {
            rule: rule.clone(),
            rule_set: rule_set.to_string(),
            watermark_micros: watermark.0,
            outcome: specified(outcome.code()),
            reason: reason.clone(),
            severity: severity.code().into(),
            cause: Some(cause.into()),
            evidence: all(evidence),
            evidence_present: *evidence_present,
            evidence_expected: *evidence_expected,
            missing: all(missing),
            candidates: all(candidates),
            changes: all(changes),
            observed_since_micros: observed_since.0,
            symptom_seen_until_micros: symptom_seen_until.0,
            losses: Some(losses.into()),
            clock_error_micros: clock_error.0,
            missing_probes: missing_probes.clone(),
            signature: signature.clone(),
        }
    }
}

impl From<&Evidence> for v1::Evidence {
    fn from(evidence: &Evidence) -> Self {
        let Evidence {
            step,
            role,
            stance,
            link,
            intents,
            order,
            subject,
            peer,
            other_peers,
            first,
            last,
            count,
            probes,
            traces,
            events,
            event_count,
            attributes,
        } = evidence;
        Self {
            step: step.clone(),
            role: specified(role.code()),
            stance: specified(stance.code()),
            link: link.code().into(),
            intents: intents.clone(),
            order: order.clone(),
            subject: Some(subject.into()),
            peer: peer.as_ref().map(Into::into),
            other_peers: other_peers.iter().map(Into::into).collect(),
            first: Some(first.into()),
            last: Some(last.into()),
            count: *count,
            probes: probes.clone(),
            traces: texts(traces),
            events: texts(events),
            event_count: *event_count,
            attributes: attributes.iter().map(|(name, value)| (name.clone(), value.into())).collect(),
        }
    }
}

impl From<&MissingEvidence> for v1::MissingEvidence {
    fn from(missing: &MissingEvidence) -> Self {
        let MissingEvidence { step, role, why } = missing;
        Self { step: step.clone(), role: specified(role.code()), why: why.clone() }
    }
}

impl From<&Candidate> for v1::Candidate {
    fn from(candidate: &Candidate) -> Self {
        let Candidate { cause, rule, evidence_present, evidence_expected, reason } = candidate;
        Self {
            cause: Some(cause.into()),
            rule: rule.clone(),
            evidence_present: *evidence_present,
            evidence_expected: *evidence_expected,
            reason: reason.clone(),
        }
    }
}

impl From<&Change> for v1::Change {
    fn from(change: &Change) -> Self {
        let Change { at, intent, subject, event, what } = change;
        Self {
            at_micros: at.0,
            intent: intent.clone(),
            subject: Some(subject.into()),
            event: event.to_string(),
            what: what.clone(),
        }
    }
}

impl From<&LossSummary> for v1::LossSummary {
    fn from(losses: &LossSummary) -> Self {
        let LossSummary { records, lost, by_reason, unknown_sources } = losses;
        Self {
            records: *records,
            lost: *lost,
            by_reason: all(by_reason),
            unknown_sources: unknown_sources.clone(),
        }
    }
}

impl From<&LedgerEntry> for v1::LedgerEntry {
    fn from(entry: &LedgerEntry) -> Self {
        let LedgerEntry { stage, fate, subject, reason, count } = entry;
        Self {
            stage: stage.code().into(),
            fate: fate.code().into(),
            subject: subject.clone(),
            reason: reason.clone(),
            count: *count,
        }
    }
}
