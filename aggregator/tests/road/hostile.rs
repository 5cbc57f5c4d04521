//! Peers that do not keep to the rules: none of them gets in, is served instead of another, or takes more than its share.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::{BufMut as _, BytesMut};
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use rustls::{
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tapio_aggregator::Running;
use tapio_identity::{
    Name,
    issuer::{Authority, IssuedFiles},
    quic::{self, Refusal, RefusalReason, Side},
};
use tapio_wire::{
    Position,
    message::{Message, encode},
};

use super::support::{DOMAIN, World, frame};

const LIFE: Duration = Duration::from_secs(3_600);
/// What the process may grow by, whatever peers send: windows of a handful of connections, and some slack.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

fn name(cluster: &str, node: &str) -> Name {
    Name::node(DOMAIN, "default", cluster, node).unwrap()
}

fn count(running: &Running, line: &str) -> u64 {
    let metrics = running.registry.encode().unwrap();
    let value = metrics.lines().find_map(|found| found.strip_prefix(line));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

fn refused(running: &Running, reason: &str) -> u64 {
    count(running, &format!("tapio_intake_connections_refused_total{{reason=\"{reason}\"}}"))
}

/// Bytes of memory that this process uses.
fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

/// A client that believes every server, presents what it has, and resumes sessions where it can.
fn client(files: &IssuedFiles) -> Endpoint {
    let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider);
    let tls = tls.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let tls = tls.dangerous().with_custom_certificate_verifier(Arc::new(BelieveAll));
    let mut tls = tls.with_client_auth_cert(chain, key).unwrap();
    tls.alpn_protocols = vec![b"tapio/1".to_vec()];
    tls.enable_early_data = true;
    let mut endpoint = quic::client_endpoint(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap())));
    endpoint
}

#[derive(Debug)]
struct BelieveAll;

impl ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// How a connection ends that is not served.
async fn end_of(endpoint: &Endpoint, address: SocketAddr) -> ConnectionError {
    let connected = endpoint.connect(address, "tapio.invalid").unwrap();
    let ended = async {
        match connected.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("it is served")
}

/// Scenario: peers with an expired certificate, one that expires between two connections (the second tries to resume and
/// to send early), one of an authority with the right name, one of another cluster, and an aggregator's, come while a node
/// ships frames.
/// Guarantees: each is refused by the named reason and counted, and each of the node's frames is received.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_a_good_certificate() {
    let world = World::named();
    let running = world.without_store().await;
    let mut sound = world.node(&running, "sound", 1).await;
    let address = running.intake_addr;
    let mut sequence = 0;
    let mut goes_on = async || {
        sequence += 1;
        sound.offer(&frame(sound.source, Position::new(1, sequence), &[])).await;
        sound.until_received(sequence).await;
    };

    let begin = SystemTime::now();
    let short = world.files_since(&name("demo", "sound"), "short", begin, Duration::from_secs(2));
    let resuming = client(&short);
    let first = resuming.connect(address, "tapio.invalid").unwrap().await.unwrap();
    goes_on().await;
    let past = world.files_since(&name("demo", "sound"), "past", begin - 2 * LIFE, LIFE);
    let expired = Refusal { side: Side::Peer, reason: RefusalReason::Expired };
    assert_eq!(Refusal::of(&end_of(&client(&past), address).await), Some(expired));
    goes_on().await;

    let stranger = Authority::new("tapio test", begin, LIFE).unwrap();
    let strange = stranger.issue(&name("demo", "sound"), begin, LIFE).unwrap();
    let strange = strange.write(world.path(), "strange").unwrap();
    let unknown = Refusal::of(&end_of(&client(&strange), address).await).unwrap();
    assert_eq!(unknown.side, Side::Peer);
    goes_on().await;
    let aggregator = Name::aggregator(DOMAIN, "default", "demo", "a2").unwrap();
    for (peer, reason) in [(name("other", "sound"), "other_cluster"), (aggregator, "wrong_kind")] {
        let files = world.files_since(&peer, "elsewhere", begin, LIFE);
        let ended = end_of(&client(&files), address).await;
        let ConnectionError::ApplicationClosed(close) = &ended else { panic!("{ended}") };
        assert_eq!(u64::from(close.error_code), 0x10, "{ended}");
        assert_eq!(refused(&running, reason), 1, "{reason}");
        goes_on().await;
    }

    while SystemTime::now() <= begin + Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(first);
    let again = resuming.connect(address, "tapio.invalid").unwrap();
    let again =
        again.into_0rtt().map(|_early| "early data were taken").expect_err("there is nothing to resume");
    let ended = match again.await {
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    };
    assert_eq!(Refusal::of(&ended), Some(expired), "{ended}");
    goes_on().await;
    assert_eq!(refused(&running, "certificate_expired"), 2);
    assert_eq!(refused(&running, "unknown_authority") + refused(&running, "certificate"), 1);
    running.stop().await.unwrap();
}

