//! `GET /findings` and `GET /findings/{id}`.

use std::collections::BTreeSet;

use tapio_schemas::{
    finding::{Finding, FindingState},
    intent::Severity,
    units::Micros,
};

use crate::{
    samples::finding,
    world::{Query, World, now, rfc3339},
};

fn ids(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.id.as_str()).collect()
}

/// Scenario: six findings that differ in one property each; every filter alone, and all at once.
/// Guarantees: each filter selects exactly the findings with that property, times are [since, until) of the
/// announcement, and without `since` the list reaches back a day.
#[test]
fn each_filter_selects() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(3_600));
    let at = |seconds| start.plus(Micros::from_secs(seconds));
    let mut all: Vec<Finding> = (0..6).map(|number| finding(number, at(number))).collect();
    all[1].cluster = "c2".parse().unwrap();
    all[2].state = FindingState::Resolved;
    all[3].verdict.rule = "disk-full".to_owned();
    all[4].verdict.severity = Severity::Warning;
    all[5].incident_id = "i-other".to_owned();
    world.insert_findings(&all);
    let old = finding(9, now().minus(Micros::from_secs(25 * 3_600)));
    world.insert_findings(&[old]);

    let (third, fourth) = (rfc3339(at(3)), rfc3339(at(4)));
    let cases: &[(Query<'_>, &[usize])] = &[
        (&[], &[5, 4, 3, 2, 1, 0]),
        (&[("cluster", "c2")], &[1]),
        (&[("cluster", "c3")], &[]),
        (&[("state", "resolved")], &[2]),
        (&[("state", "open")], &[5, 4, 3, 1, 0]),
        (&[("state", "superseded")], &[]),
        (&[("rule", "disk-full")], &[3]),
        (&[("severity", "warning")], &[4]),
        (&[("severity", "critical")], &[5, 3, 2, 1, 0]),
        (&[("incident_id", "i-other")], &[5]),
        (&[("since", &third)], &[5, 4, 3]),
        (&[("until", &third)], &[2, 1, 0]),
        (&[("since", &third), ("until", &fourth)], &[3]),
        (&[("since", &fourth), ("until", &third)], &[]),
        (&[("since", "50m")], &[]),
        (&[("cluster", "c1"), ("state", "open"), ("rule", "oom-kill"), ("severity", "critical")], &[5, 0]),
    ];
    for (query, expected) in cases {
        let expected: Vec<&Finding> = expected.iter().map(|index| &all[*index]).collect();
        let found: Vec<Finding> = world.items("/findings", query);
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{query:?}");
    }
    let everything: Vec<Finding> = world.items("/findings", &[("since", "7d")]);
    assert_eq!(everything.len(), 7);
}

/// Scenario: revisions of two findings arrive in several blocks and out of order; state, severity, incident and title
/// differ between them.
/// Guarantees: lists and single answers give the newest revision, and filters look at nothing older.
#[test]
fn the_newest_revision_is_the_finding() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(600));
    let first = finding(1, start);
    let revised = |revision, state, severity, incident: &str| {
        let mut finding = first.clone();
        (finding.revision, finding.state, finding.incident_id) = (revision, state, incident.to_owned());
        finding.verdict.severity = severity;
        finding.title = format!("revision {revision}");
        finding.revised_at = start.plus(Micros::from_secs(u64::from(revision)));
        finding
    };
    let newest = revised(11, FindingState::Resolved, Severity::Error, "i-new");
    world.insert_findings(&[revised(3, FindingState::Superseded, Severity::Notice, "i-old")]);
    world.insert_findings(&[newest.clone(), first.clone()]);
    world.insert_findings(&[revised(2, FindingState::Open, Severity::Warning, "i-old")]);
    let other = finding(2, start);
    world.insert_findings(std::slice::from_ref(&other));

    let listed: Vec<Finding> = world.items("/findings", &[]);
    assert_eq!(listed, [other, newest.clone()]);
    assert_eq!(world.api.get::<Finding>(&format!("/findings/{}", first.id), &[]).unwrap(), newest);
    for (name, value) in [("state", "resolved"), ("severity", "error"), ("incident_id", "i-new")] {
        let found: Vec<Finding> = world.items("/findings", &[(name, value)]);
        assert_eq!(found.iter().collect::<Vec<_>>(), [&newest], "{name}={value}");
    }
    for (name, value) in
        [("state", "superseded"), ("severity", "notice"), ("severity", "warning"), ("incident_id", "i-old")]
    {
        assert_eq!(world.items::<Finding>("/findings", &[(name, value)]), [], "{name}={value}");
    }
}

