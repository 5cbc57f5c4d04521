//! Files and folders that a configuration names: looked at, and left as they are.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// Why a path cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {} {reason}", path.display())]
pub struct PathFault {
    key: &'static str,
    path: PathBuf,
    reason: String,
}

/// Whether there is a regular file.
///
/// # Errors
/// When there is none, or it cannot be looked at.
pub fn file(key: &'static str, path: &Path) -> Result<(), PathFault> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_other) => Err(fault(key, path, "is no regular file".to_owned())),
        Err(error) => Err(fault(key, path, format!("cannot be read: {error}"))),
    }
}

/// Whether there is a folder, or one can be made: nothing on the way to it is anything else.
///
/// # Errors
/// When there can be none, or the way cannot be looked at.
pub fn folder(key: &'static str, path: &Path) -> Result<(), PathFault> {
    for part in path.ancestors() {
        // The last ancestor of a relative path is empty: where the process is.
        if part.as_os_str().is_empty() {
            break;
        }
        match fs::metadata(part) {
            Ok(found) if found.is_dir() => break,
            Ok(_other) if part == path => return Err(fault(key, path, "is no folder".to_owned())),
            Ok(_other) => {
                return Err(fault(key, path, format!("cannot be made: {} is no folder", part.display())));
            }
            Err(error) if is_absent(&error) && fs::symlink_metadata(part).is_err() => {}
            Err(error) => return Err(fault(key, path, format!("cannot be used: {error}"))),
        }
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn fault(key: &'static str, path: &Path, reason: String) -> PathFault {
    PathFault { key, path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: folders that are there, that can be made, and below a file; files that are there and not.
    /// Guarantees: what cannot be used is named with its key, its path and why; nothing is made.
    #[test]
    fn what_is_named_is_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("file"), "").unwrap();
        assert!(folder("state.directory", root.path()).is_ok());
        assert!(folder("state.directory", &at("a/b")).is_ok() && !at("a").exists());
        assert!(folder("state.directory", Path::new("state-that-is-not-there")).is_ok());
        assert!(file("store.library", &at("file")).is_ok());
        let of = |fault: Result<(), PathFault>| fault.unwrap_err().to_string();
        let shown = at("file").display().to_string();
        assert_eq!(of(folder("k", &at("file"))), format!("k: {shown} is no folder"));
        assert_eq!(
            of(folder("k", &at("file/below"))),
            format!("k: {shown}/below cannot be made: {shown} is no folder")
        );
        assert!(of(file("k", root.path())).ends_with("is no regular file"));
        assert!(of(file("k", &at("none"))).contains("cannot be read: "));
    }
}
