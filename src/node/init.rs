//! `POST /v1/cluster/init` (api.md §8).

use super::{Identity, Node};
use crate::{
    membership,
    model::{ClusterId, Code, PeerId, PeerStatus, Refused},
    store::StoreError,
    wire::record::{RecordKey, kind},
};
use serde_json::json;
use std::sync::Arc;

/// The cluster after an init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInit {
    pub cluster_id: ClusterId,
    /// Unknown where the creator has left the cluster.
    pub created_by: Option<PeerId>,
    pub oldest_peer_id: PeerId,
    pub was_created: bool,
}

impl Node {
    /// What is there; with `force` a new cluster of this agent alone, which healthy peers would undo: they trust it still,
    /// and merge again with whoever they trust. A dry run names the cluster that there is.
    pub async fn init_cluster(&self, force: bool, dry_run: bool) -> Result<ClusterInit, Refused> {
        let identity = self.identity().ok_or_else(super::gossip::not_bootstrapped)?;
        if force {
            self.refuse_while_peers_are_healthy(identity.peer_id)?;
        }
        if force && !dry_run {
            self.begin_anew(identity.clone()).await?;
            self.tend_candidates().await?;
            self.forget_all_reached();
            self.refresh_lock()?;
        }
        let (facts, records, peers) = self
            .store()
            .read::<_, StoreError>(|v| Ok((v.cluster()?, v.records_of(kind::CLUSTER)?, v.trusted_peers()?)))?;
        let cluster_id = facts.ok_or_else(super::gossip::not_bootstrapped)?.cluster_id;
        Ok(ClusterInit {
            cluster_id,
            created_by: membership::creator_of(&records, cluster_id),
            oldest_peer_id: peers.iter().map(|p| p.peer_id).min().unwrap_or(identity.peer_id),
            was_created: force,
        })
    }

    async fn begin_anew(&self, author: Arc<Identity>) -> Result<(), StoreError> {
        let _turn = self.inner.membership_turn.lock().await;
        // What the old machine decided is about the old cluster, and is committed before or never.
        let mut uncommitted = self.inner.commit_turn.lock().await;
        let now = self.env().clock.unix();
        let id = ClusterId::mint(now, &mut self.fork_rng());
        self.store()
            .write_as_member(move |tx| -> Result<(), StoreError> {
                let foreign = tx.all_records()?.into_iter().map(|r| r.key).filter(|k| k.owner != author.peer_id);
                let foreign: Vec<RecordKey> = foreign.collect();
                membership::begin_anew(tx, &author, &foreign, id, now)?;
                // The services that it would bring back are of the old cluster.
                tx.set_pending_confirm(None)
            })
            .await?;
        *uncommitted = None;
        tracing::warn!(cluster = %id, "this agent is a cluster of its own now; all state of other peers was dropped");
        self.begin_gossip()
    }

    fn refuse_while_peers_are_healthy(&self, own: PeerId) -> Result<(), Refused> {
        let others = self.store().read(|v| v.trusted_peers())?.into_iter().filter(|p| p.peer_id != own);
        let healthy: Vec<_> = others.filter(|p| self.peer_health(p.peer_id).status == PeerStatus::Healthy).collect();
        if healthy.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = healthy.iter().map(|p| p.display_name()).collect();
        let text = format!("healthy peers would bring the old cluster back: {}", names.join(", "));
        Err(Refused::new(Code::Conflict, text)
            .with_details(json!({ "peers": healthy.iter().map(|p| p.peer_id).collect::<Vec<_>>() }))
            .with_hint(format!("first, at one of them: arctic peers delete {own}")))
    }
}
