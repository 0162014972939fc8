//! The life of a node: API and reconcilers from the start, everything else once it is a member of a cluster.

use super::{Node, RecoveryToken, events::News};
use crate::api::{Api, ServeError};
use serde_json::json;
use std::{net::SocketAddr, time::Duration};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long drivers may take to end after a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a running node ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("API port {addr} cannot be bound: free it, or set API_PORT or API_BIND")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error("FWMARK_MASK {0:#x} is not one run of at least 8 bits")]
    Mask(u32),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("a driver of the agent ended")]
    Driver(#[from] JoinError),
}

impl Node {
    /// Runs until `stop`. A defect that ends a driver ends the node: a supervisor starts it anew.
    pub async fn run(self, recovery: Option<RecoveryToken>, stop: CancellationToken) -> Result<(), RunError> {
        let addr = self.config().api_bind;
        let listener = self.env().net.listen(addr).await.map_err(|source| RunError::Bind { addr, source })?;
        tracing::info!(%addr, version = crate::model::VERSION, "agent started");
        self.tell(News::new("agent.started", json!({"version": crate::model::VERSION})));

        let mut drivers: JoinSet<Result<(), RunError>> = JoinSet::new();
        // Of its own, so that listeners hear of the stop before their streams end.
        let ending = CancellationToken::new();
        let mut api = Api::new(self.clone());
        if let Some(token) = recovery {
            api = api.with_recovery(token);
        }
        let until = ending.clone();
        drivers.spawn(async move { Ok(api.serve(listener, until).await?) });
        let (node, until) = (self.clone(), ending.clone());
        drivers.spawn(async move { node.live_as_member(until).await });
        let (node, until) = (self.clone(), ending.clone());
        drivers.spawn(async move { node.drive_kernel(until).await });

        let first = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            () = self.inner.departed.cancelled() => None,
            ended = drivers.join_next() => ended,
        };
        self.tell(News::new("agent.stopping", json!({"version": crate::model::VERSION})));
        ending.cancel();
        let outcome = first.map_or(Ok(()), |ended| ended?);
        let all_ended = async { while drivers.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all_ended).await.is_err() {
            tracing::warn!("drivers did not end in {} s", STOP_TIMEOUT.as_secs());
        }
        tracing::info!("agent stopped");
        outcome
    }

    /// A store that refuses ends none of the drivers: they try again.
    async fn live_as_member(self, stop: CancellationToken) -> Result<(), RunError> {
        let mut identity = self.inner.identity.subscribe();
        let is_new = identity.borrow().is_none();
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            known = identity.wait_for(Option::is_some) => drop(known),
        }
        let mut drivers = JoinSet::new();
        let (node, until) = (self.clone(), stop.clone());
        drivers.spawn(async move { node.drive_gossip(until).await });
        let (node, until) = (self.clone(), stop.clone());
        drivers.spawn(async move { node.drive_lock(until).await });
        let (node, until) = (self.clone(), stop.clone());
        drivers.spawn(async move { node.drive_events(is_new, until).await });
        let (node, until) = (self.clone(), stop.clone());
        drivers.spawn(async move { node.drive_confirm(until).await });
        let (node, until) = (self.clone(), stop.clone());
        drivers.spawn(async move { node.drive_license(until).await });
        let (node, until) = (self.clone(), stop.clone());
        drivers.spawn(async move { node.drive_vouchers(until).await });
        let mut outcome = Ok(());
        while let Some(ended) = drivers.join_next().await {
            if outcome.is_ok() {
                outcome = ended.map_err(RunError::from);
            }
            stop.cancel();
        }
        outcome
    }
}
