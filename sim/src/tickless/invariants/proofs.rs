//! Handshakes where they cross the network: who has proven what before anything is told, and what a failed one costs.

use super::super::{
    book::{self, domain},
    message::{Answer, Message, Path},
    node::{Purpose, ReplyTo},
    world::World,
};
use arctic::{
    handshake::{PendingReverse, Reason, Refusal},
    license::{EndpointGroup, State},
    model::{Mono, PeerId},
    wire::{
        handshake::{ErrorBody, Finish, Identity, Init, InitResponse, SessionId},
        record::{Record, Voucher, kind},
    },
};
use std::time::Duration;

/// What a stranger may make a responder keep, and what it is told.
const FAILED_COSTS_MAX_BYTES: usize = 4 * 1024;
const FAILED_COSTS_MAX_VERIFICATIONS: u64 = 1;
const SESSION_LASTS: Duration = Duration::from_secs(30);
/// Sessions of which nobody asks any more go when there are so many, or a multiple of it.
const SESSIONS_PURGED_AT: usize = 256;
/// One in so many calls has its signature looked at.
const CALLS_LOOKED_AT_ONE_IN: u64 = 16;

/// What was seen of one session of a responder.
#[derive(Debug)]
pub(in super::super) struct Seen {
    /// By the clock of the responder.
    opened: Mono,
    init: Init,
    response: InitResponse,
    verifications: u64,
    /// The initiator has signed for it,
    proven: bool,
    /// was called back and answered,
    reached: bool,
    /// and the session has been used up.
    is_over: bool,
}

/// Signatures that this thread has verified; always 0 in a build without the feature `simulation`.
pub(in super::super) fn verifications() -> u64 {
    #[cfg(feature = "simulation")]
    return arctic::model::stub::verifications();
    #[cfg(not(feature = "simulation"))]
    0
}

fn json_bytes(init: &Init) -> usize {
    serde_json::to_vec(init).map_or(usize::MAX, |json| json.len())
}

impl World {
    fn session_key(&self, n: usize) -> (usize, u64) {
        (n, self.nodes[n].boots)
    }

    /// Step 1 is answered. H3: what the responder signs covers what it has to, for its purpose. H6, L5.
    pub(in super::super) fn witness_opening(
        &mut self,
        n: usize,
        init: &Init,
        response: Option<&InitResponse>,
        verifications: u64,
    ) {
        if verifications > FAILED_COSTS_MAX_VERIFICATIONS {
            self.violate("H6", format!("n{} verifies {verifications} signatures of a stranger's first words", n + 1));
        }
        let Some(response) = response else { return };
        let kept = json_bytes(init);
        if kept > FAILED_COSTS_MAX_BYTES {
            self.violate("H6", format!("n{} opens a session of {kept} bytes", n + 1));
        }
        let signed = book::exchange(domain::RESPONDER, response.license_id, init, response);
        if !self.nodes[n].author.key.public().verify(&signed.0, &response.signature) {
            self.violate("H3", format!("n{} signs something else than cluster.md says, as responder", n + 1));
        }
        let is_known = self.nodes[n].disk.trusted_key(init.peer_id).is_some();
        let group = if is_known { EndpointGroup::HandshakeKnownPeer } else { EndpointGroup::HandshakeNewPeer };
        self.check_served(n, group, "shakes hands");
        let opened = self.nodes[n].clock.mono(self.now);
        let seen = Seen {
            opened,
            init: init.clone(),
            response: response.clone(),
            verifications,
            proven: false,
            reached: false,
            is_over: false,
        };
        let key = self.session_key(n);
        let sessions = self.witness.handshakes.entry(key).or_default();
        if sessions.len() % SESSIONS_PURGED_AT == SESSIONS_PURGED_AT - 1 {
            sessions.retain(|_, seen| opened.saturating_since(seen.opened) <= 2 * SESSION_LASTS);
        }
        sessions.insert(response.session.0, seen);
    }

