//! Relayed signs of life (cluster.md §6): eight bytes each, base64 in JSON.

use super::{Malformed, bound};
use crate::model::PeerId;
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::time::Duration;

/// Signs of life in one message.
pub const LIVES_MAX: usize = 128;
/// Times a sign of life is passed on, the first telling included. What each of them adds in error stays bounded.
pub const HOPS_MAX: u8 = 15;
/// Oldest sign of life that is passed on.
pub const AGE_MAX: Duration = Duration::from_millis(TICK_MS * AGE_MAX_TICKS);
const TICK_MS: u64 = 100;
const AGE_MAX_TICKS: u64 = (1 << 12) - 1;
const TAIL_BYTES: usize = 6;
const LIFE_BYTES: usize = TAIL_BYTES + 2;

/// The last 48 bits of a peer id: random ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tail(pub u64);

impl Tail {
    pub fn of(peer: PeerId) -> Self {
        Self((u128::from_be_bytes(peer.to_bytes()) & ((1 << (8 * TAIL_BYTES)) - 1)) as u64)
    }
}

/// A peer was alive so long ago. Both parts are relative: no clock is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub of: Tail,
    /// Rounded up to 0.1 s, at most [`AGE_MAX`].
    pub age: Duration,
    /// How often it was passed on with this message; at least 1, at most [`HOPS_MAX`].
    pub hops: u8,
}

impl Life {
    fn write(&self) -> [u8; LIFE_BYTES] {
        let ticks = (self.age.as_millis() as u64).div_ceil(TICK_MS).min(AGE_MAX_TICKS);
        (self.of.0 << 16 | u64::from(self.hops & 15) << 12 | ticks).to_be_bytes()
    }

    fn read(bytes: [u8; LIFE_BYTES]) -> Self {
        let all = u64::from_be_bytes(bytes);
        let age = Duration::from_millis((all & AGE_MAX_TICKS) * TICK_MS);
        Self { of: Tail(all >> 16), age, hops: (all >> 12 & 15) as u8 }
    }
}

/// At most [`LIVES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lives(pub Vec<Life>);

impl Lives {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn check(&self) -> Result<(), Malformed> {
        bound(self.0.len() <= LIVES_MAX, "too many signs of life")?;
        bound(self.0.iter().all(|life| life.hops >= 1), "a relayed sign of life was not relayed")
    }
}

impl Serialize for Lives {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(Life::write).collect();
        s.serialize_str(&BASE64.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Lives {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| D::Error::custom("signs of life are not base64"))?;
        let (all, rest) = bytes.as_chunks::<LIFE_BYTES>();
        if !rest.is_empty() {
            return Err(D::Error::custom("signs of life are of 8 bytes each"));
        }
        Ok(Self(all.iter().map(|bytes| Life::read(*bytes)).collect()))
    }
}
