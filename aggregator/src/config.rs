//! The aggregator's configuration: its keys, and what they make of a process, checked as a whole before anything starts.
//!
//! What the process was told becomes a [`Config`] that cannot be wrong; all faults are reported at once, each with its
//! key. Must never open anything but the configuration file itself. Called by `main` and by tests that run tiers
//! in-process.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::pki_types::ServerName;
use tapio_daemon::{
    ConfigError, Problems,
    config::{Key, Settings, Tier},
    telemetry, tier,
};
use tapio_identity::{Instance, Name, TrustDomain};
use tapio_schemas::ids::{ClusterId, TenantId};
use tapio_store::client::{Credentials, Endpoint};

/// What an aggregator can be told.
pub static TIER: Tier = Tier {
    program: "tapio-aggregator",
    about: "Accepts the frames of a cluster's nodes, correlates them, and writes ClickHouse.",
    keys: &[
        Key::text("aggregator.name", "Its own name within the cluster, as its certificate states it."),
        Key::text("aggregator.cluster", "The cluster whose nodes it accepts."),
        Key::text("aggregator.tenant", "The tenant whose nodes it accepts.").or("default"),
        Key::text("aggregator.trust_domain", "The trust domain of all names, as in `spiffe://<trust domain>/...`."),
        Key::path("identity.certificate", "Its certificate chain, PEM, the leaf first."),
        Key::path("identity.key", "Its private key, PEM."),
        Key::path("identity.authority", "The certificates of the authority that vouches for nodes, PEM."),
        Key::path(
            "identity.revocations",
            "A list of certificates that are taken back before their time: in each line a serial number in hexadecimal \
             digits, or a name, `spiffe://...`, which takes back all certificates of that machine. Read again when it \
             changes; sessions that it names end at once.",
        )
        .optional(),
        Key::text("intake.listen", "The UDP address where nodes connect.").or("127.0.0.1:7401"),
        Key::integer(
            "intake.connections_max",
            1,
            65_536,
            "Connections at a time; one more is closed with the reason.",
        )
        .or("1024"),
        Key::integer(
            "intake.source_bytes_per_second_max",
            1 << 20,
            1 << 30,
            "Bytes per second that one source may send; one that sends more is slowed down, and counted.",
        )
        .or("33554432"),
        Key::integer(
            "intake.source_open_frames_max",
            2,
            4_096,
            "Frames that one source may have under way or not yet durable here, as credit; a session that sends more is \
             ended with the reason.",
        )
        .or("64"),
        Key::integer(
            "intake.source_open_bytes_max",
            5 << 20,
            256 << 20,
            "Bytes of these frames.",
        )
        .or("8388608"),
        Key::text(
            "enrolment.listen",
            "The TCP address where nodes get their certificates. Without it there is no enrolment here.",
        )
        .optional(),
        Key::path("enrolment.certificate", "The certificate chain that enrolment shows to nodes, PEM; it has a DNS name or an address.")
            .optional(),
        Key::path("enrolment.key", "Its private key, PEM.").optional(),
        Key::path(
            "enrolment.authority_certificate",
            "The certificate of the authority that issues nodes' certificates, PEM, followed by those between it and one of \
             `identity.authority`.",
        )
        .optional(),
        Key::path("enrolment.authority_key", "Its private key, PEM (PKCS#8). Whoever reads it can be any node.").optional(),
        Key::integer(
            "enrolment.lifetime_secs",
            10,
            31_536_000,
            "Seconds for which a certificate is good; nodes renew it after two thirds of them.",
        )
        .or("86400"),
        Key::text(
            "enrolment.audience",
            "The audience of service accounts' tokens that buy a certificate; with it, Kubernetes is asked whose a token is \
             (`TokenReview`).",
        )
        .optional(),
        Key::text("enrolment.service_account", "The service account of the agents' pods, `namespace/name`.").optional(),
        Key::text("enrolment.kubernetes_url", "The API server.").or("https://kubernetes.default.svc:443"),
        Key::path("enrolment.kubernetes_authority", "The certificates of the authority that vouches for it, PEM.")
            .or("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"),
        Key::path(
            "enrolment.kubernetes_token",
            "The token with which the API server is asked; its account may create `tokenreviews`, and needs no other right.",
        )
        .or("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        Key::path(
            "enrolment.tokens",
            "A file of tokens for hosts outside Kubernetes: in each line the SHA-256 of a token, the node that it is for, and \
             perhaps `keys=N` (for how many keys it is good, one where nothing is said) and `until=<RFC 3339>`. Nodes that it \
             names renew their certificate with the one that they have.",
        )
        .optional(),
        Key::text("grpc.listen", "The TCP address of gRPC (TLS) for programs that ask for findings and events.")
            .or("127.0.0.1:7403"),
        Key::path("grpc.certificate", "The certificate chain that gRPC shows, PEM; where none is named, that of `[identity]`.")
            .optional(),
        Key::path("grpc.key", "Its private key, PEM.").optional(),
        Key::path(
            "grpc.client_authority",
            "The certificates of the authority that must vouch for gRPC's clients, PEM; without it, anybody who can reach \
             the address may ask.",
        )
        .optional(),
        Key::choice(
            "grpc.machines_may_read",
            &["no", "yes"],
            "Whether clients that show the certificate of a node or an aggregator are answered too, where \
             `grpc.client_authority` is named. `no` keeps what all nodes tell from whoever holds the key of one.",
        )
        .or("no"),
        Key::integer(
            "grpc.streams_max",
            1,
            4_096,
            "Streams of findings and events at a time; one more is refused with the reason.",
        )
        .or("64"),
        Key::text(
            "dashboard.listen",
            "The TCP address of the dashboard for people. Plain HTTP on loopback; any other address needs a certificate.",
        )
        .or("127.0.0.1:7404"),
        Key::path("dashboard.certificate", "The certificate chain that the dashboard shows, PEM; with it, HTTPS.")
            .optional(),
        Key::path("dashboard.key", "Its private key, PEM.").optional(),
        Key::integer(
            "dashboard.streams_max",
            1,
            4_096,
            "Pages that get updates at a time; one more is refused with the reason.",
        )
        .or("64"),
        Key::path("state.directory", "What must survive a restart; made where there is none."),
        Key::integer(
            "state.spool_bytes_max",
            64 << 20,
            1 << 44,
            "Bytes of the spool. When it is full the intake waits, and agents keep what they have.",
        )
        .or("4294967296"),
        Key::integer(
            "state.replay_window_secs",
            1,
            86_400,
            "Seconds for which stored frames stay in the spool, so that a restarted engine can see them again; raised \
             to the longest window of a rule.",
        )
        .or("1200"),
        Key::choice(
            "store.mode",
            &["embedded", "server"],
            "Which ClickHouse: the embedded engine, a child process, or a server.",
        ),
        Key::path("store.library", "`embedded`: the engine's `libchdb.so`, where it is not in its usual places.").optional(),
        Key::text("store.url", "`server`: its HTTP address, `http://host:8123`.").optional(),
        Key::text("store.user", "`server`: the account that may create and insert (where none is named, `default`).")
            .optional(),
        Key::secret("store.password", "`server`: that account's password; a file or a variable is a better place than an option."),
        Key::path("store.password_file", "`server`: the file that holds that account's password.").optional(),
        Key::text("store.reader_user", "`server`: the account that may only read, for central and people.").optional(),
        Key::secret("store.reader_password", "`server`: that account's password."),
        Key::path("store.reader_password_file", "`server`: the file that holds that account's password.").optional(),
        Key::path("context.identities", "A file of pods' names (JSON); read again when it changes.").optional(),
        Key::path(
            "record.directory",
            "A folder for recordings of what the engine takes, for `tapio replay`; made where there is none. They hold \
             the events of the cluster: whoever may read it sees them.",
        )
        .optional()
        .or_flag("record"),
        Key::integer(
            "record.bytes_max",
            16 << 20,
            1 << 44,
            "Bytes that recordings may use in that folder; the oldest files are removed.",
        )
        .or("1073741824"),
        Key::path("rules.directory", "A folder of rules of your own, beside the built-in ones.").optional(),
        Key::text("telemetry.listen", "The loopback address of `/metrics` and `/healthz`; port 0 takes any.")
            .or("127.0.0.1:7402"),
        tier::LOG_KEY,
        Key::integer("recent.findings_max", 1, 100_000, "Findings kept in memory, the oldest dropped first.").or("1024"),
    ],
};

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
    /// Where nodes get their certificates, if they get them here.
    pub enrolment: Option<EnrolmentConfig>,
    /// Where programs ask for findings and events.
    pub grpc: GrpcConfig,
    /// Where people look at findings.
    pub dashboard: DashboardConfig,
    /// What it keeps on disk.
    pub state: StateConfig,
    /// Where events and findings go.
    pub store: StoreConfig,
    /// Names of pods, where a file gives them.
    pub identities: Option<PathBuf>,
    /// Rules of the user, beside the built-in ones.
    pub rules: Option<PathBuf>,
    /// Whether what the engine takes is recorded, and where.
    pub record: Option<RecordConfig>,
    /// The loopback address of `/metrics` and `/healthz`.
    pub telemetry_listen: SocketAddr,
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
    /// The list of certificates that are taken back, where there is one.
    pub revocations: Option<PathBuf>,
}

