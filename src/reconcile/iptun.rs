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
    /// The device of before, while the tunnel is down against our will.
    lost: Option<Tunnel>,
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
    /// Lets the host forward while there is a tunnel, or one is made again.
    pub async fn apply(
        &mut self,
        kernel: &dyn Kernel,
        wanted: Option<&Tunnel>,
        state: &TunnelState,
    ) -> Result<TunnelChange, String> {
        let before = std::mem::replace(&mut self.applied, wanted.cloned());
        self.lost = match (&before, wanted, state) {
            (Some(old), Some(new), _) if old.index != new.index => before.clone(),
            (Some(_), None, TunnelState::Failed(_)) => before.clone(),
            (_, None, TunnelState::Ready { .. } | TunnelState::Off) => None,
            _ => self.lost.take(),
        };
        let forward = wanted.is_some() || self.lost.is_some();
        let changed = kernel.set_forwarding(forward).await.map_err(|e| e.to_string())? || before.as_ref() != wanted;
        Ok(match (wanted, &self.lost) {
            (Some(_), Some(_)) => {
                self.lost = None;
                TunnelChange::Repaired
            }
            _ if changed => TunnelChange::Applied,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{FakeKernel, Operation};

    fn tunnel(index: u32) -> Tunnel {
        Tunnel { device: "arctic-tun0".into(), index }
    }

    fn ready(index: u32) -> TunnelState {
        TunnelState::Ready { device: "arctic-tun0".into(), index }
    }

    #[tokio::test]
    async fn the_host_forwards_from_the_first_service_to_the_last_and_a_lost_device_is_told() {
        let (kernel, mut applied) = (FakeKernel::new(), IpTunnel::default());
        let failed = TunnelState::Failed("gone".into());
        let steps = [
            (None, ready(3), TunnelChange::Unchanged, vec![]),
            (Some(3), ready(3), TunnelChange::Applied, vec![Operation::SetForwarding(true)]),
            (Some(3), ready(3), TunnelChange::Unchanged, vec![]),
            (None, failed.clone(), TunnelChange::Applied, vec![]),
            (Some(4), ready(4), TunnelChange::Repaired, vec![]),
            (Some(5), ready(5), TunnelChange::Repaired, vec![]),
            (Some(5), ready(5), TunnelChange::Unchanged, vec![]),
            (None, ready(5), TunnelChange::Applied, vec![Operation::SetForwarding(false)]),
            (None, failed, TunnelChange::Unchanged, vec![]),
            (Some(6), ready(6), TunnelChange::Applied, vec![Operation::SetForwarding(true)]),
        ];
        for (n, (wanted, state, change, operations)) in steps.into_iter().enumerate() {
            let done = applied.apply(&kernel, wanted.map(tunnel).as_ref(), &state).await;
            assert_eq!((done, kernel.take_operations()), (Ok(change), operations), "step {n}");
        }
    }
}
