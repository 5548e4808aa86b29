//! TLS by rustls with ring, as much of it as sslmode asks for.
//!
//! Stands between `connect`, which has a TCP stream, and the startup message. libpq's four strengths: encrypt only,
//! check that the roots vouch for the certificate (verify-ca), check the name too (verify-full), and client
//! certificates. Without verification the handshake's signatures are still checked, so the peer owns the key that it
//! shows; who it is stays unknown, as in libpq's `require`.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_cert::der::Decode;

use super::connection::BoxedStream;
use super::error::{SessionError, TlsProblem};
use crate::config::{ConnectionSettings, Host, RootCertificates, SslMode, SslNegotiation};

/// What is needed for handshakes with the hosts of one connection string.
pub(super) struct TlsClient {
    config: Arc<ClientConfig>,
}

/// Reads certificates and decides how the server's is checked.
pub(super) fn client(settings: &ConnectionSettings) -> Result<TlsClient, SessionError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = settings.ssl_root_certificates.as_ref().map(load_roots).transpose()?;
    // As in libpq, a root certificate makes `require` as strong as verify-ca.
    let strength = match (settings.ssl_mode, &roots) {
        (SslMode::Require, Some(_)) => SslMode::VerifyCa,
        (mode, _) => mode,
    };
    let verifier: Arc<dyn ServerCertVerifier> = match (strength, roots) {
        (SslMode::VerifyCa | SslMode::VerifyFull, Some(roots)) => {
            let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
            let chain = built
                .map_err(|error| SessionError::File { path: "sslrootcert".to_owned(), reason: error.to_string() })?;
            if strength == SslMode::VerifyFull { chain } else { Arc::new(AnyName { chain }) }
        }
        (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
            return Err(SessionError::File {
                path: "sslrootcert".to_owned(),
                reason: "sslmode asks for verification, so name the root certificates (a PEM file, or \"system\")"
                    .to_owned(),
            });
        }
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require, _) => {
            Arc::new(Unverified { provider: Arc::clone(&provider) })
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SessionError::File { path: "TLS".to_owned(), reason: error.to_string() })?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match (&settings.ssl_certificate, &settings.ssl_key) {
        (Some(certificate), Some(key)) => {
            let chain = load_certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error.to_string()))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| unusable(certificate, &error.to_string()))?
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
        _ => return (TlsProblem::Other, error.to_string()),
    };
    (problem, format!("{words} ({error})"))
}

fn load_roots(roots: &RootCertificates) -> Result<RootCertStore, SessionError> {
    let mut store = RootCertStore::empty();
    match roots {
        RootCertificates::File(path) => {
            for certificate in load_certificates(path)? {
                store.add(certificate).map_err(|error| unusable(path, &error.to_string()))?;
            }
        }
        RootCertificates::System => {
            // Some of a system's roots may be beyond rustls; those it can use decide.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err(SessionError::File { path: "sslrootcert".to_owned(), reason: "holds no certificate".to_owned() });
    }
    Ok(store)
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
    let hashed = match parsed.signature_algorithm.oid.to_string().as_str() {
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

/// verify-ca: the chain is checked, the name is not.
#[derive(Debug)]
struct AnyName {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki checks the name last, so everything else held.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// require and weaker: whoever it is, the line is encrypted.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
