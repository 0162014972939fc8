//! What operators were told stays true: a write that was acknowledged is there, what was deleted is not, and members stay
//! members. Only its owner's disk, where nobody else had it, takes such a promise along (cluster.md §7).

use super::super::{
    ledger::{Change, Held},
    world::World,
};
use arctic::{
    gossip::Standing,
    membership::LedgerView,
    model::PeerId,
    wire::record::{FloorBody, RecordHead, RecordKey, kind},
};

impl World {
    /// An operator was told that its write is done: what the node wrote is durable from here on.
    pub(in super::super) fn witness_ack(&mut self, n: usize) {
        let own = self.nodes[n].id();
        let heads: Vec<(RecordKey, RecordHead)> = self.nodes[n].disk.read(|s| {
            let own = s.records.iter().filter(|(key, held)| key.owner == own && !held.record.deleted);
            own.map(|(key, held)| (key.clone(), held.head)).collect()
        });
        // What was acknowledged before and is gone stays in the list: it is missed.
        self.witness.acked.entry(n).or_default().extend(heads);
    }

    pub(in super::super) fn witness_birth(&mut self, n: usize) {
        self.witness_ack(n);
    }

    pub(in super::super) fn witness_start(&mut self, n: usize) {
        self.witness.started.insert(n, self.now);
        self.witness.seen_revision.remove(&n);
        self.check_disk_is_sound(n);
    }

    /// D1: an acknowledged own record that the disk of `n` does not hold.
    pub(super) fn lost_write(&self, n: usize) -> Option<String> {
        let acked = self.witness.acked.get(&n)?;
        // After a loss a peer may give back an earlier state of what was written since.
        let is_old = |held: RecordHead, acked: RecordHead| held < acked && !self.witness.wiped.contains(&n);
        self.nodes[n].disk.read(|s| {
            let is_lost = |(key, head): &(&_, &RecordHead)| {
                s.records.get(*key).is_none_or(|held| held.record.deleted || is_old(held.head, **head))
            };
            let (key, head) = acked.iter().find(is_lost)?;
            Some(format!("n{} lost version {} of its {}, which was acknowledged", n + 1, head.version, key.kind))
        })
    }

    /// D1: a reset drops no own record that an operator was told of; after a loss it may be replaced.
    pub(super) fn check_own_forgotten(&mut self, n: usize, key: &RecordKey, head: RecordHead) {
        if !self.witness.wiped.contains(&n) && self.witness.acked.get(&n).is_some_and(|acked| acked.contains_key(key)) {
            let (version, kind) = (head.version, &key.kind);
            self.violate("D1", format!("n{} forgot version {version} of its {kind}, which was acknowledged", n + 1));
        }
    }

    /// G3: whether a live record may only go from node `n`, where its owner is trusted, when the owner deletes it. A reset
    /// drops what was deleted, or lost by its owner, while a node was away.
    pub(super) fn ought_to_live(&self, n: usize, key: &RecordKey, head: RecordHead) -> bool {
        let Some(owner) = self.node_of_peer(key.owner) else { return true };
        // What an owner writes on a new disk, before it knows how far it once was, it writes anew above that.
        let is_reset = self.witness.wiped.contains(&owner) && head.version <= self.floor_at(n, key.owner);
        let stands = |held: &Held| !held.record.deleted && held.head >= head && !is_reset;
        let is_held = self.nodes[owner].disk.read(|s| s.records.get(key).is_some_and(stands));
        let was_deleted = self.witness.tombstones.get(key).is_some_and(|version| *version > head.version);
        let may_be_lost = self.witness.wiped.contains(&owner)
            || self.witness.left.contains(&owner)
            || self.witness.hostile.contains(&key.owner);
        is_held || !was_deleted && !may_be_lost
    }

    fn floor_at(&self, n: usize, owner: PeerId) -> u64 {
        let key = RecordKey { kind: kind::FLOOR.into(), id: owner.to_string(), owner };
        let through = |held: &Held| held.record.body_as::<FloorBody>().map(|floor| floor.through).unwrap_or(0);
        self.nodes[n].disk.read(|s| s.records.get(&key).map_or(0, through))
    }

    /// R1: a service that its owner deleted is read by nobody again who knew of it.
    pub(super) fn check_deletion(&mut self, n: usize, change: &Change) {
        let (key, own) = (&change.key, self.nodes[n].id());
        let is_service = key.kind == kind::SERVICE;
        match (&change.before, &change.after) {
            (_, Some(after)) if after.record.deleted => {
                let version = after.head.version;
                self.witness.held_tombstones.insert((n, key.clone(), version));
                if key.owner == own {
                    self.witness.tombstones.insert(key.clone(), version);
                    // What the node itself deleted may be collected.
                    if let Some(acked) = self.witness.acked.get_mut(&n) {
                        acked.remove(key);
                    }
                }
                if is_service {
                    self.witness.knew_deleted.insert((n, key.clone()));
                    // What a copy of the node deleted is deleted when the node hears of it.
                    if key.owner == own && self.nodes[n].is_clone_of.is_none() {
                        self.witness.deleted.insert(key.clone());
                    }
                }
            }
            (_, Some(_)) if is_service && self.is_back(n, key) => {
                let owner = self.peer_name(key.owner);
                self.violate(
                    "R1",
                    format!("n{} reads {} of {owner} again, which it knew to be deleted", n + 1, key.id),
                );
            }
            (Some(before), None) if is_service && before.record.deleted => {
                // With its owner's removal all knowledge of it goes; a readmission begins anew.
                let disk = &self.nodes[n].disk;
                let is_clear = disk.revocations().is_ok_and(|r| r.standing(key.owner, None) == Standing::Clear);
                if !is_clear || disk.trusted_key(key.owner).is_none() {
                    self.witness.knew_deleted.remove(&(n, key.clone()));
                }
            }
            _ => {}
        }
    }

