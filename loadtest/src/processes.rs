//! The three tiers as processes that can be killed and started again, for tests of what survives that.
//!
//! The same configuration files, certificates and programs as the demo has. Owns the processes; knows nothing of
//! workloads.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tapio_central::api::rest::health::HealthAnswer;
use tapio_central::cli::client::ApiClient;
use tapio_store::client::{Credentials, Endpoint, ReadLimits, Reader};
use tokio::runtime::Runtime;

use crate::demo::tiers::{StoreAccount, settings::Settings};
use crate::run_record::RunRecord;
use crate::tier::Tier;

/// How long a tier may take to be ready.
const READY_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long an answer of a tier's telemetry may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Which tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The node's agent.
    EdgeAgent,
    /// The aggregator, and the embedded engine with it.
    Aggregator,
    /// Central.
    Central,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::EdgeAgent => "edge-agent",
            Self::Aggregator => "aggregator",
            Self::Central => "central",
        }
    }
}

/// Running tiers. Fields are dropped in order: the source of data first, the store last.
pub struct Processes {
    agent: Option<Tier>,
    central: Option<Tier>,
    aggregator: Option<Tier>,
    folder: PathBuf,
    programs: PathBuf,
    node: String,
    record: RunRecord,
    settings: Settings,
    runtime: Runtime,
    /// Central's REST API.
    pub api: ApiClient,
}

impl Processes {
    /// Starts aggregator, central and the agent of a node called `node` from `programs`, all state below `folder`, names
    /// from the file `identities`.
    ///
    /// # Errors
    /// A tier does not start, with the end of its log.
    pub fn start(folder: &Path, programs: &Path, node: &str, identities: &Path) -> anyhow::Result<Self> {
        // Its name becomes the cluster's.
        let folder = folder.join("processes");
        fs::create_dir(&folder).context("cannot create the folder of the tiers")?;
        let settings = Settings::write(&folder, node, identities, None)?;
        let api = ApiClient::new(&settings.api, Some(&settings.authority))?;
        let record = RunRecord::create(&folder.join("record"))?;
        let mut tiers = Self {
            agent: None,
            central: None,
            aggregator: None,
            folder,
            programs: programs.to_owned(),
            node: node.to_owned(),
            record,
            settings,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            api,
        };
        for kind in [Kind::Aggregator, Kind::Central, Kind::EdgeAgent] {
            tiers.begin(kind)?;
        }
        Ok(tiers)
    }

    /// Starts a tier that does not run, and waits until it is ready: the aggregator until its store answers, central
    /// until it does, the agent until its data is seen through central.
    ///
    /// # Errors
    /// It ended, or was not ready in time; with the end of its log.
    pub fn begin(&mut self, kind: Kind) -> anyhow::Result<()> {
        let config = match kind {
            Kind::EdgeAgent => &self.settings.agent,
            Kind::Aggregator => {
                // The file of the life before names an engine that is gone.
                drop(fs::remove_file(&self.settings.store_account));
                &self.settings.aggregator
            }
            Kind::Central => &self.settings.central,
        };
        let program = self.programs.join(format!("tapio-{}", kind.name()));
        let mut tier = Tier::start(kind.name(), &program, config, &self.folder, &self.record)?;
        let health = || self.api.get::<HealthAnswer>("/health", &[]);
        tier.wait_until(READY_WAIT_MAX, || match kind {
            Kind::Aggregator => self.settings.store_account.is_file(),
            Kind::Central => health().is_ok(),
            Kind::EdgeAgent => {
                health().is_ok_and(|answer| answer.sources.iter().any(|source| source.node == self.node))
            }
        })?;
        *self.slot(kind) = Some(tier);
        Ok(())
    }

    /// Kills a tier with SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, kind: Kind) -> anyhow::Result<()> {
        self.slot(kind).take().with_context(|| format!("{} does not run", kind.name()))?.kill()
    }

    fn slot(&mut self, kind: Kind) -> &mut Option<Tier> {
        match kind {
            Kind::EdgeAgent => &mut self.agent,
            Kind::Aggregator => &mut self.aggregator,
            Kind::Central => &mut self.central,
        }
    }

    const fn tier(&self, kind: Kind) -> Option<&Tier> {
        match kind {
            Kind::EdgeAgent => self.agent.as_ref(),
            Kind::Aggregator => self.aggregator.as_ref(),
            Kind::Central => self.central.as_ref(),
        }
    }

    /// The agent's state directory.
    #[must_use]
    pub fn agent_state(&self) -> PathBuf {
        self.folder.join("edge-agent")
    }

    /// All that a tier has logged, over all its lives.
    ///
    /// # Errors
    /// There is no log.
    pub fn log(&self, kind: Kind) -> anyhow::Result<String> {
        let path = self.folder.join(format!("{}.log", kind.name()));
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The process of the embedded engine.
    ///
    /// # Errors
    /// There is none.
    pub fn engine(&self) -> anyhow::Result<u32> {
        let aggregator = self.tier(Kind::Aggregator).context("the aggregator does not run")?.pid();
        let children = format!("/proc/{aggregator}/task");
        let tasks = fs::read_dir(&children).with_context(|| format!("cannot read {children}"))?;
        // Each thread knows its own children.
        let text: String = tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .collect();
        text.split_whitespace().next().and_then(|pid| pid.parse().ok()).context("the engine does not run")
    }

    /// Status and body of an answer of a tier's telemetry.
    ///
    /// # Errors
    /// The tier does not answer.
    pub fn telemetry(&self, kind: Kind, path: &str) -> anyhow::Result<(u16, String)> {
        let log = self.log(kind)?;
        // The last life's: they all append.
        let key = if kind == Kind::Aggregator { "http_addr=" } else { "telemetry_address=" };
        let address = log.rsplit_once(key).context("the log names no address")?.1;
        let address: SocketAddr =
            address.split_whitespace().next().unwrap_or_default().parse().context("no address")?;
        let mut stream = TcpStream::connect(address).context("the telemetry does not answer")?;
        stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        Ok((status, body.to_owned()))
    }

    /// The rows of an SQL query, as the account that may only read. While the store is coming back it is asked again.
    ///
    /// # Errors
    /// The store's last refusal.
    pub fn rows(&self, sql: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let deadline = Instant::now() + READY_WAIT_MAX;
        loop {
            let answer = self.reader().and_then(|reader| Ok(self.runtime.block_on(reader.rows(sql, &[]))?));
            if answer.is_ok() || Instant::now() >= deadline {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn reader(&self) -> anyhow::Result<Reader> {
        let path = &self.settings.store_account;
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let account: StoreAccount = toml::from_str(&text).context("the store's account is not readable")?;
        let credentials = Credentials { user: account.reader_user, password: account.reader_password };
        Ok(Reader::new(&Endpoint::new(&account.url, credentials)?, ReadLimits::default()))
    }

    /// Ends the agent, then central, then the aggregator with its engine.
    ///
    /// # Errors
    /// What did not end in order.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for kind in [Kind::EdgeAgent, Kind::Central, Kind::Aggregator] {
            if let Some(Err(error)) = self.slot(kind).take().map(Tier::stop) {
                failures.push(format!("{error:#}"));
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    }
}
