//! Which records come in: judged by owner, key and signature before they touch the index.

use super::{
    Discovery, Event, Gossip,
    index::Entry,
    revocation::{Revocations, Standing, is_about_its_id},
};
use crate::{
    model::{Endpoint, Mono, PeerId, PublicKey},
    wire::{
        gossip::{ENDPOINTS_MAX, Records, Registry, VERSION_MAX},
        record::{PeerBody, RECORD_MAX_BYTES, Record, RecordHead, RecordKey, RevocationBody, Voucher, kind},
    },
};
use std::collections::BTreeSet;

/// Records of one owner, tombstones included. A member that goes over it is cut off there, and only its own records suffer.
const RECORDS_PER_OWNER_MAX: usize = 65_536;
/// The same for an owner that was removed: revocations, and services if it left by itself.
const RECORDS_PER_REMOVED_OWNER_MAX: usize = 1024;
/// Owners in all; beyond them only trusted peers get in.
const OWNERS_MAX: usize = 16_384;
/// Peers remembered as discovered; a peer beyond them is announced again whenever its record passes by.
const DISCOVERED_MAX_PEERS: usize = 1024;
/// Longest self-given name that a discovery reports.
const NAME_MAX_CHARS: usize = 64;

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
    pub(super) fn absorb(&mut self, records: &Records, now: Mono) -> (u32, Vec<RecordKey>) {
        let refused_before = self.refused();
        self.drops.malformed += u64::from(records.unreadable);
        // Revocations first: what they void then never counts as news.
        let (revoking, others): (Vec<_>, Vec<_>) =
            records.list.iter().partition(|r| Registry::of(&r.key.kind) == Registry::Revocations);
        let mut keys = self.admit_all(&revoking);
        if !keys.is_empty() {
            self.settle_revocations(now);
        }
        keys.extend(self.admit_all(&others));
        self.index.settle_digests();
        (u32::try_from(self.refused() - refused_before).unwrap_or(u32::MAX), keys)
    }

    fn refused(&self) -> u64 {
        let d = &self.drops;
        d.malformed + d.oversize + d.bad_signature + d.untrusted_owner + d.revoked_owner + d.over_owner_limit
    }

    fn admit_all(&mut self, records: &[&Record]) -> Vec<RecordKey> {
        let mut merged = Vec::new();
        for record in records {
            match self.admit(record) {
                Ok(true) => merged.push((*record).clone()),
                Ok(false) => {}
                Err(refusal) => self.count(refusal),
            }
        }
        let keys = merged.iter().map(|r| r.key.clone()).collect();
        let discoveries: Vec<_> = merged.iter().filter_map(|r| self.vouched(r)).collect();
        if !merged.is_empty() {
            self.events.push_back(Event::Merge(merged));
        }
        self.events.extend(discoveries.into_iter().map(|d| Event::Discovered(Box::new(d))));
        keys
    }

    /// Says whether the record was news. A head that is not above the held one is never verified again.
    fn admit(&mut self, record: &Record) -> Result<bool, Refusal> {
        if record.version > VERSION_MAX {
            return Err(Refusal::Malformed);
        }
        let entry = Entry::new(record.clone()).ok_or(Refusal::Malformed)?;
        if entry.wire_bytes > RECORD_MAX_BYTES + crate::wire::gossip::ENVELOPE_MAX_BYTES {
            return Err(Refusal::Oversize);
        }
        check_form(&entry)?;
        let held = self.index.head(&record.key);
        if held.is_some_and(|held| held >= entry.head) {
            self.drops.equivocations += u64::from(held.is_some_and(|h| is_equivocation(h, entry.head)));
            return Ok(false);
        }
        match self.authority(&record.key, Some(record)) {
            Authority::Key(key) => verify(record, &[key])?,
            Authority::AnyOf(keys) => verify(record, &keys)?,
            Authority::Revoked => return Err(Refusal::RevokedOwner),
            Authority::Stranger => return self.meet_stranger(&entry).map(|()| false),
        }
        let owner = record.key.owner;
        if owner == self.local.peer_id {
            if record.version > self.own_version {
                self.own_version = record.version;
                self.events.push_back(Event::AdoptOwnVersion(record.version));
            }
        } else if held.is_none() && !self.has_room_for(owner) {
            return Err(Refusal::OverOwnerLimit);
        }
        self.drops.equivocations += u64::from(held.is_some_and(|h| is_equivocation(h, entry.head)));
        Ok(self.index.offer(entry))
    }

    fn has_room_for(&self, owner: PeerId) -> bool {
        let records = self.index.owned(owner).records;
        if self.links.contains_key(&owner) {
            return records < RECORDS_PER_OWNER_MAX;
        }
        records < RECORDS_PER_REMOVED_OWNER_MAX && (records > 0 || self.index.owner_count() < OWNERS_MAX)
    }

    fn authority(&self, key: &RecordKey, record: Option<&Record>) -> Authority {
        if let Some((record, by)) = record.and_then(|record| Some((record, record.deleted_by()?))) {
            return Authority::AnyOf(self.keys_for_tombstone(record, by));
        }
        if key.owner == self.local.peer_id {
            return Authority::Key(self.local.public_key);
        }
        let held = self.links.get(&key.owner).map(|link| link.key);
        match (self.revocations.standing(key.owner, held.as_ref()), held) {
            (Standing::Clear, Some(held)) => Authority::Key(held),
            (Standing::Clear, None) => match record.and_then(farewell_key) {
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

    /// Whether a record with this head, offered by a peer, would be taken, as far as that shows without the record.
    pub(super) fn wants(&self, key: &RecordKey, head: RecordHead) -> bool {
        if self.index.head(key).is_some_and(|held| held >= head) {
            return false;
        }
        match self.authority(key, None) {
            Authority::Key(_) | Authority::AnyOf(_) => true,
            Authority::Revoked => false,
            Authority::Stranger => match key.kind.as_str() {
                kind::PEER => self.discovered.get(&key.owner).is_none_or(|seen| *seen < head),
                // The owner may have revoked itself, and then the record carries its own key.
                kind::REVOCATION => key.id == key.owner.to_string(),
                _ => false,
            },
        }
    }

    /// A self-signed `peer` record of an owner that is not trusted gives a name and endpoints, and nothing else.
    fn meet_stranger(&mut self, entry: &Entry) -> Result<(), Refusal> {
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
        verify(record, &[body.public_key])?;
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

    /// Reads the revocations anew and draws the consequences: trust ends, and what the removed peer owned is void.
    pub(super) fn settle_revocations(&mut self, now: Mono) {
        self.revocations = Revocations::of(self.index.of_registry(Registry::Revocations).map(|entry| &entry.record));
        let mut revoked = BTreeSet::new();
        for (peer, link) in &self.links {
            if self.revocations.standing(*peer, Some(&link.key)) != Standing::Clear {
                revoked.insert(*peer);
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
            let mine: Vec<_> = void.iter().filter(|key| key.owner == peer).cloned().collect();
            if self.unlink(peer) || !mine.is_empty() {
                mine.iter().for_each(|key| self.index.remove(key));
                self.events.push_back(Event::Revoked { peer, void: mine });
            }
        }
        self.settle_local_standing(now);
        self.index.settle_digests();
    }

    fn standing_of(&self, peer: PeerId) -> Standing {
        self.revocations.standing(peer, self.links.get(&peer).map(|link| &link.key))
    }

    /// A peer that learns of its own revocation stays a cluster of one. A later handshake may give it peers again.
    fn settle_local_standing(&mut self, now: Mono) {
        let standing = self.revocations.standing(self.local.peer_id, Some(&self.local.public_key));
        let newly = standing != Standing::Clear && !self.locally_revoked;
        self.locally_revoked = standing != Standing::Clear;
        if newly {
            self.now = now;
            let peers: Vec<_> = self.links.keys().copied().collect();
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
        };
        *counter += 1;
    }
}

/// A live record without a body would have the head of a tombstone; a revocation has no tombstone.
fn check_form(entry: &Entry) -> Result<(), Refusal> {
    let record = &entry.record;
    let is_sound = record.deleted == record.body.is_null() || record.deleted_by().is_some();
    let is_final = matches!(record.key.kind.as_str(), kind::REVOCATION | kind::READMISSION);
    if is_sound && (!is_final || is_about_its_id(&record.key, entry)) { Ok(()) } else { Err(Refusal::Malformed) }
}

fn is_equivocation(held: RecordHead, offered: RecordHead) -> bool {
    held.version == offered.version && held.hash != offered.hash
}

fn verify(record: &Record, keys: &[PublicKey]) -> Result<(), Refusal> {
    if keys.iter().any(|key| record.verify(key).is_ok()) { Ok(()) } else { Err(Refusal::BadSignature) }
}

/// The key in a peer's revocation of itself: it holds for peers that never met the one that left.
fn farewell_key(record: &Record) -> Option<PublicKey> {
    let body: RevocationBody = (record.key.kind == kind::REVOCATION).then(|| record.body_as().ok())??;
    body.public_key.filter(|_| body.peer_id == Some(record.key.owner))
}

fn first(endpoints: &[Endpoint]) -> Vec<Endpoint> {
    endpoints.iter().take(ENDPOINTS_MAX).cloned().collect()
}
