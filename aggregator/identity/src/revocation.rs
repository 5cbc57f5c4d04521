//! Certificates that are taken back before their time is over: a list in a file, read again when it changes.
//!
//! The file has one entry a line: a serial number in hexadecimal digits (colons may separate bytes), or the name of a
//! machine, `spiffe://...`, which takes back every certificate of that name. `#` begins a comment. A list that cannot
//! be read, or has one wrong line, changes nothing: what was in force stays in force. The list is asked in every
//! handshake, and by whoever holds a session, through [`Followed`].

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::{files::Stamp, name::Name, peer};

/// No list is larger.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Entries of one list.
pub const ENTRIES_MAX: usize = 100_000;
/// Bytes of a serial number (RFC 5280, section 4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;
/// Faults that one answer lists.
const FAULTS_MAX: usize = 10;

/// Why a list is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// It cannot be read.
    #[error("cannot read the list of revoked certificates {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is too large.
    #[error(
        "the list of revoked certificates {} has {bytes} bytes, more than {FILE_BYTES_MAX}: is it the right file?",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Lines of it are wrong.
    #[error("the list of revoked certificates {} is wrong:\n  {}", path.display(), faults.join("\n  "))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, each with its line.
        faults: Vec<String>,
    },
}

/// Why a certificate is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// Its serial number, in hexadecimal digits, is listed.
    Serial(String),
    /// The name of its machine is listed.
    Name(Box<Name>),
}

impl fmt::Display for Revoked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(formatter, "the certificate {serial} was revoked"),
            Self::Name(name) => write!(formatter, "all certificates of {name} were revoked"),
        }
    }
}

/// What a peer showed, as far as a list can name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presented {
    serials: Vec<String>,
    name: Option<Name>,
}

impl Presented {
    /// A name alone, as of a certificate that is still to be made.
    #[must_use]
    pub fn named(name: Name) -> Self {
        Self { serials: Vec::new(), name: Some(name) }
    }

    /// What a chain shows: the serial numbers of all of it, and the name in its first. What cannot be read is left out:
    /// the handshake and [`peer::name_in_chain`] judge it.
    #[must_use]
    pub fn of(chain: &[CertificateDer<'_>]) -> Self {
        Self {
            serials: chain.iter().filter_map(|certificate| peer::serial_in(certificate).ok()).collect(),
            name: chain.first().and_then(|leaf| peer::name_in(leaf).ok()),
        }
    }
}

/// What is taken back at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    serials: BTreeSet<String>,
    names: BTreeSet<Name>,
}

impl Revocations {
    /// Reads a list.
    ///
    /// # Errors
    /// With the lines that are wrong, ten at most.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut list = Self::default();
        let mut faults = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            if list.len() >= ENTRIES_MAX {
                faults.push(format!("line {number}: a list has at most {ENTRIES_MAX} entries"));
                break;
            }
            if let Err(fault) = list.add(entry) {
                faults.push(format!("line {number}: {fault}"));
                if faults.len() >= FAULTS_MAX {
                    break;
                }
            }
        }
        if faults.is_empty() { Ok(list) } else { Err(faults) }
    }

    fn add(&mut self, entry: &str) -> Result<(), String> {
        if entry.starts_with("spiffe:") {
            self.names.insert(entry.parse::<Name>().map_err(|error| error.to_string())?);
            return Ok(());
        }
        let shown: String = entry.chars().take(80).collect();
        let digits: String = entry.chars().filter(|letter| *letter != ':').collect();
        if digits.is_empty()
            || digits.len() > 2 * SERIAL_BYTES_MAX + 2
            || !digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        {
            return Err(format!(
                "{shown:?} is neither a serial number in hexadecimal digits nor a name, spiffe://..."
            ));
        }
        self.serials.insert(canonical(&digits));
        Ok(())
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.serials.len() + self.names.len()
    }

    /// Whether nothing is taken back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks whether what a peer showed is taken back.
    ///
    /// # Errors
    /// With the entry that says so.
    pub fn check(&self, presented: &Presented) -> Result<(), Revoked> {
        if let Some(serial) = presented.serials.iter().find(|serial| self.serials.contains(*serial)) {
            return Err(Revoked::Serial(serial.clone()));
        }
        match presented.name.as_ref().filter(|name| self.names.contains(name)) {
            Some(name) => Err(Revoked::Name(Box::new(name.clone()))),
            None => Ok(()),
        }
    }
}

/// A serial number as it is compared: small hexadecimal digits without leading zeros.
fn canonical(digits: &str) -> String {
    let digits = digits.trim_start_matches('0').to_ascii_lowercase();
    if digits.is_empty() { "0".to_owned() } else { digits }
}

