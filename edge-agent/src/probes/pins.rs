//! Where probes, their links and their maps stay in bpffs while no agent runs.
//!
//! ```text
//! <capture.pins>/<node>/           held by one agent at a time (flock); dots of the node's name are underscores
//!     <layout>-<identity>/         of one object, made for one kernel with one choice of sizes
//!         link_<program>  program_<program>  map_<name>
//! ```
//!
//! A link's name is made last and removed first: where it is, everything that its program needs is there too. So whatever
//! a killed agent left half made can be gone on with. Called by [`super::Probes`], by the agent's start and end, and by
//! `tapio-edge-agent uninstall`. Must never touch anything but what has these names.
#![expect(unsafe_code, reason = "mounting has no safe wrapper here")]

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, statfs};

/// Where the kernel offers a place for bpffs, and everybody mounts it.
const STANDARD_MOUNT: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Somebody may remove the folder between its making and its locking: so often it is made again.
const ATTEMPTS_MAX: u32 = 8;
const LINK: &str = "link_";
const PROGRAM: &str = "program_";
const MAP: &str = "map_";

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// Another agent is at work there.
    #[error(
        "another agent holds the probes in {}: stop it, or give this one another folder in `capture.pins`",
        directory.display()
    )]
    Held {
        /// The folder of the node.
        directory: PathBuf,
    },
    /// The folder is on another file system.
    #[error(
        "{} is not on a bpffs: choose a folder below /sys/fs/bpf, or mount one there (`mount -t bpf bpf FOLDER`)",
        directory.display()
    )]
    NotBpffs {
        /// The folder that was asked for.
        directory: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {doing} {}", path.display())]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn refused(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    let path = path.to_owned();
    move |source| PinsError::System { doing, path, source }
}

/// How many things had names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Removed {
    /// Attachments.
    pub links: u32,
    /// Programs.
    pub programs: u32,
    /// Maps, the ring among them.
    pub maps: u32,
}

/// The folder of one node, held until this is dropped. What is in it stays.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    _lock: File,
}

impl Pins {
    /// Makes the folder of `node` below `root` where there is none, and holds it. Below `/sys/fs/bpf` a bpffs is mounted
    /// if there is none.
    ///
    /// # Errors
    /// Another agent holds it, or the system refuses.
    pub fn hold(root: &Path, node: &str) -> Result<Self, PinsError> {
        see_to_bpffs(root)?;
        // bpffs takes no dots.
        let directory = root.join(node.replace('.', "_"));
        for _ in 0..ATTEMPTS_MAX {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(refused("make the folder", &directory))?;
            if let Some(lock) = lock(&directory)? {
                return Ok(Self { directory, _lock: lock });
            }
        }
        let source = io::ErrorKind::Interrupted.into();
        Err(PinsError::System { doing: "hold the folder", path: directory, source })
    }

    /// Where what is pinned is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes all that is pinned; what nobody else holds ends with it.
    ///
    /// # Errors
    /// The system refuses to remove something.
    pub fn remove(self) -> Result<Removed, PinsError> {
        let mut removed = Removed::default();
        for version in self.versions()? {
            removed.add(version.remove()?);
        }
        remove_folder(&self.directory)?;
        Ok(removed)
    }

    /// The folder of one identity, which may not be there yet.
    pub(super) fn version(&self, name: &str) -> Version {
        Version { directory: self.directory.join(name) }
    }

    /// All that are there.
    pub(super) fn versions(&self) -> Result<Vec<Version>, PinsError> {
        Ok(folders(&self.directory)?.into_iter().map(|directory| Version { directory }).collect())
    }
}

/// What is pinned of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    directory: PathBuf,
}

