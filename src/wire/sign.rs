//! The one signing form: Ed25519 over `domain || 0x00 || lp(f1) || lp(f2) …` (cluster.md §1).

use crate::model::{PublicKey, Signature, SigningKey};

/// What a signature is for. A signature made in one domain never verifies in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    License,
    HandshakeResponder,
    HandshakeInitiator,
    Voucher,
    Record,
    Deactivate,
    Request,
}

impl Domain {
    pub const ALL: [Domain; 7] = [
        Domain::License,
        Domain::HandshakeResponder,
        Domain::HandshakeInitiator,
        Domain::Voucher,
        Domain::Record,
        Domain::Deactivate,
        Domain::Request,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Domain::License => "arctic/license/v1",
            Domain::HandshakeResponder => "arctic/handshake/resp/v1",
            Domain::HandshakeInitiator => "arctic/handshake/init/v1",
            Domain::Voucher => "arctic/voucher/v1",
            Domain::Record => "arctic/record/v1",
            Domain::Deactivate => "arctic/deactivate/v1",
            Domain::Request => "arctic/request/v1",
        }
    }
}

/// A message being put together field by field: `lp` is a 4-byte big-endian length and the bytes, integers are 8 bytes big-endian.
#[derive(Clone)]
pub struct Transcript(Vec<u8>);

impl Transcript {
    pub fn new(domain: Domain) -> Self {
        Self([domain.text().as_bytes(), &[0]].concat())
    }

    pub fn field(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let length = u32::try_from(bytes.len()).expect("signed fields are bounded far below 4 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn integer(self, n: u64) -> Self {
        self.field(n.to_be_bytes())
    }

    /// Bytes without a length: only the license, whose one field is the rest of the message (licensing.md §1).
    pub fn rest(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn sign(&self, key: &SigningKey) -> Signature {
        key.sign(&self.0)
    }

    pub fn verify(&self, key: &PublicKey, signature: &Signature) -> bool {
        key.verify(&self.0, signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_domain_passes_for_another() {
        let key = SigningKey::from_seed([9; 32]);
        for made in Domain::ALL {
            let signature = Transcript::new(made).field("x").sign(&key);
            for tried in Domain::ALL {
                let ok = Transcript::new(tried).field("x").verify(&key.public(), &signature);
                assert_eq!(ok, made == tried);
            }
        }
    }

    #[test]
    fn field_borders_are_part_of_the_message() {
        let key = SigningKey::from_seed([9; 32]);
        let signature = Transcript::new(Domain::Record).field("ab").field("c").sign(&key);
        assert!(!Transcript::new(Domain::Record).field("a").field("bc").verify(&key.public(), &signature));
    }
}
