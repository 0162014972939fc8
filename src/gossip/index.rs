//! What is held: the newest version of each record, with the digest of each registry.

use super::trie::{Trie, View};
use crate::{
    model::PeerId,
    wire::{
        gossip::{
            Digest, Digests, ENVELOPE_MAX_BYTES, Registry,
            range::{Part, Path, Prefix, Salt},
            whole::Sum,
        },
        record::{Record, RecordHead, RecordKey},
    },
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A record and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Shared with the messages that carry it.
    pub record: Arc<Record>,
    pub head: RecordHead,
    /// Bytes of JSON, rounded up.
    pub wire_bytes: usize,
    pub path: Path,
}

impl Entry {
    /// None for a body without a canonical form.
    pub fn new(record: impl Into<Arc<Record>>) -> Option<Self> {
        let record = record.into();
        let canonical = crate::wire::canonical::to_canonical(&record.body).ok()?;
        let head = RecordHead { version: record.version, hash: Sha256::digest(&canonical).into() };
        let path = Path::of(&record.key);
        Some(Self { record, head, wire_bytes: canonical.len() + ENVELOPE_MAX_BYTES, path })
    }

    /// What it adds to the sum over its owner's records.
    fn term(&self) -> u64 {
        let mut hasher = Sha256::new_with_prefix(self.path.0);
        hasher.update(self.head.version.to_be_bytes());
        hasher.update(self.head.hash);
        hasher.finalize()[..8].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
    }
}

/// Count of live records of the main kind, and the digest over all of the registry, tombstones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryState {
    pub count: usize,
    pub digest: Digest,
}

/// A join semilattice: [`Index::offer`] keeps the larger head of each key, in whatever order records come.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    shelves: [Trie; Registry::ALL.len()],
    owners: BTreeMap<PeerId, Owned>,
    tombstones: BTreeSet<(PeerId, u64, RecordKey)>,
    /// None after a change.
    digests: Option<Arc<Digests>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Owned {
    pub records: u32,
    pub bytes: u32,
    /// Over all of them.
    pub sum: Sum,
    /// Everything that the owner wrote up to this version is held (cluster.md §7); 0 if that is not known.
    pub complete: u64,
}

impl Owned {
    fn put(&mut self, entry: &Entry) {
        self.records += 1;
        self.bytes = self.bytes.saturating_add(entry.wire_bytes as u32);
        self.sum.0 = self.sum.0.wrapping_add(entry.term());
    }

    fn take(&mut self, entry: &Entry) {
        self.records -= 1;
        self.bytes = self.bytes.saturating_sub(entry.wire_bytes as u32);
        self.sum.0 = self.sum.0.wrapping_sub(entry.term());
    }
}

impl Index {
    pub fn shelf(&self, registry: Registry) -> &Trie {
        &self.shelves[registry as usize]
    }

    fn shelf_mut(&mut self, registry: Registry) -> &mut Trie {
        &mut self.shelves[registry as usize]
    }

    pub fn get(&self, key: &RecordKey) -> Option<&Entry> {
        self.shelf(Registry::of(&key.kind)).get(key)
    }

    pub fn head(&self, key: &RecordKey) -> Option<RecordHead> {
        self.get(key).map(|entry| entry.head)
    }

    /// Keeps `entry` if its head is larger than the held one; says whether it did.
    pub fn offer(&mut self, entry: Entry) -> bool {
        let owner = entry.record.key.owner;
        let shelf = self.shelf_mut(Registry::of(&entry.record.key.kind));
        if !entry.head.is_news(shelf.get(&entry.record.key).map(|held| held.head)) {
            return false;
        }
        let before = shelf.insert(entry.clone());
        let owned = self.owners.entry(owner).or_default();
        // First: of one version there may be both, where an old copy of a database was used again.
        if let Some(before) = before {
            owned.take(&before);
            self.tombstones.remove(&tombstone(&before));
        }
        owned.put(&entry);
        if entry.record.deleted {
            self.tombstones.insert(tombstone(&entry));
        }
        self.digests = None;
        true
    }

