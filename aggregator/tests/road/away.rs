//! What the aggregator needs is away for a while: the store, or room on the disk. Data waits, health says so, and in the
//! end everything is stored once.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tapio_aggregator::Running;
use tapio_store::engine::{EmbeddedEngine, EngineConfig};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::{
    storing::{DISTINCT, EVENTS, ROWS, send},
    support::{Node, PATIENCE, World, engine_is_here, number, store},
    waiting::{LARGE_ROWS, fill},
};

/// The address of a server that comes and goes: while it is open it leads to a real engine, while it is shut nobody
/// listens there.
struct Door {
    address: SocketAddr,
    leads_to: SocketAddr,
    opened: Option<JoinHandle<()>>,
    // Dropping them cuts what goes through.
    through: Arc<Mutex<JoinSet<()>>>,
}

impl Door {
    fn shut(leads_to: SocketAddr) -> Self {
        // Bound and let go: the number stays free for as long as a test takes.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { address, leads_to, opened: None, through: Arc::default() }
    }

    fn open(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        let (leads_to, through) = (self.leads_to, Arc::clone(&self.through));
        self.opened = Some(tokio::spawn(async move {
            while let Ok((mut outside, _from)) = listener.accept().await {
                through.lock().unwrap().spawn(async move {
                    let Ok(mut inside) = TcpStream::connect(leads_to).await else { return };
                    let _ended = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        }));
    }

    async fn close(&mut self) {
        if let Some(opened) = self.opened.take() {
            opened.abort();
            drop(opened.await);
        }
        let mut through = std::mem::take(&mut *self.through.lock().unwrap());
        through.shutdown().await;
    }
}

/// A server of the user's, behind a door that is shut.
async fn server(folder: &Path) -> (EmbeddedEngine, Door, String) {
    let engine = EmbeddedEngine::start(EngineConfig::new(folder).unwrap()).await.unwrap();
    let door = Door::shut(engine.addresses().http);
    let account = engine.writer();
    let store = format!(
        "mode = \"server\"\nurl = \"http://{}\"\nuser = {:?}\npassword = {:?}",
        door.address, account.user, account.password
    );
    (engine, door, store)
}

/// Waits until health has a reason with all of `parts`, while the node is served.
async fn until_told(running: &Running, node: &mut Node, parts: &[&str]) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reasons = running.health.status().reasons;
        if let Some(told) = reasons.iter().find(|reason| parts.iter().all(|part| reason.contains(part))) {
            return told.clone();
        }
        assert!(Instant::now() < deadline, "{parts:?} is not told; this is: {reasons:?}");
        node.step().await;
    }
}

async fn until_well(running: &Running, node: &mut Node) {
    let deadline = Instant::now() + PATIENCE;
    while !running.health.status().reasons.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", running.health.status().reasons);
        node.step().await;
    }
}

/// Scenario: the server is not there when the aggregator starts; it comes, goes while frames arrive, and comes again.
/// Guarantees: frames are received all the time; health says what cannot be done, where, how many records wait and what
/// the system said, and is well again when the server is back; then every event is stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_and_goes_loses_nothing() {
    if !engine_is_here() {
        return;
    }
    let world = World::named();
    let (engine, mut door, config) = server(&world.path().join("server")).await;
    let running = tapio_aggregator::start(world.config(&config)).await.unwrap();
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=20).await;
    node.until_received(20).await;
    let address = door.address.to_string();
    until_told(
        &running,
        &mut node,
        &["schema: the schema cannot be brought up", "cannot be reached", &address],
    )
    .await;

    door.open();
    node.until_stored(20).await;
    until_well(&running, &mut node).await;
    door.close().await;
    send(&mut node, 1, 21..=40).await;
    node.until_received(40).await;
    until_told(&running, &mut node, &["store: ", "cannot be stored", "records wait in the spool", &address])
        .await;
    let metrics = running.registry.encode().unwrap();
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {metrics}")).parse().unwrap()
    };
    assert!(value("tapio_store_waiting_records") >= 20 && value("tapio_store_retries_total") > 0);

    door.open();
    send(&mut node, 1, 41..=50).await;
    node.until_stored(50).await;
    until_well(&running, &mut node).await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, 50 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 50 * ROWS);
    running.stop().await.unwrap();
    door.close().await;
    engine.stop().await.unwrap();
}

