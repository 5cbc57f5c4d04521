//! The running system of the demo: three processes, each with a generated configuration and certificate.
//!
//! Owns the order in which they start and end, their files, and the client of central's API. Knows the tiers by their
//! configuration files and their public API only. Called by [`crate::command`].

pub mod settings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use tapio_central::api::rest::health::HealthAnswer;
use tapio_central::cli::client::ApiClient;
use tapio_central::cli::render;
use tapio_schemas::finding::Finding;

use crate::demo::tiers::settings::{ClickHouseServer, Settings};
use crate::demo::{Stage, System};
use crate::interrupt::Interrupt;
use crate::tier::Tier;

/// How long the engine may take to answer, on a slow disk.
const STORE_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long central may take to listen, and the agent's first data to be seen through it.
const ROAD_WAIT_MAX: Duration = Duration::from_secs(60);
/// Findings that are read at a time: the most that REST gives in one page.
const FINDINGS_MAX: &str = "1000";

/// The three tiers. Fields are dropped in order: the source of data first, the store last.
pub struct Tiers {
    agent: Tier,
    central: Tier,
    aggregator: Tier,
    client: ApiClient,
    cluster: String,
    api: String,
    grpc: String,
    dashboard: String,
    authority: PathBuf,
    /// The `tapio` program.
    command: PathBuf,
    store: StoreAccount,
    began: Instant,
    /// The embedded engine's reading account was made for this run and may be shown; an account of the user's may not.
    is_store_embedded: bool,
}

/// What the aggregator writes for those who read the store.
#[derive(Debug, Deserialize)]
pub(crate) struct StoreAccount {
    pub(crate) url: String,
    pub(crate) reader_user: String,
    pub(crate) reader_password: String,
}

impl Tiers {
    /// Starts the tiers and waits until the agent's data is seen through central's API.
    ///
    /// # Errors
    /// A tier ended or was not ready in time, with the end of its log; or the user wants to stop.
    pub fn start(stage: Stage<'_>, server: Option<&ClickHouseServer>) -> anyhow::Result<Self> {
        let began = Instant::now();
        let settings = Settings::write(stage.folder, stage.node, stage.identities, server)?;
        let start = |name: &str, config: &Path| {
            let program = stage.programs.join(format!("tapio-{name}"));
            Tier::start(name, &program, config, stage.folder, stage.record)
        };
        let mut aggregator = start("aggregator", &settings.aggregator)?;
        wait(&mut aggregator, &mut [], stage.interrupt, STORE_WAIT_MAX, || settings.store_account.is_file())?;
        let text = fs::read_to_string(&settings.store_account).context("cannot read the store's account")?;
        let store: StoreAccount = toml::from_str(&text).context("the store's account is not readable")?;

        let mut central = start("central", &settings.central)?;
        let client = ApiClient::new(&settings.api, Some(&settings.authority))?;
        let health = || client.get::<HealthAnswer>("/health", &[]);
        wait(&mut central, &mut [&mut aggregator], stage.interrupt, ROAD_WAIT_MAX, || health().is_ok())?;

        let mut agent = start("edge-agent", &settings.agent)?;
        let seen =
            || health().is_ok_and(|answer| answer.sources.iter().any(|source| source.node == stage.node));
        wait(&mut agent, &mut [&mut aggregator, &mut central], stage.interrupt, ROAD_WAIT_MAX, seen)?;
        let Settings { cluster, api, grpc, dashboard, authority, .. } = settings;
        let is_store_embedded = server.is_none();
        let command = stage.programs.join("tapio");
        Ok(Self {
            agent,
            central,
            aggregator,
            client,
            cluster,
            api,
            grpc,
            dashboard,
            authority,
            command,
            store,
            began,
            is_store_embedded,
        })
    }

    /// From the start of this run, as the API takes it: a server of the user's may hold earlier runs.
    fn since(&self) -> String {
        format!("{}s", self.began.elapsed().as_secs() + 1)
    }
}

