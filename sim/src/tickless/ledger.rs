//! The store of a simulated node: records, peers and facts in memory, with what a disk does to them. A transaction is
//! whole or gone; what was not synced is gone after a crash.

use arctic::{
    license::{ClockSnapshot, LicenseDocument},
    membership::{ClusterFacts, IdentityConflict, Ledger, LedgerView, Origin, PeerRow, Put},
    model::{PeerId, PublicKey, Refused},
    planted::{Bug, planted},
    wire::record::{PeerBody, Record, RecordError, RecordHead, RecordKey, kind},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What the disk does with the transaction that is committed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Synced,
    /// Refused as a whole; nothing of it stays.
    Fails(&'static str),
    /// The same, but it reached the disk and could not be synced: unless another one is written over it, a power cut brings
    /// it back.
    FailsUnsurely(&'static str),
    /// Power goes before the sync: nothing stays, and the node is dead.
    DiesBefore,
    /// Power goes after the sync, before anyone hears of it.
    DiesAfter,
}

/// Why a transaction has no result.
#[derive(Debug, Clone, PartialEq)]
pub enum NoResult {
    Refused(Refused),
    Disk(&'static str),
    /// The node must be treated as crashed.
    Dead,
}

/// What can go wrong in memory.
#[derive(Debug)]
pub enum DiskError {
    Record(RecordError),
    IdentityConflict(IdentityConflict),
}

impl std::error::Error for DiskError {}

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DiskError::Record(e) => e.fmt(f),
            DiskError::IdentityConflict(e) => e.fmt(f),
        }
    }
}

impl From<RecordError> for DiskError {
    fn from(e: RecordError) -> Self {
        Self::Record(e)
    }
}

impl From<IdentityConflict> for DiskError {
    fn from(e: IdentityConflict) -> Self {
        Self::IdentityConflict(e)
    }
}

impl From<DiskError> for Refused {
    fn from(e: DiskError) -> Self {
        match e {
            DiskError::IdentityConflict(conflict) => conflict.into(),
            DiskError::Record(e) => Refused::internal(e),
        }
    }
}

/// A record with the head that orders it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub record: Arc<Record>,
    pub head: RecordHead,
    /// What a live `peer` record says, read once.
    pub peer: Option<Arc<PeerBody>>,
    pub origin: Origin,
}

impl Held {
    fn new(record: &Record, origin: Origin) -> Result<Self, RecordError> {
        let says_peer = record.key.kind == kind::PEER && !record.deleted;
        let peer = says_peer.then(|| record.body_as().ok().map(Arc::new)).flatten();
        Ok(Self { head: record.head()?, record: Arc::new(record.clone()), peer, origin })
    }
}

/// Facts of this host.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub cluster: Option<ClusterFacts>,
    pub own_version: u64,
    pub starts: u64,
    /// Names this disk's database.
    pub lineage: String,
    /// Owners whose records are still caught up with, and up to where they are complete.
    pub catching_up: BTreeMap<PeerId, u64>,
    pub contested: bool,
    /// The word by which it leaves is written, and what it had is not cleared yet.
    pub leaving: bool,
    pub license: Option<Arc<LicenseDocument>>,
    pub license_clock: Option<ClockSnapshot>,
}

/// All that survives a restart. Cheap to copy while records are shared.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub records: BTreeMap<RecordKey, Held>,
    pub peers: BTreeMap<PeerId, Arc<PeerRow>>,
    pub facts: Facts,
    /// A record on a page that was flipped.
    pub suspect: Option<RecordKey>,
}

impl State {
    /// Whether all that is written down is the same.
    pub fn holds_the_same(&self, other: &State) -> bool {
        let facts = |s: &State| (s.facts.cluster.clone(), s.facts.own_version, s.facts.catching_up.clone());
        self.records == other.records && self.peers == other.peers && facts(self) == facts(other)
    }

    /// As `View::taken_of` of the store.
    pub fn taken_of(&self, owner: PeerId) -> BTreeSet<RecordKey> {
        let taken = self.records.iter().filter(|(key, held)| key.owner == owner && held.origin == Origin::Taken);
        taken.map(|(key, _)| key.clone()).collect()
    }
}

/// One record before and after a transaction.
#[derive(Debug, Clone)]
pub struct Change {
    pub key: RecordKey,
    pub before: Option<Held>,
    pub after: Option<Held>,
}

/// What something was before, or is to be.
enum Undo {
    Record(RecordKey, Option<Held>),
    Peer(PeerId, Option<Arc<PeerRow>>),
    Facts(Box<Facts>),
}