/// Scenario: a packet that begins a connection comes from an address that nobody answers at, a hundred times.
/// Guarantees: each is answered with one smaller packet that asks to come again (RFC 9000, section 8.1.2), before there is
/// a handshake, a connection or a line in any count; a node is served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_does_not_answer_costs_one_packet() {
    let world = World::named();
    let running = world.without_store().await;
    let files = world.files_since(&name("demo", "n1"), "raw", SystemTime::now(), LIFE);
    let catcher = UdpSocket::bind("127.0.0.1:0").unwrap();
    catcher.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let endpoint = client(&files);
    let connecting = endpoint.connect(catcher.local_addr().unwrap(), "tapio.invalid").unwrap();
    let (catcher, initial) = tokio::task::spawn_blocking(move || {
        let mut initial = vec![0; 2_048];
        let (length, _from) = catcher.recv_from(&mut initial).unwrap();
        initial.truncate(length);
        (catcher, initial)
    })
    .await
    .unwrap();
    drop(connecting);
    assert!(initial.len() >= 1_200);
    let (packet, to) = (initial.clone(), running.intake_addr);
    let answers = tokio::task::spawn_blocking(move || {
        let mut answer = [0; 2_048];
        let mut ask = || {
            catcher.send_to(&packet, to).unwrap();
            loop {
                match catcher.recv_from(&mut answer) {
                    Ok((length, from)) if from == to => break Ok((answer[0], length)),
                    // The client goes on trying.
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            }
        };
        (0..100).map(|_| ask()).collect::<Vec<_>>()
    });
    for answer in answers.await.unwrap() {
        let (first, length) = answer.expect("an answer");
        // A long header of the type Retry (RFC 9000, section 17.2.5).
        assert_eq!(first & 0xf0, 0xf0, "{first:#x}");
        assert!(length < initial.len() / 2, "{length}");
    }
    assert_eq!(count(&running, "tapio_intake_connections "), 0);
    let mut node = world.node(&running, "n1", 1).await;
    node.offer(&frame(node.source, Position::new(1, 1), &[])).await;
    node.until_received(1).await;
    running.stop().await.unwrap();
}

/// Opens streams until it is not let, and fills each.
async fn fill_streams(connection: &Connection, wanted: usize) -> usize {
    let mut open = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..wanted {
        let opened = tokio::time::timeout(Duration::from_millis(300), connection.open_uni()).await;
        let Ok(Ok(mut stream)) = opened else { break };
        let (sent, done) = tokio::sync::oneshot::channel();
        tasks.spawn(async move {
            // More than any window; it blocks.
            let _blocked =
                tokio::time::timeout(Duration::from_secs(1), stream.write_all(&[7; 16 << 20])).await;
            let _gone = sent.send(stream);
        });
        open.push(done);
    }
    let count = open.len();
    while tasks.join_next().await.is_some() {}
    drop(open);
    count
}

