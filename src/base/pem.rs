//! Certificates and keys out of files in PEM form, for every adapter that speaks TLS. What they are good for is the
//! adapter's business.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A file that TLS cannot be set up with.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {problem}", path.display())]
pub struct PemFileError {
    /// What it is for.
    pub what: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl PemFileError {
    /// A file and what is wrong with it.
    #[must_use]
    pub fn new(what: &'static str, path: &Path, problem: impl Into<String>) -> PemFileError {
        PemFileError { what, path: path.to_owned(), problem: problem.into() }
    }
}

/// All certificates of a file, at least one.
///
/// # Errors
/// It can't be read, or holds none.
pub fn read_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| PemFileError::new(what, path, error.to_string()))?;
    if found.is_empty() { Err(PemFileError::new(what, path, "holds no certificate in PEM form")) } else { Ok(found) }
}

/// The key of a file.
///
/// # Errors
/// It can't be read, or holds none that is in clear.
pub fn read_private_key(what: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, PemFileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        let problem = format!("holds no usable key ({error}); a key with a pass phrase must be decrypted first");
        PemFileError::new(what, path, problem)
    })
}
