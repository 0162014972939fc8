//! Signed records: the pieces of cluster state that gossip carries (cluster.md §5).

use super::canonical::{self, CanonicalError};
use super::sign::{Domain, Transcript};
use crate::model::{
    ApiAccess, ClientId, ClusterId, DataPorts, Endpoint, LicenseId, PeerId, PublicKey, ScopeSet, Signature, SigningKey,
    UnixTime, X25519Public,
};
use crate::planted::{Bug, planted};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Largest record on the wire and in the store, in bytes of canonical body (cluster.md §6).
pub const RECORD_MAX_BYTES: usize = 256 * 1024;
pub const KIND_MAX_BYTES: usize = 32;
pub const ID_MAX_BYTES: usize = 64;

/// The one field in the body of a tombstone that another than the owner signed.
const DELETED_BY: &str = "deleted_by";

/// Kinds this build understands; records of other kinds are kept and relayed.
pub mod kind {
    pub const PEER: &str = "peer";
    pub const SERVICE: &str = "service";
    pub const STATUS: &str = "status";
    pub const CREDENTIAL: &str = "credential";
    pub const REVOCATION: &str = "revocation";
    pub const READMISSION: &str = "readmission";
    pub const VOUCHER: &str = "voucher";
    pub const CLUSTER: &str = "cluster";
    pub const LOCK: &str = "lock";
    pub const FLOOR: &str = "floor";
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("record body has no canonical form")]
    Canonical(#[from] CanonicalError),
    #[error("record of {bytes} bytes is over the limit of {RECORD_MAX_BYTES}")]
    TooLarge { bytes: usize },
    #[error("record {0} is too long")]
    FieldTooLong(&'static str),
    #[error("record is not signed by its owner")]
    BadSignature,
    #[error("record body is not a valid {kind}")]
    Body { kind: String, source: serde_json::Error },
    #[error("a deleted record has a body")]
    DeletedWithBody,
}

/// What identifies a record across its versions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordKey {
    pub kind: String,
    pub id: String,
    pub owner: PeerId,
}

/// What orders the versions of one record: the higher version, then the larger content hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordHead {
    pub version: u64,
    pub hash: [u8; 32],
}

impl RecordHead {
    /// Whether a record of this head takes the place of what is held.
    pub fn is_news(self, held: Option<RecordHead>) -> bool {
        if let Some(held) = held.filter(|held| held.version == self.version && planted(Bug::SmallerHashWins)) {
            return self.hash < held.hash;
        }
        held.is_none_or(|held| self > held || planted(Bug::VersionCheckSkipped) && self != held)
    }
}

/// A record whose form has been checked. Its signature has been checked only where a function says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub key: RecordKey,
    pub version: u64,
    pub deleted: bool,
    pub body: Value,
    pub signature: Signature,
}

impl Record {
    /// Signs `body` as version `version` of the record `kind`/`id` owned by `owner`.
    pub fn sign(
        key: &SigningKey,
        owner: PeerId,
        kind: &str,
        id: &str,
        version: u64,
        body: Value,
    ) -> Result<Self, RecordError> {
        Self::sign_either(key, RecordKey { kind: kind.into(), id: id.into(), owner }, version, false, body)
    }

    /// Signs the tombstone that follows the record `key`.
    pub fn sign_tombstone(signer: &SigningKey, key: RecordKey, version: u64) -> Result<Self, RecordError> {
        Self::sign_either(signer, key, version, true, Value::Null)
    }

    /// Signs, as the peer `by`, the tombstone of a record whose owner has left the cluster (cluster.md §5). It names its
    /// signer, and counts only beside the owner's announcement that it left, and up to the version of that.
    pub fn sign_tombstone_of_another(
        signer: &SigningKey,
        by: PeerId,
        key: RecordKey,
        version: u64,
    ) -> Result<Self, RecordError> {
        Self::sign_either(signer, key, version, true, serde_json::json!({ DELETED_BY: by }))
    }

    /// The signer of a tombstone that is not its owner's.
    pub fn deleted_by(&self) -> Option<PeerId> {
        let only = self.body.as_object().filter(|body| self.deleted && body.len() == 1)?;
        only.get(DELETED_BY)?.as_str()?.parse().ok()
    }

    fn sign_either(
        signer: &SigningKey,
        key: RecordKey,
        version: u64,
        deleted: bool,
        body: Value,
    ) -> Result<Self, RecordError> {
        let placeholder = Signature::from_bytes([0; 64]);
        let mut record = Self { key, version, deleted, body, signature: placeholder };
        record.signature = record.transcript()?.sign(signer);
        Ok(record)
    }

