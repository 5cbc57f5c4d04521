//! Memory cgroups, laid out as Kubernetes lays them out: `kubepods/burstable/pod<uid>/<container id>`.
//!
//! Owns finding the hierarchy (v1 memory controller or v2), creating a container's cgroup with its limit, reading its
//! usage and kill count, and removing all of it. Never ends a process. Called by [`crate::workload`] for a run and by
//! [`crate::run_record`] for what a killed run left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// How long a removal waits for the kernel to let go of an emptied cgroup.
const REMOVE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Another run may prune the shared parents between two of our steps.
const CREATE_TRIES_MAX: u32 = 20;

/// The two cgroup interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The memory controller has a hierarchy of its own.
    V1,
    /// The unified hierarchy has the memory controller.
    V2,
}

/// Where memory is limited on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    version: Version,
}

impl Hierarchy {
    /// Finds the hierarchy that holds the memory controller.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn find() -> anyhow::Result<Self> {
        let mountinfo =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        Self::from_mountinfo(&mountinfo, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        })
        .context("no memory cgroup controller is mounted: mount cgroup2 at /sys/fs/cgroup, or the v1 memory controller at /sys/fs/cgroup/memory")
    }

    /// A v1 memory controller wins: where it is mounted, the unified hierarchy cannot have it.
    fn from_mountinfo(mountinfo: &str, controllers: impl Fn(&Path) -> String) -> Option<Self> {
        let mounts: Vec<(PathBuf, &str, &str)> = mountinfo.lines().filter_map(parse_mount).collect();
        let v1 = mounts
            .iter()
            .find(|(_, kind, options)| {
                *kind == "cgroup" && options.split(',').any(|option| option == "memory")
            })
            .map(|(mount, ..)| Self { mount: mount.clone(), version: Version::V1 });
        v1.or_else(|| {
            mounts
                .iter()
                .find(|(mount, kind, _)| {
                    *kind == "cgroup2" && controllers(mount).split_whitespace().any(|name| name == "memory")
                })
                .map(|(mount, ..)| Self { mount: mount.clone(), version: Version::V2 })
        })
    }

    /// The interface in use.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }
}

/// Mount point, file system type and super options of one line of mountinfo (proc(5)).
fn parse_mount(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (front, back) = line.split_once(" - ")?;
    let mount = PathBuf::from(front.split(' ').nth(4)?);
    let mut back = back.split(' ');
    let kind = back.next()?;
    Some((mount, kind, back.nth(1)?))
}

/// What the kernel charges to a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charged {
    /// All of it.
    pub charged_bytes: u64,
    /// Pages of files, which the kernel drops where it needs memory.
    pub page_cache_bytes: u64,
    /// The processes' own memory.
    pub anonymous_bytes: u64,
}

impl Charged {
    /// What is left without page cache: processes, and what the kernel keeps for them, BPF maps and rings included.
    #[must_use]
    pub const fn without_page_cache(self) -> u64 {
        self.charged_bytes.saturating_sub(self.page_cache_bytes)
    }
}

/// The cgroup of one container; removed when dropped.
#[derive(Debug)]
pub struct ContainerCgroup {
    path: PathBuf,
    version: Version,
    removed: bool,
}

impl ContainerCgroup {
    /// The path that [`Self::create`] will use, for a record that is written before the first trace is left.
    #[must_use]
    pub fn path_of(hierarchy: &Hierarchy, pod_uid: &str, container_id: &str) -> PathBuf {
        hierarchy.mount.join("kubepods").join("burstable").join(format!("pod{pod_uid}")).join(container_id)
    }

    /// Creates the pod's and the container's cgroup and sets the container's limit. Swap is not given, so that the
    /// limit is met as on a Kubernetes node.
    ///
    /// # Errors
    /// The cgroup exists already, the right is missing, or the kernel refuses a setting.
    pub fn create(
        hierarchy: &Hierarchy,
        pod_uid: &str,
        container_id: &str,
        limit_bytes: u64,
    ) -> anyhow::Result<Self> {
        let path = Self::path_of(hierarchy, pod_uid, container_id);
        create_folders(&path)?;
        let cgroup = Self { path, version: hierarchy.version, removed: false };
        match hierarchy.version {
            Version::V1 => cgroup.limit_v1(limit_bytes)?,
            Version::V2 => {
                enable_memory(&hierarchy.mount, &cgroup.path)?;
                cgroup.limit_v2(limit_bytes)?;
            }
        }
        Ok(cgroup)
    }

