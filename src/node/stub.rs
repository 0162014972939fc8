//! Temporary: the shape of what the node will offer, until it does.

use super::{Call, Node, PeerAnswer};
use crate::{
    model::{Code, Endpoint, PeerId, PeerStatus, Refused, UnixTime},
    wire::{gossip::Op, request::OnBehalf},
};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub struct PeerHealth {
    pub status: PeerStatus,
    pub last_seen: Option<UnixTime>,
    pub rtt_ms: Option<f64>,
    pub endpoint: Option<Endpoint>,
    pub version: Option<String>,
    pub license_state: Option<String>,
    pub registries: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    pub converged: bool,
    pub registries: BTreeMap<String, (usize, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOutcome {
    pub peers: usize,
    pub reached: usize,
}

fn absent<T>() -> Result<T, Refused> {
    Err(Refused::new(Code::PeerUnreachable, "not built yet"))
}

impl Node {
    pub async fn remove_peer(&self, _peer: PeerId) -> Result<(), Refused> {
        absent()
    }
    pub async fn gossip_message(&self, _from: PeerId, _op: Op, _body: &[u8]) -> Result<Vec<u8>, Refused> {
        Ok(b"{}".to_vec())
    }
    pub async fn sync(&self) -> SyncOutcome {
        SyncOutcome { peers: 0, reached: 0 }
    }
    pub async fn call_peer(&self, _p: PeerId, _c: &Call, _on: Option<&OnBehalf>) -> Result<PeerAnswer, Refused> {
        absent()
    }
    pub fn peer_health(&self, peer: PeerId) -> PeerHealth {
        let local = self.identity().is_some_and(|i| i.peer_id == peer);
        PeerHealth {
            status: if local { PeerStatus::Healthy } else { PeerStatus::Discovered },
            last_seen: None,
            rtt_ms: None,
            endpoint: None,
            version: None,
            license_state: None,
            registries: BTreeMap::new(),
        }
    }
    pub fn cluster_view(&self) -> ClusterView {
        ClusterView { converged: true, registries: BTreeMap::new() }
    }
}