    fn transcript(&self) -> Result<Transcript, RecordError> {
        if self.key.kind.len() > KIND_MAX_BYTES {
            return Err(RecordError::FieldTooLong("kind"));
        }
        if self.key.id.len() > ID_MAX_BYTES {
            return Err(RecordError::FieldTooLong("id"));
        }
        if self.deleted && !self.body.is_null() && self.deleted_by().is_none() {
            return Err(RecordError::DeletedWithBody);
        }
        let canonical = canonical::to_canonical(&self.body)?;
        if canonical.len() > RECORD_MAX_BYTES {
            return Err(RecordError::TooLarge { bytes: canonical.len() });
        }
        Ok(Transcript::new(Domain::Record)
            .field(&self.key.kind)
            .field(&self.key.id)
            .field(self.key.owner.to_string())
            .integer(self.version)
            .integer(u64::from(self.deleted))
            .field(canonical::digest(&self.body)?))
    }

    /// Checks form, size and the owner's signature.
    pub fn verify(&self, owner_key: &PublicKey) -> Result<(), RecordError> {
        if self.transcript()?.verify(owner_key, &self.signature) { Ok(()) } else { Err(RecordError::BadSignature) }
    }

    pub fn head(&self) -> Result<RecordHead, RecordError> {
        Ok(RecordHead { version: self.version, hash: canonical::digest(&self.body)? })
    }

    pub fn body_as<T: DeserializeOwned>(&self) -> Result<T, RecordError> {
        T::deserialize(&self.body).map_err(|source| RecordError::Body { kind: self.key.kind.clone(), source })
    }
}

/// Body of a `peer` record; its id is the peer id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerBody {
    pub name: String,
    pub public_key: PublicKey,
    pub x25519_key: X25519Public,
    /// All, in order; the first is primary.
    pub endpoints: Vec<Endpoint>,
    pub data_ports: DataPorts,
    pub api_access: ApiAccess,
    /// Version of the software, `vMAJOR.MINOR.PATCH`.
    pub version: String,
    pub license_id: LicenseId,
    pub created_at: UnixTime,
}

/// A secret digest with the end of its validity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretDigest {
    /// SHA-256 of the secret's text, hex.
    pub sha256: String,
    pub not_after: Option<UnixTime>,
}

/// Body of a `credential` record; its id is the client id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialBody {
    pub client_id: ClientId,
    pub secrets: Vec<SecretDigest>,
    pub scopes: ScopeSet,
    pub description: String,
    pub license_id: LicenseId,
    pub created_at: UnixTime,
    /// The client that asked for the last rotation; absent also for the recovery token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_by: Option<ClientId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<UnixTime>,
}

/// Body of a `revocation` record; its id is the subject id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationBody {
    pub peer_id: Option<PeerId>,
    pub public_key: Option<PublicKey>,
    pub client_id: Option<ClientId>,
    pub reason: RevocationReason,
    pub revoked_at: UnixTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevocationReason {
    Deleted,
    Deactivated,
    Revoked,
}

/// Body of a `readmission` record; its id is the subject peer id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadmissionBody {
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    /// The revocations this answers: owner and version of each.
    pub answers: Vec<AnsweredRevocation>,
    pub readmitted_at: UnixTime,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AnsweredRevocation {
    pub issuer: PeerId,
    pub version: u64,
}

/// Body of a `cluster` record; its id is the cluster id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterBody {
    pub cluster_id: ClusterId,
    pub created_at: UnixTime,
    /// The credential shared by the members (cluster.md §3).
    pub client_id: ClientId,
    /// The ids that its creator's cluster went by later, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<ClusterId>,
}

/// Body of a `floor` record; its id is the owner's peer id. The owner's tombstones up to `through` are collected, and
/// none of its records up to there comes back (cluster.md §7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorBody {
    pub through: u64,
    /// Names the database that the owner wrote it from; another one remembers nothing of this one's records.
    pub lineage: String,
    /// The start of the owner to which its peers said that they hold all: what was said to another one, which may have
    /// given the same versions, does not count.
    pub instance: String,
}

/// A trusted peer's signed word about a third one (cluster.md §4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    pub subject_peer_id: PeerId,
    pub subject_public_key: PublicKey,
    pub subject_endpoints: Vec<Endpoint>,
    pub customer_id: crate::model::CustomerId,
    pub issuer_peer_id: PeerId,
    pub issued_at: UnixTime,
    pub expires_at: UnixTime,
    pub signature: Signature,
}

impl Voucher {
    /// The bytes that the issuer signs: every field but the signature, in order; endpoints joined by commas.
    pub fn transcript(&self) -> Transcript {
        let endpoints: Vec<String> = self.subject_endpoints.iter().map(Endpoint::to_string).collect();
        Transcript::new(Domain::Voucher)
            .field(self.subject_peer_id.to_string())
            .field(self.subject_public_key.as_bytes())
            .field(endpoints.join(","))
            .field(self.customer_id.to_string())
            .field(self.issuer_peer_id.to_string())
            .integer(self.issued_at.as_ms())
            .integer(self.expires_at.as_ms())
    }
}

/// A peer's signed word that it leaves the cluster for good (cluster.md §8). It travels in the peer's own revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deactivation {
    /// Always `deactivated`.
    pub action: String,
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    pub cluster_id: ClusterId,
    /// Of the revocation; nothing that the peer wrote before has a higher one.
    pub version: u64,
    pub deactivated_at: UnixTime,
    pub signature: Signature,
}

