//! Taking peers out of the cluster (cluster.md §8).

use super::{Identity, Node};
use crate::{
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

    /// A revocation by someone else has arrived.
    pub(super) async fn peer_was_revoked(&self, peer: PeerId, void: Vec<RecordKey>) -> Result<(), Refused> {
        let Some(identity) = self.identity() else { return Ok(()) };
        self.store()
            .write(move |tx| -> Result<(), StoreError> {
                void.iter().try_for_each(|key| tx.forget_record(key))?;
                if peer != identity.peer_id {
                    return drop_peer(tx, &identity, peer);
                }
                for other in tx.peers()? {
                    if other.peer_id != identity.peer_id {
                        tx.forget_peer(other.peer_id)?;
                    }
                }
                Ok(())
            })
            .await?;
        tracing::warn!(%peer, "peer was removed from the cluster by another member");
        self.trust_changed(&[])?;
        Ok(())
    }
}

/// Drops trust, key and records of a peer, and deletes own services that target it.
fn drop_peer(tx: &Tx<'_>, identity: &Identity, peer: PeerId) -> Result<(), StoreError> {
    for service in tx.services()? {
        let own = service.body.source_peer_id == identity.peer_id;
        if own && service.body.target_peer_id == peer {
            tx.delete_service(identity, service.id)?;
        }
    }
    for record in tx.all_records()? {
        if record.key.owner == peer && record.key.kind != kind::REVOCATION {
            tx.forget_record(&record.key)?;
        }
    }
    tx.forget_peer(peer)
}
