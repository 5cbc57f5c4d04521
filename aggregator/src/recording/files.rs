//! The files of recordings in their folder: made one after the other, the oldest removed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tapio_schemas::units::UnixMicros;
use thiserror::Error;

/// A recording is cut into so many parts at least, so that little goes when the oldest has to.
const PARTS_MIN: u64 = 8;
/// No part is larger, but for its last record.
const PART_BYTES_MAX: u64 = 256 << 20;
const PREFIX: &str = "recording-";
const SUFFIX: &str = ".tapio";

/// Why nothing can be recorded.
#[derive(Debug, Error)]
#[error("cannot {doing} {} (record.directory): check that the aggregator's user may write there", path.display())]
pub struct FilesError {
    doing: &'static str,
    path: PathBuf,
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
}

impl Files {
    /// Opens the folder, making it where there is none. Only its owner may look into it: recordings hold events.
    pub(super) fn open(folder: &Path, bytes_max: u64) -> Result<Self, FilesError> {
        let failed = |doing| move |source| FilesError { doing, path: folder.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("create"))?;
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
        Ok(Self { folder: folder.to_owned(), bytes_max, finished: finished.into() })
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

    /// Makes the file of a part. First removes the oldest until there is room for it; returns how many went.
    pub(super) fn create(
        &mut self,
        began: UnixMicros,
        part: u32,
    ) -> Result<(File, PathBuf, u64), FilesError> {
        let mut removed = 0;
        while self.used_bytes().saturating_add(self.part_bytes()) > self.bytes_max
            && let Some((path, _bytes)) = self.finished.pop_front()
        {
            match fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(FilesError { doing: "remove", path, source }),
            }
        }
        let path = self.folder.join(format!("{PREFIX}{:020}-{part:05}{SUFFIX}", began.0));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok((file, path, removed)),
            Err(source) => Err(FilesError { doing: "create", path, source }),
        }
    }

    /// Notes that a file is finished.
    pub(super) fn finish(&mut self, path: PathBuf, bytes: u64) {
        self.finished.push_back((path, bytes));
    }
}

impl FilesError {
    /// What the system said.
    pub(super) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: parts are finished one after the other, beside a file that is none.
    /// Guarantees: the oldest go before the quota is passed, also those of earlier processes; other files stay.
    #[test]
    fn the_oldest_parts_make_room() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.tapio"), "mine").unwrap();
        let mut files = Files::open(folder.path(), 80).unwrap();
        assert_eq!(files.part_bytes(), 10);
        let mut removed = 0;
        for part in 1..=12 {
            if part == 7 {
                files = Files::open(folder.path(), 80).unwrap();
            }
            let (file, path, gone) = files.create(UnixMicros(5), part).unwrap();
            file.set_len(10).unwrap();
            files.finish(path, 10);
            removed += gone;
            assert!(files.used_bytes() <= 80);
        }
        assert_eq!(removed, 4);
        let names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 9, "{names:?}");
        assert!(!names.contains(&"recording-00000000000000000005-00004.tapio".into()));
    }
}