    fn is_back(&self, n: usize, key: &RecordKey) -> bool {
        let is_honest = self.witness.is_honest(key.owner);
        is_honest && self.witness.deleted.contains(key) && self.witness.knew_deleted.contains(&(n, key.clone()))
    }

    /// R1 at rest: a deleted service that `n` reads, whose owner it trusts and is trusted by.
    pub(super) fn returned_service(&self, n: usize) -> Option<String> {
        // A removed peer goes on alone, perhaps with one that lost the removal; of one that a fault never leaves nothing comes.
        // So does one whose license ran out by a wrong clock of most of its peers.
        let is_member = |n: usize| !self.is_removed(n) && !self.outside.contains(&n) && !self.was_led_ahead(n);
        let is_close = |owner: usize| owner == n || self.trusts(n, owner) && self.trusts(owner, n) && is_member(owner);
        if !is_member(n) {
            return None;
        }
        let deleted = self.witness.deleted.iter().filter(|key| self.witness.is_honest(key.owner));
        for key in deleted {
            let Some(owner) = self.node_of_peer(key.owner).filter(|owner| is_close(*owner)) else { continue };
            if self.nodes[n].disk.read(|s| s.records.get(key).is_some_and(|held| !held.record.deleted)) {
                return Some(format!("n{} reads {} of n{}, who deleted it", n + 1, key.id, owner + 1));
            }
        }
        None
    }

    /// An operator wrote a service of node `n` after a loss had undone its deletion: it counts from here on.
    pub(in super::super) fn witness_service_written(&mut self, n: usize, id: &str) {
        let key = RecordKey { kind: kind::SERVICE.into(), id: id.into(), owner: self.nodes[n].id() };
        if self.witness.deleted.remove(&key) {
            self.witness.knew_deleted.retain(|(_, known)| *known != key);
        }
    }

    /// Another disk is in the node: what it had written and nobody else knows may be gone.
    pub(in super::super) fn witness_disk_replaced(&mut self, n: usize) {
        let own = self.nodes[n].id();
        let disk = &self.nodes[n].disk;
        if let Some(acked) = self.witness.acked.get_mut(&n) {
            acked.retain(|key, head| {
                let kept = disk.read(|s| s.records.get(key).filter(|held| !held.record.deleted).map(|held| held.head));
                kept.is_some_and(|kept| {
                    *head = kept.min(*head);
                    true
                })
            });
        }
        self.witness.order.forget(n);
        self.witness.trusted.remove(&n);
        self.witness.knew.retain(|(node, _)| *node != n);
        self.witness.knew_deleted.retain(|(node, _)| *node != n);
        self.witness.seen_revision.remove(&n);
        let mut deleted = std::mem::take(&mut self.witness.deleted);
        deleted.retain(|key| key.owner != own || self.witness.knew_deleted.iter().any(|(_, known)| known == key));
        self.witness.deleted = deleted;
        let still_trusted = |other: usize| self.nodes[other].disk.trusted_key(own).is_some();
        let mut members = std::mem::take(&mut self.witness.members);
        members.retain(|(a, b)| (*a != n || still_trusted(*b)) && (*b != n || still_trusted(*a)));
        self.witness.members = members;
    }

    /// Two nodes that have come to trust each other are members of one cluster.
    pub(super) fn witness_membership(&mut self, n: usize, peer: PeerId) {
        let Some(other) = self.node_of_peer(peer).filter(|_| self.nodes[n].is_clone_of.is_none()) else { return };
        let trust = |a: usize, b: usize| self.nodes[a].disk.trusted_key(self.nodes[b].id()).is_some();
        if trust(n, other) && trust(other, n) {
            self.witness.members.insert((n.min(other), n.max(other)));
        }
    }

    pub(super) fn forget_membership(&mut self, peer: PeerId) {
        if let Some(n) = self.node_of_peer(peer) {
            self.witness.members.retain(|(a, b)| *a != n && *b != n);
        }
    }

    /// R4 at rest: only a removal ends trust between members.
    pub(super) fn lost_member(&self, core: &[usize]) -> Option<String> {
        // One whose license ran out by the clocks of others shakes no hands.
        let is_open = |n: usize| self.nodes[n].member().is_some() && !self.is_removed(n) && !self.was_led_ahead(n);
        let runs = |n: &usize| core.contains(n) && is_open(*n);
        let pairs = self.witness.members.iter().filter(|(a, b)| runs(a) && runs(b));
        for (a, b) in pairs.flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
            let (id, key) = (self.nodes[b].id(), self.nodes[b].author.key.public());
            let clear = |n: usize| {
                self.nodes[n].disk.revocations().is_ok_and(|r| r.standing(id, Some(&key)) == Standing::Clear)
            };
            // A removal that either of them knows of, though it came to one of them only.
            let other = (self.nodes[a].id(), self.nodes[a].author.key.public());
            let knows_removal = self.nodes[b].disk.revoked_identities().is_ok_and(|r| r.contains(&other));
            if !self.trusts(a, b) && clear(a) && !knows_removal && !self.has_filled_up(a) {
                return Some(format!("n{} trusts member n{} no more, and nobody removed it", a + 1, b + 1));
            }
        }
        None
    }
}
