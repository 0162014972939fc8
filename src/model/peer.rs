//! What a peer says of itself and what we know of it.

use serde::{Deserialize, Serialize};

/// Who may call the operator endpoints of a peer (cluster.md §10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApiAccess {
    #[default]
    Public,
    Internal,
}

/// Ports of the data planes, published in the signed peer record (operations.md §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPorts {
    /// TLS over TCP.
    pub tproxy: u16,
    /// KCP over UDP.
    pub kcp: u16,
    /// IP tunnel over UDP.
    pub iptun: u16,
}

impl Default for DataPorts {
    fn default() -> Self {
        Self { tproxy: 61000, kcp: 61000, iptun: 51840 }
    }
}

/// cluster.md §4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerStatus {
    Discovered,
    Handshaking,
    Healthy,
    Unhealthy,
    Unreachable,
}
