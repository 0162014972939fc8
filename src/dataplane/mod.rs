//! The engines that carry packets and flows. They read [`Forwarding`] snapshots and nothing of the store.
//!
//! TProxy (dataplane.md §1-2): `intercept` (here) accepts a captured connection, `source` picks its service and opens a
//! stream to the target on a connection of `pool`, `exit` checks the stream and dials, `relay` moves the bytes on both
//! sides. `session` is TLS over one TCP connection, `tls` says who may speak; `kcp` is the other transport, and `carrier`
//! what both have in common.
//!
//! IP tunnel (§3): `iptun` carries what is not TCP.
//!
//! Limits (§9): `shaper` says when what goes by any of these paths may go.
//!
//! Every socket resets when dropped, unless its stream ended in order: whatever goes wrong, no cut stream looks complete.

mod carrier;
mod counters;
mod exit;
pub mod iptun;
mod kcp;
mod limits;
mod pool;
mod relay;
mod session;
mod shaper;
mod source;
#[cfg(test)]
mod tests;
mod tls;

pub use counters::{Counters, EngineCounts, Refusal, ServiceCounters, ServiceCounts};
pub use iptun::TunnelRefusal;

use crate::{
    env::{BoxFuture, EngineSetup, Engines, InterceptPorts, ReadTraffic, RunningEngines, TunnelState, system_seed},
    model::{DataPorts, PeerId, PublicKey, Rng},
    os::{datagram::Datagrams, sockets},
    routing::Forwarding,
};
use limits::{ACCEPT_RETRY, MAX_FLOWS, Timing};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::sleep,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot listen for captured connections on {addr}")]
    Intercept { addr: SocketAddr, source: io::Error },
    #[error("port {port}/tcp for other engines cannot be bound: free it, or set TPROXY_PORT")]
    Listen { port: u16, source: io::Error },
    #[error("port {port}/udp for other engines cannot be bound: free it, or set KCP_PORT")]
    ListenKcp { port: u16, source: io::Error },
    #[error("the system gives no randomness for keys: {0}")]
    Randomness(String),
    #[error("cannot use the identity key for TLS")]
    Identity(#[source] rustls::Error),
}