/// A certificate's serial number as lists name it.
pub(crate) fn serial_text(bytes: &[u8]) -> String {
    canonical(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// The list in force. Clones share it.
#[derive(Clone, Debug)]
pub struct RevocationList {
    sender: Arc<watch::Sender<Arc<Revocations>>>,
}

impl Default for RevocationList {
    fn default() -> Self {
        Self { sender: Arc::new(watch::Sender::new(Arc::default())) }
    }
}

impl RevocationList {
    /// Puts another list in force, for handshakes and for sessions.
    pub fn replace(&self, list: Revocations) {
        self.sender.send_replace(Arc::new(list));
    }

    /// Looks whether what a peer showed is taken back now.
    ///
    /// # Errors
    /// With the entry that says so.
    pub fn check(&self, presented: &Presented) -> Result<(), Revoked> {
        self.sender.borrow().check(presented)
    }

    /// Follows what the list says of a peer, from now on.
    #[must_use]
    pub fn follow(&self, presented: Presented) -> Followed {
        let mut list = self.sender.subscribe();
        list.mark_changed();
        Followed { list, presented }
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sender.borrow().len()
    }

    /// Whether nothing is taken back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the list says of one peer, for as long as its session lasts.
#[derive(Debug)]
pub struct Followed {
    list: watch::Receiver<Arc<Revocations>>,
    presented: Presented,
}

impl Followed {
    /// Waits until what the peer showed is taken back, for ever if it never is. Cancel-safe.
    pub async fn revoked(&mut self) -> Revoked {
        while self.list.changed().await.is_ok() {
            let checked = self.list.borrow_and_update().check(&self.presented);
            if let Err(revoked) = checked {
                // Whoever asks again is told again.
                self.list.mark_changed();
                return revoked;
            }
        }
        // Nobody can change the list any more.
        std::future::pending().await
    }
}

/// A list and the file that it follows.
#[derive(Debug)]
pub struct RevocationFile {
    path: PathBuf,
    list: RevocationList,
    /// What was read last.
    read: Revocations,
    seen: Option<Stamp>,
}

impl RevocationFile {
    /// Reads the list in a file and puts it in force in `list`.
    ///
    /// # Errors
    /// When it cannot be read or is wrong.
    pub fn open(path: &Path, list: RevocationList) -> Result<Self, RevocationError> {
        let stamp = Stamp::of(&[path]);
        let read = read(path)?;
        list.replace(read.clone());
        let seen = stamp.is_settled(SystemTime::now()).then_some(stamp);
        Ok(Self { path: path.to_owned(), list, read, seen })
    }

    /// Looks whether the file has another list, puts that in force, and returns how many entries it has.
    ///
    /// # Errors
    /// When it cannot be read or is wrong; the list in force stays in force, also where the file is gone.
    pub fn look(&mut self) -> Result<Option<usize>, RevocationError> {
        let stamp = Stamp::of(&[&self.path]);
        if self.seen.as_ref() == Some(&stamp) {
            return Ok(None);
        }
        self.seen = None;
        let read = read(&self.path)?;
        self.seen = stamp.is_settled(SystemTime::now()).then_some(stamp);
        if read == self.read {
            return Ok(None);
        }
        self.read = read;
        self.list.replace(self.read.clone());
        Ok(Some(self.read.len()))
    }
}

fn read(path: &Path) -> Result<Revocations, RevocationError> {
    let refuse = |source| RevocationError::Read { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(refuse)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(RevocationError::TooLarge { path: path.to_owned(), bytes });
    }
    let text = std::fs::read_to_string(path).map_err(refuse)?;
    Revocations::parse(&text).map_err(|faults| RevocationError::Wrong { path: path.to_owned(), faults })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "spiffe://tapio.test/tenant/default/cluster/demo/node/n1";

    fn presented(serial: &str, name: &str) -> Presented {
        Presented { serials: vec![canonical(serial)], name: name.parse().ok() }
    }

    /// Scenario: a list with serial numbers as several programs write them, a name, comments and empty lines.
    /// Guarantees: exactly what it names is taken back.
    #[test]
    fn what_is_listed_is_taken_back() {
        let text = format!("# lost laptops\n00:AB:cd\n\n  0f  # a note\n{NAME}\n");
        let list = Revocations::parse(&text).unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list.check(&presented("abcd", "")), Err(Revoked::Serial("abcd".to_owned())));
        assert_eq!(list.check(&presented("F", "")), Err(Revoked::Serial("f".to_owned())));
        assert!(matches!(list.check(&presented("1", NAME)), Err(Revoked::Name(_))));
        assert_eq!(list.check(&presented("ab", &NAME.replace("n1", "n2"))), Ok(()));
    }

    /// Scenario: lists with lines that are neither, of which one has more of them than are told.
    /// Guarantees: nothing of such a list is taken; the lines are named, a bounded number of them.
    #[test]
    fn a_wrong_line_is_named() {
        let faults = Revocations::parse("ab\nspiffe://x/y\nserial 12\n").unwrap_err();
        assert_eq!(faults.len(), 2);
        assert!(
            faults[0].starts_with("line 2: ") && faults[1].starts_with("line 3: \"serial 12\""),
            "{faults:?}"
        );
        assert_eq!(Revocations::parse(&"x\n".repeat(1_000)).unwrap_err().len(), FAULTS_MAX);
        assert!(Revocations::parse(&"1".repeat(43)).is_err());
    }
}
