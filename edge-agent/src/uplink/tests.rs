use std::time::Instant;

use tapio_correlation::RuleSet as Rules;
use tapio_daemon::Health;
use tapio_identity::{
    CredentialFiles, Credentials, Name,
    issuer::{Authority, IssuedFiles},
};
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    ids::FrameId,
};
use tapio_spool::disk::RealDisk;
use tapio_wire::{
    Position,
    frame::{FrameEncoder, FrameLimits, FrameMeta},
    session::{AggregatorConfig, AggregatorEvent, AggregatorSession, SourceState},
};

use super::*;
use crate::shelf::Room;
use tapio_schemas::units::Micros;

const FRAMES: u64 = 40;
/// The first connection is cut after so many frames.
const CUT_AFTER: usize = 15;

fn frame(name: &Name, position: Position) -> Vec<u8> {
    let id =
        FrameId { source: name.source_id(), incarnation: position.incarnation, sequence: position.sequence };
    let mut batch = AlignedVec::new();
    BatchBuilder::default().finish(&mut batch).unwrap();
    let mut bytes = Vec::new();
    FrameEncoder::new(FrameLimits::default())
        .unwrap()
        .encode(FrameMeta::new(id, 0), &batch, &mut bytes)
        .unwrap();
    bytes
}

/// What one connection brought.
#[derive(Default)]
struct Brought {
    positions: Vec<Position>,
    applied: bool,
    drained: bool,
}

