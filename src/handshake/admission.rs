//! The rules by which a peer is let in: identity, license, customer, node limit, record. Cheap checks come first.

use super::failure::{Reason, Rejection};
use super::{Accepted, Here};
use crate::model::{ClusterId, CustomerId, Endpoint, LicenseId, PeerId, PublicKey, SigningKey};
use crate::planted::{Bug, planted};
use crate::wire::handshake::InitiatorPart;
use crate::wire::record::{PeerBody, Record, kind};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

/// What a verified license document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLicense {
    pub license_id: LicenseId,
    pub customer_id: CustomerId,
    pub max_nodes: u32,
}

/// Verifies license documents against the trust roots of this build.
pub trait LicenseCheck {
    /// The claims of a genuine document, or why it is not one.
    fn verify(&self, document: &Value) -> Result<PeerLicense, String>;
}

/// What the own license lets the handshake do (licensing.md §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LicenseGate {
    /// Valid, warning or grace.
    Open,
    /// No new peers.
    ReadOnly,
    /// No handshake at all.
    Suspended,
}

/// What this side presents. Has no `Debug`: it holds the private key.
#[derive(Clone)]
pub struct Local {
    pub peer_id: PeerId,
    pub key: SigningKey,
    /// The license document, unchanged.
    pub license: Value,
    pub license_id: LicenseId,
    pub customer_id: CustomerId,
    pub max_nodes: u32,
    pub cluster_id: ClusterId,
    /// Own endpoints in order; empty if none is known.
    pub endpoints: Vec<Endpoint>,
    /// Port of the own API, for peers that call back to the address they saw.
    pub api_port: NonZeroU16,
    /// Own `peer` record, signed.
    pub record: Record,
    /// Everyone trusted here; the own id may be left out.
    pub members: BTreeSet<PeerId>,
    pub gate: LicenseGate,
}

impl Local {
    pub(super) fn sealed_part(&self) -> InitiatorPart {
        let members = self.members.iter().copied().chain([self.peer_id]).collect::<BTreeSet<_>>();
        InitiatorPart {
            license: self.license.clone(),
            members: members.into_iter().collect(),
            record: self.record.clone(),
        }
    }
}

/// What is held of others: keys from handshakes and vouchers, trust, revocations.
#[derive(Debug, Clone, Default)]
pub struct Held {
    keys: BTreeMap<PeerId, PublicKey>,
    owners: BTreeMap<PublicKey, PeerId>,
    trusted: BTreeSet<PeerId>,
    vouched: BTreeSet<PeerId>,
    revoked: BTreeMap<PeerId, PublicKey>,
    revoked_keys: BTreeSet<PublicKey>,
}

impl Held {
    /// Holds `key` for `peer`, from a voucher or an earlier handshake.
    pub fn hold(&mut self, peer: PeerId, key: PublicKey) {
        if let Some(old) = self.keys.insert(peer, key) {
            self.owners.remove(&old);
        }
        self.owners.insert(key, peer);
    }

    /// Trusts `peer`, whose key becomes held.
    pub fn trust(&mut self, peer: PeerId, key: PublicKey) {
        self.hold(peer, key);
        self.trusted.insert(peer);
    }

    /// A trusted peer vouches for `peer`: it was counted where it was taken in.
    pub fn count_in(&mut self, peer: PeerId) {
        self.vouched.insert(peer);
    }

    /// Revokes an identity: neither its id under another key nor its key under another id returns.
    pub fn revoke(&mut self, peer: PeerId, key: PublicKey) {
        self.trusted.remove(&peer);
        self.revoked.insert(peer, key);
        self.revoked_keys.insert(key);
    }

    pub fn key_of(&self, peer: &PeerId) -> Option<&PublicKey> {
        self.keys.get(peer)
    }

    pub fn trusts(&self, peer: &PeerId) -> bool {
        self.trusted.contains(peer)
    }

    pub fn is_revoked(&self, peer: &PeerId, key: &PublicKey) -> bool {
        self.revoked.contains_key(peer) || self.revoked_keys.contains(key)
    }

    /// Whether the key conflicts with what is held: another key for that id, or another id for that key.
    pub(super) fn conflicts(&self, peer: &PeerId, key: &PublicKey) -> bool {
        self.keys.get(peer).is_some_and(|k| k != key) || self.owners.get(key).is_some_and(|p| p != peer)
    }

    fn revocation_names(&self, peer: &PeerId, key: &PublicKey) -> bool {
        self.revoked.get(peer) == Some(key)
    }
}

/// How a peer stands before it has proven anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub trusted: bool,
    /// A trusted peer has taken it in.
    pub vouched: bool,
    pub readmitted: bool,
}

