//! A service and its routes: one atomic record (cluster.md §5, api.md §5-6).

use super::{PeerId, ServiceId, UnixTime};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What carries the TCP flows of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    #[default]
    Tcp,
    Kcp,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown transport `{0}`: expected tcp or kcp")]
pub struct UnknownTransport(pub String);

impl FromStr for Transport {
    type Err = UnknownTransport;
    fn from_str(s: &str) -> Result<Self, UnknownTransport> {
        match s {
            "tcp" => Ok(Transport::Tcp),
            "kcp" => Ok(Transport::Kcp),
            _ => Err(UnknownTransport(s.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Kcp => "kcp",
        })
    }
}

/// Unique within its service, allocated by the owner, never reused.
pub type RouteId = u32;

pub fn default_priority() -> u16 {
    100
}

/// A CIDR rule. At least one CIDR is set; both are of one family; each is a network address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub id: RouteId,
    pub source_cidr: Option<IpNet>,
    pub dest_cidr: Option<IpNet>,
    pub priority: u16,
    pub version: u64,
    pub created_at: UnixTime,
}

/// The signed body of a `service` record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceBody {
    pub name: String,
    pub source_peer_id: PeerId,
    pub target_peer_id: PeerId,
    pub transport_type: Transport,
    pub requires_interface: bool,
    pub desired_ipv4_cidr: Option<IpNet>,
    pub desired_ipv6_cidr: Option<IpNet>,
    pub bandwidth_limit_mbps: u32,
    pub fully_transparent: bool,
    pub routes: Vec<Route>,
    /// The id the next route gets.
    pub next_route_id: RouteId,
    pub created_at: UnixTime,
    pub updated_at: UnixTime,
}

impl ServiceBody {
    /// A `tcp` service with every default and no routes.
    pub fn plain(name: &str, source: PeerId, target: PeerId, now: UnixTime) -> Self {
        Self {
            name: name.to_owned(),
            source_peer_id: source,
            target_peer_id: target,
            transport_type: Transport::default(),
            requires_interface: false,
            desired_ipv4_cidr: None,
            desired_ipv6_cidr: None,
            bandwidth_limit_mbps: 0,
            fully_transparent: false,
            routes: Vec::new(),
            next_route_id: 1,
            created_at: now,
            updated_at: now,
        }
    }
}

/// Characters of a service id that name its interface.
const INTERFACE_NAME_CHARS: usize = 15;

/// The name of the interface of a service (dataplane.md §5).
pub fn interface_name(service: ServiceId) -> String {
    service.to_string().chars().take(INTERFACE_NAME_CHARS).collect()
}

/// A live service as the store gives it: its id, the version of its record, its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub id: ServiceId,
    pub version: u64,
    pub body: ServiceBody,
}
