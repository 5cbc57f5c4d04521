//! What is measured, what it must reach, and how it is shown.
//!
//! Owns the names, units, bars and aims (from section 7 of the design) and the table. Never measures. Called by
//! [`super::run`] and by `tapio-loadtest footprint --table`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What is measured: name, what it is, unit, what must be reached, what is aimed at. Less is better in all of them.
struct Kind {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    bar: Option<f64>,
    aim: Option<f64>,
}

const fn kind(
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    bar: Option<f64>,
    aim: Option<f64>,
) -> Kind {
    Kind { name, what, unit, bar, aim }
}

const KINDS: [Kind; 10] = [
    kind("agent_memory", "agent memory, most at any time", "MiB", Some(64.0), Some(32.0)),
    kind("agent_cpu", "agent CPU", "% of a core", Some(5.0), Some(2.0)),
    kind("kernel_time_per_hit", "kernel time per hit, mean over all probes", "ns", Some(250.0), Some(100.0)),
    kind("agent_binary", "agent binary, stripped", "MiB", Some(8.0), Some(4.0)),
    kind("bytes_per_record", "bytes per record, batches of 1,000", "B", Some(2.0), Some(0.3)),
    kind("bytes_per_event", "bytes per shipped event, batches of 1,000", "B", Some(14.0), Some(8.0)),
    kind("bytes_per_record_as_shipped", "bytes per record, as it ships", "B", None, None),
    kind("bytes_per_event_as_shipped", "bytes per shipped event, as it ships", "B", None, None),
    kind("demo_cold", "demo, from clone to verdict, nothing built", "s", None, None),
    kind("demo_warm", "demo, from start to verdict, all built", "s", None, None),
];

/// The gate as a whole, and what the names of its parts begin with.
const GATE: &str = "ci";

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Which.
    pub name: String,
    /// What it is, in words.
    pub what: String,
    /// How much; absent where it could not be measured, and [`Measure::note`] says why.
    pub value: Option<f64>,
    /// Of the three numbers.
    pub unit: String,
    /// What must be reached; absent where nothing is demanded.
    pub bar: Option<f64>,
    /// What is aimed at.
    pub aim: Option<f64>,
    /// Under which circumstances, or why there is no value.
    pub note: String,
}

impl Measure {
    /// The figure called `name`, one of the known ones.
    pub(super) fn new(name: &str, value: Result<f64, String>, note: impl Into<String>) -> Self {
        let (value, why_not) = match value {
            Ok(value) => (Some(rounded(value)), None),
            Err(reason) => (None, Some(reason)),
        };
        let note = why_not.unwrap_or_else(|| note.into());
        let known = KINDS.iter().find(|kind| kind.name == name);
        Self {
            name: name.to_owned(),
            what: known.map_or(name, |kind| kind.what).to_owned(),
            value,
            unit: known.map_or("s", |kind| kind.unit).to_owned(),
            bar: known.and_then(|kind| kind.bar),
            aim: known.and_then(|kind| kind.aim),
            note,
        }
    }

    /// Seconds of the gate: of one `part`, or of all of it.
    pub(super) fn of_gate(part: Option<&str>, seconds: Result<f64, String>, note: impl Into<String>) -> Self {
        let name = part.map_or_else(|| GATE.to_owned(), |part| format!("{GATE}: {part}"));
        Self {
            what: part.map_or_else(|| "gate, all of it".to_owned(), |part| format!("gate: {part}")),
            ..Self::new(&name, seconds, note)
        }
    }

    /// How the value stands to bar and aim.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.value, self.bar, self.aim) {
            (None, ..) => "not measured",
            (Some(value), _, Some(aim)) if value <= aim => "aim reached",
            (Some(value), Some(bar), _) if value <= bar => "bar reached",
            (Some(_), Some(_), _) => "BAR MISSED",
            (Some(_), None, _) => "",
        }
    }
}

/// What was measured, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How the figures were made, a sentence each.
    pub method: Vec<String>,
    /// The figures.
    pub measures: Vec<Measure>,
}

impl Report {
    /// As a page shows it.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from("| measure | value | bar | aim | |\n|---|---:|---:|---:|---|\n");
        for measure in &self.measures {
            let number = |value: Option<f64>| value.map_or_else(String::new, shown);
            let value = measure.value.map_or_else(
                || "not measured".to_owned(),
                |value| format!("{} {}", shown(value), measure.unit),
            );
            // Writing into a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {value} | {} | {} | {} |",
                measure.what,
                number(measure.bar),
                number(measure.aim),
                measure.verdict()
            );
        }
        text.push('\n');
        for measure in self.measures.iter().filter(|measure| !measure.note.is_empty()) {
            let _ = writeln!(text, "- {}: {}", measure.what, measure.note);
        }
        text.push_str("\n## Method\n\n");
        for sentence in &self.method {
            let _ = writeln!(text, "- {sentence}");
        }
        text
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn shown(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value}") }
}

#[cfg(test)]
mod tests {
    use super::{Measure, Report};

    /// Scenario: figures at the aim, at the bar, beyond both, without a bar, and one that could not be taken.
    /// Guarantees: each is judged against its own bar; what was not measured says why and is never a number.
    #[test]
    fn figures_are_judged_honestly() {
        let verdict = |name, value| Measure::new(name, Ok(value), "").verdict();
        assert_eq!(verdict("agent_memory", 32.0), "aim reached");
        assert_eq!(verdict("agent_memory", 63.996), "bar reached");
        assert_eq!(verdict("agent_memory", 64.01), "BAR MISSED");
        assert_eq!(verdict("demo_cold", 1e6), "");
        let missing = Measure::new("agent_cpu", Err("no load".to_owned()), "at 10,000 records/s");
        assert_eq!(
            (missing.value, missing.verdict(), missing.note.as_str()),
            (None, "not measured", "no load")
        );
        let report = Report { method: vec!["So.".to_owned()], measures: vec![missing] };
        assert!(report.table().contains("| agent CPU | not measured | 5 | 2 | not measured |"));
        let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(again, report);
    }
}
