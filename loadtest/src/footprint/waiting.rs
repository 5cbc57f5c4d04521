//! How long people wait: for the demo's verdict, and for the gate.
//!
//! Reads what `scripts/test` and `scripts/verify footprint` noted; measures nothing. Called by [`super::run`].

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::footprint::measure::Measure;

/// What the gate noted of its last run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gate {
    tree: String,
    seconds: f64,
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    name: String,
    seconds: f64,
    passed: bool,
}

/// What was noted of a demo from a fresh clone, and of one right after it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Demo {
    tree: String,
    cold_seconds: f64,
    warm_seconds: f64,
}

/// The times that were noted in the folder `timings`.
pub(super) fn measures(timings: &Path) -> Vec<Measure> {
    let mut measures =
        match read::<Demo>(&timings.join("demo.json"), "scripts/verify footprint --demo notes it") {
            Ok(Demo { tree, cold_seconds, warm_seconds }) => {
                let note = format!("tree {tree}; packages and fetched things were cached");
                vec![
                    Measure::new("demo_cold", Ok(cold_seconds), note),
                    Measure::new("demo_warm", Ok(warm_seconds), format!("tree {tree}")),
                ]
            }
            Err(reason) => {
                ["demo_cold", "demo_warm"].map(|name| Measure::new(name, Err(reason.clone()), "")).to_vec()
            }
        };
    match read::<Gate>(&timings.join("gate.json"), "scripts/test notes it") {
        Ok(Gate { tree, seconds, parts }) => {
            measures.push(Measure::of_gate(None, Ok(seconds), format!("tree {tree}")));
            measures.extend(parts.iter().map(|part| {
                let note = if part.passed { "" } else { "it failed" };
                Measure::of_gate(Some(&part.name), Ok(part.seconds), note)
            }));
        }
        Err(reason) => measures.push(Measure::of_gate(None, Err(reason), "")),
    }
    measures
}

fn read<T: DeserializeOwned>(path: &Path, how: &str) -> Result<T, String> {
    let text = std::fs::read(path).map_err(|error| format!("no time was noted ({error}): {how}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("{} is not readable ({error})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::measures;

    /// Scenario: no time was noted; the gate's was, with a part that failed; a file of another shape.
    /// Guarantees: what is there is shown by part, what is not says who notes it, and nothing is made up.
    #[test]
    fn times_are_read_or_named_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        let none = measures(folder.path());
        assert!(none.len() == 3 && none.iter().all(|measure| measure.value.is_none()));
        assert!(none[0].note.contains("scripts/verify footprint --demo"), "{}", none[0].note);
        let gate =
            r#"{"tree": "abc", "seconds": 90, "parts": [{"name": "lints", "seconds": 30, "passed": false}]}"#;
        std::fs::write(folder.path().join("gate.json"), gate).unwrap();
        std::fs::write(folder.path().join("demo.json"), r#"{"tree": "abc"}"#).unwrap();
        let some = measures(folder.path());
        let of = |name: &str| some.iter().find(|measure| measure.name == name).unwrap();
        assert_eq!(
            (of("ci").value, of("ci: lints").value, of("demo_cold").value),
            (Some(90.0), Some(30.0), None)
        );
        assert_eq!(of("ci: lints").note, "it failed");
    }
}
