//! The agent's program as a process, containers' control groups for what it watches, and what it left in its spool.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant, SystemTime},
};

use tapio_identity::{Name, issuer::Authority};
use tapio_schemas::{
    event::UnifiedEvent,
    intent,
    ledger::{Fate, Stage},
};
use tapio_spool::{Item, Spool, SpoolConfig};
use tapio_wire::frame::{FrameDecoder, FrameLimits, MAGIC};

/// The variable that makes this test's own program the workload instead.
pub(crate) const ROLE: &str = "TAPIO_TEST_ROLE";

/// A container's control group; removed with its pod's when dropped.
pub(crate) struct Container {
    path: PathBuf,
    pub(crate) id: String,
}

impl Container {
    pub(crate) fn new(number: u8) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let mount = if v1.join("cgroup.procs").exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let id = format!("{:056x}{:08x}", number, std::process::id());
        let pod = format!("pod0d1f6b0e-8a54-4f6e-9f0b-{:08x}{number:04x}", std::process::id());
        let path = mount.join("kubepods/burstable").join(pod).join(&id);
        // Another test may remove the shared parents in between.
        let made = (0..20).any(|_| fs::create_dir_all(&path).is_ok());
        assert!(made, "cannot create {}: this test needs root and a memory controller", path.display());
        Self { path, id }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && self.path.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        for parent in self.path.ancestors().skip(1).take(3) {
            // Shared with others, who may still need it.
            drop(fs::remove_dir(parent));
        }
    }
}

/// A process of this test; ended when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Process {
    /// Runs this program as `role`, inside `container` from its first instruction.
    pub(crate) fn role(role: &str, argument: &str, container: &Container) -> Self {
        let script = "echo $$ > \"$1/cgroup.procs\" && exec \"$2\" role --exact --nocapture";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&container.path)
            .arg(std::env::current_exe().unwrap())
            .env(ROLE, role)
            .env("TAPIO_TEST_ARGUMENT", argument)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn configure(folder: &Path) -> PathBuf {
    configure_capture(folder, "pins = \"none\"")
}

/// As [`configure`], with these lines about capture.
pub(crate) fn configure_capture(folder: &Path, capture: &str) -> PathBuf {
    let now = SystemTime::now();
    let hour = Duration::from_secs(3_600);
    let name = Name::node("test.example", "default", "test", "node-1").unwrap();
    let files = Authority::new("test", now, hour)
        .unwrap()
        .issue(&name, now, hour)
        .unwrap()
        .write(folder, "node")
        .unwrap();
    let text = format!(
        "[node]\nname = \"node-1\"\ncluster = \"test\"\n[identity]\ncertificate = {:?}\nkey = {:?}\nauthority = {:?}\n\
         [uplink]\naggregators = [\"127.0.0.1:9\"]\n[state]\ndirectory = {:?}\n[capture]\n{capture}\n",
        files.certificate,
        files.key,
        files.authority,
        folder.join("state")
    );
    let path = folder.join("agent.toml");
    fs::write(&path, text).unwrap();
    path
}

/// The ledger's sums by stage, fate, subject and reason.
pub(crate) type Sums = BTreeMap<(Stage, Fate, String, String), u64>;

/// Whether the agent said of a probe that it does not work.
pub(crate) fn any_probe_failed(events: &[UnifiedEvent]) -> bool {
    events.iter().any(|event| {
        let attributes = event.entity.as_ref().map(|entity| entity.attributes.as_str()).unwrap_or_default();
        event.core.intent == intent::PROBE_CAPABILITY && attributes.starts_with("state=failed")
    })
}

/// Everything in the spool: events, and the ledgers of all frames.
pub(crate) fn read_spool(folder: &Path) -> (Vec<UnifiedEvent>, Sums) {
    let (spool, _) = Spool::open(&folder.join("state/spool"), SpoolConfig::default()).unwrap();
    let mut reader = spool.read_from(spool.first());
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    let (mut events, mut sums) = (Vec::new(), BTreeMap::new());
    while let Some(item) = reader.next_item().unwrap() {
        let Item::Record { payload, .. } = item else { panic!("{item:?}") };
        let (header, view) = decoder.decode(payload, None).unwrap();
        for row in 0..view.rows() {
            events.push(view.event(row, header.meta.id));
        }
        for entry in view.ledger().entries {
            *sums.entry((entry.stage, entry.fate, entry.subject, entry.reason)).or_insert(0) += entry.count;
        }
    }
    (events, sums)
}

pub(crate) fn not_proven(capabilities_failed: bool) -> bool {
    let excused = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    let is_excused = excused.split(',').any(|name| name.trim() == "ebpf");
    assert!(
        !capabilities_failed || is_excused,
        "the probes do not load, and TAPIO_NOT_PROVEN does not excuse ebpf"
    );
    if capabilities_failed {
        println!("not proven: ebpf: what the agent captures of real services");
    }
    capabilities_failed
}

/// Whether this machine lets tests hide files from a process; if not, and that is allowed, says what is not proven.
pub(crate) fn may_mount(what: &str) -> bool {
    let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if tried.is_ok_and(|output| output.status.success()) {
        return true;
    }
    let excused = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    assert!(excused.split(',').any(|name| name.trim() == "mount"), "cannot mount in a namespace of its own");
    println!("not proven: mount: {what}");
    false
}

/// The agent as a process, its log beside its configuration; ended when dropped.
pub(crate) struct Agent {
    process: Process,
    folder: PathBuf,
}

impl Agent {
    /// Starts the agent by `wrapper`, a program with arguments that runs what follows it, and waits for its first frame,
    /// which says that what probes there are are attached.
    pub(crate) fn start(folder: &Path, wrapper: &[&str]) -> Self {
        let agent = Self::start_configured(folder, wrapper, &configure(folder));
        wait_for("the agent's first frame", || {
            let mut files = fs::read_dir(agent.root(&folder.join("state/spool"))).ok()?.flatten();
            let has_frame = |bytes: Vec<u8>| bytes.windows(MAGIC.len()).any(|window| window == MAGIC);
            files.any(|file| fs::read(file.path()).is_ok_and(has_frame)).then_some(())
        });
        agent
    }

    /// Starts the agent with a file that [`configure_capture`] wrote, and waits for nothing.
    pub(crate) fn start_configured(folder: &Path, wrapper: &[&str], config: &Path) -> Self {
        let log = fs::File::create(folder.join("agent.log")).unwrap();
        let program = env!("CARGO_BIN_EXE_tapio-edge-agent");
        let arguments = ["--config", config.to_str().unwrap()];
        let mut command = match wrapper {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        let child = command.args(arguments).stderr(log).spawn().unwrap();
        Self { process: Process(child), folder: folder.to_owned() }
    }

    /// Waits until it ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the agent's end", || self.process.0.try_wait().unwrap())
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap()
    }

    /// The processor time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        // Fields 14 and 15 of proc(5), in ticks; the name before them may have anything but a parenthesis behind it.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
    }

    /// A path as the agent sees it, which may have file systems of its own.
    pub(crate) fn root(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.0.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    /// The value of one of its metrics; zero where it has none.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, metrics) = self.get("/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// Status and body of an answer of its telemetry.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let address: SocketAddr = wait_for("the telemetry's address", || {
            self.log().split_once("telemetry_address=")?.1.split_whitespace().next()?.parse().ok()
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.process.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.process.0.wait().unwrap()
    }
}