/// Scenario: the engine's process is stopped with SIGSTOP while frames arrive: it takes connections and answers nothing.
/// Guarantees: frames are received all the time; health says within seconds who does not answer what, and since when;
/// when it goes on, health is well and every event is stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_hangs_is_told() {
    if !engine_is_here() {
        return;
    }
    let world = World::named();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=5).await;
    node.until_stored(5).await;
    let pid = Pid::from_raw(i32::try_from(running.store_pid().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    send(&mut node, 1, 6..=20).await;
    node.until_received(20).await;
    let told = ["store: ClickHouse has not answered an insert into", " s: data waits in the spool; see what"];
    until_told(&running, &mut node, &told).await;
    kill_process(pid, Signal::CONT).unwrap();
    node.until_stored(20).await;
    until_well(&running, &mut node).await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, 20 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 20 * ROWS);
    running.stop().await.unwrap();
}

/// Set where the test runs again with a disk of its own.
const DISK: &str = "TAPIO_TEST_DISK";
const DISK_TEST: &str = "away::a_full_disk_loses_nothing";

/// Makes a file as large as there is room for, at most `bytes`.
fn ballast(path: &Path, bytes: usize) {
    let mut file = fs::File::create(path).unwrap();
    let piece = vec![7; 64 << 10];
    for _ in 0..bytes.div_ceil(piece.len()) {
        if std::io::Write::write_all(&mut file, &piece).is_err() {
            return;
        }
    }
}

/// Whether this machine lets tests have file systems of their own; if not, and that is allowed, says what is not proven.
fn may_mount(what: &str) -> bool {
    let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if tried.is_ok_and(|output| output.status.success()) {
        return true;
    }
    let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    assert!(allowed.split(',').any(|name| name.trim() == "mount"), "cannot mount in a namespace of its own");
    println!("not proven: mount: {what}");
    false
}

/// Runs this test's program again where `folder` is a file system of its own.
fn with_a_disk(folder: &Path) {
    let script = "mount -t tmpfs -o size=128m,mode=755 tapio-test \"$0\" && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(folder)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", DISK_TEST, "--nocapture", "--test-threads=1"])
        .env(DISK, folder)
        .output()
        .expect("unshare (util-linux)");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("survived a full disk"), "{said}");
}

/// Scenario: the state directory is on a disk of 128 MiB. The store goes away, and frames come until the disk is full;
/// somebody frees some; then somebody fills it to the last byte while the store comes back; then that is freed too.
/// Guarantees: the aggregator runs on, its spool leaves room for the store to go on; health says which disk is full, for
/// what, and what to do, each time; when there is room it goes on by itself; every frame that was received is stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    if !engine_is_here() {
        return;
    }
    let Some(disk) = std::env::var_os(DISK) else {
        if may_mount("a full disk under the aggregator's state directory") {
            with_a_disk(tempfile::tempdir().unwrap().path());
        }
        return;
    };
    let disk = Path::new(&disk);
    let world = World::named();
    let (engine, mut door, config) = server(&world.path().join("server")).await;
    let mut config = world.config(&config);
    config.state.directory = disk.join("state");
    let running = tapio_aggregator::start(config).await.unwrap();
    let mut node = world.node(&running, "n1", 1).await;
    door.open();
    until_well(&running, &mut node).await;
    door.close().await;

    let some = disk.join("some");
    ballast(&some, 16 << 20);
    let received = fill(&mut node).await;
    assert!(received > 30, "{received}");
    let spool = disk.join("state/spool");
    let told = [
        "spool: no space left for spool ",
        spool.to_str().unwrap(),
        "free some",
        "nodes keep what they have",
    ];
    until_told(&running, &mut node, &told).await;
    fs::remove_file(&some).unwrap();
    node.until_received(received + 1).await;
    let received = fill_on(&mut node).await;
    assert!(received > 40, "{received}");

    let all = disk.join("all");
    ballast(&all, usize::MAX);
    door.open();
    until_told(&running, &mut node, &["store: cannot write ", "state/stored.json", "free some space there"])
        .await;
    fs::remove_file(&all).unwrap();
    node.until_stored(received).await;
    until_well(&running, &mut node).await;
    // What had found no room until now came as well.
    let received = fill_on(&mut node).await;
    node.until_stored(received).await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, received * LARGE_ROWS);
    assert_eq!(number(&reader, DISTINCT).await, received * LARGE_ROWS);
    running.stop().await.unwrap();
    door.close().await;
    engine.stop().await.unwrap();
    println!("survived a full disk");
}

/// Steps until nothing more is received; returns the last frame that was.
async fn fill_on(node: &mut Node) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let (mut received, mut moved_at) = (node.session.received(), Instant::now());
    while moved_at.elapsed() < Duration::from_secs(2) {
        assert!(Instant::now() < deadline, "the spool does not fill");
        node.step().await;
        if node.session.received() > received {
            (received, moved_at) = (node.session.received(), Instant::now());
        }
    }
    received.sequence.0
}
