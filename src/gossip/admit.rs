//! Which records come in: judged by owner, key and signature before they touch the index.

use super::{
    Discovery, Event, Gossip,
    collect::floor_of,
    index::{Entry, Owned},
    revocation::{Standing, is_about_its_id},
};
use crate::{
    model::{Endpoint, Mono, PeerId, PublicKey},
    wire::{
        gossip::{ENDPOINTS_MAX, Records, Registry, VERSION_MAX},
        record::{PeerBody, RECORD_MAX_BYTES, Record, RecordHead, RecordKey, RevocationBody, Voucher, kind},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Records of one owner, tombstones included. A member that goes over it is cut off there, and only its own records suffer.
const RECORDS_PER_OWNER_MAX: usize = 65_536;
/// The same for an owner that was removed: revocations, and services if it left by itself.
const RECORDS_PER_REMOVED_OWNER_MAX: usize = 1024;
/// Bytes of the records of one owner, as they are sent.
const BYTES_PER_OWNER_MAX: usize = 64 * 1024 * 1024;
/// Owners in all; beyond them only trusted peers get in.
const OWNERS_MAX: usize = 16_384;
/// Peers remembered as discovered; a peer beyond them is announced again whenever its record passes by.
const DISCOVERED_MAX_PEERS: usize = 1024;
/// Longest self-given name that a discovery reports.
const NAME_MAX_CHARS: usize = 64;

/// Records of all owners that are not trusted, and their bytes: revocations that outlive who issued them, and services
/// of those who left.
const LEFT_BEHIND_RECORDS_MAX: usize = 131_072;
const LEFT_BEHIND_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Records and their bytes, as they are sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    records: usize,
    bytes: usize,
}

impl Load {
    fn with(self, more: Self) -> Self {
        Self { records: self.records + more.records, bytes: self.bytes + more.bytes }
    }

    fn has_room(self, more: Self) -> bool {
        let all = self.with(more);
        (more.records == 0 || all.records <= LEFT_BEHIND_RECORDS_MAX)
            && (more.bytes == 0 || all.bytes <= LEFT_BEHIND_BYTES_MAX)
    }
}

impl From<Owned> for Load {
    fn from(owned: Owned) -> Self {
        Self { records: owned.records as usize, bytes: owned.bytes as usize }
    }
}

/// Records that were refused, by reason. Counters of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    pub malformed: u64,
    pub oversize: u64,
    pub bad_signature: u64,
    /// Owners without a handshake yet; normal while a cluster grows.
    pub untrusted_owner: u64,
    pub revoked_owner: u64,
    pub over_owner_limit: u64,
    /// Below the floor of their owner: deleted and collected, as far as this peer knows.
    pub stale: u64,
    /// Of owners or senders that give more in a time than is taken.
    pub over_quota: u64,
    /// Not refused: two contents under one version, of which the larger hash won.
    pub equivocations: u64,
}

enum Refusal {
    Malformed,
    Oversize,
    BadSignature,
    UntrustedOwner,
    RevokedOwner,
    OverOwnerLimit,
    Stale,
    OverQuota,
}

/// Where records come from.
struct Source {
    from: PeerId,
    /// Owner to the version up to which the sender is complete.
    backed: BTreeMap<PeerId, u64>,
}

/// Whose signature counts for a record.
enum Authority {
    Key(PublicKey),
    /// Any of these: the owner is removed and only its revocations, or its listed services, remain.
    AnyOf(Vec<PublicKey>),
    /// The owner is not trusted; its `peer` record is worth a discovery.
    Stranger,
    Revoked,
}

