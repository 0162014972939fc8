//! What orders records: versions and hashes, whatever clocks say and in whatever order records come.

use super::super::{
    ledger::{Change, Held},
    lifecycle::facts_of,
    world::{World, derive},
};
use crate::sometimes;
use arctic::{
    gossip::{Gossip, Local},
    membership::{Ledger, LedgerView, MemoryLedger, Origin},
    model::{PeerId, Rng},
    wire::{
        gossip::Digests,
        record::{Record, RecordHead, RecordKey, kind},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Updates of one node that are merged once more, in other orders, each time it is asked.
const REPLAYED_MAX_UPDATES: usize = 96;
/// One in so many commits of a world is followed by that.
const COMMITS_REPLAYED_ONE_IN: u64 = 1024;
/// Larger worlds are about other things.
const REPLAYED_MAX_NODES: usize = 64;
/// One in so many own records has its signature looked at.
const WRITTEN_LOOKED_AT_ONE_IN: u64 = 4;

/// One version of one record, by its contents.
#[derive(Debug, Default)]
pub(in super::super) struct Contents {
    /// Contents that the owner committed,
    pub genuine: BTreeSet<[u8; 32]>,
    /// and those that anyone has held, with the last node that came to hold each.
    seen: BTreeSet<[u8; 32]>,
}

/// What is known of the owners' writing.
#[derive(Debug, Default)]
pub struct Order {
    /// Every content that anyone has held.
    contents: BTreeMap<RecordKey, BTreeMap<u64, Contents>>,
    /// The highest version that anyone has held of an owner.
    highest: BTreeMap<PeerId, u64>,
    /// The highest version that a node has given on the disk it has.
    given: BTreeMap<usize, u64>,
    /// Versions of which there are two contents, with the largest hash that each node has held since.
    conflicts: BTreeMap<(RecordKey, u64), BTreeMap<usize, [u8; 32]>>,
    /// Contents that gave way to another one of their version, by node and boot.
    gave_way: BTreeMap<(usize, u64), u64>,
    /// All that a node has taken or written on the disk it has, by record.
    updates: BTreeMap<usize, BTreeMap<RecordKey, Vec<Arc<Record>>>>,
    commits: u64,
}

impl Order {
    /// Another disk is in the node.
    pub(super) fn forget(&mut self, n: usize) {
        self.given.remove(&n);
        self.updates.remove(&n);
        for held in self.conflicts.values_mut() {
            held.remove(&n);
        }
    }

    pub(super) fn is_genuine(&self, key: &RecordKey, head: RecordHead) -> bool {
        let contents = self.contents.get(key).and_then(|versions| versions.get(&head.version));
        contents.is_some_and(|contents| contents.genuine.contains(&head.hash))
    }

    fn note_content(&mut self, key: &RecordKey, head: RecordHead, is_own: bool) -> bool {
        if !self.contents.contains_key(key) {
            self.contents.insert(key.clone(), BTreeMap::new());
        }
        let Some(versions) = self.contents.get_mut(key) else { return false };
        let contents = versions.entry(head.version).or_default();
        if is_own {
            contents.genuine.insert(head.hash);
        }
        let is_another = contents.seen.insert(head.hash) && contents.seen.len() > 1;
        let highest = self.highest.entry(key.owner).or_default();
        *highest = (*highest).max(head.version);
        is_another
    }
}

impl World {
    /// G5, G8 and H3 at a change of one record of node `n`; the first look after a start cannot say who counted what.
    pub(super) fn check_order(&mut self, n: usize, change: &Change, is_first_look: bool) {
        let Some(after) = &change.after else {
            if let Some(of_node) = self.witness.order.updates.get_mut(&n) {
                of_node.remove(&change.key);
            }
            return;
        };
        let is_own = change.key.owner == self.nodes[n].id();
        if is_own && after.origin == Origin::Written && change.before.as_ref() != Some(after) {
            self.check_given(n, after);
        }
        if self.witness.order.note_content(&change.key, after.head, is_own) {
            self.note_conflict(&change.key, after.head.version);
        }
        if let Some(before) = change.before.as_ref().filter(|before| before.head.version == after.head.version) {
            self.check_equal_versions(n, change, before, after, is_first_look);
        }
        if !self.witness.order.conflicts.is_empty() {
            let at = (change.key.clone(), after.head.version);
            if let Some(held) = self.witness.order.conflicts.get_mut(&at) {
                let largest = held.entry(n).or_insert(after.head.hash);
                *largest = (*largest).max(after.head.hash);
            }
        }
        if self.nodes.len() <= REPLAYED_MAX_NODES {
            self.note_update(n, &change.key, after);
        }
    }

    /// G8: versions count the writes of their owner, so no clock has a part in them.
    fn check_given(&mut self, n: usize, after: &Held) {
        let (version, owner) = (after.head.version, after.record.key.owner);
        let before = self.witness.order.given.insert(n, version);
        let highest = self.witness.order.highest.get(&owner).copied().unwrap_or_default();
        let kind = &after.record.key.kind;
        if let Some(before) = before.filter(|before| *before >= version) {
            self.violate("G8", format!("n{} writes version {version} of a {kind} after version {before}", n + 1));
        }
        if version > highest + 1 && !self.witness.hostile.contains(&owner) {
            self.violate("G8", format!("n{} writes version {version} of a {kind}, and {highest} was the last", n + 1));
        }
        if version.is_multiple_of(WRITTEN_LOOKED_AT_ONE_IN) {
            self.check_written_signature(n, &after.record, &after.head.hash);
        }
    }

    /// G5: of two contents of one version the larger hash stays, and the conflict is counted.
    fn check_equal_versions(&mut self, n: usize, change: &Change, before: &Held, after: &Held, is_first_look: bool) {
        let (key, version) = (&change.key, after.head.version);
        if after.head.hash == before.head.hash {
            return;
        }
        sometimes!("of two contents of one version the larger hash wins");
        if after.head.hash < before.head.hash {
            let owner = self.peer_name(key.owner);
            let what = format!("n{} lets the smaller hash win, in version {version} of {} of {owner}", n + 1, key.kind);
            self.violate("G5", what);
        }
        // Those may have come with a handshake or a refusal.
        let is_gossiped = !matches!(key.kind.as_str(), kind::PEER | kind::REVOCATION | kind::READMISSION);
        if is_first_look || !is_gossiped || key.owner == self.nodes[n].id() {
            return;
        }
        let at = (n, self.nodes[n].boots);
        let gave_way = self.witness.order.gave_way.entry(at).or_default();
        *gave_way += 1;
        let (happened, member) = (*gave_way, self.nodes[n].member());
        if let Some(counted) = member.map(|m| m.gossip.drops().equivocations).filter(|counted| *counted < happened) {
            self.violate("G5", format!("n{} counts {counted} of {happened} conflicts of equal versions", n + 1));
        }
    }

    /// There are two contents of one version: what everyone holds of it is noted from here on.
    fn note_conflict(&mut self, key: &RecordKey, version: u64) {
        let mut held = BTreeMap::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let head = node.disk.read(|s| s.records.get(key).map(|held| held.head));
            held.extend(head.filter(|head| head.version == version).map(|head| (n, head.hash)));
        }
        let known = self.witness.order.conflicts.entry((key.clone(), version)).or_default();
        for (n, hash) in held {
            let largest = known.entry(n).or_insert(hash);
            *largest = (*largest).max(hash);
        }
    }

    /// G5 at rest, of two nodes that trust each other: what `a` holds of a version is no smaller than what `b` has held.
    pub(super) fn smaller_hash(&self, a: usize, b: usize) -> Option<String> {
        for ((key, version), held) in &self.witness.order.conflicts {
            let Some(seen) = held.get(&b) else { continue };
            let head = self.nodes[a].disk.read(|s| s.records.get(key).map(|held| held.head));
            if head.is_some_and(|head| head.version == *version && head.hash < *seen) {
                let owner = self.peer_name(key.owner);
                let what = format!("n{} holds a smaller hash than n{} has held", a + 1, b + 1);
                return Some(format!("{what}, in version {version} of {} of {owner}", key.kind));
            }
        }
        None
    }

    fn note_update(&mut self, n: usize, key: &RecordKey, after: &Held) {
        if !self.witness.order.updates.contains_key(&n) {
            let held = self.nodes[n].disk.read(|s| s.records.clone());
            let all = held.into_iter().map(|(key, held)| (key, vec![held.record])).collect();
            self.witness.order.updates.insert(n, all);
        }
        let Some(of_node) = self.witness.order.updates.get_mut(&n) else { return };
        match of_node.get_mut(key) {
            Some(updates) => updates.push(after.record.clone()),
            None => drop(of_node.insert(key.clone(), vec![after.record.clone()])),
        }
    }

    /// G2 now and then, after a commit of node `n`.
    pub(super) fn sample_merge(&mut self, n: usize) {
        self.witness.order.commits += 1;
        if self.witness.order.commits.is_multiple_of(COMMITS_REPLAYED_ONE_IN) {
            self.check_merge_order(n);
        }
    }

    /// G2: merging what a node has merged in other orders, and some of it twice, comes to what the node holds.
    pub(in super::super) fn check_merge_order(&mut self, n: usize) {
        let mut rng = Rng::from_seed(derive(self.options.seed, "order", self.steps));
        let updates = self.some_updates(n, &mut rng);
        // A page that was flipped was not merged.
        if updates.is_empty() || !self.nodes[n].disk.is_sound() {
            return;
        }
        let mut other = updates.clone();
        other.extend(updates.iter().step_by(2).cloned());
        shuffle(&mut other, &mut rng);
        let keys: BTreeSet<&RecordKey> = updates.iter().map(|record| &record.key).collect();
        let held: Vec<Arc<Record>> = self.nodes[n]
            .disk
            .read(|s| keys.iter().filter_map(|key| s.records.get(*key)).map(|held| held.record.clone()).collect());
        sometimes!(other.len() > held.len() + updates.len() / 2, "what was merged is merged in another order");
        let [is, straight, shuffled] = [&held, &updates, &other].map(|records| self.digests_of(n, records));
        let name = n + 1;
        if is != straight || is != shuffled {
            self.violate("G2", format!("n{name} merges {} updates to another state in another order", updates.len()));
        }
        let ledger = MemoryLedger::default();
        let merged = other.iter().try_for_each(|record| ledger.put_verified(record).map(drop));
        let differs = |record: &&Arc<Record>| ledger.record(&record.key).ok().flatten().as_ref() != Some(&***record);
        if merged.is_err() || held.iter().any(|record| differs(&record)) {
            self.violate("G2", format!("n{name} holds another state than its ledger in another order"));
        }
    }

    /// All updates of some records, in their order.
    fn some_updates(&self, n: usize, rng: &mut Rng) -> Vec<Arc<Record>> {
        let Some(of_node) = self.witness.order.updates.get(&n) else { return Vec::new() };
        // Records with a history first: the others say little.
        let (old, young): (Vec<_>, Vec<_>) = of_node.values().partition(|updates| updates.len() > 1);
        let mut chosen = Vec::new();
        for of_key in [old, young] {
            let from = rng.below(of_key.len() as u64) as usize;
            for updates in of_key[from..].iter().chain(&of_key[..from]) {
                if chosen.len() + updates.len() > REPLAYED_MAX_UPDATES {
                    break;
                }
                chosen.extend(updates.iter().cloned());
            }
        }
        chosen
    }

    /// The digests of a machine that is given the records in this order.
    fn digests_of(&self, n: usize, records: &[Arc<Record>]) -> Option<Digests> {
        let node = &self.nodes[n];
        let local = Local { peer_id: node.id(), public_key: node.author.key.public() };
        let entitlement = &node.member()?.entitlement;
        let wall = node.clock.unix(self.now);
        let facts = facts_of(&node.disk, &node.instance(), &node.author, entitlement, wall, None);
        let trusted = node.disk.trusted_keys();
        let rng = Rng::from_seed([0; 32]);
        Some(Gossip::sharing(local, facts, records.iter().cloned(), &trusted, rng, node.clock.mono(self.now)).digests())
    }
}

fn shuffle<T>(list: &mut [T], rng: &mut Rng) {
    for at in (1..list.len()).rev() {
        list.swap(at, rng.below(at as u64 + 1) as usize);
    }
}
