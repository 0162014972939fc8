//! The IP tunnel: whatever is not TCP, between two peers, by WireGuard's wire protocol (dataplane.md §3).
//!
//! `sessions` is the protocol, `gate` says which packets pass and under which addresses (`flows`, `packet`), `drive` moves
//! them between the device and the socket, `train` cuts and joins what crosses the device together. [`Gate`] and
//! [`Sessions`] do no I/O; the simulator drives them as `drive` does.

mod drive;
mod flows;
mod gate;
mod packet;
mod sessions;
#[cfg(test)]
mod tests;
mod train;

pub use gate::{Gate, Passed, Stop, TunnelRefusal};
pub use sessions::{Outgoing, Received, Sessions};

use super::{
    Core,
    limits::{TUNNEL_RETRY_FIRST, TUNNEL_RETRY_LONGEST},
};
use crate::{
    env::TunnelState,
    model::{Rng, SigningKey},
    os::datagram::Datagrams,
};
use std::{io, sync::Arc};
use tokio::{sync::watch, time::sleep};

/// The largest packet inside the tunnel (dataplane.md §10).
pub const INNER_MTU: u16 = 1420;

/// Why the tunnel does not run.
#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error("port {port}/udp for other engines cannot be bound: free it, or set IPTUN_PORT")]
    Bind { port: u16, source: io::Error },
    #[error("cannot make the device of the IP tunnel")]
    Device(#[source] io::Error),
    #[error("the device of the IP tunnel is gone")]
    DeviceGone(#[source] io::Error),
    #[error("the socket of the IP tunnel failed")]
    Socket(#[source] io::Error),
}

/// Runs the tunnel until the engine stops, and starts it again whenever it fails.
pub(super) async fn serve(core: Arc<Core>, key: SigningKey, rng: Rng, port: u16, state: watch::Sender<TunnelState>) {
    let mut carrier = drive::Carrier::new(&core, &key, rng);
    let mut socket = None;
    let mut pause = TUNNEL_RETRY_FIRST;
    loop {
        let failed = tokio::select! {
            biased;
            () = core.stop.cancelled() => break,
            failed = run(&core, &mut carrier, &mut socket, port, &state) => failed,
        };
        if matches!(*state.borrow(), TunnelState::Ready { .. }) {
            pause = TUNNEL_RETRY_FIRST;
        }
        let reason = crate::model::with_causes(&failed);
        state.send_if_modified(|known| {
            let now = TunnelState::Failed(reason.clone());
            std::mem::replace(known, now.clone()) != now
        });
        if matches!(failed, TunnelError::Socket(_)) {
            socket = None;
        }
        tokio::select! {
            biased;
            () = core.stop.cancelled() => break,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(TUNNEL_RETRY_LONGEST);
    }
    state.send_replace(TunnelState::Off);
}

async fn run(
    core: &Arc<Core>,
    carrier: &mut drive::Carrier,
    socket: &mut Option<Datagrams>,
    port: u16,
    state: &watch::Sender<TunnelState>,
) -> TunnelError {
    // The socket outlives the device, so that path probes always meet an open port.
    let socket = match socket {
        Some(socket) => socket,
        none => match Datagrams::bind(port, core.own_mark) {
            Ok(bound) => none.insert(bound),
            Err(source) => return TunnelError::Bind { port, source },
        },
    };
    let device = match crate::os::tun::Tun::create(INNER_MTU) {
        Ok(device) => device,
        Err(e) => return TunnelError::Device(e),
    };
    state.send_replace(TunnelState::Ready { device: device.name().to_owned(), index: device.index() });
    carrier.carry(core, socket, &device).await
}
