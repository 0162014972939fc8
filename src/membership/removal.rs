//! Peers that go (cluster.md §8).

use super::{Author, Ledger, LedgerView, Origin, PeerRow, Put, read_service};
use crate::{
    gossip::Standing,
    model::{PeerId, PublicKey, ServiceId, UnixTime},
    wire::{
        gossip::{ENVELOPE_MAX_BYTES, RECORDS_MAX_BYTES, RECORDS_MAX_COUNT},
        record::{Deactivation, DepartureBody, Record, RecordKey, RevocationBody, RevocationReason, kind},
    },
};
use std::collections::BTreeSet;

/// Revocations that a refused peer is told of, and takes.
const GROUNDS_MAX: usize = 8;

/// What a peer leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    pub announcement: Deactivation,
    /// Carries the announcement to the others.
    pub revocation: Record,
    /// One message for the others: the revocation, then the own services, newest first, as far as it holds them. They stay
    /// listed, and nobody can ask for them later.
    pub last_words: Vec<Record>,
}

/// `peers remove-self`: the word that this peer leaves for good. None without a cluster. The caller brings it to the
/// others, and then clears the ledger but for the own version, above which everything comes that this peer ever writes
/// again.
pub fn leave<L: Ledger>(ledger: &L, author: &Author, now: UnixTime) -> Result<Option<Departure>, L::Error> {
    let Some(cluster) = ledger.cluster()? else { return Ok(None) };
    let version = ledger.own_version()? + 1;
    let announcement = Deactivation::sign(&author.key, author.peer_id, cluster.cluster_id, version, now);
    let revocation = RevocationBody {
        peer_id: Some(author.peer_id),
        public_key: Some(author.key.public()),
        client_id: None,
        reason: RevocationReason::Deactivated,
        revoked_at: now,
    };
    let body = DepartureBody { revocation, announcement: announcement.clone() };
    let revocation = ledger.put_own(author, kind::REVOCATION, &author.peer_id.to_string(), &body)?;
    let last_words = last_words(ledger.records_of(kind::SERVICE)?, &revocation);
    Ok(Some(Departure { announcement, revocation, last_words }))
}

fn last_words(mut services: Vec<Record>, revocation: &Record) -> Vec<Record> {
    services.retain(|record| record.key.owner == revocation.key.owner);
    services.sort_by_key(|record| std::cmp::Reverse(record.version));
    let mut bytes = 0;
    let fits = |record: &Record| {
        bytes += record.body.to_string().len() + ENVELOPE_MAX_BYTES;
        bytes <= RECORDS_MAX_BYTES
    };
    let services = services.into_iter().take(RECORDS_MAX_COUNT - 1).take_while(fits);
    std::iter::once(revocation.clone()).chain(services).collect()
}

/// Deletes, by hand, a service of a peer that has left. None if there is no such service.
pub fn delete_service_of_departed<L: Ledger>(
    ledger: &L,
    author: &Author,
    owner: PeerId,
    id: ServiceId,
) -> Result<Option<Record>, L::Error> {
    let key = RecordKey { kind: kind::SERVICE.into(), id: id.to_string(), owner };
    let Some(live) = ledger.record(&key)?.filter(|record| !record.deleted) else { return Ok(None) };
    if ledger.revocations()?.left_at(owner).is_none_or(|left_at| live.version >= left_at) {
        return Ok(None);
    }
    let tombstone = Record::sign_tombstone_of_another(&author.key, author.peer_id, key, live.version + 1)?;
    ledger.put_record(&tombstone, Origin::Written)?;
    Ok(Some(tombstone))
}

/// `peers delete` of a remote peer: its revocation, and no trust here from this moment. None if it is not known.
pub fn remove_peer<L: Ledger>(
    ledger: &L,
    author: &Author,
    peer: PeerId,
    now: UnixTime,
) -> Result<Option<Record>, L::Error> {
    let Some(row) = ledger.peer(peer)?.filter(|_| peer != author.peer_id) else { return Ok(None) };
    let body = RevocationBody {
        peer_id: Some(peer),
        public_key: Some(row.public_key),
        client_id: None,
        reason: RevocationReason::Deleted,
        revoked_at: now,
    };
    let revocation = ledger.put_own(author, kind::REVOCATION, &peer.to_string(), &body)?;
    delete_services_to(ledger, author, peer)?;
    withdraw_voucher(ledger, author, peer)?;
    ledger.forget_peer(peer)?;
    Ok(Some(revocation))
}