/// Judges an id and a key by what is held. `readmit`: an operator here asked for this very peer.
pub(super) fn identity(here: Here<'_>, peer: &PeerId, key: &PublicKey, readmit: bool) -> Result<Standing, Reason> {
    let Here { local, held, .. } = here;
    if *peer == local.peer_id || *key == local.key.public() {
        return Err(Reason::OwnId);
    }
    let revoked = held.is_revoked(peer, key);
    // A removed peer readmits nobody: its readmission would be void, and the trust end at once.
    let may_readmit = readmit && !held.is_revoked(&local.peer_id, &local.key.public());
    if revoked && !(may_readmit && held.revocation_names(peer, key)) {
        return Err(Reason::Revoked);
    }
    if held.conflicts(peer, key) {
        return Err(Reason::KeyChanged);
    }
    let standing = Standing {
        trusted: held.trusts(peer) && !revoked,
        vouched: held.vouched.contains(peer) && !revoked,
        readmitted: revoked,
    };
    match local.gate {
        LicenseGate::Suspended => Err(Reason::LicenseSuspended),
        LicenseGate::ReadOnly if !standing.trusted => Err(Reason::LicenseReadOnly),
        _ => Ok(standing),
    }
}

/// Refuses one more stranger where there is no room for any.
pub(super) fn room_for_one(here: Here<'_>, peer: PeerId, standing: Standing) -> Result<(), Reason> {
    node_limit(here, peer, standing, &[], u32::MAX)
}

/// cluster.md §3: the union of both member lists must fit both licenses. Nobody is added by a renewal, by a peer that a
/// trusted one has taken in, or by one whose cluster counts this agent already: the limit was judged where that was
/// done, and judged again it would leave members that differ for good.
fn node_limit(
    here: Here<'_>,
    peer: PeerId,
    standing: Standing,
    members: &[PeerId],
    their_max_nodes: u32,
) -> Result<(), Reason> {
    if standing.trusted || standing.vouched || members.contains(&here.local.peer_id) {
        return Ok(());
    }
    let own = here.local.members.iter().chain([&here.local.peer_id]);
    let union: BTreeSet<&PeerId> = own.chain(members).chain([&peer]).collect();
    let limit = here.local.max_nodes.min(their_max_nodes);
    if union.len() > usize::try_from(limit).unwrap_or(usize::MAX) { Err(Reason::NodeLimitExceeded) } else { Ok(()) }
}

/// Judges a proven peer once more, against what is held when it is stored: a revocation, a change of the license or
/// another handshake may have come between.
pub fn judge_again(here: Here<'_>, accepted: &Accepted) -> Result<(), Reason> {
    let standing = identity(here, &accepted.peer_id, &accepted.public_key, accepted.readmitted)?;
    node_limit(here, accepted.peer_id, standing, &accepted.members, accepted.max_nodes)
}

/// What a peer says of itself before the sealed part is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    pub license_id: LicenseId,
}

/// The claims and the sealed part of a peer whose license is genuine and of this customer.
#[derive(Debug, Clone)]
pub(super) struct Licensed {
    claim: Claim,
    part: InitiatorPart,
    max_nodes: u32,
}

/// Judges the sealed license. The verification is spent only where the document names this customer and differs from
/// the own document, which is already known to be genuine.
pub(super) fn license(here: Here<'_>, claim: Claim, part: InitiatorPart) -> Result<Licensed, Rejection> {
    let local = here.local;
    let customer = part.license.get("customer_id").and_then(Value::as_str).map(str::parse::<CustomerId>);
    match customer {
        Some(Ok(customer)) if customer == local.customer_id || planted(Bug::ForeignCustomerMerged) => {}
        Some(Ok(_)) => return Err(Reason::LicenseMismatch.into()),
        _ => return Err(Reason::LicenseInvalid.into()),
    }
    let max_nodes = if part.license == local.license {
        if claim.license_id != local.license_id {
            return Err(Reason::LicenseInvalid.into());
        }
        local.max_nodes
    } else {
        let verified = here
            .licenses
            .verify(&part.license)
            .map_err(|cause| Rejection { reason: Reason::LicenseInvalid, cause: Some(cause) })?;
        if verified.customer_id != local.customer_id && !planted(Bug::ForeignCustomerMerged) {
            return Err(Reason::LicenseMismatch.into());
        }
        if verified.license_id != claim.license_id {
            return Err(Reason::LicenseInvalid.into());
        }
        verified.max_nodes
    };
    Ok(Licensed { claim, part, max_nodes })
}

impl Licensed {
    pub fn node_limit(&self, here: Here<'_>, standing: Standing) -> Result<(), Reason> {
        node_limit(here, self.claim.peer_id, standing, &self.part.members, self.max_nodes)
    }

    /// The peer's own record, which it must have signed with the key just proven.
    pub fn record(&self) -> Result<PeerBody, Rejection> {
        let (record, claim) = (&self.part.record, self.claim);
        let malformed = |cause: &str| Rejection { reason: Reason::InvalidSignature, cause: Some(cause.into()) };
        let key = &record.key;
        if key.kind != kind::PEER || key.owner != claim.peer_id || key.id != claim.peer_id.to_string() {
            return Err(malformed("the record is not the sender's own peer record"));
        }
        if record.deleted {
            return Err(malformed("the peer record is a tombstone"));
        }
        let body: PeerBody = record.body_as().map_err(|e| malformed(&e.to_string()))?;
        if body.public_key != claim.public_key {
            return Err(malformed("the peer record names another key"));
        }
        record.verify(&claim.public_key).map_err(|e| malformed(&e.to_string()))?;
        Ok(body)
    }

    pub fn max_nodes(&self) -> u32 {
        self.max_nodes
    }

    pub fn into_part(self) -> InitiatorPart {
        self.part
    }
}
