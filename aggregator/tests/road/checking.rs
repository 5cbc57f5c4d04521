//! What `--check-config` finds without starting anything.

use std::{fs, path::PathBuf};

use tapio_aggregator::{
    config::{Password, RecordConfig, StoreConfig},
    run,
};
use tapio_identity::Name;

use super::support::{DOMAIN, World};

/// Scenario: a configuration that is right; then one whose certificate is another aggregator's, whose dashboard has no key,
/// whose names are no JSON, whose library is missing, whose folders lie below files, and one of whose rules is wrong.
/// Guarantees: the first is found right and nothing was made; of the second every fault is named at once.
#[test]
fn everything_that_is_named_is_looked_at() {
    let world = World::named();
    let mut config = world.config("mode = \"embedded\"");
    let said: Vec<String> = run::check(&config).iter().map(ToString::to_string).collect();
    assert!(said.is_empty() && !config.state.directory.exists(), "{said:?}");

    let other = Name::aggregator(DOMAIN, "default", "demo", "a2").unwrap();
    (config.identity.certificate, config.identity.key) = world.credential_files(&other, "other");
    config.dashboard.tls = Some((config.identity.certificate.clone(), world.path().join("none.key")));
    config.grpc.certificate = world.path().join("none.pem");
    fs::write(world.path().join("identities.json"), "no").unwrap();
    let below = world.path().join("identities.json/below");
    config.state.directory.clone_from(&below);
    config.record = Some(RecordConfig { directory: below, bytes_max: 64 << 20 });
    config.store = StoreConfig::Embedded { library: Some(PathBuf::from("/nowhere/libchdb.so")) };
    let rules = world.path().join("rules");
    fs::create_dir(&rules).unwrap();
    fs::write(rules.join("own.yaml"), "version: 9\n").unwrap();
    config.rules = Some(rules);
    let mut said: Vec<String> = run::check(&config).iter().map(ToString::to_string).collect();
    let missing = Password::File(world.path().join("none.password"));
    config.store = StoreConfig::Server {
        url: "http://127.0.0.1:9".to_owned(),
        user: "tapio".to_owned(),
        password: missing.clone(),
        reader: Some(("reader".to_owned(), missing)),
    };
    let of_passwords = run::check(&config).into_iter().map(|failure| failure.to_string());
    said.extend(of_passwords.filter(|text| text.contains("none.password")));
    let expected = [
        "own.yaml",
        "use the certificate that was issued for this aggregator",
        "none.pem",
        "none.key",
        "identities.json",
        "state.directory: ",
        "record.directory: ",
        "store.library: /nowhere/libchdb.so cannot be read",
        "none.password",
        "none.password",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
