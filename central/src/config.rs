//! Central's configuration: one TOML file, checked as a whole before anything starts.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tapio_daemon::{ConfigError, Problems};

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    central: RawCentral,
    identity: RawIdentity,
    store: RawStore,
    #[serde(default)]
    telemetry: RawTelemetry,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCentral {
    name: String,
    listen: String,
    tenant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    connection: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTelemetry {
    listen: Option<String>,
    log: Option<String>,
}

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Config {
    /// This central's name, for health and logs.
    pub name: String,
    /// The tenant whose data it shows; there is one per central.
    pub tenant: String,
    /// Where the API listens (HTTPS).
    pub listen: SocketAddr,
    /// The certificate chain that the API shows, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The store and the account that may only read it.
    pub store: StoreAccess,
    /// Where metrics and health listen; none turns them off.
    pub telemetry_listen: Option<SocketAddr>,
    /// The log filter.
    pub log: Option<String>,
}

/// Where the store's address and reading account stand: the file that an aggregator writes beside its state, or one
/// written by hand for another server. It is read again when the store cannot be reached, because an embedded
/// engine that was restarted may have other ports.
#[derive(Clone, Debug)]
pub struct StoreAccess {
    /// The file.
    pub connection: PathBuf,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be read, or with all of its faults at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = tapio_daemon::config::load(path)?;
        Self::check(raw)
    }

    fn check(raw: RawConfig) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        problems.require(!raw.central.name.is_empty(), "central.name", "must not be empty");
        let tenant = raw.central.tenant.unwrap_or_else(|| "default".to_owned());
        problems.check("central.tenant", tenant.parse::<tapio_schemas::ids::TenantId>().map(drop));
        let listen = problems.check("central.listen", address(&raw.central.listen));
        for (key, path) in
            [("identity.certificate", &raw.identity.certificate), ("identity.key", &raw.identity.key)]
        {
            problems.require(path.is_file(), key, format!("there is no file {}", path.display()));
        }
        let telemetry = raw.telemetry.listen.as_deref().map(address).transpose();
        let telemetry_listen = problems.check("telemetry.listen", telemetry).flatten();
        let config = Self {
            name: raw.central.name,
            tenant,
            // A fault is noted where there is no address, so that this value is never used.
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            certificate: raw.identity.certificate,
            key: raw.identity.key,
            store: StoreAccess { connection: raw.store.connection },
            telemetry_listen,
            log: raw.telemetry.log,
        };
        Ok(problems.into_result(config)?)
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}; write ADDRESS:PORT, port 0 for any free one"))
}
