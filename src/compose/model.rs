//! What a cluster file says, with every default filled in.

use crate::model::{ApiAccess, Endpoint, Transport};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// Path as written.
    pub license: Option<String>,
    pub peers: Vec<Peer>,
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    /// In the order they are tried; at least one.
    pub endpoints: Vec<Endpoint>,
    pub qos_enabled: bool,
    /// Only compared.
    pub api_access: Option<ApiAccess>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// Names of peers.
    pub source_peer: String,
    pub target_peer: String,
    pub transport: Transport,
    pub fully_transparent: bool,
    pub interface: Option<Interface>,
    /// 0 is unlimited.
    pub bandwidth_limit_mbps: u32,
    pub routes: Vec<Route>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub ipv4: Option<IpNet>,
    pub ipv6: Option<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub source: Option<IpNet>,
    pub dest: Option<IpNet>,
    pub priority: u16,
}

impl Route {
    /// `10.0.0.0/8 → 192.168.100.0/24`; a side that matches everything is `any`.
    pub fn words(&self) -> String {
        route_words(self.source, self.dest)
    }
}

pub fn route_words(source: Option<IpNet>, dest: Option<IpNet>) -> String {
    let side = |net: Option<IpNet>| net.map_or("any".to_owned(), |net| net.to_string());
    format!("{} → {}", side(source), side(dest))
}