/// Limits of the intake.
#[derive(Clone, Debug)]
pub struct IntakeConfig {
    /// The UDP address that it listens on.
    pub listen: SocketAddr,
    /// Connections at a time; one more is closed with the reason.
    pub connections_max: usize,
    /// What one source may do.
    pub source: SourceLimits,
}

/// What one source may do; others do not feel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// Bytes per second that it may send; one that sends more is slowed down.
    pub bytes_per_second_max: u64,
    /// Frames that it may have under way or not yet durable here.
    pub open_frames_max: u32,
    /// Bytes of these frames.
    pub open_bytes_max: u64,
}

/// Where nodes get their certificates.
#[derive(Clone, Debug)]
pub struct EnrolmentConfig {
    /// The TCP address that it listens on.
    pub listen: SocketAddr,
    /// The certificate chain that it shows.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The issuing authority's certificate, followed by those between it and one that is believed.
    pub authority_certificate: PathBuf,
    /// The issuing authority's private key.
    pub authority_key: PathBuf,
    /// For how long a certificate is good.
    pub lifetime: Duration,
    /// How Kubernetes is asked whose a service account's token is, where such are taken.
    pub kubernetes: Option<KubernetesEnrolment>,
    /// The file of tokens, where such are taken.
    pub tokens: Option<PathBuf>,
}

