//! The engine's state directory: its layout, configuration, users and passwords.
//!
//! ```text
//! <state>/          0711  this process's user
//!   lock                  held while an engine runs here
//!   passwords.json  0600  this process's user; made once
//!   conf/           0700  the engine's user: config.xml, users.xml (hashes only), written at each start
//!   data/           0700  the engine's user
//!   log/            0700  the engine's user; rotated
//! ```
//!
//! A file that holds a password or its hash is never readable by others, not even for a moment.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{EngineConfig, EngineError, Identity, RunAs};
use crate::client::{Credentials, DATABASE};

/// The uid and gid of `nobody` and `nogroup`, which are the kernel's own "overflow" ids everywhere.
const NOBODY: u32 = 65_534;
/// The name of the account that writes.
const WRITER: &str = "tapio_writer";
/// The name of the account for people's SQL.
const READER: &str = "tapio_reader";

/// A state directory that an engine can be started on.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) config_file: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) log_file: PathBuf,
    pub(super) writer: Credentials,
    pub(super) reader: Credentials,
    pub(super) identity: Identity,
    /// Held for as long as the engine may run.
    _lock: File,
}

pub(super) fn prepare(config: &EngineConfig) -> Result<Prepared, EngineError> {
    // The engine resolves paths against a working directory of its own.
    let state = std::path::absolute(&config.state_dir).map_err(fault(&config.state_dir, "finding it"))?;
    make_dir(&state, 0o711)?;
    let lock = lock(&state)?;
    let identity = identity(config.run_as, &state);
    let (conf, data, log) = (state.join("conf"), state.join("data"), state.join("log"));
    for dir in [&conf, &data, &log] {
        make_dir(dir, 0o700)?;
    }
    let passwords = passwords(&state.join("passwords.json"))?;
    let log_file = log.join("engine.log");
    let users_file = conf.join("users.xml");
    let config_file = conf.join("config.xml");
    write_private(&users_file, &users_xml(&passwords))?;
    write_private(&config_file, &config_xml(config.memory_bytes_max, &users_file, &data, &log_file))?;

    // After a start as another user everything below belongs to that one.
    let owner = identity.change_to.unwrap_or_else(this_user);
    for dir in [&conf, &data, &log] {
        hand_over(dir, owner)?;
    }
    Ok(Prepared {
        config_file,
        data_dir: data,
        log_file,
        writer: Credentials { user: WRITER.to_owned(), password: passwords.writer },
        reader: Credentials { user: READER.to_owned(), password: passwords.reader },
        identity,
        _lock: lock,
    })
}

fn fault(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.to_owned();
    move |source| EngineError::State { path, doing, source }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), EngineError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(fault(path, "creating it"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fault(path, "setting its mode"))
}

fn lock(state: &Path) -> Result<File, EngineError> {
    let path = state.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(fault(&path, "opening it"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EngineError::Busy { path: state.to_owned() }),
        Err(TryLockError::Error(source)) => Err(EngineError::State { path, doing: "locking it", source }),
    }
}

fn this_user() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Whom the engine runs as. Only root can give a user away, and `nobody` must be able to reach the directory.
fn identity(run_as: RunAs, state: &Path) -> Identity {
    let keep = |reason: Option<String>| Identity { change_to: None, reason };
    match run_as {
        RunAs::ThisUser => return keep(None),
        // Not root: there is nothing to give up.
        RunAs::UnprivilegedWherePossible if this_user().0 != 0 => return keep(None),
        RunAs::UnprivilegedWherePossible => {}
    }
    for dir in state.ancestors() {
        match fs::metadata(dir) {
            Ok(metadata) if metadata.mode() & 0o001 != 0 => {}
            Ok(_closed) => {
                let dir = dir.display();
                return keep(Some(format!(
                    "{dir} is closed to other users; `chmod o+x {dir}` lets it run as nobody"
                )));
            }
            Err(error) => return keep(Some(format!("{} cannot be looked at: {error}", dir.display()))),
        }
    }
    Identity { change_to: Some((NOBODY, NOBODY)), reason: None }
}

/// Gives `path` and all below to `owner`. Cheap when it is so already, which one look at the top tells: the engine
/// makes everything below as the same user.
fn hand_over(path: &Path, owner: (u32, u32)) -> Result<(), EngineError> {
    let looked_at = fs::symlink_metadata(path).map_err(fault(path, "looking at it"))?;
    let root_made_files = path.ends_with("conf");
    if (looked_at.uid(), looked_at.gid()) == owner && !root_made_files {
        return Ok(());
    }
    give(path, owner)
}

