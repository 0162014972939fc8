//! Taking peers out of the cluster, this one included (cluster.md §8).

use super::{Call, Identity, Node};
use crate::{
    gossip::{Gossip, PUSH_ALL_PEERS},
    membership::{self, Departure},
    model::{Code, PeerId, Refused},
    store::StoreError,
    wire::{
        gossip::{Digests, PUSH_HOPS_MAX, PushRequest, Request},
        record::{Deactivation, Record, RecordKey, kind},
    },
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::JoinSet;

/// How long the others may take to hear that this peer leaves.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(3);
/// From the answer to the end of the agent.
const STOP_DELAY: Duration = Duration::from_secs(1);

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
        let removal = self.store().write_as_member(move |tx| membership::remove_peer(tx, &identity, peer, now));
        removal.await?.ok_or_else(not_found)?;
        tracing::info!(%peer, "peer removed from the cluster");
        self.trust_changed(&[])?;
        if let Err(e) = self.tend_candidates().await {
            tracing::error!(error = %e, "peers that only the removed one vouched for were not forgotten; it is tried again");
        }
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
        self.trust_changed(&[])?;
        self.tend_candidates().await?;
        let own = RecordKey { kind: kind::REVOCATION.into(), id: peer.to_string(), owner: own_id };
        if self.store().read(|v| v.record(&own))?.is_none() {
            // Whom this agent itself removes, it still tells so.
            self.forget_reached(peer);
        }
        Ok(())
    }

    /// Why a peer that calls is not trusted here.
    pub(crate) fn grounds_against(&self, peer: PeerId) -> Result<Vec<Record>, StoreError> {
        self.store().read(|v| membership::grounds(v, peer))
    }

    /// Another peer refuses this one and gives these records as the reason. Says whether one of them is news by a peer
    /// that is trusted here; then it takes effect.
    pub(super) async fn was_removed(&self, records: Vec<Record>) -> Result<bool, Refused> {
        let Some(identity) = self.identity() else { return Ok(false) };
        let is_told = self.store().write(move |tx| membership::take_grounds(tx, &identity, &records)).await?;
        self.trust_changed(&is_told)?;
        Ok(!is_told.is_empty())
    }

    /// Tells the others of the tombstone of a service whose owner has left; see
    /// [`membership::delete_service_of_departed`], which wrote it.
    pub fn tell_of_tombstone(&self, tombstone: &Record) -> Result<(), Refused> {
        Ok(self.trust_changed(std::slice::from_ref(tombstone))?)
    }

    /// `peers remove-self`: tells all peers that can be reached, empties the database, and ends the agent a moment
    /// later. `peer.key` stays.
    pub async fn leave_cluster(&self) -> Result<Deactivation, Refused> {
        let node = self.clone();
        // Once begun it is carried through, whether or not the caller stays to hear of it.
        tokio::spawn(async move { node.leave().await }).await.map_err(Refused::internal)?
    }

    async fn leave(&self) -> Result<Deactivation, Refused> {
        let _turn = self.inner.membership_turn.lock().await;
        let not_bootstrapped = || Refused::new(Code::NotBootstrapped, "agent is not bootstrapped");
        let identity = self.identity().ok_or_else(not_bootstrapped)?;
        // From here on the agent takes part in nothing: no handshake brings a peer back, no gossip a record.
        self.inner.leaving.store(true, Ordering::SeqCst);
        let machine = self.gossip().take();
        let digests = machine.as_ref().map(Gossip::digests);
        let departure = match self.write_departure(&identity).await {
            Ok(Some(departure)) => departure,
            failed => {
                *self.gossip() = machine;
                self.inner.leaving.store(false, Ordering::SeqCst);
                failed?;
                return Err(not_bootstrapped());
            }
        };
        self.announce(&identity, departure.last_words, digests).await?;
        self.store().write(|tx| tx.clear_membership()).await?;
        self.end_membership();
        tracing::info!(peer = %identity.peer_id, "left the cluster; the agent stops");
        let departed = self.inner.departed.clone();
        tokio::spawn(async move {
            tokio::time::sleep(STOP_DELAY).await;
            departed.cancel();
        });
        Ok(departure.announcement)
    }

    async fn write_departure(&self, identity: &Arc<Identity>) -> Result<Option<Departure>, StoreError> {
        let (author, now) = (identity.clone(), self.env().clock.unix());
        let write = self.store().write(move |tx| {
            tx.set_leaving()?;
            membership::leave(tx, &author, now)
        });
        write.await
    }

    async fn announce(
        &self,
        identity: &Identity,
        last_words: Vec<Record>,
        digests: Option<Digests>,
    ) -> Result<(), StoreError> {
        let Some(digests) = digests else { return Ok(()) };
        let peers = self.store().read(|v| v.trusted_peers())?;
        let others: Vec<PeerId> = peers.iter().map(|p| p.peer_id).filter(|id| *id != identity.peer_id).collect();
        let hops = if others.len() > PUSH_ALL_PEERS { PUSH_HOPS_MAX } else { 0 };
        // Of no instance: it is the word of the identity, whichever copy of it the others believe in.
        let instance = String::new();
        let push = Request::Push(PushRequest { instance, records: last_words.into(), hops, digests });
        let call = Arc::new(Call::post(push.op().path(), push.encode()));
        let mut calls = JoinSet::new();
        for peer in &others {
            let (node, peer, call) = (self.clone(), *peer, call.clone());
            calls
                .spawn(async move { node.call_peer(peer, &call, None).await.is_ok_and(|answer| answer.status == 200) });
        }
        let mut told = 0;
        let all = async {
            while let Some(outcome) = calls.join_next().await {
                told += usize::from(outcome.unwrap_or(false));
            }
        };
        drop(tokio::time::timeout(ANNOUNCE_TIMEOUT, all).await);
        if told < others.len() {
            tracing::warn!(told, of = others.len(), "not every peer could be told; the others pass it on");
        }
        Ok(())
    }

    /// In memory what the emptied database says.
    fn end_membership(&self) {
        *self.inner.side.lock().unwrap_or_else(|p| p.into_inner()) = None;
        *self.inner.lock.lock().unwrap_or_else(|p| p.into_inner()) = None;
        *self.inner.licensed.lock().unwrap_or_else(|p| p.into_inner()) = None;
        self.inner.entitlement.send_replace(None);
        self.inner.identity.send_replace(None);
    }
}
