//! What is outside the process, as values that `node::run` is given: the network, the kernel, the clock, randomness.
//! Production passes the operating system, the simulator passes its own; nothing else differs.

mod clock;
mod engines;
mod net;

pub use clock::{Clock, SystemClock};
pub use engines::{
    EngineSetup, Engines, InterceptPorts, ReadTraffic, RunningEngines, ServiceTraffic, Traffic, TunnelState,
};
pub use net::{BoxFuture, BoxListener, BoxStream, Listener, Net, Stream};

use crate::kernel::Kernel;
use hkdf::Hkdf;
use sha2::Sha256;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The outside world of one node.
#[derive(Clone)]
pub struct Env {
    pub net: Arc<dyn Net>,
    pub kernel: Arc<dyn Kernel>,
    pub clock: Arc<dyn Clock>,
    pub engines: Arc<dyn Engines>,
    root_seed: Arc<Zeroizing<[u8; 32]>>,
}

impl Env {
    pub fn new(
        net: Arc<dyn Net>,
        kernel: Arc<dyn Kernel>,
        clock: Arc<dyn Clock>,
        engines: Arc<dyn Engines>,
        root_seed: [u8; 32],
    ) -> Self {
        Self { net, kernel, clock, engines, root_seed: Arc::new(Zeroizing::new(root_seed)) }
    }

    /// A seed for one machine of this node, derived from the root seed by its label.
    pub fn seed(&self, label: &str) -> [u8; 32] {
        let mut out = [0; 32];
        Hkdf::<Sha256>::new(None, self.root_seed.as_slice())
            .expand(label.as_bytes(), &mut out)
            .expect("32 bytes is a valid HKDF-SHA256 length");
        out
    }

    /// A random stream for one machine of this node.
    pub fn rng(&self, label: &str) -> crate::model::Rng {
        crate::model::Rng::from_seed(self.seed(label))
    }
}

/// 32 bytes from the operating system: the root seed in production, and nothing else.
pub fn system_seed() -> Result<[u8; 32], getrandom::Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(seed)
}
