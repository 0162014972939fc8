//! Taking peers out of the cluster (cluster.md §8).

use super::{Identity, Node};
use crate::{
    gossip::Standing,
    model::{Code, PeerId, Refused},
    store::{StoreError, Tx},
    wire::record::{RecordKey, RevocationBody, RevocationReason, kind},
};

impl Node {
    /// `peers delete` of a remote peer: a gossiped revocation, and no trust here from this moment.
    pub async fn remove_peer(&self, peer: PeerId) -> Result<(), Refused> {
        let not_found = || Refused::new(Code::NotFound, format!("peer {peer} not found"));
        let identity = self.identity().ok_or_else(not_found)?;
        if peer == identity.peer_id {
            let text = "cannot delete local peer (use 'arctic peers remove-self' instead)";
            return Err(Refused::new(Code::InvalidRequest, text));
        }
        let row = self.store().read(|v| v.peer(peer))?.ok_or_else(not_found)?;
        let body = RevocationBody {
            peer_id: Some(peer),
            public_key: Some(row.public_key),
            client_id: None,
            reason: RevocationReason::Deleted,
            revoked_at: self.env().clock.unix(),
        };
        self.store()
            .write(move |tx| -> Result<(), StoreError> {
                tx.put_own(&identity, kind::REVOCATION, &peer.to_string(), &body)?;
                drop_peer(tx, &identity, peer)
            })
            .await?;
        tracing::info!(%peer, "peer removed from the cluster");
        self.trust_changed(&[])?;
        Ok(())
    }

    /// A revocation has taken effect: trust in the peer ends, and these records are void.
    pub(super) async fn peer_was_revoked(&self, peer: PeerId, void: Vec<RecordKey>) -> Result<(), Refused> {
        let Some(identity) = self.identity() else { return Ok(()) };
        if self.store().read(|v| v.peer(peer))?.is_some() {
            tracing::warn!(%peer, local = peer == identity.peer_id, "peer was removed from the cluster");
        }
        self.store()
            .write(move |tx| -> Result<(), StoreError> {
                if peer == identity.peer_id {
                    let others = tx.peers()?.into_iter().map(|p| p.peer_id).filter(|id| *id != peer);
                    void.iter().try_for_each(|key| tx.forget_record(key))?;
                    return others.into_iter().try_for_each(|id| tx.forget_peer(id));
                }
                // An operator may have taken it back since the machine spoke.
                let key = tx.peer(peer)?.map(|row| row.public_key);
                if tx.revocations()?.standing(peer, key.as_ref()) == Standing::Clear {
                    return Ok(());
                }
                void.iter().try_for_each(|key| tx.forget_record(key))?;
                drop_peer(tx, &identity, peer)
            })
            .await?;
        self.trust_changed(&[])?;
        Ok(())
    }
}

/// Drops trust and key of a peer, and deletes own services that target it. Which of its records are void, the gossip
/// machine says.
fn drop_peer(tx: &Tx<'_>, identity: &Identity, peer: PeerId) -> Result<(), StoreError> {
    for service in tx.services()? {
        let own = service.body.source_peer_id == identity.peer_id;
        if own && service.body.target_peer_id == peer {
            match tx.delete_service(identity, service.id) {
                // The other copy of this identity deletes it.
                Err(StoreError::IdentityConflict) => {}
                deleted => deleted?,
            }
        }
    }
    tx.forget_peer(peer)
}
