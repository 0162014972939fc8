//! What the decisions read and write.

use super::ClusterFacts;
use crate::{
    gossip::{Revocations, Standing},
    model::{
        Code, Endpoint, LicenseId, PeerId, PublicKey, Refused, Service, ServiceBody, ServiceId, SigningKey, UnixTime,
    },
    planted::{Bug, planted},
    wire::record::{PeerBody, Record, RecordError, RecordHead, RecordKey, kind},
};
use serde::Serialize;
use std::collections::BTreeSet;

/// What an operator does about two live copies of one identity (cluster.md §7).
pub const IDENTITY_CONFLICT_HINT: &str =
    "stop one of the two; to keep both, remove peer.key and the database of one of them and add it as a new peer";

/// Another live copy of this peer's identity is heard, and peers stay with that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another live copy of this peer's identity exists: nothing is written here")]
pub struct IdentityConflict;

impl From<IdentityConflict> for Refused {
    fn from(conflict: IdentityConflict) -> Self {
        Refused::new(Code::IdentityConflict, conflict.to_string()).with_hint(IDENTITY_CONFLICT_HINT)
    }
}

/// Who signs what this host writes.
#[derive(Clone)]
pub struct Author {
    pub peer_id: PeerId,
    pub key: SigningKey,
}

/// Who gave a record to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Written here.
    Written,
    /// From a peer.
    Taken,
}

/// What became of a record that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Stored,
    /// The held head is equal or newer.
    Superseded,
}

/// One known peer, the local one included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRow {
    pub peer_id: PeerId,
    /// From a handshake or a voucher.
    pub public_key: PublicKey,
    /// A handshake with it has succeeded and no revocation stands.
    pub trusted: bool,
    /// Where it was reached or is said to be, in order; its own record has the final word.
    pub endpoints: Vec<Endpoint>,
    /// As it showed in a handshake; None for one that is only vouched for.
    pub license_id: Option<LicenseId>,
    /// Set by the operator on this peer; never gossiped.
    pub local_name: Option<String>,
    pub qos_enabled: bool,
    pub created_at: UnixTime,
    /// Its own signed record, where one is held.
    pub body: Option<PeerBody>,
}

impl PeerRow {
    /// A peer as a handshake leaves it.
    pub fn trusted(peer_id: PeerId, public_key: PublicKey, endpoints: Vec<Endpoint>, created_at: UnixTime) -> Self {
        Self {
            peer_id,
            public_key,
            trusted: true,
            endpoints,
            license_id: None,
            local_name: None,
            qos_enabled: true,
            created_at,
            body: None,
        }
    }

    /// Not trusted, and never was: its key and endpoints are the word of others.
    pub fn is_candidate(&self) -> bool {
        !self.trusted && self.license_id.is_none()
    }

    /// The key of its own record.
    pub fn record_key(&self) -> RecordKey {
        RecordKey { kind: kind::PEER.into(), id: self.peer_id.to_string(), owner: self.peer_id }
    }

    /// With what its own record says, if that is held.
    pub fn with_record(mut self, record: Option<&Record>) -> Self {
        self.body = record.filter(|r| !r.deleted).and_then(|r| r.body_as().ok());
        self
    }

    /// The local name, else the self-given one, else the id.
    pub fn display_name(&self) -> String {
        let own = self.body.as_ref().map(|b| b.name.clone()).filter(|n| !n.is_empty());
        self.local_name.clone().or(own).unwrap_or_else(|| self.peer_id.to_string())
    }

    /// Where to reach it, in order: its own record's list, then others that are known.
    pub fn all_endpoints(&self) -> Vec<Endpoint> {
        let mut all = self.body.as_ref().map(|b| b.endpoints.clone()).unwrap_or_default();
        for endpoint in &self.endpoints {
            if !all.contains(endpoint) {
                all.push(endpoint.clone());
            }
        }
        all
    }
}

