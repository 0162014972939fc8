//! Records, removal and durability: what a disk may come to hold, and what it may lose.

use super::super::{ledger::Change, world::World};
use crate::sometimes;
use arctic::{
    gossip::{LAGGARD_AFTER, Standing},
    license::State,
    membership::LedgerView,
    model::{PeerId, PublicKey},
    wire::{
        gossip::{MESSAGE_MAX_BYTES, Registry},
        record::kind,
    },
};

impl World {
    /// G3, G4, C1, R1 after every event at node `n`: only what its transactions changed is looked at.
    pub(in super::super) fn check_node(&mut self, n: usize) {
        let revision = self.nodes[n].disk.revision();
        let seen = self.witness.seen_revision.insert(n, revision);
        self.check_sessions(n);
        if seen == Some(revision) {
            return;
        }
        let changes = self.nodes[n].disk.take_changes();
        // The first look after a start, or after a commit that failed, is at all.
        let mut revoking = seen.is_none();
        for change in &changes {
            revoking |= Registry::of(&change.key.kind) == Registry::Revocations;
            self.check_change(n, change);
            self.check_order(n, change, seen.is_none());
        }
        // What the node deleted and was not acknowledged when it died counts as deleted by now.
        if let Some(what) = self.lost_write(n).filter(|_| seen.is_none()) {
            self.violate("D1", what);
        }
        // A revocation and its consequences are two transactions: cluster.md §8 is about what an agent does, and one that
        // died between them reads nothing to anyone. Its next start draws the consequences before it does anything, and
        // is looked at then. Until the disk takes what the machine decided, the machine is ahead of it.
        let says_goodbye = self.witness.left.contains(&n);
        let waits = self.nodes[n].member().is_some_and(|m| m.uncommitted.is_some());
        if waits {
            self.witness.seen_revision.remove(&n);
        } else if self.nodes[n].is_up() && !says_goodbye {
            self.check_removal(n, revoking);
        }
        self.check_trust(n, seen.is_none());
        self.sample_merge(n);
    }

    fn check_change(&mut self, n: usize, change: &Change) {
        let Change { key, before, after } = change;
        let (own, name) = (self.nodes[n].id(), n + 1);
        let owner = self.peer_name(key.owner);
        match (before, after) {
            (Some(before), Some(after)) if after.head.version < before.head.version => {
                let (old, new) = (before.head.version, after.head.version);
                self.violate("G3", format!("n{name} went back from version {old} to {new} of {} of {owner}", key.kind));
            }
            (Some(before), None) if !before.record.deleted && key.owner != own => {
                let standing = self.nodes[n].disk.revocations().map(|r| r.standing(key.owner, None));
                // What an owner wrote that is trusted no more, nobody else takes from here.
                let is_trusted = self.nodes[n].disk.trusted_key(key.owner).is_some();
                if standing.is_ok_and(|s| s.keeps(&key.kind)) && is_trusted && self.ought_to_live(n, key, before.head) {
                    self.violate("G3", format!("n{name} forgot a live {} of {owner}, who is not removed", key.kind));
                }
            }
            (Some(before), None) if !before.record.deleted => self.check_own_forgotten(n, key, before.head),
            (Some(before), None) if before.record.deleted => self.check_collection(n, change),
            _ => {}
        }
        self.check_deletion(n, change);
        let Some(after) = after else { return };
        let is_forged = key.owner != own && self.witness.is_honest(key.owner);
        if is_forged && !self.witness.order.is_genuine(key, after.head) {
            let (version, kind) = (after.head.version, &key.kind);
            self.violate("G4", format!("n{name} took version {version} of {kind} of {owner}, who never wrote it"));
        }
        let customers = (self.witness.customer_of.get(&key.owner), self.witness.customer_of.get(&own));
        if let (Some(theirs), Some(ours)) = customers
            && theirs != ours
        {
            self.violate("C1", format!("n{name} took a {} of {owner}, who belongs to another customer", key.kind));
        }
    }

