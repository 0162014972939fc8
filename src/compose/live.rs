//! What the cluster is, as far as a plan looks at it.

use super::model::{Interface, Route};
use crate::model::{ApiAccess, Endpoint, PeerId, RouteId, ServiceId, Transport};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The members and services of one cluster. `peers` is in the order of their names, so are `services`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Absent when no listed peer is bootstrapped yet.
    pub cluster_id: Option<String>,
    pub peers: Vec<LivePeer>,
    pub services: Vec<LiveService>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePeer {
    pub id: PeerId,
    /// As the called agent names it.
    pub name: String,
    pub endpoints: Vec<Endpoint>,
    pub qos_enabled: bool,
    pub api_access: Option<ApiAccess>,
    /// How each listed member that was asked sees this peer.
    pub views: BTreeMap<PeerId, View>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub name: String,
    pub qos_enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveService {
    pub id: ServiceId,
    pub version: u64,
    pub name: String,
    pub source: PeerId,
    pub target: PeerId,
    pub transport: Transport,
    pub fully_transparent: bool,
    pub requires_interface: bool,
    pub ipv4: Option<IpNet>,
    pub ipv6: Option<IpNet>,
    pub bandwidth_limit_mbps: u32,
    pub routes: Vec<LiveRoute>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRoute {
    pub id: RouteId,
    pub version: u64,
    pub source: Option<IpNet>,
    pub dest: Option<IpNet>,
    pub priority: u16,
}

/// What answered at the endpoints of a listed peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contact {
    Unreachable,
    Unbootstrapped,
    Bootstrapped(PeerId),
}

impl Live {
    pub fn peer(&self, id: PeerId) -> Option<&LivePeer> {
        self.peers.iter().find(|p| p.id == id)
    }
    /// The name of a member, or its id.
    pub fn peer_name(&self, id: PeerId) -> String {
        self.peer(id).map_or_else(|| id.to_string(), |p| p.name.clone())
    }

    /// The digest of each record that a plan reads: what a saved plan must find unmoved.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let peers = self.peers.iter().map(|p| (p.id.to_string(), digest(p)));
        let services = self.services.iter().map(|s| (s.id.to_string(), digest(s)));
        let cluster = ("cluster".to_owned(), digest(&self.cluster_id));
        peers.chain(services).chain([cluster]).collect()
    }
}

fn digest(record: &impl Serialize) -> String {
    // These shapes have no map with keys that JSON cannot write.
    let text = serde_json::to_vec(record).unwrap_or_default();
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl LiveService {
    pub fn interface(&self) -> Option<Interface> {
        self.requires_interface.then_some(Interface { ipv4: self.ipv4, ipv6: self.ipv6 })
    }
}

impl LiveRoute {
    pub fn is_like(&self, route: &Route) -> bool {
        (self.source, self.dest) == (route.source, route.dest)
    }
}
