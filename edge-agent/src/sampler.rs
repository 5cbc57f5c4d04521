//! Reads what records do not carry: the memory of every container, the probes' counters, and counts that still are
//! in the kernel.
//!
//! A thread of its own, because it waits for files and for the kernel. Hands everything to the capture thread, which
//! owns the state; a full channel drops readings, counted, never blocks capture.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use tapio_daemon::Progress;
use tapio_kernel_abi::FailedSyscall;
use tokio_util::sync::CancellationToken;

use crate::{
    attribute::{Container, Hierarchy, Version},
    clock,
    memory::Sample,
    probes::{ProbeCounters, Probes},
};

/// Inactive file pages are read again when usage has moved by so much.
const REREAD_BYTES: u64 = 1 << 20;
/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// What v1 writes for "no limit": the largest multiple of a page.
const NO_LIMIT_MIN: u64 = 1 << 62;
/// How often the probes' counters are read.
const COUNTERS_INTERVAL: Duration = Duration::from_millis(500);
/// How often folded failures are drained.
const DRAIN_INTERVAL: Duration = Duration::from_secs(1);

/// What the sampler tells the capture thread.
pub(crate) enum Reading {
    /// A container's memory.
    Memory(Arc<Container>, Sample),
    /// A container's group is gone.
    Gone(Arc<Container>),
    /// Failed calls that no record carries.
    Folded(Box<FailedSyscall>),
    /// Every failed call of before this moment that no record carries was handed over.
    Drained {
        /// Boot clock.
        began_nanos: u64,
        /// The drain's number.
        number: u64,
    },
    /// The probes' counters since their load.
    Counters(Vec<ProbeCounters>),
}

/// What both threads share.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    containers: Mutex<Vec<Arc<Container>>>,
    dropped: AtomicU64,
    /// Failures of the readings among them, since they were last taken.
    dropped_failures: AtomicU64,
}

impl Watched {
    /// The containers that are to be read from now on.
    pub(crate) fn set(&self, containers: Vec<Arc<Container>>) {
        *self.containers.lock().unwrap_or_else(PoisonError::into_inner) = containers;
    }

    fn get(&self) -> Vec<Arc<Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readings that were dropped because the capture thread was behind.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Failed calls that were dropped so since the last call.
    pub(crate) fn take_dropped_failures(&self) -> u64 {
        self.dropped_failures.swap(0, Ordering::Relaxed)
    }

    fn drop_reading(&self, reading: &Reading) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if let Reading::Folded(record) = reading {
            self.dropped_failures.fetch_add(record.count, Ordering::Relaxed);
        }
    }
}

/// The sampler's thread.
pub(crate) struct Sampler {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) interval: Duration,
    pub(crate) probes: Probes,
    pub(crate) watched: Arc<Watched>,
    pub(crate) readings: SyncSender<Reading>,
    pub(crate) progress: Progress,
    pub(crate) shutdown: CancellationToken,
    /// The last drain whose failures are in the spool.
    pub(crate) told_drain: Arc<AtomicU64>,
    /// Whether the probes go on when this thread ends, for the next agent.
    pub(crate) keeps: bool,
}

struct Known {
    used_bytes: u64,
    inactive_bytes: u64,
}

impl Sampler {
    /// Works until shutdown; then detaches the probes, unless they are to go on, and hands over what they counted last.
    pub(crate) fn run(mut self) {
        let mut known: HashMap<String, Known> = HashMap::new();
        let (mut counted, mut drained) = (Instant::now(), Instant::now());
        loop {
            let began = Instant::now();
            let containers = self.watched.get();
            known.retain(|group, _| containers.iter().any(|container| container.group == *group));
            for container in containers {
                self.read(&container, &mut known);
            }
            if counted.elapsed() >= COUNTERS_INTERVAL {
                counted = Instant::now();
                self.count();
            }
            if drained.elapsed() >= DRAIN_INTERVAL && self.drain() {
                drained = Instant::now();
            }
            self.progress.tick();
            if self.wait(began + self.interval) {
                break;
            }
        }
        if self.keeps || self.probes.detach(&tapio_kernel_abi::ProbeId::ALL).is_ok() {
            self.drain();
            self.count();
        }
        self.progress.finish();
    }

