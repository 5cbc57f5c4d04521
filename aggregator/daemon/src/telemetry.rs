//! Logs: to standard error, so that standard output stays what a command prints.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// The variable that overrides the configured level, in `tracing`'s filter syntax (`info`,
/// `tapio_spool=debug,warn`).
pub const LEVEL_VARIABLE: &str = "TAPIO_LOG";

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Time, level, module, message, fields; coloured on a terminal.
    #[default]
    Full,
    /// Without time and module, for a supervisor that adds its own.
    Compact,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not a filter.
    #[error("log level {filter:?} from {origin} is not understood: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// Where it was given.
        origin: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Something in this process has set up logging already.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Sets up logging for the process. `level` is used where the environment says nothing.
///
/// # Errors
/// When the level is not understood, or logging was set up before.
pub fn init(level: &str, format: Format) -> Result<(), TelemetryError> {
    let overriding = std::env::var(LEVEL_VARIABLE).ok().filter(|filter| !filter.is_empty());
    let (filter, origin) = match &overriding {
        Some(filter) => (filter.as_str(), LEVEL_VARIABLE),
        None => (level, "the configuration"),
    };
    let filter = parse_filter(filter, origin)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let set = match format {
        Format::Full => builder.try_init(),
        Format::Compact => builder.compact().without_time().with_target(false).try_init(),
    };
    set.map_err(|_already_set| TelemetryError::AlreadySet)
}

fn parse_filter(filter: &str, origin: &'static str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(filter).map_err(|error| TelemetryError::Filter {
        filter: filter.to_owned(),
        origin,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: filters as people write and mistype them.
    /// Guarantees: a wrong one is refused with where it came from.
    #[test]
    fn a_wrong_filter_is_refused_with_its_origin() {
        assert!(parse_filter("info,tapio_spool=debug", "the configuration").is_ok());
        let error = parse_filter("tapio=loud", LEVEL_VARIABLE).expect_err("refused").to_string();
        assert!(error.contains("\"tapio=loud\" from TAPIO_LOG"), "{error}");
    }
}
