use std::time::SystemTime;

use tapio_correlation::RuleSet as Rules;
use tapio_daemon::Health;
use tapio_identity::{Name, issuer::Authority};
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    ids::FrameId,
};
use tapio_wire::{
    frame::{FrameEncoder, FrameLimits, FrameMeta},
    session::{AggregatorConfig, AggregatorEvent, AggregatorSession, SourceState},
};

use super::*;
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
}

/// Serves one connection as an intake would; every frame is durable and stored at once. Ends after `most` frames.
async fn serve(endpoint: &Endpoint, known: &mut SourceState, most: usize, rules: &Rules) -> Brought {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let source = tapio_identity::peer::peer_name(&connection).unwrap().source_id();
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
/// run, and the uplink ends by itself when everything is there.
#[tokio::test]
async fn a_cut_road_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3_600));
    let authority = Authority::new("test", now, hour).unwrap();
    let credentials = |name: &Name, stem: &str| {
        let files = authority.issue(name, now, hour).unwrap().write(folder.path(), stem).unwrap();
        Credentials::load(&files.certificate, &files.key, &files.authority).unwrap()
    };
    let node = Name::node("test.example", "default", "test", "node-1").unwrap();
    let aggregator = Name::aggregator("test.example", "default", "test", "aggregator-1").unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let endpoint = quic::server_endpoint(socket, &credentials(&aggregator, "aggregator")).unwrap();
    let rules = Rules::new(Vec::new()).unwrap();

    let shelf = Arc::new(Shelf::open(&folder.path().join("spool"), 0).unwrap());
    let position = |sequence| Position::new(7, sequence);
    for sequence in 1..=FRAMES {
        shelf.append(position(sequence), &frame(&node, position(sequence))).unwrap();
    }
    let (shared, finished) = (Arc::new(Shared::default()), CancellationToken::new());
    let uplink = Uplink {
        aggregators: vec![address],
        credentials: credentials(&node, "node"),
        incarnation: Incarnation(7),
        node: "node-1".to_owned(),
        capabilities: vec!["exec=working".to_owned()],
        shelf: Arc::clone(&shelf),
        shared: Arc::clone(&shared),
        progress: Health::new().component("uplink", Duration::from_secs(10)),
        finished: finished.clone(),
    };
    let uplink = tokio::spawn(uplink.run());

    let mut known = SourceState::default();
    let first = serve(&endpoint, &mut known, CUT_AFTER, &rules).await;
    finished.cancel();
    let mut arrived = first.positions;
    assert_eq!(arrived.len(), CUT_AFTER - 1);
    // The end was asked for while the road was cut: the frames stay for the next life.
    uplink.await.unwrap();
    let again = Uplink {
        aggregators: vec![address],
        credentials: credentials(&node, "node"),
        incarnation: Incarnation(8),
        node: "node-1".to_owned(),
        capabilities: vec!["exec=working".to_owned()],
        shelf: Arc::clone(&shelf),
        shared: Arc::clone(&shared),
        progress: Health::new().component("uplink", Duration::from_secs(10)),
        finished: CancellationToken::new(),
    };
    let ended = again.finished.clone();
    let newest = Position::new(8, 1);
    shelf.append(newest, &frame(&node, newest)).unwrap();
    let again = tokio::spawn(again.run());
    let served = tokio::spawn(async move {
        let brought = serve(&endpoint, &mut known, usize::MAX, &rules).await;
        (brought, known)
    });
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while shelf.newest().is_some() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ended.cancel();
    again.await.unwrap();
    let (second, known) = served.await.unwrap();
    assert!(second.applied);
    assert_eq!(known.stored, newest);
    arrived.extend(second.positions);
    let expected: Vec<Position> = (1..=FRAMES).map(position).chain([newest]).collect();
    assert_eq!(arrived, expected);
    assert_eq!((shelf.newest(), shared.rules_in_force().1), (None, 3));
}