/// Waits for a tier, but not for a user who has had enough, and not when an earlier tier has ended meanwhile.
fn wait(
    tier: &mut Tier,
    earlier: &mut [&mut Tier],
    interrupt: &Interrupt,
    wait_max: Duration,
    mut ready: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let mut ended = None;
    let result = tier.wait_until(wait_max, || {
        ended = earlier.iter_mut().find_map(|other| other.check().err());
        ended.is_some() || interrupt.is_raised() || ready()
    });
    ended.map_or(Ok(()), Err)?;
    anyhow::ensure!(!interrupt.is_raised(), "stopped while {} was starting", tier.name());
    result
}

impl System for Tiers {
    fn addresses(&self) -> Vec<(String, String)> {
        let StoreAccount { url, reader_user, reader_password } = &self.store;
        let authority = self.authority.display();
        let program = self.command.display();
        let command = format!("TAPIO_API={} TAPIO_CA='{authority}' '{program}' findings", self.api);
        let account = if self.is_store_embedded {
            format!("{reader_user}:{reader_password}")
        } else {
            // curl asks for the password.
            reader_user.clone()
        };
        let sql = format!("curl -u {account} {url} -d 'SHOW TABLES FROM tapio'");
        [
            ("dashboard", format!("{}  (open it in a browser)", self.dashboard)),
            ("REST", format!("{}/api/v1  (certificate: {authority})", self.api)),
            ("command", command),
            ("gRPC", format!("{}  (TLS, reflection, the same certificate)", self.grpc)),
            ("SQL", sql),
        ]
        .map(|(label, address)| (label.to_owned(), address))
        .into()
    }

    fn findings(&self) -> anyhow::Result<Vec<Value>> {
        let mut page: Value = self.client.get(
            "/findings",
            &[("limit", FINDINGS_MAX), ("since", &self.since()), ("cluster", &self.cluster)],
        )?;
        match page.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => anyhow::bail!("GET /findings gave no list of items"),
        }
    }

    fn ledger(&self) -> anyhow::Result<Value> {
        Ok(self.client.get("/ledger", &[("since", &self.since()), ("cluster", &self.cluster)])?)
    }

    fn explain(&self, finding: &Value) -> anyhow::Result<String> {
        let finding =
            Finding::deserialize(finding).context("the finding has not the shape of this version")?;
        let mut text = Vec::new();
        render::explain(&finding, &mut text)?;
        Ok(String::from_utf8(text)?)
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.agent.check()?;
        self.aggregator.check()?;
        self.central.check()
    }

    fn stop(self) -> Vec<anyhow::Error> {
        let Self { agent, central, aggregator, .. } = self;
        // The agent ships what it holds while there is somebody to take it; the store goes with the aggregator.
        [agent, central, aggregator].into_iter().filter_map(|tier| tier.stop().err()).collect()
    }

    fn replay(stage: Stage<'_>, findings: &[Value]) -> anyhow::Result<usize> {
        let output = replay(stage, &["--json", "--compare"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        let revisions: Vec<Value> = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice)
            .collect::<Result<_, _>>()
            .context("tapio replay gave a line that is no JSON")?;
        for finding in findings {
            let (id, revision) = (&finding["id"], &finding["revision"]);
            anyhow::ensure!(
                revisions.contains(finding),
                "REST gave revision {revision} of {id}, and the replay does not:\n{said}"
            );
        }
        Ok(revisions.len())
    }

    fn hypotheses(stage: Stage<'_>) -> anyhow::Result<String> {
        let output = replay(stage, &["--hypotheses"])?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// `tapio replay` of what a system recorded on this stage.
fn replay(stage: Stage<'_>, options: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(stage.programs.join("tapio"));
    command.arg("replay").args(options).arg(stage.folder.join(settings::RECORDINGS));
    let output = command.stdin(Stdio::null()).output().context("cannot run tapio replay")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "tapio replay: {}\n{said}", output.status);
    Ok(output)
}
