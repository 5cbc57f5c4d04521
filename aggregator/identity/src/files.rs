//! Small files: whether they were replaced or written since they were looked at last, and replacing them as a whole.
//!
//! Called by what follows files (credentials, the list of revoked certificates, the certificate of a server for people),
//! and by what writes keys and certificates.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

/// A file that was written within this time may be written again without its time changing: clocks of file systems
/// tick slowly.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// What the system says of some files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    files: Vec<Option<FileStamp>>,
}

/// What tells one state of a file from another; nothing where there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The files as they are now.
    pub(crate) fn of(paths: &[&Path]) -> Self {
        let stamp = |path: &&Path| {
            let metadata = fs::metadata(path).ok()?;
            Some(FileStamp {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        };
        Self { files: paths.iter().map(stamp).collect() }
    }

    /// Whether none of the files was written so shortly before `now` that it may be written again unnoticed.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.files.iter().flatten().all(|file| {
            let changed = u64::try_from(file.changed.0).unwrap_or(0);
            // A clock that was set back makes a file look new for long; it is then only read more often.
            now.as_secs() > changed.saturating_add(SETTLED_AFTER.as_secs())
        })
    }
}

/// Replaces a file as a whole, never readable for others, also not for a moment. It is on the disk when this returns.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_added_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
