//! The certificate that a server shows: whether it is vouched for, and for which name, as libpq asks it.
//!
//! rustls calls it in each handshake, by `tls`. webpki checks the chain and the names, and is stricter than OpenSSL in three ways
//! that PostgreSQL's own documentation runs into: it knows no certificates of X.509 version 1, which `openssl x509 -req` without
//! extensions makes; no server certificate that is an authority's, as the self-signed one that is its own root; and no name but those in
//! subjectAltName. These are checked here, by libpq's and OpenSSL's rules: a chain is climbed by the same signatures, dates and
//! limits of authorities, and the common name counts only where the certificate holds no subjectAltName of the host's kind.
//! Where webpki is content, OpenSSL asks more (`check_beyond_webpki`): that roots are authorities in force, and what keys are for.
//! What is not sound (MD5 and SHA-1, RSA below 2048 bits) stays refused, with words that say what the certificate lacks.
//!
//! Always, also without verification, the handshake's signature is checked: the peer owns the key that it shows.

use std::cell::Cell;
use std::net::IpAddr;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, VerifiedPath, anchor_from_trusted_cert};
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

use super::certificate_faults::{common_name, instead_of, key_of, malformed, other_names, parse, unfit};
use super::signatures::{ALGORITHMS, contents};

/// The certificates of `sslrootcert`: as webpki takes them, and as they are.
#[derive(Debug)]
pub(super) struct Roots {
    pub(super) store: RootCertStore,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// How much of a server's certificate is checked.
#[derive(Debug)]
pub(super) enum Verification {
    /// `require` and weaker: encrypts the line, to any server.
    None,
    /// `verify-ca`
    Chain(Roots),
    /// `verify-full`
    ChainAndName(Roots),
}

impl ServerCertVerifier for Verification {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self {
            Verification::None => {}
            Verification::Chain(roots) => verify_chain(leaf, intermediates, roots, now)?,
            Verification::ChainAndName(roots) => {
                verify_chain(leaf, intermediates, roots, now)?;
                verify_name(leaf, intermediates, roots, name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_handshake(message, certificate, signed, usize::MAX)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let pkcs1 =
            [SignatureScheme::RSA_PKCS1_SHA256, SignatureScheme::RSA_PKCS1_SHA384, SignatureScheme::RSA_PKCS1_SHA512];
        if pkcs1.contains(&signed.scheme) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        // A scheme of TLS 1.3 stands for one curve: the first of its algorithms. Those of RSA-PSS keys differ in the key's identifier only.
        let one_curve = !matches!(signed.scheme, SignatureScheme::Unknown(_));
        verify_handshake(message, certificate, signed, if one_curve { 1 } else { usize::MAX })
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.mapping.iter().map(|(scheme, _)| *scheme).collect()
    }
}

/// Whether the handshake is signed by the certificate's key, with one of the scheme's first `count` algorithms.
fn verify_handshake(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    count: usize,
) -> Result<HandshakeSignatureValid, Error> {
    let parsed = parse(certificate)?;
    let Some((_, algorithms)) = ALGORITHMS.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme) else {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    };
    let key = parsed.tbs_certificate().subject_public_key_info();
    let Some((identifier, bits)) = key_of(key) else { return Err(malformed()) };
    let algorithm = algorithms.iter().take(count).find(|algorithm| *algorithm.public_key_alg_id() == *identifier);
    let valid =
        algorithm.is_some_and(|algorithm| algorithm.verify_signature(bits, message, signed.signature()).is_ok());
    if valid {
        return Ok(HandshakeSignatureValid::assertion());
    }
    Err(instead_of(CertificateError::BadSignature.into(), &[parsed]))
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), Error> {
    let by_webpki = ParsedCertificate::try_from(leaf).and_then(|parsed| {
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, &ALGORITHMS.all)
    });
    let Err(error) = by_webpki else { return check_beyond_webpki(leaf, intermediates, roots, now) };
    let mut presented = vec![parse(leaf)?];
    for certificate in intermediates {
        presented.push(parse(certificate)?);
    }
    // webpki names the kinds that it does not take in words of its own (`UnsupportedCertVersion`, `CaUsedAsEndEntity`). What it holds
    // against others is final: only they are looked at by OpenSSL's rules.
    let of_our_kind = presented[0].tbs_certificate().version() == Version::V1 || is_authority(&presented[0]);
    if !of_our_kind {
        return Err(instead_of(error, &presented));
    }
    let mut chain = vec![(leaf, &presented[0])];
    chain.extend(intermediates.iter().zip(&presented[1..]));
    climb(&chain, roots, now).map_err(|error| instead_of(error, &presented))
}

/// What RFC 5280 and OpenSSL ask of a chain that webpki finds good: webpki looks at no keyUsage, and of a root at nothing but its name,
/// its key and its name constraints. Without this, the key of a server's certificate in sslrootcert, as its own root or together
/// with the authority's, would vouch for all names.
fn check_beyond_webpki(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = parse(leaf)?;
    check_key_usage(&parsed)?;
    if is_own_root(leaf, &parsed, roots) {
        return Ok(());
    }
    let end = EndEntityCert::try_from(leaf).map_err(|_| malformed())?;
    let refused = Cell::new(None);
    // webpki tries the next path when this refuses one.
    let check = |path: &VerifiedPath<'_>| {
        check_path(path, roots, now).map_err(|why| {
            refused.set(Some(why));
            webpki::Error::UnknownIssuer
        })
    };
    let usage = webpki::KeyUsage::server_auth();
    let anchors = &roots.store.roots;
    let path = end.verify_for_usage(&ALGORITHMS.all, anchors, intermediates, now, usage, None, Some(&check));
    path.map(drop).map_err(|_| refused.take().unwrap_or_else(|| CertificateError::UnknownIssuer.into()))
}

