//! Why a spool could not do what was asked, in terms of what the caller should do.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A spool's failure. Unless it says otherwise the spool is as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The configuration cannot work: stop.
    #[error("spool configuration: {0}")]
    Config(String),
    /// Another process owns the directory: stop, two owners would overwrite each other.
    #[error("spool {} is in use by another process: stop that one, or give this one a directory of its own", dir.display())]
    Locked {
        /// The spool's directory.
        dir: PathBuf,
    },
    /// The quota is reached and the policy is to refuse: trim, or retry later.
    #[error("spool {} is full: {used_bytes} of {quota_bytes} bytes are used and {needed_bytes} more are needed", dir.display())]
    Full {
        /// The spool's directory.
        dir: PathBuf,
        /// Bytes of all segments.
        used_bytes: u64,
        /// Bytes that the append needed.
        needed_bytes: u64,
        /// The configured limit.
        quota_bytes: u64,
    },
    /// The file system has no room: retry later, or free some. What was asked for was undone.
    #[error("no space left for spool {}: free some on that file system, or lower the spool's quota", dir.display())]
    DiskFull {
        /// The spool's directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The record or batch does not fit a segment: drop it, or raise `segment_bytes_max`.
    #[error(
        "{bytes} bytes do not fit a segment of {limit_bytes} bytes: raise segment_bytes_max or append less at once"
    )]
    TooLarge {
        /// Bytes of the record or batch, headers included.
        bytes: u64,
        /// What a segment may hold.
        limit_bytes: u64,
    },
    /// An earlier failure left unknown what is on the disk: reopen the spool, which recovers it.
    #[error("spool {} must be reopened: {reason}", dir.display())]
    Poisoned {
        /// The spool's directory.
        dir: PathBuf,
        /// The first failure.
        reason: String,
    },
    /// A small file that the spool depends on cannot be believed: stop.
    #[error("{} is damaged ({reason}): {advice}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// The system refused an operation on a file.
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
}

impl SpoolError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }

    /// A failed write in `dir`, told apart by whether the disk is full.
    pub(crate) fn write(doing: &'static str, dir: &Path, path: &Path, source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::DiskFull { dir: dir.to_owned(), source },
            _ => Self::io(doing, path, source),
        }
    }
}
