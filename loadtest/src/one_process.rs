//! The three tiers in one process, for tests: the same configuration files, certificates and `run` functions as the
//! processes have, on a runtime of their own.
//!
//! Owns the runtime and the order of start and end. Knows nothing of workloads.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tapio_aggregator::run::Running;
use tapio_central::cli::client::ApiClient;
use tapio_edge_agent::Agent;
use tapio_store::client::{Credentials, Endpoint, ReadLimits, Reader};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::demo::tiers::{
    StoreAccount,
    settings::{RECORDINGS, Settings},
};

/// Running tiers. [`OneProcess::stop`] ends them in the order of the road.
pub struct OneProcess {
    runtime: Runtime,
    agent: Agent,
    agent_stop: CancellationToken,
    aggregator: Running,
    recordings: PathBuf,
    central: JoinHandle<Result<(), tapio_central::CentralError>>,
    central_stop: CancellationToken,
    /// Central's REST API.
    pub api: ApiClient,
    /// SQL, as the account that may only read.
    pub sql: Reader,
    /// Where each tier serves its metrics and health, by the tier's name.
    pub telemetry: Vec<(&'static str, SocketAddr)>,
}

impl OneProcess {
    /// Starts aggregator, central and agent of a node called `node`, all state below `folder`, names from the file
    /// `identities`.
    ///
    /// # Errors
    /// What kept a tier from starting.
    pub fn start(folder: &Path, node: &str, identities: &Path) -> anyhow::Result<Self> {
        // Its name becomes the cluster's.
        let folder = &folder.join("one-process");
        std::fs::create_dir(folder).context("cannot create the folder of the tiers")?;
        let settings = Settings::write(folder, node, identities, None)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let config = tapio_aggregator::config::Config::load(&settings.aggregator)?;
        let aggregator = runtime
            .block_on(tapio_aggregator::run::start(config))
            .context("the aggregator does not start")?;
        let text =
            std::fs::read_to_string(&settings.store_account).context("cannot read the store's account")?;
        let account: StoreAccount = toml::from_str(&text).context("the store's account is not readable")?;
        let credentials = Credentials { user: account.reader_user, password: account.reader_password };
        let sql = Reader::new(&Endpoint::new(&account.url, credentials)?, ReadLimits::default());

        let config = tapio_central::config::Config::load(&settings.central)?;
        let (central_stop, (ready, listens)) = (CancellationToken::new(), oneshot::channel());
        let central = runtime.spawn(tapio_central::run(config, central_stop.clone(), |running| {
            // A receiver that is gone has given up on the start.
            drop(ready.send(running));
        }));
        let listening = runtime.block_on(listens).context("central ended before it answered")?;
        let api = ApiClient::new(&settings.api, Some(&settings.authority))?;

        let config = tapio_edge_agent::Config::load(&settings.agent)?;
        let agent_stop = CancellationToken::new();
        let agent =
            runtime.block_on(Agent::start(config, agent_stop.clone())).context("the agent does not start")?;
        let telemetry = [
            ("edge-agent", Some(agent.telemetry_address())),
            ("aggregator", Some(aggregator.http_addr)),
            ("central", listening.telemetry),
        ];
        let telemetry = telemetry.into_iter().filter_map(|(tier, address)| Some((tier, address?))).collect();
        let recordings = folder.join(RECORDINGS);
        Ok(Self {
            runtime,
            agent,
            agent_stop,
            aggregator,
            recordings,
            central,
            central_stop,
            api,
            sql,
            telemetry,
        })
    }

    /// The probes of the agent that do not work, with the reason.
    #[must_use]
    pub fn failed_probes(&self) -> Vec<String> {
        let failed = |capability: &&tapio_edge_agent::probes::Capability| {
            !matches!(capability.state, tapio_edge_agent::probes::CapabilityState::Working)
        };
        self.agent.capabilities().iter().filter(failed).map(|capability| format!("{capability:?}")).collect()
    }

    /// The rows of an SQL query.
    ///
    /// # Errors
    /// The store's refusal.
    pub fn rows(&self, sql: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        Ok(self.runtime.block_on(self.sql.rows(sql, &[]))?)
    }

    /// Ends the agent, then central, then the aggregator with its engine. Returns where the aggregator's recording is.
    ///
    /// # Errors
    /// What did not end well.
    pub fn stop(self) -> anyhow::Result<PathBuf> {
        let Self { runtime, agent, agent_stop, aggregator, central, central_stop, recordings, .. } = self;
        agent_stop.cancel();
        runtime.block_on(agent.finish());
        central_stop.cancel();
        runtime.block_on(central).context("central panicked")??;
        runtime.block_on(aggregator.stop()).context("the aggregator did not end well")?;
        Ok(recordings)
    }
}
