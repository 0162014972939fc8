//! Taking peers out of the cluster (cluster.md §8).

use super::Node;
use crate::{
    membership,
    model::{Code, PeerId, Refused},
    wire::record::{RecordKey, kind},
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
        let now = self.env().clock.unix();
        let revocation = self.store().write(move |tx| membership::remove_peer(tx, &identity, peer, now)).await?;
        revocation.ok_or_else(not_found)?;
        tracing::info!(%peer, "peer removed from the cluster");
        self.prune_attempts()?;
        self.trust_changed(&[])?;
        Ok(())
    }

    /// A revocation has taken effect: trust in the peer ends, and these records are void.
    pub(super) async fn peer_was_revoked(&self, peer: PeerId, void: Vec<RecordKey>) -> Result<(), Refused> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let own_id = identity.peer_id;
        let local = peer == own_id;
        let was_known = self.store().write(move |tx| membership::peer_was_revoked(tx, &identity, peer, &void)).await?;
        if was_known {
            tracing::warn!(%peer, local, "peer was removed from the cluster");
        }
        self.prune_attempts()?;
        self.trust_changed(&[])?;
        let own = RecordKey { kind: kind::REVOCATION.into(), id: peer.to_string(), owner: own_id };
        if self.store().read(|v| v.record(&own))?.is_none() {
            // Whom this agent itself removes, it still tells so.
            self.forget_reached(peer);
        }
        Ok(())
    }
}
