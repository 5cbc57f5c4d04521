//! Reading the files of certificates and keys, with errors that name the file.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::credentials::{CredentialsError, What};

/// No file of certificates or keys is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(crate) fn certificates(
    what: What,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let bytes = read(what, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(malformed(what, path, "it holds no certificate in PEM form")),
        Err(error) => Err(malformed(what, path, error)),
    }
}

pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let bytes = read(What::Key, path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| malformed(What::Key, path, error))
}

fn read(what: What, path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let read = |source| CredentialsError::Read { what, path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read)?.len() > FILE_BYTES_MAX {
        return Err(malformed(what, path, "it is larger than any such file"));
    }
    std::fs::read(path).map_err(read)
}

pub(crate) fn malformed(what: What, path: &Path, reason: impl std::fmt::Display) -> CredentialsError {
    CredentialsError::Malformed { what, path: PathBuf::from(path), reason: reason.to_string() }
}
