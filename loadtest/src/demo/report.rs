//! What the demo prints: for a person, or one JSON object.
//!
//! Owns the shape of the object and where each line goes: with `--json` standard output carries the object alone and
//! everything else goes to standard error. Called by [`crate::demo`].

use std::io::{Write, stderr, stdout};

use serde::Serialize;
use serde_json::Value;

use crate::compare::Outcome;
use crate::demo::System;
use crate::scenario::{Kind, Scenario};
use crate::workload::FirstFailure;

/// The result of a run, in the shape of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The word of the command line.
    pub scenario: &'static str,
    /// What everything was drawn from.
    pub seed: u64,
    /// What the system ought to say.
    pub expected: Outcome,
    /// What it said.
    pub outcome: Outcome,
    /// Whether that is what happened, the finding's content included.
    pub right: bool,
    /// As REST gave it.
    pub finding: Option<Value>,
    /// From the first failed request, as the sender of the load saw it, to the finding in REST.
    pub seconds_from_symptom: Option<f64>,
    /// As REST gave it.
    pub ledger: Value,
    /// For a person.
    #[serde(skip)]
    pub wrong_because: String,
    /// Findings about other things on this machine: the agent watches all of it, the comparer knows this run's truth.
    #[serde(skip)]
    pub others: usize,
}

/// Where the demo's lines go.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    json: bool,
}

impl Printer {
    /// For a person, or with the object alone on standard output.
    #[must_use]
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// One line of progress. A terminal that is gone does not end the demo: it must still clean up.
    pub fn line(&self, text: &str) {
        let written = if self.json { writeln!(stderr(), "{text}") } else { writeln!(stdout(), "{text}") };
        drop(written);
    }

    /// Something of the demo did not end or was not removed as it should. The gate looks for these lines.
    pub(super) fn unclean(&self, text: &str) {
        self.line(&format!("unclean: {text}"));
    }

    /// What is about to happen. Who will fail is not said: the system has to find it.
    pub(super) fn opening(&self, scenario: &Scenario) {
        self.line(&format!("tapio demo: {}, seed {}", scenario.kind.name(), scenario.seed));
        self.line("starting edge-agent, aggregator, ClickHouse and central on loopback");
    }

    pub(super) fn addresses(&self, addresses: &[(String, String)]) {
        let width = addresses.iter().map(|(label, _)| label.chars().count()).max().unwrap_or_default();
        for (label, address) in addresses {
            self.line(&format!("  {label:<width$}  {address}"));
        }
    }

    pub(super) fn started(&self, scenario: &Scenario) {
        let chain: Vec<&str> = scenario.pods().map(|pod| pod.service.as_str()).collect();
        let word = scenario.runtime.name();
        self.line(&format!(
            "workload started: {} ({word}, {} requests/s)",
            chain.join(" → "),
            scenario.requests_per_second
        ));
        let seconds = scenario.fault_after().as_secs();
        self.line(&match scenario.kind {
            Kind::Leak => {
                format!("one of the services leaks memory; the kernel should kill it in about {seconds} s")
            }
            Kind::Healthy => {
                format!("nothing is wrong; watching for {} s that Tapio says nothing", seconds + 10)
            }
            Kind::MissingConfig => {
                format!("one of the services is restarted in about {seconds} s, and its configuration file is gone")
            }
            Kind::PortInUse => {
                format!("one of the services is restarted in about {seconds} s, and another process takes its port")
            }
            Kind::PortFree => format!(
                "one of the services is restarted in about {seconds} s, and another process does not keep its port; watching that Tapio says nothing"
            ),
            Kind::WrongConfig => format!(
                "one of the services is restarted in about {seconds} s, and its configuration says nonsense; watching that Tapio blames no missing file"
            ),
            Kind::Restart => format!(
                "one of the services is restarted in about {seconds} s and comes back; watching that Tapio says nothing"
            ),
        });
    }

    pub(super) fn symptom(&self, failure: &FirstFailure) {
        let what = match (failure.status, failure.error) {
            (Some(status), _) => format!("HTTP {status}"),
            (None, Some(error)) => format!("no response ({error:?})"),
            (None, None) => "no response".to_owned(),
        };
        let trace = failure.trace_id.as_deref().and_then(|id| id.get(..8)).unwrap_or("none");
        self.line(&format!("first failed request: {what}, trace {trace}…; waiting for the verdict"));
    }

    pub(super) fn verdict<S: System>(&self, report: &Report, system: &S) {
        if self.json {
            // The exit status tells what a lost standard output cannot.
            if let Ok(text) = serde_json::to_string(report) {
                drop(writeln!(stdout(), "{text}"));
            }
        }
        self.line("");
        match report.finding.as_ref().map(|finding| system.explain(finding)) {
            Some(Ok(text)) => self.line(text.trim_end()),
            Some(Err(error)) => self.line(&format!("the finding cannot be shown: {error:#}")),
            None => self.line("Tapio announces no finding about these services"),
        }
        if let Some(seconds) = report.seconds_from_symptom {
            self.line(&format!("  in REST {seconds:.1} s after the first failed request"));
        }
        self.line("");
        let judged = if report.right { "right" } else { "WRONG" };
        let because = if report.right { String::new() } else { format!(": {}", report.wrong_because) };
        self.line(&format!("compared with what really happened: {judged}{because} (seed {})", report.seed));
        if report.others > 0 {
            let others = report.others;
            self.line(&format!(
                "{others} other finding(s) are about other things on this machine: see tapio findings"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Outcome, Report};

    /// Scenario: a report as JSON.
    /// Guarantees: the object has exactly the documented keys and words.
    #[test]
    fn the_object_has_the_documented_shape() {
        let report = Report {
            scenario: "healthy",
            seed: 7,
            expected: Outcome::None,
            outcome: Outcome::Undetermined,
            right: false,
            finding: None,
            seconds_from_symptom: Some(0.6),
            ledger: json!({"records": 1}),
            wrong_because: "x".to_owned(),
            others: 1,
        };
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            json!({"scenario": "healthy", "seed": 7, "expected": "none", "outcome": "undetermined", "right": false,
                "finding": null, "seconds_from_symptom": 0.6, "ledger": {"records": 1}})
        );
    }
}
