//! Peers that go (cluster.md §8).

use super::{Author, Ledger};
use crate::{
    gossip::Standing,
    model::{PeerId, UnixTime},
    wire::record::{Record, RecordKey, RevocationBody, RevocationReason, kind},
};

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
    drop_peer(ledger, author, peer)?;
    Ok(Some(revocation))
}

/// A revocation has taken effect: trust in the peer ends, and these records are void. An agent that learns of its own
/// drops all others. Says whether the peer was known.
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
    if ledger.revocations()?.standing(peer, key.as_ref()) == Standing::Clear {
        return Ok(false);
    }
    void.iter().try_for_each(|key| ledger.forget_record(key))?;
    drop_peer(ledger, author, peer)?;
    Ok(row.is_some())
}

/// Drops trust and key of a peer, and deletes own services that target it. Which of its records are void, the gossip
/// machine says.
fn drop_peer<L: Ledger>(ledger: &L, author: &Author, peer: PeerId) -> Result<(), L::Error> {
    for service in ledger.services()? {
        let own = service.body.source_peer_id == author.peer_id;
        if own && service.body.target_peer_id == peer {
            ledger.delete_own(author, kind::SERVICE, &service.id.to_string())?;
        }
    }
    ledger.forget_peer(peer)
}

/// Own records came back newer than this ledger (a lost database): versions go on from there.
pub fn adopt_own_version<L: Ledger>(ledger: &L, version: u64) -> Result<(), L::Error> {
    ledger.set_own_version(version.max(ledger.own_version()?))
}
