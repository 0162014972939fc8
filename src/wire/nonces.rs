//! Nonces of peer-signed requests (api.md §2): made by the sender, remembered by the receiver, so that a request serves
//! once.

use super::request::NONCE_MEMORY;
use crate::{
    model::{Mono, PeerId, Rng},
    planted::{Bug, planted},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const NONCE_BYTES: usize = 16;
/// Requests of one peer remembered at once: about 68 a second for as long as a nonce is remembered.
pub const NONCES_PER_PEER_MAX: usize = 8192;

/// The nonce of one request.
pub fn mint_nonce(rng: &mut Rng) -> [u8; NONCE_BYTES] {
    let nonce: [u8; NONCE_BYTES] = rng.bytes();
    if planted(Bug::NonceReused) { [nonce[0]; NONCE_BYTES] } else { nonce }
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NonceRefusal {
    #[error("this signed request was seen before")]
    Seen,
    /// More than can be remembered.
    #[error("too many signed requests")]
    TooMany,
}

/// Nonces of authentic requests. Bounded per peer, so that no peer can spend the memory of others.
#[derive(Debug, Default)]
pub struct NonceMemory {
    seen: BTreeMap<PeerId, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    nonces: BTreeSet<[u8; NONCE_BYTES]>,
    by_age: VecDeque<(Mono, [u8; NONCE_BYTES])>,
}

impl NonceMemory {
    /// Checks and remembers in one step. The caller has verified the signature.
    pub fn take(&mut self, sender: PeerId, nonce: [u8; NONCE_BYTES], now: Mono) -> Result<(), NonceRefusal> {
        let seen = self.seen.entry(sender).or_default();
        while let Some((at, nonce)) = seen.by_age.front().copied()
            && now.saturating_since(at) > NONCE_MEMORY
        {
            seen.by_age.pop_front();
            seen.nonces.remove(&nonce);
        }
        if seen.by_age.len() >= NONCES_PER_PEER_MAX {
            return Err(NonceRefusal::TooMany);
        }
        if !seen.nonces.insert(nonce) && !planted(Bug::ReplayCheckOff) {
            return Err(NonceRefusal::Seen);
        }
        seen.by_age.push_back((now, nonce));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnixTime;

    #[test]
    fn a_nonce_is_taken_once_while_it_is_remembered() {
        let mut rng = Rng::from_seed([1; 32]);
        let (peer, nonce) = (PeerId::mint(UnixTime::from_secs(1), &mut rng), mint_nonce(&mut rng));
        let mut memory = NonceMemory::default();
        assert_eq!(memory.take(peer, nonce, Mono::from_ms(0)), Ok(()));
        assert_eq!(memory.take(peer, nonce, Mono::from_ms(120_000)), Err(NonceRefusal::Seen));
        assert_eq!(memory.take(peer, nonce, Mono::from_ms(120_001)), Ok(()));
    }

    #[test]
    fn nonces_of_one_peer_are_bounded_and_leave_others_alone() {
        let mut rng = Rng::from_seed([1; 32]);
        let peers = [1, 2].map(|s| PeerId::mint(UnixTime::from_secs(s), &mut rng));
        let mut memory = NonceMemory::default();
        let at = Mono::from_ms(0);
        let taken = (0..10_000).filter(|_| memory.take(peers[0], mint_nonce(&mut rng), at).is_ok()).count();
        assert_eq!(taken, NONCES_PER_PEER_MAX);
        assert_eq!(memory.take(peers[1], mint_nonce(&mut rng), at), Ok(()));
        assert_eq!(memory.take(peers[0], mint_nonce(&mut rng), Mono::from_ms(120_001)), Ok(()));
    }
}
