use crate::model::PublicKey;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt::Write};

// `const EMBEDDED: &[[u8; 32]]`, written by build.rs, which has checked each key.
include!(concat!(env!("OUT_DIR"), "/license_keys.rs"));

/// The id by which licenses name a key: the first 16 hex digits of SHA-256 of its 32 bytes (licensing.md §1).
pub fn key_id(key: &PublicKey) -> String {
    Sha256::digest(key.as_bytes()).iter().take(8).fold(String::new(), |mut hex, byte| {
        let _infallible = write!(hex, "{byte:02x}");
        hex
    })
}

/// The keys that may sign licenses. A running agent has those of its build and no way to change them (licensing.md §2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustRoots(BTreeMap<String, PublicKey>);

impl TrustRoots {
    /// The keys compiled into this binary.
    pub fn embedded() -> Self {
        Self::from_keys(EMBEDDED.iter().map(|k| PublicKey::from_bytes(*k).expect("build.rs checked this key")))
    }
    /// Roots of a test, the simulator, or the vendor's `verify`.
    pub fn from_keys(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self(keys.into_iter().map(|k| (key_id(&k), k)).collect())
    }
    pub fn key_id(key: &PublicKey) -> String {
        key_id(key)
    }
    /// Sorted.
    pub fn key_ids(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(super) fn get(&self, key_id: &str) -> Option<&PublicKey> {
        self.0.get(key_id)
    }
}
