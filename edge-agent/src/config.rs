//! The agent's configuration: one TOML file, checked as a whole, all faults named at once with their keys.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tapio_daemon::{ConfigError, Problems};
use tapio_kernel_abi::ProbeId;
use tapio_schemas::ids::{ClusterId, NodeId, TenantId};

use crate::shelf::QUOTA_BYTES_MIN;

/// The bounds of the ring buffer.
const RING_BYTES: (u32, u32) = (64 << 10, 256 << 20);
/// The bounds of the sampling interval.
const INTERVAL_MILLIS: (u64, u64) = (50, 60_000);
/// Aggregators that may be named.
const AGGREGATORS_MAX: usize = 16;

/// Whose events leave the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Those of containers, and what the host's processes do to them.
    #[default]
    Containers,
    /// Those of all processes.
    All,
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name; equal to the one in its certificate.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// The file of the authority that vouches for aggregators.
    pub authority: PathBuf,
    /// Where frames go; the first that answers.
    pub aggregators: Vec<SocketAddr>,
    /// Where the agent keeps what must survive it.
    pub state_directory: PathBuf,
    /// Whose events leave the node.
    pub scope: Scope,
    /// Bytes of the ring between kernel and agent.
    pub ring_bytes: u32,
    /// Probes that are not loaded.
    pub disabled_probes: Vec<ProbeId>,
    /// How often memory is sampled.
    pub memory_interval: Duration,
    /// The most bytes that frames may take on the disk.
    pub spool_quota_bytes: u64,
    /// Where metrics and health are served, on loopback.
    pub telemetry_listen: SocketAddr,
    /// What is logged.
    pub log: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    node: RawNode,
    identity: RawIdentity,
    uplink: RawUplink,
    state: RawState,
    #[serde(default)]
    capture: RawCapture,
    #[serde(default)]
    memory: RawMemory,
    #[serde(default)]
    spool: RawSpool,
    #[serde(default)]
    telemetry: RawTelemetry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: String,
    cluster: String,
    #[serde(default = "default_tenant")]
    tenant: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUplink {
    aggregators: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawState {
    directory: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCapture {
    scope: Scope,
    ring_bytes: u32,
    disabled_probes: Vec<String>,
}

impl Default for RawCapture {
    fn default() -> Self {
        Self { scope: Scope::default(), ring_bytes: 4 << 20, disabled_probes: Vec::new() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMemory {
    interval_millis: u64,
}

impl Default for RawMemory {
    fn default() -> Self {
        Self { interval_millis: 500 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSpool {
    quota_bytes: u64,
}

impl Default for RawSpool {
    fn default() -> Self {
        Self { quota_bytes: 256 << 20 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTelemetry {
    listen: String,
    log: String,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        Self { listen: "127.0.0.1:0".to_owned(), log: "info".to_owned() }
    }
}

fn default_tenant() -> String {
    "default".to_owned()
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// With everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::check(tapio_daemon::config::load(path)?)?)
    }

    /// Checks a configuration given as text; `path` is only named in errors.
    ///
    /// # Errors
    /// With everything that is wrong in it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Ok(Self::check(tapio_daemon::config::parse(path, text)?)?)
    }

    fn check(raw: Raw) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let node = problems.check("node.name", raw.node.name.parse());
        let cluster = problems.check("node.cluster", raw.node.cluster.parse());
        let tenant = problems.check("node.tenant", raw.node.tenant.parse());
        let count = raw.uplink.aggregators.len();
        problems.require(
            (1..=AGGREGATORS_MAX).contains(&count),
            "uplink.aggregators",
            format!("must name 1 to {AGGREGATORS_MAX} addresses, has {count}"),
        );
        let mut aggregators = Vec::new();
        for (index, text) in raw.uplink.aggregators.iter().enumerate() {
            let address = text
                .parse::<SocketAddr>()
                .map_err(|_err| format!("{text:?} is no address, expected \"127.0.0.1:4433\""));
            aggregators.extend(problems.check(&format!("uplink.aggregators[{index}]"), address));
        }
        let (least, most) = RING_BYTES;
        problems.require(
            (least..=most).contains(&raw.capture.ring_bytes),
            "capture.ring_bytes",
            format!("must be {least} to {most}"),
        );
        let mut disabled_probes = Vec::new();
        for (index, name) in raw.capture.disabled_probes.iter().enumerate() {
            let known = ProbeId::ALL.into_iter().find(|probe| probe.name() == name);
            let names = || ProbeId::ALL.map(ProbeId::name).join(", ");
            let probe = known.ok_or_else(|| format!("there is no probe {name:?}, there are {}", names()));
            disabled_probes.extend(problems.check(&format!("capture.disabled_probes[{index}]"), probe));
        }
        let (least, most) = INTERVAL_MILLIS;
        problems.require(
            (least..=most).contains(&raw.memory.interval_millis),
            "memory.interval_millis",
            format!("must be {least} to {most}"),
        );
        problems.require(
            raw.spool.quota_bytes >= QUOTA_BYTES_MIN,
            "spool.quota_bytes",
            format!("must be at least {QUOTA_BYTES_MIN}"),
        );
        let listen = raw.telemetry.listen.parse::<SocketAddr>().map_err(|error| error.to_string());
        let listen = listen.and_then(|listen| match listen.ip().is_loopback() {
            true => Ok(listen),
            false => Err(format!("{listen} is not on loopback, and what is served is not encrypted")),
        });
        let listen = problems.check("telemetry.listen", listen);
        let (Some(node), Some(cluster), Some(tenant), Some(telemetry_listen)) =
            (node, cluster, tenant, listen)
        else {
            return Err(problems);
        };
        problems.into_result(Self {
            node,
            cluster,
            tenant,
            certificate: raw.identity.certificate,
            key: raw.identity.key,
            authority: raw.identity.authority,
            aggregators,
            state_directory: raw.state.directory,
            scope: raw.capture.scope,
            ring_bytes: raw.capture.ring_bytes,
            disabled_probes,
            memory_interval: Duration::from_millis(raw.memory.interval_millis),
            spool_quota_bytes: raw.spool.quota_bytes,
            telemetry_listen,
            log: raw.telemetry.log,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [node]
        name = "node-1"
        cluster = "demo"
        [identity]
        certificate = "node.pem"
        key = "node.key"
        authority = "ca.pem"
        [uplink]
        aggregators = ["127.0.0.1:4433"]
        [state]
        directory = "state"
    "#;

    /// Scenario: the smallest configuration, and one with a fault in each section.
    /// Guarantees: the first is complete by its defaults; of the second every fault is named with its key.
    #[test]
    fn all_faults_are_named_at_once() {
        let config = Config::parse(Path::new("a.toml"), GOOD).unwrap();
        assert_eq!((config.tenant.as_str(), config.scope), ("default", Scope::Containers));
        assert_eq!(config.memory_interval, Duration::from_millis(500));
        let bad = GOOD.replace("node-1", "Node 1").replace("127.0.0.1:4433", "aggregator")
            + "[capture]\nring_bytes = 1\ndisabled_probes = [\"forks\"]\n[memory]\ninterval_millis = 0\n\
               [spool]\nquota_bytes = 1\n[telemetry]\nlisten = \"0.0.0.0:1\"\n";
        let error = Config::parse(Path::new("a.toml"), &bad).unwrap_err().to_string();
        for key in [
            "node.name",
            "uplink.aggregators[0]",
            "capture.ring_bytes",
            "capture.disabled_probes[0]",
            "memory.interval_millis",
            "spool.quota_bytes",
            "telemetry.listen",
        ] {
            assert!(error.contains(key), "{key} is not named in: {error}");
        }
        let unknown = GOOD.replace("[state]", "[state]\nfolder = 1");
        assert!(Config::parse(Path::new("a.toml"), &unknown).unwrap_err().to_string().contains("folder"));
    }
}