    /// Step 2. H1, H3: only who has offered it, and signs all of it, is believed. H6: whoever is not, costs little.
    pub(in super::super) fn witness_finish(
        &mut self,
        n: usize,
        call: u64,
        finish: &Finish,
        outcome: Result<&PendingReverse, &Refusal>,
        verifications: u64,
    ) {
        let (key, mono) = (self.session_key(n), self.nodes[n].clock.mono(self.now));
        let seen = self.witness.handshakes.get_mut(&key).and_then(|open| open.get_mut(&finish.session.0));
        let Some(seen) = seen else {
            if outcome.is_ok() {
                self.violate("H2", format!("n{} goes on with a session that it never opened", n + 1));
            }
            return;
        };
        seen.verifications += verifications;
        let (spent, age) = (seen.verifications, mono.saturating_since(seen.opened));
        let Seen { init, response, .. } = &seen;
        let signed = book::exchange(domain::INITIATOR, init.license_id, init, response);
        let is_signed = init.public_key.verify(&signed.0, &finish.signature);
        if outcome.is_err() {
            // Who has signed is no stranger: what else it shows may be looked at.
            if !seen.proven && !is_signed && spent > FAILED_COSTS_MAX_VERIFICATIONS {
                self.violate("H6", format!("n{} verifies {spent} signatures for a handshake that it refuses", n + 1));
            }
            return;
        }
        seen.proven = true;
        let Seen { init, .. } = seen;
        let claimed = init.peer_id;
        let offered = self.witness.offers.get(&init.challenge.0);
        let is_offered = offered.is_some_and(|(by, offer)| self.nodes[*by].id() == claimed && *offer == *init);
        self.witness.finishing.insert((n, call), finish.session.0);
        let name = self.peer_name(claimed);
        if age > SESSION_LASTS {
            self.violate("H2", format!("n{} uses a session of {name} that is {age:?} old", n + 1));
        }
        if !is_signed {
            self.violate("H3", format!("n{} believes a signature of {name} that is not over all of it", n + 1));
        }
        if !is_offered {
            self.violate("H1", format!("n{} takes someone for {name} who is not, or said something else", n + 1));
        }
    }

    /// An endpoint of the initiator has answered the call back.
    pub(in super::super) fn witness_called_back(&mut self, n: usize, session: &SessionId, answered: Option<&Identity>) {
        let key = self.session_key(n);
        let seen = self.witness.handshakes.get_mut(&key).and_then(|open| open.get_mut(&session.0));
        if let (Some(seen), Some(identity)) = (seen, answered) {
            let is_it = identity.peer_id == Some(seen.init.peer_id);
            seen.reached |= is_it && identity.public_key == Some(seen.init.public_key);
        }
    }

    /// The session is over, well or not. H5: `replayed` is what the responder says to a second step 2 of it now; had it
    /// the keys, it would say that the seal is wrong.
    pub(in super::super) fn witness_over(&mut self, n: usize, session: &SessionId, replayed: Option<Reason>) {
        let key = self.session_key(n);
        if let Some(seen) = self.witness.handshakes.get_mut(&key).and_then(|open| open.get_mut(&session.0)) {
            seen.is_over = true;
        }
        if replayed != Some(Reason::SessionExpired) {
            self.violate("H5", format!("n{} keeps the keys of a handshake that is over: {replayed:?}", n + 1));
        }
    }

    /// H5: no more sessions, with their keys, than are alive.
    pub(super) fn check_sessions(&mut self, n: usize) {
        let now = self.now;
        let node = &self.nodes[n];
        let Some(process) = node.process.as_ref() else { return };
        let open = process.responder.open_sessions();
        // A host that was stopped is about to look at its clock.
        if open == 0 || process.wake_at.is_some_and(|at| at <= now + Duration::from_micros(1)) {
            return;
        }
        let mono = node.clock.mono(now);
        let is_alive = |seen: &&Seen| !seen.is_over && mono.saturating_since(seen.opened) < SESSION_LASTS;
        let sessions = self.witness.handshakes.get(&(n, node.boots));
        let alive = sessions.map_or(0, |all| all.values().filter(is_alive).take(open).count());
        if open > alive {
            self.violate("H5", format!("n{} keeps the keys of {open} handshakes, and only {alive} are alive", n + 1));
        }
    }

    /// H4: what a responder tells before the initiator has signed and was called back is about the two, and its size (H6).
    pub(in super::super) fn witness_answer(&mut self, from: usize, to: ReplyTo, answer: &Answer) {
        match answer {
            Answer::Finish(_) => self.check_told_under_seal(from, to),
            Answer::Refused { body, .. } if self.is_handshake(to) => self.check_refusal(from, to, body),
            Answer::Identity(Identity { peer_id: Some(told), .. }) if *told != self.nodes[from].id() => {
                self.violate("H4", format!("n{} tells who others are", from + 1));
            }
            _ => {}
        }
    }

