//! Messages of gossip (cluster.md §6): JSON over peer-signed HTTP, each with a bound on everything it lists. Fields that
//! this build does not know are ignored.

pub mod life;
pub mod range;
pub mod whole;

use super::record::{RECORD_MAX_BYTES, Record, kind};
use crate::model::{Endpoint, PeerId, UnixTime};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use life::Lives;
use range::{Part, Salt};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeStruct};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, sync::Arc};
use whole::{Backing, Holds, Whole};

/// Largest request or answer (api.md, limits).
pub const MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Ranges in one request of a comparison.
pub const ASKED_MAX_PARTS: usize = 1024;
/// Those of them that are told as digests; each may be answered with sixteen ranges.
pub const ASKED_MAX_BRANCHES: usize = 64;
/// Ranges in one answer. The largest takes 0.4 KiB of JSON.
pub const ANSWER_MAX_PARTS: usize = 4096;
/// Records are added to a message until they reach this size; the last one may go over it by one record.
pub const RECORDS_MAX_BYTES: usize = 1024 * 1024;
/// Records in one message.
pub const RECORDS_MAX_COUNT: usize = 4096;
/// Envelope of one record in JSON, at most: key, version, signature and punctuation.
pub const ENVELOPE_MAX_BYTES: usize = 1024;
/// Highest version of a record: the largest integer that every JSON implementation reads exactly.
pub const VERSION_MAX: u64 = (1 << 53) - 1;
/// Relays that a pushed record may still go through.
pub const PUSH_HOPS_MAX: u8 = 12;
/// Endpoints of one peer that are read.
pub const ENDPOINTS_MAX: usize = 16;
/// Owners that one heartbeat asks about; further ones follow with the next.
pub const BEHIND_MAX: usize = 64;
/// Floors that back the records of one message; records of further owners go without.
pub const BACKINGS_MAX: usize = 512;
const TEXT_MAX_BYTES: usize = 64;

const _: () = assert!(
    RECORDS_MAX_BYTES + RECORD_MAX_BYTES + ENVELOPE_MAX_BYTES + ANSWER_MAX_PARTS * 400 + BACKINGS_MAX * 768
        < MESSAGE_MAX_BYTES,
    "the largest answer fits the limit of the API"
);

#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("gossip message of {bytes} bytes is over the limit of {MESSAGE_MAX_BYTES}")]
    TooLarge { bytes: usize },
    #[error("reading a gossip {op}")]
    Json { op: &'static str, source: serde_json::Error },
    #[error("gossip message is malformed: {0}")]
    Malformed(#[from] Malformed),
}

/// A message that breaks a bound or an order; the text names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// The three exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Heartbeat,
    Reconcile,
    Push,
}

impl Op {
    pub const ALL: [Op; 3] = [Op::Heartbeat, Op::Reconcile, Op::Push];

    pub fn name(self) -> &'static str {
        match self {
            Op::Heartbeat => "heartbeat",
            Op::Reconcile => "reconcile",
            Op::Push => "push",
        }
    }
    /// Where the request is posted.
    pub fn path(self) -> &'static str {
        match self {
            Op::Heartbeat => "/v1/gossip/heartbeat",
            Op::Reconcile => "/v1/gossip/reconcile",
            Op::Push => "/v1/gossip/push",
        }
    }
}

/// SHA-256; base64 in JSON, hex as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| D::Error::custom("digest is not base64"))?;
        bytes.try_into().map(Self).map_err(|_| D::Error::custom("digest is not of 32 bytes"))
    }
}

/// The parts of the cluster state that are compared on their own. Each kind of record belongs to exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registry {
    Peers,
    Services,
    Credentials,
    Revocations,
    Cluster,
}

impl Registry {
    pub const ALL: [Registry; 5] =
        [Registry::Peers, Registry::Services, Registry::Credentials, Registry::Revocations, Registry::Cluster];

