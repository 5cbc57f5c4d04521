//! A store in memory that keeps what ClickHouse promises of it, and no more.
//!
//! A block goes into one part per day and table; each part is there whole or not at all, and remembers the tokens of the
//! blocks that it took. A roll-up follows its table part by part, with the same token. Whoever inserted may not hear of
//! it; what was acknowledged stays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tapio_aggregator::road::{Fragment, FragmentPlace};
use tapio_schemas::ids::SourceId;
use tapio_wire::Position;

use super::native::{self, Cell};

/// Tokens that a part remembers, as our tables ask for.
const TOKENS_MAX: usize = 10_000;
const DAY_MICROS: u64 = 86_400_000_000;
const MINUTE_MICROS: u64 = 60_000_000;

/// A frame of a source.
pub(super) type FrameOf = (SourceId, Position);

/// What a row of the ledger tells, but how often.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Line {
    pub(super) frame: FrameOf,
    pub(super) stage: String,
    pub(super) fate: String,
    pub(super) subject: String,
    pub(super) reason: String,
}

/// A minute of a node, in the roll-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Minute {
    pub(super) events: u64,
    pub(super) rows: u64,
}

/// A row of the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// How often it is there.
    pub(super) times: u64,
    /// How many it stands for.
    pub(super) count: u64,
    time: u64,
    node: String,
}

impl Event {
    /// Its node and minute.
    pub(super) fn minute(&self) -> (String, u64) {
        (self.node.clone(), self.time / MINUTE_MICROS)
    }
}

/// What is stored.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) events: BTreeMap<(FrameOf, u64), Event>,
    pub(super) minutes: BTreeMap<(String, u64), Minute>,
    /// By line: how often it is there, and the sum.
    pub(super) ledger: BTreeMap<Line, (u64, u64)>,
    /// By frame: how often it is there.
    pub(super) frames: BTreeMap<FrameOf, u64>,
    cuts: BTreeMap<u64, BTreeSet<FrameOf>>,
    tokens: BTreeMap<(&'static str, u64), Tokens>,
    /// Inserts of sessions before this one are refused, however late they come.
    session: u64,
    /// Inserts that were refused for that.
    pub(super) fenced: u64,
    /// Minutes that were made true.
    pub(super) reconciled: u64,
    /// Blocks that came again and were known.
    pub(super) repeated: u64,
}

