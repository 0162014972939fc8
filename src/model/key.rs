//! Ed25519 identities and signatures over `domain || 0x00 || lp(f1) || lp(f2) …` live in `wire::sign`; here are the keys.

use super::text::as_text;
use crate::planted::{Bug, planted};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signer, Verifier};
use std::fmt;
use zeroize::Zeroizing;

pub const SIGNATURE_BYTES: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("expected base64 of {expected} bytes")]
    Encoding { expected: usize },
    #[error("not a valid Ed25519 public key")]
    NotAPoint,
    #[error("a public key of small order proves nothing")]
    SmallOrder,
}

fn decode<const N: usize>(s: &str) -> Result<[u8; N], KeyError> {
    let bytes = BASE64.decode(s).map_err(|_| KeyError::Encoding { expected: N })?;
    bytes.try_into().map_err(|_| KeyError::Encoding { expected: N })
}

macro_rules! base64_json {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE64.encode(self.as_bytes()))
            }
        }
        as_text!($name);
    };
}

/// An Ed25519 public key: the canonical encoding of a point not of small order. JSON: base64 of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        #[cfg(feature = "simulation")]
        if stub::is_on() {
            return Ok(Self(bytes));
        }
        let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotAPoint)?;
        if !is_reduced(&bytes) {
            return Err(KeyError::NotAPoint);
        }
        if key.is_weak() { Err(KeyError::SmallOrder) } else { Ok(Self(bytes)) }
    }
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// Strict verification: canonical S, no small-order R or key (RFC 8032 with the checks of cluster.md §1).
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        #[cfg(feature = "simulation")]
        stub::count();
        #[cfg(feature = "simulation")]
        if stub::is_on() {
            return stub::signature(&self.0, message) == *signature;
        }
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        ed25519_dalek::VerifyingKey::from_bytes(&self.0).is_ok_and(|k| match planted(Bug::LaxSignatureCheck) {
            true => k.verify(message, &signature).is_ok(),
            false => k.verify_strict(message, &signature).is_ok(),
        })
    }
}

/// Whether y is below 2^255 - 19; otherwise the same point has another encoding, and one peer could have two keys.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    bytes[31] & 0x7f != 0x7f || bytes[1..31].iter().any(|b| *b != 0xff) || bytes[0] < 0xed
}

impl std::str::FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        Self::from_bytes(decode(s)?)
    }
}
base64_json!(PublicKey);

/// An Ed25519 signature. JSON: base64 of 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature([u8; SIGNATURE_BYTES]);

impl Signature {
    pub fn from_bytes(bytes: [u8; SIGNATURE_BYTES]) -> Self {
        Self(bytes)
    }
    pub fn as_bytes(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.0
    }
}

impl std::str::FromStr for Signature {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        Ok(Self(decode(s)?))
    }
}
base64_json!(Signature);

/// An X25519 public key: tunnels and handshake ephemerals. JSON: base64 of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct X25519Public(pub [u8; 32]);

impl X25519Public {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::str::FromStr for X25519Public {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        Ok(Self(decode(s)?))
    }
}
base64_json!(X25519Public);

/// An Ed25519 private key. Has neither `Debug` nor `Serialize`; wiped on drop. Derives its own public key.
#[derive(Clone)]
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    inner: ed25519_dalek::SigningKey,
}

