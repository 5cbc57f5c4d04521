//! A disk in memory that behaves as badly as disks may: it forgets what was not synced, tears what was being written,
//! fills up, and fails to sync.
//!
//! What is written is seen at once, as through a page cache. A killed process loses nothing. A power cut keeps, of each
//! file, what was synced last, and of what was written since an arbitrary part, sector by sector; of names made,
//! renamed and removed since their directory was synced, an arbitrary part too. After a failed sync the written pages
//! count as clean, as on Linux: later syncs do not write them again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tapio_spool::disk::{Disk, DiskFile, Lock, Open};

use crate::random::Draw;

/// The unit that is written whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A disk; clones are the same one.
#[derive(Clone, Debug)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    draw: Draw,
    boot: u64,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    /// Names as they are after a power cut.
    durable_names: BTreeMap<PathBuf, u64>,
    /// What was done with names since, in order.
    unsynced_names: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    capacity_bytes: u64,
    /// Of a thousand syncs so many fail.
    sync_failures: u64,
    /// Whether syncs are believed that never happened: for tests of the simulation itself.
    lies: bool,
}

#[derive(Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Make(PathBuf, u64),
    Rename { from: PathBuf, to: PathBuf, inode: u64 },
    Remove(PathBuf),
}

impl NameChange {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Make(path, _) | Self::Remove(path) | Self::Rename { to: path, .. } => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Make(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

fn gone() -> io::Error {
    ErrorKind::NotFound.into()
}

impl SimulatedDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(draw: Draw, capacity_bytes: u64) -> Self {
        let state = State {
            draw,
            boot: 1,
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            locks: BTreeSet::new(),
            capacity_bytes,
            sync_failures: 0,
            lies: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Has so many of a thousand syncs fail.
    pub fn set_sync_failures(&self, of_thousand: u64) {
        self.state().sync_failures = of_thousand;
    }

    /// Has the disk answer syncs that it does not do.
    pub fn set_lies(&self, lies: bool) {
        self.state().lies = lies;
    }

    /// Sets how much fits.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity_bytes = bytes;
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// The machine loses its power and is started again. Whoever has a file open must be gone.
    pub fn cut_power(&self) {
        let mut state = self.state();
        let State { draw, inodes, durable_names, unsynced_names, .. } = &mut *state;
        let mut names = durable_names.clone();
        for change in unsynced_names.drain(..) {
            if draw.percent(50) {
                change.apply(&mut names);
            }
        }
        for inode in inodes.values_mut() {
            inode.cut_power(draw);
        }
        let alive: BTreeSet<u64> = names.values().copied().collect();
        inodes.retain(|inode, _| alive.contains(inode));
        state.durable_names.clone_from(&names);
        state.names = names;
        state.locks.clear();
        state.boot += 1;
    }

    /// Everything on the disk is gone.
    pub fn lose(&self) {
        let mut state = self.state();
        state.inodes.clear();
        state.names.clear();
        state.durable_names.clear();
        state.unsynced_names.clear();
        state.locks.clear();
        state.boot += 1;
    }

    /// Flips a bit of a file whose name ends with `suffix`, behind its first `from` bytes; false when there is none.
    pub fn rot(&self, suffix: &str, from: usize) -> bool {
        let mut state = self.state();
        let State { draw, inodes, names, .. } = &mut *state;
        let files: Vec<u64> = names
            .iter()
            .filter(|(path, _)| path.to_string_lossy().ends_with(suffix))
            .map(|(_, inode)| *inode)
            .filter(|inode| inodes.get(inode).is_some_and(|inode| inode.content.len() > from))
            .collect();
        let Some(inode) = draw.pick(&files).and_then(|inode| inodes.get_mut(inode)) else { return false };
        let at = draw.between(from as u64, inode.content.len() as u64 - 1);
        let at = usize::try_from(at).unwrap_or(0);
        for content in [&mut inode.content, &mut inode.durable] {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= 0x20;
            }
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        write(&mut self.content, offset, bytes);
        self.unsynced.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    fn cut_power(&mut self, draw: &mut Draw) {
        let mut kept = self.durable.clone();
        for change in self.unsynced.drain(..) {
            match change {
                Change::SetLen(length) => {
                    if draw.percent(50) {
                        kept.resize(length, 0);
                    }
                }
                Change::Write { offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let sector = SECTOR_BYTES - (offset + at) % SECTOR_BYTES;
                        let end = (at + sector).min(bytes.len());
                        if draw.percent(60) {
                            write(&mut kept, offset + at, bytes.get(at..end).unwrap_or_default());
                        }
                        at = end;
                    }
                }
            }
        }
        self.durable.clone_from(&kept);
        self.content = kept;
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    if let Some(place) = content.get_mut(offset..end) {
        place.copy_from_slice(bytes);
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.inodes.values().map(|inode| inode.content.len() as u64).sum()
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn fails(&mut self) -> bool {
        let failures = self.sync_failures;
        failures > 0 && self.draw.between(1, 1_000) <= failures
    }
}

impl Disk for SimulatedDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        // Directories are not worth a model: ours are made once, by whoever installs.
        Ok(())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let inode = match (state.names.get(path).copied(), how) {
            (Some(inode), Open::Replace) => {
                if let Some(replaced) = state.inodes.get_mut(&inode) {
                    replaced.content.clear();
                    replaced.unsynced.push(Change::SetLen(0));
                }
                inode
            }
            (Some(inode), _) => inode,
            (None, Open::Read | Open::Write) => return Err(gone()),
            (None, Open::Create | Open::Replace) => {
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.change_name(NameChange::Make(path.to_owned(), inode));
                inode
            }
        };
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.state();
        let here = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| path.file_name().map(OsString::from)).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.names.get(from).copied().ok_or_else(gone)?;
        state.change_name(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(path) {
            return Err(gone());
        }
        state.change_name(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.fails() {
            return Err(io::Error::other("the simulated disk does not sync a directory"));
        }
        if state.lies {
            return Ok(());
        }
        let changes = std::mem::take(&mut state.unsynced_names);
        let (here, elsewhere) = changes.into_iter().partition(|change| change.directory() == Some(dir));
        state.unsynced_names = elsewhere;
        let here: Vec<NameChange> = here;
        here.iter().for_each(|change| change.apply(&mut state.durable_names));
        Ok(())
    }

    fn lock(&self, path: &Path, _wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        let mut state = self.state();
        let boot = state.boot;
        if !state.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimulatedLock { disk: self.clone(), path: path.to_owned(), boot })))
    }

    fn free_bytes(&self, _dir: &Path) -> Option<u64> {
        let state = self.state();
        Some(state.capacity_bytes.saturating_sub(state.used_bytes()))
    }

    fn boot_id(&self) -> Option<[u8; 16]> {
        Some(u128::from(self.state().boot).to_le_bytes())
    }
}

#[derive(Debug)]
struct SimulatedLock {
    disk: SimulatedDisk,
    path: PathBuf,
    boot: u64,
}

impl Lock for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        // A lock of before a power cut is another's by now.
        if state.boot == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    inode: u64,
}

