//! What cluster.md §1, §4, §5 and api.md §2 say of signatures and seals, put together once more from their words: the product
//! and whoever attacks it are judged by it.

use super::message::Auth;
use arctic::{
    model::{LicenseId, PeerId, Signature},
    wire::{
        handshake::{Init, InitResponse, InitiatorPart, Sealed, exchange_digest},
        record::{RecordKey, Voucher},
    },
};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey as DhPublic, StaticSecret};

/// Domains of signatures.
pub mod domain {
    pub const RESPONDER: &str = "arctic/handshake/resp/v1";
    pub const INITIATOR: &str = "arctic/handshake/init/v1";
    pub const VOUCHER: &str = "arctic/voucher/v1";
    pub const RECORD: &str = "arctic/record/v1";
    pub const REQUEST: &str = "arctic/request/v1";
    pub const LICENSE: &str = "arctic/license/v1";
    pub const DEACTIVATE: &str = "arctic/deactivate/v1";
}

/// The form that every signature covers: `domain || 0 || lp(f1) || lp(f2) …`.
pub struct Signed(pub Vec<u8>);

impl Signed {
    pub fn new(domain: &str) -> Self {
        Self([domain.as_bytes(), &[0]].concat())
    }
    pub fn field(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.0.extend((bytes.len() as u32).to_be_bytes());
        self.0.extend(bytes);
        self
    }
    pub fn integer(self, n: u64) -> Self {
        self.field(n.to_be_bytes())
    }
}

/// What one side of a handshake signs, with its own license id.
pub fn exchange(domain: &str, license: LicenseId, init: &Init, response: &InitResponse) -> Signed {
    Signed::new(domain)
        .field(init.challenge.0)
        .field(response.challenge2.0)
        .field(init.peer_id.to_string())
        .field(response.peer_id.to_string())
        .field(license.to_string())
        .field(init.public_key.as_bytes())
        .field(response.public_key.as_bytes())
        .field(init.ephemeral.as_bytes())
        .field(response.ephemeral.as_bytes())
}

pub fn voucher(voucher: &Voucher) -> Signed {
    let endpoints: Vec<String> = voucher.subject_endpoints.iter().map(ToString::to_string).collect();
    Signed::new(domain::VOUCHER)
        .field(voucher.subject_peer_id.to_string())
        .field(voucher.subject_public_key.as_bytes())
        .field(endpoints.join(","))
        .field(voucher.customer_id.to_string())
        .field(voucher.issuer_peer_id.to_string())
        .integer(voucher.issued_at.as_ms())
        .integer(voucher.expires_at.as_ms())
}

/// `body_hash`: SHA-256 of the canonical body.
pub fn record(key: &RecordKey, version: u64, deleted: bool, body_hash: &[u8; 32]) -> Signed {
    Signed::new(domain::RECORD)
        .field(&key.kind)
        .field(&key.id)
        .field(key.owner.to_string())
        .integer(version)
        .integer(u64::from(deleted))
        .field(body_hash)
}

/// A POST that a peer signs for itself.
pub fn request(auth: &Auth, target: PeerId, path: &str, body: &[u8]) -> Signed {
    Signed::new(domain::REQUEST)
        .field("POST")
        .field(path)
        .field(Sha256::digest(body))
        .integer(auth.timestamp.as_ms())
        .field(auth.nonce)
        .field(auth.sender.to_string())
        .field(target.to_string())
}

/// Step 2 sealed as cluster.md §4 says it.
pub fn seal(
    secret: &StaticSecret,
    init: &Init,
    response: &InitResponse,
    signature: &Signature,
    part: &InitiatorPart,
    nonce: [u8; 24],
) -> Sealed {
    let shared = secret.diffie_hellman(&DhPublic::from(response.ephemeral.0));
    let mut keys = [0; 64];
    let hkdf = Hkdf::<Sha256>::new(None, shared.as_bytes());
    hkdf.expand(&exchange_digest(init, response), &mut keys).expect("64 bytes are a valid length");
    let bound = [&response.session.0[..], signature.as_bytes()].concat();
    let plain = serde_json::to_vec(part).expect("plain JSON");
    let cipher = XChaCha20Poly1305::new_from_slice(&keys[..32]).expect("32 bytes");
    let text = cipher.encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &bound }).expect("small enough");
    Sealed([&nonce[..], &text].concat())
}
