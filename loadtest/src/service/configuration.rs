//! What a service reads when it starts: without it, it does not know whom to call.
//!
//! Owns the file's shape, writing it (for who starts the services) and reading it (for the service itself). A service
//! looks for optional files first, and behind a failure, as programs do. Called by [`crate::workload`] and by `tapio-workload serve`.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The service that it calls.
    pub upstream: Option<SocketAddr>,
}

impl Settings {
    /// Reads `path`, and before it those of `optional` that exist: the last one that names an upstream wins. Where that
    /// fails, a hint for whoever has to mend it may be beside it.
    ///
    /// # Errors
    /// `path` cannot be read, or a file is not of the shape.
    pub fn read(path: &Path, optional: &[PathBuf]) -> anyhow::Result<Self> {
        Self::read_files(path, optional).map_err(|error| {
            match fs::read_to_string(path.with_extension("hint")) {
                Ok(hint) => error.context(hint),
                Err(_there_is_none) => error,
            }
        })
    }

    fn read_files(path: &Path, optional: &[PathBuf]) -> anyhow::Result<Self> {
        let mut overrides = Vec::new();
        for path in optional {
            match fs::read(path) {
                Ok(bytes) => overrides.push(parse(path, &bytes)?),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            }
        }
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let settings = parse(path, &bytes)?;
        let upstream = overrides.into_iter().rev().find_map(|settings| settings.upstream);
        Ok(Self { upstream: upstream.or(settings.upstream) })
    }

    /// Writes the file, and the folders above it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let folder = path.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(path, serde_json::to_vec(self)?).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> anyhow::Result<Settings> {
    serde_json::from_slice(bytes).with_context(|| format!("{} is no configuration", path.display()))
}

#[cfg(test)]
mod tests {
    use super::Settings;

    /// Scenario: a file alone, with one of two optional files beside it, and gone.
    /// Guarantees: an optional file may be absent and wins where it is there; the one that is needed may not.
    #[test]
    fn optional_files_may_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join("conf").join(name);
        let optional = [file("a.json"), file("b.json")];
        let settings = |port: u16| Settings { upstream: Some(([127, 0, 0, 1], port).into()) };
        settings(1).write(&file("main.json")).unwrap();
        assert_eq!(Settings::read(&file("main.json"), &optional).unwrap(), settings(1));
        settings(2).write(&optional[1]).unwrap();
        assert_eq!(Settings::read(&file("main.json"), &optional).unwrap(), settings(2));
        std::fs::remove_file(file("main.json")).unwrap();
        let error = Settings::read(&file("main.json"), &optional).unwrap_err();
        assert!(format!("{error:#}").contains("cannot read"), "{error:#}");
        std::fs::write(file("main.hint"), "ask the night shift").unwrap();
        let error = Settings::read(&file("main.json"), &optional).unwrap_err();
        assert!(format!("{error:#}").starts_with("ask the night shift: cannot read"), "{error:#}");
    }
}
