//! Sentences: `{step.name}`, `{step.layer.field:bytes}`, and `{? ...}` around what is left out without a value.

use tapio_correlation::{
    condition::{field_names, field_type},
    template::{Part, Place, Template, Unit, What},
};

use crate::fault::suggestion;

/// The most bytes that a sentence may have.
const SENTENCE_BYTES_MAX: usize = 2_048;

/// Parses a sentence that may speak of `steps`; all faults at once.
pub(crate) fn parse(text: &str, steps: &[&str]) -> Result<Template, Vec<String>> {
    if text.len() > SENTENCE_BYTES_MAX {
        return Err(vec![format!("the sentence is longer than {SENTENCE_BYTES_MAX} bytes")]);
    }
    let mut parts: Vec<Part> = Vec::new();
    let mut wrong: Vec<String> = Vec::new();
    let mut open = 0_u32;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (plain, from) = rest.split_at(at);
        push_text(&mut parts, plain);
        if let Some(after) = from.strip_prefix('}') {
            if open == 0 {
                wrong.push("a `}` closes nothing".to_owned());
            } else {
                open -= 1;
                parts.push(Part::Close);
            }
            rest = after;
        } else if let Some(after) = from.strip_prefix("{?") {
            open += 1;
            parts.push(Part::Open);
            rest = after;
        } else {
            let inner = from.strip_prefix('{').unwrap_or_default();
            let Some((place, after)) = inner.split_once('}') else {
                wrong.push("a `{` is not closed".to_owned());
                rest = "";
                break;
            };
            match parse_place(place, steps) {
                Ok(place) => parts.push(Part::Place(place)),
                Err(message) => wrong.push(message),
            }
            rest = after;
        }
    }
    push_text(&mut parts, rest);
    if open > 0 {
        wrong.push("a `{?` is not closed".to_owned());
    }
    if wrong.is_empty() { Ok(Template { parts }) } else { Err(wrong) }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

fn parse_place(text: &str, steps: &[&str]) -> Result<Place, String> {
    let (path, unit) = match text.split_once(':') {
        Some((path, unit)) => (path, unit),
        None => (text, ""),
    };
    let unit = match unit {
        "" => Unit::Plain,
        "bytes" => Unit::Bytes,
        "bytes-per-second" => Unit::BytesPerSecond,
        other => return Err(format!("`{other}` is no unit; units are: bytes, bytes-per-second")),
    };
    let (step, what) = path.split_once('.').ok_or_else(|| format!("`{{{text}}}` must be `{{step.what}}`"))?;
    let place = steps.iter().position(|name| *name == step);
    let place = place
        .and_then(|place| u32::try_from(place).ok())
        .ok_or_else(|| format!("the rule has no step `{step}`{}", suggestion(step, steps.iter().copied())))?;
    let what = match what {
        "name" => What::Name,
        "peer" => What::Peer,
        "count" => What::Count,
        "trace" => What::Trace,
        "words" => What::Words,
        field if field_type(field).is_some() => What::Field(field.to_owned()),
        other => {
            let names: Vec<String> = field_names().collect();
            let own = ["name", "peer", "count", "trace", "words"];
            let hint = suggestion(other, names.iter().map(String::as_str).chain(own));
            return Err(format!("evidence has no `{other}`{hint}"));
        }
    };
    Ok(Place { step: place, what, unit })
}