impl SigningKey {
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { inner: ed25519_dalek::SigningKey::from_bytes(&seed), seed: Zeroizing::new(seed) }
    }
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }
    pub fn public(&self) -> PublicKey {
        PublicKey(self.inner.verifying_key().to_bytes())
    }
    pub fn sign(&self, message: &[u8]) -> Signature {
        #[cfg(feature = "simulation")]
        if stub::is_on() {
            return stub::signature(self.public().as_bytes(), message);
        }
        Signature(self.inner.sign(message).to_bytes())
    }
    /// PKCS#8 DER of the key, the form that TLS and JWT libraries take.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        // RFC 8410 §7: version 0, algorithm 1.3.101.112, an OCTET STRING within an OCTET STRING.
        const PREFIX: [u8; 16] =
            [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        Zeroizing::new([&PREFIX[..], &self.seed[..]].concat())
    }
    /// The X25519 private key of the tunnels (cluster.md §1: HKDF-SHA256 of the seed, info `arctic/x25519/v1`).
    pub fn x25519_secret(&self) -> x25519_dalek::StaticSecret {
        let mut okm = Zeroizing::new([0u8; 32]);
        hkdf::Hkdf::<sha2::Sha256>::new(None, self.seed.as_slice())
            .expand(b"arctic/x25519/v1", okm.as_mut_slice())
            .expect("32 bytes is a valid HKDF-SHA256 length");
        x25519_dalek::StaticSecret::from(*okm)
    }
    pub fn x25519_public(&self) -> X25519Public {
        X25519Public(x25519_dalek::PublicKey::from(&self.x25519_secret()).to_bytes())
    }
}

/// Signatures that anyone could forge and that cost little: a simulator that forges none runs ten times as fast.
#[cfg(feature = "simulation")]
pub mod stub {
    use super::Signature;
    use sha2::{Digest, Sha256};
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
        static VERIFICATIONS: Cell<u64> = const { Cell::new(0) };
    }

    /// Signatures that this thread has verified, real ones and stubs.
    pub fn verifications() -> u64 {
        VERIFICATIONS.get()
    }

    pub(super) fn count() {
        VERIFICATIONS.set(VERIFICATIONS.get() + 1);
    }

    /// Whether this thread signs and verifies with a keyed hash instead of Ed25519, and takes every key for a point.
    pub fn switch(on: bool) {
        ON.set(on);
    }

    pub(super) fn is_on() -> bool {
        ON.get()
    }

    /// Differs for another key, message or domain, which begins the message.
    pub(super) fn signature(public: &[u8; 32], message: &[u8]) -> Signature {
        let half: [u8; 32] = Sha256::new().chain_update(public).chain_update(message).finalize().into();
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&half);
        bytes[32..].copy_from_slice(public);
        Signature::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_order_and_malformed_keys_are_refused() {
        assert_eq!(PublicKey::from_bytes([0; 32]), Err(KeyError::SmallOrder));
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(identity), Err(KeyError::SmallOrder));
        // y = 3 is on the curve; 3 + p is the same point written otherwise.
        let mut three = [0; 32];
        three[0] = 3;
        assert!(PublicKey::from_bytes(three).is_ok());
        let mut raised = [0xff; 32];
        (raised[0], raised[31]) = (0xed + 3, 0x7f);
        assert_eq!(PublicKey::from_bytes(raised), Err(KeyError::NotAPoint));
        assert!(matches!("AAAA".parse::<PublicKey>(), Err(KeyError::Encoding { expected: 32 })));
    }

    #[test]
    fn a_signature_verifies_only_its_own_message() {
        let key = SigningKey::from_seed([3; 32]);
        let signature = key.sign(b"a");
        assert!(key.public().verify(b"a", &signature));
        assert!(!key.public().verify(b"b", &signature));
        let mut raised = *signature.as_bytes();
        raised[63] |= 0xe0;
        assert!(!key.public().verify(b"a", &Signature::from_bytes(raised)));
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn a_stub_signature_fits_only_its_key_and_message() {
        let (key, other) = (SigningKey::from_seed([3; 32]), SigningKey::from_seed([4; 32]));
        stub::switch(true);
        let signature = key.sign(b"a");
        let verdicts = [(&key, b"a"), (&key, b"b"), (&other, b"a")].map(|(k, m)| k.public().verify(m, &signature));
        stub::switch(false);
        assert_eq!(verdicts, [true, false, false]);
        assert!(!key.public().verify(b"a", &signature), "a stub signature is no Ed25519 signature");
    }
}
