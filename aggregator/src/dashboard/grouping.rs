//! Findings by incident, in the order in which a person looks at them; `central/ui/web/incidents.ts` does the same with
//! what comes later. One table of cases holds both to it.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use tapio_schemas::{
    finding::{Finding, FindingState},
    units::UnixMicros,
};

/// Findings that share a cause.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: String,
    /// Of its findings' states the one that says the most: open, then resolved.
    pub(super) state: FindingState,
    /// Its first symptom.
    since: UnixMicros,
    /// Open ones first, the latest first.
    pub(super) findings: Vec<Arc<Finding>>,
}

/// The incidents, open ones first, the latest first.
pub(super) fn group(findings: impl IntoIterator<Item = Arc<Finding>>) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for finding in findings {
        let (id, state, since) = (&finding.incident_id, finding.state, finding.first_symptom_at);
        let group = groups.entry(id.clone()).or_insert_with(|| Group {
            id: id.clone(),
            state,
            since,
            findings: Vec::new(),
        });
        if weight(state) > weight(group.state) {
            group.state = state;
        }
        group.since = group.since.min(since);
        group.findings.push(finding);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.findings.sort_by(|a, b| {
            let key = |finding: &Finding| (is_over(finding.state), Reverse(finding.first_symptom_at));
            key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
        });
    }
    // Stable: those of one moment stay in the order of their ids.
    groups.sort_by_key(|group| (is_over(group.state), Reverse(group.since)));
    groups
}

const fn is_over(state: FindingState) -> bool {
    !matches!(state, FindingState::Open)
}

const fn weight(state: FindingState) -> u8 {
    match state {
        FindingState::Superseded => 0,
        FindingState::Resolved => 1,
        FindingState::Open => 2,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tapio_schemas::intent::Severity;

    use super::*;
    use crate::recent;

    /// Scenario: the findings of the table that the page's own test reads too.
    /// Guarantees: they are grouped, told and ordered as the page does it.
    #[test]
    fn findings_are_grouped_as_on_the_page() {
        let table: Value =
            serde_json::from_str(include_str!("../../../central/ui/tests/unit/grouping.json")).unwrap();
        let findings = table["findings"].as_array().unwrap().iter().map(|case| {
            let any = recent::tests::finding(1, 1, FindingState::Open, Severity::Error);
            let mut finding = Arc::unwrap_or_clone(any);
            finding.id = case["id"].as_str().unwrap().to_owned();
            finding.incident_id = case["incident_id"].as_str().unwrap().to_owned();
            finding.state = serde_json::from_value(case["state"].clone()).unwrap();
            finding.first_symptom_at = UnixMicros(case["first_symptom_at"].as_u64().unwrap());
            Arc::new(finding)
        });
        let grouped: Vec<Value> = group(findings)
            .into_iter()
            .map(|group| {
                let ids: Vec<_> = group.findings.iter().map(|finding| finding.id.clone()).collect();
                json!({"id": group.id, "state": group.state, "findings": ids})
            })
            .collect();
        assert_eq!(Value::Array(grouped), table["incidents"]);
    }
}
