//! How much of one member's records is taken in a time, so that a flood of one never delays the others.
//!
//! What an owner signed is charged to the owner, whoever carries it; what nobody signed, or nobody that is trusted, is
//! charged to its sender. A record over the quota is refused before its signature is looked at, and comes again with a
//! later comparison.

use super::{Gossip, Reject};
use crate::model::{Mono, PeerId};
use std::collections::BTreeMap;

/// Something that may be used up at once, and how fast it is there again.
#[derive(Debug, Clone, Copy)]
struct Limit {
    burst: u64,
    per_second: u64,
}

/// New records of one owner. The burst is for joins and merges.
const OWNER_RECORDS: Limit = Limit { burst: 16_384, per_second: 100 };
const OWNER_BYTES: Limit = Limit { burst: 32 * 1024 * 1024, per_second: 512 * 1024 };
/// Records with a wrong signature from one sender; honest peers relay none.
const FORGERIES: Limit = Limit { burst: 256, per_second: 5 };
/// Records of owners that are not trusted, from one sender, whether their signatures hold or not: newcomers' words of
/// themselves, and what those who left or were removed leave behind. The burst is for joins and merges.
const STRANGERS: Limit = Limit { burst: 16_384, per_second: 100 };
/// Requests of one sender, in bytes.
const RECEIVED_BYTES: Limit = Limit { burst: 32 * 1024 * 1024, per_second: 1024 * 1024 };
/// Members whose use is remembered before those that are paid off are left out.
const METERS_KEPT: usize = 256;

/// What was used and is not there again.
#[derive(Debug, Clone, Copy, Default)]
struct Meter {
    used: u64,
    at: Mono,
}

impl Meter {
    fn used(self, limit: Limit, now: Mono) -> u64 {
        let since = u64::try_from((now - self.at).as_millis()).unwrap_or(u64::MAX);
        self.used.saturating_sub(since.saturating_mul(limit.per_second) / 1000)
    }

    fn has_room(self, cost: u64, limit: Limit, now: Mono) -> bool {
        self.used(limit, now).saturating_add(cost) <= limit.burst
    }

    fn charge(&mut self, cost: u64, limit: Limit, now: Mono) {
        let used = self.used(limit, now);
        // A fraction of a unit that came back stays on the clock.
        if used < self.used || self.used == 0 {
            self.at = now;
        }
        self.used = used.saturating_add(cost);
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Meters {
    records: Meter,
    bytes: Meter,
    forgeries: Meter,
    strangers: Meter,
    received: Meter,
}

impl Meters {
    fn is_paid_off(self, now: Mono) -> bool {
        self.records.used(OWNER_RECORDS, now) == 0
            && self.bytes.used(OWNER_BYTES, now) == 0
            && self.forgeries.used(FORGERIES, now) == 0
            && self.strangers.used(STRANGERS, now) == 0
            && self.received.used(RECEIVED_BYTES, now) == 0
    }
}

/// What each member used lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Quotas {
    members: BTreeMap<PeerId, Meters>,
    /// When to leave out members next.
    prune_at: usize,
}

impl Quotas {
    fn of(&self, member: PeerId) -> Meters {
        self.members.get(&member).copied().unwrap_or_default()
    }

    fn edit(&mut self, member: PeerId, now: Mono, f: impl FnOnce(&mut Meters)) {
        f(self.members.entry(member).or_default());
        if self.members.len() >= self.prune_at.max(METERS_KEPT) {
            self.members.retain(|_, meters| !meters.is_paid_off(now));
            self.prune_at = self.members.len() * 2;
        }
    }

    /// Whether one more record of `owner` from `sender` is looked at.
    pub fn has_room(&self, sender: PeerId, owner: PeerId, bytes: usize, now: Mono) -> bool {
        let owner = self.of(owner);
        self.of(sender).forgeries.has_room(1, FORGERIES, now)
            && owner.records.has_room(1, OWNER_RECORDS, now)
            && owner.bytes.has_room(bytes as u64, OWNER_BYTES, now)
    }

    /// A record of `owner` was taken.
    pub fn charge(&mut self, owner: PeerId, bytes: usize, now: Mono) {
        self.edit(owner, now, |meters| {
            meters.records.charge(1, OWNER_RECORDS, now);
            meters.bytes.charge(bytes as u64, OWNER_BYTES, now);
        });
    }

    pub fn charge_forgery(&mut self, sender: PeerId, now: Mono) {
        self.edit(sender, now, |meters| meters.forgeries.charge(1, FORGERIES, now));
    }

    /// Whether one more record of an untrusted owner is looked at; if so, it is charged to who brought it.
    pub fn charge_stranger(&mut self, sender: PeerId, now: Mono) -> bool {
        let has_room = self.of(sender).strangers.has_room(1, STRANGERS, now);
        if has_room {
            self.edit(sender, now, |meters| meters.strangers.charge(1, STRANGERS, now));
        }
        has_room
    }
}

impl Gossip {
    /// Says, before a request of `bytes` is read, whether it is taken from this sender now.
    pub fn handle_arrival(&mut self, from: PeerId, bytes: usize, now: Mono) -> Result<(), Reject> {
        if !self.links.contains_key(&from) {
            return Err(Reject::NotTrusted);
        }
        if !self.quotas.of(from).received.has_room(bytes as u64, RECEIVED_BYTES, now) {
            return Err(Reject::OverQuota);
        }
        self.quotas.edit(from, now, |meters| meters.received.charge(bytes as u64, RECEIVED_BYTES, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_used_comes_back_at_its_rate_and_not_faster() {
        let limit = Limit { burst: 10, per_second: 2 };
        let mut meter = Meter::default();
        let start = Mono::from_ms(5_000);
        let mut taken = 0;
        for ms in (0..10_000).step_by(7) {
            let now = start + Duration::from_millis(ms);
            if meter.has_room(1, limit, now) {
                meter.charge(1, limit, now);
                taken += 1;
            }
        }
        assert!((28..=30).contains(&taken), "{taken}");
    }

    #[test]
    fn members_that_used_nothing_lately_are_not_remembered() {
        let mut quotas = Quotas::default();
        let mut rng = crate::model::Rng::from_seed([1; 32]);
        for n in 0..2_000 {
            let member = PeerId::mint(crate::model::UnixTime::from_ms(n), &mut rng);
            quotas.charge(member, 100, Mono::from_ms(n * 1_000));
        }
        assert!(quotas.members.len() <= METERS_KEPT, "{}", quotas.members.len());
    }
}
