//! `GET /ledger`.

use tapio_central::{api::rest::ledger::LedgerAnswer, history::ledger::LINES_MAX};
use tapio_schemas::units::{Micros, UnixMicros};

use crate::{
    rows::LedgerRow,
    world::{Query, World, now, rfc3339},
};

fn line(until: UnixMicros, stage: &'static str, fate: &'static str, count: u64) -> LedgerRow {
    LedgerRow {
        cluster: "c1".to_owned(),
        node: "n1".to_owned(),
        until,
        stage,
        fate,
        subject: "tcp-state".to_owned(),
        reason: if fate == "lost" { "ring-full" } else { "" },
        count,
    }
}

impl World {
    fn ledger(&self, query: Query<'_>) -> LedgerAnswer {
        self.api.get("/ledger", query).unwrap()
    }
}

/// Scenario: the ledgers of three frames of a node, one of another node, one of another cluster, one of last week;
/// every stage and fate that counts, and some that do not.
/// Guarantees: lines are sums; `records` is what the kernel carried or lost, `lost` what any stage lost; filters and
/// the times [since, until) select frames by their end; without `since` the sums reach back a day.
#[test]
fn sums_are_of_what_was_asked() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(600));
    let at = |seconds| start.plus(Micros::from_secs(seconds));
    world.insert_ledger(&[
        line(at(0), "kernel", "carried", 100),
        line(at(0), "kernel", "lost", 5),
        line(at(0), "kernel", "filtered", 1_000),
        line(at(1), "kernel", "carried", 50),
        line(at(1), "capture", "lost", 2),
        line(at(1), "capture", "folded", 30),
    ]);
    world.insert_ledger(&[
        line(at(2), "kernel", "carried", 10),
        LedgerRow { node: "n2".to_owned(), ..line(at(2), "kernel", "carried", 7) },
        LedgerRow { cluster: "c2".to_owned(), ..line(at(2), "intake", "lost", 1) },
        LedgerRow { subject: "exec".to_owned(), ..line(at(2), "kernel", "lost", 3) },
        line(now().minus(Micros::from_secs(7 * 24 * 3_600)), "kernel", "carried", 1 << 60),
    ]);

    let all = world.ledger(&[]);
    assert_eq!((all.records, all.lost, all.cut), (175, 11, false));
    let lines: Vec<_> = all
        .items
        .iter()
        .map(|line| {
            let what = format!("{} {} {} {}", line.stage, line.fate, line.subject, line.reason);
            (format!("{}/{}", line.cluster, line.node), what, line.count)
        })
        .collect();
    let expected = [
        ("c1/n1", "capture folded tcp-state ", 30),
        ("c1/n1", "capture lost tcp-state ring-full", 2),
        ("c1/n1", "kernel carried tcp-state ", 160),
        ("c1/n1", "kernel filtered tcp-state ", 1_000),
        ("c1/n1", "kernel lost exec ring-full", 3),
        ("c1/n1", "kernel lost tcp-state ring-full", 5),
        ("c1/n2", "kernel carried tcp-state ", 7),
        ("c2/n1", "intake lost tcp-state ring-full", 1),
    ];
    assert_eq!(lines, expected.map(|(place, what, count)| (place.to_owned(), what.to_owned(), count)));

    let (first, second) = (rfc3339(at(1)), rfc3339(at(2)));
    let cases: &[(Query<'_>, (u64, u64))] = &[
        (&[("cluster", "c1")], (175, 10)),
        (&[("cluster", "c2")], (0, 1)),
        (&[("node", "n2")], (7, 0)),
        (&[("cluster", "c2"), ("node", "n2")], (0, 0)),
        (&[("since", &first)], (70, 6)),
        (&[("until", &first)], (105, 5)),
        (&[("since", &first), ("until", &second)], (50, 2)),
        (&[("since", "1m")], (0, 0)),
        (&[("since", "30d"), ("node", "n1")], ((1 << 60) + 168, 11)),
    ];
    for (query, expected) in cases {
        let answer = world.ledger(query);
        assert_eq!((answer.records, answer.lost), *expected, "{query:?}");
    }
}

/// Scenario: a fleet with more distinct lines than an answer may hold.
/// Guarantees: the answer says that it is cut, and its totals are still of everything.
#[test]
fn a_large_ledger_is_cut_and_says_so() {
    let Some(mut world) = World::start() else { return };
    let until = now().minus(Micros::from_secs(60));
    let rows: Vec<LedgerRow> = (0..=LINES_MAX)
        .map(|node| LedgerRow { node: format!("n{node}"), ..line(until, "kernel", "lost", 2) })
        .collect();
    world.insert_ledger(&rows[..LINES_MAX]);
    let whole = world.ledger(&[]);
    assert_eq!((whole.items.len(), whole.cut, whole.lost), (LINES_MAX, false, 2 * LINES_MAX as u64));
    world.insert_ledger(&rows[LINES_MAX..]);
    let cut = world.ledger(&[]);
    let total = 2 * (LINES_MAX as u64 + 1);
    assert_eq!((cut.items.len(), cut.cut, cut.lost, cut.records), (LINES_MAX, true, total, total));
    assert!(!world.ledger(&[("node", "n4999")]).cut);
}
