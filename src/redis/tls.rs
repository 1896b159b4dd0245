//! TLS to Redis: over rustls and ring, the server's certificate always checked against a CA and its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The files TLS is set up with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsFiles {
    /// The CA that the server's certificate is checked against; the system's if none is named.
    pub ca: Option<PathBuf>,
    /// Our own certificate; servers want one unless `tls-auth-clients` is off.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// What keeps TLS from being set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be used.
    #[error("{what} {}: {problem}", path.display())]
    File {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No roots.
    #[error("the system has no root certificates to check the server against; name the CA's file in tls-ca-file")]
    NoRoots,
    /// rustls refuses.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// The client's side of TLS.
pub(super) fn client_config(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let found = match &files.ca {
        Some(path) => certificates("CA file", path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.add_parsable_certificates(found).0 == 0 {
        return Err(TlsError::NoRoots);
    }
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let (Some(certificate), Some(key)) = (&files.certificate, &files.key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("client certificate", certificate)?;
    let unusable = |problem: String| TlsError::File { what: "client key", path: key.clone(), problem };
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(format!("holds no usable key ({error})")))?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |problem: String| TlsError::File { what, path: path.to_owned(), problem };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() { Err(unusable("holds no certificate in PEM form".into())) } else { Ok(found) }
}
