//! Services as records of their source peers.

use super::{StoreError, Tx, View};
use crate::{
    model::{PeerId, Service, ServiceBody, ServiceId},
    store::Author,
    wire::record::{Record, kind},
};
use std::collections::BTreeSet;

impl View<'_> {
    /// Live services, ordered by id. A record whose owner is not trusted, or is not its service's source, is no service.
    pub fn services(&self) -> Result<Vec<Service>, StoreError> {
        let trusted: BTreeSet<PeerId> = self.trusted_peers()?.into_iter().map(|p| p.peer_id).collect();
        let records = self.records_of(kind::SERVICE)?;
        Ok(records.iter().filter(|r| trusted.contains(&r.key.owner)).filter_map(read_service).collect())
    }

    pub fn service(&self, id: ServiceId) -> Result<Option<Service>, StoreError> {
        Ok(self.services()?.into_iter().find(|s| s.id == id))
    }
}

impl Tx<'_> {
    /// Writes a service of which the author is the source.
    pub fn put_service(&self, author: &Author, id: ServiceId, body: &ServiceBody) -> Result<Service, StoreError> {
        let record = self.put_own(author, kind::SERVICE, &id.to_string(), body)?;
        Ok(Service { id, version: record.version, body: body.clone() })
    }

    pub fn delete_service(&self, author: &Author, id: ServiceId) -> Result<(), StoreError> {
        self.delete_own(author, kind::SERVICE, &id.to_string()).map(drop)
    }
}

fn read_service(record: &Record) -> Option<Service> {
    if record.deleted {
        return None;
    }
    let body: ServiceBody = record.body_as().ok()?;
    let id = record.key.id.parse().ok()?;
    (body.source_peer_id == record.key.owner).then_some(Service { id, version: record.version, body })
}
