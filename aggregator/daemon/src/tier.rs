//! The process of a tier, from its command line to its exit status.

use std::{
    convert::Infallible,
    future::Future,
    io::{self, Write as _},
    process::ExitCode,
};

use tokio_util::sync::CancellationToken;

use crate::{
    config::{ConfigError, Invocation, Key, Mode, Problems, Settings},
    process::{Failure, run_main},
    shutdown::Hangups,
    telemetry::{self, LogFilter},
};

/// The key of the log filter, which all tiers have.
pub const LOG_KEY: Key = Key::text(
    "telemetry.log",
    "What is logged to standard error, in the syntax of `tracing`: a level, or `target=level` pairs.",
)
.or("info")
.reloadable();

/// Runs a tier as it was called: reads its settings from file, environment and command line, makes a configuration of
/// them with `check`, and does what was asked for: looks at the files that it names with `inspect` and exits, shows what is
/// in force and exits, or runs `work` until it ends. SIGHUP reads the settings again.
pub fn run_tier<C, W, F>(
    invocation: Invocation,
    check: fn(Settings) -> Result<C, Problems>,
    inspect: fn(&C) -> Vec<Failure>,
    work: W,
) -> ExitCode
where
    C: Send + 'static,
    W: FnOnce(C, CancellationToken) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    run_main(invocation.tier().program, |shutdown| async move {
        let settings = invocation.settings()?;
        let config = check(settings.clone())?;
        match invocation.mode() {
            Mode::Check => Failure::of_check(inspect(&config)),
            Mode::Print => Ok(io::stdout().lock().write_all(settings.to_toml().as_bytes())?),
            Mode::Run => {
                let level = settings.text(LOG_KEY.path).unwrap_or_default();
                let log = telemetry::init(&level)?;
                let hangups = Hangups::catch()?;
                let reload = Reload { invocation, in_force: settings, check, log };
                // Reading settings again waits only between signals, so nothing is lost when the work ends.
                tokio::select! {
                    result = work(config, shutdown) => result,
                    never = reload.run(hangups) => match never {},
                }
            }
        }
    })
}

/// Reads the settings again at each SIGHUP and applies what can be applied.
struct Reload<C> {
    invocation: Invocation,
    in_force: Settings,
    check: fn(Settings) -> Result<C, Problems>,
    log: LogFilter,
}

impl<C: Send + 'static> Reload<C> {
    async fn run(mut self, mut hangups: Hangups) -> Infallible {
        loop {
            hangups.next().await;
            if let Err(error) = self.read().await {
                tracing::error!(%error, "the configuration is not reloaded, the one before stays in force");
            }
        }
    }

    async fn read(&mut self) -> Result<(), Failure> {
        let (invocation, check) = (self.invocation.clone(), self.check);
        // A disk may take its time.
        let read = move || -> Result<Settings, ConfigError> {
            let settings = invocation.settings()?;
            check(settings.clone())?;
            Ok(settings)
        };
        let settings = tokio::task::spawn_blocking(read).await??;
        for key in self.in_force.changed(&settings) {
            if key.is_reloadable {
                self.apply(key, &settings)?;
                tracing::info!(key = key.path, "a changed value is in force");
            } else {
                tracing::warn!(key = key.path, "a changed value is not in force until the next start");
            }
        }
        self.in_force.take_reloadable(&settings);
        tracing::info!("the configuration was read again");
        Ok(())
    }

    fn apply(&self, key: &Key, settings: &Settings) -> Result<(), Failure> {
        if key.path == LOG_KEY.path {
            self.log.set(&settings.text(key.path).unwrap_or_default())?;
        }
        Ok(())
    }
}