/// Scenario: a node with a session asks for ten thousand streams on its connection and fills those that it gets; another
/// tries more connections than it may have.
/// Guarantees: it gets a bounded number of streams, the process stays within a bound of memory, surplus connections are
/// closed by name, and a third node's frames are received all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_fill_nothing() {
    let world = World::named();
    let running = world.without_store().await;
    let greedy = world.node(&running, "greedy", 1).await;
    let mut sound = world.node(&running, "sound", 1).await;
    let before = resident_bytes();
    let filling = tokio::spawn({
        let connection = greedy.connection().clone();
        async move { fill_streams(&connection, 10_000).await }
    });
    let mut sequence = 0;
    while !filling.is_finished() {
        sequence += 1;
        sound.offer(&frame(sound.source, Position::new(1, sequence), &[])).await;
        sound.until_received(sequence).await;
    }
    let streams = filling.await.unwrap();
    assert!((1..=64).contains(&streams), "{streams} streams");
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown <= GROWTH_BYTES_MAX, "{} MiB more", grown >> 20);

    let many = client(&world.files_since(&name("demo", "many"), "many", SystemTime::now(), LIFE));
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(many.connect(running.intake_addr, "tapio.invalid").unwrap().await.unwrap());
        // The intake has taken its place when it waits for a stream.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ended = end_of(&many, running.intake_addr).await;
    let ConnectionError::ApplicationClosed(close) = &ended else { panic!("{ended}") };
    assert!(close.reason.starts_with(b"too many connections"), "{ended}");
    assert_eq!(refused(&running, "source_full"), 1);
    sound.offer(&frame(sound.source, Position::new(1, sequence + 1), &[])).await;
    sound.until_received(sequence + 1).await;
    running.stop().await.unwrap();
}

/// Scenario: one node sends six times what it may in a second, as messages of a kind that nobody knows, and then sends
/// more frames than it has credit for; another sends a frame from time to time.
/// Guarantees: the first is slowed down to its rate and counted, then refused by name; the other's frames are received at
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_beyond_its_limits_is_slowed_and_refused_alone() {
    const RATE: u64 = 1 << 20;
    let world = World::named();
    let limit = |config: &mut tapio_aggregator::Config| {
        config.intake.source.bytes_per_second_max = RATE;
        config.intake.source.open_frames_max = 4;
    };
    let running = world.without_store_by(limit).await;
    let mut noisy = world.node(&running, "noisy", 1).await;
    let mut sound = world.node(&running, "sound", 1).await;
    let mut unknown = BytesMut::new();
    let body = 1 << 20;
    unknown.put_u32_le(body);
    unknown.put_u8(200);
    unknown.put_bytes(0, body as usize);
    let unknown = unknown.freeze();
    let began = Instant::now();
    let noise = tokio::spawn(async move {
        for _ in 0..6 {
            noisy.send_raw(unknown.clone()).await;
        }
        noisy.offer(&frame(noisy.source, Position::new(1, 1), &[])).await;
        noisy.until_received(1).await;
        noisy
    });
    let mut slowest = Duration::ZERO;
    let mut sequence = 0;
    while !noise.is_finished() {
        sequence += 1;
        let began = Instant::now();
        sound.offer(&frame(sound.source, Position::new(1, sequence), &[])).await;
        sound.until_received(sequence).await;
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut noisy = noise.await.unwrap();
    // A second's worth passes at once.
    assert!(began.elapsed() >= Duration::from_millis(4_500), "{:?}", began.elapsed());
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(count(&running, "tapio_intake_slowed_reads_total ") >= 5);

    let mut all = BytesMut::new();
    for sequence in 2..=60 {
        let next = frame(noisy.source, Position::new(1, sequence), &[]);
        let (prefix, body) = encode(&Message::Frame(next.bytes)).unwrap();
        all.extend_from_slice(&prefix);
        all.extend_from_slice(&body.unwrap());
    }
    noisy.send_raw(all.freeze()).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while count(&running, "tapio_intake_sessions_refused_total{reason=\"credit-exceeded\"}") == 0 {
        assert!(Instant::now() < deadline, "it may send what it likes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sound.offer(&frame(sound.source, Position::new(1, sequence + 1), &[])).await;
    sound.until_received(sequence + 1).await;
    running.stop().await.unwrap();
}
