//! What `peers add` would meet: a look at the other agent that changes nothing anywhere.

use super::{
    AddPeer, Call, Node,
    join::{decode_identity, dial_failure},
};
use crate::{
    handshake::Reason,
    model::{Code, Endpoint, LicenseId, PeerId, PublicKey, Refused},
    wire::handshake::{IDENTITY_PATH, Identity},
};
use serde_json::json;

/// What an agent says of itself to whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    pub license_id: Option<LicenseId>,
    pub version: String,
    /// The one that answered.
    pub endpoint: Endpoint,
    pub warnings: Vec<String>,
}

impl Node {
    /// Asks the endpoints in order, and judges the first identity as far as that can be done without a handshake.
    pub async fn examine_peer(&self, wish: &AddPeer) -> Result<Examined, Refused> {
        if let Some(own) = self.own_endpoint_among(&wish.endpoints)? {
            return Err(Refused::new(Code::InvalidRequest, format!("{own} is this agent itself")));
        }
        let mut last = (Reason::UnexpectedAnswer, None);
        for endpoint in &wish.endpoints {
            let answer = self.client().call(endpoint, &Call::get(IDENTITY_PATH)).await;
            match answer.map_err(dial_failure).and_then(|answer| decode_identity(&answer.body)) {
                Ok(identity) => return self.judge(wish, endpoint, identity),
                Err(failure) => last = (failure.into(), Some(endpoint)),
            }
        }
        Err(refused(last.0, last.1))
    }

    fn judge(&self, wish: &AddPeer, endpoint: &Endpoint, found: Identity) -> Result<Examined, Refused> {
        let refused = |reason| refused(reason, Some(endpoint));
        let (Some(peer_id), Some(public_key)) = (found.peer_id, found.public_key) else {
            return Err(refused(Reason::NotBootstrapped));
        };
        if found.cluster_id.is_none() {
            return Err(refused(Reason::NotBootstrapped));
        }
        let (Some(own), Some(entitlement)) = (self.identity(), self.entitlement()) else {
            return Err(super::gossip::not_bootstrapped());
        };
        if peer_id == own.peer_id {
            return Err(Refused::new(Code::InvalidRequest, format!("{endpoint} is this agent itself")));
        }
        let (held, trusted) = self.store().read::<_, Refused>(|v| Ok((v.peer(peer_id)?, v.trusted_peers()?.len())))?;
        if held.as_ref().is_some_and(|row| row.trusted) {
            return Err(refused(Reason::AlreadyExists));
        }
        let held_key = wish.public_key.or(held.map(|row| row.public_key));
        if held_key.is_some_and(|key| key != public_key) {
            return Err(refused(Reason::KeyChanged));
        }
        if entitlement.document.check_nodes(trusted + 1).is_err() {
            return Err(refused(Reason::NodeLimitExceeded));
        }
        let own_license = entitlement.document.license_id();
        let differs = found.license_id.filter(|id| *id != own_license);
        let warning = |id| format!("the licenses differ: {own_license} here, {id} on the peer");
        Ok(Examined {
            peer_id,
            public_key,
            license_id: found.license_id,
            version: found.version,
            endpoint: endpoint.clone(),
            warnings: differs.map(warning).into_iter().collect(),
        })
    }
}

fn refused(reason: Reason, endpoint: Option<&Endpoint>) -> Refused {
    Refused::new(reason.code(), reason.text()).with_details(json!({ "endpoint": endpoint }))
}