/// How Kubernetes is asked whose a service account's token is.
#[derive(Clone, Debug)]
pub struct KubernetesEnrolment {
    /// The API server's host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The name that its certificate must have.
    pub server_name: ServerName<'static>,
    /// The authorities that vouch for it.
    pub authority: PathBuf,
    /// The file of the own token.
    pub token: PathBuf,
    /// The audience that tokens must be for.
    pub audience: String,
    /// The agents' account, `system:serviceaccount:<namespace>:<name>`.
    pub username: String,
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
    /// Whether nodes and aggregators may read too, where an authority for clients is named.
    pub machines_may_read: bool,
    /// Streams of findings and events at a time; one more is refused with the reason.
    pub streams_max: usize,
}

/// The dashboard: HTTP on loopback, or HTTPS.
#[derive(Clone, Debug)]
pub struct DashboardConfig {
    /// The TCP address that it listens on.
    pub listen: SocketAddr,
    /// The certificate chain and its private key; always there where other machines can reach the address.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Pages that get updates at a time; one more is refused with the reason.
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
        /// The user's password.
        password: Password,
        /// The account that may only read, which central and people use, and its password. Where none is named they
        /// read as the user above.
        reader: Option<(String, Password)>,
    },
}

/// Where a password is.
#[derive(Clone)]
pub enum Password {
    /// The account has none.
    None,
    /// In this file.
    File(PathBuf),
    /// Here.
    Text(String),
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("None"),
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Self::Text(_secret) => formatter.write_str("Text(..)"),
        }
    }
}

