//! A replay as a person reads it: what was recorded, each revision at its time, and how it compares.

use std::io::{self, Write};

use serde_json::Value;
use tapio_recording::{Comparison, Difference, End, Ending, Head};
use tapio_schemas::{entity::EntityKey, finding::Finding, verdict::Verdict};

use super::{SHORT_ID_CHARS, clock, explain, grouped, length, rfc3339, short, state_word};
use crate::cli::replay::Compared;

/// A value that differs is shown with this many characters.
const VALUE_CHARS_MAX: usize = 120;

/// What the recording is.
pub(crate) fn head(head: &Head, out: &mut dyn Write) -> io::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let other = if head.release == own { String::new() } else { format!(" (this is {own})") };
    writeln!(
        out,
        "recorded by tapio-aggregator {}{other} of cluster {} since {}, rule set {}",
        head.release,
        head.cluster,
        rfc3339(head.began),
        head.rule_set
    )
}

/// A revision, when it was announced.
pub(crate) fn revision(finding: &Finding, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "  {}  {:<SHORT_ID_CHARS$}  revision {:<3}  {:<10}  evidence {} of {}  {}",
        clock(finding.revised_at),
        short(&finding.id),
        finding.revision,
        state_word(finding),
        finding.verdict.evidence_present,
        finding.verdict.evidence_expected,
        finding.title
    )
}

/// Whether a revision says of its finding, in a line, what the one before said: only numbers went on.
pub(crate) fn is_same_line(a: &Finding, b: &Finding) -> bool {
    let evidence = |of: &Finding| (of.verdict.evidence_present, of.verdict.evidence_expected);
    state_word(a) == state_word(b) && a.title == b.title && evidence(a) == evidence(b)
}

/// The last revision of each finding, as a story.
pub(crate) fn stories<'a>(
    findings: impl Iterator<Item = &'a Finding>,
    lacks_some: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    for finding in findings {
        writeln!(out)?;
        explain(finding, out)?;
    }
    if lacks_some {
        writeln!(
            out,
            "\nthere are more findings: those that came first are told; --json gives every revision"
        )?;
    }
    writeln!(out)
}

/// What was not announced, and why not.
pub(crate) fn hypotheses(
    hypotheses: impl ExactSizeIterator<Item = Verdict>,
    lacks_some: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    if hypotheses.len() == 0 {
        return writeln!(out, "nothing was weighed that was not announced");
    }
    writeln!(out, "weighed and not announced, at its closest:")?;
    for verdict in hypotheses {
        let EntityKey { kind, id } = &verdict.cause;
        writeln!(
            out,
            "  {}  {} of {} {}  evidence {} of {}: {}",
            clock(verdict.watermark),
            verdict.rule,
            kind.as_str(),
            short(id),
            verdict.evidence_present,
            verdict.evidence_expected,
            verdict.reason
        )?;
        for missing in &verdict.missing {
            writeln!(out, "      missing: {} ({})", missing.step, missing.why)?;
        }
    }
    if lacks_some {
        writeln!(out, "  there are more: those that came first are told")?;
    }
    Ok(())
}

/// What was replayed.
pub(crate) fn replayed(comparison: &Comparison, out: &mut dyn Write) -> io::Result<()> {
    let span = comparison.span.map_or_else(String::new, |(first, last)| {
        format!(", {} to {} ({})", clock(first), clock(last), length(last.since(first)))
    });
    writeln!(
        out,
        "{} of {} frames with {} events{span}",
        revisions(comparison.replayed),
        grouped(comparison.frames),
        grouped(comparison.events)
    )
}

fn revisions(number: u64) -> String {
    let word = if number == 1 { "revision" } else { "revisions" };
    format!("{} {word}", grouped(number))
}

/// Why the recording ends, where it could have gone on.
pub(crate) fn ending(end: Option<End>, out: &mut dyn Write) -> io::Result<()> {
    match end {
        Some(End::Closed(Ending::Drained)) => Ok(()),
        Some(End::Closed(ending)) => writeln!(out, "the recording ends because {}", ending.because()),
        Some(End::Open { at, cut_bytes: 0 }) => {
            writeln!(
                out,
                "the recording stops at byte {at} without an end: the aggregator was killed, or still records"
            )
        }
        Some(End::Open { at, cut_bytes }) => writeln!(
            out,
            "the recording is cut behind byte {at}: {} bytes of a record that is not whole are left out; the aggregator \
             was killed, or still records",
            grouped(cut_bytes)
        ),
        None => Ok(()),
    }
}

