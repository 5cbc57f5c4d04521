//! What enrolment leaves on a machine's disk: key and certificate in one file, so that they are replaced together, and
//! before that the key that a certificate is asked for.
//!
//! The key is written before it is asked for: whoever asks again after a lost reply asks for the same key. Files are for
//! their owner only.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rcgen::{CertificateParams, KeyPair};

use crate::{credentials::CredentialsError, files, rotation::CredentialFiles};

/// Why nothing is stored.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No key can be made, or nothing be signed with it.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
    /// What was issued cannot be used with the key.
    #[error("what was issued cannot be used: {0}")]
    Unusable(#[from] CredentialsError),
}

/// The files of a machine that gets its certificate by enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    path: PathBuf,
    authority: PathBuf,
}

/// A new signing request of the key in `key_pem`, DER. It names nobody: that is not for who asks to say.
///
/// # Errors
/// When the key cannot be used.
pub fn signing_request(key_pem: &str) -> Result<Vec<u8>, rcgen::Error> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

impl Stored {
    /// Key and certificate in `path`; peers are believed by the authorities in the file `authority`.
    #[must_use]
    pub const fn new(path: PathBuf, authority: PathBuf) -> Self {
        Self { path, authority }
    }

    /// The files as credentials are loaded of them.
    #[must_use]
    pub fn files(&self) -> CredentialFiles {
        CredentialFiles {
            certificate: self.path.clone(),
            key: self.path.clone(),
            authority: self.authority.clone(),
        }
    }

    /// The key that a certificate is asked for: the one that was asked for last and not answered, or a new one. It is on
    /// the disk when this returns.
    ///
    /// # Errors
    /// When none can be made or written.
    pub fn asked_key(&self) -> Result<String, StoredError> {
        let path = self.asked_path();
        if let Ok(pem) = fs::read_to_string(&path)
            && KeyPair::from_pem(&pem).is_ok()
        {
            return Ok(pem);
        }
        let pem = KeyPair::generate()?.serialize_pem();
        write(&path, &pem)?;
        Ok(pem)
    }

    /// Puts what was issued in the place of what was there, on the disk when this returns; nothing changes where it
    /// cannot be used.
    ///
    /// # Errors
    /// When it does not fit the key or the authority, or cannot be written.
    pub fn store(&self, key_pem: &str, chain_pem: &str) -> Result<(), StoredError> {
        let both = format!("{key_pem}{chain_pem}");
        let tried = self.path.with_added_extension("tried");
        write(&tried, &both)?;
        let tried_files = CredentialFiles { certificate: tried.clone(), key: tried.clone(), ..self.files() };
        let loaded = tried_files.load();
        let moved = loaded.map_err(StoredError::from).and_then(|_usable| write(&self.path, &both));
        // What is left of a try is overwritten by the next.
        let _absent = fs::remove_file(&tried);
        moved?;
        let _absent = fs::remove_file(self.asked_path());
        Ok(())
    }

    fn asked_path(&self) -> PathBuf {
        self.path.with_added_extension("asked")
    }
}

fn write(path: &Path, text: &str) -> Result<(), StoredError> {
    files::replace_private(path, text.as_bytes())
        .map_err(|source| StoredError::Write { path: path.to_owned(), source })
}