fn give(path: &Path, owner: (u32, u32)) -> Result<(), EngineError> {
    let metadata = fs::symlink_metadata(path).map_err(fault(path, "looking at it"))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(fault(path, "listing it"))? {
            give(&entry.map_err(fault(path, "listing it"))?.path(), owner)?;
        }
    }
    if (metadata.uid(), metadata.gid()) == owner {
        return Ok(());
    }
    // The top of a tree comes last, so that a crash between leaves the old owner there and the next start goes on.
    std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1))
        .map_err(fault(path, "giving it to the engine's user"))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Passwords {
    version: u32,
    writer: String,
    reader: String,
}

fn passwords(path: &Path) -> Result<Passwords, EngineError> {
    let unusable = |reason: String| EngineError::Passwords { path: path.to_owned(), reason };
    match fs::read(path) {
        Ok(bytes) => {
            let known: Passwords =
                serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
            let plain =
                |text: &str| text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if known.version != 1 || !plain(&known.writer) || !plain(&known.reader) {
                return Err(unusable("unknown version or a password that was not made here".to_owned()));
            }
            Ok(known)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made =
                Passwords { version: 1, writer: random_password(path)?, reader: random_password(path)? };
            let text = serde_json::to_string_pretty(&made).map_err(|error| unusable(error.to_string()))?;
            write_private(path, &text)?;
            Ok(made)
        }
        Err(source) => Err(EngineError::State { path: path.to_owned(), doing: "reading it", source }),
    }
}

