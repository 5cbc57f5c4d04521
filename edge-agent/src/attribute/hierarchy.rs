//! The host's control groups and processes, as the file system shows them: the I/O of attribution and sampling.
//!
//! A group's id is the inode number of its directory. Called by [`super::Attribution`] and [`crate::sampler`].

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Groups below this depth are not walked: kubelet nests four, runtimes add a few.
const DEPTH_MAX: usize = 12;
/// A walk ends here, whatever the host has.
const GROUPS_MAX: usize = 16_384;
/// Files of procfs that are read here are shorter.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// Why no hierarchy can be used.
#[derive(Debug, Error)]
pub enum HierarchyError {
    /// The mount table cannot be read.
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// There is none.
    #[error(
        "no hierarchy has the memory controller: mount cgroup2 at /sys/fs/cgroup, or the v1 memory controller at /sys/fs/cgroup/memory"
    )]
    None,
}

/// The interface of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// The memory controller has a hierarchy of its own.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One group: its id, and its path from the hierarchy's root, beginning with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) id: u64,
    pub(crate) path: String,
}

/// One process that runs already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) parent_pid: u32,
    pub(crate) cgroup_id: u64,
}

/// Where attribution looks things up; a test gives its own.
pub(crate) trait Host {
    /// The group that a process is in now.
    fn group_of(&self, pid: u32) -> Option<Group>;
    /// All groups.
    fn groups(&self) -> Vec<Group>;
    /// Whether no process is left in the group at this path, nor below it.
    fn is_over(&self, path: &str) -> bool;
}

/// The mounted hierarchy that limits memory.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchy {
    mount: PathBuf,
    version: Version,
}

impl Hierarchy {
    /// Finds it.
    pub(crate) fn find() -> Result<Self, HierarchyError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(HierarchyError::Mounts)?;
        Self::of_mounts(&mounts).ok_or(HierarchyError::None)
    }

    /// A v1 memory controller wins: where it is mounted, the unified hierarchy cannot have it. The kernel's records
    /// name groups by the same rule.
    fn of_mounts(mounts: &str) -> Option<Self> {
        let parsed = mounts.lines().filter_map(parse_mount);
        let mut unified = None;
        for (mount, kind, options) in parsed {
            if kind == "cgroup" && options.split(',').any(|option| option == "memory") {
                return Some(Self { mount, version: Version::V1 });
            }
            if kind == "cgroup2" && unified.is_none() {
                unified = Some(Self { mount, version: Version::V2 });
            }
        }
        unified
    }

    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    /// The directory of a group.
    pub(crate) fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// Every process of the host.
    pub(crate) fn processes(&self) -> Vec<Running> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|pid| {
                let group = self.group_of(pid)?;
                let status = read_small(Path::new(&format!("/proc/{pid}/status"))).ok()?;
                let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
                Some(Running { pid, parent_pid: parent.trim().parse().ok()?, cgroup_id: group.id })
            })
            .collect()
    }

    fn walk(&self, directory: &Path, path: &str, depth: usize, groups: &mut Vec<Group>) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if groups.len() >= GROUPS_MAX {
                return;
            }
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let path = format!("{path}/{name}");
            if depth < DEPTH_MAX {
                self.walk(&entry.path(), &path, depth + 1, groups);
            }
            groups.push(Group { id: entry.ino(), path });
        }
    }
}

impl Host for Hierarchy {
    fn group_of(&self, pid: u32) -> Option<Group> {
        let text = read_small(Path::new(&format!("/proc/{pid}/cgroup"))).ok()?;
        // `<id>:<controllers>:<path>`; of the unified hierarchy `0::<path>` (cgroups(7)).
        let path = text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let wanted = match self.version {
                Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
                Version::V2 => controllers.is_empty(),
            };
            wanted.then_some(path)
        })?;
        let id = fs::metadata(self.directory(path)).ok()?.ino();
        Some(Group { id, path: path.to_owned() })
    }

    fn groups(&self) -> Vec<Group> {
        let mut groups = Vec::new();
        if let Ok(root) = fs::metadata(&self.mount) {
            groups.push(Group { id: root.ino(), path: "/".to_owned() });
        }
        self.walk(&self.mount, "", 0, &mut groups);
        groups
    }

    fn is_over(&self, path: &str) -> bool {
        let is_empty = |directory: &Path| match read_small(&directory.join("cgroup.procs")) {
            Ok(processes) => processes.is_empty(),
            // Whoever removed it saw to that.
            Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)),
        };
        let mut below = Vec::new();
        self.walk(&self.directory(path), path, 0, &mut below);
        let mut directories = below.iter().map(|group| self.directory(&group.path));
        is_empty(&self.directory(path)) && directories.all(|directory| is_empty(&directory))
    }
}

fn parse_mount(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (front, back) = line.split_once(" - ")?;
    let mount = PathBuf::from(front.split(' ').nth(4)?);
    let mut back = back.split(' ');
    let kind = back.next()?;
    Some((mount, kind, back.nth(1)?))
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "41 30 0:37 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        42 30 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    /// Scenario: mount tables of a v1 host with a hybrid mount, of a v2 host and of one without control groups.
    /// Guarantees: the hierarchy that limits memory is chosen.
    #[test]
    fn the_hierarchy_that_limits_memory_is_found() {
        assert_eq!(Hierarchy::of_mounts(V1).unwrap().version(), Version::V1);
        assert_eq!(Hierarchy::of_mounts(V2).unwrap().version(), Version::V2);
        assert!(Hierarchy::of_mounts("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n").is_none());
    }

    /// Scenario: this very process, and all groups of this host.
    /// Guarantees: the group that procfs names for a process is one of those that the walk finds, by its id.
    #[test]
    fn a_process_is_found_in_the_walk() {
        let hierarchy = Hierarchy::find().unwrap();
        let own = hierarchy.group_of(std::process::id()).unwrap();
        let groups = hierarchy.groups();
        assert!(groups.iter().any(|group| group.id == own.id), "{own:?}");
        assert!(hierarchy.processes().iter().any(|running| running.pid == std::process::id()));
    }
}
