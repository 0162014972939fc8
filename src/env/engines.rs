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
    pub ports: DataPorts,
    /// The fwmark of the agent's own sockets.
    pub own_mark: u32,
    /// Ports of the agent itself; refused as destinations on any local address.
    pub forbidden_ports: Vec<u16>,
}

/// Loopback ports on which captured connections arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterceptPorts {
    pub v4: u16,
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
