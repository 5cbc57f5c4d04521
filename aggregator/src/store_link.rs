//! Where ClickHouse is: the embedded engine or a server. Behind this module nobody knows which.
//!
//! Starts and stops the embedded engine, brings the schema up (again and again, while a server is away: data waits in
//! the spool meanwhile), and writes `connection.toml` for central. Called by [`crate::run`].

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use tapio_daemon::Progress;
use tapio_spool::disk::RealDisk;
use tapio_store::{
    client::{ClientError, Credentials, Endpoint, ReadLimits, Reader},
    engine::{EmbeddedEngine, EngineConfig, EngineError, EngineState},
    migrations::{self, MigrationError},
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Password, StoreConfig},
    state::{self, StateDirectory, StateError},
};

const RETRY_PAUSE_MIN: Duration = Duration::from_millis(200);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// DDL may wait for locks that a read never waits for.
const MIGRATION_TIME_MAX: Duration = Duration::from_secs(60);
/// No password is longer.
const PASSWORD_BYTES_MAX: usize = 4_096;
/// The file that tells central where to read.
const CONNECTION: &str = "connection.toml";

/// Why there is no store to write to.
#[derive(Debug, Error)]
pub enum StoreLinkError {
    /// The embedded engine does not start.
    #[error("the embedded ClickHouse does not start")]
    Engine(#[from] EngineError),
    /// The server's address cannot be used.
    #[error("the ClickHouse server cannot be used")]
    Client(#[from] ClientError),
    /// The password cannot be read.
    #[error("store.password_file: {} cannot be used: {reason}", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The schema is of another release.
    #[error("the schema in ClickHouse cannot be used")]
    Schema(#[from] MigrationError),
    /// `connection.toml` cannot be written.
    #[error("the connection's file cannot be written")]
    State(#[from] StateError),
}

/// What central needs to read.
#[derive(Serialize)]
struct Connection<'a> {
    url: &'a str,
    reader_user: &'a str,
    reader_password: &'a str,
}

/// The store's address and, where it is embedded, its process.
#[derive(Debug)]
pub(crate) struct StoreLink {
    engine: Option<EmbeddedEngine>,
    writer: Endpoint,
    reader: Endpoint,
    connection_file: PathBuf,
}

impl StoreLink {
    /// Starts the embedded engine, or takes the server's address as it is: whether it answers is seen later.
    pub(crate) async fn open(config: &StoreConfig, state: &StateDirectory) -> Result<Self, StoreLinkError> {
        let (engine, writer, reader) = match config {
            StoreConfig::Embedded { library } => {
                let engine = match library {
                    Some(library) => EngineConfig::with_library(state.engine(), library),
                    None => EngineConfig::new(state.engine())?,
                };
                let engine = EmbeddedEngine::start(engine).await?;
                let (writer, reader) = (engine.writer_endpoint()?, engine.reader_endpoint()?);
                (Some(engine), writer, reader)
            }
            StoreConfig::Server { url, user, password, reader } => {
                let endpoint = |user: &String, password: &Password| -> Result<_, StoreLinkError> {
                    let password = match password {
                        Password::None => String::new(),
                        Password::File(path) => read_password(path)?,
                        Password::Text(password) => password.clone(),
                    };
                    Ok(Endpoint::new(url, Credentials { user: user.clone(), password })?)
                };
                let writer = endpoint(user, password)?;
                let reader = match reader {
                    Some((user, password)) => endpoint(user, password)?,
                    None => {
                        tracing::warn!(
                            "central reads with the account that writes: name a store.reader_user"
                        );
                        writer.clone()
                    }
                };
                (None, writer, reader)
            }
        };
        // One of an earlier start names ports that are others' now.
        state::remove(&RealDisk, &connection_file(state))?;
        Ok(Self { engine, writer, reader, connection_file: connection_file(state) })
    }

    /// Brings the schema up, however long the store is away, and then tells central where to read; false when stopped
    /// before.
    ///
    /// # Errors
    /// When the schema is of a newer release or was changed: no waiting helps then.
    pub(crate) fn bring_up(
        &self,
        progress: Progress,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<bool, StoreLinkError>> + Send + 'static {
        let (writer, reader, path) = (self.writer.clone(), self.reader.clone(), self.connection_file.clone());
        async move {
            let is_up = bring_schema_up(writer, &progress, &stop).await?;
            let is_up = is_up && tell_connection(&path, &reader, &progress, &stop).await?;
            progress.finish();
            Ok(is_up)
        }
    }

    /// Whether the store is our own child.
    pub(crate) const fn is_embedded(&self) -> bool {
        self.engine.is_some()
    }

    /// Where and as whom to write.
    pub(crate) const fn writer(&self) -> &Endpoint {
        &self.writer
    }

    /// The embedded engine's process, while it runs.
    pub(crate) fn engine_pid(&self) -> Option<u32> {
        match self.engine.as_ref()?.status().state {
            EngineState::Ready { pid } => Some(pid),
            _ => None,
        }
    }

    /// Ends the embedded engine.
    pub(crate) async fn close(self) -> Result<(), EngineError> {
        match self.engine {
            Some(engine) => engine.stop().await,
            None => Ok(()),
        }
    }
}

/// The file that tells central where to read.
pub(crate) fn connection_file(state: &StateDirectory) -> PathBuf {
    state.root().join(CONNECTION)
}

/// Writes the connection's file, again while its disk is full; false when stopped before.
async fn tell_connection(
    path: &Path,
    reader: &Endpoint,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<bool, StateError> {
    loop {
        match write_connection(path, reader) {
            Err(error) if error.is_disk_full() => {
                let text = tapio_daemon::with_causes(&error);
                progress.fault(format!("{text}: free some space there, nothing is stored before"));
            }
            written => return written.map(|()| true),
        }
        if tokio::time::timeout(RETRY_PAUSE_MIN, stop.cancelled()).await.is_ok() {
            return Ok(false);
        }
        progress.tick();
    }
}

fn write_connection(path: &Path, reader: &Endpoint) -> Result<(), StateError> {
    let Credentials { user, password } = reader.credentials();
    let connection = Connection { url: reader.url(), reader_user: user, reader_password: password };
    let text = toml::to_string(&connection).map_err(|error| StateError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
        advice: "choose another password",
    })?;
    state::replace(&RealDisk, path, text.as_bytes())
}

async fn bring_schema_up(
    writer: Endpoint,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<bool, StoreLinkError> {
    let reader = Reader::new(&writer, ReadLimits { time_max: MIGRATION_TIME_MAX, ..ReadLimits::default() });
    let mut pause = RETRY_PAUSE_MIN;
    loop {
        let migrated = tokio::select! {
            () = stop.cancelled() => return Ok(false),
            migrated = migrate(&reader) => migrated,
        };
        match migrated {
            Ok(applied) => {
                tracing::info!(steps = applied.len(), "the schema is up to date");
                progress.clear();
                return Ok(true);
            }
            Err(error @ (MigrationError::Statement { .. } | MigrationError::Bookkeeping(_))) => {
                let error = tapio_daemon::with_causes(&error);
                tracing::warn!(error, "the schema cannot be brought up yet, data waits in the spool");
                progress.fault(format!("the schema cannot be brought up, data waits in the spool: {error}"));
                progress.tick();
                tokio::select! {
                    () = stop.cancelled() => return Ok(false),
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Brings the schema up and checks that its tables keep what exactly-once inserts need of them.
async fn migrate(reader: &Reader) -> Result<Vec<u32>, MigrationError> {
    let applied = migrations::migrate(reader).await?;
    migrations::check_deduplication(reader, migrations::REMEMBERED_BLOCKS_MIN).await?;
    Ok(applied)
}

/// The password that stands in a file.
pub(crate) fn read_password(path: &Path) -> Result<String, StoreLinkError> {
    let refuse = |reason: String| StoreLinkError::Password { path: path.to_owned(), reason };
    let text = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.len() > PASSWORD_BYTES_MAX || password.contains('\n') {
        return Err(refuse("it must hold the password alone, on one line".to_owned()));
    }
    Ok(password.to_owned())
}