    /// Kinds unknown to this build are in `cluster`; a later build has to leave them there, or digests of mixed
    /// versions would never agree.
    pub fn of(kind: &str) -> Registry {
        match kind {
            kind::PEER | kind::VOUCHER => Registry::Peers,
            kind::SERVICE | kind::STATUS => Registry::Services,
            kind::CREDENTIAL => Registry::Credentials,
            kind::REVOCATION | kind::READMISSION => Registry::Revocations,
            _ => Registry::Cluster,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Registry::Peers => "peers",
            Registry::Services => "services",
            Registry::Credentials => "credentials",
            Registry::Revocations => "revocations",
            Registry::Cluster => "cluster",
        }
    }

    /// The kind whose live records the registry counts.
    pub fn main_kind(self) -> &'static str {
        match self {
            Registry::Peers => kind::PEER,
            Registry::Services => kind::SERVICE,
            Registry::Credentials => kind::CREDENTIAL,
            Registry::Revocations => kind::REVOCATION,
            Registry::Cluster => kind::CLUSTER,
        }
    }
}

/// One digest a registry: of the root of its Merkle trie (cluster.md §6). Equal digests mean equal registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    pub peers: Digest,
    pub services: Digest,
    pub credentials: Digest,
    pub revocations: Digest,
    pub cluster: Digest,
}

impl Digests {
    pub fn get(&self, registry: Registry) -> Digest {
        match registry {
            Registry::Peers => self.peers,
            Registry::Services => self.services,
            Registry::Credentials => self.credentials,
            Registry::Revocations => self.revocations,
            Registry::Cluster => self.cluster,
        }
    }

    pub fn set(&mut self, registry: Registry, digest: Digest) {
        match registry {
            Registry::Peers => self.peers = digest,
            Registry::Services => self.services = digest,
            Registry::Credentials => self.credentials = digest,
            Registry::Revocations => self.revocations = digest,
            Registry::Cluster => self.cluster = digest,
        }
    }

    pub fn differing(&self, other: &Digests) -> Vec<Registry> {
        Registry::ALL.into_iter().filter(|r| self.get(*r) != other.get(*r)).collect()
    }
}

/// Sent every 10 s to each trusted peer; the answer is the responder's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Random at each start; with `starts` it tells two live copies of one identity apart (cluster.md §7).
    pub instance: String,
    pub starts: u64,
    /// The sender's wall clock. Nothing is ordered by it.
    pub time: UnixTime,
    /// Version of the software.
    pub version: String,
    pub endpoints: Vec<Endpoint>,
    /// Not sent while it is the usual one.
    #[serde(default = "usual_license_state", skip_serializing_if = "is_usual_license_state")]
    pub license_state: String,
    pub digests: Digests,
    /// Peers that the sender has news of; only in clusters too large for heartbeats to everyone.
    #[serde(default, skip_serializing_if = "Lives::is_empty")]
    pub lives: Lives,
    /// The sender's own records; absent while it does not know whether it holds all that it ever wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Whole>,
    /// What the sender holds of the receiver's records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<Holds>,
    /// Owners whose records the sender is catching up with; the answer vouches for those it can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<PeerId>,
    /// In an answer: what the sender, itself complete, holds of the owners that were asked about.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vouches: BTreeMap<PeerId, Whole>,
}

pub type HeartbeatReply = Heartbeat;

const USUAL_LICENSE_STATE: &str = "valid";

fn usual_license_state() -> String {
    USUAL_LICENSE_STATE.to_owned()
}

fn is_usual_license_state(state: &str) -> bool {
    state == USUAL_LICENSE_STATE
}