impl Gossip {
    /// Takes in what verifies and queues the events; gives the number of records refused and the keys that were new.
    pub(super) fn absorb(&mut self, from: PeerId, records: &Records, now: Mono) -> (u32, Vec<RecordKey>) {
        let refused_before = self.refused();
        self.drops.malformed += u64::from(records.unreadable);
        let mut source = Source { from, backed: BTreeMap::new() };
        // Revocations first: what they void then never counts as news. Then floors: they say what is stale.
        let (revoking, others): (Vec<_>, Vec<_>) =
            records.list.iter().partition(|r| Registry::of(&r.key.kind) == Registry::Revocations);
        let mut keys = self.admit_all(&source, &revoking);
        if !keys.is_empty() {
            self.settle_revocations(&keys, now);
        }
        let (floors, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|r| r.key.kind == kind::FLOOR);
        let backings = records.backings.iter().filter(|backing| backing.floor.key.kind == kind::FLOOR);
        let floors: Vec<_> = backings.map(|backing| &backing.floor).chain(floors).collect();
        keys.extend(self.admit_all(&source, &floors));
        source.backed = records.backings.iter().filter_map(|backing| self.backing(backing)).collect();
        keys.extend(self.admit_all(&source, &others));
        self.meet_readmitted(&keys);
        self.index.settle_digests();
        (u32::try_from(self.refused() - refused_before).unwrap_or(u32::MAX), keys)
    }

    fn refused(&self) -> u64 {
        let d = &self.drops;
        let of_owners = d.untrusted_owner + d.revoked_owner + d.over_owner_limit + d.stale + d.over_quota;
        d.malformed + d.oversize + d.bad_signature + of_owners
    }

    fn admit_all(&mut self, source: &Source, records: &[&Arc<Record>]) -> Vec<RecordKey> {
        let mut merged = Vec::new();
        for record in records {
            match self.admit(source, record) {
                Ok(true) => merged.push(record.as_ref().clone()),
                Ok(false) => {}
                Err(refusal) => self.count(refusal),
            }
        }
        let keys = merged.iter().map(|r| r.key.clone()).collect();
        let discoveries: Vec<_> = merged.iter().filter_map(|r| self.vouched(r)).collect();
        if !merged.is_empty() {
            self.events.push_back(Event::Merge(merged));
        }
        self.collect();
        self.events.extend(discoveries.into_iter().map(|d| Event::Discovered(Box::new(d))));
        keys
    }

    /// Says whether the record was news. A head that is not above the held one is never verified again.
    fn admit(&mut self, source: &Source, record: &Arc<Record>) -> Result<bool, Refusal> {
        if record.version > VERSION_MAX {
            return Err(Refusal::Malformed);
        }
        // Most of what a large cluster pushes comes several times.
        if self.index.get(&record.key).is_some_and(|held| held.record == *record) {
            return Ok(false);
        }
        let entry = Entry::new(record.clone()).ok_or(Refusal::Malformed)?;
        if entry.wire_bytes > RECORD_MAX_BYTES + crate::wire::gossip::ENVELOPE_MAX_BYTES {
            return Err(Refusal::Oversize);
        }
        check_form(&entry)?;
        let held = self.index.head(&record.key);
        if !entry.head.is_news(held) {
            self.drops.equivocations += u64::from(held.is_some_and(|h| is_equivocation(h, entry.head)));
            return Ok(false);
        }
        let owner = record.key.owner;
        let authority = self.authority(&record.key, record);
        if let Authority::Key(_) | Authority::AnyOf(_) = authority
            && self.is_stale(record, source.backed.get(&owner).copied())
        {
            self.decline_stale(&record.key, entry.head);
            return Err(Refusal::Stale);
        }
        if !self.quotas.has_room(source.from, owner, entry.wire_bytes, self.now) {
            return Err(Refusal::OverQuota);
        }
        let signers = match authority {
            Authority::Key(key) => vec![key],
            Authority::AnyOf(keys) => {
                self.charge_stranger(source.from)?;
                keys
            }
            Authority::Revoked => {
                self.walks.decline(&record.key, entry.head);
                return Err(Refusal::RevokedOwner);
            }
            Authority::Stranger => {
                self.walks.decline(&record.key, entry.head);
                return self.meet_stranger(source.from, &entry).map(|()| false);
            }
        };
        self.verify(source.from, record, &signers)?;
        if owner == self.local.peer_id {
            self.note_own_loss(&record.key);
            if record.version > self.own_version {
                self.own_version = record.version;
                self.events.push_back(Event::AdoptOwnVersion { version: record.version, told: self.told_version });
            }
            if record.deleted_by().is_none() && self.outbid(record) {
                return Ok(false);
            }
        } else {
            let more = self.growth(&record.key, entry.wire_bytes);
            if !self.has_room_for(owner, more) {
                self.walks.decline(&record.key, entry.head);
                return Err(Refusal::OverOwnerLimit);
            }
            self.quotas.charge(owner, entry.wire_bytes, self.now);
            if !self.links.contains_key(&owner) {
                self.left_behind = self.left_behind.with(more);
            }
        }
        self.drops.equivocations += u64::from(held.is_some_and(|h| is_equivocation(h, entry.head)));
        let is_restored = self.is_restored(&entry);
        let is_taken = self.index.offer(entry);
        self.taken += u64::from(is_taken);
        if is_taken {
            self.note_contradiction(record);
        }
        self.note_floor(record);
        Ok(is_taken && !is_restored)
    }

