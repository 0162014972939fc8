//! The HTTP API (api.md): parse, check, store, answer. Every endpoint is one line of `endpoints::ENDPOINTS`, from which
//! the router and every check are made, so that none can be forgotten.
//!
//! | file | holds |
//! |---|---|
//! | `server` | accept loop, connection limits, `Date` and `X-Request-Id` |
//! | `endpoints` | the table: method, path, license group, access, body, limits |
//! | `admission` | the checks, in the order of api.md §1 |
//! | `caller`, `token`, `signed` | who asks, and the proofs |
//! | `rate`, `query`, `fields`, `answer` | buckets; input and output forms |
//! | `forward`, `proxy` | requests that go on to another peer: to the owner of the object, to the one the operator named |
//! | `applied` | `?wait=applied`: answers held back until both ends have applied a change |
//! | `audit`, `events`, `metrics` | what was asked, what happened, how much |
//! | `openapi` | the document: what the table does not say of an endpoint, and the shapes |
//! | the others | one noun each |

mod admission;
mod answer;
mod applied;
mod audit;
mod bootstrap;
mod caller;
mod cluster;
mod confirm;
mod credentials;
mod endpoints;
mod events;
mod explain;
mod fields;
mod forward;
mod gossip;
mod health;
mod license;
mod lock;
mod metrics;
mod oauth;
mod openapi;
mod peers;
mod proxy;
mod query;
mod rate;
mod routes;
mod server;
mod services;
mod signed;
mod token;
mod transaction;

#[cfg(test)]
mod tests;

pub use crate::node::RecoveryToken;
pub use health::NO_PASS_YET;
pub use server::ServeError;

use crate::{
    env::BoxListener,
    model::{Mono, RequestId, Rng},
    node::Node,
};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Serves the API of `node`, without a recovery token, on `listener` until `shutdown`; then finishes what is running,
/// for 5 s at most.
pub async fn serve(node: Node, listener: BoxListener, shutdown: CancellationToken) -> Result<(), ServeError> {
    Api::new(node).serve(listener, shutdown).await
}

/// The API of one node.
pub struct Api {
    node: Node,
    recovery: Option<RecoveryToken>,
    ids: Mutex<Rng>,
    rates: Mutex<rate::RateTable>,
    nonces: Mutex<crate::wire::nonces::NonceMemory>,
    /// When each credential was used last, as far as this agent saw it.
    used: Mutex<credentials::LastUses>,
    /// Large bodies that may be held before their sender has proven anything.
    unproven_bodies: Semaphore,
    audit: Mutex<audit::AuditLog>,
    /// Streams of events that may be open.
    streams: Arc<Semaphore>,
    stopping: CancellationToken,
    counts: Mutex<metrics::Counts>,
    started_at: Mono,
}

impl Api {
    pub fn new(node: Node) -> Self {
        let ids = Mutex::new(node.fork_rng());
        let started_at = node.env().clock.mono();
        Self {
            node,
            recovery: None,
            ids,
            rates: Mutex::default(),
            nonces: Mutex::default(),
            used: Mutex::default(),
            unproven_bodies: Semaphore::new(admission::UNPROVEN_BODIES_MAX),
            audit: Mutex::default(),
            streams: Arc::new(Semaphore::new(events::STREAMS_MAX)),
            stopping: CancellationToken::new(),
            counts: Mutex::default(),
            started_at,
        }
    }

    /// Accepts `token` as proof of an operator on this host.
    pub fn with_recovery(mut self, token: RecoveryToken) -> Self {
        self.recovery = Some(token);
        self
    }

    pub async fn serve(mut self, listener: BoxListener, shutdown: CancellationToken) -> Result<(), ServeError> {
        self.stopping = shutdown.clone();
        server::run(Arc::new(self), listener, shutdown).await
    }

    fn mint_request_id(&self) -> RequestId {
        RequestId::mint(self.node.env().clock.unix(), &mut lock(&self.ids))
    }

    /// A random stream for one request.
    fn fork_rng(&self) -> Rng {
        lock(&self.ids).fork()
    }
}

/// Nothing is left half-done where these locks are held, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