    /// Waits for the next round; `true` at shutdown.
    fn wait(&self, until: Instant) -> bool {
        const STEP: Duration = Duration::from_millis(20);
        loop {
            if self.shutdown.is_cancelled() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    fn tell(&self, reading: Reading) {
        hand_over(&self.readings, &self.watched, reading);
    }

    fn read(&self, container: &Arc<Container>, known: &mut HashMap<String, Known>) {
        let directory = self.hierarchy.directory(&container.group);
        let used = match usage(&directory, self.hierarchy.version()) {
            Ok(used) => used,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound)
                    || error.raw_os_error() == Some(libc::ENODEV) =>
            {
                self.tell(Reading::Gone(Arc::clone(container)));
                return;
            }
            Err(_) => return,
        };
        let time_nanos = clock::boot_nanos();
        let entry =
            known.entry(container.group.clone()).or_insert(Known { used_bytes: 0, inactive_bytes: 0 });
        if entry.used_bytes.abs_diff(used) >= REREAD_BYTES {
            entry.inactive_bytes = inactive(&directory, self.hierarchy.version());
            entry.used_bytes = used;
        }
        let limit_bytes = limit(&directory, self.hierarchy.version());
        let used_bytes = used.saturating_sub(entry.inactive_bytes);
        self.tell(Reading::Memory(Arc::clone(container), Sample { time_nanos, used_bytes, limit_bytes }));
    }

    fn count(&self) {
        if let Ok(counters) = self.probes.stats() {
            self.tell(Reading::Counters(counters));
        }
    }

    /// Whether it could be: not while what was drained before waits to be told.
    fn drain(&mut self) -> bool {
        let mut folded = Vec::new();
        let began_nanos = clock::boot_nanos();
        let told = self.told_drain.load(Ordering::Acquire);
        let drained = self.probes.drain_folded(told, |record| folded.push(Box::new(*record)));
        for record in folded {
            self.tell(Reading::Folded(record));
        }
        match drained {
            Ok(None) => return false,
            Ok(Some(drained)) => self.tell(Reading::Drained { began_nanos, number: drained.number }),
            Err(error) => tracing::debug!(%error, "folded failures could not be read"),
        }
        true
    }
}

fn hand_over(readings: &SyncSender<Reading>, watched: &Watched, reading: Reading) {
    if let Err(TrySendError::Full(reading)) = readings.try_send(reading) {
        watched.drop_reading(&reading);
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn number(path: PathBuf) -> io::Result<u64> {
    let text = read(&path)?;
    text.trim().parse().map_err(|_other| io::Error::from(io::ErrorKind::InvalidData))
}

fn usage(directory: &Path, version: Version) -> io::Result<u64> {
    number(directory.join(match version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    }))
}

fn inactive(directory: &Path, version: Version) -> u64 {
    let name = match version {
        Version::V1 => "total_inactive_file ",
        Version::V2 => "inactive_file ",
    };
    let text = read(&directory.join("memory.stat")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// The lowest limit of the container and of its pod; zero = none.
fn limit(directory: &Path, version: Version) -> u64 {
    let name = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    // v2 writes `max` for none, which is no number.
    let own = number(directory.join(name)).ok();
    let pod = directory.parent().and_then(|pod| number(pod.join(name)).ok());
    let limits = [own, pod].into_iter().flatten().filter(|limit| *limit < NO_LIMIT_MIN);
    limits.min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use tapio_kernel_abi::{COMM_BYTES, Header, PATH_BYTES};

    use super::*;

    /// Scenario: the capture thread is behind, and readings are dropped: of a container, and of failures that the kernel
    /// has counted.
    /// Guarantees: each reading is counted, and so is every failure that it stood for, once.
    #[test]
    fn dropped_failures_are_counted() {
        let (sender, _receiver) = std::sync::mpsc::sync_channel(0);
        let watched = Watched::default();
        let header = Header {
            kind: 0,
            record_bytes: 0,
            cpu: 0,
            time_nanos: 0,
            tgid: 1,
            tid: 1,
            cgroup_id: 1,
            start_nanos: 1,
            comm: [0; COMM_BYTES],
        };
        let failed = FailedSyscall {
            header,
            count: 7,
            number: 0,
            errno: 2,
            fd: -1,
            flags: 0,
            path_bytes: 0,
            family: 0,
            port: 0,
            address: [0; 16],
            network: 0,
            reserved: 0,
            path: [0; PATH_BYTES],
        };
        hand_over(&sender, &watched, Reading::Counters(Vec::new()));
        hand_over(&sender, &watched, Reading::Folded(Box::new(failed)));
        assert_eq!((watched.dropped(), watched.take_dropped_failures()), (2, 7));
        assert_eq!(watched.take_dropped_failures(), 0);
    }
}
