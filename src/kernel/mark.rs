//! The bits of the packet mark that are ours (dataplane.md §7).

use std::{fmt, ops::RangeInclusive, str::FromStr};

const MIN_BITS: u32 = 8;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid fwmark mask `{input}`: expected one run of at least {MIN_BITS} bits, for example 0xfff00000")]
pub struct MarkError {
    pub input: String,
}

/// `FWMARK_MASK`: one run of at least 8 bits. Values inside it:
///
/// | value | meaning |
/// |---|---|
/// | 0 | none |
/// | n, top bit clear | captured TCP of service n |
/// | n, top bit set | reserved for captured non-TCP of service n without the top bit |
/// | max − 1 | packet of an established transparent socket |
/// | max (all ones) | sent by a socket of the agent |
///
/// The range 1…max−2 is halved because policy rules must send captured TCP to the loopback table and captured non-TCP
/// to the tunnel, and when a packet that starts on the host is routed again, they see the mark but not the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkMask(u32);

impl MarkMask {
    pub fn new(mask: u32) -> Option<Self> {
        let run = mask.checked_shr(mask.trailing_zeros()).unwrap_or(0);
        (run.trailing_ones() >= MIN_BITS && run.count_ones() == run.trailing_ones()).then_some(Self(mask))
    }
    /// Our bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
    const fn max(self) -> u32 {
        self.0 >> self.0.trailing_zeros()
    }
    /// What a service may be given as its mark.
    pub const fn services(self) -> RangeInclusive<u32> {
        // The tunnel twins of the two largest halves are max − 1 and max, which are taken.
        1..=(self.max() >> 1) - 2
    }
    /// The packet mark, already shifted into the mask, of captured TCP of the service with mark `n`.
    pub const fn service(self, n: u32) -> u32 {
        (n << self.0.trailing_zeros()) & self.0
    }
    /// The packet mark of captured non-TCP of the service with mark `n`.
    pub const fn tunnel(self, n: u32) -> u32 {
        self.service(n) | self.tunnel_bit()
    }
    /// Set in marks of the tunnel; also in the two reserved values.
    pub const fn tunnel_bit(self) -> u32 {
        ((self.max() >> 1) + 1) << self.0.trailing_zeros()
    }
    /// The mark of packets that belong to an established transparent socket.
    pub const fn established(self) -> u32 {
        self.service(self.max() - 1)
    }
    /// `SO_MARK` of every socket of the agent.
    pub const fn own(self) -> u32 {
        self.0
    }
}

impl Default for MarkMask {
    fn default() -> Self {
        Self(0xfff0_0000)
    }
}

impl FromStr for MarkMask {
    type Err = MarkError;

    /// Hexadecimal with `0x`, or decimal.
    fn from_str(s: &str) -> Result<Self, MarkError> {
        let number = match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => s.parse().ok(),
        };
        number.and_then(Self::new).ok_or_else(|| MarkError { input: s.chars().take(64).collect() })
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_mask_is_one_run_of_at_least_8_bits() {
        for good in ["0xfff00000", "255", "0xffffffff", "0x0001FE00"] {
            assert!(good.parse::<MarkMask>().is_ok(), "{good}");
        }
        for bad in ["", "0", "0x7f", "0xff01", "0xf0f", "x", "0x1ffffffff", "-1", "fff00000"] {
            assert!(bad.parse::<MarkMask>().is_err(), "{bad}");
        }
        assert_eq!(MarkMask::default().to_string(), "0xfff00000");
        assert_eq!(MarkMask::default().services(), 1..=2045);
    }

    proptest! {
        #[test]
        fn meanings_of_marks_never_collide(bits in 8u32..=32, at in 0u32..=24, n in 1u32..100_000) {
            prop_assume!(bits + at <= 32);
            let mask = MarkMask::new((u32::MAX >> (32 - bits)) << at).unwrap();
            let n = 1 + n % *mask.services().end();
            let last = *mask.services().end();
            let meanings = [0, mask.service(n), mask.tunnel(n), mask.established(), mask.own()];
            prop_assert_eq!(meanings.iter().collect::<BTreeSet<_>>().len(), meanings.len());
            prop_assert!(meanings.iter().all(|m| m & !mask.bits() == 0));
            prop_assert_eq!(mask.service(n) & mask.tunnel_bit(), 0);
            prop_assert!(mask.tunnel(last) < mask.established());
        }
    }
}
