//! Findings, events and entities to vary.

use std::collections::BTreeMap;

use tapio_schemas::{
    entity::{EntityKey, EntityKind, PodIdentity},
    event::{Core, UnifiedEvent},
    finding::{Continuation, EvidenceLine, Finding, FindingState, NamedEntity, Resolution},
    ids::{EventId, FrameId, Incarnation, RuleSetVersion, Sequence, SourceId, TraceId},
    intent::{LinkKind, Severity},
    ledger::LossSummary,
    observation::Value,
    units::{Micros, TimeInterval, UnixMicros},
    verdict::{Candidate, Change, Evidence, MissingEvidence, Outcome, Role, Stance, Verdict},
};

use crate::rows::EventRow;

/// The first revision of a finding with a whole chain, announced at `announced_at`.
pub(crate) fn finding(number: u64, announced_at: UnixMicros) -> Finding {
    let first_symptom_at = announced_at.minus(Micros::from_millis(640));
    let roles = [Role::Cause, Role::Fault, Role::Effect, Role::Symptom];
    let evidence: Vec<_> = roles.into_iter().map(|role| evidence(number, role, first_symptom_at)).collect();
    let lines = evidence.iter().map(|evidence| EvidenceLine {
        step: evidence.step.clone(),
        role: evidence.role,
        stance: evidence.stance,
        at: evidence.first.middle(),
        text: format!("payment {} of finding {number}", evidence.step),
        basis: "observed  oom:mark_victim".to_owned(),
    });
    let cause = EntityKey::new(EntityKind::Container, format!("{number:064x}"));
    Finding {
        id: format!("f-{number:016x}"),
        incident_id: format!("i-{number:016x}"),
        tenant: "default".parse().unwrap(),
        cluster: "c1".parse().unwrap(),
        revision: 1,
        state: FindingState::Open,
        resolution: Resolution::Unspecified,
        unobserved: Vec::new(),
        continuation: Continuation::default(),
        announced_at,
        revised_at: announced_at,
        first_symptom_at,
        found_after: Micros::from_millis(640),
        title: format!("shop is failing because payment was killed for memory, case {number}"),
        lines: lines.collect(),
        recommended_action: "raise the limit, or find the leak".to_owned(),
        names: vec![NamedEntity { entity: cause.clone(), name: "payment".to_owned(), pod: Some(pod()) }],
        verdict: verdict(cause, evidence, first_symptom_at),
    }
}

fn verdict(cause: EntityKey, evidence: Vec<Evidence>, at: UnixMicros) -> Verdict {
    let candidate = Candidate {
        cause: cause.clone(),
        rule: "oom-kill".to_owned(),
        evidence_present: 4,
        evidence_expected: 5,
        reason: "it explains every symptom".to_owned(),
    };
    let change = Change {
        at: at.minus(Micros::from_secs(60)),
        intent: "container-started".to_owned(),
        subject: cause.clone(),
        event: event_id(1, 1, 1, 0),
        what: "payment was started".to_owned(),
    };
    Verdict {
        rule: "oom-kill".to_owned(),
        rule_set: RuleSetVersion(u64::MAX - 7),
        watermark: at,
        outcome: Outcome::Finding,
        reason: String::new(),
        severity: Severity::Critical,
        cause,
        evidence,
        evidence_present: 4,
        evidence_expected: 5,
        missing: vec![MissingEvidence {
            step: "retries".to_owned(),
            role: Role::Effect,
            why: "it was not there".to_owned(),
        }],
        candidates: vec![candidate],
        changes: vec![change],
        observed_since: at.minus(Micros::from_secs(120)),
        symptom_seen_until: at,
        losses: LossSummary { records: 18_204, lost: 3, ..LossSummary::default() },
        clock_error: Micros(40),
        missing_probes: vec!["tcp-reset".to_owned()],
        signature: "0123456789abcdef0123456789abcdef".to_owned(),
    }
}

fn evidence(number: u64, role: Role, at: UnixMicros) -> Evidence {
    let step = format!("step-{}", role.as_str());
    let interval = TimeInterval::around(at, Micros(40));
    Evidence {
        step,
        role,
        stance: Stance::Supporting,
        link: LinkKind::Observed,
        intents: BTreeMap::from([("oom-kill".to_owned(), 1), ("process-killed".to_owned(), u64::MAX)]),
        order: vec!["process-killed".to_owned(), "oom-kill".to_owned()],
        subject: EntityKey::new(EntityKind::Container, format!("{number:064x}")),
        peer: Some(EntityKey::new(EntityKind::Endpoint, "10.0.0.1:80")),
        other_peers: vec![EntityKey::new(EntityKind::Container, "c".repeat(64))],
        first: interval,
        last: interval,
        count: 412,
        probes: vec!["oom-victim".to_owned()],
        traces: vec![TraceId([0x4b; 16])],
        events: vec![event_id(1, 2, number, 3)],
        event_count: 412,
        attributes: BTreeMap::from([
            ("command".to_owned(), Value::Text("pay\"ment \\ 🦀\u{1}".to_owned())),
            ("size".to_owned(), Value::Integer(-1)),
            ("share".to_owned(), Value::Float(0.1)),
            ("main".to_owned(), Value::Bool(true)),
        ]),
    }
}

fn pod() -> PodIdentity {
    PodIdentity {
        pod_uid: "0a1b".to_owned(),
        namespace: "default".to_owned(),
        pod: "payment-0".to_owned(),
        service: "payment".to_owned(),
        ..PodIdentity::default()
    }
}

pub(crate) fn event_id(source: u8, incarnation: u64, sequence: u64, row: u32) -> EventId {
    let source = SourceId([source; 16]);
    FrameId { source, incarnation: Incarnation(incarnation), sequence: Sequence(sequence) }.row(row)
}

/// An event of node `n1` in cluster `c1` with nothing but its id, time and count.
pub(crate) fn event(id: EventId, at: UnixMicros) -> EventRow {
    EventRow {
        cluster: "c1".to_owned(),
        node: "n1".to_owned(),
        event: UnifiedEvent {
            id,
            core: Core { time_micros: at.0, count: 1, ..Core::default() },
            ..UnifiedEvent::default()
        },
    }
}