impl Heartbeat {
    fn check(&self) -> Result<(), Malformed> {
        for text in [&self.instance, &self.version, &self.license_state] {
            bound(text.len() <= TEXT_MAX_BYTES, "a text of the heartbeat is too long")?;
        }
        bound(self.endpoints.len() <= ENDPOINTS_MAX, "too many endpoints")?;
        self.lives.check()?;
        bound(self.behind.len() <= BEHIND_MAX, "too many owners are asked about")?;
        bound(self.vouches.len() <= BEHIND_MAX, "too many owners are vouched for")?;
        bound(self.holds.iter().all(|h| h.of.len() <= TEXT_MAX_BYTES), "a text of the heartbeat is too long")?;
        let told = self.holds.iter().map(|h| h.through).chain(self.own.iter().map(|w| w.through));
        let mut told = told.chain(self.vouches.values().map(|w| w.through));
        bound(told.all(|v| v <= VERSION_MAX), "a version is too high")
    }
}

/// One step of a comparison: ranges that differ as far as the sender knows, and records that the receiver lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileRequest {
    pub registry: Registry,
    pub salt: Salt,
    /// In order, disjoint, none of them `Open`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    #[serde(default, skip_serializing_if = "Records::is_empty")]
    pub records: Records,
}

impl ReconcileRequest {
    fn check(&self) -> Result<(), Malformed> {
        bound(self.parts.len() <= ASKED_MAX_PARTS, "too many ranges")?;
        let branches = self.parts.iter().filter(|part| matches!(part, Part::Branch(..))).count();
        bound(branches <= ASKED_MAX_BRANCHES, "too many ranges are told as digests")?;
        bound(!self.parts.iter().any(|part| matches!(part, Part::Open(_))), "a request leaves a range open")?;
        self.parts.iter().try_for_each(Part::check)?;
        range::check_disjoint(&self.parts)?;
        self.records.check()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileReply {
    /// Of the ranges that were asked about: what differs one digit further, what the sender lacks, what is left open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Records of those ranges that are newer at the responder or unknown to the asking peer.
    #[serde(default, skip_serializing_if = "Records::is_empty")]
    pub records: Records,
    /// Of the registry, when nothing is left open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

impl ReconcileReply {
    fn check(&self) -> Result<(), Malformed> {
        self.records.check()?;
        bound(self.parts.len() <= ANSWER_MAX_PARTS, "too many ranges")?;
        self.parts.iter().try_for_each(Part::check)?;
        range::check_disjoint(&self.parts)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushRequest {
    /// Of the sender, as its heartbeats say it.
    #[serde(default)]
    pub instance: String,
    pub records: Records,
    /// The receiver passes on what was new to it while this is not 0, with one less; above [`PUSH_HOPS_MAX`] counts as that.
    #[serde(default)]
    pub hops: u8,
    /// The sender's, these records included.
    pub digests: Digests,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReply {
    /// Records that were refused.
    pub dropped: u32,
    /// The responder's, after this push.
    pub digests: Digests,
}

/// Records of one message. One that cannot be read is left out and counted; the others stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    pub list: Vec<Arc<Record>>,
    pub unreadable: u32,
    /// For owners of records at or below the owner's floor, if the sender is complete with them.
    pub backings: Vec<Backing>,
}

impl Records {
    /// Those of the index, which need no copy.
    pub fn shared(list: Vec<Arc<Record>>) -> Self {
        Self { list, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn check(&self) -> Result<(), Malformed> {
        bound(self.list.len() <= RECORDS_MAX_COUNT, "too many records")?;
        bound(self.backings.len() <= BACKINGS_MAX, "too many floors")?;
        bound(self.backings.iter().all(|b| b.through <= VERSION_MAX), "a version is too high")
    }
}

impl From<Vec<Record>> for Records {
    fn from(list: Vec<Record>) -> Self {
        Self::shared(list.into_iter().map(Arc::new).collect())
    }
}

impl Serialize for Records {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.backings.is_empty() {
            return s.collect_seq(self.list.iter().map(Arc::as_ref));
        }
        let list: Vec<&Record> = self.list.iter().map(Arc::as_ref).collect();
        let mut both = s.serialize_struct("Records", 2)?;
        both.serialize_field("list", &list)?;
        both.serialize_field("backings", &self.backings)?;
        both.end()
    }
}

impl<'de> Deserialize<'de> for Records {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // A bare list, or an object with a list and backings.
        let (list, backings) = match Value::deserialize(d)? {
            Value::Array(list) => (list, Vec::new()),
            Value::Object(mut both) => match (both.remove("list"), both.remove("backings")) {
                (Some(Value::Array(list)), Some(Value::Array(backings))) => (list, backings),
                _ => return Err(D::Error::custom("records lack a list or its backings")),
            },
            _ => return Err(D::Error::custom("records are not a list")),
        };
        let mut records = Records::default();
        for value in list {
            match Record::deserialize(value) {
                Ok(record) => records.list.push(Arc::new(record)),
                Err(_) => records.unreadable = records.unreadable.saturating_add(1),
            }
        }
        for value in backings {
            match Backing::deserialize(value) {
                Ok(backing) => records.backings.push(backing),
                Err(_) => records.unreadable = records.unreadable.saturating_add(1),
            }
        }
        Ok(records)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Heartbeat(Heartbeat),
    Reconcile(ReconcileRequest),
    Push(PushRequest),
}

impl Request {
    pub fn op(&self) -> Op {
        match self {
            Request::Heartbeat(_) => Op::Heartbeat,
            Request::Reconcile(_) => Op::Reconcile,
            Request::Push(_) => Op::Push,
        }
    }
    /// The body of the HTTP request.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Request::Heartbeat(m) => json(m),
            Request::Reconcile(m) => json(m),
            Request::Push(m) => json(m),
        }
    }
    pub fn decode(op: Op, bytes: &[u8]) -> Result<Self, GossipError> {
        let request = match op {
            Op::Heartbeat => Request::Heartbeat(parse(op, bytes)?),
            Op::Reconcile => Request::Reconcile(parse(op, bytes)?),
            Op::Push => Request::Push(parse(op, bytes)?),
        };
        request.check()?;
        Ok(request)
    }
    /// The bounds that types do not express.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Request::Heartbeat(m) => m.check(),
            Request::Reconcile(m) => m.check(),
            Request::Push(m) => {
                bound(m.instance.len() <= TEXT_MAX_BYTES, "an instance is too long")?;
                m.records.check()
            }
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "one at a time, on its way to or from the wire")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Heartbeat(HeartbeatReply),
    Reconcile(ReconcileReply),
    Push(PushReply),
}

impl Reply {
    pub fn op(&self) -> Op {
        match self {
            Reply::Heartbeat(_) => Op::Heartbeat,
            Reply::Reconcile(_) => Op::Reconcile,
            Reply::Push(_) => Op::Push,
        }
    }
    /// The body of the HTTP answer.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Reply::Heartbeat(m) => json(m),
            Reply::Reconcile(m) => json(m),
            Reply::Push(m) => json(m),
        }
    }
    /// Reads the answer to a request of kind `op`.
    pub fn decode(op: Op, bytes: &[u8]) -> Result<Self, GossipError> {
        let reply = match op {
            Op::Heartbeat => Reply::Heartbeat(parse(op, bytes)?),
            Op::Reconcile => Reply::Reconcile(parse(op, bytes)?),
            Op::Push => Reply::Push(parse(op, bytes)?),
        };
        reply.check()?;
        Ok(reply)
    }
    /// The bounds that types do not express.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Reply::Heartbeat(m) => m.check(),
            Reply::Reconcile(m) => m.check(),
            Reply::Push(_) => Ok(()),
        }
    }
}

fn bound(holds: bool, what: &'static str) -> Result<(), Malformed> {
    if holds { Ok(()) } else { Err(Malformed(what)) }
}

fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have string keys and no fallible parts")
}

fn parse<'a, T: Deserialize<'a>>(op: Op, bytes: &'a [u8]) -> Result<T, GossipError> {
    if bytes.len() > MESSAGE_MAX_BYTES {
        return Err(GossipError::TooLarge { bytes: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(|source| GossipError::Json { op: op.name(), source })
}
