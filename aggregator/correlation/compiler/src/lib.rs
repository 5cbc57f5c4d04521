//! Rule files to compiled rule sets: YAML around it, CEL in the conditions.
//!
//! The aggregator compiles, the edge only runs what was compiled: this crate is never linked there. A file is read as
//! a whole and every fault in it is reported, each with file, line and column and what to write instead. Nothing is
//! guessed: an unknown key, intent, field or step is refused. The built-in rules are files like any other.

mod condition;
mod fault;
mod reader;
mod rule;
mod sentence;
mod yaml;

use std::path::Path;

pub use fault::{Fault, Faults};
use tapio_correlation::{Rule, RuleSet};

/// The version of the rule language that this compiler reads.
pub const LANGUAGE_VERSION: i64 = 1;

/// The most bytes that a rule file may have.
pub const FILE_BYTES_MAX: u64 = 256 << 10;

/// The most rule files that a folder may have.
pub const FILES_MAX: usize = 1_024;

/// The rules that Tapio comes with, as files.
pub const BUILTIN: &[(&str, &str)] = &[
    ("container-oom.yaml", include_str!("../../rules/container-oom.yaml")),
    ("container-oom-node.yaml", include_str!("../../rules/container-oom-node.yaml")),
    ("missing-file.yaml", include_str!("../../rules/missing-file.yaml")),
    ("port-in-use.yaml", include_str!("../../rules/port-in-use.yaml")),
];

/// Compiles the rules that Tapio comes with.
///
/// # Errors
///
/// None in a build whose tests pass.
pub fn compile_builtin() -> Result<RuleSet, Faults> {
    compile_texts(BUILTIN.iter().copied())
}

/// Compiles all `*.yaml` and `*.yml` files of a folder, in the order of their names, without folders below it.
///
/// # Errors
///
/// All faults of all files, or what kept the folder from being read.
pub fn compile_dir(folder: &Path) -> Result<RuleSet, Faults> {
    let texts = read_dir(folder)?;
    compile_texts(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))
}

/// Compiles the built-in rules and those of a folder together.
///
/// # Errors
///
/// As [`compile_dir`]; also when a rule of the folder has the id of a built-in one.
pub fn compile_builtin_and_dir(folder: &Path) -> Result<RuleSet, Faults> {
    let texts = read_dir(folder)?;
    let own = texts.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    compile_texts(BUILTIN.iter().copied().chain(own))
}

/// Compiles rule files given as (name, text).
///
/// # Errors
///
/// All faults of all files.
pub fn compile_texts<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<RuleSet, Faults> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut rules: Vec<(Rule, Fault)> = Vec::new();
    for (file, text) in files {
        let (rule, mut its) = rule::compile(file, text);
        if its.is_empty()
            && let Some((rule, at)) = rule
        {
            if let Some((_first, place)) = rules.iter().find(|(other, _place)| other.id == rule.id) {
                faults.push(at.saying(format!("rule {} exists already in {}", rule.id, place.file)));
            } else {
                rules.push((rule, at));
            }
        }
        faults.append(&mut its);
    }
    if !faults.is_empty() {
        return Err(Faults(faults));
    }
    RuleSet::new(rules.into_iter().map(|(rule, _at)| rule).collect())
        .map_err(|error| Faults(vec![Fault::of_file("rule set", error.to_string())]))
}

fn read_dir(folder: &Path) -> Result<Vec<(String, String)>, Faults> {
    let name = folder.display().to_string();
    let refuse = |what: String| Faults(vec![Fault::of_file(&name, what)]);
    let entries = std::fs::read_dir(folder).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| refuse(format!("cannot be read: {error}")))?.path();
        let is_rule = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_rule && path.is_file() {
            paths.push(path);
        }
        if paths.len() > FILES_MAX {
            return Err(refuse(format!("has more than {FILES_MAX} rule files")));
        }
    }
    paths.sort();
    let mut faults = Vec::new();
    let mut texts = Vec::new();
    for path in paths {
        let name = path.display().to_string();
        let size = std::fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
        if size > FILE_BYTES_MAX {
            faults.push(Fault::of_file(&name, format!("has {size} bytes, more than {FILE_BYTES_MAX}")));
            continue;
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => texts.push((name, text)),
            Err(error) => faults.push(Fault::of_file(&name, format!("cannot be read: {error}"))),
        }
    }
    if faults.is_empty() { Ok(texts) } else { Err(Faults(faults)) }
}
