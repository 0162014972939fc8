//! Tombstones go when every peer has acknowledged them, and what was collected never comes back (cluster.md §7).
//!
//! Each peer keeps, for every owner, up to which version it is *complete*: it holds all that the owner ever wrote up to
//! there. Only the owner's own sum over its records raises that, or, while this peer catches up, the sum of a peer that
//! is complete itself. The owner gathers the numbers and publishes a floor; whoever takes it drops the owner's
//! tombstones below. A peer that is not complete up to a floor is reset: what it holds below counts as not held, and
//! stays only if a complete peer gives it again.

use super::{Event, Gossip, index::Entry, revocation::Standing};
use crate::{
    model::{Mono, PeerId},
    planted::{Bug, planted},
    wire::{
        gossip::{
            BACKINGS_MAX, BEHIND_MAX, Heartbeat, Records, Registry,
            whole::{Backing, Holds, Whole},
        },
        record::{FloorBody, Record, RecordHead, RecordKey, kind},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// A peer not heard of for so long no longer holds up collection, while more than half of all are up to date.
pub const LAGGARD_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Between two floors of one owner.
pub const FLOOR_INTERVAL: Duration = Duration::from_secs(60);
const LINEAGE_MAX_BYTES: usize = 64;
const INSTANCE_MAX_BYTES: usize = 64;
/// How often one own record is written anew above what comes back of its past: two copies of an identity would outbid
/// each other for ever.
const OUTBIDS_MAX: u8 = 8;

/// What was held below a floor and is not confirmed yet. It stays in the store until then.
type Suspects = BTreeMap<RecordKey, Entry>;

/// A record that goes, as it was held.
fn versioned((key, entry): (RecordKey, Entry)) -> (RecordKey, u64) {
    (key, entry.head.version)
}

/// The floors, and the owners that this peer catches up with.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    /// The highest floor known of each owner that has one.
    floors: BTreeMap<PeerId, u64>,
    /// Owners whose floor rose since tombstones were last collected.
    risen: BTreeSet<PeerId>,
    behind: BTreeMap<PeerId, Suspects>,
    /// The last start of each owner that agreed to hold the same records, and up to where.
    confirmed: BTreeMap<PeerId, (String, u64)>,
}

impl Ledger {
    fn floor(&self, owner: PeerId) -> u64 {
        self.floors.get(&owner).copied().unwrap_or(0)
    }

    fn is_catching_up(&self, owner: PeerId) -> bool {
        self.behind.contains_key(&owner)
    }
}

/// The local peer does not know whether it holds all that it ever wrote: its database was lost or is an old one.
#[derive(Debug, Clone)]
pub(super) struct Recovery {
    /// It is complete with itself up to here.
    whole: u64,
    /// Peers that hold the very same records of it.
    vouched: BTreeSet<PeerId>,
    /// What came back: an earlier database wrote it.
    returned: BTreeSet<RecordKey>,
}

impl Recovery {
    fn from(whole: u64) -> Self {
        Self { whole, vouched: BTreeSet::new(), returned: BTreeSet::new() }
    }
}

/// Of one own record.
#[derive(Debug, Clone, Copy, Default)]
struct Outbids {
    times: u8,
    last_version: u64,
}

/// The state of collection that is not about single owners.
#[derive(Debug, Clone, Default)]
pub(super) struct Collection {
    recovery: Option<Recovery>,
    /// Up to where peers hold all own records, as they say; kept while there are tombstones to collect.
    acknowledged: BTreeMap<PeerId, u64>,
    /// Own records written in this process, and which versions of them were outbid.
    written: BTreeMap<RecordKey, Outbids>,
    floor_due: Mono,
    /// Vouched peers without a handshake yet, and since when they are known.
    strangers: BTreeMap<PeerId, Mono>,
    /// The last owner that a heartbeat asked about.
    asked: Option<PeerId>,
}

/// Revocations and readmissions are never collected, and floors speak about the others.
fn is_collectable(record_kind: &str) -> bool {
    !matches!(record_kind, kind::REVOCATION | kind::READMISSION | kind::FLOOR)
}

/// Sound: the floor of its owner, below its own version.
pub(super) fn floor_of(record: &Record) -> Option<FloorBody> {
    let body: FloorBody = (record.key.kind == kind::FLOOR).then(|| record.body_as().ok())??;
    let is_about_owner = record.key.id == record.key.owner.to_string();
    let are_short = body.lineage.len() <= LINEAGE_MAX_BYTES && body.instance.len() <= INSTANCE_MAX_BYTES;
    let is_sound = is_about_owner && body.through < record.version && are_short;
    is_sound.then_some(body)
}

fn floor_key(owner: PeerId) -> RecordKey {
    RecordKey { kind: kind::FLOOR.into(), id: owner.to_string(), owner }
}

impl Gossip {
    /// A new start of the owner has to confirm anew; what its floor says holds for all of them.
    pub(super) fn unconfirm(&mut self, owner: PeerId) {
        let complete = self.index.owned(owner).complete;
        if complete > self.ledger.floor(owner) {
            self.index.set_complete(owner, self.ledger.floor(owner));
        }
    }

    /// What was taken has a version up to which all was held: the owner gave versions twice, and what it confirmed was
    /// another history.
    pub(super) fn note_contradiction(&mut self, record: &Record) {
        let owner = record.key.owner;
        if record.version <= self.index.owned(owner).complete {
            self.ledger.confirmed.remove(&owner);
            self.unconfirm(owner);
        }
    }

    /// Up to where this peer holds everything of `owner`.
    fn complete(&self, owner: PeerId) -> u64 {
        if owner != self.local.peer_id {
            return self.index.owned(owner).complete;
        }
        self.collection.recovery.as_ref().map_or(self.own_version, |r| r.whole)
    }

    /// After the records of the store were loaded: each held floor was known here when it was committed.
    pub(super) fn begin_collection(&mut self) {
        let floors: Vec<_> = self
            .index
            .of_registry(Registry::of(kind::FLOOR))
            .filter_map(|entry| Some((entry.record.key.owner, floor_of(&entry.record)?.through)))
            .collect();
        for (owner, floor) in floors {
            self.ledger.floors.insert(owner, floor);
            self.index.set_complete(owner, floor);
            self.ledger.risen.insert(owner);
        }
        if self.facts.lineage == self.facts.instance {
            self.note_birth();
        }
        self.collect();
    }

    /// Owners that this peer was catching up with when it stopped, and up to where it was complete: as
    /// [`Event::CatchingUp`] said; and the own records that it had from peers. To be told before anything else.
    pub fn handle_resume(&mut self, catching_up: &BTreeMap<PeerId, u64>, returned: BTreeSet<RecordKey>, now: Mono) {
        self.now = now;
        for (owner, complete) in catching_up {
            if *owner == self.local.peer_id {
                self.collection.recovery = Some(Recovery { returned: returned.clone(), ..Recovery::from(*complete) });
            } else {
                self.index.set_complete(*owner, *complete);
            }
            if self.ledger.floor(*owner) > *complete {
                self.suspect(*owner);
            } else if *owner != self.local.peer_id {
                self.events.push_back(Event::CaughtUp(*owner));
            }
        }
        self.index.settle_digests();
    }

    /// A floor was taken into the index. Comes before the event that commits it, so that a crash between the two leaves
    /// the peer catching up.
    pub(super) fn note_floor(&mut self, record: &Record) {
        let Some(FloorBody { through, instance, .. }) = floor_of(record) else { return };
        let owner = record.key.owner;
        if through <= self.ledger.floor(owner) {
            return;
        }
        // What another start of it confirmed may be another history under the same versions.
        let confirmed = self.ledger.confirmed.get(&owner).filter(|(by, _)| *by == instance);
        if confirmed.is_some_and(|(_, confirmed)| *confirmed >= through) {
            self.index.set_complete(owner, through.max(self.index.owned(owner).complete));
        } else {
            self.unconfirm(owner);
        }
        let complete = self.complete(owner);
        self.ledger.floors.insert(owner, through);
        self.walks.reconsider();
        if let Some(recovery) = self.collection.recovery.as_mut().filter(|_| owner == self.local.peer_id) {
            recovery.vouched.clear();
        }
        if complete < through {
            self.events.push_back(Event::CatchingUp { owner, complete });
            self.suspect(owner);
        } else {
            self.ledger.risen.insert(owner);
        }
    }

    /// An own record came back that is not held here. What was written since may have the versions of what was lost, so
    /// only what the own floor says is sure.
    pub(super) fn note_own_loss(&mut self, key: &RecordKey) {
        let owner = self.local.peer_id;
        let whole = self.ledger.floor(owner);
        if self.collection.recovery.is_none() {
            self.events.push_back(Event::CatchingUp { owner, complete: whole });
        }
        self.collection.recovery.get_or_insert_with(|| Recovery::from(whole)).returned.insert(key.clone());
    }

    /// An own record was committed here. One whose version fell below a floor that only the others knew is written anew.
    pub(super) fn note_written(&mut self, record: &Record) {
        let owner = record.key.owner;
        if owner != self.local.peer_id || !is_collectable(&record.key.kind) {
            return;
        }
        self.collection.written.entry(record.key.clone()).or_default();
        if record.version <= self.ledger.floor(owner) {
            self.events.push_back(Event::Republish(vec![record.clone()]));
        } else if let Some(suspects) = self.ledger.behind.get_mut(&owner) {
            suspects.remove(&record.key);
        }
    }

    /// An own record came back from before a loss, of which this process wrote a later state though under a version not
    /// above: that is written anew, and what came is not taken.
    pub(super) fn outbid(&mut self, back: &Record) -> bool {
        let suspects = self.ledger.behind.get(&back.key.owner);
        let held = self.index.get(&back.key).or_else(|| suspects?.get(&back.key));
        let (Some(held), Some(outbids)) = (held, self.collection.written.get_mut(&back.key)) else { return false };
        if back.version > outbids.last_version {
            if outbids.times == OUTBIDS_MAX {
                return false;
            }
            *outbids = Outbids { times: outbids.times + 1, last_version: back.version };
        }
        self.events.push_back(Event::Republish(vec![held.record.as_ref().clone()]));
        true
    }

    /// A database that this very start has made: what it holds of the local peer is later than whatever comes back.
    fn note_birth(&mut self) {
        let own = self.index.keys_of_owners(&BTreeSet::from([self.local.peer_id]));
        let written = own.into_iter().filter(|key| is_collectable(&key.kind));
        self.collection.written.extend(written.map(|key| (key, Outbids::default())));
    }

    /// Counts what is held of `owner` up to its floor as not held.
    fn suspect(&mut self, owner: PeerId) {
        self.ledger.confirmed.remove(&owner);
        let floor = self.ledger.floor(owner);
        let mut keys = self.index.keys_of_owners(&BTreeSet::from([owner]));
        keys.retain(|k| is_collectable(&k.kind) && self.index.head(k).is_some_and(|h| h.version <= floor));
        let entries: Vec<_> =
            keys.into_iter().filter_map(|key| Some((key.clone(), self.index.remove(&key)?))).collect();
        self.ledger.behind.entry(owner).or_default().extend(entries);
    }

    /// The owner is no member: nothing said of its records counts any more. Gives what was suspect.
    fn close_account(&mut self, owner: PeerId) -> Vec<(RecordKey, u64)> {
        let suspects = self.ledger.behind.remove(&owner);
        self.ledger.floors.remove(&owner);
        self.ledger.confirmed.remove(&owner);
        self.index.set_complete(owner, 0);
        if suspects.is_some() {
            self.events.push_back(Event::CaughtUp(owner));
        }
        suspects.into_iter().flatten().map(versioned).collect()
    }

    /// What a peer owns in which trust has ended though nobody removed it: nobody else takes it from here. Revocations
    /// stay, and what a peer owned before it left by itself.
    pub(super) fn forget_stranger(&mut self, owner: PeerId) {
        let is_removed = self.locally_revoked || self.revocations.standing(owner, None) != Standing::Clear;
        if is_removed || self.revocations.left_at(owner).is_some() {
            return;
        }
        let mut keys = self.index.keys_of_owners(&BTreeSet::from([owner]));
        keys.retain(|key| Registry::of(&key.kind) != Registry::Revocations);
        let held = keys.into_iter().filter_map(|key| self.index.remove(&key).map(|entry| versioned((key, entry))));
        let mut gone: Vec<_> = held.collect();
        gone.extend(self.close_account(owner));
        self.forget(gone);
        self.index.settle_digests();
    }

    /// Suspects are in the store but not in the index: what the removal of their owner voids of them goes too. One that
    /// left by itself is still caught up with, for the services that stay listed.
    pub(super) fn void_suspects(&mut self, owner: PeerId, standing: Standing) -> Vec<RecordKey> {
        if standing == Standing::Revoked {
            return self.close_account(owner).into_iter().map(|(key, _)| key).collect();
        }
        let Some(suspects) = self.ledger.behind.get_mut(&owner) else { return Vec::new() };
        let void = suspects.keys().filter(|key| !standing.keeps(&key.kind)).cloned().collect();
        suspects.retain(|key, _| standing.keeps(&key.kind));
        void
    }

    /// Drops the tombstones that floors let go.
    pub(super) fn collect(&mut self) {
        let mut gone = Vec::new();
        for owner in std::mem::take(&mut self.ledger.risen) {
            if self.ledger.is_catching_up(owner) {
                continue;
            }
            let floor = self.ledger.floor(owner);
            let below = self.index.tombstones(owner).take_while(|(version, _)| *version <= floor);
            let falls = |key: &RecordKey| self.index.get(key).is_some_and(|held| self.falls_to(floor, &held.record));
            gone.extend(below.filter(|(_, key)| falls(key)).map(|(version, key)| (key.clone(), version)));
        }
        for (key, _) in &gone {
            self.index.remove(key);
            self.collection.written.remove(key);
        }
        self.forget(gone);
    }

    /// Of what others deleted of a departed peer nobody gathers who has acknowledged it, until it is back.
    fn falls_to(&self, floor: u64, record: &Record) -> bool {
        let since_it_left = || self.revocations.left_at(record.key.owner).is_none_or(|left_at| floor >= left_at);
        is_collectable(&record.key.kind) && (record.deleted_by().is_none() || since_it_left())
    }

    fn forget(&mut self, gone: Vec<(RecordKey, u64)>) {
        if !gone.is_empty() {
            self.events.push_back(Event::Forgotten(gone));
        }
    }

    /// Whether a record that is not held may be one that was deleted and collected. `backed`: up to where the peer that
    /// gives it is complete with its owner.
    pub(super) fn is_stale(&self, record: &Record, backed: Option<u64>) -> bool {
        let Record { key, version, .. } = record;
        let floor = self.ledger.floor(key.owner);
        if *version > floor || !self.falls_to(floor, record) || self.index.head(key).is_some() {
            return false;
        }
        !(self.ledger.is_catching_up(key.owner) && backed.is_some_and(|through| through >= floor))
    }

    /// Up to where the sender of records is complete with the owner, if it has collected by the floor that is known here:
    /// one that does not know it yet may still hold what that let go.
    pub(super) fn backing(&self, backing: &Backing) -> Option<(PeerId, u64)> {
        let owner = backing.floor.key.owner;
        let is_known = floor_of(&backing.floor).is_some_and(|floor| floor.through == self.ledger.floor(owner));
        is_known.then_some((owner, backing.through))
    }

    /// Whoever offers it again is not asked for it. While this peer catches up, another one may give it with a backing.
    pub(super) fn decline_stale(&mut self, key: &RecordKey, head: RecordHead) {
        if !self.ledger.is_catching_up(key.owner) {
            self.walks.decline(key, head);
        }
    }

    /// The store still holds what a reset has in doubt; that it does is no news.
    pub(super) fn is_suspect(&self, record: &Record) -> bool {
        let suspect = self.ledger.behind.get(&record.key.owner).and_then(|suspects| suspects.get(&record.key));
        suspect.is_some_and(|entry| entry.head.version >= record.version)
    }

    /// A suspect that is given again: says whether it is the very record that the store has.
    pub(super) fn is_restored(&mut self, entry: &Entry) -> bool {
        let key = &entry.record.key;
        let suspect = self.ledger.behind.get(&key.owner).and_then(|suspects| suspects.get(key));
        let Some(suspect) = suspect else { return false };
        if suspect.head > entry.head {
            self.events.push_back(Event::Forgotten(vec![(key.clone(), suspect.head.version)]));
            return false;
        }
        suspect.head == entry.head
    }

    /// Records for a message, with what lets a peer that catches up take the old ones.
    pub(super) fn backed(&self, list: Vec<Arc<Record>>) -> Records {
        let is_old = |r: &&Arc<Record>| is_collectable(&r.key.kind) && r.version <= self.ledger.floor(r.key.owner);
        let owners: BTreeSet<_> = list.iter().filter(is_old).map(|r| r.key.owner).collect();
        let backing = |owner: &PeerId| {
            let is_complete = !self.ledger.is_catching_up(*owner) && self.complete(*owner) >= self.ledger.floor(*owner);
            let floor = self.index.get(&floor_key(*owner)).filter(|_| is_complete)?.record.clone();
            Some(Backing { floor, through: self.complete(*owner) })
        };
        let backings = owners.iter().filter_map(backing).take(BACKINGS_MAX).collect();
        Records { backings, ..Records::shared(list) }
    }

    /// What this peer says of itself to `to`, as far as it is about whole owners.
    pub(super) fn tell_holdings(&self, to: PeerId, heartbeat: &mut Heartbeat) {
        let local = self.local.peer_id;
        let whole = Whole { through: self.own_version, sum: self.index.owned(local).sum };
        heartbeat.own = self.collection.recovery.is_none().then_some(whole);
        // Only what that start confirmed: an old database may not know the floors that are known here.
        let instance = self.links.get(&to).and_then(|link| link.heard()).map(|heard| &heard.instance);
        let confirmed = self.ledger.confirmed.get(&to).filter(|(start, _)| Some(start) == instance);
        heartbeat.holds = confirmed.map(|(of, through)| Holds { of: of.clone(), through: *through });
    }

    /// The owners to ask about next.
    pub(super) fn ask_behind(&mut self) -> Vec<PeerId> {
        let local = self.collection.recovery.is_some().then_some(self.local.peer_id);
        let asked = self.collection.asked;
        let (later, earlier): (Vec<_>, Vec<_>) = self.ledger.behind.keys().partition(|owner| Some(**owner) > asked);
        let all: BTreeSet<_> = local.into_iter().chain(later.into_iter().chain(earlier).take(BEHIND_MAX - 1)).collect();
        self.collection.asked = all.last().copied();
        all.into_iter().collect()
    }

    /// Answers for the owners that this peer is complete with.
    pub(super) fn vouch(&self, owners: &[PeerId]) -> BTreeMap<PeerId, Whole> {
        let is_sure = |owner: &&PeerId| {
            **owner != self.local.peer_id
                && !self.ledger.is_catching_up(**owner)
                && self.complete(**owner) >= self.ledger.floor(**owner)
        };
        let whole = |owner: &PeerId| Whole { through: self.complete(*owner), sum: self.index.owned(*owner).sum };
        owners.iter().filter(is_sure).map(|owner| (*owner, whole(owner))).collect()
    }

    /// Takes what a peer said of its own records, of ours, and of those we asked about.
    pub(super) fn take_holdings(&mut self, from: PeerId, heartbeat: &Heartbeat) {
        let acked = heartbeat.holds.as_ref().filter(|h| h.of == self.facts.instance && h.through <= self.own_version);
        if let Some(holds) = acked.filter(|_| self.index.tombstones(self.local.peer_id).next().is_some()) {
            self.collection.acknowledged.insert(from, holds.through);
        } else {
            self.collection.acknowledged.remove(&from);
        }
        if let Some(own) = heartbeat.own.filter(|own| self.confirm(from, *own)) {
            self.ledger.confirmed.insert(from, (heartbeat.instance.clone(), own.through));
        }
        for (owner, whole) in &heartbeat.vouches {
            if *owner == self.local.peer_id {
                self.confirm_own(from, *whole);
            } else if self.ledger.is_catching_up(*owner) {
                self.confirm(*owner, *whole);
            }
        }
    }

    /// Someone who is complete with `owner` up to `whole` told the sum of its records; says whether it is that of ours.
    fn confirm(&mut self, owner: PeerId, whole: Whole) -> bool {
        if self.index.owned(owner).sum != whole.sum || whole.through < self.ledger.floor(owner) {
            return false;
        }
        self.index.set_complete(owner, whole.through.max(self.index.owned(owner).complete));
        if let Some(suspects) = self.ledger.behind.remove(&owner) {
            self.ledger.risen.insert(owner);
            let void = suspects.into_iter().filter(|(key, _)| self.index.get(key).is_none());
            self.forget(void.map(versioned).collect());
            self.events.push_back(Event::CaughtUp(owner));
            self.collect();
            self.index.settle_digests();
        }
        true
    }

    /// The same about this peer's own records, after a loss.
    fn confirm_own(&mut self, by: PeerId, whole: Whole) {
        let local = self.local.peer_id;
        if self.index.owned(local).sum != whole.sum || whole.through < self.ledger.floor(local) {
            return;
        }
        let floor = self.record(&floor_key(local)).and_then(floor_of);
        let is_other_database = floor.is_some_and(|floor| floor.lineage != self.facts.lineage);
        let Some(recovery) = self.collection.recovery.as_mut() else { return };
        recovery.vouched.insert(by);
        recovery.whole = recovery.whole.max(whole.through);
        let suspects = self.ledger.behind.remove(&local);
        let unconfirmed = suspects.into_iter().flatten().filter(|(key, _)| self.index.get(key).is_none());
        // What an earlier database, or an earlier state of this one, wrote may have been deleted since. What was written
        // after the loss cannot have been: only its version is too low.
        let is_new = |(key, entry): &(RecordKey, Entry)| {
            let is_of_this_database = is_other_database && !recovery.returned.contains(key);
            self.collection.written.contains_key(key) || is_of_this_database && !entry.record.deleted
        };
        let (new, void): (Vec<_>, Vec<_>) = unconfirmed.partition(is_new);
        self.ledger.risen.insert(local);
        self.forget(void.into_iter().map(versioned).collect());
        if !new.is_empty() {
            self.events
                .push_back(Event::Republish(new.into_iter().map(|(_, entry)| entry.record.as_ref().clone()).collect()));
        }
        self.collect();
        self.index.settle_digests();
    }

    /// Publishes a floor when everybody has acknowledged a tombstone; ends a recovery when everybody agrees.
    pub(super) fn tend_collection(&mut self, now: Mono) {
        let local = self.local.peer_id;
        if let Some(recovery) = &self.collection.recovery {
            let vouched = recovery.vouched.clone();
            let is_open = self.ledger.is_catching_up(local);
            if !is_open && self.agreed(now, |peer| vouched.contains(&peer).then_some(0)).is_some() {
                self.collection.recovery = None;
                self.events.push_back(Event::CaughtUp(local));
            }
            return;
        }
        let lowest = self.index.tombstones(local).next().map(|(version, _)| version);
        let Some(lowest) = lowest.filter(|_| now >= self.collection.floor_due && !self.locally_revoked) else { return };
        let acknowledged = std::mem::take(&mut self.collection.acknowledged);
        let agreed = self.agreed(now, |peer| acknowledged.get(&peer).copied());
        self.collection.acknowledged = acknowledged;
        let planted = planted(Bug::TombstoneCollectedEarly).then_some(self.own_version);
        let Some(through) = agreed.or(planted) else { return };
        let through = through.min(self.own_version);
        if through >= lowest {
            self.collection.floor_due = now + FLOOR_INTERVAL;
            let super::Facts { lineage, instance, .. } = self.facts.clone();
            self.events.push_back(Event::PublishFloor(FloorBody { through, lineage, instance }));
        }
    }

    /// The lowest of what all other peers told, if none holds it up: one that was silent for 30 days does not, while
    /// more than half of all are reachable and have told.
    fn agreed(&mut self, now: Mono, told: impl Fn(PeerId) -> Option<u64>) -> Option<u64> {
        let mut lowest = u64::MAX;
        let (mut all, mut current, mut laggards) = (1, 1, 0);
        for link in self.links.values() {
            all += 1;
            let is_laggard = now >= link.last_seen().unwrap_or(self.began) + LAGGARD_AFTER;
            match told(link.peer()) {
                _ if is_laggard => laggards += 1,
                None => return None,
                Some(told) => {
                    lowest = lowest.min(told);
                    current += usize::from(link.is_healthy());
                }
            }
        }
        for since in self.strangers(now).values() {
            all += 1;
            laggards += 1;
            if now < *since + LAGGARD_AFTER {
                return None;
            }
        }
        (laggards == 0 || 2 * current > all).then_some(lowest)
    }

    /// Peers that trusted ones vouch for and no handshake has reached.
    fn strangers(&mut self, now: Mono) -> &BTreeMap<PeerId, Mono> {
        let vouchers = self.index.of_registry(Registry::of(kind::VOUCHER)).map(|entry| &entry.record);
        let subjects =
            vouchers.filter(|r| r.key.kind == kind::VOUCHER && !r.deleted).filter_map(|r| r.key.id.parse().ok());
        let is_out = |peer: &PeerId| {
            *peer != self.local.peer_id
                && !self.links.contains_key(peer)
                && self.revocations.standing(*peer, None) == Standing::Clear
        };
        let known = &self.collection.strangers;
        let found = subjects.filter(is_out).map(|peer| (peer, known.get(&peer).copied().unwrap_or(now))).collect();
        self.collection.strangers = found;
        &self.collection.strangers
    }
}
