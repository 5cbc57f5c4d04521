//! A road for tests: an authority, an aggregator with real parts, and nodes that speak the wire over real QUIC.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use serde::Deserialize;
use tapio_aggregator::{Config, Running};
use tapio_identity::{
    Credentials, Expected, Name, NameKind,
    issuer::{Authority, Host, IssuedFiles},
    quic,
};
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    event::UnifiedEvent,
    ids::{Incarnation, SourceId},
    ledger::{Fate, Stage},
    units::{ClockOffset, Micros, UnixMicros},
};
use tapio_store::client::{Credentials as Account, Endpoint, ReadLimits, Reader};
use tapio_wire::{
    Position,
    frame::{FrameEncoder, FrameLimits, FrameMeta},
    message::Host as NodeHost,
    session::{EdgeConfig, EdgeEvent, EdgeSession, Now},
};

/// Nothing here takes longer on a machine that is busy with other builds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const LIFE: Duration = Duration::from_secs(3_600);
pub(crate) const DOMAIN: &str = "tapio.test";

pub(crate) fn now() -> UnixMicros {
    UnixMicros(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap())
}

/// Everything that outlives an aggregator: its directory and the authority.
pub(crate) struct World {
    directory: tempfile::TempDir,
    pub(crate) authority: Authority,
}