fn random_password(path: &Path) -> Result<String, EngineError> {
    let mut bytes = [0_u8; 20];
    getrandom::fill(&mut bytes)
        .map_err(|error| EngineError::Passwords { path: path.to_owned(), reason: error.to_string() })?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), EngineError> {
    let new = path.with_extension("new");
    let written = (|| {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(fault(path, "writing it"))
}

/// `tapio_` in Base64, with which the basic credentials of all our accounts begin: six characters are eight of Base64,
/// so that the prefix does not depend on what follows.
const BASIC_PREFIX: &str = "dGFwaW9f";

/// Limits of the reader's account: people's SQL must not take the store away from the pipeline.
const READER_LIMITS: &[(&str, u64)] = &[
    ("max_execution_time", 60),
    ("max_memory_usage", 1_000_000_000),
    ("max_result_rows", 1_000_000),
    ("max_threads", 4),
    ("max_concurrent_queries_for_user", 16),
];

/// The users. The engine's own session is `default`, which cannot have a password. It is allowed exactly the statements
/// of its start, and no network reaches it: the HTTP handlers take only accounts of ours, and there is no other listener.
fn users_xml(passwords: &Passwords) -> String {
    let mut limits = String::new();
    let mut constraints = String::new();
    for (name, value) in READER_LIMITS {
        limits.push_str(&format!("      <{name}>{value}</{name}>\n"));
        constraints.push_str(&format!("        <{name}><min>1</min><max>{value}</max></{name}>\n"));
    }
    let user = |name: &str, password: &str, profile: &str, grants: &[String]| {
        let grants: String =
            grants.iter().map(|grant| format!("        <query>GRANT {grant}</query>\n")).collect();
        let hash = hex(&Sha256::digest(password.as_bytes()));
        format!(
            "    <{name}>\n      <password_sha256_hex>{hash}</password_sha256_hex>\n      \
             <networks><ip>127.0.0.1</ip></networks>\n      <profile>{profile}</profile>\n      \
             <quota>unlimited</quota>\n      <grants>\n{grants}      </grants>\n    </{name}>\n"
        )
    };
    let mut writer_grants = vec![format!("ALL ON {DATABASE}.*"), "SELECT ON system.*".to_owned()];
    // Engines by name: the right to all engines includes reading and writing files of the host.
    for engine in ["MergeTree", "SummingMergeTree", "AggregatingMergeTree", "ReplacingMergeTree"] {
        writer_grants.push(format!("TABLE ENGINE ON {engine}"));
    }
    let writer = user(WRITER, &passwords.writer, "pipeline", &writer_grants);
    let reader = user(READER, &passwords.reader, "people", &[format!("SELECT, SHOW ON {DATABASE}.*")]);
    format!(
        "<clickhouse>
  <profiles>
    <default><log_queries>0</log_queries></default>
    <pipeline><log_queries>0</log_queries></pipeline>
    <people>
      <log_queries>0</log_queries>
      <readonly>2</readonly>
      <allow_ddl>0</allow_ddl>
{limits}      <constraints>
        <allow_ddl><readonly/></allow_ddl>
{constraints}      </constraints>
    </people>
  </profiles>
  <quotas>
    <unlimited/>
    <own_start>
      <interval><duration>2000000000</duration><queries>2</queries></interval>
    </own_start>
  </quotas>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>own_start</quota>
      <grants>
        <query>GRANT SYSTEM LISTEN ON *.*</query>
        <query>GRANT CREATE TEMPORARY TABLE ON *.*</query>
        <query>GRANT READ ON FILE</query>
      </grants>
    </default>
{writer}{reader}  </users>
</clickhouse>
"
    )
}

/// The server's settings: bounded memory, caches, pools and logs; no table of the system's own is written. A stopping
/// engine waits for idle connections to time out, so that time is short, but longer than our clients keep them.
fn config_xml(memory_bytes_max: u64, users: &Path, data: &Path, log: &Path) -> String {
    let (users, data, log) = (xml_text(users), xml_text(data), xml_text(log));
    format!(
        "<clickhouse>
  <logger><log>{log}</log><size>8M</size><count>2</count></logger>
  <users_config>{users}</users_config>
  <user_files_path>{data}/user_files/</user_files_path>
  <timezone>UTC</timezone>
  <keep_alive_timeout>3</keep_alive_timeout>
  <max_server_memory_usage>{memory_bytes_max}</max_server_memory_usage>
  <mark_cache_size>67108864</mark_cache_size>
  <index_mark_cache_size>16777216</index_mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
  <index_uncompressed_cache_size>0</index_uncompressed_cache_size>
  <primary_index_cache_size>67108864</primary_index_cache_size>
  <query_condition_cache_size>16777216</query_condition_cache_size>
  <mmap_cache_size>256</mmap_cache_size>
  <max_connections>256</max_connections>
  <max_concurrent_queries>64</max_concurrent_queries>
  <background_pool_size>4</background_pool_size>
  <background_schedule_pool_size>8</background_schedule_pool_size>
  <background_common_pool_size>2</background_common_pool_size>
  <background_move_pool_size>1</background_move_pool_size>
  <background_fetches_pool_size>1</background_fetches_pool_size>
  <merge_tree>
    <number_of_free_entries_in_pool_to_execute_mutation>2</number_of_free_entries_in_pool_to_execute_mutation>
    <number_of_free_entries_in_pool_to_lower_max_size_of_merge>2</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
    <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>2</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
  </merge_tree>
  <remote_url_allow_hosts/>
  <http_handlers>
    <rule>
      <headers><X-ClickHouse-User>regex:^({WRITER}|{READER})$</X-ClickHouse-User></headers>
      <handler><type>dynamic_query_handler</type><query_param_name>query</query_param_name></handler>
    </rule>
    <rule>
      <headers><Authorization>regex:^Basic {BASIC_PREFIX}.*$</Authorization></headers>
      <handler><type>dynamic_query_handler</type><query_param_name>query</query_param_name></handler>
    </rule>
    <rule>
      <handler>
        <type>static</type>
        <status>403</status>
        <content_type>text/plain; charset=UTF-8</content_type>
        <response_content>name an account of Tapio: X-ClickHouse-User and X-ClickHouse-Key, or curl -u
</response_content>
      </handler>
    </rule>
  </http_handlers>
  <send_crash_reports><enabled>false</enabled></send_crash_reports>
</clickhouse>
"
    )
}

fn xml_text(path: &Path) -> String {
    path.display().to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: passwords are made, read again, and then the file is damaged.
    /// Guarantees: they are kept, differ from each other, the file is private, and damage is named, not repaired.
    #[test]
    fn passwords_are_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwords.json");
        let first = passwords(&path).unwrap();
        let second = passwords(&path).unwrap();
        assert_eq!((&first.writer, &first.reader), (&second.writer, &second.reader));
        assert_ne!(first.writer, first.reader);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, "{}").unwrap();
        assert!(matches!(passwords(&path), Err(EngineError::Passwords { .. })));
    }

    /// Scenario: the users file for known passwords.
    /// Guarantees: it holds hashes and never the passwords.
    #[test]
    fn users_hold_hashes_only() {
        let known = Passwords { version: 1, writer: "w".repeat(40), reader: "r".repeat(40) };
        let text = users_xml(&known);
        assert!(!text.contains(&known.writer) && !text.contains(&known.reader));
    }

    /// Scenario: a state directory that is locked already.
    /// Guarantees: a second engine on it is refused by name.
    #[test]
    fn one_engine_per_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let _held = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(EngineError::Busy { .. })));
    }
}
