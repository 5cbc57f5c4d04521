//! The load of the measured node: hundreds of pods, each a process in a memory cgroup of its own, at a pace that is
//! steered by what the agent says it takes.
//!
//! Owns the pods from start to end and the thread that paces them. What a pod does is [`super::pod`]'s. Called by
//! [`super::run`].

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::cgroup::{ContainerCgroup, Hierarchy};
use crate::run_record::RunRecord;
use crate::scenario::IdentityPod;

/// More than any pod of this load uses.
const LIMIT_BYTES: u64 = 64 << 20;
/// How often the pacer looks at the clock.
const STEP: Duration = Duration::from_millis(4);
/// How long the pods may take to end.
const STOP_WAIT_MAX: Duration = Duration::from_secs(20);
/// A stall is not caught up with a burst: it would be another load.
const CATCH_UP_SECONDS_MAX: f64 = 0.1;

/// One process in its own pod. The input is closed before the process is waited for, and that before the cgroup goes.
struct Pod {
    input: Option<ChildStdin>,
    child: Child,
    cgroup: Option<ContainerCgroup>,
}

impl Pod {
    fn start(
        hierarchy: &Hierarchy,
        number: usize,
        workload: &Path,
        record: &RunRecord,
    ) -> anyhow::Result<Self> {
        let (pod_uid, container_id) = (pod_uid(number), container_id(number));
        record.note_cgroup(&ContainerCgroup::path_of(hierarchy, &pod_uid, &container_id))?;
        let cgroup = ContainerCgroup::create(hierarchy, &pod_uid, &container_id, LIMIT_BYTES)?;
        let mut child = Command::new(workload)
            .arg("enter")
            .arg("--procs")
            .arg(cgroup.procs_file())
            .arg("--")
            .arg(workload)
            .arg("beat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", workload.display()))?;
        let input = child.stdin.take();
        let pod = Self { input, child, cgroup: Some(cgroup) };
        record.note_process(pod.child.id())?;
        Ok(pod)
    }

    fn port(&mut self) -> anyhow::Result<u16> {
        let output = self.child.stdout.take().context("a pod has an output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("a pod did not say its port")?;
        line.trim().parse().context("a pod did not start: are process or memory limits too low?")
    }

    fn tell(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("a pod has an input")?;
        input.write_all(bytes).context("a pod has ended by itself")
    }

    fn end(&mut self, until: Instant) -> anyhow::Result<()> {
        drop(self.input.take());
        while self.child.try_wait().context("cannot wait for a pod")?.is_none() {
            if Instant::now() >= until {
                self.child.kill().context("cannot end a pod")?;
                self.child.wait().context("cannot wait for a pod")?;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.cgroup.take().map_or(Ok(()), ContainerCgroup::remove)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self.cgroup.is_some() {
            // The run record still names what is left, for the next run's sweep.
            drop(self.end(Instant::now()));
        }
    }
}

/// As random as real ids are: what they weigh on the wire is part of what is measured.
fn digest(what: &str, number: usize) -> String {
    let digest = Sha256::digest(format!("{what} {number} of {}", std::process::id()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pod_uid(number: usize) -> String {
    let hex = digest("pod", number);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

fn container_id(number: usize) -> String {
    digest("container", number)
}

/// What the identity file says of `count` pods.
pub(super) fn identities(count: usize, node: &str) -> Vec<IdentityPod> {
    let pod = |number| IdentityPod {
        pod_uid: pod_uid(number),
        namespace: format!("space-{}", number % 20),
        pod: format!("service-{}-{number}", number / 5),
        workload: format!("service-{}", number / 5),
        workload_kind: "Deployment".to_owned(),
        service: format!("service-{}", number / 5),
        node: node.to_owned(),
    };
    (0..count).map(pod).collect()
}

/// The running pods and their pacer.
pub(super) struct Load {
    rounds_per_second: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    pacer: Option<JoinHandle<anyhow::Result<Vec<Pod>>>>,
}

impl Load {
    /// Starts `count` pods, in a ring in which each calls the next, and paces them at no rounds at all.
    ///
    /// # Errors
    /// A cgroup or a process cannot be made.
    pub(super) fn start(count: usize, workload: &Path, record: &RunRecord) -> anyhow::Result<Self> {
        let hierarchy = Hierarchy::find()?;
        let mut pods = Vec::with_capacity(count);
        for number in 0..count {
            pods.push(Pod::start(&hierarchy, number, workload, record)?);
        }
        let ports = pods.iter_mut().map(Pod::port).collect::<anyhow::Result<Vec<u16>>>()?;
        for (pod, peer) in pods.iter_mut().zip(ports.iter().cycle().skip(1)) {
            pod.tell(&peer.to_le_bytes())?;
        }
        let rounds_per_second = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (pace, end) = (Arc::clone(&rounds_per_second), Arc::clone(&stop));
        let pacer = std::thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || pace_pods(&pace, &end, pods))
            .context("cannot start the pacer")?;
        Ok(Self { rounds_per_second, stop, pacer: Some(pacer) })
    }

    /// Does so many rounds per second from now on, over all pods.
    pub(super) fn pace(&self, rounds_per_second: u64) {
        self.rounds_per_second.store(rounds_per_second, Ordering::Relaxed);
    }

    /// Fails where the pacer has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.pacer.as_ref().is_none_or(JoinHandle::is_finished);
        if ended { self.stop() } else { Ok(()) }
    }

    /// Ends all pods and removes their cgroups.
    ///
    /// # Errors
    /// A pod ended by itself meanwhile, or cannot be removed.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(pacer) = self.pacer.take() else { return Ok(()) };
        let joined = pacer.join();
        ensure!(joined.is_ok(), "the pacer panicked");
        let mut pods = joined.unwrap_or_else(|_panic| Ok(Vec::new()))?;
        // All at once: each ends when its input is closed.
        for pod in &mut pods {
            drop(pod.input.take());
        }
        let until = Instant::now() + STOP_WAIT_MAX;
        pods.iter_mut().try_for_each(|pod| pod.end(until))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // The run record names what is left.
        drop(self.stop());
    }
}

/// Tells one pod after the other to do a round, evenly in time, until `stop`.
fn pace_pods(pace: &AtomicU64, stop: &AtomicBool, mut pods: Vec<Pod>) -> anyhow::Result<Vec<Pod>> {
    let (mut due, mut looked, mut next) = (0.0_f64, Instant::now(), 0);
    let count = pods.len().max(1);
    while !stop.load(Ordering::Relaxed) {
        #[expect(clippy::cast_precision_loss, reason = "a rate of rounds is small")]
        let rate = pace.load(Ordering::Relaxed) as f64;
        let now = Instant::now();
        due = (due + rate * (now - looked).as_secs_f64()).min(rate * CATCH_UP_SECONDS_MAX);
        looked = now;
        while due >= 1.0 {
            due -= 1.0;
            if let Some(pod) = pods.get_mut(next) {
                pod.tell(&[1])?;
            }
            next = (next + 1) % count;
        }
        std::thread::sleep(STEP);
    }
    Ok(pods)
}
