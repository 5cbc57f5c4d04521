//! A session that moves to a connection with newer certificates.

use std::sync::Mutex;

use super::*;

/// What the aggregator of this test knows and saw.
#[derive(Default)]
struct Seen {
    known: SourceState,
    positions: Vec<Position>,
    /// Of each connection: the node's serial number, and whether the one before still stood when it was made.
    connections: Vec<(Vec<u8>, bool)>,
}

/// Serves connections side by side, as an intake does; every frame is stored at once.
async fn serve_all(endpoint: Endpoint, rules: Arc<Rules>, seen: Arc<Mutex<Seen>>) {
    let mut tasks = tokio::task::JoinSet::new();
    let mut before: Option<Connection> = None;
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.await.unwrap();
        let chain = peer::chain_of(&connection).unwrap();
        let stood = before.as_ref().is_some_and(|before| before.close_reason().is_none());
        seen.lock().unwrap().connections.push((chain[0].to_vec(), stood));
        before = Some(connection.clone());
        tasks.spawn(serve_one(connection, Arc::clone(&rules), Arc::clone(&seen)));
    }
}

async fn serve_one(connection: Connection, rules: Arc<Rules>, seen: Arc<Mutex<Seen>>) {
    let source = peer::peer_name(&connection).unwrap().source_id();
    let Ok((mut send, mut receive)) = connection.accept_bi().await else { return };
    let config = AggregatorConfig { ack_delay: Micros(0), ..AggregatorConfig::default() };
    let mut session = AggregatorSession::new(source, config, clock::now());
    while let Ok(Some(chunk)) = receive.read_chunk(64 << 10, true).await {
        session.handle_bytes(&chunk.bytes, clock::now()).unwrap();
        while let Some(event) = session.poll_event() {
            match event {
                AggregatorEvent::Hello(_) => {
                    session.welcome(seen.lock().unwrap().known, clock::now()).unwrap();
                    let (version, bytes) = (rules.version(), bytes::Bytes::copy_from_slice(rules.as_bytes()));
                    session.push_rule_set(RuleSet { version, generation: 3, bytes }).unwrap();
                }
                AggregatorEvent::Frame { header, .. } => {
                    let position = Position::from(header.meta.id);
                    let mut seen = seen.lock().unwrap();
                    if position > seen.known.accepted {
                        seen.positions.push(position);
                        seen.known = SourceState { accepted: position, received: position, stored: position };
                    }
                    session.received(seen.known.received, clock::now());
                    session.stored(seen.known.stored, clock::now());
                }
                AggregatorEvent::Gap { after, before } => panic!("a gap between {after} and {before}"),
                _ => {}
            }
        }
        session.flush().unwrap();
        while let Some(bytes) = session.poll_output() {
            if send.write_chunk(bytes).await.is_err() {
                return;
            }
        }
    }
}

/// Scenario: frames are made all the time; the node's certificate is replaced on the disk, then the aggregator's, whose
/// first one ends soon.
/// Guarantees: each time a connection with the new certificate stands before the one before is left; no connection fails
/// or waits, and every frame arrives once and in order.
#[tokio::test]
async fn a_session_moves_to_newer_certificates() {
    let world = World::new();
    let aggregator = Name::aggregator("test.example", "default", "test", "aggregator-1").unwrap();
    let certify_aggregator = |lifetime| {
        let issued = world.authority.issue(&aggregator, SystemTime::now(), lifetime).unwrap();
        let files = issued.write(world.folder.path(), "aggregator").unwrap();
        let credentials = Credentials::load(&files.certificate, &files.key, &files.authority).unwrap();
        world.endpoint.set_server_config(Some(quic::server_config(&credentials).unwrap()));
    };
    certify_aggregator(Duration::from_secs(6));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let rules = Arc::new(Rules::new(Vec::new()).unwrap());
    let server = tokio::spawn(serve_all(world.endpoint.clone(), rules, Arc::clone(&seen)));
    let uplink = world.uplink(7, HOUR);
    let (finished, moved) = (uplink.finished.clone(), uplink.metrics.moved.clone());
    let ended = uplink.metrics.ended.clone();
    let uplink = tokio::spawn(uplink.run());

    let mut sequence = 0;
    let mut make_until = async |moves: u64| {
        let until = tokio::time::Instant::now() + Duration::from_secs(12);
        while moved.get() < moves {
            assert!(tokio::time::Instant::now() < until, "{} moves", moved.get());
            sequence += 1;
            world.append(Position::new(7, sequence));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    while seen.lock().unwrap().connections.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.certify(HOUR);
    make_until(1).await;
    certify_aggregator(HOUR);
    make_until(2).await;
    make_until(2).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(12);
    while world.shelf.newest().is_some() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    finished.cancel();
    uplink.await.unwrap();
    server.abort();

    let seen = seen.lock().unwrap();
    let stood: Vec<bool> = seen.connections.iter().map(|(_certificate, stood)| *stood).collect();
    assert_eq!(stood, [false, true, true]);
    assert_ne!(seen.connections[0].0, seen.connections[1].0);
    assert_eq!(seen.connections[1].0, seen.connections[2].0);
    let all: Vec<Position> = (1..=sequence).map(|sequence| Position::new(7, sequence)).collect();
    assert_eq!(seen.positions, all);
    for reason in ["connect", "connection", "expired", "refused", "closed"] {
        assert_eq!(ended.get(reason), 0, "{reason}");
    }
}
