//! Configuration files: read once, at the start, and refused with the key and the line that is wrong.
//!
//! A file becomes a raw serde struct (whose owner sets `deny_unknown_fields`); the owner checks it with
//! [`Problems`], which reports every fault at once. A process that refuses its configuration exits with
//! [`EXIT_CODE`].

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// The exit status of a process that refuses its configuration: restarting it will not help.
pub const EXIT_CODE: u8 = 2;

/// No configuration file is larger.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what a configuration can be.
    #[error("configuration {} is larger than {FILE_BYTES_MAX} bytes: is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not TOML, or a key has the wrong name or type.
    #[error("configuration {}{}{}: {reason}", path.display(), at_line(*line), at_key(key))]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// The key, dotted, where it is known.
        key: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// The values do not make sense.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

fn at_line(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}

fn at_key(key: &Option<String>) -> String {
    key.as_ref().map(|key| format!(", {key}")).unwrap_or_default()
}

/// Reads the configuration at `path`.
///
/// # Errors
/// When the file cannot be read or does not have the shape of `T`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    parse(path, &text)
}

/// Reads a configuration from `text`; `path` is only named in errors.
///
/// # Errors
/// When the text does not have the shape of `T`.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    let refuse = |error: &toml::de::Error, key: Option<String>| ConfigError::Parse {
        path: path.to_owned(),
        line: error.span().map(|span| line_of(text, span.start)),
        key,
        reason: error.message().trim().to_owned(),
    };
    let document = toml::Deserializer::parse(text).map_err(|error| refuse(&error, None))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let key = error.path().to_string();
        // The path of the whole document is ".", which helps nobody.
        refuse(error.inner(), (key != ".").then_some(key))
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

/// Everything that is wrong with a configuration, each with its key.
///
/// ```
/// # use tapio_daemon::Problems;
/// let mut problems = Problems::default();
/// problems.require(false, "spool.quota_bytes", "must be at least 1048576");
/// assert!(problems.into_result(()).is_err());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// Notes that `key` is wrong.
    pub fn add(&mut self, key: impl Into<String>, reason: impl fmt::Display) {
        self.0.push((key.into(), reason.to_string()));
    }

    /// Notes that `key` is wrong unless `holds`.
    pub fn require(&mut self, holds: bool, key: &str, reason: impl fmt::Display) {
        if !holds {
            self.add(key, reason);
        }
    }

    /// Takes a value out of its result, or notes why there is none.
    pub fn check<T, E: fmt::Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(key, error)).ok()
    }

    /// The keys and what is wrong with each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, reason)| (key.as_str(), reason.as_str()))
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, if nothing is wrong.
    ///
    /// # Errors
    /// With all problems, when there are any.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the configuration has {} problem(s)", self.0.len())?;
        for (key, reason) in &self.0 {
            write!(formatter, "\n  {key}: {reason}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        name: String,
        spool: Spool,
        #[serde(default)]
        probes: Vec<Probe>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Spool {
        quota_bytes: u64,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Probe {
        on: bool,
    }

    fn refused(text: &str) -> String {
        parse::<Raw>(Path::new("agent.toml"), text).expect_err("refused").to_string()
    }

    /// Scenario: files with each kind of fault.
    /// Guarantees: the message names file, line, key and what is wrong.
    #[test]
    fn faults_are_named_with_file_line_and_key() {
        let good = "name = \"a\"\n[spool]\nquota_bytes = 5\n";
        assert_eq!(parse::<Raw>(Path::new("a"), good).expect("good").spool.quota_bytes, 5);
        for (text, says) in [
            (
                "name = \"a\"\n[spool]\nquota_bytes = \"x\"\n",
                vec!["agent.toml, line 3", "spool.quota_bytes", "u64"],
            ),
            ("name = \"a\"\n[spool]\nquota_bytes = -1\n", vec!["line 3", "spool.quota_bytes"]),
            ("name = \"a\"\n[spool]\nquota = 5\n", vec!["line 3", "spool", "unknown field `quota`"]),
            ("name = \"a\"\n[spool]\n", vec!["line 2", "spool", "missing field `quota_bytes`"]),
            ("name = \"a\"\n\n[spool\n", vec!["line 3"]),
            (
                "name = \"a\"\n[spool]\nquota_bytes = 5\n[[probes]]\non = true\n[[probes]]\non = 1\n",
                vec!["line 7", "probes[1].on", "boolean"],
            ),
        ] {
            let message = refused(text);
            for part in says {
                assert!(message.contains(part), "{message:?} does not say {part:?}");
            }
        }
    }

    /// Scenario: files that are not there, too large, or not text.
    /// Guarantees: each is refused and named.
    #[test]
    fn unreadable_files_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.toml");
        let message = |path: &Path| load::<Raw>(path).expect_err("refused").to_string();
        assert!(message(&path).contains("agent.toml: No such file"), "{}", message(&path));
        std::fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(message(&path).contains("agent.toml"));
        std::fs::write(&path, vec![b'#'; 1 + (1 << 20)]).expect("written");
        assert!(message(&path).contains("larger than"));
    }

    /// Scenario: a configuration with several values that make no sense.
    /// Guarantees: all are reported at once, each with its key.
    #[test]
    fn all_problems_are_reported_at_once() {
        let mut problems = Problems::default();
        problems.require(true, "fine", "never said");
        problems.require(false, "spool.quota_bytes", "must be at least 2 MiB");
        assert_eq!(problems.check("listen", "12".parse::<u8>()), Some(12));
        assert_eq!(problems.check("limit", "x".parse::<u8>()), None);
        let error = ConfigError::from(problems.into_result(()).expect_err("two problems"));
        assert_eq!(
            error.to_string(),
            "the configuration has 2 problem(s)\n  spool.quota_bytes: must be at least 2 MiB\n  \
             limit: invalid digit found in string"
        );
    }
}