    fn check_told_under_seal(&mut self, from: usize, to: ReplyTo) {
        let session = self.witness.finishing.get(&(from, to.call));
        let sessions = self.witness.handshakes.get(&self.session_key(from));
        let seen = session.and_then(|session| sessions?.get(session));
        let missing = match seen {
            None => "a session",
            Some(seen) if !seen.proven => "its signature",
            Some(seen) if !seen.reached => "the call back",
            Some(_) => return,
        };
        let name = self.nodes[to.node].name();
        self.violate("H4", format!("n{} tells {name} its license, members and record without {missing}", from + 1));
    }

    fn is_handshake(&self, to: ReplyTo) -> bool {
        let process = self.nodes[to.node].process.as_ref().filter(|process| process.boot == to.boot);
        let pending = process.and_then(|process| process.calls.get(&to.call));
        pending.is_some_and(|pending| matches!(pending.purpose, Purpose::Handshake { .. } | Purpose::Reverse { .. }))
    }

    fn check_refusal(&mut self, from: usize, to: ReplyTo, body: &ErrorBody) {
        let Ok(text) = serde_json::to_string(body) else { return };
        if text.len() > FAILED_COSTS_MAX_BYTES {
            self.violate("H6", format!("n{} refuses a handshake with {} bytes", from + 1, text.len()));
        }
        let others = (0..self.nodes.len()).map(|n| self.nodes[n].id());
        let mut others = others.filter(|id| *id != self.nodes[from].id() && *id != self.nodes[to.node].id());
        if let Some(named) = others.find(|id| text.contains(&id.to_string())) {
            let name = self.peer_name(named);
            self.violate("H4", format!("n{} names {name} to n{}, which has proven nothing", from + 1, to.node + 1));
        }
    }

    /// H4: gossip is answered only to who was trusted when it asked; L5: and only while the license permits it.
    pub(in super::super) fn witness_gossiped(&mut self, n: usize, with: usize, was_trusted: bool) {
        if !was_trusted {
            self.violate("H4", format!("n{} gossips with n{}, which it does not trust", n + 1, with + 1));
        }
        self.check_served(n, EndpointGroup::Gossip, "answers gossip");
    }

    /// A request leaves node `n`.
    pub(in super::super) fn witness_request(&mut self, n: usize, call: u64, purpose: Purpose, message: &Message) {
        match message.path {
            Path::Identity | Path::Finish => {}
            Path::Init => {
                self.check_served(n, EndpointGroup::HandshakeKnownPeer, "begins a handshake");
                if let Ok(init) = message.as_init() {
                    self.witness.offers.insert(init.challenge.0, (n, init));
                }
            }
            Path::Gossip(op) => {
                let Purpose::Gossip { to, .. } = purpose else { return };
                self.check_served(n, EndpointGroup::Gossip, "gossips");
                if self.options.authenticates && call.is_multiple_of(CALLS_LOOKED_AT_ONE_IN) {
                    self.check_request_signature(n, to, op.path(), message);
                }
            }
        }
    }

    fn check_request_signature(&mut self, n: usize, to: PeerId, path: &str, message: &Message) {
        let Some(auth) = message.auth.as_ref() else { return };
        let signed = book::request(auth, to, path, message.body_bytes());
        if !self.nodes[n].author.key.public().verify(&signed.0, &auth.signature) {
            self.violate("H3", format!("n{} signs something else than api.md says, in a request", n + 1));
        }
    }

    /// H3 for what a node has written: its own key, over all of it.
    pub(super) fn check_written_signature(&mut self, n: usize, record: &Record, body_hash: &[u8; 32]) {
        let public = self.nodes[n].author.key.public();
        let signed = book::record(&record.key, record.version, record.deleted, body_hash);
        let mut is_good = public.verify(&signed.0, &record.signature);
        if record.key.kind == kind::VOUCHER && !record.deleted {
            let voucher: Option<Voucher> = record.body_as().ok();
            is_good &= voucher.is_some_and(|v| public.verify(&book::voucher(&v).0, &v.signature));
        }
        if !is_good {
            self.violate(
                "H3",
                format!("n{} signs something else than cluster.md says, in a {}", n + 1, record.key.kind),
            );
        }
    }

    /// L5 where something has been done.
    pub(in super::super) fn check_served(&mut self, n: usize, group: EndpointGroup, what: &str) {
        let Some(state) = self.nodes[n].member().map(|member| member.entitlement.state) else { return };
        if state > State::GracePeriod && !super::terms::is_served_by_the_book(state, group, false) {
            self.violate("L5", format!("n{} {what} while its license is {state}", n + 1));
        }
    }
}