/// Reading access to one consistent state.
pub trait LedgerView {
    type Error: std::error::Error + From<RecordError> + From<IdentityConflict> + Into<Refused>;

    /// Every known peer, ordered by id, the local one included.
    fn peers(&self) -> Result<Vec<PeerRow>, Self::Error>;
    fn peer(&self, id: PeerId) -> Result<Option<PeerRow>, Self::Error>;
    fn record(&self, key: &RecordKey) -> Result<Option<Record>, Self::Error>;
    /// Records of one kind, tombstones included, ordered by id and owner.
    fn records_of(&self, kind: &str) -> Result<Vec<Record>, Self::Error>;
    /// Records of one kind and id, whoever owns them, tombstones included.
    fn records_about(&self, kind: &str, id: &str) -> Result<Vec<Record>, Self::Error> {
        Ok(self.records_of(kind)?.into_iter().filter(|r| r.key.id == id).collect())
    }
    /// Records of one owner above a version, tombstones included, oldest first.
    fn records_since(&self, owner: PeerId, version: u64) -> Result<Vec<Record>, Self::Error>;
    /// None before bootstrap.
    fn cluster(&self) -> Result<Option<ClusterFacts>, Self::Error>;
    /// The highest version this peer has given to a record of its own.
    fn own_version(&self) -> Result<u64, Self::Error>;
    /// Peers refuse this one because another live copy of its identity is heard: it writes nothing (cluster.md §7).
    fn is_contested(&self) -> Result<bool, Self::Error>;

    fn record_head(&self, key: &RecordKey) -> Result<Option<RecordHead>, Self::Error> {
        Ok(self.record(key)?.map(|record| record.head()).transpose()?)
    }

    /// Trusted peers, ordered by id, the local one included: the nodes that count.
    fn trusted_peers(&self) -> Result<Vec<PeerRow>, Self::Error> {
        Ok(self.peers()?.into_iter().filter(|p| p.trusted).collect())
    }

    /// What the held records say of who is revoked.
    fn revocations(&self) -> Result<Revocations, Self::Error> {
        let (revocations, readmissions) = (self.records_of(kind::REVOCATION)?, self.records_of(kind::READMISSION)?);
        Ok(Revocations::of(revocations.iter().chain(&readmissions)))
    }

    /// Identities with a standing revocation.
    fn revoked_identities(&self) -> Result<BTreeSet<(PeerId, PublicKey)>, Self::Error> {
        let revocations = self.revocations()?;
        let stands = |(id, key): &(PeerId, PublicKey)| revocations.standing(*id, Some(key)) != Standing::Clear;
        Ok(revocations.subjects().filter(stands).collect())
    }

    /// Peers that a trusted one vouches for.
    fn vouched(&self) -> Result<BTreeSet<PeerId>, Self::Error> {
        let trusted: BTreeSet<PeerId> = self.trusted_peers()?.into_iter().map(|p| p.peer_id).collect();
        let vouchers = self.records_of(kind::VOUCHER)?;
        let live = vouchers.iter().filter(|r| !r.deleted && trusted.contains(&r.key.owner));
        Ok(live.filter_map(|r| r.key.id.parse().ok()).collect())
    }

    /// Live services, ordered by id. A record is no service if its owner is neither trusted nor one that left by itself,
    /// or is not its service's source.
    fn services(&self) -> Result<Vec<Service>, Self::Error> {
        self.services_among(self.records_of(kind::SERVICE)?)
    }

    /// Those of the records that are live services, in the same order.
    fn services_among(&self, mut records: Vec<Record>) -> Result<Vec<Service>, Self::Error> {
        let counted = self.owners_that_count(records.iter().map(|r| r.key.owner))?;
        records.retain(|r| counted.contains(&r.key.owner));
        Ok(records.iter().filter_map(read_service).collect())
    }

