//! What is wrong with a server's certificate, in words that say what it lacks.
//!
//! `server_certificate` reports through it; `tls` takes the words out of rustls's error again. rustls's own say which of its checks
//! failed, which an operator cannot act on: here the certificate's names, key and signature are looked at. The names in it come
//! from the peer, so they are made printable.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, OtherError};
use x509_cert::Certificate;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::signatures::{ALGORITHMS, contents};
use crate::pg::printable;

/// What is wrong with the server's certificate, in an operator's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unfit(pub(super) String);

/// The certificate is for other names than the host's.
#[derive(Debug, thiserror::Error)]
#[error("it holds {0}")]
pub(super) struct OtherNames(String);

/// The first common name, as libpq takes it.
pub(super) fn common_name(certificate: &Certificate) -> Option<String> {
    let mut parts = certificate.tbs_certificate().subject().iter();
    let common = parts.find(|part| part.oid.to_string() == "2.5.4.3")?;
    String::from_utf8(common.value.value().to_vec()).ok()
}

/// A key's identifier and its bits.
pub(super) fn key_of(key: &SubjectPublicKeyInfoOwned) -> Option<(Vec<u8>, &[u8])> {
    Some((contents(&key.algorithm.to_der().ok()?)?, key.subject_public_key.as_bytes()?))
}

pub(super) fn other_names(certificate: &Certificate, names: &[GeneralName]) -> Error {
    let mut held: Vec<String> = Vec::new();
    for name in names {
        if let GeneralName::DnsName(name) = name {
            held.push(name.as_str().to_owned());
        } else if let GeneralName::IpAddress(address) = name {
            held.extend(shown_address(address.as_bytes()));
        }
    }
    if held.is_empty() {
        held.extend(common_name(certificate));
    }
    let held = if held.is_empty() { "no name".to_owned() } else { held.join(", ") };
    CertificateError::Other(OtherError(Arc::new(OtherNames(printable(&held).into_owned())))).into()
}

fn shown_address(bytes: &[u8]) -> Option<String> {
    let address =
        <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.ok().map(|address| address.to_string())
}

pub(super) fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate).map_err(|_| malformed())
}

pub(super) fn malformed() -> Error {
    CertificateError::BadEncoding.into()
}

pub(super) fn unfit(what: String) -> Error {
    let words = format!("the server's certificate {what}");
    CertificateError::Other(OtherError(Arc::new(Unfit(printable(&words).into_owned())))).into()
}

/// What a certificate lacks, where that is why it was refused: webpki's words say only that no signature could be checked.
pub(super) fn instead_of(error: Error, presented: &[Certificate]) -> Error {
    let of_dates = |why: &CertificateError| {
        matches!(
            why,
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        )
    };
    let about_signatures = matches!(&error, Error::InvalidCertificate(why) if !of_dates(why));
    if !about_signatures {
        return error;
    }
    let weak = presented.iter().enumerate().find_map(|(above, certificate)| {
        let what = weakness(certificate)?;
        Some(if above == 0 {
            what
        } else {
            format!("is vouched for by {}, which {what}", certificate.tbs_certificate().subject())
        })
    });
    weak.map_or(error, unfit)
}

/// Signatures that are not taken. OpenSSL refuses the first at its usual security level, too.
const REFUSED_SIGNATURES: [(&str, &str); 7] = [
    ("1.2.840.113549.1.1.4", "MD5"),
    ("1.2.840.113549.1.1.5", "SHA-1"),
    ("1.2.840.10045.4.1", "SHA-1"),
    ("1.2.840.10040.4.3", "DSA and SHA-1"),
    ("2.16.840.1.101.3.4.3.2", "DSA"),
    ("1.3.101.113", "Ed448"),
    ("1.2.840.113549.1.1.10", "RSA-PSS whose salt is not as long as its hash"),
];

/// What keeps a certificate's signature or key from being taken, after `the server's certificate`.
fn weakness(certificate: &Certificate) -> Option<String> {
    let body = certificate.tbs_certificate();
    let key = body.subject_public_key_info();
    let identifier = key.algorithm.oid.to_string();
    if identifier == "1.2.840.113549.1.1.1" || identifier == "1.2.840.113549.1.1.10" {
        let bits = modulus_bits(key.subject_public_key.as_bytes()?)?;
        if !(2048..=8192).contains(&bits) {
            return Some(format!("has an RSA key of {bits} bits, headwater takes 2048 to 8192"));
        }
    } else if ALGORITHMS
        .all
        .iter()
        .all(|known| Some(known.public_key_alg_id().to_vec()) != key_of(key).map(|(id, _)| id))
    {
        return Some("has a key that is neither RSA, nor Ed25519, nor ECDSA on P-256, P-384 or P-521".to_owned());
    }
    let signature = certificate.signature_algorithm().to_der().ok().and_then(|der| contents(&der))?;
    // Who vouches for itself needs no signature.
    if body.issuer() == body.subject() || ALGORITHMS.all.iter().any(|known| *known.signature_alg_id() == *signature) {
        return None;
    }
    let oid = certificate.signature_algorithm().oid.to_string();
    let (_, name) = REFUSED_SIGNATURES.iter().find(|(refused, _)| *refused == oid)?;
    Some(format!("is signed with {name}"))
}

/// How long the first number of an RSA key is.
fn modulus_bits(key: &[u8]) -> Option<usize> {
    let outer = AnyRef::from_der(key).ok()?;
    let modulus = contents(SliceReader::new(outer.value()).ok()?.tlv_bytes().ok()?)?;
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let first = modulus.get(zeros)?;
    Some((modulus.len() - zeros) * 8 - usize::try_from(first.leading_zeros()).ok()?)
}
