//! The embedded engine: the real ClickHouse as a supervised child process on loopback.
//!
//! [`EmbeddedEngine::start`] finds the library, writes the engine's configuration and users below one state
//! directory, starts the launcher and returns when the engine answers. From then on a thread of its own restarts the
//! engine when it dies, with a growing pause. [`EmbeddedEngine::stop`] ends it; dropping the value kills it; and when
//! the process that holds it is killed, the kernel kills the engine.
//!
//! The engine is never loaded into this process, never listens elsewhere than on loopback, and writes nothing
//! outside the state directory. Called by the aggregator (and tests); everything else only sees an HTTP address.

mod files;
mod launcher;
mod library;
mod probe;
mod supervisor;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

pub use library::find_library;

use crate::client::{ClientError, Credentials, Endpoint};

/// Which user the engine's process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// `nobody` when this process is root and `nobody` can reach the state directory; else this process's user.
    UnprivilegedWherePossible,
    /// Always this process's user.
    ThisUser,
}

/// How to run the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// The engine's library, `libchdb.so`.
    pub library: PathBuf,
    /// Everything that the engine keeps is below it; one engine at a time. It is created where it is missing.
    /// For the engine to run unprivileged, every directory above must be searchable by others (mode `o+x`).
    pub state_dir: PathBuf,
    /// The most memory that the engine may use, caches and merges included.
    pub memory_bytes_max: u64,
    /// How long a start may take until the engine answers.
    pub ready_timeout: Duration,
    /// How long a stop waits before it kills.
    pub stop_timeout: Duration,
    /// The first pause before a restart; it doubles up to `restart_pause_max` while the engine keeps dying.
    pub restart_pause: Duration,
    /// The longest pause before a restart.
    pub restart_pause_max: Duration,
    /// Which user the engine runs as.
    pub run_as: RunAs,
}

impl EngineConfig {
    /// The defaults for `state_dir`, with the library that [`find_library`] finds.
    ///
    /// # Errors
    /// [`EngineError::Library`] when there is no library.
    pub fn new(state_dir: impl Into<PathBuf>) -> Result<Self, EngineError> {
        Ok(Self::with_library(state_dir, find_library()?))
    }

    /// The defaults for `state_dir` and a library of the caller's choice.
    #[must_use]
    pub fn with_library(state_dir: impl Into<PathBuf>, library: impl Into<PathBuf>) -> Self {
        Self {
            library: library.into(),
            state_dir: state_dir.into(),
            memory_bytes_max: 2 * 1024 * 1024 * 1024,
            ready_timeout: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(15),
            restart_pause: Duration::from_millis(200),
            restart_pause_max: Duration::from_secs(10),
            run_as: RunAs::UnprivilegedWherePossible,
        }
    }
}

/// Why the engine cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The library is not there.
    #[error(
        "the ClickHouse engine's library is not at {path}: {reason}; run scripts/lib/fetch-clickhouse, \
             set TAPIO_CLICKHOUSE_LIB to a libchdb.so, or use a ClickHouse server with --clickhouse-url"
    )]
    Library {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state directory cannot be used.
    #[error("the engine's state at {path} cannot be used: {doing}")]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another engine runs on the same state directory.
    #[error("another process runs an engine on {path}; stop it or choose another state directory")]
    Busy {
        /// The state directory.
        path: PathBuf,
    },
    /// The file with the passwords is damaged.
    #[error("{path} does not hold the engine's passwords: {reason}; remove it to have new ones made")]
    Passwords {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The launcher could not be started at all.
    #[error("the engine's launcher cannot be started: {doing}")]
    Launcher {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The engine ended while it was starting.
    #[error("the engine ended while starting ({status}); it said:\n{said}")]
    Ended {
        /// Its exit status.
        status: String,
        /// The end of its output and of its log.
        said: String,
    },
    /// The engine runs but does not answer.
    #[error("the engine did not answer on {address} within {} s ({probe}); it said:\n{said}", timeout.as_secs_f32())]
    NotReady {
        /// Its HTTP address.
        address: SocketAddr,
        /// How long was waited.
        timeout: Duration,
        /// What the last attempt gave.
        probe: String,
        /// The end of its output and of its log.
        said: String,
    },
    /// The engine did not end in time and was killed; nothing that was acknowledged is lost.
    #[error("the engine did not end within {} s and was killed; nothing acknowledged is lost", timeout.as_secs_f32())]
    Killed {
        /// How long was waited.
        timeout: Duration,
    },
    /// The thread that watches the engine is gone, which is a fault in this program.
    #[error("the engine's supervisor ended unexpectedly")]
    SupervisorGone,
}

/// What the supervisor knows of the engine now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// It is being started for the first time.
    Starting,
    /// It answers.
    Ready {
        /// Its process.
        pid: u32,
    },
    /// It died and will be started again.
    Restarting {
        /// Why it died, or why the last start failed.
        reason: String,
    },
    /// It was stopped.
    Stopped,
}

/// State and history of the engine, for health and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineStatus {
    /// What it does now.
    pub state: EngineState,
    /// Where it listens; fixed from the first time that it was ready.
    pub addresses: Addresses,
    /// How often it was started again since [`EmbeddedEngine::start`].
    pub restarts: u64,
}

