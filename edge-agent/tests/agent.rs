//! The agent as a process, on this kernel: real services in containers' control groups, and what is in the spool
//! afterwards, compared with what was really done. There is no aggregator: the frames stay on the disk.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "what fails here fails the test, and says where"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use tapio_identity::{Name, issuer::Authority};
use tapio_schemas::{
    event::UnifiedEvent,
    intent,
    intent::LinkKind,
    ledger::{Fate, Stage},
};
use tapio_spool::{Item, Spool, SpoolConfig};
use tapio_wire::frame::{FrameDecoder, FrameLimits, MAGIC};

const SERVED: usize = 200;
const FAILED: usize = 20;
const REFUSED: usize = 15;
/// The variable that makes this test's own program the workload instead.
const ROLE: &str = "TAPIO_TEST_ROLE";

/// A container's control group; removed with its pod's when dropped.
struct Container {
    path: PathBuf,
    id: String,
}

impl Container {
    fn new(number: u8) -> Self {
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
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Process {
    /// Runs this program as `role`, inside `container` from its first instruction.
    fn role(role: &str, argument: &str, container: &Container) -> Self {
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

fn request(path: &str, trace: usize) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\ntraceparent: 00-{trace:032x}-{:016x}-01\r\n\r\n", trace + 1)
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut chunk = [0; 1_024];
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        head.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8(head).ok()
}

fn serve(port_file: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Bound and closed again: nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!("{} {}", listener.local_addr().unwrap().port(), nobody.port());
    fs::write(format!("{port_file}.new"), text).unwrap();
    fs::rename(format!("{port_file}.new"), port_file).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            while let Some(head) = read_head(&mut stream) {
                let status = if head.contains(" /call/") {
                    TcpStream::connect(nobody).unwrap_err();
                    "502 Bad Gateway"
                } else if head.contains(" /fail/") {
                    "500 Oops"
                } else {
                    "200 OK"
                };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

fn call(port: &str) {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let paths = [("/ok", SERVED), ("/fail", FAILED), ("/call", REFUSED)];
    let mut trace = 1;
    for (path, count) in paths {
        for number in 0..count {
            stream.write_all(request(&format!("{path}/{number}"), trace).as_bytes()).unwrap();
            read_head(&mut stream).unwrap();
            trace += 1;
        }
    }
}

/// Scenario: none; what the other test's processes run.
/// Guarantees: nothing by itself.
#[test]
fn role() {
    let argument = std::env::var("TAPIO_TEST_ARGUMENT").unwrap_or_default();
    match std::env::var(ROLE).as_deref() {
        Ok("serve") => serve(&argument),
        Ok("call") => call(&argument),
        _ => {}
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn configure(folder: &Path) -> PathBuf {
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
         [uplink]\naggregators = [\"127.0.0.1:9\"]\n[state]\ndirectory = {:?}\n",
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
type Sums = BTreeMap<(Stage, Fate, String, String), u64>;

/// Everything in the spool: events, and the ledgers of all frames.
fn read_spool(folder: &Path) -> (Vec<UnifiedEvent>, Sums) {
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

fn not_proven(capabilities_failed: bool) -> bool {
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

/// Scenario: a service and its client, each in a container of its own; requests that succeed, fail, and fail because
/// a connection is refused; then the agent is asked to end.
/// Guarantees: the frames on the disk hold exactly the requests that were made, counted where they fold, each failing
/// one with its trace; each refusal is in the trace of its request, observed; what the kernel handed over is accounted
/// for to the last record.
#[test]
fn what_was_done_is_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let config = configure(folder.path());
    let agent = Command::new(env!("CARGO_BIN_EXE_tapio-edge-agent")).arg("--config").arg(&config).spawn();
    let mut agent = Process(agent.unwrap());
    // The first frame says that the probes are attached.
    wait_for("the agent's first frame", || {
        let mut files = fs::read_dir(folder.path().join("state/spool")).ok()?.flatten();
        let has_frame = |bytes: Vec<u8>| bytes.windows(MAGIC.len()).any(|window| window == MAGIC);
        files.any(|file| fs::read(file.path()).is_ok_and(has_frame)).then_some(())
    });

    let (server_group, client_group) = (Container::new(1), Container::new(2));
    let ports = folder.path().join("ports");
    let server = Process::role("serve", ports.to_str().unwrap(), &server_group);
    let ports = wait_for("the server", || fs::read_to_string(&ports).ok());
    let (port, nobody) = ports.split_once(' ').unwrap();
    let mut client = Process::role("call", port, &client_group);
    assert!(client.0.wait().unwrap().success());
    drop(client);
    drop(server);

    let pid = rustix::process::Pid::from_child(&agent.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(agent.0.wait().unwrap().success());
    let (events, ledger) = read_spool(folder.path());
    let failed_probe = |event: &UnifiedEvent| {
        let attributes = event.entity.as_ref().map(|entity| entity.attributes.as_str()).unwrap_or_default();
        event.core.intent == intent::PROBE_CAPABILITY && attributes.starts_with("state=failed")
    };
    if not_proven(events.iter().any(failed_probe)) {
        return;
    }

    let of = |name: &str, group: &Container| -> Vec<&UnifiedEvent> {
        let is_in = |event: &&UnifiedEvent| {
            event.core.intent == name
                && event.entity.as_ref().is_some_and(|entity| entity.container_id == group.id)
        };
        events.iter().filter(is_in).collect()
    };
    let occurrences =
        |events: &[&UnifiedEvent]| events.iter().map(|event| event.core.count as usize).sum::<usize>();
    let traces = |events: &[&UnifiedEvent]| {
        let trace = |event: &&UnifiedEvent| {
            let link = event.trace.as_ref().unwrap();
            assert_eq!(link.link, LinkKind::Observed, "{event:?}");
            usize::try_from(u128::from_be_bytes(link.trace_id.0)).unwrap()
        };
        let mut traces: Vec<usize> = events.iter().map(trace).collect();
        traces.sort_unstable();
        traces
    };
    assert_eq!(occurrences(&of(intent::REQUEST_SERVED, &server_group)), SERVED);
    assert_eq!(occurrences(&of(intent::REQUEST_CALLED, &client_group)), SERVED);
    let failing: Vec<usize> = (SERVED + 1..=SERVED + FAILED + REFUSED).collect();
    assert_eq!(traces(&of(intent::REQUEST_SERVED_ERROR, &server_group)), failing);
    assert_eq!(traces(&of(intent::REQUEST_CALLED_ERROR, &client_group)), failing);
    let refused = of(intent::CONNECTION_REFUSED, &server_group);
    assert_eq!(traces(&refused), failing[FAILED..]);
    assert!(refused.iter().all(|event| {
        let network = event.network.as_ref().unwrap();
        network.remote_port.to_string() == nobody && network.direction == "out"
    }));
    let route = of(intent::REQUEST_SERVED_ERROR, &server_group);
    assert!(
        route
            .iter()
            .all(|event| ["/fail/{id}", "/call/{id}"].contains(&&*event.network.as_ref().unwrap().route))
    );
    let peer = of(intent::REQUEST_CALLED_ERROR, &client_group);
    assert!(peer.iter().all(|event| event.entity.as_ref().unwrap().peer_container_id == server_group.id));

    for probe in tapio_kernel_abi::ProbeId::ALL {
        let sum = |stage: Stage, fates: &[Fate]| -> u64 {
            let lines = ledger.iter().filter(|((at, fate, subject, _), _)| {
                *at == stage && fates.contains(fate) && subject == probe.name()
            });
            lines.map(|(_, count)| count).sum()
        };
        let emitted = sum(Stage::Kernel, &[Fate::Carried]);
        let accounted = sum(Stage::Capture, &[Fate::Carried, Fate::Folded, Fate::Filtered, Fate::Lost]);
        assert_eq!(accounted, emitted, "{}: {ledger:#?}", probe.name());
        assert_eq!(sum(Stage::Kernel, &[Fate::Lost]), 0, "{}", probe.name());
    }
}
