//! Handshake sessions and signed requests: each serves once.

use super::super::world::World;
use arctic::{
    handshake::SESSIONS_MAX,
    model::PeerId,
    wire::handshake::{Init, InitResponse, SessionId},
};

impl World {
    /// H2 at the first step: a challenge opens one session; there are never too many.
    pub(in super::super) fn witness_session(
        &mut self,
        n: usize,
        init: &Init,
        response: Option<&InitResponse>,
        verifications: u64,
    ) {
        self.witness_opening(n, init, response, verifications);
        let Some(process) = self.nodes[n].process.as_ref() else { return };
        let (boot, open) = (process.boot, process.responder.open_sessions());
        if open > SESSIONS_MAX {
            self.violate("H2", format!("n{} holds {open} sessions open", n + 1));
        }
        if response.is_some() && !self.witness.challenges.insert((n, boot, init.challenge.0)) {
            self.violate("H2", format!("n{} serves one challenge twice", n + 1));
        }
    }

    /// H2 at the last step: a session serves once.
    pub(in super::super) fn witness_confirmed(&mut self, n: usize, session: &SessionId, peer: PeerId) {
        if !self.witness.sessions.insert((n, session.0)) {
            self.violate("H2", format!("n{} uses a session of {} twice", n + 1, self.peer_name(peer)));
        }
    }

    /// C4: no process makes a nonce twice.
    pub(in super::super) fn witness_minted(&mut self, n: usize, nonce: [u8; 16]) {
        let boot = self.nodes[n].boots;
        if !self.witness.minted.insert((n, boot, nonce)) {
            self.violate("C4", format!("n{} makes a nonce twice", n + 1));
        }
    }

    /// C4: no nonce is taken twice by one process.
    pub(in super::super) fn witness_nonce(&mut self, n: usize, sender: PeerId, nonce: [u8; 16]) {
        let boot = self.nodes[n].boots;
        if !self.witness.nonces.insert((n, boot, sender, nonce)) {
            self.violate("C4", format!("n{} takes a signed request of {} twice", n + 1, self.peer_name(sender)));
        }
    }
}