/// How it compares with what was live.
pub(crate) fn compared(head: &Head, compared: &Compared<'_>, out: &mut dyn Write) -> io::Result<()> {
    match compared {
        Compared::Equal(live) => {
            writeln!(out, "the same as it was live: {}, byte for byte", revisions(*live))
        }
        Compared::OtherRules => writeln!(out, "not compared: the rules are others than they were live"),
        Compared::BeginsInTheMiddle => writeln!(
            out,
            "not compared: this begins with part {} of the recording, so that what the engine knew before is missing \
             (the oldest files make room: record.bytes_max)",
            head.part
        ),
        Compared::Nothing => {
            writeln!(out, "not compared: the recording holds no frame and no revision")
        }
        Compared::Differs(difference) => differs(difference, out),
    }
}

fn differs(difference: &Difference, out: &mut dyn Write) -> io::Result<()> {
    let Difference { now, live, replayed } = difference;
    write!(out, "DIFFERS from what was live, first at {}: ", clock(*now))?;
    let read = |bytes: &Option<Vec<u8>>| -> Option<Value> { serde_json::from_slice(bytes.as_deref()?).ok() };
    let name = |value: &Value| format!("{} revision {}", text(&value["id"]), value["revision"]);
    match (read(live), read(replayed)) {
        (Some(live), None) => writeln!(out, "{} was announced, and the replay has none", name(&live)),
        (None, Some(replayed)) => writeln!(out, "the replay has {}, and none was announced", name(&replayed)),
        (Some(was), Some(is)) => match first_difference(Some(&was), Some(&is)) {
            Some((path, now_was, now_is)) => {
                writeln!(out, "{}{path} was {now_was}, and is {now_is}", name(&was))
            }
            None => {
                let [a, b] = [live, replayed].map(|bytes| bytes.as_deref().unwrap_or_default());
                let byte = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                writeln!(out, "{} says the same in other bytes, from byte {byte} on", name(&was))
            }
        },
        (None, None) => writeln!(out, "a revision is not what was announced"),
    }
}

/// Where two values first differ, and what stands there; of objects and arrays also what only one of them has.
fn first_difference(was: Option<&Value>, is: Option<&Value>) -> Option<(String, String, String)> {
    let inside = |key: &str, was: Option<&Value>, is: Option<&Value>| {
        first_difference(was, is).map(|(path, was, is)| (format!("/{key}{path}"), was, is))
    };
    match (was, is) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let added = b.keys().filter(|key| !a.contains_key(*key));
            a.keys().chain(added).find_map(|key| inside(key, a.get(key), b.get(key)))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            (0..a.len().max(b.len())).find_map(|index| inside(&index.to_string(), a.get(index), b.get(index)))
        }
        _ if was == is => None,
        _ => Some((String::new(), cut(was), cut(is))),
    }
}

fn cut(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "absent".to_owned(), Value::to_string);
    text.chars().take(VALUE_CHARS_MAX).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tapio_schemas::units::UnixMicros;

    use super::*;

    /// Scenario: documents that differ deep inside, in what only one of them has, in their shape, in their bytes alone,
    /// and not at all.
    /// Guarantees: the first place that differs is named, with both values, also where what is before it is long.
    #[test]
    fn the_first_difference_is_found() {
        let was = json!({"a": 1, "b": {"c": [1, {"d": "x"}]}});
        let is = json!({"a": 1, "b": {"c": [1, {"d": "y"}]}});
        let difference = |was: &Value, is: &Value| {
            first_difference(Some(was), Some(is)).map(|(path, was, is)| format!("{path}: {was}, {is}"))
        };
        assert_eq!(difference(&was, &is).unwrap(), "/b/c/1/d: \"x\", \"y\"");
        assert_eq!(difference(&was, &was), None);
        let long = "x".repeat(VALUE_CHARS_MAX);
        for (was, is, expected) in [
            (json!([long]), json!([long, 2]), "/1: absent, 2"),
            (json!([long, 2]), json!([long]), "/1: 2, absent"),
            (json!({"a": long, "b": 1}), json!({"a": long}), "/b: 1, absent"),
            (json!({"a": long}), json!({"a": long, "b": 1}), "/b: absent, 1"),
            (json!([]), json!({}), ": [], {}"),
        ] {
            assert_eq!(difference(&was, &is).unwrap(), expected);
        }
        let [live, replayed] = ["{\"id\":\"f-1\",\"x\":1}", "{\"id\":\"f-1\",\"x\": 1}"];
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        let difference = Difference { now: UnixMicros(0), live: bytes(live), replayed: bytes(replayed) };
        let mut said = Vec::new();
        differs(&difference, &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(said.ends_with(" says the same in other bytes, from byte 16 on\n"), "{said}");
    }
}
