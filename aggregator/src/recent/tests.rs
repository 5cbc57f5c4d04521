use serde_json::json;
use tapio_schemas::{finding::FindingState, intent::Severity, units::UnixMicros};

use super::*;

/// A finding of number `number`, announced at that second.
pub(crate) fn finding(number: u64, revision: u32, state: FindingState, severity: Severity) -> Arc<Finding> {
    let at = number * 1_000_000;
    let value = json!({
        "id": format!("f-{number:016x}"), "incident_id": "i-1", "tenant": "default", "cluster": "demo",
        "revision": revision, "state": state, "announced_at": at, "revised_at": at + u64::from(revision),
        "first_symptom_at": at, "found_after": 0, "title": "t", "lines": [], "recommended_action": "", "names": [],
        "verdict": {
            "rule": "r", "rule_set": "0000000000000001", "watermark": at, "outcome": "finding", "reason": "",
            "severity": severity, "cause": {"kind": "container", "id": "c"}, "evidence": [], "evidence_present": 1,
            "evidence_expected": 1, "missing": [], "candidates": [], "changes": [], "observed_since": 0,
            "losses": {"records": 0, "lost": 0, "by_reason": [], "unknown_sources": []}, "clock_error": 0,
            "missing_probes": [], "signature": "",
        },
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn open(number: u64, revision: u32) -> Arc<Finding> {
    finding(number, revision, FindingState::Open, Severity::Error)
}

async fn revision(follower: &mut Follower) -> (String, u32) {
    match follower.next().await {
        Followed::Revision(finding) => (finding.id.clone(), finding.revision),
        Followed::Missed(count) => panic!("{count} revisions were missed"),
    }
}

/// Scenario: revisions come while somebody follows, who goes and comes back with the cursor.
/// Guarantees: each revision is told once, in order, those too that came in between.
#[tokio::test]
async fn who_comes_back_misses_nothing() {
    let recent = Recent::new(8);
    recent.begin(7, 7);
    let Following { findings: known, missed, mut follower } = recent.follow(None).unwrap();
    assert!(known.is_empty() && missed == 0);
    recent.put(7, open(1, 1));
    assert_eq!(revision(&mut follower).await, (open(1, 1).id.clone(), 1));
    let cursor: Cursor = follower.cursor().to_string().parse().unwrap();
    drop(follower);
    recent.put(8, open(1, 2));
    recent.put(9, open(2, 1));
    let Following { findings: known, missed, mut follower } = recent.follow(Some(cursor)).unwrap();
    assert_eq!((known.len(), missed), (2, 0));
    assert_eq!(revision(&mut follower).await.1, 2);
    assert_eq!(revision(&mut follower).await.0, open(2, 1).id);
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), follower.next()).await;
    assert!(waiting.is_err());
    recent.put(10, finding(2, 2, FindingState::Resolved, Severity::Error));
    assert_eq!(revision(&mut follower).await.1, 2);
    let states =
        recent.follow(None).unwrap().findings.iter().map(|finding| finding.state).collect::<Vec<_>>();
    assert_eq!(states, [FindingState::Open, FindingState::Resolved]);
}

/// Scenario: a follower sleeps while more revisions come than are kept; another comes back with a cursor that is older
/// than what is kept.
/// Guarantees: each is told how many it missed, and goes on with the oldest that is kept.
#[tokio::test]
async fn who_is_too_slow_is_told() {
    let recent = Recent::new(8);
    let Following { mut follower, .. } = recent.follow(None).unwrap();
    let old = follower.cursor();
    for place in 0..REVISIONS_MAX as u64 + 5 {
        recent.put(place, open(place, 1));
    }
    assert_eq!(follower.next().await, Followed::Missed(5));
    assert_eq!(revision(&mut follower).await.0, open(5, 1).id);
    let Following { missed, mut follower, .. } = recent.follow(Some(old)).unwrap();
    assert_eq!(missed, 5);
    assert_eq!(revision(&mut follower).await.0, open(5, 1).id);
    assert_eq!(recent.findings().len(), 8);
}

/// Scenario: cursors that were never given out: ahead, of another state directory, and other texts.
/// Guarantees: each is refused.
#[test]
fn foreign_cursors_are_refused() {
    let recent = Recent::new(8);
    recent.put(0, open(1, 1));
    let cursor = recent.follow(None).unwrap().follower.cursor();
    assert_eq!(cursor, Cursor { log: 0, next: 1, revised_at: UnixMicros(1_000_001) });
    assert!(recent.follow(Some(cursor)).is_ok());
    let ahead = Cursor { next: 2, ..cursor };
    let other = Cursor { revised_at: UnixMicros(9), ..cursor };
    // Of an aggregator that had announced nothing: only the log tells them apart.
    let other_log = Recent::new(8);
    other_log.of_log(2);
    let elsewhere = other_log.follow(None).unwrap().follower.cursor();
    for foreign in [ahead, other, elsewhere] {
        assert_eq!(recent.follow(Some(foreign)).unwrap_err(), CursorError::Foreign);
    }
    for text in ["", "r2", "r2.1.0", "r1.0.0", "r2.1.0.0.0", "r2.1.x.0"] {
        assert_eq!(text.parse::<Cursor>(), Err(CursorError::Malformed), "{text}");
    }
}