    /// R2: a tombstone goes only when every peer that is not removed has it.
    fn check_collection(&mut self, n: usize, change: &Change) {
        let Some(before) = &change.before else { return };
        let standing = self.nodes[n].disk.revocations().map(|r| r.standing(change.key.owner, None));
        let is_trusted = self.nodes[n].disk.trusted_key(change.key.owner).is_some();
        if !is_trusted || !standing.is_ok_and(|s| s == Standing::Clear) {
            return;
        }
        sometimes!("a tombstone is collected");
        // Later a peer may have been readmitted that had not counted: the floor resets it.
        if !self.witness.collected.insert((change.key.clone(), before.head.version)) {
            return;
        }
        let name = n + 1;
        let owner = self.node_of_peer(change.key.owner);
        let removed = owner.map(|owner| self.nodes[owner].disk.revoked_identities().unwrap_or_default());
        let trusted = self.nodes[n].disk.trusted_keys();
        for (peer, key) in trusted {
            if removed.as_ref().is_some_and(|removed| removed.contains(&(peer, key))) {
                // The owner knows of a removal that this node will hear of.
                continue;
            }
            let Some(other) = self.node_of_peer(peer).filter(|other| *other != n) else { continue };
            let held = self.nodes[other].disk.read(|s| s.records.get(&change.key).map(|h| (h.head, h.record.deleted)));
            let lags = held.is_some_and(|(head, deleted)| head < before.head && !deleted);
            // It had it, and acknowledged it, on a disk that it has lost since: the floor resets what it holds now.
            let had = (other, change.key.clone(), before.head.version);
            let has_lost = self.witness.wiped.contains(&other) && self.witness.held_tombstones.contains(&had);
            if lags && !has_lost && !self.is_laggard(change.key.owner, peer) {
                let (kind, owner) = (&change.key.kind, self.peer_name(change.key.owner));
                let what =
                    format!("n{name} collected a tombstone ({kind} of {owner}) that n{} has not seen", other + 1);
                self.violate("R2", what);
            }
        }
    }

    /// Whether the owner has not heard of the peer for 30 days: it is reset when it returns.
    fn is_laggard(&self, owner: PeerId, peer: PeerId) -> bool {
        let Some(owner) = self.node_of_peer(owner).map(|n| &self.nodes[n]) else { return false };
        let mono = owner.clock.mono(self.now);
        let view = owner.member().and_then(|member| member.gossip.peer_view(peer));
        let since = view.and_then(|view| view.last_seen).unwrap_or_default();
        mono - since >= LAGGARD_AFTER
    }

