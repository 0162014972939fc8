//! The sealed parts: XChaCha20-Poly1305 under keys that exist for one session only (cluster.md §4).

use super::failure::Reason;
use crate::model::{Rng, X25519Public};
use crate::wire::handshake::{
    Init, InitResponse, Message, MessageError, SEALED_MAX_BYTES, Sealed, decode, exchange_digest,
};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use serde::Serialize;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// An X25519 key pair of one session; the secret half is wiped on drop.
pub(super) struct Ephemeral(StaticSecret);

impl Ephemeral {
    pub fn mint(rng: &mut Rng) -> Self {
        let mut bytes = rng.bytes();
        let secret = StaticSecret::from(bytes);
        bytes.zeroize();
        Self(secret)
    }

    pub fn public(&self) -> X25519Public {
        X25519Public(PublicKey::from(&self.0).to_bytes())
    }

    /// The keys of a session; `None` if the other half is of small order, so that the secret would be all zero.
    pub fn agree(self, other: &X25519Public, init: &Init, response: &InitResponse) -> Option<SessionKeys> {
        let shared = self.0.diffie_hellman(&PublicKey::from(other.0));
        if !shared.was_contributory() {
            return None;
        }
        let mut okm = Zeroizing::new([0; 64]);
        Hkdf::<Sha256>::new(None, shared.as_bytes())
            .expand(&exchange_digest(init, response), okm.as_mut_slice())
            .expect("64 bytes is a valid HKDF-SHA256 length");
        let half = |at: usize| {
            let mut key = Zeroizing::new([0; 32]);
            key.copy_from_slice(&okm[at..at + 32]);
            DirectionKey(key)
        };
        Some(SessionKeys { to_responder: half(0), to_initiator: half(32) })
    }
}

/// One key per direction. Neither `Debug` nor `Serialize`; wiped on drop.
pub(super) struct SessionKeys {
    pub to_responder: DirectionKey,
    pub to_initiator: DirectionKey,
}

pub(super) struct DirectionKey(Zeroizing<[u8; 32]>);

impl DirectionKey {
    /// Seals `part`; `bound` is authenticated with it.
    pub fn seal(&self, part: &(impl Message + Serialize), bound: &[u8], rng: &mut Rng) -> Result<Sealed, Reason> {
        part.check().map_err(|_| Reason::TooLarge)?;
        let plain = Zeroizing::new(serde_json::to_vec(part).map_err(|_| Reason::TooLarge)?);
        if plain.len() + NONCE_BYTES + TAG_BYTES > SEALED_MAX_BYTES {
            return Err(Reason::TooLarge);
        }
        let nonce = rng.bytes::<NONCE_BYTES>();
        let sealed = self
            .cipher()
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: bound })
            .map_err(|_| Reason::TooLarge)?;
        Ok(Sealed([&nonce[..], &sealed].concat()))
    }

    /// Opens without reading: `None` unless it was sealed under this key and bound to `bound`.
    pub fn open(&self, sealed: &Sealed, bound: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.0.split_first_chunk::<NONCE_BYTES>()?;
        let plain = self.cipher().decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: bound }).ok()?;
        Some(Zeroizing::new(plain))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new_from_slice(self.0.as_slice()).expect("the key has 32 bytes")
    }
}

/// Reads what was sealed.
pub(super) fn read<M: Message>(plain: &[u8]) -> Result<M, MessageError> {
    decode(plain)
}

/// Whether the two keys differ from each other, and both sides have the same.
#[cfg(test)]
pub(super) fn keys_agree(a: &SessionKeys, b: &SessionKeys) -> bool {
    let differ = a.to_responder.0 != a.to_initiator.0;
    differ && a.to_responder.0 == b.to_responder.0 && a.to_initiator.0 == b.to_initiator.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_a_key_of_its_own_and_a_seal_fits_only_what_it_is_bound_to() {
        let keys = SessionKeys { to_responder: key_of(1), to_initiator: key_of(2) };
        let mut rng = Rng::from_seed([3; 32]);
        let identity =
            serde_json::json!({"peer_id": "", "public_key": "", "license_id": "", "cluster_id": "", "version": "v1"});
        let part: crate::wire::handshake::Identity = serde_json::from_value(identity).unwrap();
        let sealed = keys.to_responder.seal(&part, b"a", &mut rng).unwrap();
        let open = keys.to_responder.open(&sealed, b"a").unwrap();
        assert_eq!(read::<crate::wire::handshake::Identity>(&open).unwrap(), part);
        assert!(keys.to_responder.open(&sealed, b"b").is_none());
        assert!(keys.to_initiator.open(&sealed, b"a").is_none());
        for at in 0..sealed.0.len() {
            let mut damaged = sealed.clone();
            damaged.0[at] ^= 1;
            assert!(keys.to_responder.open(&damaged, b"a").is_none());
            damaged.0.truncate(at);
            assert!(keys.to_responder.open(&damaged, b"a").is_none());
        }
    }

    fn key_of(byte: u8) -> DirectionKey {
        DirectionKey(Zeroizing::new([byte; 32]))
    }
}
