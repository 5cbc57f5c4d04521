//! The agent's configuration: its keys, and what they make of a node's agent; all faults are named at once.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tapio_daemon::{
    ConfigError, Problems,
    config::{Key, Settings, Tier},
    telemetry, tier,
};
use tapio_identity::{
    CredentialFiles,
    enrolment::{Enrolment, ServerName, Stored},
};
use tapio_kernel_abi::ProbeId;
use tapio_schemas::ids::{ClusterId, NodeId, TenantId};

use crate::shelf::QUOTA_BYTES_MIN;

/// What an agent can be told.
pub static TIER: Tier = Tier {
    program: "tapio-edge-agent",
    about: "Observes one node and ships what matters to its aggregator.",
    keys: &[
        Key::text("node.name", "The node's name, as its certificate states it."),
        Key::text("node.cluster", "Its cluster, as its certificate states it."),
        Key::text("node.tenant", "Its tenant.").or("default"),
        Key::path("identity.certificate", "The node's certificate chain, PEM, the leaf first. Read again when it changes.")
            .optional(),
        Key::path("identity.key", "Its private key, PEM.").optional(),
        Key::path(
            "identity.authority",
            "The certificates of the authority that vouches for aggregators, PEM.",
        ),
        Key::text(
            "identity.enrol_address",
            "Where the node gets its certificate and renews it, `host:port`: `[enrolment] listen` of an aggregator. It takes \
             the place of `identity.certificate` and `identity.key`; both are then kept in `state.directory`.",
        )
        .optional(),
        Key::text("identity.enrol_server_name", "The name in that server's certificate, where it is not the host.")
            .optional(),
        Key::path(
            "identity.enrol_authority",
            "The certificates of the authority that vouches for that server, PEM; where none is named, \
             `identity.authority`.",
        )
        .optional(),
        Key::path("identity.enrol_token", "The file of the token that proves which node this is; read for each request.")
            .optional(),
        Key::choice(
            "identity.enrol_proof",
            &["service-account", "token"],
            "What that token is: that of a Kubernetes service account (a projected volume with the audience of the \
             enrolment), or one from the aggregator's file of tokens.",
        )
        .or("service-account"),
        Key::list(
            "uplink.aggregators",
            1,
            16,
            "Addresses of aggregators, `127.0.0.1:4433`; the first that answers is used.",
        ),
        Key::path("state.directory", "Where the agent keeps what must survive it."),
        Key::choice(
            "capture.scope",
            &["containers", "all"],
            "Whose events leave the node: those of containers and what host processes do to them, or all.",
        )
        .or("containers"),
        Key::integer(
            "capture.ring_bytes",
            64 << 10,
            256 << 20,
            "Bytes of the ring between kernel and agent.",
        )
        .or("4194304"),
        Key::list("capture.disabled_probes", 0, 64, "Names of probes that are not loaded.").or(""),
        Key::text(
            "capture.pins",
            "The folder of a bpffs in which probes, counters and ring outlive the agent, or `none`: then they end with it.",
        )
        .or("/sys/fs/bpf/tapio"),
        Key::choice(
            "capture.on_exit",
            &["keep", "remove"],
            "What becomes of them when the agent is asked to end: they go on for the next agent, which takes over what \
             they recorded (`tapio-edge-agent uninstall` removes them), or are removed.",
        )
        .or("keep"),
        Key::integer(
            "memory.interval_millis",
            50,
            60_000,
            "Milliseconds between two samples of containers' memory.",
        )
        .or("500"),
        Key::integer(
            "spool.quota_bytes",
            QUOTA_BYTES_MIN,
            1 << 44,
            "Bytes that frames may take on the disk until they are stored.",
        )
        .or("268435456"),
        Key::text("telemetry.listen", "The loopback address of `/metrics` and `/healthz`; port 0 takes any.")
            .or("127.0.0.1:0"),
        tier::LOG_KEY,
    ],
};

/// Whose events leave the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of containers, and what the host's processes do to them.
    Containers,
    /// Those of all processes.
    All,
}

/// Where the node's certificate comes from.
#[derive(Clone, Debug)]
pub enum IdentityConfig {
    /// Files that somebody else writes.
    Files(CredentialFiles),
    /// It is asked for, and kept in the state directory.
    Enrol(EnrolConfig),
}

/// How the node asks for its certificate.
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    /// Who is asked.
    pub server: Enrolment,
    /// The file of the token.
    pub token: PathBuf,
    /// Whether the token is that of a Kubernetes service account.
    pub is_service_account: bool,
    /// Where key and certificate are kept.
    pub stored: Stored,
}