#[derive(Default)]
struct Inner {
    state: State,
    /// What a crash takes back, newest last.
    unsynced: Vec<Undo>,
    /// What a transaction that failed may have left on the disk.
    unsure: Vec<Undo>,
    changes: Vec<Change>,
    revision: u64,
    /// What there was before and after a transaction over which the process died.
    dying: Option<Box<(State, State)>>,
}

/// The disk of one node.
#[derive(Default)]
pub struct Disk {
    inner: RefCell<Inner>,
}

impl Inner {
    fn set_record(&mut self, key: RecordKey, after: Option<Held>) {
        let before = match after.clone() {
            Some(held) => self.state.records.insert(key.clone(), held),
            None => self.state.records.remove(&key),
        };
        self.changes.push(Change { key: key.clone(), before: before.clone(), after });
        self.unsynced.push(Undo::Record(key, before));
    }

    fn set_peer(&mut self, id: PeerId, after: Option<Arc<PeerRow>>) {
        let before = match after {
            Some(row) => self.state.peers.insert(id, row),
            None => self.state.peers.remove(&id),
        };
        self.unsynced.push(Undo::Peer(id, before));
    }

    fn edit_facts(&mut self, edit: impl FnOnce(&mut Facts)) {
        let before = self.state.facts.clone();
        edit(&mut self.state.facts);
        self.unsynced.push(Undo::Facts(Box::new(before)));
    }

    fn roll_back(&mut self, to: usize) {
        for undo in self.unsynced.split_off(to).into_iter().rev() {
            match undo {
                Undo::Record(key, Some(held)) => drop(self.state.records.insert(key, held)),
                Undo::Record(key, None) => drop(self.state.records.remove(&key)),
                Undo::Peer(id, Some(row)) => drop(self.state.peers.insert(id, row)),
                Undo::Peer(id, None) => drop(self.state.peers.remove(&id)),
                Undo::Facts(facts) => self.state.facts = *facts,
            }
        }
    }

    /// What the transaction that began at `from` has made of everything it touched.
    fn made_since(&self, from: usize) -> Vec<Undo> {
        let made = |undo: &Undo| match undo {
            Undo::Record(key, _) => Undo::Record(key.clone(), self.state.records.get(key).cloned()),
            Undo::Peer(id, _) => Undo::Peer(*id, self.state.peers.get(id).cloned()),
            Undo::Facts(_) => Undo::Facts(Box::new(self.state.facts.clone())),
        };
        self.unsynced[from..].iter().map(made).collect()
    }

    /// What a failed transaction left on the disk is read by the next start.
    fn bring_back(&mut self) {
        for made in std::mem::take(&mut self.unsure) {
            match made {
                Undo::Record(key, held) => self.set_record(key, held),
                Undo::Peer(id, row) => self.set_peer(id, row),
                Undo::Facts(facts) => self.state.facts = *facts,
            }
        }
        self.unsynced.clear();
        self.revision += 1;
    }
}

impl Disk {
    /// Runs `f` in a transaction of the given fate.
    pub fn transaction<T>(&self, fate: Fate, f: impl FnOnce(&Disk) -> Result<T, Refused>) -> Result<T, NoResult> {
        let (before, changes) = {
            let inner = self.inner.borrow();
            (inner.unsynced.len(), inner.changes.len())
        };
        let dies = matches!(fate, Fate::DiesBefore | Fate::DiesAfter);
        let untouched = dies.then(|| self.snapshot());
        let outcome = f(self).map_err(NoResult::Refused);
        let mut inner = self.inner.borrow_mut();
        // What was in doubt before may be on the disk as well: that says nothing about this one.
        let untouched = untouched.filter(|_| inner.unsure.is_empty());
        inner.dying = untouched.map(|untouched| Box::new((untouched, inner.state.clone())));
        let stays = outcome.is_ok() && matches!(fate, Fate::Synced | Fate::DiesAfter);
        if !stays {
            if outcome.is_ok() && matches!(fate, Fate::FailsUnsurely(_)) {
                inner.unsure = inner.made_since(before);
            }
            inner.roll_back(before);
            inner.changes.truncate(changes);
        } else if inner.unsynced.len() > before {
            inner.unsure.clear();
            inner.revision += 1;
            if !planted(Bug::AckBeforeCommit) {
                inner.unsynced.clear();
            }
        }
        match fate {
            Fate::Synced => outcome,
            Fate::Fails(reason) | Fate::FailsUnsurely(reason) => outcome.and(Err(NoResult::Disk(reason))),
            Fate::DiesBefore | Fate::DiesAfter => Err(NoResult::Dead),
        }
    }