/// What all tasks of an engine share.
struct Core {
    local: PeerId,
    public_key: PublicKey,
    own_mark: u32,
    forbidden_ports: Vec<u16>,
    timing: Timing,
    forwarding: watch::Receiver<Arc<Forwarding>>,
    counters: Counters,
    identity: tls::Identity,
    pools: pool::Pools,
    shaper: shaper::Shaper,
    kcp: kcp::Kcp,
    flows: Arc<Semaphore>,
    dialled: Arc<exit::Places<exit::Dialled>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Core {
    /// Ready once a snapshot fulfils `ended`; the present one counts. Never, if the publisher is gone.
    async fn until(&self, ended: impl Fn(&Forwarding) -> bool) {
        let mut forwarding = self.forwarding.clone();
        if forwarding.wait_for(|f| ended(f)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether `dest` is a port of the agent itself, at whatever address of this host.
    fn forbids(&self, dest: SocketAddr) -> bool {
        if !self.forbidden_ports.contains(&dest.port()) {
            return false;
        }
        self.is_local(dest.ip())
    }

    /// Whether `ip` is an address of this host.
    fn is_local(&self, ip: IpAddr) -> bool {
        match sockets::local_addresses() {
            Ok(local) => local.contains(&ip.to_canonical()),
            Err(e) => {
                tracing::warn!("cannot list the addresses of this host, so {ip} counts as one: {e}");
                true
            }
        }
    }
}

/// The engines of a real host.
pub struct LinuxEngines;

impl Engines for LinuxEngines {
    fn reserve(&self, ports: DataPorts, own_mark: u32) -> io::Result<Box<dyn Send>> {
        Ok(Box::new(Datagrams::bind(ports.iptun, own_mark)?))
    }

    fn start(
        &self,
        setup: EngineSetup,
        forwarding: watch::Receiver<Arc<Forwarding>>,
    ) -> BoxFuture<'_, io::Result<Box<dyn RunningEngines>>> {
        Box::pin(async move {
            let engine = Engine::start(setup, forwarding).await.map_err(io::Error::other)?;
            Ok(Box::new(engine) as Box<dyn RunningEngines>)
        })
    }
}

impl RunningEngines for Engine {
    fn intercept_ports(&self) -> InterceptPorts {
        Engine::intercept_ports(self)
    }

    fn tunnel(&self) -> watch::Receiver<TunnelState> {
        self.tunnel.clone()
    }

    fn traffic(&self) -> ReadTraffic {
        let core = Arc::downgrade(&self.core);
        Arc::new(move || {
            let services = core.upgrade().map(|core| core.counters.services()).unwrap_or_default();
            services.into_iter().map(|(id, counts)| (id, counts.into())).collect()
        })
    }

    fn shutdown(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(Engine::shutdown(*self))
    }
}

/// A running data plane. Dropping it ends its tasks soon after; [`Engine::shutdown`] waits for that.
pub struct Engine {
    core: Arc<Core>,
    stream_port: u16,
    kcp_port: u16,
    intercept: Option<InterceptPorts>,
    tunnel: watch::Receiver<TunnelState>,
    _stop: DropGuard,
}

impl Engine {
    /// Listens, and follows the snapshots from the present one on. Needs CAP_NET_ADMIN for the transparent listeners.
    pub async fn start(
        config: EngineSetup,
        forwarding: watch::Receiver<Arc<Forwarding>>,
    ) -> Result<Engine, EngineError> {
        let v4 = intercept_listener((Ipv4Addr::LOCALHOST, 0).into(), config.own_mark)?;
        let addr = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        // A transparent socket could be bound even to an address that is not there.
        let local = sockets::local_addresses().map_err(|source| EngineError::Intercept { addr, source })?;
        let v6 = if local.contains(&addr.ip()) {
            Some(intercept_listener(addr, config.own_mark)?)
        } else {
            tracing::info!("IPv6 is off on this host: only IPv4 is captured");
            None
        };
        let engine = Self::start_with(config, forwarding, Timing::default(), Some((v4, v6)))?;
        // Whoever captures from now on does so for TCP and for the tunnel at once. It runs or says why not.
        let _ = engine.tunnel().changed().await;
        Ok(engine)
    }

    /// The same without intercept listeners and so without privileges: flows come by [`Engine::carry_captured`].
    pub async fn start_unprivileged(
        config: EngineSetup,
        forwarding: watch::Receiver<Arc<Forwarding>>,
    ) -> Result<Engine, EngineError> {
        Self::start_with(config, forwarding, Timing::default(), None)
    }

    fn start_with(
        config: EngineSetup,
        forwarding: watch::Receiver<Arc<Forwarding>>,
        timing: Timing,
        intercept: Option<(Intercept, Option<Intercept>)>,
    ) -> Result<Engine, EngineError> {
        let (port, tunnel_port) = (config.ports.tproxy, config.ports.iptun);
        let listen = |source| EngineError::Listen { port, source };
        let wan = sockets::wan_listener(port, config.own_mark).map_err(listen)?;
        let stream_port = wan.local_addr().map_err(listen)?.port();
        report_congestion(&wan);
        let port = config.ports.kcp;
        let listen = |source| EngineError::ListenKcp { port, source };
        let datagrams = sockets::wan_datagrams(port, config.own_mark).map_err(listen)?;
        let kcp_port = datagrams.local_addr().map_err(listen)?.port();
        let ports = intercept
            .as_ref()
            .map(|(v4, v6)| InterceptPorts { v4: v4.addr.port(), v6: v6.as_ref().map(|v6| v6.addr.port()) });
        let mut forbidden_ports = config.forbidden_ports;
        forbidden_ports.extend([stream_port, kcp_port]);
        forbidden_ports.extend(ports.iter().flat_map(|p| [Some(p.v4), p.v6]).flatten());
        let stop = CancellationToken::new();
        let seed = || system_seed().map_err(|e| EngineError::Randomness(e.to_string()));
        let rng = Rng::from_seed(seed()?);
        let core = Arc::new(Core {
            local: config.local,
            public_key: config.key.public(),
            own_mark: config.own_mark,
            forbidden_ports,
            timing,
            identity: tls::Identity::new(&config.key, forwarding.clone()).map_err(EngineError::Identity)?,
            forwarding,
            counters: Counters::default(),
            pools: pool::Pools::default(),
            shaper: shaper::Shaper::default(),
            kcp: kcp::Kcp::new(&config.key, seed()?),
            flows: Arc::new(Semaphore::new(MAX_FLOWS)),
            dialled: exit::Places::new(usize::MAX, MAX_FLOWS),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
        });
        core.kcp.start(&core, datagrams).map_err(listen)?;
        core.tasks.spawn(exit::serve(core.clone(), wan));
        core.tasks.spawn(follow(core.clone()));
        core.tasks.spawn(shaper::Shaper::follow(core.clone()));
        let (tunnel, state) = watch::channel(TunnelState::Off);
        // Without privileges there is no device either.
        if ports.is_some() {
            core.tasks.spawn(iptun::serve(core.clone(), config.key, rng, tunnel_port, tunnel));
        }
        for listener in intercept.into_iter().flat_map(|(v4, v6)| [Some(v4), v6]).flatten() {
            core.tasks.spawn(accept_captured(core.clone(), listener));
        }
        Ok(Engine { core, stream_port, kcp_port, intercept: ports, tunnel: state, _stop: stop.drop_guard() })
    }

    /// Where the firewall is to send captured connections.
    ///
    /// # Panics
    /// If the engine was started without intercept listeners.
    pub fn intercept_ports(&self) -> InterceptPorts {
        self.intercept.expect("an engine started with intercept listeners")
    }

    /// The TCP port on which other engines are served.
    pub fn stream_port(&self) -> u16 {
        self.stream_port
    }

    /// The UDP port of the kcp transport.
    pub fn kcp_port(&self) -> u16 {
        self.kcp_port
    }

    pub fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// Carries a connection as if it had been captured on its way from `source` to `dest`. Returns at once.
    pub fn carry_captured(&self, client: TcpStream, source: SocketAddr, dest: SocketAddr) {
        self.core.tasks.spawn(source::carry(self.core.clone(), client, source, dest));
    }

    /// Waits until `count` connections to the target stand ready. Never ready for a peer that is no target.
    pub async fn warmed(&self, target: PeerId, count: usize) {
        let mut forwarding = self.core.forwarding.clone();
        loop {
            if let Some(target) = self.core.pools.existing(target) {
                let _ = target.level().wait_for(|level| *level >= count).await;
                return;
            }
            tokio::select! {
                biased;
                changed = forwarding.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(ACCEPT_RETRY) => {}
            }
        }
    }

    /// Resets all flows, closes the listeners, and waits until nothing is left.
    pub async fn shutdown(self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }
}

fn report_congestion(listener: &TcpListener) {
    match sockets::congestion(listener) {
        Ok(name) if name == "bbr" => tracing::info!("connections between engines use BBR"),
        Ok(name) => {
            tracing::warn!("the kernel has no BBR: connections between engines use {name} and will be slow on loss");
        }
        Err(e) => tracing::warn!("cannot tell the congestion control of connections between engines: {e}"),
    }
}

/// Keeps the pools and the counters to what the snapshots name.
async fn follow(core: Arc<Core>) {
    let mut forwarding = core.forwarding.clone();
    loop {
        let snapshot = forwarding.borrow_and_update().clone();
        core.pools.follow(&core, &snapshot);
        core.counters.prune(&snapshot);
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            changed = forwarding.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

struct Intercept {
    listener: TcpListener,
    addr: SocketAddr,
}

fn intercept_listener(addr: SocketAddr, mark: u32) -> Result<Intercept, EngineError> {
    let failed = |source| EngineError::Intercept { addr, source };
    let listener = sockets::transparent_listener(addr, mark).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok(Intercept { listener, addr })
}

async fn accept_captured(core: Arc<Core>, Intercept { listener, addr }: Intercept) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(client, source)| Ok((client.local_addr()?, client, source))) {
            Ok((dest, client, source)) => intercepted(&core, addr, client, source, dest),
            Err(e) => {
                core.counters.refuse(Refusal::Busy, format_args!("cannot accept a captured connection: {e}"));
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

fn intercepted(core: &Arc<Core>, listener: SocketAddr, client: TcpStream, source: SocketAddr, dest: SocketAddr) {
    // Nothing for loopback is ever captured, so this one dialled the listener: carried, it would come back here.
    if dest == listener || dest.ip().to_canonical().is_loopback() {
        let _ = sockets::set_reset_on_drop(&client, true);
        return core.counters.refuse(Refusal::NotCaptured, format_args!("{source} to {dest}"));
    }
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    core.tasks.spawn(source::carry(core.clone(), client, canonical(source), canonical(dest)));
}
