//! The aggregator's configuration: one TOML file, checked as a whole before anything starts.
//!
//! A raw file becomes a [`Config`] that cannot be wrong; all faults are reported at once, each with its key. Must
//! never open anything but the configuration file itself. Called by `main` and by tests that run tiers in-process.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tapio_daemon::{ConfigError, Problems, config};
use tapio_identity::{Instance, Name, TrustDomain};
use tapio_schemas::ids::{ClusterId, TenantId};
use tapio_store::client::{Credentials, Endpoint};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The aggregator's own name, as its certificate must state it.
    pub name: Name,
    /// The cluster whose nodes it accepts.
    pub cluster: ClusterId,
    /// The tenant whose nodes it accepts.
    pub tenant: TenantId,
    /// Its certificate, key, and the authority that it trusts.
    pub identity: IdentityConfig,
    /// Where nodes connect.
    pub intake: IntakeConfig,
    /// Where programs ask for findings and events.
    pub grpc: GrpcConfig,
    /// What it keeps on disk.
    pub state: StateConfig,
    /// Where events and findings go.
    pub store: StoreConfig,
    /// Names of pods, where a file gives them.
    pub identities: Option<PathBuf>,
    /// Rules of the user, beside the built-in ones.
    pub rules: Option<PathBuf>,
    /// Logs, metrics and health.
    pub telemetry: TelemetryConfig,
    /// What is kept in memory for live questions.
    pub recent: RecentConfig,
}

/// Files of the machine identity, PEM.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// The certificate chain, the leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The certificates of the authority.
    pub authority: PathBuf,
}

/// Limits of the intake.
#[derive(Clone, Debug)]
pub struct IntakeConfig {
    /// The UDP address that it listens on.
    pub listen: SocketAddr,
    /// Connections at a time; one more is closed with the reason.
    pub connections_max: usize,
}

/// gRPC for programs, always over TLS.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// The TCP address that it listens on.
    pub listen: SocketAddr,
    /// The certificate chain, the leaf first; clients look for the name that they connect to in it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the authority that must vouch for clients. Where none is named, anybody who can reach the
    /// address may ask.
    pub client_authority: Option<PathBuf>,
    /// Streams of findings and events at a time; one more is refused with the reason.
    pub streams_max: usize,
}

/// The state directory and its limits.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// The directory; made where there is none.
    pub directory: PathBuf,
    /// The spool's limit. When it is reached the intake waits, and agents keep what they have.
    pub spool_bytes_max: u64,
    /// How long stored frames stay in the spool, so that a restarted engine can see them again. At least the
    /// longest window of a rule.
    pub replay_window: Duration,
}

/// Which ClickHouse.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// The embedded engine, run as a child process.
    Embedded {
        /// `libchdb.so`; where none is named, the store's own rules find it.
        library: Option<PathBuf>,
    },
    /// A server.
    Server {
        /// Its HTTP address.
        url: String,
        /// The user that may create and insert.
        user: String,
        /// The file that holds the user's password.
        password_file: Option<PathBuf>,
        /// The account that may only read, which central and people use, and its password's file. Where none is
        /// named they read as the user above.
        reader: Option<(String, Option<PathBuf>)>,
    },
}

/// Logs, metrics and health.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// The loopback address of `/metrics` and `/healthz`.
    pub listen: SocketAddr,
    /// The log filter.
    pub log: String,
}

