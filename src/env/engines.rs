use super::BoxFuture;
use crate::{
    model::{DataPorts, PeerId, ServiceId, SigningKey},
    routing::Forwarding,
};
use std::{collections::BTreeMap, io, sync::Arc};
use tokio::sync::watch;

/// What the data planes need once, when they start.
#[derive(Clone)]
pub struct EngineSetup {
    pub local: PeerId,
    pub key: SigningKey,
    /// Port 0 = any (tests).
    pub ports: DataPorts,
    /// The fwmark of the agent's own sockets; 0 = none, for tests without CAP_NET_ADMIN.
    pub own_mark: u32,
    /// The agent's own ports: never dialled at any address of this host. The engines add those they listen on.
    pub forbidden_ports: Vec<u16>,
}

/// Where captured connections are to be sent: loopback ports of the intercept listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterceptPorts {
    pub v4: u16,
    /// Absent where the host has no IPv6.
    pub v6: Option<u16>,
}

/// How the IP tunnel does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TunnelState {
    /// There is none.
    #[default]
    Off,
    /// It does not run, and why.
    Failed(String),
    /// It runs; packets go in and out by this device.
    Ready { device: String, index: u32 },
}

/// Starts the data planes of one host.
pub trait Engines: Send + Sync + 'static {
    /// Keeps the port of the IP tunnel open until the engines start, so that a path probe finds it open from the start
    /// of the agent (dataplane.md §3). What it gives is dropped just before `start`.
    fn reserve(&self, _ports: DataPorts, _own_mark: u32) -> io::Result<Box<dyn Send>> {
        Ok(Box::new(()))
    }
    fn start(
        &self,
        setup: EngineSetup,
        forwarding: watch::Receiver<Arc<Forwarding>>,
    ) -> BoxFuture<'_, io::Result<Box<dyn RunningEngines>>>;
}

/// What was carried of one service, as seen by this peer as its source or its target, since the engines started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceTraffic {
    pub bytes_to_target: u64,
    pub bytes_to_source: u64,
    /// Streams opened, and those open now.
    pub opened: u64,
    pub active: u64,
    /// Packets that the IP tunnel carried, and those that it dropped, by reason.
    pub tunnel_packets: u64,
    pub tunnel_drops: BTreeMap<&'static str, u64>,
    /// Flows that were refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

pub type Traffic = BTreeMap<ServiceId, ServiceTraffic>;
/// Reads the counters; empty once the engines are gone.
pub type ReadTraffic = Arc<dyn Fn() -> Traffic + Send + Sync>;

/// Data planes that run; dropping them ends every flow.
pub trait RunningEngines: Send + Sync + 'static {
    fn intercept_ports(&self) -> InterceptPorts;
    /// The IP tunnel, from now on.
    fn tunnel(&self) -> watch::Receiver<TunnelState> {
        watch::Sender::default().subscribe()
    }
    fn traffic(&self) -> ReadTraffic {
        Arc::new(Traffic::default)
    }
    fn shutdown(self: Box<Self>) -> BoxFuture<'static, ()>;
}
