//! TLS with libpq's meanings of `sslmode` (`fe-secure-openssl.c`, `fe-secure-common.c`), over rustls and ring.
//!
//! In: a [`Conninfo`]. Out: a client configuration that checks just what the mode asks for, and the hash that ties a
//! SCRAM exchange to the server's certificate. Files are read here, sockets are not touched.
//!
//! Where libpq is more lenient than web browsers, so is this: a certificate that is itself in the root file is trusted,
//! and one without alternative names is matched by its common name, because that is what the PostgreSQL manual's own
//! recipes produce.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::{rfc4519, rfc5912};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::conninfo::{Conninfo, RootCert, SslMode};
use crate::base::pem::{self, PemFileError};

/// What keeps TLS from being set up; wrong files mostly.
#[derive(Debug, thiserror::Error)]
pub enum PgTlsError {
    /// A file can't be used.
    #[error(transparent)]
    File(#[from] PemFileError),
    /// `verify-ca` or `verify-full` without root certificates.
    #[error(
        "sslmode verifies the server's certificate, but there are no root certificates{}; name a file with sslrootcert, \
         or use sslrootcert=system", path.as_ref().map(|path| format!(" in {}", path.display())).unwrap_or_default()
    )]
    NoRoots {
        /// Where they were looked for.
        path: Option<PathBuf>,
    },
    /// rustls refuses the configuration.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
    /// The revocation list or the roots can't be used.
    #[error("TLS cannot be set up")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// The client side of TLS as `info` wants it.
///
/// # Errors
/// [`PgTlsError`] if a file is missing, unreadable or not what it should be.
pub fn client_config(info: &Conninfo) -> Result<ClientConfig, PgTlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = CertificateVerifier::new(info, &provider)?;
    let versions: &[&'static rustls::SupportedProtocolVersion] = match (info.tls.only_tls13, info.tls.only_tls12) {
        (true, _) => &[&rustls::version::TLS13],
        (false, true) => &[&rustls::version::TLS12],
        (false, false) => rustls::ALL_VERSIONS,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client_certificate(info)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = info.tls.sni;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

type ClientIdentity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// `sslcert` and `sslkey`, or the files of libpq's choice if the first exists.
fn client_certificate(info: &Conninfo) -> Result<Option<ClientIdentity>, PgTlsError> {
    let path = match &info.tls.cert {
        Some(path) => path.clone(),
        None => match info.default_file("postgresql.crt") {
            Some(path) if path.exists() => path,
            _ => return Ok(None),
        },
    };
    let chain = pem::read_certificates("client certificate", &path)?;
    let key_path = info.tls.key.clone().or_else(|| info.default_file("postgresql.key")).unwrap_or_else(|| path.clone());
    let file_error = |problem: &str| PemFileError::new("client key", &key_path, problem);
    let metadata = std::fs::metadata(&key_path).map_err(|error| file_error(&error.to_string()))?;
    let forbidden = if metadata.uid() == 0 && !rustix::process::geteuid().is_root() { 0o027 } else { 0o077 };
    if metadata.permissions().mode() & forbidden != 0 {
        return Err(file_error("others may read it; its mode must be 0600, or 0640 if it belongs to root").into());
    }
    let key = pem::read_private_key("client key", &key_path)?;
    Ok(Some((chain, key)))
}

/// How much of the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CertificateCheck {
    Nothing,
    Chain,
    ChainAndName,
}

/// Checks the server's certificate as far as the mode asks; the handshake's signature always.
#[derive(Debug)]
struct CertificateVerifier {
    check: CertificateCheck,
    chain: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl CertificateVerifier {
    fn new(info: &Conninfo, provider: &Arc<CryptoProvider>) -> Result<CertificateVerifier, PgTlsError> {
        let roots = root_certificates(info)?;
        let check = match (info.tls.mode, roots.is_empty()) {
            (SslMode::VerifyFull, _) => CertificateCheck::ChainAndName,
            // With a root file at hand every weaker mode checks the chain too (`initialize_SSL`).
            (_, false) => CertificateCheck::Chain,
            (_, true) => CertificateCheck::Nothing,
        };
        let chain = if roots.is_empty() {
            None
        } else {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(roots.iter().cloned());
            let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
            let crl = info.tls.crl.clone().or_else(|| info.default_file("root.crl").filter(|path| path.exists()));
            if let Some(path) = crl {
                let lists: Vec<_> = CertificateRevocationListDer::pem_file_iter(&path)
                    .and_then(Iterator::collect)
                    .map_err(|error| PemFileError::new("revocation list", &path, error.to_string()))?;
                builder = builder.with_crls(lists);
            }
            Some(builder.build()?)
        };
        Ok(CertificateVerifier { check, chain, roots, algorithms: provider.signature_verification_algorithms })
    }

    /// Whether the server's certificate itself is one of the roots, and is of this time: OpenSSL takes a self-signed
    /// one that way.
    fn is_pinned(&self, end_entity: &CertificateDer<'_>, now: UnixTime) -> Result<bool, rustls::Error> {
        if !self.roots.iter().any(|root| root == end_entity) {
            return Ok(false);
        }
        let validity = parse_certificate(end_entity)?.tbs_certificate.validity;
        if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
            return Err(CertificateError::Expired.into());
        }
        Ok(true)
    }
}

