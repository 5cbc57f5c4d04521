//! The files of recordings in their folder: made one after the other, the oldest removed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use tapio_schemas::units::UnixMicros;
use thiserror::Error;

/// A recording is cut into so many parts at least, so that little goes when the oldest has to.
const PARTS_MIN: u64 = 8;
/// No part is larger, but for its last record.
const PART_BYTES_MAX: u64 = 256 << 20;
const PREFIX: &str = "recording-";
const SUFFIX: &str = ".tapio";
const LOCK: &str = "lock";

/// Why nothing can be recorded.
#[derive(Debug, Error)]
#[error("cannot {doing} {} (record.directory): {advice}", path.display())]
pub struct FilesError {
    doing: &'static str,
    path: PathBuf,
    advice: &'static str,
    #[source]
    source: io::Error,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    bytes_max: u64,
    /// Finished files, the oldest first, and what they use.
    finished: VecDeque<(PathBuf, u64)>,
    /// Held for as long as this lives: another process would remove what is being written here.
    _lock: File,
}

impl Files {
    /// Opens the folder, making it where there is none. Only its owner may look into it: recordings hold events.
    pub(super) fn open(folder: &Path, bytes_max: u64) -> Result<Self, FilesError> {
        let failed = |doing| move |source| FilesError::new(doing, folder, source);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("create"))?;
        let path = folder.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|source| FilesError::new("create", &path, source))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| FilesError::new("lock", &path, error.into()))?;
        let mut finished = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed("read"))? {
            let entry = entry.map_err(failed("read"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                let bytes = entry.metadata().map_err(failed("read"))?.len();
                finished.push((entry.path(), bytes));
            }
        }
        // By name is by time: numbers in names are padded.
        finished.sort();
        Ok(Self { folder: folder.to_owned(), bytes_max, finished: finished.into(), _lock: lock })
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How large a part grows.
    pub(super) fn part_bytes(&self) -> u64 {
        (self.bytes_max / PARTS_MIN).min(PART_BYTES_MAX)
    }

    /// What finished files use.
    pub(super) fn used_bytes(&self) -> u64 {
        self.finished.iter().map(|(_path, bytes)| bytes).sum()
    }

    /// What all files may use.
    pub(super) const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Makes the file of a part. First removes the oldest until there is `room` for it; returns how many went.
    pub(super) fn create(
        &mut self,
        began: UnixMicros,
        part: u32,
        room: u64,
    ) -> Result<(File, PathBuf, u64), FilesError> {
        let mut removed = 0;
        while self.used_bytes().saturating_add(room) > self.bytes_max
            && let Some((path, _bytes)) = self.finished.pop_front()
        {
            match fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(FilesError::new("remove", &path, source)),
            }
        }
        let path = self.folder.join(format!("{PREFIX}{:020}-{part:05}{SUFFIX}", began.0));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok((file, path, removed)),
            Err(source) => Err(FilesError::new("create", &path, source)),
        }
    }

    /// Notes that a file is finished.
    pub(super) fn finish(&mut self, path: PathBuf, bytes: u64) {
        self.finished.push_back((path, bytes));
    }
}

impl FilesError {
    pub(super) fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let advice = match source.kind() {
            io::ErrorKind::WouldBlock => "another aggregator records there: give each a folder of its own",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on that file system",
            _ => "check that the folder is there and that the aggregator's user may write to it",
        };
        Self { doing, path: path.to_owned(), advice, source }
    }

    /// What the system said.
    pub(super) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: parts are finished one after the other, beside a file that is none.
    /// Guarantees: the oldest go before the quota is passed, also those of earlier processes; other files stay; only one
    /// process at a time records there.
    #[test]
    fn the_oldest_parts_make_room() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.tapio"), "mine").unwrap();
        let mut files = Files::open(folder.path(), 80).unwrap();
        assert_eq!(files.part_bytes(), 10);
        let mut removed = 0;
        for part in 1..=12 {
            if part == 7 {
                let said = Files::open(folder.path(), 80).unwrap_err().to_string();
                assert!(said.contains("another aggregator records there"), "{said}");
                drop(files);
                files = Files::open(folder.path(), 80).unwrap();
            }
            let (file, path, gone) = files.create(UnixMicros(5), part, 10).unwrap();
            file.set_len(10).unwrap();
            files.finish(path, 10);
            removed += gone;
            assert!(files.used_bytes() <= 80);
        }
        assert_eq!(removed, 4);
        let names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 10, "{names:?}");
        assert!(!names.contains(&"recording-00000000000000000005-00004.tapio".into()));
    }
}
