//! Which store, and as whom: the connection file, read again whenever it changes.
//!
//! An embedded engine may come back on another port; its aggregator then writes the file anew.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::Deserialize;
use tapio_store::client::{Credentials, Endpoint, ReadLimits, Reader};

use super::HistoryError;
use crate::config::StoreAccess;

/// How long a schema that was found right is taken for right.
const SCHEMA_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// No connection file is larger.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The file as an aggregator or a person writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectionFile {
    url: String,
    reader_user: String,
    reader_password: String,
}

/// The connection in use, and the state of the file that it was read from.
pub(super) struct Connection {
    path: PathBuf,
    current: Mutex<Option<Current>>,
}

struct Current {
    stamp: FileStamp,
    reader: Reader,
    /// When the schema behind it was last found to be this version's.
    schema_checked: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    modified: SystemTime,
    length: u64,
}

impl Connection {
    pub(super) fn new(access: &StoreAccess) -> Self {
        Self { path: access.connection.clone(), current: Mutex::new(None) }
    }

    /// A reader of the store that the file names now.
    pub(super) fn reader(&self) -> Result<Reader, HistoryError> {
        let stamp = self.stamp().map_err(|error| self.fault(&error))?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref()
            && current.stamp == stamp
        {
            return Ok(current.reader.clone());
        }
        if stamp.length > FILE_BYTES_MAX {
            return Err(self.fault(&format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = fs::read_to_string(&self.path).map_err(|error| self.fault(&error))?;
        let file: ConnectionFile =
            toml::from_str(&text).map_err(|error| self.fault(&error.to_string().trim_end()))?;
        let credentials = Credentials { user: file.reader_user, password: file.reader_password };
        let endpoint = Endpoint::new(&file.url, credentials).map_err(|error| self.fault(&error))?;
        let reader = Reader::new(&endpoint, ReadLimits::default());
        *current = Some(Current { stamp, reader: reader.clone(), schema_checked: None });
        Ok(reader)
    }

    /// Whether the schema is to be looked at before the next query: with a new connection, and from time to time,
    /// because a newer aggregator may bring the schema up under a running central.
    pub(super) fn is_schema_due(&self) -> bool {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = current.as_ref().and_then(|current| current.schema_checked);
        checked.is_none_or(|at| at.elapsed() > SCHEMA_CHECK_INTERVAL)
    }

    pub(super) fn schema_checked(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_mut() {
            current.schema_checked = Some(Instant::now());
        }
    }

    fn stamp(&self) -> io::Result<FileStamp> {
        let metadata = fs::metadata(&self.path)?;
        Ok(FileStamp { modified: metadata.modified()?, length: metadata.len() })
    }

    fn fault(&self, reason: &dyn std::fmt::Display) -> HistoryError {
        HistoryError::Connection { path: self.path.display().to_string(), reason: reason.to_string() }
    }
}