    fn limit_v1(&self, limit_bytes: u64) -> anyhow::Result<()> {
        self.write("memory.limit_in_bytes", &limit_bytes.to_string())?;
        // Absent where the kernel does not account swap.
        if self.path.join("memory.memsw.limit_in_bytes").exists() {
            self.write("memory.memsw.limit_in_bytes", &limit_bytes.to_string())?;
        }
        Ok(())
    }

    fn limit_v2(&self, limit_bytes: u64) -> anyhow::Result<()> {
        self.write("memory.max", &limit_bytes.to_string())?;
        if self.path.join("memory.swap.max").exists() {
            self.write("memory.swap.max", "0")?;
        }
        Ok(())
    }

    /// The container's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that a process joins by.
    #[must_use]
    pub fn procs_file(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// What is charged now, page cache included.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn usage_bytes(&self) -> anyhow::Result<u64> {
        let name = match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        let text = self.read(name)?;
        text.trim()
            .parse()
            .with_context(|| format!("{name} of {} is no number: {text:?}", self.path.display()))
    }

    /// What is charged now, and how much of it is page cache. Memory of tmpfs is none: nothing can drop it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn memory(&self) -> anyhow::Result<Charged> {
        let stat = self.read("memory.stat")?;
        let value = |name: &str| -> u64 {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        let (cache, anonymous) = match self.version {
            Version::V1 => (value("total_cache").saturating_sub(value("total_shmem")), value("total_rss")),
            Version::V2 => (value("file").saturating_sub(value("shmem")), value("anon")),
        };
        Ok(Charged {
            charged_bytes: self.usage_bytes()?,
            page_cache_bytes: cache,
            anonymous_bytes: anonymous,
        })
    }

    /// How many processes the kernel killed here for memory.
    ///
    /// # Errors
    /// The file cannot be read, or the kernel does not count.
    pub fn oom_kills(&self) -> anyhow::Result<u64> {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = self.read(name)?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count
            .and_then(|count| count.trim().parse().ok())
            .with_context(|| format!("{name} of {} has no oom_kill", self.path.display()))
    }

    /// Removes the container's and the pod's cgroup, and the shared parents where this was the last.
    ///
    /// # Errors
    /// A process is still inside after a bounded wait.
    pub fn remove(mut self) -> anyhow::Result<()> {
        self.removed = true;
        remove_container(&self.path)
    }

    /// Removes the container's cgroup and leaves the pod's, as a kubelet does between two containers of a pod.
    ///
    /// # Errors
    /// A process is still inside after a bounded wait.
    pub fn remove_from_pod(mut self) -> anyhow::Result<()> {
        self.removed = true;
        remove_when_empty(&self.path)
            .with_context(|| format!("cannot empty the pod's cgroup above {}", self.path.display()))
    }

    fn write(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.path.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

impl Drop for ContainerCgroup {
    fn drop(&mut self) {
        if !self.removed {
            // The run record still names it: the next run's sweep removes what could not be removed here.
            drop(remove_container(&self.path));
        }
    }
}

fn create_folders(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().context("a container's cgroup has a parent")?;
    for _ in 0..CREATE_TRIES_MAX {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create the cgroup {} (are you root?)", parent.display()))?;
        match fs::create_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "the cgroup {} exists already: a run with the same seed is active, or was killed and not swept",
                path.display()
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot create the cgroup {}", path.display()));
            }
        }
    }
    bail!("the parents of {} vanish again and again: is another program pruning kubepods?", path.display())
}

