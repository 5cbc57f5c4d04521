//! Which store, and as whom: the connection file, read again whenever it changes.
//!
//! An embedded engine may come back on another port; its aggregator then writes the file anew.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tapio_store::client::{Credentials, Endpoint, ReadLimits, Reader};

use super::HistoryError;
use crate::config::StoreAccess;

/// How long a schema that was found right is taken for right.
const SCHEMA_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// No connection file is larger.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The file as an aggregator or a person writes it.
#[derive(Debug, PartialEq, Eq)]
struct ConnectionFile {
    url: String,
    credentials: Credentials,
}

impl ConnectionFile {
    /// Reads `text`. What is wrong is told by line and key alone, never with what stands there: it may be a password,
    /// and the reason is shown to whoever asks for central's health.
    fn parse(text: &str) -> Result<Self, String> {
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            format!("line {line} is not TOML; each value stands in quotes, such as reader_user = \"...\"")
        })?;
        let mut take = |key: &str| match table.remove(key) {
            Some(toml::Value::String(value)) => Ok(value),
            Some(_) => Err(format!("{key} is no text; put its value in quotes")),
            None => Err(format!("{key} is missing")),
        };
        let (url, user, password) = (take("url")?, take("reader_user")?, take("reader_password")?);
        match table.keys().next() {
            Some(key) => Err(format!("{key:?} is not known; there are url, reader_user and reader_password")),
            None => Ok(Self { url, credentials: Credentials { user, password } }),
        }
    }
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

    /// Whether the file, where there is one, can be used.
    pub(super) fn check(&self) -> Result<(), HistoryError> {
        match self.stamp() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => self.reader().map(drop),
        }
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
        let text = self.read().map_err(|error| self.fault(&error))?;
        let file = ConnectionFile::parse(&text).map_err(|reason| self.fault(&reason))?;
        let endpoint = Endpoint::new(&file.url, file.credentials).map_err(|error| self.fault(&error))?;
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

    fn read(&self) -> io::Result<String> {
        let mut text = String::new();
        let length = File::open(&self.path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if length as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        Ok(text)
    }

    fn stamp(&self) -> io::Result<FileStamp> {
        let metadata = fs::metadata(&self.path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(FileStamp { modified: metadata.modified()?, length: metadata.len() })
    }

    fn fault(&self, reason: &dyn std::fmt::Display) -> HistoryError {
        HistoryError::Connection { path: self.path.display().to_string(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: files as people mistype them, the password among what is wrong.
    /// Guarantees: line or key is told, and nothing that stands in the file.
    #[test]
    fn faults_show_no_password() {
        let right = "url = \"http://127.0.0.1:1\"\nreader_user = \"r\"\nreader_password = \"sesame\"\n";
        assert_eq!(ConnectionFile::parse(right).unwrap().credentials.password, "sesame");
        for (from, to, told) in [
            ("\"sesame\"", "sesame", "line 3 is not TOML"),
            ("\"sesame\"", "\"sesame", "line 3 is not TOML"),
            ("\"sesame\"", "123456", "reader_password is no text"),
            ("reader_password", "reader_pasword", "reader_password is missing"),
            ("url", "port = 1\nurl", "\"port\" is not known"),
        ] {
            let fault = ConnectionFile::parse(&right.replace(from, to)).unwrap_err();
            assert!(
                fault.contains(told) && !fault.contains("sesame") && !fault.contains("123456"),
                "{fault}"
            );
        }
    }
}