impl World {
    pub(crate) fn new() -> Self {
        // The embedded engine runs as another user, who must be able to pass through.
        let directory = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).unwrap();
        let authority = Authority::new("test", SystemTime::now(), LIFE).unwrap();
        Self { directory, authority }
    }

    /// One with a file of identities, without which health has a reason of its own.
    pub(crate) fn named() -> Self {
        let world = Self::new();
        fs::write(world.path().join("identities.json"), r#"{"version":1,"pods":[]}"#).unwrap();
        world
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn files(&self, name: &Name, stem: &str, life: Duration) -> (PathBuf, PathBuf, PathBuf) {
        let issued = self.authority.issue(name, SystemTime::now(), life).unwrap();
        let folder = self.path().join("certificates");
        fs::create_dir_all(&folder).unwrap();
        issued.write(&folder, stem).unwrap();
        (
            folder.join(format!("{stem}.pem")),
            folder.join(format!("{stem}.key")),
            folder.join(format!("{stem}.ca.pem")),
        )
    }

    /// Files of a peer's certificate that is or was good from `begin` for `life`.
    pub(crate) fn files_since(
        &self,
        name: &Name,
        stem: &str,
        begin: SystemTime,
        life: Duration,
    ) -> IssuedFiles {
        let folder = self.path().join("certificates");
        fs::create_dir_all(&folder).unwrap();
        self.authority.issue(name, begin, life).unwrap().write(&folder, stem).unwrap()
    }

    /// The certificate and the key of a peer.
    pub(crate) fn credential_files(&self, name: &Name, stem: &str) -> (PathBuf, PathBuf) {
        let (certificate, key, _authority) = self.files(name, stem, LIFE);
        (certificate, key)
    }

    pub(crate) fn credentials(&self, name: &Name, stem: &str, life: Duration) -> Credentials {
        let (certificate, key, authority) = self.files(name, stem, life);
        Credentials::load(&certificate, &key, &authority).unwrap()
    }

    /// The certificate of gRPC, and the authority that vouches for it.
    pub(crate) fn grpc_files(&self) -> IssuedFiles {
        let folder = self.path().join("certificates");
        fs::create_dir_all(&folder).unwrap();
        let hosts = [Host::Ip([127, 0, 0, 1].into()), Host::Dns("localhost".to_owned())];
        self.authority.issue_https(&hosts, SystemTime::now(), LIFE).unwrap().write(&folder, "grpc").unwrap()
    }

    /// A configuration on free ports; `store` is the `[store]` table.
    pub(crate) fn config(&self, store: &str) -> Config {
        let name = Name::aggregator(DOMAIN, "default", "demo", "a1").unwrap();
        let (certificate, key, authority) = self.files(&name, "aggregator", LIFE);
        let grpc = self.grpc_files();
        let text = format!(
            r#"
            [aggregator]
            name = "a1"
            cluster = "demo"
            trust_domain = "{DOMAIN}"
            [identity]
            certificate = {certificate:?}
            key = {key:?}
            authority = {authority:?}
            [intake]
            listen = "127.0.0.1:0"
            [grpc]
            listen = "127.0.0.1:0"
            certificate = {:?}
            key = {:?}
            [dashboard]
            listen = "127.0.0.1:0"
            [state]
            directory = {:?}
            [store]
            {store}
            [context]
            identities = {:?}
            [telemetry]
            listen = "127.0.0.1:0"
            "#,
            grpc.certificate,
            grpc.key,
            self.path().join("state"),
            self.path().join("identities.json"),
        );
        Config::parse(Path::new("test.toml"), &text).unwrap()
    }

    /// An aggregator with the real embedded engine.
    pub(crate) async fn embedded(&self) -> Running {
        tapio_aggregator::start(self.config("mode = \"embedded\"")).await.unwrap()
    }

    /// An aggregator whose store is not there: what arrives waits in the spool.
    pub(crate) async fn without_store(&self) -> Running {
        self.without_store_by(|_config| {}).await
    }

    /// The same, with another configuration.
    pub(crate) async fn without_store_by(&self, change: impl FnOnce(&mut Config)) -> Running {
        let mut config = self.config("mode = \"server\"\nurl = \"http://127.0.0.1:9\"");
        change(&mut config);
        tapio_aggregator::start(config).await.unwrap()
    }

    /// A bare connection of a peer with a certificate of this name.
    pub(crate) async fn connect_as(&self, running: &Running, name: &Name) -> Connection {
        let credentials = self.credentials(name, "peer", LIFE);
        let endpoint = quic::client_endpoint(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let expected = Expected::beside(name, &[NameKind::Aggregator]).anywhere();
        quic::connect(&endpoint, &credentials, running.intake_addr, &expected).await.unwrap().0
    }

    /// A node's connection to the aggregator, its session open.
    pub(crate) async fn node(&self, running: &Running, node: &str, incarnation: u64) -> Node {
        let name = Name::node(DOMAIN, "default", "demo", node).unwrap();
        let mut node = Node::connect(self, running, &name, node, incarnation).await;
        node.until(|event| matches!(event, EdgeEvent::Welcomed { .. })).await;
        node
    }

    /// A node's connection with the credentials that it has, its session open.
    pub(crate) async fn node_with(&self, running: &Running, credentials: &Credentials, says: &str) -> Node {
        let mut node = Node::connect_with(running, credentials, says, 1).await;
        node.until(|event| matches!(event, EdgeEvent::Welcomed { .. })).await;
        node
    }

    /// The same, with a certificate that is valid for `life`.
    pub(crate) async fn node_for(&self, running: &Running, node: &str, life: Duration) -> Node {
        let name = Name::node(DOMAIN, "default", "demo", node).unwrap();
        let mut node = Node::connect_for(self, running, &name, node, 1, life).await;
        node.until(|event| matches!(event, EdgeEvent::Welcomed { .. })).await;
        node
    }
}

/// Whether the real engine can be run here; if not, and that is allowed, says what is not proven.
pub(crate) fn engine_is_here() -> bool {
    let Err(error) = tapio_store::engine::find_library() else { return true };
    let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    assert!(allowed.split(',').any(|name| name == "clickhouse"), "{error}");
    println!("not proven: clickhouse: frames to rows, exactly once");
    false
}

/// A node that speaks the wire.
pub(crate) struct Node {
    pub(crate) source: SourceId,
    pub(crate) session: EdgeSession,
    pub(crate) events: Vec<EdgeEvent>,
    _endpoint: quinn::Endpoint,
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    started: Instant,
    pub(crate) closed: bool,
}

impl Node {
    pub(crate) async fn connect(
        world: &World,
        running: &Running,
        name: &Name,
        says: &str,
        incarnation: u64,
    ) -> Self {
        Self::connect_for(world, running, name, says, incarnation, LIFE).await
    }

    async fn connect_for(
        world: &World,
        running: &Running,
        name: &Name,
        says: &str,
        incarnation: u64,
        life: Duration,
    ) -> Self {
        Self::connect_with(running, &world.credentials(name, says, life), says, incarnation).await
    }

    async fn connect_with(
        running: &Running,
        credentials: &Credentials,
        says: &str,
        incarnation: u64,
    ) -> Self {
        let name = credentials.name();
        let endpoint = quic::client_endpoint(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let expected = Expected::beside(name, &[NameKind::Aggregator]);
        let (connection, _peer) =
            quic::connect(&endpoint, credentials, running.intake_addr, &expected).await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut session = EdgeSession::new(EdgeConfig {
            capabilities: vec!["oom_victim=working".to_owned(), "payload=failed: refused".to_owned()],
            agent_version: "9.8.7".to_owned(),
            host: Some(NodeHost {
                kernel_release: "6.1.0-44".to_owned(),
                architecture: "x86_64".to_owned(),
                limits: vec![("spool_bytes".to_owned(), 1 << 28)],
            }),
            ..EdgeConfig::new(Incarnation(incarnation), says)
        });
        let started = Instant::now();
        let this = Now { monotonic: Micros(0), unix: now() };
        session.connect(Position::new(incarnation, 1), this).unwrap();
        let source = name.source_id();
        let (events, closed) = (Vec::new(), false);
        let mut node =
            Self { source, session, events, _endpoint: endpoint, connection, send, receive, started, closed };
        node.flush().await;
        node
    }

    fn now(&self) -> Now {
        let monotonic = u64::try_from(self.started.elapsed().as_micros()).unwrap();
        Now { monotonic: Micros(monotonic), unix: now() }
    }

    /// Sends bytes that the session knows nothing of.
    pub(crate) async fn send_raw(&mut self, bytes: Bytes) {
        self.closed |= self.send.write_chunk(bytes).await.is_err();
    }

    /// The connection beneath the session.
    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends what waits.
    pub(crate) async fn flush(&mut self) {
        while let Some(piece) = self.session.poll_output() {
            if self.send.write_chunk(piece).await.is_err() {
                self.closed = true;
                return;
            }
        }
    }

    /// Offers a frame; it goes out as credit allows.
    pub(crate) async fn offer(&mut self, frame: &Frame) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.session.offer(frame.position, frame.bytes.clone()) {
                Ok(()) => break,
                Err(tapio_wire::session::OfferRefusal::WindowFull) => self.step().await,
                Err(refusal) => panic!("{refusal}"),
            }
            assert!(Instant::now() < deadline && !self.closed, "no room for a frame");
        }
        self.flush().await;
    }

    /// One turn: what waits is sent, what comes is taken, time passes.
    pub(crate) async fn step(&mut self) {
        self.flush().await;
        let now = self.now();
        let wake = self.session.next_timeout().map_or(1_000_000, |at| at.0.saturating_sub(now.monotonic.0));
        let wait = Duration::from_micros(wake.min(1_000_000));
        match tokio::time::timeout(wait, self.receive.read_chunk(65_536, true)).await {
            Err(_elapsed) => {
                let now = self.now();
                let _fault = self.session.handle_timeout(now);
            }
            Ok(Ok(Some(chunk))) => {
                let now = self.now();
                let _fault = self.session.handle_bytes(&chunk.bytes, now);
            }
            Ok(_) => self.closed = true,
        }
        while let Some(event) = self.session.poll_event() {
            self.events.push(event);
        }
        self.flush().await;
    }

    /// Goes on until an event comes for which `wanted` holds, and returns it.
    pub(crate) async fn until(&mut self, mut wanted: impl FnMut(&EdgeEvent) -> bool) -> EdgeEvent {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            while let Some(event) = self.events.get(seen) {
                if wanted(event) {
                    return event.clone();
                }
                seen += 1;
            }
            let in_time = Instant::now() < deadline && !self.closed;
            // A rule set's bytes tell nobody anything.
            self.events.retain(|event| !matches!(event, EdgeEvent::RuleSet(_)) || in_time);
            assert!(in_time, "closed: {}; the event did not come; these did: {:?}", self.closed, self.events);
            self.step().await;
        }
    }

    pub(crate) async fn until_received(&mut self, sequence: u64) {
        self.until(|event| matches!(event, EdgeEvent::Received(at) if at.sequence.0 >= sequence)).await;
    }

    pub(crate) async fn until_stored(&mut self, sequence: u64) {
        self.until(|event| matches!(event, EdgeEvent::Stored(at) if at.sequence.0 >= sequence)).await;
    }

    /// Goes on until the aggregator refuses the session, and returns code and text.
    pub(crate) async fn until_refused(&mut self) -> (u16, String) {
        match self.until(|event| matches!(event, EdgeEvent::Refused { .. })).await {
            EdgeEvent::Refused { code, text } => (code, text),
            other => panic!("{other:?}"),
        }
    }
}