/// On v2 a controller reaches a cgroup only where every ancestor hands it down.
fn enable_memory(mount: &Path, path: &Path) -> anyhow::Result<()> {
    let mut ancestors: Vec<&Path> =
        path.ancestors().skip(1).take_while(|ancestor| ancestor.starts_with(mount)).collect();
    ancestors.reverse();
    for ancestor in ancestors {
        let file = ancestor.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&file).unwrap_or_default();
        if !enabled.split_whitespace().any(|name| name == "memory") {
            fs::write(&file, "+memory")
                .with_context(|| format!("cannot hand the memory controller down at {}", file.display()))?;
        }
    }
    Ok(())
}

/// Removes one container's cgroup, its pod's where that is then empty, and prunes the shared parents.
///
/// # Errors
/// The path has not the shape of a container's cgroup, or a process is still inside after a bounded wait.
pub fn remove_container(path: &Path) -> anyhow::Result<()> {
    ensure!(is_container_path(path), "{} is no container's cgroup", path.display());
    let pod = path.parent().context("a container's cgroup has a parent")?;
    remove_when_empty(path)?;
    if remove_if_empty(pod)? {
        prune_parents(pod);
    }
    Ok(())
}

fn is_container_path(path: &Path) -> bool {
    let names: Vec<String> =
        path.iter().rev().take(4).map(|name| name.to_string_lossy().into_owned()).collect();
    let [container, pod, qos, top] = names.as_slice() else { return false };
    container.len() == 64
        && container.bytes().all(|byte| byte.is_ascii_hexdigit())
        && pod.starts_with("pod")
        && qos == "burstable"
        && top == "kubepods"
}

/// A kubelet keeps `kubepods/besteffort` as well: without it nobody but a run of ours made these folders.
fn prune_parents(pod: &Path) {
    let Some(burstable) = pod.parent() else { return };
    let Some(kubepods) = burstable.parent() else { return };
    if kubepods.join("besteffort").exists() {
        return;
    }
    // A pod of another run keeps the folder: it is not empty, and that run prunes it.
    if fs::remove_dir(burstable).is_ok() {
        drop(fs::remove_dir(kubepods));
    }
}

fn remove_when_empty(path: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + REMOVE_WAIT_MAX;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= end => {
                let inside = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
                let inside = inside.split_whitespace().collect::<Vec<_>>().join(" ");
                return Err(error).with_context(|| {
                    format!("cannot remove the cgroup {} (processes: {inside})", path.display())
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// False where something is still in it.
fn remove_if_empty(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty) =>
        {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("cannot remove the cgroup {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Hierarchy, Version, is_container_path};

    const V1: &str = "40 30 0:36 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        41 30 0:37 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        42 30 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    /// Scenario: mount tables of a v1 host with a hybrid v2 mount, of a v2 host, and of one without the controller.
    /// Guarantees: the hierarchy that limits memory is found in each, and none is invented.
    #[test]
    fn finds_the_hierarchy_with_the_memory_controller() {
        let none = |_: &Path| "hugetlb\n".to_owned();
        let all = |_: &Path| "cpu memory pids\n".to_owned();
        let v1 = Hierarchy::from_mountinfo(V1, none).unwrap();
        assert_eq!((v1.mount.as_path(), v1.version), (Path::new("/sys/fs/cgroup/memory"), Version::V1));
        let v2 = Hierarchy::from_mountinfo(V2, all).unwrap();
        assert_eq!((v2.mount.as_path(), v2.version), (Path::new("/sys/fs/cgroup"), Version::V2));
        assert_eq!(Hierarchy::from_mountinfo(V2, none), None);
    }

    /// Scenario: paths of a container, of its pod, and of something else of the same depth.
    /// Guarantees: a removal touches only folders of the shape that a run creates.
    #[test]
    fn only_containers_are_removed() {
        let container = PathBuf::from("/sys/fs/cgroup/kubepods/burstable/podx").join("a".repeat(64));
        assert!(is_container_path(&container));
        assert!(!is_container_path(container.parent().unwrap()));
        assert!(!is_container_path(Path::new("/sys/fs/cgroup/system.slice/a/b/c")));
    }
}
