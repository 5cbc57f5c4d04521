//! Logs: to standard error, so that standard output stays what a command prints.

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
};

use tracing_subscriber::{
    EnvFilter, Registry, filter::LevelFilter, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Why logging could not be set up, or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not a filter.
    #[error("the log filter {filter:?} is not understood: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong.
        reason: String,
    },
    /// Something in this process has set up logging already.
    #[error("logging is already set up in this process")]
    AlreadySet,
    /// Nothing logs any more.
    #[error("nothing logs any more")]
    Gone,
}

/// What is logged by a running process, and may be changed.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Puts another filter in force.
    ///
    /// # Errors
    /// When it is not understood; the one before stays in force.
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = parse_filter(filter)?;
        self.0.reload(filter).map_err(|_gone| TelemetryError::Gone)
    }
}

/// Sets up logging for the process. `filter` is in `tracing`'s syntax: `info`, or `tapio_spool=debug,warn`.
///
/// # Errors
/// When the filter is not understood, or logging was set up before.
pub fn init(filter: &str) -> Result<LogFilter, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let set = tracing_subscriber::registry().with(filter).with(lines).try_init();
    set.map_err(|_already_set| TelemetryError::AlreadySet)?;
    Ok(LogFilter(handle))
}

/// Whether a filter is understood.
///
/// # Errors
/// When it is not.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse_filter(filter).map(drop)
}

/// An address at which metrics and health may be served: on loopback, because what is served is not encrypted.
///
/// # Errors
/// When it is no address with a port, or another one.
pub fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_invalid| format!("{text:?} is no address with a port, such as 127.0.0.1:0"))?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(format!("{address} is not on loopback, and what is served there is not encrypted")),
    }
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let refused = |reason| TelemetryError::Filter { filter: filter.to_owned(), reason };
    // To the parser a mistyped level is a target: nothing else would be logged.
    let word = filter.split(',').map(str::trim).find(|part| is_no_level(part));
    if let (Some(word), false) = (word, filter.contains('[')) {
        return Err(refused(format!(
            "{word:?} is no level (off, error, warn, info, debug, trace); of a target write {word}=debug"
        )));
    }
    EnvFilter::builder().parse(filter).map_err(|error| refused(error.to_string()))
}

fn is_no_level(part: &str) -> bool {
    !part.contains('=') && part.parse::<LevelFilter>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: filters as people write and mistype them.
    /// Guarantees: a wrong one is refused with what was written.
    #[test]
    fn a_wrong_filter_is_refused() {
        assert!(check_filter("info,tapio_spool=debug").is_ok());
        assert!(check_filter("WARN").is_ok());
        let error = check_filter("tapio=loud").expect_err("refused").to_string();
        assert!(error.contains("\"tapio=loud\" is not understood"), "{error}");
        for filter in ["inof", "tapio=debug,inof"] {
            let error = check_filter(filter).expect_err("refused").to_string();
            assert!(error.contains("\"inof\" is no level"), "{error}");
        }
    }
}