impl Deactivation {
    pub fn sign(key: &SigningKey, peer_id: PeerId, cluster_id: ClusterId, version: u64, now: UnixTime) -> Self {
        let mut announcement = Self {
            action: "deactivated".to_owned(),
            peer_id,
            public_key: key.public(),
            cluster_id,
            version,
            deactivated_at: now,
            signature: Signature::from_bytes([0; 64]),
        };
        announcement.signature = announcement.transcript().sign(key);
        announcement
    }

    /// Whether it is signed with the key that it names, which the caller compares with the one held.
    pub fn verify(&self) -> bool {
        self.transcript().verify(&self.public_key, &self.signature)
    }

    fn transcript(&self) -> Transcript {
        Transcript::new(Domain::Deactivate)
            .field(&self.action)
            .field(self.peer_id.to_string())
            .field(self.public_key.as_bytes())
            .field(self.cluster_id.to_string())
            .integer(self.version)
            .integer(self.deactivated_at.as_ms())
    }
}

/// Body of the `revocation` by which a peer leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepartureBody {
    #[serde(flatten)]
    pub revocation: RevocationBody,
    pub announcement: Deactivation,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rng;
    use serde_json::json;

    #[test]
    fn only_the_owner_signs_and_every_field_is_covered() {
        let mut rng = Rng::from_seed([1; 32]);
        let owner = PeerId::mint(UnixTime::from_ms(1), &mut rng);
        let key = SigningKey::from_seed([2; 32]);
        let record = Record::sign(&key, owner, kind::SERVICE, "svc_x", 3, json!({"a": 1})).unwrap();
        assert!(record.verify(&key.public()).is_ok());
        assert!(record.verify(&SigningKey::from_seed([4; 32]).public()).is_err());
        let edits: [fn(&mut Record); 5] = [
            |r| r.key.kind = "status".into(),
            |r| r.key.id = "svc_y".into(),
            |r| r.version += 1,
            |r| r.body = json!({"a": 2}),
            |r| {
                r.deleted = true;
                r.body = Value::Null
            },
        ];
        for edit in edits {
            let mut forged = record.clone();
            edit(&mut forged);
            assert!(forged.verify(&key.public()).is_err());
        }
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn oversize_records_are_refused_at_their_source() {
        let mut rng = Rng::from_seed([1; 32]);
        let owner = PeerId::mint(UnixTime::from_ms(1), &mut rng);
        let key = SigningKey::from_seed([2; 32]);
        let body = json!("x".repeat(RECORD_MAX_BYTES));
        assert!(matches!(Record::sign(&key, owner, "status", "x", 1, body), Err(RecordError::TooLarge { .. })));
    }

    #[test]
    fn an_announcement_is_signed_field_by_field() {
        let (now, mut rng) = (UnixTime::from_ms(1_767_225_600_123), Rng::from_seed([1; 32]));
        let key = SigningKey::from_seed([2; 32]);
        let said = Deactivation::sign(&key, PeerId::mint(now, &mut rng), ClusterId::mint(now, &mut rng), 7, now);
        assert!(said.verify());
        let text = serde_json::to_string(&said).unwrap();
        let order = ["action", "peer_id", "public_key", "cluster_id", "version", "deactivated_at", "signature"];
        let at: Vec<usize> = order.iter().map(|name| text.find(&format!("\"{name}\":")).unwrap()).collect();
        assert!(at.is_sorted(), "{text}");
        let edits: [fn(&mut Deactivation); 5] = [
            |d| d.action = "deleted".into(),
            |d| d.public_key = SigningKey::from_seed([3; 32]).public(),
            |d| d.version += 1,
            |d| d.deactivated_at = UnixTime::from_ms(1),
            |d| d.peer_id = PeerId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([4; 32])),
        ];
        for edit in edits {
            let mut forged = said.clone();
            edit(&mut forged);
            assert!(!forged.verify());
        }
    }

    #[test]
    fn a_tombstone_of_another_names_its_signer_and_nothing_else() {
        let mut rng = Rng::from_seed([1; 32]);
        let [owner, by] = [1, 2].map(|ms| PeerId::mint(UnixTime::from_ms(ms), &mut rng));
        let signer = SigningKey::from_seed([2; 32]);
        let key = RecordKey { kind: kind::SERVICE.into(), id: "svc_x".into(), owner };
        let record = Record::sign_tombstone_of_another(&signer, by, key, 4).unwrap();
        assert_eq!((record.deleted_by(), record.verify(&signer.public()).is_ok()), (Some(by), true));
        let mut more = record.clone();
        more.body["note"] = json!("x");
        assert_eq!(more.deleted_by(), None);
        assert!(matches!(more.verify(&signer.public()), Err(RecordError::DeletedWithBody)));
        let live = Record { deleted: false, ..record };
        assert_eq!(live.deleted_by(), None);
    }
}
