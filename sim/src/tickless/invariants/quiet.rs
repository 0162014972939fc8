//! At quiescence: everything that is connected agrees.

use super::super::world::World;
use arctic::{
    gossip::{HEARTBEAT_INTERVAL, SILENCE_LIMIT, Standing},
    license::State,
    membership::{LedgerView, RENEWAL_PAUSE_MAX},
    model::{Mono, PeerId, PeerStatus},
    wire::{
        gossip::Registry,
        record::{RecordHead, RecordKey},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// simulation.md S10: six heartbeat rounds and twice the silence limit.
pub const CONVERGENCE_BOUND: Duration =
    Duration::from_secs(6 * HEARTBEAT_INTERVAL.as_secs() + 2 * SILENCE_LIMIT.as_secs());

/// Messages of two nodes at rest in three rounds: five heartbeats each way with their answers, twice over.
const MESSAGES_A_PAIR_MAX: u64 = 20;

/// A change reaches everybody within 2 s (N1); one push may have to be sent again.
const CHANGE_TRAVELS: Duration = Duration::from_secs(5);

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
        self.unquiet_among(&core, &BTreeSet::new())
    }

    /// The same among some nodes, as far as it is not about the records of some owners.
    fn unquiet_among(&self, core: &[usize], beside: &BTreeSet<PeerId>) -> Wrong {
        let pairs = core.iter().flat_map(|a| core.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
        for (a, b) in pairs.filter(|(a, b)| self.trusts(*a, *b)) {
            if let Some(wrong) = self.disagreement(a, b, beside) {
                return Some(wrong);
            }
        }
        for n in core {
            let broken = self.lost_write(*n).map(|what| ("D1", what));
            let broken = broken.or_else(|| self.returned_service(*n).map(|what| ("R1", what)));
            if let Some(wrong) = broken.or_else(|| self.lost_cluster_id(*n).map(|what| ("C2", what))) {
                return Some(wrong);
            }
        }
        self.lost_member(core).map(|what| ("R4", what)).or_else(|| self.strangers(core))
    }

    pub(super) fn trusts(&self, a: usize, b: usize) -> bool {
        self.nodes[a].member().is_some() && self.nodes[a].disk.trusted_key(self.nodes[b].id()).is_some()
    }

    /// What is wrong between `a` and `b`, whom `a` trusts, `beside` the records of some owners.
    fn disagreement(&self, a: usize, b: usize, beside: &BTreeSet<PeerId>) -> Wrong {
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
        if !self.trusts(b, a) && self.knows_only_a_copy(a, b) {
            // What it trusts is switched off for ever, and cannot tell it that the other one removed it.
            return None;
        }
        if !self.trusts(b, a) && self.has_filled_up(b) {
            return None;
        }
        if !self.trusts(b, a) {
            return Some(("G1", format!("n{} trusts n{}, which does not trust it", a + 1, b + 1)));
        }
        let view = one.gossip.peer_view(other.id());
        if view.as_ref().is_none_or(|v| v.status != PeerStatus::Healthy) {
            return Some(("G1", format!("n{} is not healthy for n{}", b + 1, a + 1)));
        }
        // A node that a fault never leaves, that left unheard, or whose license ran out by the clocks of others, may be trusted by one of them from before, and out of reach
        // for the other: no handshake, so nothing of what that node owns is held there (cluster.md §4).
        let is_silent = |c: &usize| {
            let has_left = self.witness.left.contains(c) && self.nodes[*c].member().is_none();
            has_left || self.outside.contains(c) || self.was_led_ahead(*c)
        };
        let apart = |c: &usize| self.trusts(a, *c) != self.trusts(b, *c);
        let id = |c: usize| self.nodes[c].id();
        let mut beside = beside.clone();
        beside.extend((0..self.nodes.len()).filter(|c| is_silent(c) && apart(c)).map(id));
        if !beside.is_empty() {
            // Nor does its word about others reach both, their removal included.
            let standing = |n: usize, c: usize| self.nodes[n].disk.revocations().map(|r| r.standing(id(c), None)).ok();
            let differs = |c: &usize| apart(c) || standing(a, *c) != standing(b, *c);
            beside.extend((0..self.nodes.len()).filter(differs).map(id));
        }
        let (ours, digests) = (one.gossip.digests(), theirs.gossip.digests());
        let differ = |registry: &Registry| match beside.is_empty() {
            true => ours.get(*registry) != digests.get(*registry),
            false => self.heads(a, *registry, &beside) != self.heads(b, *registry, &beside),
        };
        if let Some(registry) = Registry::ALL.into_iter().find(differ) {
            return Some(("G1", format!("{names} differ in {}", registry.name())));
        }
        let cluster = |n: usize| self.nodes[n].disk.read(|s| s.facts.cluster.as_ref().map(|c| c.cluster_id));
        if cluster(a) != cluster(b) {
            return Some(("C2", format!("{names} are in clusters of different ids")));
        }
        if let Some(what) = self.smaller_hash(a, b) {
            return Some(("G5", what));
        }
        if one.license_clock.is_suspect() {
            return Some(("L3", format!("n{} still doubts its clock", a + 1)));
        }
        self.removed_peer_in_use(a)
    }

    /// A node that trusts as many as its license allows, and so not those whom another one took that had lost its database.
    pub(super) fn has_filled_up(&self, n: usize) -> bool {
        !self.witness.wiped.is_empty() && self.nodes[n].disk.trusted_keys().len() >= self.options.max_nodes as usize
    }

    /// Whether all that `a` has been told of `b` is where copies of it ran.
    fn knows_only_a_copy(&self, a: usize, b: usize) -> bool {
        let row = self.nodes[a].disk.peer(self.nodes[b].id()).ok().flatten();
        let endpoints = row.map(|row| row.all_endpoints()).unwrap_or_default();
        let is_copied = self.witness.clones.values().any(|of| *of == b);
        is_copied && !endpoints.iter().any(|endpoint| self.network.leads_to(endpoint) == Some(b))
    }

    /// What the disk of a node holds of a registry, some owners apart.
    fn heads(&self, n: usize, registry: Registry, beside: &BTreeSet<PeerId>) -> BTreeMap<RecordKey, RecordHead> {
        self.nodes[n].disk.read(|s| {
            let held = s.records.iter().filter(|(key, _)| !beside.contains(&key.owner));
            let of_registry = held.filter(|(key, _)| Registry::of(&key.kind) == registry);
            of_registry.map(|(key, held)| (key.clone(), held.head)).collect()
        })
    }

    /// A node that knows that it was removed.
    pub(super) fn is_removed(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let own = (node.id(), node.author.key.public());
        node.disk.revoked_identities().is_ok_and(|removed| removed.contains(&own))
    }

    /// Most of its peers had jumped ahead and a node believed them: until a renewal its license has run out.
    pub(super) fn was_led_ahead(&self, n: usize) -> bool {
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
        for a in core.iter().copied().filter(|n| open(*n) && !self.has_filled_up(*n)) {
            let removed: BTreeSet<PeerId> =
                self.nodes[a].disk.revoked_identities().ok()?.into_iter().map(|(peer, _)| peer).collect();
            let trusted = |b: &usize| *b != a && open(*b) && self.trusts(a, *b) && !self.knows_only_a_copy(a, *b);
            for b in core.iter().copied().filter(trusted) {
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
        let start = self.now;
        self.rest_by(start, start + bound);
        // After a lost database handshakes are renewed in pauses, and a copy with an older start counter is believed after
        // as much silence. The others do not wait for that.
        let delayed: BTreeSet<usize> = self.witness.wiped.iter().chain(self.witness.clones.values()).copied().collect();
        let bound = if delayed.is_empty() { bound } else { bound + RENEWAL_PAUSE_MAX };
        if !delayed.is_empty() && self.failure.is_none() && self.unquiet().is_some() {
            let prompt: Vec<usize> = self.core().into_iter().filter(|n| !delayed.contains(n)).collect();
            let owners = delayed.iter().map(|n| self.nodes[*n].id()).collect();
            if let Some((invariant, what)) = self.unquiet_among(&prompt, &owners) {
                self.violate(invariant, format!("{what}, though neither has lost anything"));
            }
            self.rest_by(start, start + bound);
        }
        self.demand_quiet(format!("{bound:?} after faults stopped"));
        if let Some(n) = self.core().get(self.options.seed as usize % self.options.nodes.max(1)) {
            self.check_merge_order(*n);
        }
    }

    /// Until all holds for three rounds, which have to begin before `end`.
    fn rest_by(&mut self, start: Mono, end: Mono) {
        loop {
            self.wait_for_quiet(end);
            self.rested_after = Some(self.now - start);
            if self.failure.is_some() || self.unquiet().is_some() {
                return;
            }
            let carried = self.network.carried;
            self.run_for(3 * HEARTBEAT_INTERVAL);
            let carried = self.network.carried - carried;
            // What a node wrote of its own accord a moment ago is on its way.
            if self.unquiet().is_some() {
                self.run_for(CHANGE_TRAVELS);
            }
            if self.unquiet().is_none() {
                return self.check_chatter(carried);
            }
        }
    }

    /// Looked at between events, but not between all of them.
    fn wait_for_quiet(&mut self, end: Mono) {
        while self.failure.is_none() && self.unquiet().is_some() && self.now < end {
            self.run_for(Duration::from_millis(500));
        }
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
