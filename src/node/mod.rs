//! The drivers: they read clocks, move bytes and feed the machines. `run` is the same for the daemon and the simulator.

mod config;
mod identity;
mod peer_client;
mod stub;

pub use config::{Config, ConfigError, LogFormat, OnStop};
pub use identity::{Identity, IdentityError};
pub use peer_client::{Call, CallError, PeerAnswer};
pub use stub::*;

use crate::{
    env::Env,
    model::{Endpoint, PeerId, PublicKey, Refused},
    store::Store,
    wire::request::OnBehalf,
};
use peer_client::PeerClient;
use serde_json::Value;
use std::{net::IpAddr, sync::Arc};
use tokio::sync::watch;

/// A running node, as its API and its drivers share it. Clones are handles to one node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    config: Config,
    store: Store,
    identity: watch::Sender<Option<Arc<Identity>>>,
    client: PeerClient,
}

/// Gossip view of one peer, for `peers list` and `cluster status`.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerHealth {
    pub status: crate::model::PeerStatus,
    pub last_seen: Option<crate::model::UnixTime>,
    pub rtt_ms: Option<f64>,
    /// The endpoint that answered last.
    pub endpoint: Option<Endpoint>,
    /// Registry digests it reported, hex.
    pub registries: std::collections::BTreeMap<String, String>,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    pub converged: bool,
    /// Count and digest (hex) of each registry.
    pub registries: std::collections::BTreeMap<String, (usize, String)>,
}

/// An operator's wish to join another agent to the cluster.
#[derive(Debug, Clone)]
pub struct AddPeer {
    /// In order; each is tried.
    pub endpoints: Vec<Endpoint>,
    pub name: Option<String>,
    /// Pins the key at first contact.
    pub public_key: Option<PublicKey>,
}

impl Node {
    pub fn env(&self) -> &Env {
        &self.inner.env
    }
    pub fn config(&self) -> &Config {
        &self.inner.config
    }
    pub fn store(&self) -> &Store {
        &self.inner.store
    }
    /// None until a `peer.key` exists; bootstrapped means that `store` has a cluster.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.inner.identity.borrow().clone()
    }
    /// A random stream of this node for one purpose; call it once per purpose.
    pub fn rng(&self, label: &str) -> crate::model::Rng {
        self.inner.env.rng(label)
    }
}
