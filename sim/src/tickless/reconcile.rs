//! From the disk to the kernel of a simulated host: the production compiler and planner over `FakeKernel`.

use super::{node::Node, world::World};
use arctic::{
    kernel::Kernel,
    membership::LedgerView,
    model::PeerId,
    reconcile::{Compiled, Desired, FirewallStep, compile, plan},
    routing::PeerPath,
};
use std::{
    future::Future,
    task::{Context, Poll, Waker},
};

impl World {
    /// One pass where something changed since the last.
    pub(super) fn reconcile(&mut self, n: usize) {
        if !self.options.reconciles {
            return;
        }
        let node = &mut self.nodes[n];
        let revision = node.disk.revision();
        let Some(member) = node.member_mut() else { return };
        let key = (revision, member.entitlement.data_plane_runs());
        if member.reconciled_revision.replace(key) == Some(key) {
            return;
        }
        let compiled = compiled(node);
        let steps = plan(node.applied.as_ref(), &compiled.ruleset);
        for step in steps {
            self.nodes[n].apply(step);
        }
        self.check_plan(n, &compiled);
    }
}

/// What should be, of the node's disk.
pub fn compiled(node: &mut Node) -> Compiled {
    let desired = desired(node);
    compile(&desired, Node::mask(), Node::intercept(), &mut node.marks)
}

fn desired(node: &Node) -> Desired {
    let local: PeerId = node.id();
    let Some(member) = node.member() else { return Desired::idle(None) };
    let mut desired = Desired {
        services: node.disk.services().unwrap_or_default(),
        data_plane_runs: member.entitlement.data_plane_runs(),
        ..Desired::idle(Some(local))
    };
    for row in node.disk.trusted_peers().unwrap_or_default().into_iter().filter(|row| row.peer_id != local) {
        let endpoints = row.all_endpoints();
        let Some(body) = row.body else { continue };
        let path = PeerPath {
            public_key: row.public_key,
            x25519_key: body.x25519_key,
            endpoints,
            data_ports: body.data_ports,
        };
        desired.peers.insert(row.peer_id, path);
    }
    desired
}

impl Node {
    fn apply(&mut self, step: FirewallStep) {
        match step {
            FirewallStep::Policy(policy) => drop(now(self.kernel.set_policy(&policy))),
            FirewallStep::Shrink(ruleset) | FirewallStep::Tables(ruleset) => {
                if now(self.kernel.replace_tables(&ruleset)).is_ok() {
                    self.applied = Some(ruleset);
                }
            }
        }
    }
}

/// The kernel in memory answers at once.
fn now<T>(mut future: std::pin::Pin<Box<dyn Future<Output = T> + Send + '_>>) -> T {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("the kernel in memory waits for nothing"),
    }
}