    fn verify(&mut self, sender: PeerId, record: &Record, signers: &[PublicKey]) -> Result<(), Refusal> {
        if signers.iter().any(|key| record.verify(key).is_ok()) {
            return Ok(());
        }
        self.quotas.charge_forgery(sender, self.now);
        Err(Refusal::BadSignature)
    }

    /// Anybody can sign for owners that nobody trusts, so what they cost is charged to who brings their records.
    fn charge_stranger(&mut self, sender: PeerId) -> Result<(), Refusal> {
        if self.quotas.charge_stranger(sender, self.now) { Ok(()) } else { Err(Refusal::OverQuota) }
    }

    /// What a record adds to those of its owner; one in the place of another, what it is longer.
    fn growth(&self, key: &RecordKey, bytes: usize) -> Load {
        match self.index.get(key) {
            Some(held) => Load { records: 0, bytes: bytes.saturating_sub(held.wire_bytes) },
            None => Load { records: 1, bytes },
        }
    }

    /// Limits are for what grows: a tombstone in the place of a record always has room.
    fn has_room_for(&self, owner: PeerId, more: Load) -> bool {
        let held = Load::from(self.index.owned(owner));
        let fits = |records_max| {
            (more.records == 0 || held.records < records_max)
                && (more.bytes == 0 || held.bytes + more.bytes <= BYTES_PER_OWNER_MAX)
        };
        if self.links.contains_key(&owner) {
            return fits(RECORDS_PER_OWNER_MAX);
        }
        let is_known = held.records > 0 || self.index.owner_count() < OWNERS_MAX;
        fits(RECORDS_PER_REMOVED_OWNER_MAX) && is_known && self.left_behind.has_room(more)
    }

    fn authority(&self, key: &RecordKey, record: &Record) -> Authority {
        if let Some(by) = record.deleted_by() {
            return Authority::AnyOf(self.keys_for_tombstone(record, by));
        }
        if key.owner == self.local.peer_id {
            return Authority::Key(self.local.public_key);
        }
        let held = self.links.get(&key.owner).map(|link| link.key);
        match (self.revocations.standing(key.owner, held.as_ref()), held) {
            (Standing::Clear, Some(held)) => Authority::Key(held),
            (Standing::Clear, None) => match farewell_key(record) {
                Some(own) => Authority::AnyOf(vec![own]),
                None => Authority::Stranger,
            },
            (standing, _) if standing.keeps(&key.kind) => {
                let mut keys: Vec<_> = self.revocations.keys_of(key.owner).copied().collect();
                keys.extend(held);
                Authority::AnyOf(keys)
            }
            _ => Authority::Revoked,
        }
    }

    /// The keys of `by`, who deletes a service of a peer that has left (cluster.md §5); none where it may not.
    fn keys_for_tombstone(&self, record: &Record, by: PeerId) -> Vec<PublicKey> {
        let left = self.revocations.left_at(record.key.owner).is_some_and(|version| record.version <= version);
        if !left || record.key.kind != kind::SERVICE {
            return Vec::new();
        }
        let local = (by == self.local.peer_id).then_some(self.local.public_key);
        let held = self.links.get(&by).map(|link| link.key);
        // A signer that was removed later: its deletions stay deletions.
        local.into_iter().chain(held).chain(self.revocations.keys_of(by).copied()).collect()
    }

