//! TLS by rustls with ring, as much of it as sslmode asks for.
//!
//! Stands between `connect`, which has a TCP stream, and the startup message. libpq's four strengths: encrypt only,
//! check that the roots vouch for the certificate (verify-ca), check the name too (verify-full), and client
//! certificates. Without verification the handshake's signatures are still checked, so the peer owns the key that it
//! shows; who it is stays unknown, as in libpq's `require`.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, OtherError, RootCertStore};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_cert::der::{Decode, Encode};

use super::certificate_faults::{OtherNames, Unfit};
use super::error::{SessionError, TlsProblem};
use super::server_certificate::{Roots, Verification};
use super::signatures::load_key;
use crate::config::{ConnectionSettings, Host, RootCertificates, SslMode, SslNegotiation};
use crate::session::stream::BoxedStream;

/// What is needed for handshakes with the hosts of one connection string.
pub(super) struct TlsClient {
    config: Arc<ClientConfig>,
}

/// Reads certificates and decides how the server's is checked.
pub(super) fn client(settings: &ConnectionSettings) -> Result<TlsClient, SessionError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = settings.ssl_root_certificates.as_ref().map(load_roots).transpose()?;
    let verification = match (settings.ssl_mode, roots) {
        (SslMode::VerifyFull, Some(roots)) => Verification::ChainAndName(roots),
        // As in libpq, a root certificate makes `require` as strong as verify-ca.
        (SslMode::VerifyCa | SslMode::Require, Some(roots)) => Verification::Chain(roots),
        (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
            return Err(SessionError::File {
                path: "sslrootcert".to_owned(),
                reason: "sslmode asks for verification, so name the root certificates (a PEM file, or \"system\")"
                    .to_owned(),
            });
        }
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => Verification::None,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SessionError::File { path: "TLS".to_owned(), reason: error.to_string() })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verification));
    let mut config = match (&settings.ssl_certificate, &settings.ssl_key) {
        (Some(certificate), Some(key)) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(load_own(certificate, key)?)))
        }
        (None, _) | (_, None) => builder.with_no_client_auth(),
    };
    if settings.ssl_negotiation == SslNegotiation::Direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(TlsClient { config: Arc::new(config) })
}

/// A stream with TLS in force.
pub(super) struct Secured {
    pub(super) stream: BoxedStream,
    /// Version and cipher suite, as PostgreSQL names them: `TLSv1.3 with TLS_AES_256_GCM_SHA384`.
    pub(super) words: String,
    /// tls-server-end-point, when the certificate's hash is known.
    pub(super) channel_binding: Option<Vec<u8>>,
}

impl TlsClient {
    pub(super) async fn handshake(&self, stream: TcpStream, host: &Host, name: &str) -> Result<Secured, SessionError> {
        let failed = |(problem, reason)| SessionError::Tls { host: host.to_string(), problem, reason };
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| failed((TlsProblem::Other, format!("\"{name}\" is neither a host name nor an address"))))?;
        let stream = TlsConnector::from(Arc::clone(&self.config))
            .connect(server, stream)
            .await
            .map_err(|error| failed(self.explain(&error)))?;
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let channel_binding = certificate.and_then(|certificate| server_end_point(certificate));
        let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
        let suite = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("?");
        let words = format!("{} with {}", version.replace('_', "."), suite.replace("TLS13_", "TLS_"));
        Ok(Secured { stream: Box::new(stream), words, channel_binding })
    }

    fn explain(&self, error: &std::io::Error) -> (TlsProblem, String) {
        let cut = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
        if cut && !self.config.alpn_protocols.is_empty() {
            let words =
                "the server closed the connection when TLS was begun at once, as one older than PostgreSQL 17 does";
            return (TlsProblem::NotDirect, format!("{words} ({error})"));
        }
        explain(error)
    }
}

/// Alerts about the certificate that we showed.
const AGAINST_OURS: [(AlertDescription, &str); 7] = [
    (AlertDescription::CertificateExpired, "it has expired"),
    (AlertDescription::CertificateRevoked, "it has been revoked"),
    (AlertDescription::UnknownCA, "no authority that the server trusts vouches for it"),
    // A root of the right name and another key vouches for nothing either.
    (AlertDescription::DecryptError, "no authority that the server trusts vouches for it"),
    (AlertDescription::BadCertificate, "it is not valid"),
    (AlertDescription::UnsupportedCertificate, "it is not valid"),
    (AlertDescription::CertificateUnknown, "it is not valid"),
];

/// What the server holds against the certificate that we showed. In TLS 1.3 it says so after its handshake: the first
/// answer to the startup message is this alert.
pub(super) fn refused_certificate(error: &std::io::Error) -> Option<String> {
    let Error::AlertReceived(alert) = error.get_ref()?.downcast_ref::<Error>()? else { return None };
    let (_, why) = AGAINST_OURS.iter().find(|(against, _)| against == alert)?;
    Some(format!("the server refuses the certificate that we show: {why} ({error})"))
}

