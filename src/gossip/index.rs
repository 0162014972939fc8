//! What is held: the newest version of each record, with the digest of each registry.

use crate::{
    model::PeerId,
    wire::{
        gossip::{Digest, Digests, ENVELOPE_MAX_BYTES, KeyedHead, Registry},
        record::{Record, RecordHead, RecordKey},
    },
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

/// A record and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub record: Record,
    pub head: RecordHead,
    /// Bytes of JSON, rounded up.
    pub wire_bytes: usize,
}

impl Entry {
    /// None for a body without a canonical form.
    pub fn new(record: Record) -> Option<Self> {
        let canonical = crate::wire::canonical::to_canonical(&record.body).ok()?;
        let head = RecordHead { version: record.version, hash: Sha256::digest(&canonical).into() };
        Some(Self { record, head, wire_bytes: canonical.len() + ENVELOPE_MAX_BYTES })
    }
}

/// Count of live records of the main kind, and the digest over all of the registry, tombstones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryState {
    pub count: usize,
    pub digest: Digest,
}

#[derive(Debug, Clone, Default)]
struct Shelf {
    entries: BTreeMap<RecordKey, Entry>,
    /// None after a change.
    digest: Option<Digest>,
}

/// A join semilattice: [`Index::offer`] keeps the larger head of each key, in whatever order records come.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    shelves: BTreeMap<Registry, Shelf>,
    owners: BTreeMap<PeerId, Owned>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Owned {
    pub records: usize,
    /// The highest version held; gaps below it are possible.
    pub highest: u64,
}

impl Index {
    pub fn get(&self, key: &RecordKey) -> Option<&Entry> {
        self.shelves.get(&Registry::of(&key.kind))?.entries.get(key)
    }

    pub fn head(&self, key: &RecordKey) -> Option<RecordHead> {
        self.get(key).map(|entry| entry.head)
    }

    /// Keeps `entry` if its head is larger than the held one; says whether it did.
    pub fn offer(&mut self, entry: Entry) -> bool {
        let shelf = self.shelves.entry(Registry::of(&entry.record.key.kind)).or_default();
        let held = shelf.entries.get(&entry.record.key);
        if held.is_some_and(|held| held.head >= entry.head) {
            return false;
        }
        let owned = self.owners.entry(entry.record.key.owner).or_default();
        owned.records += usize::from(held.is_none());
        owned.highest = owned.highest.max(entry.head.version);
        shelf.digest = None;
        shelf.entries.insert(entry.record.key.clone(), entry);
        true
    }

    pub fn remove(&mut self, key: &RecordKey) {
        let Some(shelf) = self.shelves.get_mut(&Registry::of(&key.kind)) else { return };
        if shelf.entries.remove(key).is_some() {
            shelf.digest = None;
            if let Some(owned) = self.owners.get_mut(&key.owner) {
                owned.records -= 1;
            }
        }
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

    pub fn of_registry(&self, registry: Registry) -> impl Iterator<Item = &Entry> {
        self.shelves.get(&registry).into_iter().flat_map(|shelf| shelf.entries.values())
    }

    /// Entries of a registry after `after`, up to and including `through`.
    pub fn range<'a>(
        &'a self,
        registry: Registry,
        after: Option<&RecordKey>,
        through: Option<&RecordKey>,
    ) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
        let to = through.map_or(Bound::Unbounded, |key| Bound::Included(key.clone()));
        // BTreeMap::range panics on an empty or reversed range.
        let sound = after.zip(through).is_none_or(|(after, through)| after < through);
        let shelf = self.shelves.get(&registry).filter(|_| sound);
        shelf.into_iter().flat_map(move |shelf| shelf.entries.range((from.clone(), to.clone())).map(|(_, entry)| entry))
    }

    pub fn keys_of_owners(&self, owners: &BTreeSet<PeerId>) -> Vec<RecordKey> {
        let keys = self.shelves.values().flat_map(|shelf| shelf.entries.keys());
        keys.filter(|key| owners.contains(&key.owner)).cloned().collect()
    }

    /// Computes the digests that changes have left open; [`Index::digests`] needs it after each change.
    pub fn settle_digests(&mut self) {
        for registry in Registry::ALL {
            let shelf = self.shelves.entry(registry).or_default();
            if shelf.digest.is_none() {
                shelf.digest = Some(digest(shelf.entries.values()));
            }
        }
    }

    fn digest(&self, registry: Registry) -> Digest {
        match self.shelves.get(&registry) {
            Some(Shelf { digest: Some(digest), .. }) => *digest,
            _ => digest(self.of_registry(registry)),
        }
    }

    pub fn digests(&self) -> Digests {
        Digests {
            peers: self.digest(Registry::Peers),
            services: self.digest(Registry::Services),
            credentials: self.digest(Registry::Credentials),
            revocations: self.digest(Registry::Revocations),
            cluster: self.digest(Registry::Cluster),
        }
    }

    pub fn registry_state(&self, registry: Registry) -> RegistryState {
        let live = |e: &&Entry| !e.record.deleted && e.record.key.kind == registry.main_kind();
        RegistryState { count: self.of_registry(registry).filter(live).count(), digest: self.digest(registry) }
    }
}

pub(super) fn keyed_head(entry: &Entry) -> KeyedHead {
    KeyedHead { key: entry.record.key.clone(), head: entry.head }
}

fn digest<'a>(entries: impl Iterator<Item = &'a Entry>) -> Digest {
    let mut hasher = Sha256::new();
    for entry in entries {
        let key = &entry.record.key;
        for text in [key.kind.as_bytes(), key.id.as_bytes(), key.owner.to_string().as_bytes()] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
        hasher.update(entry.head.version.to_be_bytes());
        hasher.update(entry.head.hash);
    }
    Digest(hasher.finalize().into())
}
