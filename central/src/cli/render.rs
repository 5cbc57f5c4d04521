//! Findings and health as a person reads them. Pure: the answer and the present time in, text out.

pub(crate) mod events;
pub(crate) mod nodes;
pub mod status;

use std::io::{self, Write};

use tapio_schemas::{
    finding::{Finding, FindingState},
    units::{Micros, UnixMicros},
    verdict::{Outcome, Stance, Verdict},
};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::api::rest::page::List;

/// An id is shown with this many characters; they tell a fleet's open findings apart.
const SHORT_ID_CHARS: usize = 10;

/// A finding as a story: one sentence, the chain, then what it rests on.
///
/// # Errors
/// When `out` cannot be written.
pub fn explain(finding: &Finding, now: UnixMicros, out: &mut dyn Write) -> io::Result<()> {
    let verdict = &finding.verdict;
    writeln!(out, "{}{}", finding.title, state_note(finding))?;
    let width = finding.lines.iter().map(|line| line.text.chars().count()).max().unwrap_or(0).min(72);
    for line in &finding.lines {
        let role = match line.stance {
            Stance::Supporting => line.role.as_str(),
            Stance::Contradicting => "against",
        };
        writeln!(out, "  {}  {role:<8} {:<width$}  {}", clock(line.at), line.text, line.basis)?;
    }
    for missing in &verdict.missing {
        writeln!(
            out,
            "  {:10}  {:<8} not found: {} ({})",
            "",
            missing.role.as_str(),
            missing.step,
            missing.why
        )?;
    }
    writeln!(out, "  {}", proof(verdict))?;
    writeln!(out, "  {}", changes(verdict, now))?;
    for candidate in verdict.candidates.iter().filter(|_| verdict.outcome != Outcome::Finding) {
        writeln!(
            out,
            "  candidate {} ({}): evidence {} of {}, {}",
            candidate.cause,
            candidate.rule,
            candidate.evidence_present,
            candidate.evidence_expected,
            candidate.reason
        )?;
    }
    if !finding.recommended_action.is_empty() {
        writeln!(out, "  do: {}", finding.recommended_action)?;
    }
    writeln!(
        out,
        "  found {} after the first symptom · tapio explain {}",
        seconds(finding.found_after),
        short(&finding.id)
    )
}

fn state_note(finding: &Finding) -> String {
    match (finding.state, finding.verdict.outcome) {
        (FindingState::Superseded, _) => " (superseded)".to_owned(),
        // The title stays what was announced; later evidence took the ground from under it.
        (_, Outcome::Undetermined | Outcome::Hypothesis) => {
            format!(
                " (was announced, is now {}: {})",
                finding.verdict.outcome.as_str(),
                finding.verdict.reason
            )
        }
        (FindingState::Resolved, Outcome::Finding) => " (resolved)".to_owned(),
        (FindingState::Open, Outcome::Finding) => String::new(),
    }
}

/// In the column of states: an open finding that the evidence no longer carries is told apart.
fn state_word(finding: &Finding) -> &'static str {
    match (finding.state, finding.verdict.outcome) {
        (FindingState::Open, Outcome::Undetermined | Outcome::Hypothesis) => "uncertain",
        (state, _) => state.as_str(),
    }
}

fn proof(verdict: &Verdict) -> String {
    let losses = &verdict.losses;
    let mut text = format!(
        "evidence {} of {} expected · lost in the window: {} of {} records · clock error {}",
        verdict.evidence_present,
        verdict.evidence_expected,
        grouped(losses.lost),
        grouped(losses.records),
        micros(verdict.clock_error),
    );
    if !losses.unknown_sources.is_empty() {
        append(&mut text, format_args!(" · losses unknown of {}", losses.unknown_sources.join(", ")));
    }
    if !verdict.missing_probes.is_empty() {
        append(&mut text, format_args!(" · without probes {}", verdict.missing_probes.join(", ")));
    }
    text
}

fn changes(verdict: &Verdict, now: UnixMicros) -> String {
    if verdict.changes.is_empty() {
        return format!("no change seen since start, {} ago", length(now.since(verdict.observed_since)));
    }
    let shown: Vec<_> = verdict
        .changes
        .iter()
        .map(|change| format!("{} ({} ago)", change.what, length(now.since(change.at))))
        .collect();
    format!("changed before: {}", shown.join(" · "))
}

/// A table of findings.
///
/// # Errors
/// When `out` cannot be written.
pub fn findings(list: &List<Finding>, now: UnixMicros, out: &mut dyn Write) -> io::Result<()> {
    if list.items.is_empty() {
        return writeln!(out, "no findings");
    }
    writeln!(out, "{:<SHORT_ID_CHARS$}  {:<10}  {:<8}  {:>8}  FINDING", "ID", "STATE", "SEVERITY", "AGE")?;
    for finding in &list.items {
        writeln!(
            out,
            "{:<SHORT_ID_CHARS$}  {:<10}  {:<8}  {:>8}  {}",
            short(&finding.id),
            state_word(finding),
            finding.verdict.severity.as_str(),
            length(now.since(finding.announced_at)),
            finding.title,
        )?;
    }
    if list.next_cursor.is_some() {
        writeln!(out, "there are more; narrow with --since, --state, --cluster or raise --limit")?;
    }
    Ok(())
}

fn short(id: &str) -> &str {
    id.get(..SHORT_ID_CHARS).unwrap_or(id)
}

/// Wall time with tenths, in UTC: every node's and every person's logs can be held against it.
fn clock(at: UnixMicros) -> String {
    let nanos = i128::from(at.0).saturating_mul(1_000);
    let Ok(time) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else { return "--:--:--.-".to_owned() };
    let time = time.to_offset(UtcOffset::UTC);
    format!("{:02}:{:02}:{:02}.{}", time.hour(), time.minute(), time.second(), time.millisecond() / 100)
}

/// `at` as the API takes a time.
pub(super) fn rfc3339(at: UnixMicros) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0).saturating_mul(1_000));
    let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

fn seconds(length: Micros) -> String {
    format!("{}.{} s", length.0 / 1_000_000, length.0 % 1_000_000 / 100_000)
}

fn micros(length: Micros) -> String {
    match length.0 {
        micros @ ..1_000 => format!("{micros} µs"),
        micros @ 1_000..1_000_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        _ => seconds(length),
    }
}

fn length(length: Micros) -> String {
    match length.0 / 1_000_000 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.push_str(&arguments.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: quantities of every size.
    /// Guarantees: each in the unit that a person would choose.
    #[test]
    fn quantities_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(18_204), "18,204");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(micros(Micros(40)), "40 µs");
        assert_eq!(micros(Micros(1_250)), "1.2 ms");
        assert_eq!(seconds(Micros(640_000)), "0.6 s");
        assert_eq!(length(Micros::from_secs(119)), "119 s");
        assert_eq!(length(Micros::from_secs(120)), "2 min");
        assert_eq!(length(Micros::from_secs(8_000)), "2 h");
        assert_eq!(clock(UnixMicros(45_296_123_456)), "12:34:56.1");
    }
}
