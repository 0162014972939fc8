//! A seeded random stream. One per machine, given by `Env::seed`; the same seed gives the same stream.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng};

/// ChaCha20 keyed by a 32-byte seed; cryptographically strong when the seed is.
#[derive(Debug, Clone)]
pub struct Rng(ChaCha20Rng);

impl Rng {
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }
    /// A new stream, independent of what this one gives later.
    pub fn fork(&mut self) -> Self {
        Self::from_seed(self.bytes())
    }
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    pub fn u128(&mut self) -> u128 {
        (u128::from(self.u64()) << 64) | u128::from(self.u64())
    }
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }
    /// Uniform in `0..bound`; 0 when `bound` is 0. The bias is below 2^-64.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }
}