/// What is wrong with the server's certificate, in an operator's words where they are known, and rustls's.
fn explain(error: &std::io::Error) -> (TlsProblem, String) {
    if let Some(words) = refused_certificate(error) {
        return (TlsProblem::OurCertificate, words);
    }
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let (problem, words) = match tls {
        // A root of the right name and another key vouches for nothing either.
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => (
            TlsProblem::Untrusted,
            "the server's certificate is not trusted: sslrootcert holds no certificate that vouches for it",
        ),
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => (
            TlsProblem::OtherName,
            "the server's certificate is for another name: connect by the name that it holds, or use sslmode=verify-ca",
        ),
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            (TlsProblem::Expired, "the server's certificate has expired")
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => (TlsProblem::NotYet, "the server's certificate is not valid yet"),
        Some(Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        )) => (TlsProblem::Unfit, "the server's certificate is not for servers: its extendedKeyUsage lacks serverAuth"),
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => return explain_own(other, error),
        Some(Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion)) => (
            TlsProblem::NothingInCommon,
            "the server takes no version of TLS, no cipher or no kind of key that headwater knows",
        ),
        Some(Error::PeerIncompatible(_)) => (
            TlsProblem::NothingInCommon,
            "the server offers no version of TLS, no cipher or no kind of key that headwater knows",
        ),
        _ => return (TlsProblem::Other, error.to_string()),
    };
    (problem, format!("{words} ({error})"))
}

/// What `server_certificate` has found.
fn explain_own(found: &OtherError, error: &std::io::Error) -> (TlsProblem, String) {
    if let Some(unfit) = found.0.downcast_ref::<Unfit>() {
        return (TlsProblem::Unfit, unfit.to_string());
    }
    if let Some(names) = found.0.downcast_ref::<OtherNames>() {
        let words =
            "the server's certificate is for another name: connect by the name that it holds, or use sslmode=verify-ca";
        return (TlsProblem::OtherName, format!("{words} ({names})"));
    }
    (TlsProblem::Other, error.to_string())
}

fn load_roots(roots: &RootCertificates) -> Result<Roots, SessionError> {
    let mut store = RootCertStore::empty();
    let certificates = match roots {
        RootCertificates::File(path) => {
            let certificates = load_certificates(path)?;
            for certificate in &certificates {
                store.add(certificate.clone()).map_err(|error| unusable(path, &error.to_string()))?;
            }
            certificates
        }
        RootCertificates::System => {
            // Some of a system's roots may be beyond rustls; those it can use decide.
            let certificates = rustls_native_certs::load_native_certs().certs;
            store.add_parsable_certificates(certificates.iter().cloned());
            certificates
        }
    };
    if store.is_empty() {
        return Err(SessionError::File { path: "sslrootcert".to_owned(), reason: "holds no certificate".to_owned() });
    }
    Ok(Roots { store, certificates })
}

/// Our own certificate and key. The server judges the certificate, so all kinds that it may take are shown to it.
fn load_own(certificate: &Path, key: &Path) -> Result<CertifiedKey, SessionError> {
    let chain = load_certificates(certificate)?;
    refuse_key_of_everybody(key)?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &explain_key(key, &error.to_string())))?;
    let signing = load_key(&private).map_err(|reason| unusable(key, &reason))?;
    let of_certificate = chain.first().and_then(|first| public_key(first));
    let differs = signing.public_key().is_some_and(|public| of_certificate.is_some_and(|one| one != public.as_ref()));
    if differs {
        return Err(unusable(certificate, &format!("is not the certificate of the key in {}", key.display())));
    }
    Ok(CertifiedKey::new(chain, signing))
}

/// As libpq has it (fe-secure-openssl.c): a key is its owner's alone, or root's and a group's that may read it.
fn refuse_key_of_everybody(key: &Path) -> Result<(), SessionError> {
    let found = std::fs::metadata(key).map_err(|error| unusable(key, &error.to_string()))?;
    if !found.is_file() {
        return Err(unusable(key, "is not a regular file"));
    }
    let (of_others, mode) = if found.uid() == 0 { (0o037, "0640") } else { (0o077, "0600") };
    match found.mode() & of_others {
        0 => Ok(()),
        _ => Err(unusable(key, &format!("others can use this private key; allow only yourself (chmod {mode})"))),
    }
}

/// Why a key's file holds none that can be read.
fn explain_key(path: &Path, error: &str) -> String {
    let encrypted = std::fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("ENCRYPTED"));
    if encrypted {
        return "the key is encrypted, and headwater asks for no passphrase: openssl pkey writes it without one"
            .to_owned();
    }
    error.to_owned()
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    x509_cert::Certificate::from_der(certificate).ok()?.tbs_certificate().subject_public_key_info().to_der().ok()
}

fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SessionError> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error.to_string()))?.collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unusable(path, "holds no certificate")),
        Err(error) => Err(unusable(path, &error.to_string())),
    }
}

fn unusable(path: &Path, reason: &str) -> SessionError {
    SessionError::File { path: path.display().to_string(), reason: reason.to_owned() }
}

/// tls-server-end-point (RFC 5929): the certificate's hash by the hash function of its own signature, at least SHA-256.
fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let hashed = match parsed.signature_algorithm().oid.to_string().as_str() {
        // MD5 and SHA-1 with RSA or ECDSA are raised to SHA-256, as the RFC says; then SHA-256 itself.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2" => Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(certificate).to_vec(),
        // RSASSA-PSS and Ed25519 leave it undefined; servers then offer no binding either.
        _ => return None,
    };
    Some(hashed)
}