/// Trust that the other side does not return ends, and with it this peer's word for it and all that it owns here but
/// revocations, which nobody else would take from here; its key stays held. Says whether there was any.
///
/// Nothing is dropped where removals say what stays: of a peer that was removed or left, and by an agent that was removed
/// itself. The gossip machine goes by the same rule ([`Gossip::handle_trust`](crate::gossip::Gossip::handle_trust)).
pub fn withdraw_trust<L: Ledger>(ledger: &L, author: &Author, peer: PeerId) -> Result<bool, L::Error> {
    let Some(row) = ledger.peer(peer)?.filter(|row| row.trusted) else { return Ok(false) };
    ledger.put_peer(&PeerRow { trusted: false, ..row })?;
    let revocations = ledger.revocations()?;
    let is_clear = |id, key: Option<&PublicKey>| revocations.standing(id, key) == Standing::Clear;
    let is_stranger = is_clear(peer, None) && revocations.left_at(peer).is_none();
    if is_stranger && is_clear(author.peer_id, Some(&author.key.public())) {
        let owned = ledger.records_since(peer, 0)?.into_iter().map(|record| record.key);
        owned.filter(|key| !is_about_removal(&key.kind)).try_for_each(|key| ledger.forget_record(&key))?;
    }
    withdraw_voucher(ledger, author, peer)?;
    Ok(true)
}

/// The own word for a peer ends; a contested copy of an identity leaves that for later.
fn withdraw_voucher<L: Ledger>(ledger: &L, author: &Author, peer: PeerId) -> Result<(), L::Error> {
    let voucher = RecordKey { kind: kind::VOUCHER.into(), id: peer.to_string(), owner: author.peer_id };
    if !ledger.is_contested()? && ledger.record(&voucher)?.is_some_and(|held| !held.deleted) {
        ledger.delete_own(author, kind::VOUCHER, &voucher.id)?;
    }
    Ok(())
}

/// The own word for peers that are known and not trusted any more ends.
pub(super) fn withdraw_idle_vouchers<L: Ledger>(ledger: &L, author: &Author) -> Result<(), L::Error> {
    let known = ledger.peers()?;
    known.iter().filter(|row| !row.trusted).try_for_each(|row| withdraw_voucher(ledger, author, row.peer_id))
}

/// A revocation has taken effect: trust in the peer ends, and these records are void; which, the gossip machine says. Own
/// services to a removed peer go, those to one that left by itself stay listed. An agent that learns of its own
/// revocation drops all others. Says whether the peer was known.
pub fn peer_was_revoked<L: Ledger>(
    ledger: &L,
    author: &Author,
    peer: PeerId,
    void: &[RecordKey],
) -> Result<bool, L::Error> {
    let row = ledger.peer(peer)?;
    if peer == author.peer_id {
        let others = ledger.peers()?.into_iter().map(|p| p.peer_id).filter(|id| *id != peer);
        void.iter().try_for_each(|key| ledger.forget_record(key))?;
        others.into_iter().try_for_each(|id| ledger.forget_peer(id))?;
        return Ok(true);
    }
    // An operator may have taken it back since the machine spoke.
    let key = row.as_ref().map(|row| row.public_key);
    let standing = ledger.revocations()?.standing(peer, key.as_ref());
    if standing == Standing::Clear {
        return Ok(false);
    }
    void.iter().try_for_each(|key| ledger.forget_record(key))?;
    if standing == Standing::Revoked {
        delete_services_to(ledger, author, peer)?;
    }
    withdraw_voucher(ledger, author, peer)?;
    ledger.forget_peer(peer)?;
    Ok(row.is_some())
}

fn delete_services_to<L: Ledger>(ledger: &L, author: &Author, target: PeerId) -> Result<(), L::Error> {
    if ledger.is_contested()? {
        // The other copy of this identity deletes them, or this one when it is heard again.
        return Ok(());
    }
    for service in ledger.services()? {
        if service.body.source_peer_id == author.peer_id && service.body.target_peer_id == target {
            ledger.delete_own(author, kind::SERVICE, &service.id.to_string())?;
        }
    }
    Ok(())
}