    /// Those of the owners whose services count: the trusted ones, and those that left by themselves.
    fn owners_that_count(&self, owners: impl Iterator<Item = PeerId>) -> Result<BTreeSet<PeerId>, Self::Error> {
        let trusted: BTreeSet<PeerId> = self.trusted_peers()?.into_iter().map(|p| p.peer_id).collect();
        let (mut counted, others): (BTreeSet<_>, BTreeSet<_>) = owners.partition(|owner| trusted.contains(owner));
        if !others.is_empty() {
            let revocations = self.revocations()?;
            counted.extend(others.into_iter().filter(|o| revocations.standing(*o, None) == Standing::Left));
        }
        Ok(counted)
    }

    fn service(&self, id: ServiceId) -> Result<Option<Service>, Self::Error> {
        Ok(self.services_among(self.records_about(kind::SERVICE, &id.to_string())?)?.into_iter().next())
    }
}

/// Writing access within one transaction: reads see the writes before them, and an error undoes them all.
pub trait Ledger: LedgerView {
    /// Inserts or replaces what is known of a peer, except its local name and QoS switch, which stay if it is known.
    fn put_peer(&self, row: &PeerRow) -> Result<(), Self::Error>;
    /// Drops a peer from the local view: trust, key, name.
    fn forget_peer(&self, id: PeerId) -> Result<(), Self::Error>;
    /// Stores a record whatever is held under its key.
    fn put_record(&self, record: &Record, origin: Origin) -> Result<(), Self::Error>;
    /// Drops a record without a trace: one of a removed owner, a collected tombstone, or one that a reset found deleted.
    fn forget_record(&self, key: &RecordKey) -> Result<(), Self::Error>;
    fn set_cluster(&self, facts: &ClusterFacts) -> Result<(), Self::Error>;
    fn set_own_version(&self, version: u64) -> Result<(), Self::Error>;

    /// Signs `body` with the author's next version and stores it.
    fn put_own(&self, author: &Author, kind: &str, id: &str, body: &impl Serialize) -> Result<Record, Self::Error> {
        let body = serde_json::to_value(body).map_err(|source| RecordError::Body { kind: kind.into(), source })?;
        let mut version = self.next_own_version()?;
        if planted(Bug::WallClockDecidesOrder)
            && let Some(at) = body["updated_at"].as_str().and_then(|text| text.parse::<UnixTime>().ok())
        {
            version = at.as_ms();
        }
        let record = Record::sign(&author.key, author.peer_id, kind, id, version, body)?;
        self.put_record(&record, Origin::Written)?;
        Ok(record)
    }

    /// Signs and stores the tombstone of an own record.
    fn delete_own(&self, author: &Author, kind: &str, id: &str) -> Result<Record, Self::Error> {
        let key = RecordKey { kind: kind.into(), id: id.into(), owner: author.peer_id };
        let record = Record::sign_tombstone(&author.key, key, self.next_own_version()?)?;
        self.put_record(&record, Origin::Written)?;
        Ok(record)
    }

    /// Stores a record that someone else signed, if it is newer than what is held. The caller has verified it.
    fn put_verified(&self, record: &Record) -> Result<Put, Self::Error> {
        if !record.head()?.is_news(self.record_head(&record.key)?) {
            return Ok(Put::Superseded);
        }
        self.put_record(record, Origin::Taken)?;
        Ok(Put::Stored)
    }

    fn next_own_version(&self) -> Result<u64, Self::Error> {
        if self.is_contested()? {
            return Err(IdentityConflict.into());
        }
        let version = self.own_version()? + 1;
        self.set_own_version(version)?;
        Ok(version)
    }
}

/// The service in a live record of its source peer.
pub fn read_service(record: &Record) -> Option<Service> {
    if record.deleted {
        return None;
    }
    let body: ServiceBody = record.body_as().ok()?;
    let id = record.key.id.parse().ok()?;
    (body.source_peer_id == record.key.owner).then_some(Service { id, version: record.version, body })
}