    /// A self-signed `peer` record of an owner that is not trusted gives a name and endpoints, and nothing else.
    fn meet_stranger(&mut self, sender: PeerId, entry: &Entry) -> Result<(), Refusal> {
        let record = &entry.record;
        let peer = record.key.owner;
        let body = match record.body_as::<PeerBody>() {
            Ok(body) if record.key.kind == kind::PEER && record.key.id == peer.to_string() => body,
            _ => return Err(Refusal::UntrustedOwner),
        };
        if self.discovered.get(&peer).is_some_and(|seen| *seen >= entry.head) {
            return Ok(());
        }
        if self.revocations.standing(peer, Some(&body.public_key)) != Standing::Clear {
            return Err(Refusal::RevokedOwner);
        }
        self.charge_stranger(sender)?;
        self.verify(sender, record, &[body.public_key])?;
        if self.discovered.len() < DISCOVERED_MAX_PEERS || self.discovered.contains_key(&peer) {
            self.discovered.insert(peer, entry.head);
        }
        self.events.push_back(Event::Discovered(Box::new(Discovery {
            peer,
            name: Some(body.name.chars().take(NAME_MAX_CHARS).collect()),
            endpoints: first(&body.endpoints),
            voucher: None,
        })));
        Ok(())
    }

    /// What a trusted peer's voucher tells of a peer that is not trusted yet.
    fn vouched(&self, record: &Record) -> Option<Discovery> {
        if record.key.kind != kind::VOUCHER || record.deleted {
            return None;
        }
        let issuer_key = &self.links.get(&record.key.owner)?.key;
        let voucher: Voucher = record.body_as().ok()?;
        let subject = voucher.subject_peer_id;
        let is_news = subject != self.local.peer_id && !self.links.contains_key(&subject);
        let is_clear = self.revocations.standing(subject, Some(&voucher.subject_public_key)) == Standing::Clear;
        let is_genuine =
            voucher.issuer_peer_id == record.key.owner && voucher.transcript().verify(issuer_key, &voucher.signature);
        (is_news && is_clear && is_genuine).then(|| Discovery {
            peer: subject,
            name: None,
            endpoints: first(&voucher.subject_endpoints),
            voucher: Some(voucher),
        })
    }

    /// Vouchers for peers that these readmissions take back may have come before them, and told of nobody then.
    fn meet_readmitted(&mut self, keys: &[RecordKey]) {
        let readmitted: BTreeSet<&str> =
            keys.iter().filter(|key| key.kind == kind::READMISSION).map(|key| key.id.as_str()).collect();
        if !readmitted.is_empty() {
            self.meet_vouched(|voucher| readmitted.contains(voucher.id.as_str()));
        }
    }

    /// Reads vouchers that are held already once more: whom they introduce may be worth a handshake now.
    pub(super) fn meet_vouched(&mut self, is_meant: impl Fn(&RecordKey) -> bool) {
        let held = self.index.of_registry(Registry::Peers).map(|entry| &entry.record);
        let vouchers = held.filter(|r| r.key.kind == kind::VOUCHER && is_meant(&r.key));
        let met: Vec<_> = vouchers.filter_map(|record| self.vouched(record)).collect();
        self.events.extend(met.into_iter().map(|d| Event::Discovered(Box::new(d))));
    }

