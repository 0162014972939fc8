//! Drives engines and reconcilers: what the store says becomes kernel state and forwarding.

use super::{Node, OnStop, RunError};
use crate::{
    env::EngineSetup,
    kernel::{Intercept, MarkMask},
    reconcile::{Reconcile, Settings, Status, StoreSource},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Host names in endpoints are resolved again so often.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);

/// Addresses of the host names in endpoints of peers.
type Addresses = BTreeMap<String, BTreeSet<IpAddr>>;

impl Node {
    /// How the reconcilers are doing; the default before the node is a member of a cluster.
    pub fn reconcile_status(&self) -> Status {
        let status = self.inner.reconcile_status.lock().unwrap_or_else(|p| p.into_inner()).clone();
        status.map(|s| s.borrow().clone()).unwrap_or_default()
    }

    pub(super) async fn drive_kernel(&self, stop: CancellationToken) -> Result<(), RunError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let env = self.env();
        let config = self.config();
        let mask = MarkMask::new(config.fwmark_mask).ok_or(RunError::Mask(config.fwmark_mask))?;
        let (addresses, resolved) = watch::channel(Addresses::new());
        let entitlement = self.inner.entitlement.subscribe();
        let source = StoreSource::new(self.store().clone(), identity.peer_id, entitlement, resolved);
        let settings = Settings { mask, clear_on_stop: config.on_stop == OnStop::Clear, ..Settings::default() };
        let reconcile = Reconcile::new(env.kernel.clone(), env.clock.clone(), source, settings);
        let setup = EngineSetup {
            local: identity.peer_id,
            key: identity.key.clone(),
            ports: config.data_ports,
            own_mark: mask.own(),
            forbidden_ports: vec![config.api_bind.port(), config.data_ports.tproxy],
        };
        let engines = env.engines.start(setup, reconcile.forwarding()).await.map_err(RunError::Engines)?;
        *self.inner.reconcile_status.lock().unwrap_or_else(|p| p.into_inner()) = Some(reconcile.status());
        let ports = engines.intercept_ports();
        let intercept = Intercept {
            v4: Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.v4)),
            v6: ports.v6.map(|port| SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0)),
        };
        tokio::select! {
            biased;
            () = reconcile.run(intercept, stop.clone()) => {}
            () = self.resolve_endpoints(addresses) => {}
        }
        engines.shutdown().await;
        Ok(())
    }

    /// Publishes the addresses behind endpoint names at each change of the store, each minute, and when a sync asks for
    /// it; each publication wakes the reconcilers.
    async fn resolve_endpoints(&self, addresses: watch::Sender<Addresses>) {
        let mut revision = self.store().revision();
        loop {
            let found = self.look_up_names().await;
            addresses.send_if_modified(|known| std::mem::replace(known, found.clone()) != found);
            tokio::select! {
                biased;
                changed = revision.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = self.inner.reconcile_wake.notified() => addresses.send_modify(|_| ()),
                () = tokio::time::sleep(RESOLVE_INTERVAL) => {}
            }
        }
    }

    async fn look_up_names(&self) -> Addresses {
        let peers = self.store().read(|v| v.trusted_peers()).unwrap_or_default();
        let endpoints = peers.iter().flat_map(|p| p.all_endpoints()).filter(|e| e.ip().is_none());
        let names: BTreeSet<String> = endpoints.map(|e| e.host().to_owned()).collect();
        let mut found = Addresses::new();
        for name in names {
            match self.env().net.resolve(&name).await {
                Ok(ips) => drop(found.insert(name, ips.into_iter().collect())),
                Err(e) => tracing::debug!(%name, error = %e, "endpoint name cannot be resolved"),
            }
        }
        found
    }
}
