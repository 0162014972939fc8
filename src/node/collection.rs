//! What collection and copies of an identity mean for the store (cluster.md §7).

use super::Node;
use crate::{
    membership::{self, IDENTITY_CONFLICT_HINT},
    model::PeerId,
    store::StoreError,
    wire::record::{FloorBody, Record, RecordKey},
};

impl Node {
    pub(super) async fn note_catching_up(&self, owner: PeerId, complete: Option<u64>) -> Result<(), StoreError> {
        tracing::info!(%owner, ?complete, caught_up = complete.is_none(), "catching up with the records of an owner");
        self.store().write_as_member(move |tx| tx.set_catching_up(owner, complete)).await
    }

    pub(super) async fn forget(&self, gone: Vec<(RecordKey, u64)>) -> Result<(), StoreError> {
        self.store().write_as_member(move |tx| membership::forget(tx, &gone)).await
    }

    pub(super) async fn republish(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        self.store().write_as_member(move |tx| membership::republish(tx, &identity, &records)).await
    }

    pub(super) async fn publish_floor(&self, floor: FloorBody) -> Result<(), StoreError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        tracing::debug!(
            through = floor.through,
            "every peer holds all records of this one up to here; its tombstones go"
        );
        self.store().write_as_member(move |tx| membership::publish_floor(tx, &identity, &floor)).await
    }

    pub(super) async fn contested(&self, contested: bool) -> Result<(), StoreError> {
        if contested {
            tracing::warn!(
                hint = IDENTITY_CONFLICT_HINT,
                "peers hear another live copy of this identity and refuse this one: its services are inactive, and it \
                 changes nothing in the cluster"
            );
        } else {
            tracing::warn!("this copy of the identity is accepted again: its services are active");
        }
        let Some(identity) = self.identity() else { return Ok(()) };
        let write = self.store().write_as_member(move |tx| {
            tx.set_contested(contested)?;
            if contested { Ok(()) } else { membership::resume_writing(tx, &identity) }
        });
        write.await
    }

    /// Whether peers refuse this copy of the identity because another one lives.
    pub fn is_contested(&self) -> bool {
        self.store().read(|v| v.is_contested()).unwrap_or(false)
    }
}
