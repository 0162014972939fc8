//! The recovery token: proof of an operator on this host (api.md §2, operations.md §6).

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub(super) const HEADER_RECOVERY: &str = "x-arctic-recovery";

/// Digest of the token that this start of the agent wrote.
pub struct RecoveryToken([u8; 32]);

impl RecoveryToken {
    /// `text` is the content of the token's file; white space around it does not count.
    pub fn from_text(text: &str) -> Self {
        Self(Sha256::digest(text.trim().as_bytes()).into())
    }

    /// Constant-time comparison.
    pub(super) fn matches(&self, offered: &[u8]) -> bool {
        let offered: [u8; 32] = Sha256::digest(offered.trim_ascii()).into();
        self.0.ct_eq(&offered).into()
    }
}
