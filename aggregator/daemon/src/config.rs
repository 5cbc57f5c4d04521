//! Configuration: one TOML file per tier, each of its keys also a variable and an option, refused with everything that
//! is wrong at once.
//!
//! A tier declares its keys as a [`Tier`]; from them come the command line, the checks of names and shapes, the
//! reference, and what `--print-config` shows. The tier makes of the [`Settings`] a configuration that cannot be wrong
//! and notes what is. A process that refuses its configuration exits with [`EXIT_CODE`].

mod file;
mod invocation;
mod key;
pub mod paths;
mod problems;
mod reference;
mod settings;
mod value;

use std::{io, path::PathBuf};

pub use self::{
    invocation::{Invocation, Mode},
    key::{Key, Presence, Shape, Tier},
    problems::Problems,
    reference::reference,
    settings::Settings,
};
/// The exit status of a process that refuses its configuration: restarting it will not help.
pub const EXIT_CODE: u8 = 2;

/// No configuration file is larger.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("configuration {} is no regular file: name the file itself (--config)", path.display())]
    NoFile {
        /// What was named.
        path: PathBuf,
    },
    /// The file is not what a configuration can be.
    #[error("configuration {} is larger than {FILE_BYTES_MAX} bytes: is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not TOML, keys are unknown, missing or of the wrong shape, or values do not make sense.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

#[cfg(test)]
mod tests;
