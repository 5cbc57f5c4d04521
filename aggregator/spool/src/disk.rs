//! What durable files need of a machine: a trait, so that a simulation can bring a disk that tears, forgets and fails.
//!
//! [`RealDisk`] is the machine's own. Semantics are POSIX's: what was written is seen by every reader at once, survives
//! the process, and survives a power cut only once the file, and for its name the directory, was synced. A failed sync
//! says nothing about what is on the disk, and is not repeated by the next one.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must be there; it is only read.
    Read,
    /// It must be there; it is read and written.
    Write,
    /// It is made where there is none; it is read and written.
    Create,
    /// It is made anew, empty; it is read and written.
    Replace,
}

/// A disk, or the part of one that a process keeps its state on.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a directory and those above it, where there is none.
    ///
    /// # Errors
    /// The system's refusal, here as of all other operations.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Opens a file. One that is made is its owner's alone.
    ///
    /// # Errors
    /// `NotFound` where it must be there.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;

    /// The names of all files in a directory, in any order.
    ///
    /// # Errors
    /// See [`Disk::create_dir_all`].
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Gives a file another name; whatever had that name is gone. A crash leaves the one or the other.
    ///
    /// # Errors
    /// See [`Disk::create_dir_all`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name; whoever has it open reads on.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes created, renamed and removed names in `dir` survive a power cut.
    ///
    /// # Errors
    /// See [`Disk::create_dir_all`].
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock of the file at `path`, which is made where there is none; `None` where another process
    /// has it and `wait` is false.
    ///
    /// # Errors
    /// See [`Disk::create_dir_all`].
    fn lock(&self, path: &Path, wait: bool) -> io::Result<Option<Box<dyn Lock>>>;

    /// Bytes that are free for this process where `dir` is; `None` where it is not said.
    fn free_bytes(&self, dir: &Path) -> Option<u64>;

    /// The machine's name for the time since it was started: within it a killed process loses no written byte.
    fn boot_id(&self) -> Option<[u8; 16]>;
}

/// An open file.
#[expect(clippy::len_without_is_empty, reason = "a file's length is no collection's")]
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file is shorter.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`. After a failure any part of them may be there.
    ///
    /// # Errors
    /// `StorageFull` or `QuotaExceeded` where there is no room.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or fills it up with zeros.
    ///
    /// # Errors
    /// The system's refusal.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// The system's refusal.
    fn len(&self) -> io::Result<u64>;

    /// Forces content and length to the disk.
    ///
    /// # Errors
    /// What is on the disk is then unknown.
    fn sync(&self) -> io::Result<()>;
}

/// A lock that is held until it is dropped.
pub trait Lock: fmt::Debug + Send + Sync {}

/// Reads a whole file of at most `bytes_max`; `None` where there is none.
///
/// # Errors
/// `InvalidData` where it is longer, or the system's refusal.
pub fn read(disk: &dyn Disk, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, Open::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.len()?;
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has {length} bytes")));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Replaces a small file so that a crash leaves either the old or the new content, on the disk when this returns.
///
/// # Errors
/// The system's refusal; which of the two contents is there is then unknown, but it is one of them.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let file = disk.open(&beside, Open::Replace)?;
    file.write_all_at(bytes, 0)?;
    file.sync()?;
    disk.rename(&beside, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// The machine's own disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let file = File::options()
            .read(true)
            .write(how != Open::Read)
            .create(matches!(how, Open::Create | Open::Replace))
            .truncate(how == Open::Replace)
            .mode(0o600)
            .open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let how = if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
        match flock(&file, how) {
            Ok(()) => Ok(Some(Box::new(RealLock { _file: file }))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let stat = rustix::fs::statvfs(dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn boot_id(&self) -> Option<[u8; 16]> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let mut digits = text.chars().filter_map(|digit| digit.to_digit(16));
        let mut id = [0u8; 16];
        for byte in &mut id {
            let (high, low) = (digits.next()?, digits.next()?);
            *byte = u8::try_from(high << 4 | low).ok()?;
        }
        Some(id)
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        // The length too: it is metadata that is needed to read the content back.
        self.0.sync_data()
    }
}

/// The lock goes with the file's last handle.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl Lock for RealLock {}
