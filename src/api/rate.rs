//! Requests per source address (api.md §2): a token bucket each, in a bounded table. Pure: time is an argument.

use crate::model::Mono;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// Sources remembered at once; a full bucket is forgotten first, then the one longest untouched.
const SOURCES_MAX: usize = 4096;

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RateClass {
    Token,
    Bootstrap,
    Handshake,
    RecoveryFailure,
}

impl RateClass {
    /// Time in which one request is earned, and how many can be saved up.
    fn budget(self) -> (Duration, u32) {
        match self {
            Self::Token | Self::Bootstrap | Self::Handshake => (Duration::from_millis(100), 30),
            Self::RecoveryFailure => (Duration::from_secs(12), 5),
        }
    }
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Token => "token requests",
            Self::Bootstrap => "bootstrap requests",
            Self::Handshake => "handshake requests",
            Self::RecoveryFailure => "wrong recovery tokens",
        }
    }
}

/// The sources of one budget: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(IpAddr);

impl Prefix {
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 => v4,
        })
    }
}

/// Full when `drained_until` lies in the past; each request moves that time one interval ahead.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    drained_until: Mono,
    touched: Mono,
}

#[derive(Debug, Default)]
pub(super) struct RateTable {
    buckets: BTreeMap<(RateClass, Prefix), Bucket>,
}

impl RateTable {
    /// Takes one request from the budget of `source`; the error is the time until the next one is earned.
    pub(super) fn take(&mut self, class: RateClass, source: IpAddr, now: Mono) -> Result<(), Duration> {
        let wait = self.wait(class, source, now);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        let key = (class, Prefix::of(source));
        if !self.buckets.contains_key(&key) && self.buckets.len() >= SOURCES_MAX {
            self.make_room(now);
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket { drained_until: now, touched: now });
        bucket.drained_until = bucket.drained_until.max(now) + class.budget().0;
        bucket.touched = now;
        Ok(())
    }

    /// How long until `source` may ask again; zero when it may now.
    pub(super) fn wait(&self, class: RateClass, source: IpAddr, now: Mono) -> Duration {
        let (interval, burst) = class.budget();
        let Some(bucket) = self.buckets.get(&(class, Prefix::of(source))) else { return Duration::ZERO };
        let debt = bucket.drained_until.saturating_since(now) + interval;
        debt.saturating_sub(interval * burst)
    }

    fn make_room(&mut self, now: Mono) {
        self.buckets.retain(|_, b| b.drained_until > now);
        if self.buckets.len() >= SOURCES_MAX
            && let Some(oldest) = self.buckets.iter().min_by_key(|(_, b)| b.touched).map(|(k, _)| *k)
        {
            self.buckets.remove(&oldest);
        }
    }
}

/// Whole seconds for `Retry-After`, at least 1.
pub(super) fn retry_after_s(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0 || wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn thirty_at_once_then_ten_a_second() {
        let mut table = RateTable::default();
        let now = Mono::from_ms(5_000);
        assert!((0..30).all(|_| table.take(RateClass::Token, A, now).is_ok()));
        assert_eq!(table.take(RateClass::Token, A, now), Err(Duration::from_millis(100)));
        assert!(table.take(RateClass::Handshake, A, now).is_ok());
        let second = (0..1000).filter(|ms| table.take(RateClass::Token, A, now + Duration::from_millis(*ms)).is_ok());
        assert_eq!(second.count(), 9);
        assert_eq!(retry_after_s(Duration::from_millis(100)), 1);
    }

    #[test]
    fn an_ipv6_source_is_its_64_and_a_mapped_address_is_ipv4() {
        let ip = |s: &str| Prefix::of(s.parse().unwrap());
        assert_eq!(ip("fd00::1"), ip("fd00::ffff:1"));
        assert_ne!(ip("fd00::1"), ip("fd00:0:0:1::1"));
        assert_eq!(ip("::ffff:10.0.0.1"), ip("10.0.0.1"));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = RateTable::default();
        for n in 0..5_000u32 {
            let _within_budget = table.take(RateClass::Token, IpAddr::V4(n.into()), Mono::from_ms(1));
        }
        assert!(table.buckets.len() <= SOURCES_MAX);
    }

    proptest! {
        #[test]
        fn no_window_passes_more_than_burst_and_rate(gaps in prop::collection::vec(0u64..400, 1..300)) {
            let mut table = RateTable::default();
            let (mut now, mut passed) = (Mono::from_ms(0), Vec::new());
            for gap in gaps {
                now = now + Duration::from_millis(gap);
                if table.take(RateClass::Token, A, now).is_ok() {
                    passed.push(now.since_start().as_millis() as u64);
                }
            }
            for (i, from) in passed.iter().enumerate() {
                for (n, to) in passed[i..].iter().enumerate() {
                    prop_assert!(n as u64 <= 30 + (to - from) / 100);
                }
            }
        }
    }
}
