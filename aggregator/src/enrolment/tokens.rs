//! Tokens in a file, for hosts that no Kubernetes vouches for.
//!
//! Each line binds the SHA-256 of a token to a node: `<64 hexadecimal digits> <node> [keys=N] [until=<RFC 3339>]`; `#`
//! begins a comment. A token is good for so many keys (one, where nothing is said): whoever lost a reply asks again for
//! the same key and is answered; a copy of the token buys nothing. Which keys were answered is on the disk before the
//! reply. Whoever has a certificate renews it with that, as long as a line names the node. The file is read for each
//! request, so that a change needs no restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tapio_daemon::with_causes;
use tapio_schemas::ids::NodeId;
use tapio_spool::disk::RealDisk;
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::Mutex;

use super::Refusal;
use crate::state::{StateError, read_json, replace_json};

/// No file of tokens is larger.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Lines with a token.
const TOKENS_MAX: usize = 16_384;
/// Keys that one token may be good for.
const KEYS_MAX: usize = 64;
/// Faults that one answer lists.
const FAULTS_MAX: usize = 10;

/// Why a file of tokens is not used.
#[derive(Debug, Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("cannot read the tokens {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("the tokens {} have {bytes} bytes, more than {FILE_BYTES_MAX}: is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Lines of it are wrong.
    #[error("the tokens {} are wrong:\n  {}", path.display(), faults.join("\n  "))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, each with its line; never a token.
        faults: Vec<String>,
    },
    /// What was spent cannot be read or written.
    #[error(transparent)]
    Spent(#[from] StateError),
}

/// The file, and what was spent of it.
#[derive(Debug)]
pub(super) struct Tokens {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    spent_path: PathBuf,
    spent: Spent,
}

/// Which keys each token was answered for, all as hexadecimal digits of SHA-256.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Spent {
    keys: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    node: String,
    keys_max: usize,
    until: Option<SystemTime>,
}

impl Tokens {
    /// The tokens in a file; `spent` is where it is kept what they were used for.
    ///
    /// # Errors
    /// When a file cannot be read or is wrong.
    pub(super) fn open(path: &Path, spent_path: PathBuf) -> Result<Self, TokensError> {
        read(path)?;
        let spent =
            read_json(&RealDisk, &spent_path, "remove it: tokens that were used can then be used once more")?;
        let inner = Inner { path: path.to_owned(), spent_path, spent: spent.unwrap_or_default() };
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// Uses a token for a key, and returns the node that it is bound to.
    pub(super) async fn spend(&self, token: String, key_digest: [u8; 32]) -> Result<String, Refusal> {
        let now = SystemTime::now();
        self.with(move |inner| inner.spend(&token, key_digest, now)).await
    }

    /// Looks whether a line names a node.
    pub(super) async fn lists(&self, node: String) -> Result<(), Refusal> {
        self.with(move |inner| {
            let listed = read(&inner.path).map_err(unavailable)?.values().any(|line| line.node == node);
            if listed { Ok(()) } else { Err(Refusal::NotListed) }
        })
        .await
    }

    /// Files are read and synced away from the tasks.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let mut inner = Arc::clone(&self.inner).lock_owned().await;
        let worked = tokio::task::spawn_blocking(move || work(&mut inner)).await;
        worked.unwrap_or_else(|_panicked| Err(Refusal::Unavailable("a fault of this program".to_owned())))
    }
}

impl Inner {
    fn spend(&mut self, token: &str, key_digest: [u8; 32], now: SystemTime) -> Result<String, Refusal> {
        let lines = read(&self.path).map_err(unavailable)?;
        let digest = hex(&Sha256::digest(token).into());
        let line = lines.get(&digest).ok_or(Refusal::UnknownToken)?;
        let key = hex(&key_digest);
        let used = self.spent.keys.get(&digest);
        if line.until.is_some_and(|until| until < now) {
            return Err(Refusal::TokenExpired);
        }
        if used.is_some_and(|keys| keys.contains(&key)) {
            return Ok(line.node.clone());
        }
        if used.map_or(0, BTreeSet::len) >= line.keys_max {
            return Err(Refusal::TokenSpent);
        }
        let mut spent = self.spent.clone();
        // What no line names any more cannot be used again.
        spent.keys.retain(|digest, _keys| lines.contains_key(digest));
        spent.keys.entry(digest).or_default().insert(key);
        replace_json(&RealDisk, &self.spent_path, &spent).map_err(|error| unavailable(error.into()))?;
        self.spent = spent;
        Ok(line.node.clone())
    }
}

fn unavailable(error: TokensError) -> Refusal {
    Refusal::Unavailable(with_causes(&error))
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<BTreeMap<String, Line>, TokensError> {
    let refuse = |source| TokensError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(refuse)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(TokensError::TooLarge { path: path.to_owned(), bytes });
    }
    let text = fs::read_to_string(path).map_err(refuse)?;
    parse(&text).map_err(|faults| TokensError::Wrong { path: path.to_owned(), faults })
}

