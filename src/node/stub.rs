//! Temporary: the shape of what the node will offer, until it does.

use super::{AddPeer, Call, ClusterView, Node, PeerAnswer, PeerHealth};
use crate::{
    license::Entitlement,
    model::{
        ClientId, ClusterId, Code, Endpoint, LicenseId, PeerId, PeerStatus, PublicKey, Refused, Secret, UnixTime,
    },
    wire::request::OnBehalf,
};
use serde_json::Value;
use std::{net::IpAddr, sync::Arc};

#[derive(Debug, Clone)]
pub struct BootstrapRequest {
    pub license: Value,
    pub name: Option<String>,
    pub description: Option<String>,
    pub endpoints: Vec<Endpoint>,
    pub called_at: Option<Endpoint>,
}

pub struct Bootstrapped {
    pub peer_id: PeerId,
    pub peer_public_key: PublicKey,
    pub client_id: ClientId,
    pub client_secret: Secret,
    pub cluster_id: ClusterId,
    pub license_id: LicenseId,
    pub expires_at: UnixTime,
    pub max_nodes: u32,
    pub max_services: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GossipVerb {
    Heartbeat,
    Reconcile,
    Push,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOutcome {
    pub peers: usize,
    pub reached: usize,
}

fn absent<T>() -> Result<T, Refused> {
    Err(Refused::new(Code::Internal, "not built yet"))
}

impl Node {
    pub fn entitlement(&self) -> Option<Arc<Entitlement>> {
        None
    }
    pub async fn bootstrap(&self, _request: BootstrapRequest) -> Result<Bootstrapped, Refused> {
        absent()
    }
    pub async fn add_peer(&self, _wish: AddPeer) -> Result<PeerId, Refused> {
        absent()
    }
    pub async fn remove_peer(&self, _peer: PeerId) -> Result<(), Refused> {
        absent()
    }
    pub async fn handshake_init(&self, _source: IpAddr, _body: &[u8]) -> Result<Value, Refused> {
        absent()
    }
    pub async fn handshake_finish(&self, _source: IpAddr, _body: &[u8]) -> Result<Value, Refused> {
        absent()
    }
    pub async fn gossip(&self, _from: PeerId, _verb: GossipVerb, _body: &[u8]) -> Result<Value, Refused> {
        absent()
    }
    pub async fn sync(&self) -> SyncOutcome {
        SyncOutcome { peers: 0, reached: 0 }
    }
    pub async fn call_peer(&self, _p: PeerId, _c: Call, _on: Option<&OnBehalf>) -> Result<PeerAnswer, Refused> {
        absent()
    }
    pub fn peer_health(&self, _peer: PeerId) -> PeerHealth {
        PeerHealth {
            status: PeerStatus::Discovered,
            last_seen: None,
            rtt_ms: None,
            endpoint: None,
            registries: Default::default(),
        }
    }
    pub fn cluster_view(&self) -> ClusterView {
        ClusterView { converged: true, registries: Default::default() }
    }
}