    /// After records of revocations and readmissions were taken: trust ends, and what the removed peer owned is void.
    pub(super) fn settle_revocations(&mut self, taken: &[RecordKey], now: Mono) {
        for entry in taken.iter().filter_map(|key| self.index.get(key)) {
            self.revocations.take(&entry.record);
        }
        self.revocations.validate();
        self.walks.reconsider();
        let mut revoked = BTreeSet::new();
        for link in self.links.values() {
            if self.revocations.standing(link.peer(), Some(&link.key)) != Standing::Clear {
                revoked.insert(link.peer());
            }
        }
        for (owner, owned) in self.index.owners() {
            if owner != self.local.peer_id
                && owned.records > 0
                && self.revocations.standing(owner, None) != Standing::Clear
            {
                revoked.insert(owner);
            }
        }
        let mut void = self.index.keys_of_owners(&revoked);
        void.retain(|key| !self.standing_of(key.owner).keeps(&key.kind));
        for peer in revoked {
            let mut mine: BTreeSet<_> = void.iter().filter(|key| key.owner == peer).cloned().collect();
            mine.iter().for_each(|key| drop(self.index.remove(key)));
            if mine.iter().any(|key| key.kind == kind::READMISSION) {
                self.revocations.void_readmissions(peer);
            }
            // Some of them were given again meanwhile.
            mine.extend(self.void_suspects(peer, self.standing_of(peer)));
            if self.unlink(peer) || !mine.is_empty() {
                self.events.push_back(Event::Revoked { peer, void: mine.into_iter().collect() });
            }
        }
        self.settle_local_standing(now);
        self.count_left_behind();
        self.index.settle_digests();
    }

    /// Anew whenever trust begins or ends.
    pub(super) fn count_left_behind(&mut self) {
        let local = self.local.peer_id;
        let untrusted = self.index.owners().filter(|(owner, _)| *owner != local && !self.links.contains_key(owner));
        self.left_behind = untrusted.map(|(_, owned)| owned.into()).fold(Load::default(), Load::with);
    }

    pub(super) fn standing_of(&self, peer: PeerId) -> Standing {
        self.revocations.standing(peer, self.links.get(&peer).map(|link| &link.key))
    }

    /// A peer that learns of its own revocation stays a cluster of one. A later handshake may give it peers again.
    fn settle_local_standing(&mut self, now: Mono) {
        let standing = self.revocations.standing(self.local.peer_id, Some(&self.local.public_key));
        let newly = standing != Standing::Clear && !self.locally_revoked;
        self.locally_revoked = standing != Standing::Clear;
        if newly {
            self.now = now;
            let peers: Vec<_> = self.links.keys().collect();
            peers.into_iter().for_each(|peer| {
                self.unlink(peer);
            });
            self.withheld.clear();
            self.events.push_back(Event::Revoked { peer: self.local.peer_id, void: Vec::new() });
        }
    }

    fn count(&mut self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::Malformed => &mut self.drops.malformed,
            Refusal::Oversize => &mut self.drops.oversize,
            Refusal::BadSignature => &mut self.drops.bad_signature,
            Refusal::UntrustedOwner => &mut self.drops.untrusted_owner,
            Refusal::RevokedOwner => &mut self.drops.revoked_owner,
            Refusal::OverOwnerLimit => &mut self.drops.over_owner_limit,
            Refusal::Stale => &mut self.drops.stale,
            Refusal::OverQuota => &mut self.drops.over_quota,
        };
        *counter += 1;
    }
}

/// A live record without a body would have the head of a tombstone; a revocation has no tombstone.
fn check_form(entry: &Entry) -> Result<(), Refusal> {
    let record = &entry.record;
    let is_sound = record.deleted == record.body.is_null() || record.deleted_by().is_some();
    let is_meant = match record.key.kind.as_str() {
        kind::REVOCATION | kind::READMISSION => is_about_its_id(&record.key, entry),
        kind::FLOOR => floor_of(record).is_some(),
        _ => true,
    };
    if is_sound && is_meant { Ok(()) } else { Err(Refusal::Malformed) }
}

fn is_equivocation(held: RecordHead, offered: RecordHead) -> bool {
    held.version == offered.version && held.hash != offered.hash
}

/// The key in a peer's revocation of itself: it holds for peers that never met the one that left.
fn farewell_key(record: &Record) -> Option<PublicKey> {
    let body: RevocationBody = (record.key.kind == kind::REVOCATION).then(|| record.body_as().ok())??;
    body.public_key.filter(|_| body.peer_id == Some(record.key.owner))
}

fn first(endpoints: &[Endpoint]) -> Vec<Endpoint> {
    endpoints.iter().take(ENDPOINTS_MAX).cloned().collect()
}