fn root_certificates(info: &Conninfo) -> Result<Vec<CertificateDer<'static>>, PgTlsError> {
    let verifies = info.tls.mode >= SslMode::VerifyCa;
    let path = match &info.tls.root_cert {
        RootCert::System => {
            let found = rustls_native_certs::load_native_certs().certs;
            return if found.is_empty() { Err(PgTlsError::NoRoots { path: None }) } else { Ok(found) };
        }
        RootCert::File(path) => Some(path.clone()),
        RootCert::Default => info.default_file("root.crt"),
    };
    match path {
        Some(path) if path.exists() => Ok(pem::read_certificates("root certificate file", &path)?),
        path if verifies => Err(PgTlsError::NoRoots { path }),
        _ => Ok(Vec::new()),
    }
}

fn parse_certificate(certificate: &CertificateDer<'_>) -> Result<Certificate, rustls::Error> {
    Certificate::from_der(certificate).map_err(|_bad| CertificateError::BadEncoding.into())
}

/// Whether the common name is for `host`, which counts only if there are no alternative names of the DNS kind
/// (`pgtls_verify_peer_name_matches_certificate_guts`).
fn common_name_matches(certificate: &Certificate, host: &str) -> bool {
    let tbs = &certificate.tbs_certificate;
    let has_dns_names = match tbs.get::<SubjectAltName>() {
        Ok(None) => false,
        Ok(Some((_, names))) => names.0.iter().any(|name| matches!(name, GeneralName::DnsName(_))),
        Err(_) => true,
    };
    !has_dns_names
        && tbs
            .subject
            .0
            .iter()
            .flat_map(|part| part.0.iter())
            .filter(|part| part.oid == rfc4519::COMMON_NAME)
            .any(|name| std::str::from_utf8(name.value.value()).is_ok_and(|pattern| name_matches(pattern, host)))
}

/// `*.` at the front stands for one label (`wildcard_certificate_match`).
fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(suffix), Some((label, rest))) => !label.is_empty() && suffix.eq_ignore_ascii_case(rest),
        _ => false,
    }
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let valid = Ok(ServerCertVerified::assertion());
        if self.check == CertificateCheck::Nothing {
            return valid;
        }
        let Some(chain) = &self.chain else { return Err(CertificateError::UnknownIssuer.into()) };
        let pinned = self.is_pinned(end_entity, now)?;
        let wrong_name: rustls::Error =
            match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                Ok(_) => return valid,
                // The name is checked last, so here the chain is good.
                Err(error) if is_wrong_name(&error) => error,
                Err(_) if pinned => CertificateError::NotValidForName.into(),
                Err(error) => return Err(error),
            };
        let host = server_name.to_str();
        let named = || parse_certificate(end_entity).is_ok_and(|certificate| pinned_name_matches(&certificate, &host));
        if self.check == CertificateCheck::Chain || named() { valid } else { Err(wrong_name) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn is_wrong_name(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

/// Whether any name in the certificate, alternative or common, is for `host`.
fn pinned_name_matches(certificate: &Certificate, host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>().ok().map(|address| match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    let alternative = match certificate.tbs_certificate.get::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0.iter().any(|name| match name {
            GeneralName::DnsName(pattern) => name_matches(pattern.as_str(), host),
            GeneralName::IpAddress(octets) => address.as_deref() == Some(octets.as_bytes()),
            _ => false,
        }),
        Ok(None) | Err(_) => false,
    };
    alternative || common_name_matches(certificate, host)
}

/// The hash of the server's certificate that `tls-server-end-point` names (RFC 5929 section 4.1): by the certificate's
/// own signature algorithm, SHA-256 at least. `None` for algorithms without a hash, such as Ed25519.
#[must_use]
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let algorithm: ObjectIdentifier = Certificate::from_der(certificate).ok()?.signature_algorithm.oid;
    match algorithm {
        rfc5912::MD_5_WITH_RSA_ENCRYPTION
        | rfc5912::SHA_1_WITH_RSA_ENCRYPTION
        | rfc5912::SHA_256_WITH_RSA_ENCRYPTION
        | rfc5912::ECDSA_WITH_SHA_256 => Some(Sha256::digest(certificate).to_vec()),
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => {
            Some(Sha384::digest(certificate).to_vec())
        }
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => {
            Some(Sha512::digest(certificate).to_vec())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::name_matches;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, host, expected) in [
            ("db.example.org", "DB.example.org", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("db.example.org\0.evil.org", "db.example.org", false),
        ] {
            assert_eq!(name_matches(pattern, host), expected, "{pattern} {host}");
        }
    }
}
