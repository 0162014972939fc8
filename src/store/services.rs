//! Services as records of their source peers.

use super::{StoreError, Tx, View};
use crate::{
    membership::{Author, LedgerView},
    model::{Service, ServiceBody, ServiceId},
    wire::record::kind,
};

impl View<'_> {
    /// Live services, ordered by id. A record whose owner is not trusted, or is not its service's source, is no service.
    pub fn services(&self) -> Result<Vec<Service>, StoreError> {
        LedgerView::services(self)
    }

    pub fn service(&self, id: ServiceId) -> Result<Option<Service>, StoreError> {
        LedgerView::service(self, id)
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