impl Version {
    pub(super) fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(super) fn make(&self) -> Result<(), PinsError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(refused("make the folder", &self.directory))
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{LINK}{program}"))
    }

    pub(super) fn program(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{PROGRAM}{program}"))
    }

    pub(super) fn map(&self, map: &str) -> PathBuf {
        self.directory.join(format!("{MAP}{map}"))
    }

    /// Takes a program's names away, and with that its link: an unnamed link that nobody holds is detached.
    pub(super) fn forget(&self, program: &str) -> Result<(), PinsError> {
        for path in [self.link(program), self.program(program)] {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(refused("remove", &path)(error)),
            }
        }
        Ok(())
    }

    /// Takes all links away.
    pub(super) fn detach(&self) -> Result<Removed, PinsError> {
        let links = remove_named(&self.directory, LINK)?;
        Ok(Removed { links, ..Removed::default() })
    }

    /// Removes all of it, links first.
    pub(super) fn remove(&self) -> Result<Removed, PinsError> {
        let removed = Removed {
            links: remove_named(&self.directory, LINK)?,
            programs: remove_named(&self.directory, PROGRAM)?,
            maps: remove_named(&self.directory, MAP)?,
        };
        remove_folder(&self.directory)?;
        Ok(removed)
    }
}

impl Removed {
    const fn add(&mut self, other: Self) {
        self.links += other.links;
        self.programs += other.programs;
        self.maps += other.maps;
    }
}

/// Removes what is pinned of every node below `root`, and says of which and how much. What an agent holds stays.
///
/// # Errors
/// An agent runs, or the system refuses.
pub fn remove_all(root: &Path) -> Result<Vec<(PathBuf, Removed)>, PinsError> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    if !is_bpffs(root) {
        return Err(PinsError::NotBpffs { directory: root.to_owned() });
    }
    let mut removed = Vec::new();
    for directory in folders(root)? {
        let Some(lock) = lock(&directory)? else { continue };
        let pins = Pins { directory: directory.clone(), _lock: lock };
        removed.push((directory, pins.remove()?));
    }
    remove_folder(root)?;
    Ok(removed)
}

/// Holds a folder; `None` if it is gone meanwhile.
fn lock(directory: &Path) -> Result<Option<File>, PinsError> {
    let file = match File::open(directory) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused("open the folder", directory)(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(PinsError::Held { directory: directory.to_owned() });
        }
        Err(errno) => return Err(refused("lock the folder", directory)(errno.into())),
    }
    let held = file.metadata().map_err(refused("look at the folder", directory))?;
    let is_there =
        fs::metadata(directory).is_ok_and(|now| now.ino() == held.ino() && now.dev() == held.dev());
    Ok(is_there.then_some(file))
}

fn folders(directory: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(refused("read the folder", directory))? {
        let path = entry.map_err(refused("read the folder", directory))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn remove_named(directory: &Path, prefix: &str) -> Result<u32, PinsError> {
    let mut count = 0;
    for entry in fs::read_dir(directory).map_err(refused("read the folder", directory))? {
        let entry = entry.map_err(refused("read the folder", directory))?;
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            fs::remove_file(entry.path()).map_err(refused("remove", &entry.path()))?;
            count += 1;
        }
    }
    Ok(count)
}

/// Removes a folder unless something that is not ours is in it.
fn remove_folder(directory: &Path) -> Result<(), PinsError> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(error) => Err(refused("remove the folder", directory)(error)),
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.f_type == BPF_FS_MAGIC)
}

fn see_to_bpffs(root: &Path) -> Result<(), PinsError> {
    let is_there = || root.ancestors().find(|part| part.exists()).is_some_and(is_bpffs);
    if is_there() {
        return Ok(());
    }
    let standard = Path::new(STANDARD_MOUNT);
    if !root.starts_with(standard) {
        return Err(PinsError::NotBpffs { directory: root.to_owned() });
    }
    mount_bpffs(standard).map_err(refused("mount a bpffs at", standard))?;
    tracing::info!(directory = STANDARD_MOUNT, "a bpffs was mounted, for the probes to stay in");
    if is_there() { Ok(()) } else { Err(PinsError::NotBpffs { directory: root.to_owned() }) }
}

/// As systemd mounts it.
fn mount_bpffs(directory: &Path) -> io::Result<()> {
    let target = CString::new(directory.as_os_str().as_bytes())?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME;
    // SAFETY: all strings end with a zero byte and live until the call returns.
    let result = unsafe {
        libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), flags, c"mode=700".as_ptr().cast())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