impl IdentityConfig {
    /// The files that credentials are loaded of.
    #[must_use]
    pub fn files(&self) -> CredentialFiles {
        match self {
            Self::Files(files) => files.clone(),
            Self::Enrol(enrol) => enrol.stored.files(),
        }
    }
}

/// What becomes of pinned probes when the agent is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// They go on, for the next agent.
    Keep,
    /// They are removed.
    Remove,
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
    /// Where its certificate comes from.
    pub identity: IdentityConfig,
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
    /// The folder of a bpffs in which probes outlive the agent.
    pub pins: Option<PathBuf>,
    /// What becomes of them when the agent is asked to end.
    pub on_exit: OnExit,
    /// How often memory is sampled.
    pub memory_interval: Duration,
    /// The most bytes that frames may take on the disk.
    pub spool_quota_bytes: u64,
    /// Where metrics and health are served, on loopback.
    pub telemetry_listen: SocketAddr,
}

impl Config {
    /// Reads and checks the file at `path` alone.
    ///
    /// # Errors
    /// With everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::check(Settings::load(&TIER, path)?)?)
    }

    /// Makes a configuration of what the process was told.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn check(mut settings: Settings) -> Result<Self, Problems> {
        let node = settings.parse_text("node.name");
        let cluster = settings.parse_text("node.cluster");
        let tenant = settings.parse_text("node.tenant");
        let aggregators = settings.read_list("uplink.aggregators", |text| {
            text.parse::<SocketAddr>()
                .map_err(|_invalid| format!("{text:?} is no address, expected \"127.0.0.1:4433\""))
        });
        let scope = settings.text("capture.scope").map(|word| match word.as_str() {
            "all" => Scope::All,
            _ => Scope::Containers,
        });
        let disabled_probes = settings.read_list("capture.disabled_probes", |name| {
            let names = || ProbeId::ALL.map(ProbeId::name).join(", ");
            ProbeId::ALL
                .into_iter()
                .find(|probe| probe.name() == name)
                .ok_or_else(|| format!("there is no probe {name:?}, there are {}", names()))
        });
        let identity = check_identity(&mut settings);
        let pins = settings.read("capture.pins", |text| match (text, Path::new(text)) {
            ("none", _) => Ok(None),
            (_, path) if path.is_absolute() => Ok(Some(path.to_owned())),
            _ => Err(format!("{text:?} is neither the absolute path of a folder nor \"none\"")),
        });
        let on_exit = settings.text("capture.on_exit").map(|word| match word.as_str() {
            "remove" => OnExit::Remove,
            _ => OnExit::Keep,
        });
        let telemetry_listen = settings.read("telemetry.listen", telemetry::loopback);
        settings.read(tier::LOG_KEY.path, telemetry::check_filter);
        let (
            Some(node),
            Some(cluster),
            Some(tenant),
            Some(identity),
            Some(state_directory),
            Some(scope),
            Some(ring_bytes),
            Some(pins),
            Some(on_exit),
            Some(interval_millis),
            Some(spool_quota_bytes),
            Some(telemetry_listen),
        ) = (
            node,
            cluster,
            tenant,
            identity,
            settings.path("state.directory"),
            scope,
            settings.integer("capture.ring_bytes"),
            pins,
            on_exit,
            settings.integer("memory.interval_millis"),
            settings.integer("spool.quota_bytes"),
            telemetry_listen,
        )
        else {
            return settings.finish(None);
        };
        settings.finish(Some(Self {
            node,
            cluster,
            tenant,
            identity,
            aggregators,
            state_directory,
            scope,
            ring_bytes,
            disabled_probes,
            pins,
            on_exit,
            memory_interval: Duration::from_millis(interval_millis),
            spool_quota_bytes,
            telemetry_listen,
        }))
    }
}

/// Keys that say something of enrolment only.
const ENROL_KEYS: [&str; 3] =
    ["identity.enrol_server_name", "identity.enrol_authority", "identity.enrol_token"];

