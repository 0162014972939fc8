use super::BoxFuture;
use crate::{
    model::{DataPorts, PeerId, SigningKey},
    routing::Forwarding,
};
use std::{io, sync::Arc};
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

/// Starts the data planes of one host.
pub trait Engines: Send + Sync + 'static {
    fn start(
        &self,
        setup: EngineSetup,
        forwarding: watch::Receiver<Arc<Forwarding>>,
    ) -> BoxFuture<'_, io::Result<Box<dyn RunningEngines>>>;
}

/// Data planes that run; dropping them ends every flow.
pub trait RunningEngines: Send + Sync + 'static {
    fn intercept_ports(&self) -> InterceptPorts;
    fn shutdown(self: Box<Self>) -> BoxFuture<'static, ()>;
}
