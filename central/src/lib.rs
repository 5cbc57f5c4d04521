//! Central: REST and the `tapio` command over the history of all clusters. Stateless: ClickHouse is its only memory.
//!
//! It never writes, never correlates, and asks an aggregator only for what is not stored yet. Any replica answers
//! any request.

pub mod api;
pub mod cli;
pub mod config;
pub mod history;
mod serve;

use std::{net::SocketAddr, sync::Arc};

use tapio_daemon::{Health, Registry};
use tokio_util::sync::CancellationToken;

use crate::{api::ApiState, config::Config, history::History};

/// Why central stopped, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum CentralError {
    /// The address for the API cannot be had.
    #[error("cannot listen on {address} (central.listen): {source}")]
    Listen {
        /// The address of the configuration.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("cannot serve HTTPS: {0}")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What says where the store is cannot be used.
    #[error(transparent)]
    Store(history::HistoryError),
    /// The metrics address cannot be served.
    #[error("cannot serve metrics and health on {address} (telemetry.listen): {source}")]
    Telemetry {
        /// The address of the configuration.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a running central tells whoever started it.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where the API answers (HTTPS).
    pub api: SocketAddr,
    /// Where metrics and health answer (HTTP, loopback by default).
    pub telemetry: Option<SocketAddr>,
}

/// Runs until `shutdown` is cancelled. `ready` is called once, when requests are answered.
///
/// # Errors
/// When an address, the certificate or the store's account cannot be used. A store that does not answer is no error:
/// requests then say so, and health with them.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    ready: impl FnOnce(Running) + Send,
) -> Result<(), CentralError> {
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .map_err(|source| CentralError::Listen { address: config.listen, source })?;
    let api_address =
        listener.local_addr().map_err(|source| CentralError::Listen { address: config.listen, source })?;
    let tls = tls(&config)?;
    let history = History::new(&config.store, config.tenant.clone());
    let registry = Registry::new();
    let health = Health::new();
    let state = Arc::new(ApiState::new(config.name.clone(), history, &registry));
    let watched = serve::watch_store(Arc::clone(&state), &health, &shutdown);

    let telemetry = match config.telemetry_listen {
        Some(address) => Some(serve::telemetry(address, registry, health, &shutdown).await?),
        None => None,
    };
    if let Some((telemetry_address, _)) = &telemetry {
        tracing::info!(%telemetry_address, "answering what watches this tier");
    }
    tracing::info!(address = %api_address, "answering the REST API");
    ready(Running { api: api_address, telemetry: telemetry.as_ref().map(|(address, _)| *address) });
    serve::https(listener, tls, api::router(state), &shutdown).await;
    if let Err(error) = watched.await {
        tracing::warn!(%error, "the watch over the store ended badly");
    }
    if let Some((_, task)) = telemetry
        && let Err(error) = task.await
    {
        tracing::warn!(%error, "the metrics server ended badly");
    }
    Ok(())
}

/// What is wrong with the files that the configuration names, without starting anything.
///
/// A connection file that is not there yet is no fault: an aggregator writes it when its store answers.
#[must_use]
pub fn check(config: &Config) -> Vec<CentralError> {
    let connection = History::check(&config.store).err().map(CentralError::Store);
    tls(config).err().into_iter().chain(connection).collect()
}

fn tls(config: &Config) -> Result<Arc<rustls::ServerConfig>, CentralError> {
    tapio_identity::https::server_config(&config.certificate, &config.key)
        .map_err(|error| CentralError::Identity(error.into()))
}