fn check_path(path: &VerifiedPath<'_>, roots: &Roots, now: UnixTime) -> Result<(), Error> {
    let mut below = 0;
    for between in path.intermediate_certificates() {
        // How many there may be below it, webpki has counted.
        check_authority(&parse(&between.der())?, 0, false)?;
        below += usize::from(between.subject() != between.issuer());
    }
    // A renewed root has the name and key of the old one.
    let anchors =
        roots.certificates.iter().filter(|root| anchor_from_trusted_cert(root).ok().as_ref() == Some(path.anchor()));
    let mut verdict = Err(CertificateError::UnknownIssuer.into());
    for root in anchors {
        verdict =
            parse(root).and_then(|root| check_authority(&root, below, true).and_then(|()| check_dates(&root, now)));
        if verdict.is_ok() {
            break;
        }
    }
    verdict
}

/// Longer chains are refused, as there are none.
const CHAIN_MAX: usize = 8;

/// From the server's certificate up to one of the roots, by the rules of RFC 5280 as OpenSSL applies them.
fn climb(presented: &[(&CertificateDer<'_>, &Certificate)], roots: &Roots, now: UnixTime) -> Result<(), Error> {
    let (leaf, parsed) = presented[0];
    check_dates(parsed, now)?;
    check_leaf(parsed)?;
    if is_own_root(leaf, parsed, roots) {
        return Ok(());
    }
    let parsed_roots: Vec<Certificate> = roots.certificates.iter().filter_map(|root| parse(root).ok()).collect();
    let (mut der, mut current) = (leaf, parsed);
    for below in 0..CHAIN_MAX {
        if let Some(root) = parsed_roots.iter().find(|root| has_signed(root, der, current)) {
            return check_issuer(root, below, true).and_then(|()| check_dates(root, now));
        }
        let next = presented.iter().skip(1).find(|(_, issuer)| has_signed(issuer, der, current));
        let Some((issuer_der, issuer)) = next else { break };
        check_issuer(issuer, below, false)?;
        check_dates(issuer, now)?;
        (der, current) = (issuer_der, issuer);
    }
    Err(CertificateError::UnknownIssuer.into())
}

/// Whom the operator has named as a root needs nobody else; OpenSSL takes only those that vouch for themselves.
fn is_own_root(leaf: &CertificateDer<'_>, parsed: &Certificate, roots: &Roots) -> bool {
    roots.certificates.iter().any(|root| root == leaf)
        && parsed.tbs_certificate().issuer() == parsed.tbs_certificate().subject()
}

/// Whether `issuer` has the name of the certificate's issuer, and the key that has signed it.
fn has_signed(issuer: &Certificate, der: &CertificateDer<'_>, certificate: &Certificate) -> bool {
    if issuer.tbs_certificate().subject() != certificate.tbs_certificate().issuer() {
        return false;
    }
    let signed = to_be_signed(der);
    let algorithm = certificate.signature_algorithm().to_der().ok().and_then(|der| contents(&der));
    let key = key_of(issuer.tbs_certificate().subject_public_key_info());
    let (Some(signed), Some(algorithm), Some((identifier, bits)), Some(signature)) =
        (signed, algorithm, key, certificate.signature().as_bytes())
    else {
        return false;
    };
    // The inner copy of the algorithm is what is signed; both say the same (RFC 5280, 4.1.1.2).
    certificate.tbs_certificate().signature() == certificate.signature_algorithm()
        && ALGORITHMS.all.iter().any(|known| {
            *known.signature_alg_id() == *algorithm
                && *known.public_key_alg_id() == *identifier
                && known.verify_signature(bits, &signed, signature).is_ok()
        })
}

/// The bytes that a certificate's signature stands for.
fn to_be_signed(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let outer = AnyRef::from_der(der).ok()?;
    let mut reader = SliceReader::new(outer.value()).ok()?;
    Some(reader.tlv_bytes().ok()?.to_vec())
}

fn check_dates(certificate: &Certificate, now: UnixTime) -> Result<(), Error> {
    let validity = certificate.tbs_certificate().validity();
    let now = now.as_secs();
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// What a certificate may say about itself that is understood here (RFC 5280, 4.2): anything else that is marked critical is refused.
const UNDERSTOOD: [&str; 4] = ["2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.37"];

/// `id-kp-serverAuth`; neither webpki nor OpenSSL take `anyExtendedKeyUsage` for it.
const FOR_SERVERS: &str = "1.3.6.1.5.5.7.3.1";

fn check_leaf(certificate: &Certificate) -> Result<(), Error> {
    check_critical(certificate)?;
    check_key_usage(certificate)?;
    if is_for_servers(certificate)? { Ok(()) } else { Err(CertificateError::InvalidPurpose.into()) }
}

/// Whether a certificate, or those that it vouches for, may be a server's.
fn is_for_servers(certificate: &Certificate) -> Result<bool, Error> {
    let usage = certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>().map_err(|_| malformed())?;
    let for_servers = |usage: &ObjectIdentifier| usage.to_string() == FOR_SERVERS;
    Ok(usage.is_none_or(|(_, usage)| usage.0.iter().any(for_servers)))
}

/// Whether a server's key may do what a handshake does (OpenSSL's `KU_TLS`): an authority's often may not.
fn check_key_usage(leaf: &Certificate) -> Result<(), Error> {
    let usage = leaf.tbs_certificate().get_extension::<KeyUsage>().map_err(|_| malformed())?;
    let fits =
        usage.is_none_or(|(_, usage)| usage.digital_signature() || usage.key_encipherment() || usage.key_agreement());
    if fits { Ok(()) } else { Err(unfit("is not for servers: its keyUsage lacks digitalSignature".to_owned())) }
}

fn check_critical(certificate: &Certificate) -> Result<(), Error> {
    let mut extensions = certificate.tbs_certificate().extensions().into_iter().flatten();
    let unknown = extensions.find(|one| one.critical && !UNDERSTOOD.contains(&one.extn_id.to_string().as_str()));
    match unknown {
        Some(unknown) => {
            Err(unfit(format!("has a critical extension that headwater does not know ({})", unknown.extn_id)))
        }
        None => Ok(()),
    }
}

/// Whether a certificate may vouch for others, as far as `climb` understands what it says about itself.
fn check_issuer(issuer: &Certificate, below: usize, is_root: bool) -> Result<(), Error> {
    check_authority(issuer, below, is_root)?;
    check_critical(issuer)?;
    if has_name_constraints(issuer) {
        return Err(unfit("is signed by an authority that is limited to certain names".to_owned()));
    }
    Ok(())
}

/// Whether a certificate may vouch for servers, with `below` authorities between it and the server's certificate.
fn check_authority(issuer: &Certificate, below: usize, is_root: bool) -> Result<(), Error> {
    let body = issuer.tbs_certificate();
    let not_an_authority = |which: &str| {
        Err(unfit(format!("is signed by {}, which is not the certificate of an authority ({which})", body.subject())))
    };
    if body.version() == Version::V1 {
        // Version 1 has no way to say it; a root that vouches for itself is one by the operator's word.
        return if is_root && body.issuer() == body.subject() { Ok(()) } else { not_an_authority("basicConstraints") };
    }
    let constraints = body.get_extension::<BasicConstraints>().map_err(|_| malformed())?;
    let signs = body.get_extension::<KeyUsage>().map_err(|_| malformed())?.map(|(_, usage)| usage.key_cert_sign());
    match constraints {
        Some((_, BasicConstraints { ca: true, path_len_constraint }))
            if path_len_constraint.is_none_or(|most| below <= usize::from(most)) => {}
        // OpenSSL: of a root, keyUsage alone may say it.
        None if is_root && signs == Some(true) => {}
        Some(_) | None => return not_an_authority("basicConstraints"),
    }
    if signs == Some(false) {
        return not_an_authority("keyUsage");
    }
    if !is_for_servers(issuer)? {
        return not_an_authority("extendedKeyUsage");
    }
    Ok(())
}

fn has_name_constraints(certificate: &Certificate) -> bool {
    certificate.tbs_certificate().extensions().into_iter().flatten().any(|one| one.extn_id.to_string() == "2.5.29.30")
}

/// Whether a certificate may vouch for others.
fn is_authority(certificate: &Certificate) -> bool {
    matches!(
        certificate.tbs_certificate().get_extension::<BasicConstraints>(),
        Ok(Some((_, BasicConstraints { ca: true, .. })))
    )
}

/// Whether the certificate is for this name. webpki looks at subjectAltName; without one of the host's kind, the common name counts
/// (libpq, `pgtls_verify_peer_name_matches_certificate_guts`, 15 to 18).
fn verify_name(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    name: &ServerName<'_>,
) -> Result<(), Error> {
    let parsed = parse(leaf)?;
    let names =
        parsed.tbs_certificate().get_extension::<SubjectAltName>().map_err(|_| malformed())?.map(|(_, names)| names.0);
    let names = names.unwrap_or_default();
    let of_the_hosts_kind = names.iter().any(|one| {
        matches!(
            (one, name),
            (GeneralName::DnsName(_), ServerName::DnsName(_)) | (GeneralName::IpAddress(_), ServerName::IpAddress(_))
        )
    });
    if of_the_hosts_kind {
        let strict = ParsedCertificate::try_from(leaf).and_then(|leaf| verify_server_name(&leaf, name));
        return strict.map_err(|_| other_names(&parsed, &names));
    }
    // Constraints of names hold for common names as well, which webpki does not look at.
    // Those that cannot be read may hold some.
    let mut above = roots.certificates.iter().chain(intermediates).map(parse);
    if above.any(|one| one.map_or(true, |one| has_name_constraints(&one))) {
        return Err(unfit(
            "holds its name as its common name only, under an authority that is limited to certain names".to_owned(),
        ));
    }
    let host = name.to_str();
    if common_name(&parsed).is_some_and(|common| is_name_of(&common, &host)) {
        return Ok(());
    }
    Err(other_names(&parsed, &names))
}

/// Whether a name in a certificate, with `*` for its first part at most, is a host's.
fn is_name_of(pattern: &str, host: &str) -> bool {
    if let Some(parent) = pattern.strip_prefix("*.") {
        let is_address = host.parse::<IpAddr>().is_ok();
        return !is_address && host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent));
    }
    pattern.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
        KeyUsagePurpose, NameConstraints, date_time_ymd,
    };
    use rustls::pki_types::pem::PemObject;

    use super::*;

    /// Made by openssl with openssl's security level turned down: no server loads them otherwise. The root has signed the next two.
    const ROOT: &str = "-----BEGIN CERTIFICATE-----
MIIBdDCCARugAwIBAgIUdMWXCkGi0pVAACKKWTlt7I+uXWUwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEcm9vdDAgFw0yNjExMjcxNDE3NTdaGA8yMTI2MTEwMzE0MTc1
N1owDzENMAsGA1UEAwwEcm9vdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHT2
YDJBg7N/A92OR88CG2K1Kg3IwnPVqP1pFXiO7J9/eztSTX5SR3Asv5IGGMpNHK9J
rzMn7u2R1Mft4OdPkSujUzBRMB0GA1UdDgQWBBRPwuwEyQWicLeI0NXnNts5zIy4
azAfBgNVHSMEGDAWgBRPwuwEyQWicLeI0NXnNts5zIy4azAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0cAMEQCIGDbrp+C0bk9bK3yesC1IZKp74vTj+r5VFIV
YYUG1GiYAiAo5oYPmNPrBVBN05OF242hpjwYew8ao4vGMbZ1ZKcNTQ==
-----END CERTIFICATE-----";
    const SHA_1: &str = "-----BEGIN CERTIFICATE-----
MIIBHDCBxQIUO/IzrpadR0FQqAESVowrcNcdHp8wCQYHKoZIzj0EATAPMQ0wCwYD
VQQDDARyb290MCAXDTI2MTEyNzE0MTc1N1oYDzIxMjYxMTAzMTQxNzU3WjAUMRIw
EAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATKeGUN
BrdWP6T4bP9c6IXckArVuDDTgNTRSs+Q7DHXzk26xaHvKQ90O/tGBTNwkcw5I22h
EuWjshAkHhjbF5/PMAkGByqGSM49BAEDRwAwRAIgCG0in5UEFKAhd/VawiMu13Rs
zb8aW7IvzyJI0fZn/94CIBVI5UBNhu1dI518SMAV3Lee28yX9UduWzfeJdj2nx9R
-----END CERTIFICATE-----";
    const SHORT: &str = "-----BEGIN CERTIFICATE-----
MIIBZzCCAQ0CFDvyM66WnUdBUKgBElaMK3DXHR6gMAoGCCqGSM49BAMCMA8xDTAL
BgNVBAMMBHJvb3QwIBcNMjYxMTI3MTQxNzU3WhgPMjEyNjExMDMxNDE3NTdaMBQx
EjAQBgNVBAMMCWxvY2FsaG9zdDCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEA
0axCLjzLbhaH8aFai2sDgDqnpLAShO31L4LqJmTmzBSW/l7cuv3EkjJRON2tTOe5
uBsSIxE9tLhYQUEdH33XGf/IUvMSJLhxw37lBZ01o8cD8TC+9a+MuQwdkMzjrC1w
JW66lrADkq7cw/1Xn9IzGxVa4d4xMCRFKFFjDeSkc9ECAwEAATAKBggqhkjOPQQD
AgNIADBFAiATIm6xhTIV72Ux8biRxhhZTOfhxnf0SJ0doXyk2oZzZAIhAOm4nsCv
67on1BoJvhFFAwd8gdHgehqaMhlDvfhX0mnt
-----END CERTIFICATE-----";
    const OTHER_CURVE: &str = "-----BEGIN CERTIFICATE-----
MIIBfDCCASKgAwIBAgIUfngW+nujWTUDqdHnXLpNKga0U7YwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNzE0MTc1N1oYDzIxMjYxMTAz
MTQxNzU3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwVjAQBgcqhkjOPQIBBgUrgQQA
CgNCAARmlBa9B930WOSj9UwGg44JiFbmNS+VHDRmkW58tP7QL+3yO+2x3DC5G4cs
aOB5g3vlA/9OgekFQgssa0vaHJtbo1MwUTAdBgNVHQ4EFgQU/eqZjKO7xwoZyFM6
pWfqHedYK8UwHwYDVR0jBBgwFoAU/eqZjKO7xwoZyFM6pWfqHedYK8UwDwYDVR0T
AQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEAxD1QQgAYulrYyFHX/X3Y3yO2
2thSg2vYBF4Jc1n4CwcCIC0+mG5z2CejUg5tg0O8iTBWS6K2S8vmz+FiVaaDFLZ+
-----END CERTIFICATE-----";

    fn refusal(roots: &str, leaf: &str) -> String {
        let root = CertificateDer::from_pem_slice(roots.as_bytes()).unwrap();
        let mut store = RootCertStore::empty();
        store.add(root.clone()).unwrap();
        let roots = Roots { store, certificates: vec![root] };
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_900_000_000));
        match verify_chain(&leaf, &[], &roots, now) {
            Err(Error::InvalidCertificate(CertificateError::Other(other))) => other.0.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn signatures_and_keys_that_prove_nothing_are_refused_by_name() {
        assert_eq!(refusal(ROOT, SHA_1), "the server's certificate is signed with SHA-1");
        // A leaf's own key signs nothing but the handshake, where ring refuses it.
        let short = parse(&CertificateDer::from_pem_slice(SHORT.as_bytes()).unwrap()).unwrap();
        let Error::InvalidCertificate(CertificateError::Other(why)) =
            instead_of(CertificateError::BadSignature.into(), &[short])
        else {
            panic!("no reason");
        };
        let words = "the server's certificate has an RSA key of 1024 bits, headwater takes 2048 to 8192";
        assert_eq!(why.0.to_string(), words);
        let words =
            "the server's certificate has a key that is neither RSA, nor Ed25519, nor ECDSA on P-256, P-384 or P-521";
        assert_eq!(refusal(ROOT, OTHER_CURVE), words);
    }

    #[test]
    fn a_star_in_a_common_name_stands_for_one_part_of_a_host_name_and_for_no_address() {
        assert!(is_name_of("*.example.com", "db.Example.com"));
        assert!(!is_name_of("*.example.com", "a.db.example.com"));
        assert!(!is_name_of("*.example.com", "example.com"));
        assert!(!is_name_of("*.0.0.1", "127.0.0.1"));
        assert!(is_name_of("127.0.0.1", "127.0.0.1"));
        assert!(!is_name_of("localhost\0.evil.com", "localhost"));
    }

    /// A certificate of the tests and its key.
    struct Made {
        der: CertificateDer<'static>,
        params: CertificateParams,
        key: KeyPair,
    }

    /// One by that name, as `change` has it, signed by `by` or by itself.
    fn made(name: &str, by: Option<&Made>, change: impl FnOnce(&mut CertificateParams)) -> Made {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = match by {
            Some(by) => params.signed_by(&key, &Issuer::from_params(&by.params, &by.key)),
            None => params.self_signed(&key),
        };
        Made { der: certificate.unwrap().der().clone(), params, key }
    }

    fn authority(params: &mut CertificateParams) {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![];
    }

    /// The verdict of verify-full about `localhost`.
    fn verdict(presented: &[&Made], trusted: &[&Made]) -> Result<(), String> {
        let certificates: Vec<CertificateDer<'static>> = trusted.iter().map(|one| one.der.clone()).collect();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        let chain: Vec<CertificateDer<'static>> = presented.iter().map(|one| one.der.clone()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        Verification::ChainAndName(Roots { store, certificates })
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now())
            .map(drop)
            .map_err(|error| format!("{error:?}"))
    }

    #[track_caller]
    fn refused_for(words: &str, presented: &[&Made], trusted: &[&Made]) {
        let why = verdict(presented, trusted).expect_err(words);
        assert!(why.contains(words), "{why}");
    }

    /// Of both kinds of leaf: what webpki judges, and what is judged here.
    const LEAVES: [IsCa; 2] = [IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Unconstrained)];

    #[test]
    fn only_valid_authorities_sign_and_a_root_server_certificate_stands_for_itself() {
        let root = made("root", None, authority);
        let server = made("elsewhere", None, |params| params.is_ca = IsCa::ExplicitNoCa);
        let below = made("elsewhere", Some(&root), |_| {});
        let no_signer = made("no signer", None, |params| {
            authority(params);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        });
        let expired = made("root", None, |params| {
            authority(params);
            params.not_after = date_time_ymd(2020, 1, 1);
        });
        let for_clients = made("for clients", None, |params| {
            authority(params);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        let alone = made("alone", None, |params| {
            authority(params);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        });
        for kind in LEAVES {
            let leaf = |by: &Made| made("localhost", Some(by), |params| params.is_ca = kind);
            assert_eq!(verdict(&[&leaf(&root)], &[&server, &root]), Ok(()));
            refused_for("(basicConstraints)", &[&leaf(&server)], &[&server, &root]);
            refused_for("(basicConstraints)", &[&leaf(&below)], &[&below, &root]);
            refused_for("(keyUsage)", &[&leaf(&no_signer)], &[&no_signer]);
            refused_for("(extendedKeyUsage)", &[&leaf(&for_clients)], &[&for_clients]);
            refused_for("Expired", &[&leaf(&expired)], &[&expired]);
            assert_eq!(verdict(&[&leaf(&alone)], &[&alone]), Ok(()));
            let between = made("between", Some(&alone), authority);
            refused_for("(basicConstraints)", &[&leaf(&between), &between], &[&alone]);
            let itself = made("localhost", None, |params| params.is_ca = kind);
            assert_eq!(verdict(&[&itself], &[&itself]), Ok(()));
        }
    }

    #[test]
    fn what_a_key_is_for_binds_servers_and_the_authorities_between() {
        let root = made("root", None, authority);
        for kind in LEAVES {
            let leaf = |by: &Made| made("localhost", Some(by), |params| params.is_ca = kind);
            let good = made("good", Some(&root), authority);
            assert_eq!(verdict(&[&leaf(&good), &good], &[&root]), Ok(()));
            let no_signer = made("no signer", Some(&root), |params| {
                authority(params);
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            });
            refused_for("(keyUsage)", &[&leaf(&no_signer), &no_signer], &[&root]);
            let for_clients = made("for clients", Some(&root), |params| {
                authority(params);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            });
            assert!(verdict(&[&leaf(&for_clients), &for_clients], &[&root]).is_err());
            let signs_only = made("localhost", Some(&root), |params| {
                params.is_ca = kind;
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            });
            refused_for("lacks digitalSignature", &[&signs_only], &[&root]);
        }
    }

    #[test]
    fn an_authority_that_cannot_be_read_vouches_for_no_common_name() {
        let root = made("root", None, authority);
        let limited = made("limited", Some(&root), |params| {
            authority(params);
            // Longer than RFC 5280 allows: webpki reads it, x509-cert does not.
            params.serial_number = Some(vec![0x11; 24].into());
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
                excluded_subtrees: vec![],
            });
        });
        let leaf = made("localhost", Some(&limited), |params| params.subject_alt_names = vec![]);
        assert!(verdict(&[&leaf, &limited], &[&root]).is_err());
    }
}
