//! Which packet numbers have been seen: a window behind the highest; older ones count as seen.

use super::REPLAY_WINDOW;

const WORDS: usize = (REPLAY_WINDOW / 64) as usize;

pub(super) struct Replay {
    /// One more than the highest seen.
    next: u64,
    bits: Box<[u64; WORDS]>,
}

impl Replay {
    pub fn new() -> Self {
        Self { next: 0, bits: Box::new([0; WORDS]) }
    }

    pub fn is_fresh(&self, number: u64) -> bool {
        if number >= self.next {
            return true;
        }
        // The oldest word may be partly overwritten already, so it does not count.
        if self.next - number > REPLAY_WINDOW - 64 {
            return false;
        }
        let (word, bit) = place(number);
        self.bits[word] & bit == 0
    }

    /// Call only after the packet has been authenticated.
    pub fn mark(&mut self, number: u64) {
        if number >= self.next {
            let (from, to) = (self.next.div_ceil(64), number / 64);
            for word in from..=to.min(from.saturating_add(WORDS as u64)) {
                self.bits[(word % WORDS as u64) as usize] = 0;
            }
            self.next = number + 1;
        }
        let (word, bit) = place(number);
        self.bits[word] |= bit;
    }
}

fn place(number: u64) -> (usize, u64) {
    (((number / 64) % WORDS as u64) as usize, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_number_is_fresh_once_and_the_last_2048_are_told_apart(
            jumps in proptest::collection::vec(prop_oneof![9 => 0..200u64, 1 => 0..40_000u64], 1..400),
            backs in proptest::collection::vec(0..9_000u64, 400),
        ) {
            let (mut replay, mut seen, mut highest) = (Replay::new(), BTreeSet::new(), 0u64);
            for (jump, back) in jumps.into_iter().zip(backs) {
                highest += jump;
                for number in [highest, highest.saturating_sub(back)] {
                    let fresh = replay.is_fresh(number);
                    prop_assert!(!(fresh && seen.contains(&number)), "{} twice", number);
                    if highest - number < 2048 {
                        prop_assert_eq!(fresh, !seen.contains(&number), "{} of {}", number, highest);
                    }
                    if fresh {
                        replay.mark(number);
                        seen.insert(number);
                    }
                }
            }
        }
    }
}
