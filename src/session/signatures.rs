//! Signatures of certificates and handshakes: those that ring knows, and those that libpq accepts and ring lacks.
//!
//! Called by `server_certificate`, which checks what a server shows, and by `tls`, which loads our own key. ring has no curve
//! P-521, and webpki knows RSA-PSS signatures by ordinary RSA keys only, not by keys that are marked for RSA-PSS (`id-RSASSA-PSS`).
//! Such keys verify and sign with the same arithmetic: they are put before ring's under their own identifiers, and under
//! the signature schemes `rsa_pss_pss_*` of TLS 1.3, which rustls has no names for.

use std::sync::{Arc, LazyLock};

use p521::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p521::ecdsa::{Signature, SigningKey as P521Key, VerifyingKey};
use p521::pkcs8::DecodePrivateKey;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::crypto::ring::{default_provider, sign};
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, PrivateKeyDer, PrivatePkcs1KeyDer, SignatureVerificationAlgorithm,
    SubjectPublicKeyInfoDer, alg_id,
};
use rustls::sign::{Signer, SigningKey, public_key_to_spki};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::der::{Decode, Encode};

/// `id-RSASSA-PSS` without parameters: a key for RSA-PSS with any hash (RFC 4055).
const RSA_PSS_KEY: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a]);

/// `rsa_pss_pss_sha256`, `_sha384` and `_sha512` (RFC 8446, 4.2.3), and the scheme of an ordinary key with the same arithmetic.
const RSA_PSS_SCHEMES: [(SignatureScheme, SignatureScheme, AlgorithmIdentifier); 3] = [
    (SignatureScheme::Unknown(0x0809), SignatureScheme::RSA_PSS_SHA256, alg_id::RSA_PSS_SHA256),
    (SignatureScheme::Unknown(0x080a), SignatureScheme::RSA_PSS_SHA384, alg_id::RSA_PSS_SHA384),
    (SignatureScheme::Unknown(0x080b), SignatureScheme::RSA_PSS_SHA512, alg_id::RSA_PSS_SHA512),
];

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

/// What signatures are checked with.
pub(super) struct Algorithms {
    /// All with which certificates are signed.
    pub(super) all: Vec<Algorithm>,
    /// Those of each scheme of a handshake.
    pub(super) mapping: Vec<(SignatureScheme, &'static [Algorithm])>,
}

static RING: LazyLock<WebPkiSupportedAlgorithms> =
    LazyLock::new(|| default_provider().signature_verification_algorithms);

/// ring's algorithms and those of this file.
pub(super) static ALGORITHMS: LazyLock<Algorithms> = LazyLock::new(|| {
    let mut all = RING.all.to_vec();
    let mut mapping = RING.mapping.to_vec();
    all.extend(P521_ALL);
    mapping.push((SignatureScheme::ECDSA_NISTP521_SHA512, P521_IN_TLS));
    for ((scheme, _, _), keys) in RSA_PSS_SCHEMES.iter().zip(RSA_PSS_KEYS) {
        all.extend(*keys);
        mapping.push((*scheme, keys));
    }
    Algorithms { all, mapping }
});

static P521_ALL: &[Algorithm] = &[
    &P521 { signature: alg_id::ECDSA_SHA512 },
    &P521 { signature: alg_id::ECDSA_SHA384 },
    &P521 { signature: alg_id::ECDSA_SHA256 },
];

static P521_IN_TLS: &[Algorithm] = &[&P521 { signature: alg_id::ECDSA_SHA512 }];

/// In the order of [`RSA_PSS_SCHEMES`]. A key may be limited to one hash, and then says so by the identifier of its signatures.
static RSA_PSS_KEYS: &[&[Algorithm]] = &[
    &[&RsaPssKey { key: RSA_PSS_KEY, of: 0 }, &RsaPssKey { key: alg_id::RSA_PSS_SHA256, of: 0 }],
    &[&RsaPssKey { key: RSA_PSS_KEY, of: 1 }, &RsaPssKey { key: alg_id::RSA_PSS_SHA384, of: 1 }],
    &[&RsaPssKey { key: RSA_PSS_KEY, of: 2 }, &RsaPssKey { key: alg_id::RSA_PSS_SHA512, of: 2 }],
];

/// Verifies ECDSA on P-521.
#[derive(Debug)]
struct P521 {
    signature: AlgorithmIdentifier,
}

impl SignatureVerificationAlgorithm for P521 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        let hash = match self.signature {
            alg_id::ECDSA_SHA256 => Sha256::digest(message).to_vec(),
            alg_id::ECDSA_SHA384 => Sha384::digest(message).to_vec(),
            _ => Sha512::digest(message).to_vec(),
        };
        // The crate refuses hashes shorter than half of the field, though ECDSA reads a hash as a number: zeros before it change nothing.
        let mut number = [0; 66];
        number[66 - hash.len()..].copy_from_slice(&hash);
        key.verify_prehash(&number, &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

/// Verifies RSA-PSS by a key that is marked for it, as ring does by an ordinary one.
#[derive(Debug)]
struct RsaPssKey {
    key: AlgorithmIdentifier,
    /// Which of [`RSA_PSS_SCHEMES`].
    of: usize,
}

impl SignatureVerificationAlgorithm for RsaPssKey {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let (_, ordinary, _) = RSA_PSS_SCHEMES[self.of];
        let known = RING.mapping.iter().find(|(scheme, _)| *scheme == ordinary);
        let algorithm = known.and_then(|(_, algorithms)| algorithms.first()).ok_or(InvalidSignature)?;
        algorithm.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        RSA_PSS_SCHEMES[self.of].2
    }
}

/// Our own private key, of every kind that verifies above.
pub(super) fn load_key(der: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, String> {
    let ring = match sign::any_supported_type(der) {
        Ok(key) => return Ok(key),
        Err(error) => error,
    };
    let p521 = if let PrivateKeyDer::Pkcs8(key) = der {
        P521Secret::from_pkcs8_der(key.secret_pkcs8_der()).ok()
    } else if let PrivateKeyDer::Sec1(key) = der {
        P521Secret::from_sec1_der(key.secret_sec1_der()).ok()
    } else {
        None
    };
    if let Some(secret) = p521 {
        let key = P521Key::from_bytes(&secret.to_bytes()).map_err(|error| error.to_string())?;
        return Ok(Arc::new(P521Signing { key }));
    }
    match rsa_pss_key(der) {
        Some(key) => Ok(Arc::new(key)),
        None => Err(format!(
            "this kind of key is not supported: {ring}. RSA of 2048 to 8192 bits, RSA-PSS, ECDSA on P-256, P-384 or P-521, and Ed25519 are"
        )),
    }
}

type P521Secret = p521::SecretKey;

/// Signs by ECDSA on P-521.
struct P521Signing {
    key: P521Key,
}

impl std::fmt::Debug for P521Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("P521Signing")
    }
}