/// A running engine. See the module's documentation for how it ends.
#[derive(Debug)]
pub struct EmbeddedEngine {
    writer: Credentials,
    reader: Credentials,
    identity: Identity,
    status: watch::Receiver<EngineStatus>,
    control: supervisor::Control,
    thread: Option<JoinHandle<Result<(), EngineError>>>,
}

/// Where the engine listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// HTTP.
    pub http: SocketAddr,
}

/// The user that the engine runs as, and why it is not the unprivileged one where it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// (uid, gid) to change to; `None` keeps this process's user.
    pub change_to: Option<(u32, u32)>,
    /// Why the engine keeps this process's user.
    pub reason: Option<String>,
}

impl EmbeddedEngine {
    /// Starts the engine and returns when it answers as both of its users.
    ///
    /// # Errors
    /// [`EngineError`] says what to do; nothing keeps running after an error.
    pub async fn start(config: EngineConfig) -> Result<Self, EngineError> {
        library::check(&config.library)?;
        let prepared = files::prepare(&config)?;
        if let Some(reason) = &prepared.identity.reason {
            tracing::warn!(reason, "the engine runs with this process's user");
        }
        let (writer, reader) = (prepared.writer.clone(), prepared.reader.clone());
        let identity = prepared.identity.clone();
        let started = supervisor::start(config, prepared)?;
        // Complete from here on: if the caller drops this future, dropping the value ends the engine.
        let mut engine = Self {
            writer,
            reader,
            identity,
            status: started.status,
            control: started.control,
            thread: Some(started.thread),
        };
        loop {
            if let EngineState::Ready { .. } = engine.status.borrow_and_update().state {
                break;
            }
            // The thread ends, and with it the channel, when the first start fails.
            if engine.status.changed().await.is_err() {
                return Err(match engine.thread.take().map(JoinHandle::join) {
                    Some(Ok(Err(error))) => error,
                    _ => EngineError::SupervisorGone,
                });
            }
        }
        let Addresses { http } = engine.addresses();
        tracing::info!(%http, "the embedded engine is ready");
        Ok(engine)
    }

    /// Where it listens; the same after a restart.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.status.borrow().addresses
    }

    /// The base URL of its HTTP interface.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.addresses().http)
    }

    /// The user that may change everything in the database `tapio` and nothing else.
    #[must_use]
    pub fn writer(&self) -> &Credentials {
        &self.writer
    }

    /// The user for people's SQL: reads the database `tapio`, with limits, and nothing else.
    #[must_use]
    pub fn reader(&self) -> &Credentials {
        &self.reader
    }

    /// Where and how to write.
    ///
    /// # Errors
    /// None in practice; the URL is made here.
    pub fn writer_endpoint(&self) -> Result<Endpoint, ClientError> {
        Endpoint::new(&self.http_url(), self.writer.clone())
    }

    /// Where and how to read.
    ///
    /// # Errors
    /// None in practice; the URL is made here.
    pub fn reader_endpoint(&self) -> Result<Endpoint, ClientError> {
        Endpoint::new(&self.http_url(), self.reader.clone())
    }

    /// The user that its process runs as.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What it does now.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        self.status.borrow().clone()
    }

    /// Follows what it does: health checks and tests wait for changes here.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<EngineStatus> {
        self.status.clone()
    }

    /// Ends the engine: its input is closed, and after the configured time it is killed.
    ///
    /// # Errors
    /// [`EngineError::Killed`] when it had to be killed.
    pub async fn stop(mut self) -> Result<(), EngineError> {
        self.control.stop_gracefully();
        // The thread drops the sender as its last act, so that the join below does not block.
        while self.status.changed().await.is_ok() {}
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            _ => Err(EngineError::SupervisorGone),
        }
    }
}

impl Drop for EmbeddedEngine {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.control.kill();
            // Only a kill and a wait for it remain, which take milliseconds.
            let ended = thread.join();
            if !matches!(ended, Ok(Ok(()))) {
                tracing::debug!("the engine was dropped while it was not running well");
            }
        }
    }
}
