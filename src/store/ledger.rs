//! The database as the ledger that membership is decided over.

use super::{StoreError, Tx, View};
use crate::{
    membership::{ClusterFacts, Ledger, LedgerView, Origin, PeerRow},
    model::{PeerId, Service},
    wire::record::{Record, RecordHead, RecordKey},
};
use std::collections::BTreeSet;

macro_rules! reads {
    ($($reader:ty),*) => {$(
        impl LedgerView for $reader {
            type Error = StoreError;

            fn peers(&self) -> Result<Vec<PeerRow>, StoreError> {
                View::peers(self)
            }
            fn peer(&self, id: PeerId) -> Result<Option<PeerRow>, StoreError> {
                View::peer(self, id)
            }
            fn record(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
                View::record(self, key)
            }
            fn record_head(&self, key: &RecordKey) -> Result<Option<RecordHead>, StoreError> {
                View::record_head(self, key)
            }
            fn records_of(&self, kind: &str) -> Result<Vec<Record>, StoreError> {
                View::records_of(self, kind)
            }
            fn services(&self) -> Result<Vec<Service>, StoreError> {
                View::services(self)
            }
            fn records_about(&self, kind: &str, id: &str) -> Result<Vec<Record>, StoreError> {
                View::records_about(self, kind, id)
            }
            fn records_since(&self, owner: PeerId, version: u64) -> Result<Vec<Record>, StoreError> {
                View::records_since(self, owner, version)
            }
            fn vouched(&self) -> Result<BTreeSet<PeerId>, StoreError> {
                View::vouched(self)
            }
            fn cluster(&self) -> Result<Option<ClusterFacts>, StoreError> {
                View::cluster(self)
            }
            fn own_version(&self) -> Result<u64, StoreError> {
                View::own_version(self)
            }
            fn is_contested(&self) -> Result<bool, StoreError> {
                View::is_contested(self)
            }
        }
    )*};
}

reads!(View<'_>, Tx<'_>);

impl Ledger for Tx<'_> {
    fn put_peer(&self, row: &PeerRow) -> Result<(), StoreError> {
        Tx::put_peer(self, row)
    }
    fn forget_peer(&self, id: PeerId) -> Result<(), StoreError> {
        Tx::forget_peer(self, id)
    }
    fn put_record(&self, record: &Record, origin: Origin) -> Result<(), StoreError> {
        self.upsert(record, origin)
    }
    fn forget_record(&self, key: &RecordKey) -> Result<(), StoreError> {
        Tx::forget_record(self, key)
    }
    fn set_cluster(&self, facts: &ClusterFacts) -> Result<(), StoreError> {
        Tx::set_cluster(self, facts)
    }
    fn set_own_version(&self, version: u64) -> Result<(), StoreError> {
        Tx::set_own_version(self, version)
    }
}