impl SimulatedFile {
    fn with<T>(&self, work: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        work(state.inodes.get_mut(&self.inode).ok_or_else(gone)?)
    }
}

impl DiskFile for SimulatedFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(|inode| match inode.content.get(offset..offset.saturating_add(bytes.len())) {
            Some(content) => {
                bytes.copy_from_slice(content);
                Ok(())
            }
            None => Err(ErrorKind::UnexpectedEof.into()),
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut state = self.disk.state();
        let free = state.capacity_bytes.saturating_sub(state.used_bytes());
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        let inode = state.inodes.get_mut(&self.inode).ok_or_else(gone)?;
        let growth = (offset + bytes.len()).saturating_sub(inode.content.len());
        if growth > free {
            // A part of it fits, and is there.
            let fits = bytes.len() - (growth - free).min(bytes.len());
            inode.write(offset, bytes.get(..fits).unwrap_or_default());
            // As the system says it: the number is what callers look at.
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        inode.write(offset, bytes);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        self.with(|inode| {
            inode.content.resize(length, 0);
            inode.unsynced.push(Change::SetLen(length));
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|inode| Ok(inode.content.len() as u64))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let (fails, lies) = (state.fails(), state.lies);
        let mut draw = state.draw.clone();
        let inode = state.inodes.get_mut(&self.inode).ok_or_else(gone)?;
        if fails {
            // Some of it reached the disk; the rest is in the cache, and will not be written again.
            let content = std::mem::take(&mut inode.content);
            inode.cut_power(&mut draw);
            inode.content = content;
            state.draw = draw;
            return Err(io::Error::other("the simulated disk does not sync"));
        }
        if !lies {
            // What a failed sync left out stays out: only what was written since is added.
            let mut durable = std::mem::take(&mut inode.durable);
            for change in inode.unsynced.drain(..) {
                match change {
                    Change::Write { offset, bytes } => write(&mut durable, offset, &bytes),
                    Change::SetLen(length) => durable.resize(length, 0),
                }
            }
            inode.durable = durable;
        }
        Ok(())
    }
}
