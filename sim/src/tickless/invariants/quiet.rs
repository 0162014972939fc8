//! At quiescence: everything that is connected agrees.

use super::super::world::World;
use arctic::{
    gossip::{HEARTBEAT_INTERVAL, SILENCE_LIMIT, Standing},
    license::State,
    membership::{LedgerView, RENEWAL_PAUSE_MAX},
    model::{PeerId, PeerStatus},
    wire::gossip::Registry,
};
use std::{collections::BTreeSet, time::Duration};

/// simulation.md S10: six heartbeat rounds and twice the silence limit.
pub const CONVERGENCE_BOUND: Duration =
    Duration::from_secs(6 * HEARTBEAT_INTERVAL.as_secs() + 2 * SILENCE_LIMIT.as_secs());

/// Messages of two nodes at rest in three rounds: five heartbeats each way with their answers, twice over.
const MESSAGES_A_PAIR_MAX: u64 = 20;

/// An invariant with what is wrong, if anything is.
type Wrong = Option<(&'static str, String)>;

impl World {
    /// The nodes outside of which a permanent fault may stay: those that are looked at.
    pub fn core(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].is_clone_of.is_none() && !self.outside.contains(n)).collect()
    }

    /// The first Q invariant that does not hold now.
    pub fn unquiet(&self) -> Wrong {
        let core = self.core();
        for a in &core {
            if self.nodes[*a].member().is_none() && self.nodes[*a].disk.read(|s| s.facts.cluster.is_some()) {
                return Some(("D1", format!("n{} has a cluster and does not run", a + 1)));
            }
        }
        let pairs = core.iter().flat_map(|a| core.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
        for (a, b) in pairs.filter(|(a, b)| self.trusts(*a, *b)) {
            if let Some(wrong) = self.disagreement(a, b) {
                return Some(wrong);
            }
        }
        self.strangers(&core)
    }

    fn trusts(&self, a: usize, b: usize) -> bool {
        self.nodes[a].member().is_some() && self.nodes[a].disk.trusted_key(self.nodes[b].id()).is_some()
    }

    /// What is wrong between `a` and `b`, whom `a` trusts.
    fn disagreement(&self, a: usize, b: usize) -> Wrong {
        let (one, other) = (self.nodes[a].member()?, &self.nodes[b]);
        // Known and reported: a removed peer may go on alone and come to trust someone who will not keep to it.
        let is_apart = |n: usize| self.was_led_ahead(n) || self.is_removed(n);
        if is_apart(a) || is_apart(b) {
            return None;
        }
        let names = format!("n{} and n{}", a + 1, b + 1);
        let Some(theirs) = other.member() else {
            if self.witness.left.contains(&b) {
                // It said good-bye while nobody could hear it: an operator has to delete it.
                return None;
            }
            return Some(("R3", format!("n{} trusts n{}, which belongs to no cluster", a + 1, b + 1)));
        };
        if !self.trusts(b, a) {
            return Some(("G1", format!("n{} trusts n{}, which does not trust it", a + 1, b + 1)));
        }
        let view = one.gossip.peer_view(other.id());
        if view.as_ref().is_none_or(|v| v.status != PeerStatus::Healthy) {
            return Some(("G1", format!("n{} is not healthy for n{}", b + 1, a + 1)));
        }
        let (ours, digests) = (one.gossip.digests(), theirs.gossip.digests());
        // A node that a fault never leaves, or that left unheard, may be trusted by one of them from before, and out of reach
        // for the other: no handshake, so nothing of what that node owns is held there (cluster.md §4).
        let gone = self.witness.left.iter().filter(|c| self.nodes[**c].member().is_none());
        let trust_the_same = self.outside.iter().chain(gone).all(|c| self.trusts(a, *c) == self.trusts(b, *c));
        let mut registries = Registry::ALL.into_iter().filter(|_| trust_the_same);
        if let Some(registry) = registries.find(|r| ours.get(*r) != digests.get(*r)) {
            return Some(("G1", format!("{names} differ in {}", registry.name())));
        }
        let cluster = |n: usize| self.nodes[n].disk.read(|s| s.facts.cluster.as_ref().map(|c| c.cluster_id));
        if cluster(a) != cluster(b) {
            return Some(("C2", format!("{names} are in clusters of different ids")));
        }
        if one.license_clock.is_suspect() {
            return Some(("L3", format!("n{} still doubts its clock", a + 1)));
        }
        self.removed_peer_in_use(a)
    }

    /// A node that knows that it was removed.
    fn is_removed(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let own = (node.id(), node.author.key.public());
        node.disk.revoked_identities().is_ok_and(|removed| removed.contains(&own))
    }

    /// Most of its peers had jumped ahead and a node believed them: until a renewal its license has run out.
    fn was_led_ahead(&self, n: usize) -> bool {
        let truth = self.nodes[n].clock.unix(self.now).plus(Duration::from_secs(2 * 24 * 3600));
        self.nodes[n].member().is_some_and(|m| m.license_clock.mark() > truth)
    }

    /// R3: no session, mark or rule of a removed peer.
    fn removed_peer_in_use(&self, n: usize) -> Wrong {
        let node = &self.nodes[n];
        let member = node.member()?;
        let removed = node.disk.revoked_identities().ok()?;
        let revocations = node.disk.revocations().ok()?;
        for (peer, key) in removed.iter().filter(|(peer, _)| *peer != node.id()) {
            if member.gossip.peer_view(*peer).is_some() {
                return Some(("R3", format!("n{} still talks with {}", n + 1, self.peer_name(*peer))));
            }
            if revocations.standing(*peer, Some(key)) != Standing::Revoked {
                // What a peer that left by itself had stays listed.
                continue;
            }
            let services = node.disk.services().ok()?;
            let uses = services.iter().find(|s| s.body.source_peer_id == *peer);
            if let Some(service) = uses {
                let what = format!("n{} still has {} of {}", n + 1, service.id, self.peer_name(*peer));
                return Some(("R3", what));
            }
        }
        None
    }

    /// Everyone whom a trusted peer trusts is trusted, where nothing stands against it.
    fn strangers(&self, core: &[usize]) -> Wrong {
        let open = |n: usize| {
            let permits = self.nodes[n].member().is_some_and(|m| m.entitlement.state < State::ReadOnly);
            permits && !self.is_removed(n)
        };
        for a in core.iter().copied().filter(|n| open(*n)) {
            let removed: BTreeSet<PeerId> =
                self.nodes[a].disk.revoked_identities().ok()?.into_iter().map(|(peer, _)| peer).collect();
            for b in core.iter().copied().filter(|b| *b != a && open(*b) && self.trusts(a, *b)) {
                let unknown = core.iter().copied().find(|c| {
                    *c != a && self.trusts(b, *c) && !self.trusts(a, *c) && !removed.contains(&self.nodes[*c].id())
                });
                if let Some(c) = unknown.filter(|c| open(*c)) {
                    let what = format!("n{} trusts n{}, who trusts n{}, whom n{} does not", a + 1, b + 1, c + 1, a + 1);
                    return Some(("H1", what));
                }
            }
        }
        None
    }

    /// Lets the world come to rest: within the bound all Q invariants hold, and they go on holding.
    pub fn come_to_rest(&mut self, bound: Duration) {
        // After a lost database handshakes are renewed in pauses, and a copy with an older start counter is believed after
        // as much silence.
        let is_delayed = !self.witness.wiped.is_empty() || !self.witness.clones.is_empty();
        let bound = if is_delayed { bound + RENEWAL_PAUSE_MAX } else { bound };
        let end = self.now + bound;
        // Looked at between events, but not between all of them.
        while self.failure.is_none() && self.unquiet().is_some() && self.now < end {
            self.run_for(Duration::from_millis(500));
        }
        let took = bound.saturating_sub(end - self.now);
        self.rested_after = Some(took);
        self.demand_quiet(format!("{bound:?} after faults stopped"));
        let carried = self.network.carried;
        self.run_for(3 * HEARTBEAT_INTERVAL);
        self.check_chatter(self.network.carried - carried);
        self.demand_quiet("three rounds after it held".to_owned());
    }

    /// G6: at rest there are heartbeats, and little else.
    fn check_chatter(&mut self, messages: u64) {
        let nodes = self.nodes.len() as u64;
        let budget = MESSAGES_A_PAIR_MAX * nodes * nodes + 200;
        if messages > budget {
            self.violate(
                "G6",
                format!("{messages} messages of {nodes} nodes in three rounds at rest, budget {budget}"),
            );
        }
    }

    fn demand_quiet(&mut self, when: String) {
        if self.failure.is_none()
            && let Some((invariant, what)) = self.unquiet()
        {
            self.violate(invariant, format!("{what}, {when}"));
        }
    }
}