/// Recordings for `tapio replay`.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// The folder; made where there is none.
    pub directory: PathBuf,
    /// Bytes that recordings may use there; the oldest files are removed.
    pub bytes_max: u64,
}

/// Limits of what is kept in memory.
#[derive(Clone, Copy, Debug)]
pub struct RecentConfig {
    /// Findings kept, the oldest dropped first.
    pub findings_max: usize,
}

impl Config {
    /// Reads and checks the file at `path` alone.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong; all wrong values are named at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::check(Settings::load(&TIER, path)?)?)
    }

    /// Reads and checks a configuration from `text` alone; `path` is only named in errors.
    ///
    /// # Errors
    /// When it is wrong; all wrong values are named at once.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        Self::check(Settings::parse(&TIER, path, text))
    }

    /// Makes a configuration of what the process was told.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn check(mut settings: Settings) -> Result<Self, Problems> {
        let cluster = settings.parse_text::<ClusterId>("aggregator.cluster");
        let tenant = settings.parse_text::<TenantId>("aggregator.tenant");
        let instance = settings.parse_text::<Instance>("aggregator.name");
        let domain = settings.parse_text::<TrustDomain>("aggregator.trust_domain");
        let listen = settings.read("intake.listen", socket);
        let enrolment = check_enrolment(&mut settings);
        let grpc = check_grpc(&mut settings);
        let dashboard = check_dashboard(&mut settings);
        let store = check_store(&mut settings);
        let telemetry_listen = settings.read("telemetry.listen", telemetry::loopback);
        settings.read(tier::LOG_KEY.path, telemetry::check_filter);
        let (identities, rules) = (settings.path("context.identities"), settings.path("rules.directory"));
        let revocations = settings.path("identity.revocations");
        let record_bytes_max = settings.integer("record.bytes_max");
        let record = settings
            .path("record.directory")
            .zip(record_bytes_max)
            .map(|(directory, bytes_max)| RecordConfig { directory, bytes_max });
        let (
            Some(aggregator),
            Some(trust_domain),
            Some(cluster),
            Some(tenant),
            Some(listen),
            Some(enrolment),
            Some(grpc),
            Some(dashboard),
            Some(store),
            Some(telemetry_listen),
            Some(certificate),
            Some(key),
            Some(authority),
            Some(directory),
            Some(connections_max),
            Some(bytes_per_second_max),
            Some(open_frames_max),
            Some(open_bytes_max),
            Some(spool_bytes_max),
            Some(replay_window_secs),
            Some(findings_max),
        ) = (
            instance,
            domain,
            cluster,
            tenant,
            listen,
            enrolment,
            grpc,
            dashboard,
            store,
            telemetry_listen,
            settings.path("identity.certificate"),
            settings.path("identity.key"),
            settings.path("identity.authority"),
            settings.path("state.directory"),
            settings.integer("intake.connections_max"),
            settings.integer("intake.source_bytes_per_second_max"),
            settings.integer("intake.source_open_frames_max"),
            settings.integer("intake.source_open_bytes_max"),
            settings.integer("state.spool_bytes_max"),
            settings.integer("state.replay_window_secs"),
            settings.integer("recent.findings_max"),
        )
        else {
            return settings.finish(None);
        };
        settings.finish(Some(Self {
            name: Name::Aggregator {
                trust_domain,
                tenant: tenant.clone(),
                cluster: cluster.clone(),
                aggregator,
            },
            cluster,
            tenant,
            identity: IdentityConfig { certificate, key, authority, revocations },
            intake: IntakeConfig {
                listen,
                connections_max,
                source: SourceLimits { bytes_per_second_max, open_frames_max, open_bytes_max },
            },
            enrolment,
            grpc,
            dashboard,
            state: StateConfig {
                directory,
                spool_bytes_max,
                replay_window: Duration::from_secs(replay_window_secs),
            },
            store,
            identities,
            rules,
            record,
            telemetry_listen,
            recent: RecentConfig { findings_max },
        }))
    }
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_invalid| format!("{text:?} is no address with a port, such as 127.0.0.1:7401"))
}

