//! Drives engines and reconcilers: what the store says becomes kernel state and forwarding.

use super::{Config, Identity, Node, OnStop, RunError};
use crate::{
    env::{EngineSetup, InterceptPorts, RunningEngines, TunnelState},
    kernel::{Intercept, MarkMask, PolicyRouting},
    model::{PeerId, with_causes},
    reconcile::{EngineState, Reconcile, Settings, Status, StoreSource, remove_interfaces},
    routing::Forwarding,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Host names in endpoints are resolved again so often.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);
/// Pauses between tries to start the engines (operations.md §2).
const ENGINE_RETRY_FIRST: Duration = Duration::from_secs(1);
const ENGINE_RETRY_LONGEST: Duration = Duration::from_secs(60);

/// Addresses of the host names in endpoints of peers.
type Addresses = BTreeMap<String, BTreeSet<IpAddr>>;

impl Node {
    /// How the reconcilers are doing; the default before the node runs.
    pub fn reconcile_status(&self) -> Status {
        let status = self.inner.reconcile_status.lock().unwrap_or_else(|p| p.into_inner()).clone();
        status.map(|s| s.borrow().clone()).unwrap_or_default()
    }

    /// What `f` finds in it, without a copy of all.
    pub fn find_in_reconcile_status<T>(&self, f: impl FnOnce(&Status) -> T) -> T {
        let status = self.inner.reconcile_status.lock().unwrap_or_else(|p| p.into_inner()).clone();
        match status {
            Some(status) => f(&status.borrow()),
            None => f(&Status::default()),
        }
    }

    /// From the start of the agent: the tables exist before the first service, and before there is a cluster.
    pub(super) async fn drive_kernel(&self, stop: CancellationToken) -> Result<(), RunError> {
        let env = self.env();
        let config = self.config();
        let mask = MarkMask::new(config.fwmark_mask).ok_or(RunError::Mask(config.fwmark_mask))?;
        let (addresses, resolved) = watch::channel(Addresses::new());
        let (local, member) = watch::channel(None);
        let (state, engine_state) = watch::channel(EngineState::Off);
        let source = StoreSource::new(self.store().clone(), member, self.inner.entitlement.subscribe(), resolved);
        let settings = Settings {
            mask,
            parent_interface: config.parent_interface.clone(),
            lease_rng: env.rng("leases"),
            clear_on_stop: config.on_stop == OnStop::Clear,
            ..Settings::default()
        };
        let (tunnel, tunnel_state) = watch::channel(TunnelState::Off);
        let reconcile =
            Reconcile::new(env.kernel.clone(), env.clock.clone(), source, settings).with_tunnel(tunnel_state);
        *self.inner.reconcile_status.lock().unwrap_or_else(|p| p.into_inner()) = Some(reconcile.status());
        self.look_for_events();
        let forwarding = reconcile.forwarding();
        let mut running = None;
        let engines = async {
            let started = self.start_engines(mask, forwarding, &state, &local).await;
            let mut heard = started.tunnel();
            running = Some(started);
            loop {
                let now = heard.borrow_and_update().clone();
                tunnel.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
                if heard.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            () = reconcile.run(engine_state, stop.clone()) => {}
            () = self.resolve_endpoints(addresses) => {}
            () = engines => {}
        }
        if self.inner.departed.is_cancelled() && config.on_stop == OnStop::Keep {
            // Nothing of a cluster that this host has left stays behind.
            let tables = env.kernel.remove_tables().await;
            let policy = env.kernel.set_policy(&PolicyRouting::default()).await;
            let interfaces = remove_interfaces(&*env.kernel).await;
            let settings = env.kernel.set_host_settings(&BTreeSet::new()).await;
            let forwarding = env.kernel.set_forwarding(false).await;
            let settings = settings.map(drop).and(forwarding.map(drop));
            if let Err(e) = tables.and(policy.map(drop)).and(interfaces).and(settings) {
                tracing::error!(error = %with_causes(&e), "kernel state of the left cluster was not removed");
            }
        }
        if let Some(engines) = running {
            engines.shutdown().await;
        }
        Ok(())
    }

    /// Starts the engines once the node is a member, and again after a failure; services count from the first try on.
    async fn start_engines(
        &self,
        mask: MarkMask,
        forwarding: watch::Receiver<Arc<Forwarding>>,
        state: &watch::Sender<EngineState>,
        local: &watch::Sender<Option<PeerId>>,
    ) -> Box<dyn RunningEngines> {
        let reserved = self.env().engines.reserve(self.config().data_ports, mask.own());
        if let Err(e) = &reserved {
            tracing::warn!(error = %with_causes(e), "the port of the IP tunnel cannot be bound yet");
        }
        let mut known = self.inner.identity.subscribe();
        let identity = match known.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(identity)) => identity,
            _ => return std::future::pending().await,
        };
        drop(reserved);
        let setup = engine_setup(self.config(), &identity, mask);
        let mut pause = ENGINE_RETRY_FIRST;
        loop {
            let started = self.env().engines.start(setup.clone(), forwarding.clone()).await;
            let now = match &started {
                Ok(engines) => EngineState::Ready(intercept(engines.intercept_ports())),
                Err(e) => EngineState::Failed(with_causes(e)),
            };
            state.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
            local.send_if_modified(|known| known.replace(identity.peer_id) != Some(identity.peer_id));
            if let Ok(engines) = started {
                *self.inner.traffic.lock().unwrap_or_else(|p| p.into_inner()) = Some(engines.traffic());
                return engines;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ENGINE_RETRY_LONGEST);
        }
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

fn engine_setup(config: &Config, identity: &Identity, mask: MarkMask) -> EngineSetup {
    let ports = config.data_ports;
    EngineSetup {
        local: identity.peer_id,
        key: identity.key.clone(),
        ports,
        own_mark: mask.own(),
        forbidden_ports: vec![config.api_bind.port(), ports.tproxy, ports.kcp, ports.iptun],
    }
}

fn intercept(ports: InterceptPorts) -> Intercept {
    Intercept {
        v4: Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.v4)),
        v6: ports.v6.map(|port| SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DataPorts, Rng, SigningKey, UnixTime};

    #[test]
    fn every_port_of_the_agent_is_closed_to_streams() {
        let identity = Identity {
            peer_id: PeerId::mint(UnixTime::from_secs(1), &mut Rng::from_seed([1; 32])),
            key: SigningKey::from_seed([1; 32]),
        };
        let config = Config {
            api_bind: "[::]:9090".parse().unwrap(),
            data_ports: DataPorts { tproxy: 61001, kcp: 61002, iptun: 51841 },
            ..Config::default()
        };
        let forbidden = engine_setup(&config, &identity, MarkMask::default()).forbidden_ports;
        assert_eq!(BTreeSet::from_iter(forbidden), BTreeSet::from([9090, 61001, 61002, 51841]));
    }
}
