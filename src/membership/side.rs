//! What a handshake is judged against on this side, as of one state of the ledger.

use super::{Author, LedgerView, PeerRow};
use crate::{
    handshake::{Held, Here, LicenseCheck, LicenseGate, Local, PeerLicense},
    license::{Entitlement, LicenseDocument, State, TrustRoots},
    model::PeerId,
    wire::record::{RecordKey, kind},
};
use serde_json::Value;
use std::num::NonZeroU16;

/// This agent, as far as it is not in the ledger.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    pub author: &'a Author,
    pub entitlement: &'a Entitlement,
    pub licenses: &'a dyn LicenseCheck,
    /// Port of the own API.
    pub api_port: NonZeroU16,
    /// `ADVERTISE_ENDPOINTS` says where this agent is reached; what others say changes nothing.
    pub endpoints_are_set: bool,
}

/// This side of a handshake.
pub struct Side {
    pub local: Local,
    pub held: Held,
}

impl Side {
    pub fn here<'a>(&'a self, own: Own<'a>) -> Here<'a> {
        Here { local: &self.local, held: &self.held, licenses: own.licenses }
    }
}

impl LicenseCheck for TrustRoots {
    fn verify(&self, document: &Value) -> Result<PeerLicense, String> {
        let document = LicenseDocument::from_value(document).map_err(|e| e.to_string())?;
        document.verify(self).map_err(|e| e.to_string())?;
        Ok(PeerLicense {
            license_id: document.license_id(),
            customer_id: document.customer_id(),
            max_nodes: document.max_nodes(),
        })
    }
}

/// None before bootstrap.
pub fn side<L: LedgerView>(ledger: &L, own: Own<'_>) -> Result<Option<Side>, L::Error> {
    let Own { author, entitlement, api_port, .. } = own;
    let key = RecordKey { kind: kind::PEER.into(), id: author.peer_id.to_string(), owner: author.peer_id };
    let Some((cluster, record)) = ledger.cluster()?.zip(ledger.record(&key)?) else { return Ok(None) };
    let peers = ledger.peers()?;
    let row = peers.iter().find(|p| p.peer_id == author.peer_id);
    let license = &entitlement.document;
    let local = Local {
        peer_id: author.peer_id,
        key: author.key.clone(),
        license: license.as_value().clone(),
        license_id: license.license_id(),
        customer_id: license.customer_id(),
        max_nodes: license.max_nodes(),
        cluster_id: cluster.cluster_id,
        endpoints: row.map(PeerRow::all_endpoints).unwrap_or_default(),
        api_port,
        record,
        members: peers.iter().filter(|p| p.trusted).map(|p| p.peer_id).collect(),
        gate: gate(entitlement),
    };
    Ok(Some(Side { held: held(ledger, &peers, author.peer_id)?, local }))
}

fn held<L: LedgerView>(ledger: &L, peers: &[PeerRow], own: PeerId) -> Result<Held, L::Error> {
    let mut held = Held::default();
    for peer in peers.iter().filter(|p| p.peer_id != own) {
        if peer.trusted {
            held.trust(peer.peer_id, peer.public_key);
        } else {
            held.hold(peer.peer_id, peer.public_key);
        }
    }
    for (peer, key) in ledger.revoked_identities()? {
        held.revoke(peer, key);
    }
    ledger.vouched()?.into_iter().for_each(|peer| held.count_in(peer));
    Ok(held)
}

fn gate(entitlement: &Entitlement) -> LicenseGate {
    match entitlement.state {
        State::Valid | State::Warning | State::GracePeriod => LicenseGate::Open,
        State::ReadOnly => LicenseGate::ReadOnly,
        State::Suspended => LicenseGate::Suspended,
    }
}