    /// R1: nothing of a removed peer is read; R4: only an operator brings it back.
    fn check_removal(&mut self, n: usize, revoking: bool) {
        let has_any = self.nodes[n].disk.read(|s| s.records.keys().any(|k| k.kind == kind::REVOCATION));
        if !has_any {
            return;
        }
        let disk = &self.nodes[n].disk;
        let (Ok(revocations), trusted) = (disk.revocations(), disk.trusted_keys()) else { return };
        let own = self.nodes[n].id();
        let mut wrong: Vec<(PeerId, &'static str)> = Vec::new();
        let mut standing = Vec::new();
        for (peer, key) in revocations.subjects() {
            if revocations.standing(peer, Some(&key)) == Standing::Clear {
                self.witness.knew.remove(&(n, peer));
                continue;
            }
            standing.push((peer, key));
            let is_trusted = |(id, k): (&PeerId, &PublicKey)| *id != own && (*id == peer || *k == key);
            if peer != own && trusted.iter().any(is_trusted) {
                wrong.push((peer, "is trusted"));
            }
        }
        for (peer, _) in &standing {
            self.witness.knew.insert((n, *peer));
        }
        if revoking {
            self.read_what_is_void(n, &standing, &mut wrong);
        }
        for (peer, how) in wrong {
            let what = format!("{} is removed and {how} at n{}", self.peer_name(peer), n + 1);
            self.violate("R1", what);
        }
    }

    fn read_what_is_void(&self, n: usize, removed: &[(PeerId, PublicKey)], wrong: &mut Vec<(PeerId, &'static str)>) {
        let disk = &self.nodes[n].disk;
        let own = self.nodes[n].id();
        let Ok(revocations) = disk.revocations() else { return };
        disk.read(|s| {
            for (peer, key) in removed.iter().filter(|(peer, _)| *peer != own) {
                let standing = revocations.standing(*peer, Some(key));
                if s.records.keys().any(|k| k.owner == *peer && !standing.keeps(&k.kind)) {
                    wrong.push((*peer, "has records"));
                }
            }
        });
    }

    /// C1, H1: trust only within one customer, and only in identities that exist; past grace in nobody new.
    fn check_trust(&mut self, n: usize, is_first_look: bool) {
        let own = self.witness.customer_of.get(&self.nodes[n].id()).copied();
        let mut wrong = Vec::new();
        let trusted = self.nodes[n].disk.trusted_keys();
        let known = self.witness.trusted.entry(n).or_default();
        if !known.iter().eq(trusted.keys()) {
            let known = std::mem::replace(known, trusted.keys().copied().collect());
            let is_past_grace = self.nodes[n].member().is_some_and(|m| m.entitlement.state > State::GracePeriod);
            if is_past_grace && !is_first_look && trusted.keys().any(|peer| !known.contains(peer)) {
                wrong.push(("H1", format!("n{} takes a new peer in though its license is past grace", n + 1)));
            }
        }
        for (peer, key) in trusted {
            match self.node_of_peer(peer) {
                None => wrong.push(("H1", format!("n{} trusts {peer}, which nobody is", n + 1))),
                Some(other) if self.nodes[other].author.key.public() != key => {
                    wrong.push(("H1", format!("n{} holds a wrong key for n{}", n + 1, other + 1)));
                }
                Some(other) if self.witness.customer_of.get(&peer).copied() != own => {
                    wrong.push(("C1", format!("n{} trusts n{} of another customer", n + 1, other + 1)));
                }
                Some(_) => {}
            }
        }
        for (invariant, what) in wrong {
            self.violate(invariant, what);
        }
    }

    /// G7: nothing above the frame limit leaves.
    pub(in super::super) fn check_frame(&mut self, n: usize, bytes: usize) {
        if bytes > MESSAGE_MAX_BYTES {
            self.violate("G7", format!("n{} sends {bytes} bytes", n + 1));
        }
    }

    pub(in super::super) fn witness_crash(&mut self, n: usize) {
        self.witness.marks.remove(&n);
        let died_over_it = self.check_whole_transaction(n);
        if let Some(merge) = self.witness.merging.remove(&n).filter(|_| died_over_it) {
            self.check_torn_merge(n, &merge);
        }
    }

    pub(in super::super) fn witness_removal(&mut self, n: usize, peer: PeerId) {
        self.witness.removed.insert(peer, self.now);
        self.witness.knew.insert((n, peer));
        self.forget_membership(peer);
    }

    pub(in super::super) fn witness_left(&mut self, n: usize) {
        let own = self.nodes[n].id();
        self.witness.removed.insert(own, self.now);
        self.witness.left.insert(n);
        self.forget_membership(own);
    }

    pub(in super::super) fn witness_readmission(&mut self, _n: usize, peer: PeerId) {
        self.witness.readmitted.insert(peer, self.now);
    }

    /// R4, C1 as trust begins.
    pub(in super::super) fn witness_accept(&mut self, n: usize, peer: PeerId, readmitted: bool, by_operator: bool) {
        if by_operator {
            // Asked for before the removal and done after it: the later of two that overlap.
            self.witness_readmission(n, peer);
        }
        if readmitted && !by_operator {
            self.violate("R4", format!("n{} readmits {} and no operator asked", n + 1, self.peer_name(peer)));
        }
        let removed = self.witness.removed.get(&peer);
        let readmission = self.witness.readmitted.get(&peer);
        let was_known = self.witness.knew.contains(&(n, peer));
        if was_known && removed.is_some_and(|at| readmission.is_none_or(|back| back < at)) {
            self.violate("R4", format!("n{} trusts {} again, and no operator asked", n + 1, self.peer_name(peer)));
        }
        self.witness_membership(n, peer);
    }
}