/// A node, an aggregator's endpoint, and the authority of both.
struct World {
    folder: tempfile::TempDir,
    authority: Authority,
    node: Name,
    endpoint: Endpoint,
    address: SocketAddr,
    shelf: Arc<Shelf>,
    shared: Arc<Shared>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test", SystemTime::now(), HOUR).unwrap();
        let node = Name::node("test.example", "default", "test", "node-1").unwrap();
        let aggregator = Name::aggregator("test.example", "default", "test", "aggregator-1").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let files = authority.issue(&aggregator, SystemTime::now(), HOUR).unwrap();
        let files = files.write(folder.path(), "aggregator").unwrap();
        let credentials = Credentials::load(&files.certificate, &files.key, &files.authority).unwrap();
        let endpoint = quic::server_endpoint(socket, &credentials).unwrap();
        let shared = Arc::new(Shared::default());
        let losses = Arc::clone(&shared.losses);
        let shelf = Shelf::open(
            Arc::new(RealDisk),
            &folder.path().join("spool"),
            Room::of_quota(0),
            node.source_id(),
            losses,
            Instant::now(),
        )
        .unwrap();
        Self { folder, authority, node, endpoint, address, shelf: Arc::new(shelf), shared }
    }

    /// Writes the node's certificate, which is good for so long.
    fn certify(&self, lifetime: Duration) -> IssuedFiles {
        let issued = self.authority.issue(&self.node, SystemTime::now(), lifetime).unwrap();
        issued.write(self.folder.path(), "node").unwrap()
    }

    /// The uplink of the node's life `incarnation`, with a certificate that is good for so long.
    fn uplink(&self, incarnation: u64, lifetime: Duration) -> Uplink {
        let IssuedFiles { certificate, key, authority } = self.certify(lifetime);
        let files = CredentialFiles { certificate, key, authority };
        let credentials = files.load().unwrap();
        Uplink {
            aggregators: vec![self.address],
            credentials: OwnCredentials::new(
                files,
                credentials,
                Health::new().component("identity", Duration::from_secs(10)),
            ),
            metrics: Metrics::new(&Registry::new()),
            incarnation: Incarnation(incarnation),
            node: "node-1".to_owned(),
            capabilities: vec!["exec=working".to_owned()],
            host: Host::default(),
            shelf: Arc::clone(&self.shelf),
            shared: Arc::clone(&self.shared),
            progress: Health::new().component("uplink", Duration::from_secs(10)),
            finished: CancellationToken::new(),
        }
    }

    fn append(&self, position: Position) {
        self.shelf.append(position, 0, &frame(&self.node, position), Instant::now()).unwrap();
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// Serves one connection as an intake would; every frame is durable and stored at once. Ends after `most` frames.
async fn serve(endpoint: &Endpoint, known: &mut SourceState, most: usize, rules: &Rules) -> Brought {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let source = peer::peer_name(&connection).unwrap().source_id();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let config = AggregatorConfig { ack_delay: Micros(0), ..AggregatorConfig::default() };
    let mut session = AggregatorSession::new(source, config, clock::now());
    let mut brought = Brought::default();
    while let Ok(Some(chunk)) = receive.read_chunk(64 << 10, true).await {
        session.handle_bytes(&chunk.bytes, clock::now()).unwrap();
        while let Some(event) = session.poll_event() {
            match event {
                AggregatorEvent::Hello(hello) => {
                    assert_eq!(
                        (hello.node.as_str(), hello.capabilities.as_slice()),
                        ("node-1", &["exec=working".to_owned()][..])
                    );
                    session.welcome(*known, clock::now()).unwrap();
                    let version = rules.version();
                    let bytes = bytes::Bytes::copy_from_slice(rules.as_bytes());
                    session.push_rule_set(RuleSet { version, generation: 3, bytes }).unwrap();
                }
                AggregatorEvent::Frame { header, .. } => {
                    let position = Position::from(header.meta.id);
                    brought.positions.push(position);
                    if brought.positions.len() >= most {
                        // Handed over, but not yet durable: the source must send it again.
                        brought.positions.pop();
                        connection.close(VarInt::from_u32(1), b"cut");
                        return brought;
                    }
                    session.received(position, clock::now());
                    session.stored(position, clock::now());
                    (known.accepted, known.received, known.stored) = (position, position, position);
                }
                AggregatorEvent::Draining(_) => brought.drained = true,
                AggregatorEvent::RuleSetApplied(version) => brought.applied = version == rules.version(),
                _ => {}
            }
        }
        session.flush().unwrap();
        while let Some(bytes) = session.poll_output() {
            if send.write_chunk(bytes).await.is_err() {
                return brought;
            }
        }
    }
    brought
}

/// Scenario: forty frames wait in the spool; the road is cut in the middle while the agent ends; it is
/// started again, and the road is back.
/// Guarantees: every frame arrives exactly once and in order, what is stored leaves the spool, a pushed rule set is
/// run, the uplink ends by itself when everything is there, and the aggregator is told so.
#[tokio::test]
async fn a_cut_road_loses_and_repeats_nothing() {
    let world = World::new();
    let rules = Rules::new(Vec::new()).unwrap();
    let position = |sequence| Position::new(7, sequence);
    (1..=FRAMES).for_each(|sequence| world.append(position(sequence)));
    let uplink = world.uplink(7, HOUR);
    let finished = uplink.finished.clone();
    let uplink = tokio::spawn(uplink.run());

    let mut known = SourceState::default();
    let first = serve(&world.endpoint, &mut known, CUT_AFTER, &rules).await;
    finished.cancel();
    let mut arrived = first.positions;
    assert_eq!(arrived.len(), CUT_AFTER - 1);
    // The end was asked for while the road was cut: the frames stay for the next life.
    uplink.await.unwrap();
    let again = world.uplink(8, HOUR);
    let ended = again.finished.clone();
    let newest = Position::new(8, 1);
    world.append(newest);
    let again = tokio::spawn(again.run());
    let endpoint = world.endpoint.clone();
    let served = tokio::spawn(async move {
        let brought = serve(&endpoint, &mut known, usize::MAX, &rules).await;
        (brought, known)
    });
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while world.shelf.newest().is_some() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ended.cancel();
    again.await.unwrap();
    let (second, known) = served.await.unwrap();
    assert!(second.applied);
    assert!(second.drained, "the end came without a word");
    assert_eq!(known.stored, newest);
    arrived.extend(second.positions);
    let expected: Vec<Position> = (1..=FRAMES).map(position).chain([newest]).collect();
    assert_eq!(arrived, expected);
    assert_eq!((world.shelf.newest(), world.shared.rules_in_force().1), (None, 3));
}

/// Scenario: the node's certificate ends while it is connected, and there is no other; then one comes.
/// Guarantees: the connection ends with the certificate, not before and not after, and the node comes back with the new.
#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let world = World::new();
    let rules = Rules::new(Vec::new()).unwrap();
    let uplink = world.uplink(7, Duration::from_secs(3));
    let (finished, not_after) = (uplink.finished.clone(), uplink.credentials.current().not_after());
    let uplink = tokio::spawn(uplink.run());
    let mut known = SourceState::default();
    let served = serve(&world.endpoint, &mut known, usize::MAX, &rules);
    tokio::time::timeout(Duration::from_secs(12), served).await.expect("the connection goes on");
    assert!(SystemTime::now() >= not_after);
    world.certify(HOUR);
    world.append(Position::new(7, 1));
    let served = async {
        let served = serve(&world.endpoint, &mut known, 1, &rules);
        tokio::time::timeout(Duration::from_secs(12), served).await.expect("the node does not come back")
    };
    served.await;
    finished.cancel();
    uplink.await.unwrap();
}

/// Scenario: an aggregator opens every session and ends it over its first frame.
/// Guarantees: the node waits longer each time before it comes again, although its sessions were opened.
#[tokio::test]
async fn an_opened_session_alone_resets_no_wait() {
    let world = World::new();
    let rules = Rules::new(Vec::new()).unwrap();
    world.append(Position::new(7, 1));
    let uplink = world.uplink(7, HOUR);
    let finished = uplink.finished.clone();
    let uplink = tokio::spawn(uplink.run());
    let began = tokio::time::Instant::now();
    for _ in 0..5 {
        let brought = serve(&world.endpoint, &mut SourceState::default(), 1, &rules).await;
        assert_eq!(brought.positions, []);
    }
    // At least half of 100, 200, 400 and 800 ms.
    assert!(began.elapsed() >= Duration::from_millis(750), "{:?}", began.elapsed());
    finished.cancel();
    uplink.await.unwrap();
}

mod rotation;
