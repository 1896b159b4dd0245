//! TLS to Redis: over rustls and ring, the server's certificate always checked against a CA and its name.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use crate::base::pem::{self, PemFileError};

/// The files TLS is set up with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RedisTlsFiles {
    /// The CA that the server's certificate is checked against; the system's if none is named.
    pub ca: Option<PathBuf>,
    /// Our own certificate; servers want one unless `tls-auth-clients` is off.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// What keeps TLS from being set up.
#[derive(Debug, thiserror::Error)]
pub enum RedisTlsError {
    /// A file can't be used.
    #[error(transparent)]
    File(#[from] PemFileError),
    /// No roots.
    #[error("the system has no root certificates to check the server against; name the CA's file in tls-ca-file")]
    NoRoots,
    /// rustls refuses.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// The client's side of TLS.
pub(super) fn tls_client_config(files: &RedisTlsFiles) -> Result<ClientConfig, RedisTlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let found = match &files.ca {
        Some(path) => pem::read_certificates("CA file", path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.add_parsable_certificates(found).0 == 0 {
        return Err(RedisTlsError::NoRoots);
    }
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let (Some(certificate), Some(key)) = (&files.certificate, &files.key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = pem::read_certificates("client certificate", certificate)?;
    let key = pem::read_private_key("client key", key)?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}