/// A peer that was met through a voucher and is not trusted is forgotten as well when its removal is heard of.
pub(super) fn forget_removed_strangers<L: Ledger>(ledger: &L, records: &[Record]) -> Result<(), L::Error> {
    let subjects: BTreeSet<&str> =
        records.iter().filter(|r| r.key.kind == kind::REVOCATION).map(|r| r.key.id.as_str()).collect();
    if subjects.is_empty() {
        return Ok(());
    }
    let revocations = ledger.revocations()?;
    for peer in subjects.into_iter().filter_map(|id| id.parse().ok()) {
        if ledger.peer(peer)?.is_some_and(|row| !row.trusted && revocations.standing(peer, None) != Standing::Clear) {
            ledger.forget_peer(peer)?;
        }
    }
    Ok(())
}

/// Own services among these records that lead to a removed peer end, and words for one that was removed or left: a
/// database that was lost may have held them, and they come back when the removal is known here already.
pub(super) fn end_what_is_for_removed<L: Ledger>(
    ledger: &L,
    author: &Author,
    records: &[Record],
) -> Result<(), L::Error> {
    let own = records.iter().filter(|r| r.key.owner == author.peer_id);
    let subjects: BTreeSet<PeerId> = own.filter_map(is_for).collect();
    if subjects.is_empty() {
        return Ok(());
    }
    let revocations = ledger.revocations()?;
    for subject in subjects {
        let standing = revocations.standing(subject, None);
        if standing == Standing::Revoked {
            delete_services_to(ledger, author, subject)?;
        }
        if standing != Standing::Clear {
            withdraw_voucher(ledger, author, subject)?;
        }
    }
    Ok(())
}

/// The peer that a service leads to, or that a voucher is about.
fn is_for(record: &Record) -> Option<PeerId> {
    match record.key.kind.as_str() {
        kind::SERVICE => read_service(record).map(|service| service.body.target_peer_id),
        kind::VOUCHER => record.key.id.parse().ok(),
        _ => None,
    }
}

/// Why a peer is not trusted, for a peer that calls as if it were: the revocations of it, and of those that have
/// readmitted it since. Revocations are signed, so that it can see who says so.
pub fn grounds<L: LedgerView>(ledger: &L, peer: PeerId) -> Result<Vec<Record>, L::Error> {
    let mut subjects = vec![peer];
    let mut told = Vec::new();
    let mut next = 0;
    while let Some(subject) = subjects.get(next).copied().filter(|_| told.len() < GROUNDS_MAX) {
        next += 1;
        let id = subject.to_string();
        told.extend(ledger.records_about(kind::REVOCATION, &id)?);
        for issuer in ledger.records_about(kind::READMISSION, &id)?.iter().map(|r| r.key.owner) {
            if !subjects.contains(&issuer) {
                subjects.push(issuer);
            }
        }
    }
    told.truncate(GROUNDS_MAX);
    Ok(told)
}

/// Stores those of the records that are genuine revocations by peers that this one trusts, and news; gives them.
pub fn take_grounds<L: Ledger>(ledger: &L, author: &Author, records: &[Record]) -> Result<Vec<Record>, L::Error> {
    let mut taken = Vec::new();
    for record in records.iter().filter(|record| names_its_subject(record)).take(GROUNDS_MAX) {
        let issuer = ledger.peer(record.key.owner)?.filter(|row| row.trusted && row.peer_id != author.peer_id);
        let is_genuine = issuer.is_some_and(|row| record.verify(&row.public_key).is_ok());
        if is_genuine && ledger.put_verified(record)? == Put::Stored {
            taken.push(record.clone());
        }
    }
    Ok(taken)
}

fn is_about_removal(record_kind: &str) -> bool {
    matches!(record_kind, kind::REVOCATION | kind::READMISSION)
}

fn names_its_subject(record: &Record) -> bool {
    let body: Option<RevocationBody> = record.body_as().ok().filter(|_| record.key.kind == kind::REVOCATION);
    !record.deleted
        && body.is_some_and(|body| {
            body.public_key.is_some() && body.peer_id.is_some_and(|peer| peer.to_string() == record.key.id)
        })
}