/// Limits of what is kept in memory.
#[derive(Clone, Copy, Debug)]
pub struct RecentConfig {
    /// Findings kept, the oldest dropped first.
    pub findings_max: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    aggregator: RawAggregator,
    identity: RawIdentity,
    #[serde(default)]
    intake: RawIntake,
    #[serde(default)]
    grpc: RawGrpc,
    state: RawState,
    store: RawStore,
    #[serde(default)]
    context: RawContext,
    #[serde(default)]
    rules: RawRules,
    #[serde(default)]
    telemetry: RawTelemetry,
    #[serde(default)]
    recent: RawRecent,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAggregator {
    name: String,
    cluster: String,
    #[serde(default = "default_tenant")]
    tenant: String,
    trust_domain: String,
}

fn default_tenant() -> String {
    "default".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawIntake {
    listen: String,
    connections_max: usize,
}

impl Default for RawIntake {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7401".to_owned(), connections_max: 1_024 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawGrpc {
    listen: String,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_authority: Option<PathBuf>,
    streams_max: usize,
}

impl Default for RawGrpc {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7403".to_owned(),
            certificate: None,
            key: None,
            client_authority: None,
            streams_max: 64,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawState {
    directory: PathBuf,
    #[serde(default = "default_spool_bytes")]
    spool_bytes_max: u64,
    #[serde(default = "default_replay_secs")]
    replay_window_secs: u64,
}

const fn default_spool_bytes() -> u64 {
    4 << 30
}

const fn default_replay_secs() -> u64 {
    20 * 60
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    mode: String,
    url: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    reader_user: Option<String>,
    reader_password_file: Option<PathBuf>,
    library: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawContext {
    identities: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawRules {
    directory: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTelemetry {
    listen: String,
    log: String,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7402".to_owned(), log: "info".to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRecent {
    findings_max: usize,
}

impl Default for RawRecent {
    fn default() -> Self {
        Self { findings_max: 1_024 }
    }
}

/// The least and most that the spool may use.
const SPOOL_BYTES: std::ops::RangeInclusive<u64> = (64 << 20)..=(1 << 44);
/// Connections that can be asked for.
const CONNECTIONS: std::ops::RangeInclusive<usize> = 1..=65_536;
/// Streams that can be asked for.
const STREAMS: std::ops::RangeInclusive<usize> = 1..=4_096;
/// The shortest and longest replay window, seconds.
const REPLAY_SECS: std::ops::RangeInclusive<u64> = 1..=86_400;
/// Findings in memory that can be asked for.
const FINDINGS: std::ops::RangeInclusive<usize> = 1..=100_000;

impl Config {
    /// Reads and checks the configuration at `path`.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong; all wrong values are named at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::check(config::load(path)?)?)
    }

    /// Reads and checks a configuration from `text`; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Ok(Self::check(config::parse(path, text)?)?)
    }

    fn check(raw: Raw) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let cluster = problems.check("aggregator.cluster", raw.aggregator.cluster.parse::<ClusterId>());
        let tenant = problems.check("aggregator.tenant", raw.aggregator.tenant.parse::<TenantId>());
        let instance = problems.check("aggregator.name", raw.aggregator.name.parse::<Instance>());
        let domain =
            problems.check("aggregator.trust_domain", raw.aggregator.trust_domain.parse::<TrustDomain>());
        let intake = problems.check("intake.listen", socket(&raw.intake.listen));
        problems.require(
            CONNECTIONS.contains(&raw.intake.connections_max),
            "intake.connections_max",
            format_args!("must be {} to {}", CONNECTIONS.start(), CONNECTIONS.end()),
        );
        problems.require(
            SPOOL_BYTES.contains(&raw.state.spool_bytes_max),
            "state.spool_bytes_max",
            format_args!("must be {} to {}", SPOOL_BYTES.start(), SPOOL_BYTES.end()),
        );
        problems.require(
            REPLAY_SECS.contains(&raw.state.replay_window_secs),
            "state.replay_window_secs",
            format_args!("must be {} to {}", REPLAY_SECS.start(), REPLAY_SECS.end()),
        );
        problems.require(!raw.state.directory.as_os_str().is_empty(), "state.directory", "must not be empty");
        let grpc = check_grpc(&mut problems, raw.grpc, &raw.identity);
        let store = check_store(&mut problems, raw.store);
        let telemetry = problems.check("telemetry.listen", socket(&raw.telemetry.listen));
        if let Some(address) = telemetry {
            problems.require(
                address.ip().is_loopback(),
                "telemetry.listen",
                format_args!("{address} is not on loopback, and metrics are served without encryption"),
            );
        }
        problems.require(
            FINDINGS.contains(&raw.recent.findings_max),
            "recent.findings_max",
            format_args!("must be {} to {}", FINDINGS.start(), FINDINGS.end()),
        );
        let (
            Some(aggregator),
            Some(trust_domain),
            Some(cluster),
            Some(tenant),
            Some(intake),
            Some(grpc),
            Some(store),
            Some(telemetry),
        ) = (instance, domain, cluster, tenant, intake, grpc, store, telemetry)
        else {
            return Err(problems);
        };
        problems.into_result(Self {
            name: Name::Aggregator {
                trust_domain,
                tenant: tenant.clone(),
                cluster: cluster.clone(),
                aggregator,
            },
            cluster,
            tenant,
            identity: IdentityConfig {
                certificate: raw.identity.certificate,
                key: raw.identity.key,
                authority: raw.identity.authority,
            },
            intake: IntakeConfig { listen: intake, connections_max: raw.intake.connections_max },
            grpc,
            state: StateConfig {
                directory: raw.state.directory,
                spool_bytes_max: raw.state.spool_bytes_max,
                replay_window: Duration::from_secs(raw.state.replay_window_secs),
            },
            store,
            identities: raw.context.identities,
            rules: raw.rules.directory,
            telemetry: TelemetryConfig { listen: telemetry, log: raw.telemetry.log },
            recent: RecentConfig { findings_max: raw.recent.findings_max },
        })
    }
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_invalid| format!("{text:?} is no address with a port, such as 127.0.0.1:7401"))
}

/// gRPC's certificate is the machine's own where no other is named.
fn check_grpc(problems: &mut Problems, raw: RawGrpc, identity: &RawIdentity) -> Option<GrpcConfig> {
    let listen = problems.check("grpc.listen", socket(&raw.listen));
    problems.require(
        STREAMS.contains(&raw.streams_max),
        "grpc.streams_max",
        format_args!("must be {} to {}", STREAMS.start(), STREAMS.end()),
    );
    let (certificate, key) = match (raw.certificate, raw.key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) => (identity.certificate.clone(), identity.key.clone()),
        (Some(_), None) => {
            problems.add("grpc.key", "is missing: grpc.certificate needs the key that belongs to it");
            return None;
        }
        (None, Some(_)) => {
            problems.add("grpc.certificate", "is missing: grpc.key belongs to some certificate");
            return None;
        }
    };
    let (client_authority, streams_max) = (raw.client_authority, raw.streams_max);
    Some(GrpcConfig { listen: listen?, certificate, key, client_authority, streams_max })
}

fn check_store(problems: &mut Problems, raw: RawStore) -> Option<StoreConfig> {
    match raw.mode.as_str() {
        "embedded" => {
            for (key, given) in [
                ("store.url", raw.url.is_some()),
                ("store.user", raw.user.is_some()),
                ("store.password_file", raw.password_file.is_some()),
                ("store.reader_user", raw.reader_user.is_some()),
                ("store.reader_password_file", raw.reader_password_file.is_some()),
            ] {
                problems.require(!given, key, "means nothing with mode = \"embedded\": remove it");
            }
            Some(StoreConfig::Embedded { library: raw.library })
        }
        "server" => {
            problems.require(
                raw.library.is_none(),
                "store.library",
                "means nothing with mode = \"server\": remove it",
            );
            let Some(url) = raw.url else {
                problems.add("store.url", "is missing: mode = \"server\" needs the server's HTTP address");
                return None;
            };
            let user = raw.user.unwrap_or_else(|| "default".to_owned());
            // Only the URL's shape is looked at here; the password's file is read at the start.
            let shape = Endpoint::new(&url, Credentials { user: user.clone(), password: String::new() });
            problems.check("store.url", shape);
            problems.require(
                raw.reader_user.is_some() || raw.reader_password_file.is_none(),
                "store.reader_user",
                "is missing: store.reader_password_file is the password of somebody",
            );
            let reader = raw.reader_user.map(|user| (user, raw.reader_password_file));
            Some(StoreConfig::Server { url, user, password_file: raw.password_file, reader })
        }
        other => {
            problems.add("store.mode", format_args!("{other:?} must be \"embedded\" or \"server\""));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [aggregator]
        name = "a1"
        cluster = "demo"
        trust_domain = "tapio.test"
        [identity]
        certificate = "c.pem"
        key = "k.pem"
        authority = "ca.pem"
        [state]
        directory = "/var/lib/tapio"
        [store]
        mode = "embedded"
    "#;

    /// Scenario: the shortest file that works.
    /// Guarantees: what is not said has a stated default; the tenant is `default`.
    #[test]
    fn the_shortest_file_is_enough() {
        let config = Config::parse(Path::new("a.toml"), GOOD).unwrap();
        assert_eq!(config.tenant.as_str(), "default");
        assert_eq!((config.intake.listen.port(), config.grpc.listen.port()), (7401, 7403));
        assert_eq!(config.grpc.certificate, config.identity.certificate);
        assert!(matches!(config.store, StoreConfig::Embedded { library: None }));
    }

    /// Scenario: a file with nine wrong values and one with an unknown key.
    /// Guarantees: every wrong value is named with its key in one answer; unknown keys are refused.
    #[test]
    fn all_faults_are_named_at_once() {
        let wrong = GOOD
            .replace("\"demo\"", "\"Demo\"")
            .replace("\"a1\"", "\"a 1\"")
            .replace("\"tapio.test\"", "\"Tapio Test\"")
            .replace("\"embedded\"", "\"server\"")
            + "[intake]\nlisten = \"here\"\n[grpc]\nlisten = \"7403\"\nkey = \"k\"\nstreams_max = 0\n[telemetry]\nlisten = \"0.0.0.0:1\"\n";
        let error = Config::parse(Path::new("a.toml"), &wrong).unwrap_err().to_string();
        for key in [
            "aggregator.cluster",
            "aggregator.name",
            "aggregator.trust_domain",
            "store.url",
            "intake.listen",
            "grpc.listen",
            "grpc.certificate",
            "grpc.streams_max",
            "telemetry.listen",
        ] {
            assert!(error.contains(key), "{key} in {error}");
        }
        let unknown = GOOD.replace("mode =", "modus =");
        assert!(Config::parse(Path::new("a.toml"), &unknown).unwrap_err().to_string().contains("modus"));
    }
}