#[derive(Debug, Default)]
struct Tokens {
    known: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Tokens {
    /// False when it is known.
    fn take(&mut self, token: &str) -> bool {
        if !self.known.insert(token.to_owned()) {
            return false;
        }
        self.order.push_back(token.to_owned());
        if self.order.len() > TOKENS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// A row on its way, by the table that it is for.
#[derive(Debug)]
enum Row {
    Event { frame: FrameOf, row: u64, count: u64, node: String, time: u64 },
    Line(Line, u64),
    Frame(FrameOf, u64),
    Source,
}

/// An insert on its way: its rows by day.
#[derive(Debug)]
pub(super) struct Insert {
    table: &'static str,
    token: String,
    session: u64,
    days: Vec<(u64, Vec<Row>)>,
}

impl Insert {
    /// Reads a block.
    pub(super) fn read(table: &'static str, block: &[u8], token: &str, session: u64) -> anyhow::Result<Self> {
        let mut days: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
        for (time, row) in rows(table, block)? {
            days.entry(time / DAY_MICROS).or_default().push(row);
        }
        Ok(Self { table, token: token.to_owned(), session, days: days.into_iter().collect() })
    }

    /// In how many steps it is carried out: between any two of them the store may die.
    pub(super) fn steps(&self) -> usize {
        let tables = if self.table == "events" { 2 } else { 1 };
        tables * self.days.len()
    }
}

impl Store {
    /// Carries an insert out, as far as `steps`.
    pub(super) fn insert(&mut self, insert: &Insert, steps: usize) {
        if insert.session < self.session {
            self.fenced += 1;
            return;
        }
        let mut left = steps;
        for (day, rows) in &insert.days {
            if left == 0 {
                return;
            }
            left -= 1;
            if self.tokens.entry((insert.table, *day)).or_default().take(&insert.token) {
                rows.iter().for_each(|row| self.put(row));
            } else {
                self.repeated += 1;
            }
            if insert.table != "events" {
                continue;
            }
            if left == 0 {
                return;
            }
            left -= 1;
            if self.tokens.entry(("minutes", *day)).or_default().take(&insert.token) {
                rows.iter().for_each(|row| self.roll_up(row));
            }
        }
    }

    fn put(&mut self, row: &Row) {
        match row {
            Row::Event { frame, row, count, node, time } => {
                let event = self.events.entry((*frame, *row)).or_default();
                let times = event.times + 1;
                *event = Event { times, count: *count, time: *time, node: node.clone() };
            }
            Row::Line(line, count) => {
                let known = self.ledger.entry(line.clone()).or_default();
                *known = (known.0 + 1, known.1 + count);
            }
            Row::Frame(frame, cut) => {
                *self.frames.entry(*frame).or_default() += 1;
                self.cuts.entry(*cut).or_default().insert(*frame);
            }
            Row::Source => {}
        }
    }

    fn roll_up(&mut self, row: &Row) {
        if let Row::Event { count, node, time, .. } = row {
            let minute = self.minutes.entry((node.clone(), time / MINUTE_MICROS)).or_default();
            minute.events += count;
            minute.rows += 1;
        }
    }

    /// Closes all sessions before this one.
    pub(super) fn fence(&mut self, session: u64) {
        self.session = self.session.max(session);
    }

    /// What the tables have of frames that are not complete.
    pub(super) fn fragments(&self) -> Vec<Fragment> {
        let fragment = |(source, position): FrameOf, place| Fragment {
            source,
            incarnation: position.incarnation.0,
            sequence: position.sequence.0,
            place,
        };
        let is_open = |frame: &FrameOf| !self.frames.contains_key(frame);
        let events =
            self.events.iter().filter(|((frame, _), _)| is_open(frame)).map(|((frame, _), event)| {
                let day = u32::try_from(event.time / DAY_MICROS).unwrap_or(u32::MAX);
                fragment(*frame, FragmentPlace::Events(day))
            });
        let lines = self.ledger.keys().filter(|line| is_open(&line.frame));
        events.chain(lines.map(|line| fragment(line.frame, FragmentPlace::Ledger))).collect()
    }

    /// Makes the roll-up say what the events say, of the nodes and minutes of the events of these frames.
    pub(super) fn reconcile(&mut self, fragments: &[Fragment]) {
        let frames: BTreeSet<FrameOf> = fragments
            .iter()
            .filter(|fragment| fragment.place != FragmentPlace::Ledger)
            .map(|fragment| (fragment.source, Position::new(fragment.incarnation, fragment.sequence)))
            .collect();
        let touched: BTreeSet<_> = self
            .events
            .iter()
            .filter(|((frame, _), _)| frames.contains(frame))
            .map(|(_, event)| event.minute())
            .collect();
        for minute in &touched {
            let of_minute = self.events.values().filter(|event| event.minute() == *minute);
            let (mut events, mut rows) = (0, 0);
            of_minute.for_each(|event| {
                events += event.count * event.times;
                rows += event.times;
            });
            let sum = self.minutes.entry(minute.clone()).or_default();
            if (sum.events, sum.rows) != (events, rows) {
                self.reconciled += 1;
                *sum = Minute { events, rows };
            }
        }
    }

    /// The last complete frame of each source.
    pub(super) fn last_frames(&self) -> Vec<FrameOf> {
        let mut last = BTreeMap::new();
        self.frames.keys().for_each(|(source, position)| {
            last.insert(*source, *position);
        });
        last.into_iter().collect()
    }

    /// The complete frames of a cut.
    pub(super) fn frames_of_cut(&self, cut: u64) -> BTreeSet<FrameOf> {
        self.cuts.get(&cut).cloned().unwrap_or_default()
    }
}

/// The rows of a block, each with the time that says which day it is of.
fn rows(table: &'static str, block: &[u8]) -> anyhow::Result<Vec<(u64, Row)>> {
    const FRAME: [&str; 3] = ["source_id", "incarnation", "sequence"];
    let read = |more: &[&str]| -> anyhow::Result<Vec<Vec<Cell>>> {
        let columns = native::columns(block, &[&FRAME, more].concat())?;
        let rows = columns.first().map_or(0, Vec::len);
        let row = |row| columns.iter().filter_map(|column| column.get(row).cloned()).collect();
        Ok((0..rows).map(row).collect())
    };
    let frame = |cells: &[Cell]| match cells {
        [source, incarnation, sequence, ..] => {
            (SourceId(source.sixteen()), Position::new(incarnation.number(), sequence.number()))
        }
        _ => (SourceId([0; 16]), Position::START),
    };
    let made = match table {
        "events" => read(&["row", "count", "node", "time_micros"])?
            .iter()
            .filter_map(|cells| {
                let [.., row, count, node, time] = cells.as_slice() else { return None };
                let (row, count, time) = (row.number(), count.number(), time.number());
                let node = node.text().to_owned();
                Some((time, Row::Event { frame: frame(cells), row, count, node, time }))
            })
            .collect(),
        "ledger" => read(&["until", "stage", "fate", "subject", "reason", "count"])?
            .iter()
            .filter_map(|cells| {
                let [.., until, stage, fate, subject, reason, count] = cells.as_slice() else { return None };
                let [stage, fate, subject, reason] =
                    [stage, fate, subject, reason].map(|cell| cell.text().to_owned());
                let line = Line { frame: frame(cells), stage, fate, subject, reason };
                Some((until.number(), Row::Line(line, count.number())))
            })
            .collect(),
        "frames" => read(&["received_at", "cut"])?
            .iter()
            .filter_map(|cells| {
                let [.., received_at, cut] = cells.as_slice() else { return None };
                Some((received_at.number(), Row::Frame(frame(cells), cut.number())))
            })
            .collect(),
        "sources" => {
            let seen = native::columns(block, &["last_seen"])?;
            seen.concat().iter().map(|seen| (seen.number(), Row::Source)).collect()
        }
        other => anyhow::bail!("there is no table {other}"),
    };
    Ok(made)
}
