//! `tapio doctor`: what this host allows an agent and the other tiers, what is missing, why, and what to do.
//!
//! Looks at this host only, as whoever runs it, and changes nothing. What only an agent can try (its probes) the agent
//! beside this program tries; a tier imports no other. [`host`] reads the host, [`agent`] asks the agent, [`ports`] says
//! who listens.

mod agent;
mod host;
mod ports;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use serde::{Deserialize, Serialize};

/// Where to look.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// The agent that tries the probes. Without it: the one beside this program, else the first on PATH.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where the tiers keep their state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tapio")]
    state: PathBuf,
}

/// What the doctor found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Whether an agent could do everything here.
    pub fit: bool,
    /// Line by line.
    pub checks: Vec<Check>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// What is to be thought of it.
    pub verdict: Verdict,
    /// What was found, and why it matters.
    pub found: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}

/// What is to be thought of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing is missing.
    Ok,
    /// Not what an agent needs, or not needed everywhere.
    Note,
    /// An agent cannot do everything without it.
    Missing,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "MISSING",
        }
    }
}

impl Check {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Ok, found: found.into(), action: None }
    }

    fn note(what: impl Into<String>, found: impl Into<String>, action: &str) -> Self {
        let action = Some(action.to_owned()).filter(|action| !action.is_empty());
        Self { what: what.into(), verdict: Verdict::Note, found: found.into(), action }
    }

    fn missing(what: impl Into<String>, found: impl Into<String>, action: &str) -> Self {
        Self {
            what: what.into(),
            verdict: Verdict::Missing,
            found: found.into(),
            action: Some(action.to_owned()),
        }
    }
}

/// Looks at everything.
pub(super) fn examine(arguments: &DoctorArguments) -> Diagnosis {
    let mut checks = host::checks();
    checks.extend(agent::checks(arguments.agent.as_deref()));
    checks.extend(host::checks_of_tiers(&arguments.state));
    checks.extend(ports::checks());
    let fit = checks.iter().all(|check| check.verdict != Verdict::Missing);
    Diagnosis { fit, checks }
}

/// The diagnosis as a person reads it: the answer first.
///
/// # Errors
/// When `out` cannot be written.
pub(super) fn render(diagnosis: &Diagnosis, out: &mut dyn Write) -> io::Result<()> {
    let missing = diagnosis.checks.iter().filter(|check| check.verdict == Verdict::Missing).count();
    match missing {
        0 => writeln!(out, "an agent can do everything here")?,
        1 => writeln!(out, "an agent cannot do everything here: 1 thing is missing")?,
        _ => writeln!(out, "an agent cannot do everything here: {missing} things are missing")?,
    }
    let lines = joined(&diagnosis.checks);
    let width = lines.iter().map(|check| check.what.chars().count()).max().unwrap_or_default();
    for Check { what, verdict, found, action } in &lines {
        writeln!(out, "  {:<7}  {what:<width$}  {found}", verdict.word())?;
        if let Some(action) = action {
            writeln!(out, "  {:7}  {:width$}  do: {action}", "", "")?;
        }
    }
    Ok(())
}

/// Probes of which the same is to be said, one behind the other, are said in one line.
fn joined(checks: &[Check]) -> Vec<Check> {
    let of_probe = |check: &Check| check.what.strip_prefix(agent::PROBE).map(str::to_owned);
    let is_same = |left: &Check, right: &Check| {
        of_probe(left).is_some()
            && of_probe(right).is_some()
            && (&left.found, left.verdict) == (&right.found, right.verdict)
    };
    checks
        .chunk_by(is_same)
        .filter_map(|same| {
            let first = same.first()?.clone();
            let names: Vec<String> = same.iter().filter_map(of_probe).collect();
            if names.len() < 2 {
                return Some(first);
            }
            let (count, names) = (names.len(), names.join(", "));
            Some(Check {
                what: format!("{count} probes"),
                found: format!("{}: {names}", first.found),
                ..first
            })
        })
        .collect()
}