/// Scenario: thirteen findings, most of them announced in the same microsecond as their neighbours, read with every
/// page size from one to more than there are; once more while, between pages, findings are announced (before, after
/// and at the time of the page's border) and others revised.
/// Guarantees: each that existed at the start comes exactly once, in one order for all page sizes.
#[test]
fn pages_hold_each_finding_once() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(600));
    let at = |number: u64| start.plus(Micros(number / 5));
    let all: Vec<Finding> = (100..113).map(|number| finding(number, at(number))).collect();
    for half in all.chunks(7) {
        world.insert_findings(half);
    }
    let mut expected = ids(&all);
    expected.reverse();
    for limit in 1..=14 {
        let seen: Vec<Finding> = world.walk("/findings", &[], limit, |_world, _page| {});
        assert_eq!(ids(&seen), expected, "pages of {limit}");
    }

    let existing: BTreeSet<&str> = expected.iter().copied().collect();
    let mut number = 1_000;
    for limit in [1, 2, 5] {
        let seen: Vec<Finding> = world.walk("/findings", &[("since", "15m")], limit, |world, page| {
            let mut revision = all[(page * 5) % all.len()].clone();
            revision.revision += u32::try_from(page).unwrap();
            let page = page as u64;
            let announced = [at(100 + page), at(200), start.minus(Micros(page))].map(|at| {
                number += 1;
                finding(number, at)
            });
            world.insert_findings(&announced);
            world.insert_findings(&[revision]);
        });
        let unique: BTreeSet<&str> = ids(&seen).into_iter().collect();
        assert_eq!(unique.len(), seen.len(), "pages of {limit} repeat a finding");
        let kept: Vec<&str> = ids(&seen).into_iter().filter(|id| existing.contains(id)).collect();
        assert_eq!(kept, expected, "pages of {limit}");
    }
}

/// Scenario: one finding is asked for by its whole id, by a beginning that fits it alone, by one that fits two, by one
/// that fits none, and by texts that are no ids.
/// Guarantees: the whole chain comes back as it was written; what is ambiguous names the candidates; the rest are
/// problems that say what an id looks like.
#[test]
fn one_finding_has_its_chain() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(40 * 24 * 3_600));
    let all = [finding(0x71aa_0000_0000_0001, at), finding(0x71ab_0000_0000_0001, at)];
    world.insert_findings(&all);
    let one = |id: &str| world.api.get::<Finding>(&format!("/findings/{id}"), &[]);
    assert_eq!(one("f-71aa000000000001").unwrap(), all[0]);
    assert_eq!(one("f-71aa").unwrap(), all[0]);
    assert_eq!(one("f-71ab0").unwrap(), all[1]);

    let ambiguous = world.refused("/findings/f-71a");
    assert_eq!((ambiguous.status, ambiguous.kind.as_str()), (409, "urn:tapio:problem:ambiguous-id"));
    assert!(all.iter().all(|finding| ambiguous.detail.contains(&finding.id)), "{}", ambiguous.detail);
    for id in ["f-72", "f-71aa000000000002"] {
        let unknown = world.refused(&format!("/findings/{id}"));
        assert_eq!((unknown.status, unknown.kind.as_str()), (404, "urn:tapio:problem:not-found"));
        assert!(unknown.detail.contains(id), "{}", unknown.detail);
    }
    let long = format!("f-{}", "0".repeat(17));
    for id in [
        "f-",
        "f-1",
        "71aa",
        "g-71aa",
        "..",
        "f-71%25",
        "f-71%27",
        "f-%F0%9F%A6%80",
        "f-71%2F..",
        "%FF",
        &long,
    ] {
        let bad = world.refused(&format!("/findings/{id}"));
        assert_eq!((bad.status, bad.kind.as_str()), (400, "urn:tapio:problem:invalid-parameter"), "{id}");
        assert_eq!(bad.errors.len(), 1, "{id}");
        assert_eq!(bad.errors[0].parameter, "id", "{id}");
    }
}
