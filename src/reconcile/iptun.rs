//! `iptun`: the IP tunnel's part of rules and policy, and whether the host forwards packets for it.

use super::{
    desired::{Compiled, Desired, Skipped},
    status::Reconciler,
};
use crate::{
    env::TunnelState,
    kernel::{Kernel, Tunnel},
    license::IP_TUNNEL,
};

/// Puts the tunnel into what was compiled, if the license includes it, it runs, and some service needs it.
pub(super) fn complete(compiled: &mut Compiled, desired: &Desired, tunnel: &TunnelState) {
    let allowed = desired.features.allows(IP_TUNNEL);
    compiled.forwarding.ip_tunnel = allowed;
    if !allowed || compiled.forwarding.services.is_empty() {
        return;
    }
    match tunnel {
        TunnelState::Off => {}
        TunnelState::Ready { device, index } => {
            compiled.ruleset.tunnel = Some(Tunnel { device: device.clone(), index: *index });
        }
        TunnelState::Failed(reason) => {
            let failed = || Skipped::failed("ENGINE_UNAVAILABLE", reason.as_str());
            let carried = compiled.forwarding.services.keys();
            compiled.skipped.extend(carried.map(|id| ((*id, Reconciler::Iptun), failed())));
        }
    }
}

/// What the last pass made of the tunnel.
#[derive(Debug, Default)]
pub(super) struct IpTunnel {
    applied: Option<Tunnel>,
}

/// What changed, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TunnelChange {
    Unchanged,
    Applied,
    /// The device is another one: the former was removed by someone.
    Repaired,
}

impl IpTunnel {
    /// Lets the host forward while there is a tunnel.
    pub async fn apply(&mut self, kernel: &dyn Kernel, wanted: Option<&Tunnel>) -> Result<TunnelChange, String> {
        let changed = kernel.set_forwarding(wanted.is_some()).await.map_err(|e| e.to_string())?;
        let before = std::mem::replace(&mut self.applied, wanted.cloned());
        Ok(match (&before, wanted) {
            (Some(old), Some(new)) if old.index != new.index => TunnelChange::Repaired,
            (old, new) if old.as_ref() != new || changed => TunnelChange::Applied,
            _ => TunnelChange::Unchanged,
        })
    }
}

/// Whether the tunnel itself runs.
pub(super) fn outcome(tunnel: &TunnelState) -> Result<(), String> {
    match tunnel {
        TunnelState::Failed(reason) => Err(reason.clone()),
        TunnelState::Off | TunnelState::Ready { .. } => Ok(()),
    }
}