fn check_identity(settings: &mut Settings) -> Option<IdentityConfig> {
    let (certificate, key) = (settings.path("identity.certificate"), settings.path("identity.key"));
    let authority = settings.path("identity.authority");
    let server_name = settings.text("identity.enrol_server_name");
    let enrol_authority = settings.path("identity.enrol_authority");
    let token = settings.path("identity.enrol_token");
    let is_service_account =
        settings.text("identity.enrol_proof").is_some_and(|word| word == "service-account");
    let directory = settings.path("state.directory");
    if settings.text("identity.enrol_address").is_none() {
        for (path, file) in [("identity.certificate", &certificate), ("identity.key", &key)] {
            settings.require(
                file.is_some(),
                path,
                "is missing, and so is identity.enrol_address: name one of them",
            );
        }
        for path in ENROL_KEYS {
            settings.require(!settings.is_given(path), path, "means nothing without identity.enrol_address");
        }
        let (certificate, key, authority) = (certificate?, key?, authority?);
        return Some(IdentityConfig::Files(CredentialFiles { certificate, key, authority }));
    }
    for (path, file) in [("identity.certificate", &certificate), ("identity.key", &key)] {
        settings.require(
            file.is_none(),
            path,
            "means nothing with identity.enrol_address: remove one of them",
        );
    }
    settings.require(token.is_some(), "identity.enrol_token", "is missing: it proves which node asks");
    let server = settings.read("identity.enrol_address", |address| {
        let fault = || format!("{address:?} is no `host:port`, such as aggregator.tapio.svc:7405");
        let (host, port) = address.rsplit_once(':').ok_or_else(fault)?;
        port.parse::<u16>().map_err(|_invalid| fault())?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = server_name.clone().unwrap_or_else(|| host.to_owned());
        let name = ServerName::try_from(name).map_err(|_invalid| fault())?;
        Ok::<_, String>((address.to_owned(), name))
    });
    let ((address, server_name), authority) = (server?, authority?);
    let enrol_authority = enrol_authority.unwrap_or_else(|| authority.clone());
    Some(IdentityConfig::Enrol(EnrolConfig {
        server: Enrolment { address, server_name, authority: enrol_authority },
        token: token?,
        is_service_account,
        stored: Stored::new(directory?.join("identity.pem"), authority),
    }))
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

    fn parse(text: &str) -> Result<Config, Problems> {
        Config::check(Settings::parse(&TIER, Path::new("a.toml"), text))
    }

    /// Scenario: the keys of an agent.
    /// Guarantees: each has its own variable and option, a default that it can have, and is used.
    #[test]
    fn every_key_is_sound_and_used() {
        assert_eq!(TIER.faults(), Vec::<String>::new());
        let settings = Settings::parse(&TIER, Path::new("a.toml"), GOOD);
        let asked = settings.clone();
        Config::check(settings).unwrap();
        assert_eq!(asked.unasked(), Vec::<&str>::new());
    }

    /// Scenario: the smallest configuration, and one with a fault in each section.
    /// Guarantees: the first is complete by its defaults; of the second every fault is named with its key.
    #[test]
    fn all_faults_are_named_at_once() {
        let config = parse(GOOD).unwrap();
        assert_eq!((config.tenant.as_str(), config.scope), ("default", Scope::Containers));
        assert_eq!(config.memory_interval, Duration::from_millis(500));
        let bad = GOOD.replace("node-1", "Node 1").replace("127.0.0.1:4433", "aggregator")
            + "[capture]\nring_bytes = 1\ndisabled_probes = [\"forks\"]\npins = \"pins\"\n[memory]\ninterval_millis = 0\n\
               [spool]\nquota_bytes = 1\n[telemetry]\nlisten = \"0.0.0.0:1\"\n";
        let error = parse(&bad).unwrap_err().to_string();
        for key in [
            "node.name",
            "uplink.aggregators[0]",
            "capture.ring_bytes",
            "capture.disabled_probes[0]",
            "capture.pins",
            "memory.interval_millis",
            "spool.quota_bytes",
            "telemetry.listen",
        ] {
            assert!(error.contains(key), "{key} is not named in: {error}");
        }
        let enrol = GOOD.replace("certificate = \"node.pem\"", "enrol_address = \"aggregator\"");
        let error = parse(&enrol).unwrap_err().to_string();
        for key in ["identity.key", "identity.enrol_token", "identity.enrol_address"] {
            assert!(error.contains(key), "{key} is not named in: {error}");
        }
        let enrol =
            enrol.replace("key = \"node.key\"", "enrol_token = \"t\"").replace("\"aggregator\"", "\"a:1\"");
        let Ok(Config { identity: IdentityConfig::Enrol(enrol), .. }) = parse(&enrol) else {
            panic!("{enrol}")
        };
        assert!(enrol.is_service_account && enrol.stored.files().certificate.ends_with("identity.pem"));
        let unknown = GOOD.replace("[state]", "[state]\nfolder = 1");
        assert!(parse(&unknown).unwrap_err().to_string().contains("folder"));
    }
}