fn parse(text: &str) -> Result<BTreeMap<String, Line>, Vec<String>> {
    let mut lines = BTreeMap::new();
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let [digest, node, options @ ..] = words.as_slice() else {
            if !words.is_empty() {
                faults.push(format!("line {number}: a digest and a node are expected"));
            }
            continue;
        };
        let read = parse_line(digest, node, options).and_then(|line| {
            if lines.len() >= TOKENS_MAX {
                return Err(format!("there are more than {TOKENS_MAX} tokens"));
            }
            match lines.insert(digest.to_ascii_lowercase(), line) {
                None => Ok(()),
                Some(_other) => Err("the token stands on another line too".to_owned()),
            }
        });
        if let Err(fault) = read {
            faults.push(format!("line {number}: {fault}"));
        }
        if faults.len() >= FAULTS_MAX {
            break;
        }
    }
    if faults.is_empty() { Ok(lines) } else { Err(faults) }
}

fn parse_line(digest: &str, node: &str, options: &[&str]) -> Result<Line, String> {
    // The text is not told: it may be a token.
    if digest.len() != 64 || !digest.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err("the first word is not the SHA-256 of a token in 64 hexadecimal digits (`printf %s TOKEN | sha256sum`)".to_owned());
    }
    node.parse::<NodeId>().map_err(|_invalid| "the second word is not the name of a node".to_owned())?;
    let mut line = Line { node: node.to_owned(), keys_max: 1, until: None };
    for option in options {
        if let Some(keys) = option.strip_prefix("keys=") {
            let keys = keys.parse().ok().filter(|keys| (1..=KEYS_MAX).contains(keys));
            line.keys_max = keys.ok_or_else(|| format!("keys= is a number from 1 to {KEYS_MAX}"))?;
        } else if let Some(until) = option.strip_prefix("until=") {
            let until = OffsetDateTime::parse(until, &Rfc3339);
            line.until = Some(
                until.map_err(|_invalid| "until= is a time like 2027-01-31T12:00:00Z".to_owned())?.into(),
            );
        } else {
            return Err("after the node, only keys=N and until=TIME are known".to_owned());
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(token: &str) -> String {
        hex(&Sha256::digest(token).into())
    }

    /// Scenario: a token for one key, one for two, and one whose time is over; each is used for several keys, and again
    /// after a restart.
    /// Guarantees: a token buys as many keys as its line says, for its node; the same key is answered again; what was
    /// spent stays spent, and is forgotten with its line.
    #[tokio::test]
    async fn a_token_is_good_for_its_keys() {
        let folder = tempfile::tempdir().unwrap();
        let (path, spent) = (folder.path().join("tokens"), folder.path().join("enrolled.json"));
        let two = format!("{} n2 keys=2 until=2999-01-01T00:00:00Z\n", digest("two"));
        let text =
            format!("# nodes\n{} n1\n{two}{} n3 until=2020-01-01T00:00:00Z", digest("one"), digest("old"));
        fs::write(&path, text).unwrap();
        let open = || Tokens::open(&path, spent.clone()).unwrap();
        let mut tokens = open();
        for (token, key, expected) in [
            ("one", 1, Ok("n1")),
            ("one", 2, Err("token-spent")),
            ("one", 1, Ok("n1")),
            ("two", 1, Ok("n2")),
            ("two", 2, Ok("n2")),
            ("two", 3, Err("token-spent")),
            ("old", 1, Err("token-expired")),
            ("none", 1, Err("unknown-token")),
        ] {
            for _restart in 0..2 {
                let got = tokens.spend(token.to_owned(), [key; 32]).await;
                let got = got.as_deref().map_err(Refusal::name);
                assert_eq!(got, expected, "{token} for key {key}");
                tokens = open();
            }
        }
        assert!(tokens.lists("n2".to_owned()).await.is_ok());
        fs::write(&path, format!("{} n1", digest("other"))).unwrap();
        assert!(matches!(tokens.lists("n2".to_owned()).await, Err(Refusal::NotListed)));
        tokens.spend("other".to_owned(), [1; 32]).await.unwrap();
        let left: Spent = read_json(&RealDisk, &spent, "").unwrap().unwrap();
        assert_eq!(left.keys.into_keys().collect::<Vec<_>>(), [digest("other")]);
        fs::write(&path, "secret-token n1").unwrap();
        let refused = tokens.spend("other".to_owned(), [1; 32]).await.unwrap_err();
        assert_eq!(refused.name(), "unavailable");
    }

    /// Scenario: lines that are wrong in each way.
    /// Guarantees: each is named by its number, and no word that may be a token is repeated.
    #[test]
    fn wrong_lines_are_named_without_their_tokens() {
        let good = digest("good");
        let text = format!(
            "s3cret n1\n{good}\n{good} N_1\n{good} n1 keys=0\n{good} n1 until=soon\n{good} n1 s3cret\n{good} n1\n{good} n2"
        );
        let faults = parse(&text).unwrap_err();
        let lines: Vec<_> = faults.iter().map(|fault| fault.split(':').next().unwrap()).collect();
        assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5", "line 6", "line 8"]);
        assert!(!faults.concat().contains("s3cret"));
    }
}
