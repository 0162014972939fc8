//! What scenarios do to a world beyond the work of operators.

use super::super::{
    invariants::proofs::verifications,
    member::{here, own},
    node::Why,
    workload::Work,
    world::World,
};
use arctic::{
    handshake::{Purpose, Target},
    membership,
    model::{ClusterId, Endpoint, LicenseId, PeerId, Rng, SigningKey, UnixTime, X25519Public},
    wire::handshake::{Challenge, Init, PROTOCOL, default_api_port},
};
use std::net::IpAddr;

impl World {
    /// `peers add` of whoever answers at these endpoints.
    pub(super) fn add_at(&mut self, from: usize, endpoints: Vec<Endpoint>) {
        let target = Target { endpoints, pinned_key: None, expected_peer: None, purpose: Purpose::Add };
        self.begin_handshake(from, target, Why::Add(Work::Sync));
        self.settle(from);
    }

    /// Strangers at these addresses make the first step of a handshake with `n` and no second; gives how many sessions
    /// are open then.
    pub(super) fn open_sessions_from(&mut self, n: usize, sources: impl IntoIterator<Item = IpAddr>) -> usize {
        let mut rng: Rng = self.rng.fork();
        for source in sources {
            let init = Init {
                protocol: PROTOCOL,
                peer_id: PeerId::mint(UnixTime::from_secs(1), &mut rng),
                public_key: SigningKey::from_seed(rng.bytes()).public(),
                challenge: Challenge(rng.bytes()),
                ephemeral: X25519Public(rng.bytes()),
                license_id: LicenseId::mint(UnixTime::from_secs(1), &mut rng),
                cluster_id: ClusterId::mint(UnixTime::from_secs(1), &mut rng),
                endpoints: Vec::new(),
                target_endpoints: Vec::new(),
                api_port: default_api_port(),
            };
            let now = self.now;
            let node = &mut self.nodes[n];
            let mono = node.clock.mono(now);
            let Some(process) = node.process.as_mut() else { continue };
            let Some(member) = process.member.as_ref() else { continue };
            let Ok(Some(side)) = membership::side(&node.disk, own(&node.author, member, &self.roots)) else { continue };
            let before = verifications();
            let response = process.responder.handle_init(here(&side, &self.roots), source, &init, mono, &mut rng);
            self.witness_session(n, &init, response.as_ref().ok(), verifications() - before);
        }
        self.nodes[n].process.as_ref().map_or(0, |p| p.responder.open_sessions())
    }
}
