//! The state directory: what of it belongs to whom, and files that are replaced whole.
//!
//! One aggregator owns a state directory; the spool's lock sees to it. Called at the start by [`crate::run`], and by
//! the pipeline for its small durable files.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tapio_spool::disk::{self, Disk, RealDisk};
use thiserror::Error;

/// No small durable file is larger; one that is was not written by us.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why a state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The system refused an operation.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A small durable file does not say what it should.
    #[error("{} is damaged ({reason}): {advice}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// A small durable file is of another release.
    #[error("{} is of another release ({reason}): {advice}", path.display())]
    OtherRelease {
        /// The file.
        path: PathBuf,
        /// How it differs.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
}

impl StateError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }

    /// Whether the disk, or the quota on it, is full: room may come.
    pub(crate) fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// What names a spool of findings.
#[derive(Debug, Deserialize, Serialize)]
struct Log {
    number: u64,
}

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct StateDirectory {
    root: PathBuf,
}

impl StateDirectory {
    /// Opens the directory, making it where there is none. Others may pass through it, because the embedded engine
    /// runs as another user below it, but see nothing in it.
    pub(crate) fn open(root: &Path) -> Result<Self, StateError> {
        make(root, 0o711)?;
        let root = fs::canonicalize(root).map_err(|error| StateError::io("open", root, error))?;
        let state = Self { root };
        make(&state.spool(), 0o700)?;
        make(&state.findings_spool(), 0o700)?;
        Ok(state)
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Received frames.
    pub(crate) fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// Announced findings that may not be stored yet.
    pub(crate) fn findings_spool(&self) -> PathBuf {
        self.root.join("findings")
    }

    /// The number of the findings' spool, made where it has none: it goes with the directory, so that places in another
    /// one are told apart.
    pub(crate) fn findings_log(&self) -> Result<u64, StateError> {
        let path = self.findings_spool().join("log.json");
        if let Some(Log { number }) =
            read_json(&RealDisk, &path, "remove it: who follows findings then begins anew")?
        {
            return Ok(number);
        }
        let number = getrandom::u64().map_err(|error| {
            let error = io::Error::other(error.to_string());
            StateError::io("get a random number for", &path, error)
        })?;
        replace_json(&RealDisk, &path, &Log { number })?;
        Ok(number)
    }

    /// The embedded engine's directory.
    pub(crate) fn engine(&self) -> PathBuf {
        self.root.join("clickhouse")
    }
}

fn make(path: &Path, mode: u32) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| StateError::io("create", path, error))
}

/// Reads a small durable file; `None` when it was never written.
pub(crate) fn read_json<T: DeserializeOwned>(
    disk: &dyn Disk,
    path: &Path,
    advice: &'static str,
) -> Result<Option<T>, StateError> {
    let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason, advice };
    let bytes = match disk::read(disk, path, FILE_BYTES_MAX) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged(error.to_string())),
        Err(error) => return Err(StateError::io("read", path, error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Replaces a small file so that a crash leaves either the old or the new content, on the disk when this returns.
pub(crate) fn replace_json<T: Serialize>(disk: &dyn Disk, path: &Path, value: &T) -> Result<(), StateError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StateError::io("write", path, error.into()))?;
    replace(disk, path, &bytes)
}

/// Replaces a small file, readable by its owner only; see [`replace_json`].
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    disk::replace(disk, path, bytes).map_err(|error| StateError::io("write", path, error))
}

/// Removes a small file; that there is none is fine. On the disk when this returns.
pub(crate) fn remove(disk: &dyn Disk, path: &Path) -> Result<(), StateError> {
    match disk.remove(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StateError::io("remove", path, error)),
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(directory).map_err(|error| StateError::io("sync", directory, error))
}
