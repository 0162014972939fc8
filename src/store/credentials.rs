//! API credentials as records of the peers that issued them.

use super::{StoreError, View};
use crate::{
    membership,
    model::{ClientId, PeerId},
    wire::record::{CredentialBody, kind},
};

impl View<'_> {
    /// Live credentials with the peer that issued each, ordered by client id.
    pub fn credentials(&self) -> Result<Vec<(PeerId, CredentialBody)>, StoreError> {
        let trusted = self.trusted_peers()?;
        let revoked = membership::revoked_clients(self)?;
        let live = self.records_of(kind::CREDENTIAL)?.into_iter().filter(|r| !r.deleted).filter_map(|r| {
            let body: CredentialBody = r.body_as().ok()?;
            let issued_by_a_member = trusted.iter().any(|p| p.peer_id == r.key.owner);
            let named_by_its_id = r.key.id == body.client_id.to_string();
            let usable = issued_by_a_member && named_by_its_id && !revoked.contains(&body.client_id);
            usable.then_some((r.key.owner, body))
        });
        Ok(live.collect())
    }

    pub fn credential(&self, id: ClientId) -> Result<Option<(PeerId, CredentialBody)>, StoreError> {
        Ok(self.credentials()?.into_iter().find(|(_, body)| body.client_id == id))
    }
}