    /// What a lazy disk does in its own time.
    pub fn sync(&self) {
        self.inner.borrow_mut().unsynced.clear();
    }

    /// Power is gone: so is what was not synced.
    pub fn crash(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.roll_back(0);
        if !inner.unsure.is_empty() {
            inner.bring_back();
        }
    }

    pub fn snapshot(&self) -> State {
        self.inner.borrow().state.clone()
    }

    /// Another disk is put in.
    pub fn replace(&self, state: State) {
        *self.inner.borrow_mut() = Inner { state, ..Inner::default() };
    }

    /// What there was before and after the transaction over which the process has just died.
    pub fn take_dying(&self) -> Option<(State, State)> {
        self.inner.borrow_mut().dying.take().map(|both| *both)
    }

    /// One record becomes another one, and its head does not: the page that it is on was flipped.
    pub fn damage(&self, key: &RecordKey, to: impl FnOnce(&Record) -> Record) {
        let state = &mut self.inner.borrow_mut().state;
        if let Some(held) = state.records.get_mut(key) {
            held.record = Arc::new(to(&held.record));
            state.suspect = Some(key.clone());
        }
    }

    /// Whether every record is the one whose head is written beside it. A start reads them all; those that nothing has
    /// happened to are left out here.
    pub fn is_sound(&self) -> bool {
        let is_whole = |held: &Held| held.record.head().is_ok_and(|head| head == held.head);
        self.read(|s| s.suspect.as_ref().and_then(|key| s.records.get(key)).is_none_or(is_whole))
    }

    /// Record changes of the transactions since the last call.
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.inner.borrow_mut().changes)
    }

    /// Counts transactions that changed something.
    pub fn revision(&self) -> u64 {
        self.inner.borrow().revision
    }

    pub fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.inner.borrow().state)
    }

    /// The key held for a trusted peer.
    pub fn trusted_key(&self, id: PeerId) -> Option<PublicKey> {
        self.read(|s| s.peers.get(&id).filter(|row| row.trusted).map(|row| row.public_key))
    }

    /// Keys of all trusted peers, the local one included.
    pub fn trusted_keys(&self) -> BTreeMap<PeerId, PublicKey> {
        self.read(|s| s.peers.values().filter(|p| p.trusted).map(|p| (p.peer_id, p.public_key)).collect())
    }

    pub fn all_records(&self) -> Vec<Record> {
        self.read(|s| s.records.values().map(|held| (*held.record).clone()).collect())
    }

    /// Records of one owner above a version, oldest first.
    pub fn records_since(&self, owner: PeerId, version: u64) -> Vec<Record> {
        let mut news: Vec<Record> = self.read(|s| {
            let records = s.records.values().map(|held| &held.record);
            records.filter(|r| r.key.owner == owner && r.version > version).map(|r| (**r).clone()).collect()
        });
        news.sort_by_key(|r| r.version);
        news
    }

    pub fn edit_facts(&self, edit: impl FnOnce(&mut Facts)) {
        self.inner.borrow_mut().edit_facts(edit);
    }
}

fn with_body(state: &State, row: &PeerRow) -> PeerRow {
    let body = state.records.get(&row.record_key()).and_then(|held| held.peer.as_deref().cloned());
    PeerRow { body, ..row.clone() }
}

impl LedgerView for Disk {
    type Error = DiskError;

    fn peers(&self) -> Result<Vec<PeerRow>, DiskError> {
        Ok(self.read(|s| s.peers.values().map(|row| with_body(s, row)).collect()))
    }
    fn peer(&self, id: PeerId) -> Result<Option<PeerRow>, DiskError> {
        Ok(self.read(|s| s.peers.get(&id).map(|row| with_body(s, row))))
    }
    fn record(&self, key: &RecordKey) -> Result<Option<Record>, DiskError> {
        Ok(self.read(|s| s.records.get(key).map(|held| (*held.record).clone())))
    }
    fn records_of(&self, kind: &str) -> Result<Vec<Record>, DiskError> {
        let of_kind = |s: &State| {
            let first = RecordKey { kind: kind.into(), id: String::new(), owner: PeerId::from_bytes([0; 16]) };
            let from_first = s.records.range(first..).map(|(_, held)| &held.record);
            from_first.take_while(|r| r.key.kind == kind).map(|r| (**r).clone()).collect()
        };
        Ok(self.read(of_kind))
    }
    fn records_since(&self, owner: PeerId, version: u64) -> Result<Vec<Record>, DiskError> {
        Ok(Disk::records_since(self, owner, version))
    }
    fn cluster(&self) -> Result<Option<ClusterFacts>, DiskError> {
        Ok(self.read(|s| s.facts.cluster.clone()))
    }
    fn own_version(&self) -> Result<u64, DiskError> {
        Ok(self.read(|s| s.facts.own_version))
    }
    fn is_contested(&self) -> Result<bool, DiskError> {
        Ok(self.read(|s| s.facts.contested))
    }
    fn record_head(&self, key: &RecordKey) -> Result<Option<RecordHead>, DiskError> {
        Ok(self.read(|s| s.records.get(key).map(|held| held.head)))
    }
}

