//! `tproxy`: what the TCP engine reads.

use crate::{kernel::Intercept, model::ServiceId, routing::Forwarding};
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::watch;

/// Whether the engines run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EngineState {
    /// They are not to run yet: the host belongs to no cluster.
    #[default]
    Off,
    /// They do not start, and why.
    Failed(String),
    /// They run and listen there.
    Ready(Intercept),
}

impl EngineState {
    /// Where captured connections go; nowhere unless the engines run.
    pub fn intercept(&self) -> Intercept {
        match self {
            Self::Ready(intercept) => *intercept,
            Self::Off | Self::Failed(_) => Intercept::default(),
        }
    }

    pub(super) fn outcome(&self) -> Result<(), String> {
        match self {
            Self::Failed(reason) => Err(reason.clone()),
            Self::Off | Self::Ready(_) => Ok(()),
        }
    }
}

/// What a publication changed, for the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    pub added: BTreeSet<ServiceId>,
    pub changed: BTreeSet<ServiceId>,
    pub removed: BTreeSet<ServiceId>,
    pub peers_changed: bool,
    pub routes_changed: bool,
}

impl Published {
    pub fn between(old: &Forwarding, new: &Forwarding) -> Self {
        let known = |f: &Forwarding| f.services.keys().copied().collect::<BTreeSet<_>>();
        let (before, after) = (known(old), known(new));
        Self {
            added: after.difference(&before).copied().collect(),
            changed: before.intersection(&after).filter(|id| old.services[id] != new.services[id]).copied().collect(),
            removed: before.difference(&after).copied().collect(),
            peers_changed: old.peers != new.peers,
            routes_changed: old.routes() != new.routes() || old.ip_tunnel != new.ip_tunnel,
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The snapshot that the engines watch.
#[derive(Debug, Default)]
pub struct Engine {
    forwarding: watch::Sender<Arc<Forwarding>>,
}

impl Engine {
    pub fn watch(&self) -> watch::Receiver<Arc<Forwarding>> {
        self.forwarding.subscribe()
    }

    /// Gives the engines a new snapshot, if it differs in more than its revision.
    pub fn publish(&self, new: Forwarding) -> Published {
        let published = Published::between(&self.forwarding.borrow(), &new);
        if !published.is_empty() {
            self.forwarding.send_replace(Arc::new(new));
        }
        published
    }
}
