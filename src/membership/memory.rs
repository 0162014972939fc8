//! A ledger in memory, for simulations and tests. It has no transactions: it relies on refusals that come before writes.

use super::{ClusterFacts, IdentityConflict, Ledger, LedgerView, Origin, PeerRow};
use crate::{
    model::{PeerId, Refused},
    wire::record::{Record, RecordError, RecordKey},
};
use std::{cell::RefCell, collections::BTreeMap};

#[derive(Debug, Clone, Default)]
pub struct MemoryLedger {
    state: RefCell<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    peers: BTreeMap<PeerId, PeerRow>,
    records: BTreeMap<RecordKey, Record>,
    cluster: Option<ClusterFacts>,
    own_version: u64,
    contested: bool,
}

/// What can go wrong in memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    IdentityConflict(#[from] IdentityConflict),
}

impl From<MemoryError> for Refused {
    fn from(e: MemoryError) -> Self {
        match e {
            MemoryError::IdentityConflict(conflict) => conflict.into(),
            MemoryError::Record(e) => Refused::internal(e),
        }
    }
}

impl MemoryLedger {
    /// Every record, tombstones included, ordered by key: what a gossip machine starts from.
    pub fn all_records(&self) -> Vec<Record> {
        self.state.borrow().records.values().cloned().collect()
    }

    /// Another live copy of this peer's identity is heard, or not any more.
    pub fn set_contested(&self, contested: bool) {
        self.state.borrow_mut().contested = contested;
    }

    /// Records of one owner above a version, tombstones included, oldest first.
    pub fn records_since(&self, owner: PeerId, version: u64) -> Vec<Record> {
        let state = self.state.borrow();
        let is_news = |r: &&Record| r.key.owner == owner && r.version > version;
        let mut since: Vec<Record> = state.records.values().filter(is_news).cloned().collect();
        since.sort_by_key(|r| r.version);
        since
    }
}

impl LedgerView for MemoryLedger {
    type Error = MemoryError;

    fn peers(&self) -> Result<Vec<PeerRow>, MemoryError> {
        let state = self.state.borrow();
        Ok(state.peers.values().map(|row| row.clone().with_record(state.records.get(&row.record_key()))).collect())
    }
    fn peer(&self, id: PeerId) -> Result<Option<PeerRow>, MemoryError> {
        let state = self.state.borrow();
        Ok(state.peers.get(&id).map(|row| row.clone().with_record(state.records.get(&row.record_key()))))
    }
    fn record(&self, key: &RecordKey) -> Result<Option<Record>, MemoryError> {
        Ok(self.state.borrow().records.get(key).cloned())
    }
    fn records_of(&self, kind: &str) -> Result<Vec<Record>, MemoryError> {
        Ok(self.state.borrow().records.values().filter(|r| r.key.kind == kind).cloned().collect())
    }
    fn records_since(&self, owner: PeerId, version: u64) -> Result<Vec<Record>, MemoryError> {
        Ok(MemoryLedger::records_since(self, owner, version))
    }
    fn cluster(&self) -> Result<Option<ClusterFacts>, MemoryError> {
        Ok(self.state.borrow().cluster.clone())
    }
    fn own_version(&self) -> Result<u64, MemoryError> {
        Ok(self.state.borrow().own_version)
    }
    fn is_contested(&self) -> Result<bool, MemoryError> {
        Ok(self.state.borrow().contested)
    }
}

impl Ledger for MemoryLedger {
    fn put_peer(&self, row: &PeerRow) -> Result<(), MemoryError> {
        let mut state = self.state.borrow_mut();
        let mut row = PeerRow { body: None, ..row.clone() };
        if let Some(known) = state.peers.get(&row.peer_id) {
            row.local_name = row.local_name.or_else(|| known.local_name.clone());
            row.qos_enabled = known.qos_enabled;
            row.created_at = known.created_at;
        }
        state.peers.insert(row.peer_id, row);
        Ok(())
    }
    fn forget_peer(&self, id: PeerId) -> Result<(), MemoryError> {
        self.state.borrow_mut().peers.remove(&id);
        Ok(())
    }
    fn put_record(&self, record: &Record, _: Origin) -> Result<(), MemoryError> {
        self.state.borrow_mut().records.insert(record.key.clone(), record.clone());
        Ok(())
    }
    fn forget_record(&self, key: &RecordKey) -> Result<(), MemoryError> {
        self.state.borrow_mut().records.remove(key);
        Ok(())
    }
    fn set_cluster(&self, facts: &ClusterFacts) -> Result<(), MemoryError> {
        self.state.borrow_mut().cluster = Some(facts.clone());
        Ok(())
    }
    fn set_own_version(&self, version: u64) -> Result<(), MemoryError> {
        self.state.borrow_mut().own_version = version;
        Ok(())
    }
}
