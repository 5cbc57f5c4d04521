//! Certificates that are replaced or taken back while the aggregator runs.

use std::{fs, net::UdpSocket, path::PathBuf, time::Duration};

use tapio_aggregator::Running;
use tapio_identity::{
    Credentials, Expected, Name, NameKind, peer,
    quic::{self, Refusal, RefusalReason, Side},
};
use tapio_wire::Position;

use super::support::{DOMAIN, PATIENCE, World, frame};

/// What is asked for is there well within this.
const SOON: Duration = Duration::from_secs(3);

fn name(node: &str) -> Name {
    Name::node(DOMAIN, "default", "demo", node).unwrap()
}

/// The certificate that a node of the world shows.
fn certificate_of(world: &World, node: &str) -> Credentials {
    let folder = world.path().join("certificates");
    let file = |ending: &str| folder.join(format!("{node}.{ending}"));
    Credentials::load(&file("pem"), &file("key"), &file("ca.pem")).unwrap()
}

/// How the aggregator answers a handshake with these credentials.
async fn refusal_of(running: &Running, credentials: &Credentials) -> Option<Refusal> {
    let endpoint = quic::client_endpoint(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let expected = Expected::beside(credentials.name(), &[NameKind::Aggregator]);
    // The client is done before the server has looked at its certificate.
    match quic::connect(&endpoint, credentials, running.intake_addr, &expected).await {
        Err(quic::ConnectError::Refused { refusal, .. }) => Some(refusal),
        Err(error) => panic!("{error}"),
        Ok((connection, _name)) => {
            let closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
            closed.ok().and_then(|closed| Refusal::of(&closed))
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn count(running: &Running, line: &str) -> u64 {
    let metrics = running.registry.encode().unwrap();
    let value = metrics.lines().find_map(|found| found.strip_prefix(line));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

/// An aggregator that follows a list of revocations, and the list's file.
async fn with_list(world: &World) -> (Running, PathBuf) {
    let list = world.path().join("revoked");
    fs::write(&list, "# nobody yet\n").unwrap();
    let path = list.clone();
    let running = world.without_store_by(|config| config.identity.revocations = Some(path)).await;
    (running, list)
}

/// Scenario: three nodes have sessions; the certificate of the first is listed by its number, then the second's name;
/// both come again, the second with a new certificate too.
/// Guarantees: their sessions end at once with a named refusal, their handshakes are refused as revoked, all is counted,
/// and the third's session goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_out_at_once() {
    let world = World::named();
    let (running, list) = with_list(&world).await;
    let mut lost = world.node(&running, "lost", 1).await;
    let mut sold = world.node(&running, "sold", 1).await;
    let mut sound = world.node(&running, "sound", 1).await;
    let lost_one = certificate_of(&world, "lost");
    let sold_one = certificate_of(&world, "sold");
    assert_eq!(refusal_of(&running, &lost_one).await, None);

    let mut text = format!("{}  # stolen\n", lost_one.serial());
    fs::write(&list, &text).unwrap();
    let (code, said) = tokio::time::timeout(SOON, lost.until_refused()).await.expect("at once");
    assert_eq!(code, tapio_wire::message::refusal::PROTOCOL);
    assert!(said.starts_with("certificate-revoked") && said.contains(lost_one.serial()), "{said}");
    text += &format!("{}\n", name("sold"));
    fs::write(&list, &text).unwrap();
    let (_code, said) = tokio::time::timeout(SOON, sold.until_refused()).await.expect("at once");
    assert!(said.starts_with("certificate-revoked") && said.contains("/node/sold"), "{said}");
    assert_eq!(count(&running, "tapio_intake_sessions_refused_total{reason=\"certificate-revoked\"}"), 2);

    let revoked = Some(Refusal { side: Side::Peer, reason: RefusalReason::Revoked });
    let new_one = world.credentials(&name("sold"), "again", PATIENCE);
    for credentials in [&lost_one, &sold_one, &new_one] {
        assert_eq!(refusal_of(&running, credentials).await, revoked);
    }
    assert_eq!(refusal_of(&running, &world.credentials(&name("lost"), "new", PATIENCE)).await, None);
    assert_eq!(count(&running, "tapio_intake_connections_refused_total{reason=\"certificate_revoked\"}"), 3);
    assert_eq!(count(&running, "tapio_identity_revoked_entries "), 2);

    sound.offer(&frame(sound.source, Position::new(1, 1), &[])).await;
    sound.until_received(1).await;
    running.stop().await.unwrap();
}

/// Scenario: the list gets a line that is none, is removed, and is put right; a node that it named comes each time.
/// Guarantees: what is wrong stands in health with its line, the list before stays in force, and health is well again
/// with the list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_list_changes_nothing() {
    let world = World::named();
    let (running, list) = with_list(&world).await;
    let lost = world.credentials(&name("lost"), "lost", PATIENCE);
    let good = format!("{}\n", lost.serial());
    let says = |running: &Running, text: &str| {
        running.health.status().reasons.iter().any(|reason| reason.contains(text))
    };
    fs::write(&list, &good).unwrap();
    until("the list", || count(&running, "tapio_identity_revoked_entries ") == 1).await;
    fs::write(&list, "ab\nwhat is this?\n").unwrap();
    until("the fault of the line", || says(&running, "line 2")).await;
    assert!(refusal_of(&running, &lost).await.is_some());
    fs::remove_file(&list).unwrap();
    until("the fault of the file", || says(&running, "cannot read the list of revoked")).await;
    assert!(refusal_of(&running, &lost).await.is_some());
    fs::write(&list, "").unwrap();
    until("health", || !says(&running, "list of revoked")).await;
    until("the empty list", || count(&running, "tapio_identity_revoked_entries ") == 0).await;
    assert_eq!(refusal_of(&running, &lost).await, None);
    running.stop().await.unwrap();
}

/// Scenario: the aggregator's certificate is replaced on the disk while a node's session is open, first by one of another
/// name.
/// Guarantees: the other name is not taken and told in health; the new certificate is what a node is shown next, and the
/// session that was open goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_without_a_restart() {
    let world = World::named();
    let running = world.without_store().await;
    let mut node = world.node(&running, "n1", 1).await;
    let shown = async || {
        let connection = world.connect_as(&running, &name("n2")).await;
        peer::chain_of(&connection).unwrap()
    };
    let first = shown().await;
    let other = Name::aggregator(DOMAIN, "default", "demo", "a2").unwrap();
    world.credentials(&other, "aggregator", PATIENCE);
    let told = || running.health.status().reasons.iter().any(|reason| reason.contains("/aggregator/a2"));
    until("the other name", told).await;
    assert_eq!(shown().await, first);
    let own = Name::aggregator(DOMAIN, "default", "demo", "a1").unwrap();
    world.credentials(&own, "aggregator", PATIENCE);
    until("the rotation", || count(&running, "tapio_identity_rotations_total ") == 1).await;
    assert!(!told());
    assert_ne!(shown().await, first);
    node.offer(&frame(node.source, Position::new(1, 1), &[])).await;
    node.until_received(1).await;
    running.stop().await.unwrap();
}
