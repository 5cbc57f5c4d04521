//! Loading and issuing files.

use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use tapio_identity::{Credentials, CredentialsError, PeerError};

use crate::world::{HOUR, World, late_node};

/// Scenario: files as they are issued, and each of them replaced by what people put there by mistake.
/// Guarantees: good ones are loaded; the others are refused with the file that is wrong.
#[test]
fn wrong_files_are_named() {
    let world = World::new();
    let name = World::node_name("default", "demo", "n1");
    let files = world.files(&name);
    let credentials = World::load(&files).expect("credentials");
    assert_eq!(credentials.name(), &name);
    assert!(credentials.key_is_private());
    let remaining = credentials.remaining(SystemTime::now()).expect("good");
    assert!(remaining <= HOUR && remaining > HOUR / 2, "{remaining:?}");

    let other = world.files(&World::node_name("default", "demo", "n2"));
    let stranger = World::new();
    let strange = stranger.files(&name);
    let late = late_node(&world, "n1");
    let load = |certificate, key, authority| Credentials::load(certificate, key, authority);
    let missing = world.dir.path().join("missing.pem");

    let error = load(&missing, &files.key, &files.authority).expect_err("missing").to_string();
    assert!(error.contains("cannot read the certificate") && error.contains("missing.pem"), "{error}");
    let error = load(&files.key, &files.key, &files.authority).expect_err("a key").to_string();
    assert!(error.contains("holds no certificate"), "{error}");
    let error =
        load(&files.certificate, &files.certificate, &files.authority).expect_err("no key").to_string();
    assert!(error.contains("the private key") && error.contains("cannot be used"), "{error}");
    let error = load(&files.certificate, &other.key, &files.authority).expect_err("another key");
    assert!(matches!(error, CredentialsError::KeyMismatch { .. }), "{error}");
    let error = load(&files.certificate, &files.key, &strange.authority).expect_err("another authority");
    assert!(matches!(error, CredentialsError::NotIssued { .. }), "{error}");
    let error = World::load(&late).expect_err("expired");
    assert!(matches!(error, CredentialsError::Expired { .. }), "{error}");
    assert!(error.to_string().contains("expired 2 h ago"), "{error}");
    let error = World::load(&world.with_uris(&[])).expect_err("no name");
    assert!(matches!(error, CredentialsError::Name { source: PeerError::NoSpiffeUri, .. }), "{error}");
}

/// Scenario: what the issuer writes, over what is there already.
/// Guarantees: every file is for its owner only, nothing half made is left, and a key that others can
/// read is noticed.
#[test]
fn issued_files_are_private() {
    let world = World::new();
    let name = World::node_name("default", "demo", "n1");
    world.files(&name);
    let files = world.files(&name);
    for path in [&files.certificate, &files.key, &files.authority] {
        let mode = std::fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    assert_eq!(std::fs::read_dir(world.dir.path()).expect("listed").count(), 3);
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).expect("set");
    assert!(!World::load(&files).expect("credentials").key_is_private());
}