/// Keys that enrolment cannot do without.
const ENROLMENT_KEYS: [&str; 4] =
    ["enrolment.certificate", "enrolment.key", "enrolment.authority_certificate", "enrolment.authority_key"];

fn check_enrolment(settings: &mut Settings) -> Option<Option<EnrolmentConfig>> {
    let files = ENROLMENT_KEYS.map(|key| settings.path(key));
    let lifetime = settings.integer("enrolment.lifetime_secs");
    let kubernetes = check_kubernetes(settings);
    let tokens = settings.path("enrolment.tokens");
    if settings.text("enrolment.listen").is_none() {
        let others = ["enrolment.audience", "enrolment.service_account", "enrolment.tokens"];
        for key in ENROLMENT_KEYS.into_iter().chain(others) {
            settings.require(!settings.is_given(key), key, "means nothing without enrolment.listen");
        }
        return Some(None);
    }
    let listen = settings.read("enrolment.listen", socket);
    for (key, file) in ENROLMENT_KEYS.into_iter().zip(&files) {
        settings.require(file.is_some(), key, "is missing: enrolment needs it");
    }
    settings.require(
        kubernetes.as_ref().is_none_or(Option::is_some) || tokens.is_some(),
        "enrolment.tokens",
        "is missing: without it or enrolment.audience, nobody can prove who asks",
    );
    let [Some(certificate), Some(key), Some(authority_certificate), Some(authority_key)] = files else {
        return None;
    };
    Some(Some(EnrolmentConfig {
        listen: listen?,
        certificate,
        key,
        authority_certificate,
        authority_key,
        lifetime: Duration::from_secs(lifetime?),
        kubernetes: kubernetes?,
        tokens,
    }))
}

/// How Kubernetes is asked; nothing inside where it is not, nothing at all where what is said is wrong.
fn check_kubernetes(settings: &mut Settings) -> Option<Option<KubernetesEnrolment>> {
    let url = settings.read("enrolment.kubernetes_url", api_server);
    let authority = settings.path("enrolment.kubernetes_authority");
    let token = settings.path("enrolment.kubernetes_token");
    let account = settings.text("enrolment.service_account");
    let Some(audience) = settings.text("enrolment.audience") else {
        settings.require(
            account.is_none(),
            "enrolment.service_account",
            "means nothing without enrolment.audience",
        );
        return account.is_none().then_some(None);
    };
    let names = account.as_deref().and_then(|account| account.split_once('/'));
    let username = names.map(|(namespace, name)| format!("system:serviceaccount:{namespace}:{name}"));
    settings.require(
        username.is_some(),
        "enrolment.service_account",
        "must name the service account of the agents' pods, `namespace/name`",
    );
    let (host, port, server_name) = url?;
    Some(Some(KubernetesEnrolment {
        host,
        port,
        server_name,
        authority: authority?,
        token: token?,
        audience,
        username: username?,
    }))
}

/// Host, port and the name in the certificate of `https://host:port`.
fn api_server(url: &str) -> Result<(String, u16, ServerName<'static>), String> {
    let fault = || format!("{url:?} is no address such as https://kubernetes.default.svc:443");
    let place = url.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')).ok_or_else(fault)?;
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_invalid| fault())?),
        _ => (place, 443),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let server_name = ServerName::try_from(bare).map_err(|_invalid| fault())?;
    Ok((host.to_owned(), port, server_name))
}

fn check_grpc(settings: &mut Settings) -> Option<GrpcConfig> {
    let listen = settings.read("grpc.listen", socket);
    let client_authority = settings.path("grpc.client_authority");
    let machines_may_read = settings.text("grpc.machines_may_read").is_some_and(|word| word == "yes");
    let streams_max = settings.integer("grpc.streams_max");
    settings.require(
        client_authority.is_some() || !machines_may_read,
        "grpc.machines_may_read",
        "means nothing without grpc.client_authority: then anybody who can reach the address may ask",
    );
    let (certificate, key) = match check_pair(settings, "grpc.certificate", "grpc.key")? {
        Some(pair) => pair,
        None => settings.path("identity.certificate").zip(settings.path("identity.key"))?,
    };
    let (listen, streams_max) = (listen?, streams_max?);
    Some(GrpcConfig { listen, certificate, key, client_authority, machines_may_read, streams_max })
}

