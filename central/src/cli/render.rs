//! Findings and health as a person reads them. Pure: the answer and the present time in, text out.

pub(crate) mod events;
pub(crate) mod nodes;
pub(crate) mod replay;
pub mod status;

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use tapio_schemas::{
    finding::{Finding, FindingState, Resolution},
    units::{Micros, UnixMicros},
    verdict::{Outcome, Role, Stance, Verdict},
};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::api::rest::page::List;

/// An id is shown with this many characters; they tell a fleet's open findings apart.
const SHORT_ID_CHARS: usize = 10;

/// A finding as a story: one sentence, the chain, then what it rests on.
///
/// # Errors
/// When `out` cannot be written.
pub fn explain(finding: &Finding, out: &mut dyn Write) -> io::Result<()> {
    let verdict = &finding.verdict;
    writeln!(out, "{}{}", finding.title, state_note(finding))?;
    if let Some(note) = unobserved_note(finding) {
        writeln!(out, "  {note}")?;
    }
    places(finding, out)?;
    // The day stands above, where it is one: the lines stay short.
    let first = finding.lines.first().map(|line| day(line.at));
    let is_one_day = finding.lines.iter().all(|line| Some(day(line.at)) == first);
    let moment = |at| if is_one_day && Some(day(at)) == first { time_of_day(at) } else { clock(at) };
    let moment_width = if is_one_day { TIME_CHARS } else { MOMENT_CHARS };
    let width = finding.lines.iter().map(|line| line.text.chars().count()).max().unwrap_or(0).min(72);
    for line in &finding.lines {
        let role = match line.stance {
            Stance::Supporting => line.role.as_str(),
            Stance::Contradicting => "against",
        };
        writeln!(out, "  {}  {role:<8} {:<width$}  {}", moment(line.at), line.text, line.basis)?;
    }
    let goes_on = finding.continuation;
    if goes_on.count > 0 {
        writeln!(
            out,
            "  {}  symptom  again ×{}{}, counted until {}",
            moment(goes_on.last),
            grouped(goes_on.count),
            if goes_on.at_least { " or more: records were lost" } else { "" },
            moment(goes_on.counted_until)
        )?;
    }
    for missing in &verdict.missing {
        writeln!(
            out,
            "  {:moment_width$}  {:<8} not found: {} ({})",
            "",
            missing.role.as_str(),
            missing.step,
            missing.why
        )?;
    }
    writeln!(out, "  {}", proof(verdict))?;
    writeln!(out, "  {}", changes(verdict))?;
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

/// Where and on which day it is: the cluster, and the pod of each name in the story.
fn places(finding: &Finding, out: &mut dyn Write) -> io::Result<()> {
    let at = finding.lines.first().map_or(finding.first_symptom_at, |line| line.at);
    writeln!(out, "  cluster {} · {} UTC", finding.cluster, day(at))?;
    let mut told = BTreeSet::new();
    for (name, pod) in finding.names.iter().filter_map(|named| Some((&named.name, named.pod.as_ref()?))) {
        if told.insert((name, &pod.pod_uid)) {
            let on = if pod.node.is_empty() { String::new() } else { format!(" on node {}", pod.node) };
            writeln!(out, "  {name} is pod {}/{}{on}", pod.namespace, pod.pod)?;
        }
    }
    Ok(())
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
        (FindingState::Resolved, Outcome::Finding) if finding.resolution == Resolution::Unobserved => {
            " (resolved, unobserved)".to_owned()
        }
        (FindingState::Resolved, Outcome::Finding) => " (resolved)".to_owned(),
        (FindingState::Open, Outcome::Finding) => String::new(),
    }
}

/// What keeps anybody from seeing whether the symptom goes on.
fn unobserved_note(finding: &Finding) -> Option<String> {
    let silent = finding.unobserved.iter().map(|one| format!("{} since {}", one.node, rfc3339(one.since)));
    let silent: Vec<String> = silent.collect();
    let silent =
        if silent.is_empty() { String::new() } else { format!("not observed: {}; ", silent.join(", ")) };
    match (finding.state, finding.resolution) {
        (FindingState::Resolved, Resolution::Unobserved) => {
            Some(format!("{silent}closed without having been seen to recover"))
        }
        (FindingState::Open, _) if !silent.is_empty() => {
            Some(format!("{silent}whether it goes on is not known"))
        }
        _ => None,
    }
}

/// In the column of states: what can be asked for, and whether the evidence still carries it, and anybody observes it.
fn state_word(finding: &Finding) -> &'static str {
    if finding.resolution == Resolution::Unobserved {
        return "resolved (unobserved)";
    }
    match (finding.state, finding.verdict.outcome) {
        (FindingState::Open, Outcome::Finding) if !finding.unobserved.is_empty() => "open (unobserved)",
        (FindingState::Open, Outcome::Undetermined | Outcome::Hypothesis) => "open (uncertain)",
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

/// What was changed, and when before the fault: that stays as it was told, whenever it is read.
fn changes(verdict: &Verdict) -> String {
    let fault = verdict.first(Role::Fault).or_else(|| verdict.evidence.first());
    let at = fault.map(|fault| fault.first.middle()).unwrap_or_default();
    if verdict.changes.is_empty() {
        let observed = length(at.since(verdict.observed_since));
        return format!("no change seen before it, in the {observed} that were observed");
    }
    let shown: Vec<_> = verdict
        .changes
        .iter()
        .map(|change| format!("{} ({} before)", change.what, length(at.since(change.at))))
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
    let states = list.items.iter().map(|finding| state_word(finding).len());
    let width = states.max().unwrap_or_default().max(STATE_CHARS_MIN);
    writeln!(
        out,
        "{:<SHORT_ID_CHARS$}  {:<width$}  {:<8}  {:>8}  FINDING",
        "ID", "STATE", "SEVERITY", "AGE"
    )?;
    for finding in &list.items {
        writeln!(
            out,
            "{:<SHORT_ID_CHARS$}  {:<width$}  {:<8}  {:>8}  {}",
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

/// Columns of a moment.
const MOMENT_CHARS: usize = 22;

/// The least width of the column of states.
const STATE_CHARS_MIN: usize = 10;

/// Columns of a time of day.
const TIME_CHARS: usize = 10;

/// Time with tenths, in UTC, of a day that is said elsewhere.
fn time_of_day(at: UnixMicros) -> String {
    let text = clock(at);
    text.split_once(' ').map_or_else(|| text.clone(), |(_day, time)| time.trim_end_matches('Z').to_owned())
}

/// The day, in UTC.
fn day(at: UnixMicros) -> String {
    let text = clock(at);
    text.split_once(' ').map_or_else(|| text.clone(), |(day, _time)| day.to_owned())
}

/// Day and time with tenths, in UTC and saying so: every node's and every person's logs can be held against it.
fn clock(at: UnixMicros) -> String {
    let nanos = i128::from(at.0).saturating_mul(1_000);
    let Ok(time) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else { return "-".repeat(MOMENT_CHARS) };
    let time = time.to_offset(UtcOffset::UTC);
    let (hour, minute, second) = time.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02}.{}Z", time.date(), time.millisecond() / 100)
}

/// `at` as the API takes a time.
fn rfc3339(at: UnixMicros) -> String {
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
        assert_eq!(clock(UnixMicros(45_296_123_456)), "1970-01-01 12:34:56.1Z");
        assert_eq!(time_of_day(UnixMicros(45_296_123_456)), "12:34:56.1");
        assert_eq!(day(UnixMicros(45_296_123_456)), "1970-01-01");
    }
}