/// A frame and its place.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) position: Position,
    pub(crate) bytes: Bytes,
}

/// Makes a frame of events.
pub(crate) fn frame(source: SourceId, position: Position, events: &[UnifiedEvent]) -> Frame {
    frame_until(source, position, events, now())
}

/// The same, of a source that tells of its time up to `until`.
pub(crate) fn frame_until(
    source: SourceId,
    position: Position,
    events: &[UnifiedEvent],
    until: UnixMicros,
) -> Frame {
    let mut batch = BatchBuilder::default();
    let ledger = batch.ledger_mut();
    ledger.since = until.minus(Micros::from_secs(1));
    ledger.until = until;
    ledger.add(Stage::Kernel, Fate::Carried, "test", "", events.len() as u64);
    for event in events {
        batch.push_event(event).unwrap();
    }
    let mut bytes = AlignedVec::new();
    let summary = batch.finish(&mut bytes).unwrap();
    let meta = FrameMeta {
        clock: ClockOffset { boot_to_unix_nanos: 0, error_micros: 40 },
        ..FrameMeta::new(position.of_source(source), summary.rows)
    };
    let mut out = Vec::new();
    FrameEncoder::new(FrameLimits::default()).unwrap().encode(meta, &bytes, &mut out).unwrap();
    Frame { position, bytes: out.into() }
}

#[derive(Deserialize)]
struct Connected {
    url: String,
    reader_user: String,
    reader_password: String,
}

/// A reader of the store, as central opens it.
pub(crate) fn store(running: &Running) -> Reader {
    let text = fs::read_to_string(&running.connection_file).unwrap();
    let Connected { url, reader_user, reader_password } = toml::from_str(&text).unwrap();
    let account = Account { user: reader_user, password: reader_password };
    Reader::new(&Endpoint::new(&url, account).unwrap(), ReadLimits::default())
}

/// The first column of the first row of an answer, a number.
pub(crate) async fn number(reader: &Reader, statement: &str) -> u64 {
    #[derive(Deserialize)]
    struct Row {
        n: u64,
    }
    let rows: Vec<Row> = reader.rows(statement, &[]).await.unwrap();
    rows.first().map_or(0, |row| row.n)
}