    pub fn remove(&mut self, key: &RecordKey) -> Option<Entry> {
        let entry = self.shelf_mut(Registry::of(&key.kind)).remove(key)?;
        self.digests = None;
        if let Some(owned) = self.owners.get_mut(&key.owner) {
            owned.take(&entry);
        }
        self.tombstones.remove(&tombstone(&entry));
        Some(entry)
    }

    /// Versions and keys, the oldest first.
    pub fn tombstones(&self, owner: PeerId) -> impl Iterator<Item = (u64, &RecordKey)> {
        let first = (owner, 0, RecordKey { kind: String::new(), id: String::new(), owner });
        self.tombstones.range(first..).take_while(move |(of, ..)| *of == owner).map(|(_, version, key)| (*version, key))
    }

    pub fn set_complete(&mut self, owner: PeerId, complete: u64) {
        self.owners.entry(owner).or_default().complete = complete;
    }

    pub fn owned(&self, owner: PeerId) -> Owned {
        self.owners.get(&owner).copied().unwrap_or_default()
    }

    pub fn owner_count(&self) -> usize {
        self.owners.len()
    }

    pub fn owners(&self) -> impl Iterator<Item = (PeerId, Owned)> {
        self.owners.iter().map(|(owner, owned)| (*owner, *owned))
    }

    /// In the order of their paths.
    pub fn of_registry(&self, registry: Registry) -> impl Iterator<Item = &Entry> {
        self.shelf(registry).iter()
    }

    /// What this side says of a range: its records if they are few, else digests.
    pub fn part(&self, registry: Registry, prefix: Prefix, salt: &Salt) -> Part {
        match self.shelf(registry).view(&prefix) {
            View::Branch(digests) => Part::Branch(prefix, Box::new(digests.map(|digest| salt.short(&digest)))),
            View::Leaf(entries) => Part::Leaf(prefix, entries.iter().map(|e| salt.head(&e.path, &e.head)).collect()),
        }
    }

    pub fn keys_of_owners(&self, owners: &BTreeSet<PeerId>) -> Vec<RecordKey> {
        let keys = self.shelves.iter().flat_map(|shelf| shelf.iter().map(|entry| &entry.record.key));
        keys.filter(|key| owners.contains(&key.owner)).cloned().collect()
    }

    /// Computes the digests that changes have left open: after each change, or they are computed at each use.
    pub fn settle_digests(&mut self) {
        if self.digests.is_none() {
            for shelf in &mut self.shelves {
                shelf.settle();
            }
            self.digests = Some(Arc::new(self.open_digests()));
        }
    }

    fn open_digests(&self) -> Digests {
        Digests {
            peers: self.shelf(Registry::Peers).digest(),
            services: self.shelf(Registry::Services).digest(),
            credentials: self.shelf(Registry::Credentials).digest(),
            revocations: self.shelf(Registry::Revocations).digest(),
            cluster: self.shelf(Registry::Cluster).digest(),
        }
    }

    pub fn digests(&self) -> Digests {
        *self.shared_digests()
    }

    /// The same; peers that agree share one copy.
    pub fn shared_digests(&self) -> Arc<Digests> {
        self.digests.clone().unwrap_or_else(|| Arc::new(self.open_digests()))
    }

    pub fn registry_state(&self, registry: Registry) -> RegistryState {
        let live = |e: &&Entry| !e.record.deleted && e.record.key.kind == registry.main_kind();
        RegistryState { count: self.of_registry(registry).filter(live).count(), digest: self.digests().get(registry) }
    }
}

fn tombstone(entry: &Entry) -> (PeerId, u64, RecordKey) {
    (entry.record.key.owner, entry.head.version, entry.record.key.clone())
}