impl SigningKey for P521Signing {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let known = offered.contains(&SignatureScheme::ECDSA_NISTP521_SHA512);
        known.then(|| Box::new(P521Signing { key: self.key.clone() }) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let point = VerifyingKey::from(&self.key).to_sec1_point(false);
        Some(public_key_to_spki(&alg_id::ECDSA_P521, point.as_bytes()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for P521Signing {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |_| Error::General("cannot sign with the P-521 key".to_owned());
        let signature: Signature = self.key.sign_prehash(&Sha512::digest(message)).map_err(failed)?;
        Ok(signature.to_der().as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// Signs by RSA-PSS with a key that is marked for it.
#[derive(Debug)]
struct RsaPssSigning {
    ordinary: Arc<dyn SigningKey>,
    /// The key's identifier with its parameters.
    identifier: Vec<u8>,
}

/// The RSA key inside a PKCS#8 key whose identifier is `id-RSASSA-PSS`.
fn rsa_pss_key(der: &PrivateKeyDer<'_>) -> Option<RsaPssSigning> {
    let PrivateKeyDer::Pkcs8(key) = der else { return None };
    let parsed = p521::pkcs8::PrivateKeyInfoRef::try_from(key.secret_pkcs8_der()).ok()?;
    let identifier = contents(&parsed.algorithm.to_der().ok()?)?;
    if !identifier.starts_with(&RSA_PSS_KEY) {
        return None;
    }
    let inner = PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(parsed.private_key.as_bytes().to_vec()));
    Some(RsaPssSigning { ordinary: sign::any_supported_type(&inner).ok()?, identifier })
}

impl SigningKey for RsaPssSigning {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let (scheme, ordinary, _) = RSA_PSS_SCHEMES.iter().find(|(scheme, _, identifier)| {
            offered.contains(scheme) && (self.identifier == *RSA_PSS_KEY || self.identifier == **identifier)
        })?;
        let signer = self.ordinary.choose_scheme(&[*ordinary])?;
        Some(Box::new(RsaPssSigner { signer, scheme: *scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

/// One signature of [`RsaPssSigning`], under its own scheme.
#[derive(Debug)]
struct RsaPssSigner {
    signer: Box<dyn Signer>,
    scheme: SignatureScheme,
}

impl Signer for RsaPssSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.signer.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// What a DER value holds, without its tag and length: as identifiers of algorithms are compared.
pub(super) fn contents(der: &[u8]) -> Option<Vec<u8>> {
    let any = x509_cert::der::asn1::AnyRef::from_der(der).ok()?;
    Some(any.value().to_vec())
}