fn check_dashboard(settings: &mut Settings) -> Option<DashboardConfig> {
    let listen = settings.read("dashboard.listen", socket);
    let streams_max = settings.integer("dashboard.streams_max");
    let tls = check_pair(settings, "dashboard.certificate", "dashboard.key")?;
    let listen = listen?;
    if tls.is_none() && !listen.ip().is_loopback() {
        settings.refuse(
            "dashboard.certificate",
            format_args!(
                "is missing: other machines can reach {listen}, which needs HTTPS; name dashboard.certificate and \
                 dashboard.key, or listen on 127.0.0.1 or [::1]"
            ),
        );
        return None;
    }
    Some(DashboardConfig { listen, tls, streams_max: streams_max? })
}

/// A certificate and its key; both or none. Nothing where one of the two is missing, which is then refused.
fn check_pair(
    settings: &mut Settings,
    certificate: &'static str,
    key: &'static str,
) -> Option<Option<(PathBuf, PathBuf)>> {
    match (settings.path(certificate), settings.path(key)) {
        (None, None) => Some(None),
        (Some(certificate), Some(key)) => Some(Some((certificate, key))),
        (Some(_), None) => {
            settings.refuse(key, format_args!("is missing: {certificate} needs the key that belongs to it"));
            None
        }
        (None, Some(_)) => {
            settings.refuse(certificate, format_args!("is missing: {key} belongs to some certificate"));
            None
        }
    }
}

/// Keys that mean something with a server only.
const SERVER_KEYS: [&str; 7] = [
    "store.url",
    "store.user",
    "store.password",
    "store.password_file",
    "store.reader_user",
    "store.reader_password",
    "store.reader_password_file",
];

fn check_store(settings: &mut Settings) -> Option<StoreConfig> {
    let mode = settings.text("store.mode");
    // A variable or option that names the mode means it, whatever the file says for the other one.
    let of_the_other: &[&str] =
        if mode.as_deref() == Some("embedded") { &SERVER_KEYS } else { &["store.library"] };
    settings.displace("store.mode", of_the_other);
    let library = settings.path("store.library");
    let (url, user) = (settings.text("store.url"), settings.text("store.user"));
    let reader_user = settings.text("store.reader_user");
    let password = check_password(settings, "store.password", "store.password_file");
    let reader_password = check_password(settings, "store.reader_password", "store.reader_password_file");
    if mode? == "embedded" {
        for key in SERVER_KEYS {
            settings.require(
                !settings.is_given(key),
                key,
                "means nothing with mode = \"embedded\": remove it",
            );
        }
        return Some(StoreConfig::Embedded { library });
    }
    settings.require(library.is_none(), "store.library", "means nothing with mode = \"server\": remove it");
    settings.require(
        reader_user.is_some() || matches!(reader_password, Password::None),
        "store.reader_user",
        "is missing: store.reader_password is the password of somebody",
    );
    settings.require(
        url.is_some(),
        "store.url",
        "is missing: mode = \"server\" needs the server's HTTP address",
    );
    let (url, user) = (url?, user.unwrap_or_else(|| "default".to_owned()));
    // Only the URL's shape is looked at here; the password's file is read at the start.
    let credentials = Credentials { user: user.clone(), password: String::new() };
    settings.read("store.url", |url| Endpoint::new(url, credentials))?;
    let reader = reader_user.map(|user| (user, reader_password));
    Some(StoreConfig::Server { url, user, password, reader })
}