impl Ledger for Disk {
    fn put_peer(&self, row: &PeerRow) -> Result<(), DiskError> {
        let mut inner = self.inner.borrow_mut();
        let mut row = PeerRow { body: None, ..row.clone() };
        if let Some(known) = inner.state.peers.get(&row.peer_id) {
            row.local_name = row.local_name.or_else(|| known.local_name.clone());
            (row.qos_enabled, row.created_at) = (known.qos_enabled, known.created_at);
        }
        inner.set_peer(row.peer_id, Some(Arc::new(row)));
        Ok(())
    }
    fn forget_peer(&self, id: PeerId) -> Result<(), DiskError> {
        self.inner.borrow_mut().set_peer(id, None);
        Ok(())
    }
    fn put_record(&self, record: &Record, origin: Origin) -> Result<(), DiskError> {
        let held = Held::new(record, origin)?;
        self.inner.borrow_mut().set_record(record.key.clone(), Some(held));
        Ok(())
    }
    fn put_verified(&self, record: &Record) -> Result<Put, DiskError> {
        let held = Held::new(record, Origin::Taken)?;
        let mut inner = self.inner.borrow_mut();
        let before = inner.state.records.get(&record.key).map(|before| before.head);
        if !held.head.is_news(before) {
            return Ok(Put::Superseded);
        }
        inner.set_record(record.key.clone(), Some(held));
        Ok(Put::Stored)
    }
    fn forget_record(&self, key: &RecordKey) -> Result<(), DiskError> {
        self.inner.borrow_mut().set_record(key.clone(), None);
        Ok(())
    }
    fn set_cluster(&self, facts: &ClusterFacts) -> Result<(), DiskError> {
        self.inner.borrow_mut().edit_facts(|f| f.cluster = Some(facts.clone()));
        Ok(())
    }
    fn set_own_version(&self, version: u64) -> Result<(), DiskError> {
        self.inner.borrow_mut().edit_facts(|f| f.own_version = version);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arctic::model::{Code, Rng, SigningKey, UnixTime};

    #[test]
    fn a_transaction_is_whole_or_gone_and_a_crash_takes_only_what_was_not_synced() {
        let disk = Disk::default();
        let (key, owner) =
            (SigningKey::from_seed([1; 32]), PeerId::mint(UnixTime::default(), &mut Rng::from_seed([1; 32])));
        let record = |version| Record::sign(&key, owner, "service", "x", version, serde_json::json!({})).unwrap();
        let put = |version, fate| {
            disk.transaction(fate, |tx| {
                tx.set_own_version(version)?;
                Ok(tx.put_record(&record(version), Origin::Written)?)
            })
        };
        put(1, Fate::Synced).unwrap();
        assert_eq!(put(2, Fate::Fails("disk full")), Err(NoResult::Disk("disk full")));
        assert_eq!(put(3, Fate::DiesBefore), Err(NoResult::Dead));
        let refused: Result<(), _> = disk.transaction(Fate::Synced, |tx| {
            tx.set_own_version(9)?;
            Err(Refused::new(Code::NotFound, "no"))
        });
        assert!(matches!(refused, Err(NoResult::Refused(_))));
        disk.crash();
        assert_eq!(disk.own_version().unwrap(), 1);
        assert_eq!(put(4, Fate::DiesAfter), Err(NoResult::Dead));
        disk.crash();
        assert_eq!(disk.read(|s| (s.facts.own_version, s.records.len())), (4, 1));
        // What could not be synced comes back with a power cut, unless something was written over it.
        let version = || disk.own_version().unwrap();
        assert_eq!(put(5, Fate::FailsUnsurely("input/output error")), Err(NoResult::Disk("input/output error")));
        assert_eq!(version(), 4);
        disk.crash();
        assert_eq!(version(), 5);
        assert_eq!(put(9, Fate::FailsUnsurely("input/output error")), Err(NoResult::Disk("input/output error")));
        put(6, Fate::Synced).unwrap();
        disk.crash();
        assert_eq!(version(), 6);
    }
}
