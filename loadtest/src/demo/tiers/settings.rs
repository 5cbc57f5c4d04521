//! The tiers' configuration files and certificates, made anew for each run.
//!
//! Owns the short-lived authority, the ports and what stands in each file. Starts nothing. Called by [`super::Tiers`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tapio_identity::Name;
use tapio_identity::issuer::{Authority, Host, IssuedFiles};
use toml::{Table, Value};

use crate::tier::free_ports;

const TRUST_DOMAIN: &str = "demo.tapio";
const TENANT: &str = "default";
const NAME: &str = "demo";
/// In the run's folder: what the aggregator records.
pub(crate) const RECORDINGS: &str = "recordings";
/// Longer than anybody keeps a demo running; there is no way to take a certificate back.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A server of the user's that takes the place of the embedded engine.
#[derive(Debug, Clone)]
pub struct ClickHouseServer {
    /// Its HTTP address.
    pub url: String,
    /// The account there.
    pub user: Option<String>,
    /// The file with that account's password.
    pub password_file: Option<PathBuf>,
}

impl ClickHouseServer {
    fn table(&self) -> Value {
        let user = self.user.as_ref().map(|user| ("user", Value::from(user.as_str())));
        let password_file = self.password_file.as_ref().map(|path| ("password_file", text(path)));
        let given = [("mode", "server".into()), ("url", self.url.as_str().into())];
        entries(given.into_iter().chain(user).chain(password_file))
    }
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Name of the cluster: the run's own.
    pub(crate) cluster: String,
    /// Configuration of the edge agent.
    pub(crate) agent: PathBuf,
    /// Configuration of the aggregator.
    pub(crate) aggregator: PathBuf,
    /// Configuration of central.
    pub(crate) central: PathBuf,
    /// Written by the aggregator when the store answers.
    pub(crate) store_account: PathBuf,
    /// The API's address.
    pub(crate) api: String,
    /// The aggregator's gRPC address.
    pub(crate) grpc: String,
    /// The dashboard's address.
    pub(crate) dashboard: String,
    /// The certificate that the certificates of the API and of gRPC are signed by.
    pub(crate) authority: PathBuf,
}

impl Settings {
    /// Writes everything into the run's folder.
    pub(crate) fn write(
        folder: &Path,
        node: &str,
        identities: &Path,
        server: Option<&ClickHouseServer>,
    ) -> anyhow::Result<Self> {
        let ports = free_ports(4)?;
        let [intake, api, grpc, dashboard] = ports.as_slice() else {
            anyhow::bail!("four ports were asked for");
        };
        // A server of the user's may hold other runs, also running ones.
        let cluster = folder.file_name().context("a run has a folder")?.to_string_lossy().into_owned();
        let keys = Keys::write(&folder.join("keys"), &cluster, node)?;
        let state = |name: &str| text(&folder.join(name));
        let telemetry = || table([("listen", loopback(0)), ("log", "info".into())]);
        let settings = Self {
            cluster: cluster.clone(),
            agent: folder.join("edge-agent.toml"),
            aggregator: folder.join("aggregator.toml"),
            central: folder.join("central.toml"),
            store_account: folder.join("aggregator").join("connection.toml"),
            api: format!("https://127.0.0.1:{api}"),
            grpc: format!("127.0.0.1:{grpc}"),
            dashboard: format!("http://127.0.0.1:{dashboard}"),
            authority: keys.api.authority.clone(),
        };
        let agent = table([
            (
                "node",
                table([
                    ("name", node.into()),
                    ("cluster", cluster.as_str().into()),
                    ("tenant", TENANT.into()),
                ]),
            ),
            ("identity", keys.agent.table()),
            ("uplink", table([("aggregators", Value::Array(vec![loopback(*intake)]))])),
            ("state", table([("directory", state("edge-agent"))])),
            // A demo leaves nothing behind, however it ends.
            ("capture", table([("pins", "none".into())])),
            ("telemetry", telemetry()),
        ]);
        let store = server.map_or_else(|| table([("mode", "embedded".into())]), ClickHouseServer::table);
        let aggregator = table([
            (
                "aggregator",
                table([
                    ("name", NAME.into()),
                    ("cluster", cluster.as_str().into()),
                    ("tenant", TENANT.into()),
                    ("trust_domain", TRUST_DOMAIN.into()),
                ]),
            ),
            ("identity", keys.aggregator.table()),
            ("intake", table([("listen", loopback(*intake))])),
            (
                "grpc",
                table([
                    ("listen", loopback(*grpc)),
                    ("certificate", text(&keys.grpc.certificate)),
                    ("key", text(&keys.grpc.key)),
                ]),
            ),
            ("dashboard", table([("listen", loopback(*dashboard))])),
            ("state", table([("directory", state("aggregator"))])),
            ("record", table([("directory", state(RECORDINGS))])),
            ("store", store),
            ("context", table([("identities", text(identities))])),
            ("telemetry", telemetry()),
        ]);
        let central = table([
            ("central", table([("name", NAME.into()), ("listen", loopback(*api))])),
            ("identity", table([("certificate", text(&keys.api.certificate)), ("key", text(&keys.api.key))])),
            ("store", table([("connection", text(&settings.store_account))])),
            ("telemetry", telemetry()),
        ]);
        for (path, value) in
            [(&settings.agent, agent), (&settings.aggregator, aggregator), (&settings.central, central)]
        {
            fs::write(path, toml::to_string(&value)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(settings)
    }
}

/// A certificate per tier.
struct Keys {
    agent: IssuedFiles,
    aggregator: IssuedFiles,
    grpc: IssuedFiles,
    api: IssuedFiles,
}

impl Keys {
    fn write(folder: &Path, cluster: &str, node: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let now = SystemTime::now();
        let authority = Authority::new("tapio demo", now, LIFETIME)?;
        let issue = |name: Name, stem: &str| -> anyhow::Result<IssuedFiles> {
            Ok(authority.issue(&name, now, LIFETIME)?.write(folder, stem)?)
        };
        let hosts = [Host::Ip([127, 0, 0, 1].into()), Host::Dns("localhost".to_owned())];
        Ok(Self {
            agent: issue(Name::node(TRUST_DOMAIN, TENANT, cluster, node)?, "edge-agent")?,
            aggregator: issue(Name::aggregator(TRUST_DOMAIN, TENANT, cluster, NAME)?, "aggregator")?,
            grpc: authority.issue_https(&hosts, now, LIFETIME)?.write(folder, "grpc")?,
            api: authority.issue_https(&hosts, now, LIFETIME)?.write(folder, "central")?,
        })
    }
}

/// The `[identity]` section of a tier.
trait IdentitySection {
    fn table(&self) -> Value;
}

impl IdentitySection for IssuedFiles {
    fn table(&self) -> Value {
        table([
            ("certificate", text(&self.certificate)),
            ("key", text(&self.key)),
            ("authority", text(&self.authority)),
        ])
    }
}

fn table<const N: usize>(members: [(&str, Value); N]) -> Value {
    entries(members)
}

fn entries<'a>(members: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Table(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Table>())
}

fn text(path: &Path) -> Value {
    Value::String(path.to_string_lossy().into_owned())
}

fn loopback(port: u16) -> Value {
    Value::String(format!("127.0.0.1:{port}"))
}
