//! Messages of gossip (cluster.md §6): JSON over peer-signed HTTP, each with a bound on everything it lists. Fields that
//! this build does not know are ignored.

use super::record::{ID_MAX_BYTES, KIND_MAX_BYTES, RECORD_MAX_BYTES, Record, RecordHead, RecordKey, kind};
use crate::model::{Endpoint, PeerId, UnixTime};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeStruct};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// Largest request or answer (api.md, limits).
pub const MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Heads in one page of a comparison. The largest head takes 0.7 KiB of JSON, so a full page stays below 2.2 MiB.
pub const PAGE_MAX_HEADS: usize = 3072;
/// Records are added to a message until they reach this size; the last one may go over it by one record.
pub const RECORDS_MAX_BYTES: usize = 1024 * 1024;
/// Records in one message.
pub const RECORDS_MAX_COUNT: usize = 4096;
/// Envelope of one record in JSON, at most: key, version, signature and punctuation.
pub const ENVELOPE_MAX_BYTES: usize = 1024;
/// Highest version of a record: the largest integer that every JSON implementation reads exactly.
pub const VERSION_MAX: u64 = (1 << 53) - 1;
/// Owners that one heartbeat asks about; further ones follow with the next.
pub const BEHIND_MAX: usize = 64;
/// Floors that back the records of one message; records of further owners go without.
pub const BACKINGS_MAX: usize = 512;
/// Endpoints of one peer that are read.
pub const ENDPOINTS_MAX: usize = 16;
const TEXT_MAX_BYTES: usize = 64;

const _: () = assert!(
    RECORDS_MAX_BYTES + RECORD_MAX_BYTES + ENVELOPE_MAX_BYTES + PAGE_MAX_HEADS * 704 + BACKINGS_MAX * 768
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

/// One digest a registry: SHA-256 over its sorted keys, versions and content hashes. Equal digests mean equal registries.
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
    pub license_state: String,
    pub digests: Digests,
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

/// All records of one owner up to a version (cluster.md §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    pub through: u64,
    pub sum: Sum,
}

/// "I hold all of your records up to `through`", as the copy `of` of the owner itself confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    pub of: String,
    pub through: u64,
}

/// The sum, modulo 2^128, of one hash a record: equal sums of one owner's records mean equal records. Hex in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(pub u128);

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let sum = digits.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        sum.map(Self).ok_or_else(|| D::Error::custom("sum is not of 32 hex digits"))
    }
}

pub type HeartbeatReply = Heartbeat;

impl Heartbeat {
    fn check(&self) -> Result<(), Malformed> {
        for text in [&self.instance, &self.version, &self.license_state] {
            bound(text.len() <= TEXT_MAX_BYTES, "a text of the heartbeat is too long")?;
        }
        bound(self.endpoints.len() <= ENDPOINTS_MAX, "too many endpoints")?;
        bound(self.behind.len() <= BEHIND_MAX, "too many owners are asked about")?;
        bound(self.vouches.len() <= BEHIND_MAX, "too many owners are vouched for")?;
        bound(self.holds.iter().all(|h| h.of.len() <= TEXT_MAX_BYTES), "a text of the heartbeat is too long")?;
        let told = self.holds.iter().map(|h| h.through).chain(self.own.iter().map(|w| w.through));
        let mut told = told.chain(self.vouches.values().map(|w| w.through));
        bound(told.all(|v| v <= VERSION_MAX), "a version is too high")
    }
}

/// Key, version and content hash of one record; in JSON an array of `[kind, id, owner, version, hash]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "HeadTuple", into = "HeadTuple")]
pub struct KeyedHead {
    pub key: RecordKey,
    pub head: RecordHead,
}

type HeadTuple = (String, String, PeerId, u64, Digest);

impl From<HeadTuple> for KeyedHead {
    fn from((kind, id, owner, version, hash): HeadTuple) -> Self {
        Self { key: RecordKey { kind, id, owner }, head: RecordHead { version, hash: hash.0 } }
    }
}

impl From<KeyedHead> for HeadTuple {
    fn from(KeyedHead { key, head }: KeyedHead) -> Self {
        (key.kind, key.id, key.owner, head.version, Digest(head.hash))
    }
}

/// Every head that the sender holds of one registry, after `after` up to and including `through` (none: to the end).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileRequest {
    pub registry: Registry,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<RecordKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<RecordKey>,
    pub heads: Vec<KeyedHead>,
}

impl ReconcileRequest {
    pub fn covers(&self, key: &RecordKey) -> bool {
        Registry::of(&key.kind) == self.registry
            && self.after.as_ref().is_none_or(|after| key > after)
            && self.through.as_ref().is_none_or(|through| key <= through)
    }

    fn check(&self) -> Result<(), Malformed> {
        bound(self.heads.len() <= PAGE_MAX_HEADS, "too many heads")?;
        self.after.iter().chain(&self.through).try_for_each(check_key)?;
        for head in &self.heads {
            check_key(&head.key)?;
            bound(self.covers(&head.key), "a head lies outside the page")?;
            bound(head.head.version <= VERSION_MAX, "a version is too high")?;
        }
        bound(self.heads.windows(2).all(|pair| pair[0].key < pair[1].key), "heads are not in order")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileReply {
    /// Records of the page that are newer at the responder or unknown to the sender.
    pub records: Records,
    /// Keys of the page that are newer at the sender; it pushes them.
    pub wants: Vec<RecordKey>,
    /// Set when the answer was full before the page ended: it covers the page up to and including this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<RecordKey>,
    pub digests: Digests,
}

impl ReconcileReply {
    fn check(&self) -> Result<(), Malformed> {
        self.records.check()?;
        bound(self.wants.len() <= PAGE_MAX_HEADS, "too many wanted keys")?;
        self.wants.iter().chain(&self.through).try_for_each(check_key)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushRequest {
    /// Of the sender, as its heartbeats say it.
    #[serde(default)]
    pub instance: String,
    pub records: Records,
    /// The receiver passes on what was new to it, once.
    pub relay: bool,
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
    pub list: Vec<Record>,
    pub unreadable: u32,
    /// For owners of records at or below the owner's floor, if the sender is complete with them.
    pub backings: Vec<Backing>,
}

/// What lets a peer that catches up take an owner's old records: the floor they lie under, and up to where the sender
/// is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    pub floor: Record,
    pub through: u64,
}

impl Records {
    fn check(&self) -> Result<(), Malformed> {
        bound(self.list.len() <= RECORDS_MAX_COUNT, "too many records")?;
        bound(self.backings.len() <= BACKINGS_MAX, "too many floors")?;
        bound(self.backings.iter().all(|b| b.through <= VERSION_MAX), "a version is too high")
    }
}

impl From<Vec<Record>> for Records {
    fn from(list: Vec<Record>) -> Self {
        Self { list, ..Self::default() }
    }
}

impl Serialize for Records {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.backings.is_empty() {
            return self.list.serialize(s);
        }
        let mut both = s.serialize_struct("Records", 2)?;
        both.serialize_field("list", &self.list)?;
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
                Ok(record) => records.list.push(record),
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

fn check_key(key: &RecordKey) -> Result<(), Malformed> {
    bound(key.kind.len() <= KIND_MAX_BYTES && key.id.len() <= ID_MAX_BYTES, "a record key is too long")
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
