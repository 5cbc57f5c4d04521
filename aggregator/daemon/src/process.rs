//! From `main` to the process's work and back to an exit status.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::config::{self, ConfigError, Problems};
use crate::shutdown::Signals;

/// Why a process ends with an error, and with which exit status: [`config::EXIT_CODE`] when its
/// configuration is refused, 1 otherwise.
///
/// Made from any error with `?`; a [`ConfigError`] or [`Problems`] anywhere in its chain decides.
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    exit_code: u8,
}

impl Failure {
    /// A refused configuration.
    pub fn config(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), exit_code: config::EXIT_CODE }
    }

    /// Anything else.
    pub fn other(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), exit_code: 1 }
    }

    /// All `failures` of a checked configuration as one, a line each; none is none.
    ///
    /// # Errors
    /// When there are failures.
    pub fn of_check(failures: Vec<Self>) -> Result<(), Self> {
        if failures.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Err(Self::config(lines.join("\n")))
    }

    /// The exit status that stands for it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut link: Option<&(dyn Error + 'static)> = Some(&error);
        let mut refused = (&error as &dyn Any).is::<Problems>();
        while let Some(error) = link {
            refused |= error.is::<ConfigError>() || error.is::<Problems>();
            link = error.source();
        }
        if refused { Self::config(error) } else { Self::other(error) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&with_causes(self.error.as_ref()))
    }
}

/// An error and its causes, each behind a colon; a cause that the error before it already names is not repeated.
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut all = said.clone();
    let mut link = error.source();
    while let Some(cause) = link {
        let text = cause.to_string();
        if !said.contains(&text) {
            all.push_str(": ");
            all.push_str(&text);
            said = text;
        }
        link = cause.source();
    }
    all
}

impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Failure")
            .field("error", &self.error)
            .field("exit_code", &self.exit_code)
            .finish()
    }
}

/// Runs `work` on a runtime of its own until it ends, and turns its result into an exit status.
///
/// The token that it gets is cancelled by SIGTERM or SIGINT; a second signal ends the process at once
/// with the status that a shell gives a signal (128 and its number).
pub fn run_main<W, F>(name: &str, work: W) -> ExitCode
where
    W: FnOnce(CancellationToken) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    match run(work) {
        Ok(code) => code,
        Err(failure) => {
            // With standard error closed there is nobody left to tell.
            drop(writeln!(io::stderr().lock(), "{name}: {failure}"));
            ExitCode::from(failure.exit_code)
        }
    }
}

fn run<W, F>(work: W) -> Result<ExitCode, Failure>
where
    W: FnOnce(CancellationToken) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let token = CancellationToken::new();
        let mut signals = Signals::catch()?;
        // `until_second` is dropped only when the work is over, so its not being cancel-safe is no loss.
        tokio::select! {
            result = work(token.clone()) => result.map(|()| ExitCode::SUCCESS),
            (name, number) = signals.until_second(&token) => {
                tracing::error!(signal = name, "ended at once by a second signal");
                Ok(ExitCode::from(128 + number))
            }
        }
    });
    // Blocking tasks that are still running must not hold up a process that is to end now.
    runtime.shutdown_background();
    result
}