fn check_password(settings: &mut Settings, text_key: &str, file_key: &str) -> Password {
    settings.displace(text_key, &[file_key]);
    settings.displace(file_key, &[text_key]);
    match (settings.text(text_key), settings.path(file_key)) {
        (None, None) => Password::None,
        (None, Some(path)) => Password::File(path),
        (Some(text), None) => Password::Text(text),
        (Some(_), Some(_)) => {
            settings.refuse(file_key, format_args!("says the same as {text_key}: remove one of them"));
            Password::None
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

    /// Scenario: the keys of an aggregator.
    /// Guarantees: each has its own variable and option, a default that it can have, and is used.
    #[test]
    fn every_key_is_sound_and_used() {
        assert_eq!(TIER.faults(), Vec::<String>::new());
        let settings = Settings::parse(&TIER, Path::new("a.toml"), GOOD);
        let asked = settings.clone();
        Config::check(settings).unwrap();
        assert_eq!(asked.unasked(), Vec::<&str>::new());
    }

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

    /// Scenario: dashboards on loopback and elsewhere, with a certificate, without, and with half of one.
    /// Guarantees: what other machines can reach has a certificate, and what is missing is named.
    #[test]
    fn a_dashboard_for_others_needs_a_certificate() {
        let parse =
            |section: &str| Config::parse(Path::new("a.toml"), &format!("{GOOD}\n[dashboard]\n{section}"));
        assert!(parse("").unwrap().dashboard.tls.is_none());
        assert!(parse("listen = \"[::1]:0\"").unwrap().dashboard.tls.is_none());
        let files = "certificate = \"d.pem\"\nkey = \"d.key\"";
        let listen = "listen = \"0.0.0.0:7404\"\n";
        assert!(parse(&format!("{listen}{files}")).unwrap().dashboard.tls.is_some());
        let refusal = |section: &str| parse(section).unwrap_err().to_string();
        assert!(refusal(listen).contains("dashboard.certificate"), "{}", refusal(listen));
        assert!(refusal(listen).contains("127.0.0.1"), "{}", refusal(listen));
        assert!(refusal("key = \"d.key\"").contains("dashboard.certificate"));
        assert!(refusal("certificate = \"d.pem\"").contains("dashboard.key"));
    }

    /// Scenario: enrolment with all it needs, with half of it, and keys of it without a listener.
    /// Guarantees: the first is complete; of the others each key that is missing or means nothing is named.
    #[test]
    fn enrolment_is_whole_or_absent() {
        let parse =
            |section: &str| Config::parse(Path::new("a.toml"), &format!("{GOOD}\n[enrolment]\n{section}"));
        assert!(parse("").unwrap().enrolment.is_none());
        let files =
            "certificate = \"e\"\nkey = \"k\"\nauthority_certificate = \"c\"\nauthority_key = \"d\"\n";
        let listen = "listen = \"0.0.0.0:7405\"\n";
        let kubernetes = "audience = \"enrol\"\nservice_account = \"tapio/agent\"\n";
        let enrolment = parse(&format!("{listen}{files}{kubernetes}")).unwrap().enrolment.unwrap();
        let api = enrolment.kubernetes.unwrap();
        assert_eq!((api.host.as_str(), api.port), ("kubernetes.default.svc", 443));
        assert_eq!(api.username, "system:serviceaccount:tapio:agent");
        assert_eq!(enrolment.lifetime, Duration::from_secs(86_400));
        let enrolment = parse(&format!("{listen}{files}tokens = \"t\"")).unwrap().enrolment.unwrap();
        assert!(enrolment.kubernetes.is_none() && enrolment.tokens.is_some());

        let refusal = |section: &str| parse(section).unwrap_err().to_string();
        assert!(refusal(files).contains("enrolment.authority_key: means nothing"), "{}", refusal(files));
        for key in ["enrolment.certificate", "enrolment.authority_certificate", "enrolment.tokens"] {
            assert!(refusal(listen).contains(key), "{key} in {}", refusal(listen));
        }
        let half = format!("{listen}{files}audience = \"enrol\"\nkubernetes_url = \"http://x\"");
        for key in ["enrolment.service_account", "enrolment.kubernetes_url"] {
            assert!(refusal(&half).contains(key), "{key} in {}", refusal(&half));
        }
        assert_eq!(api_server("https://[::1]:6443/").unwrap().0, "[::1]");
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
