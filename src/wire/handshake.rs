//! Messages of the handshake (cluster.md §4). Unknown fields are ignored; every list and byte string is bounded.

use super::canonical;
use super::record::{Record, Voucher};
use super::sign::{Domain, Transcript};
use crate::model::{ClusterId, DEFAULT_API_PORT, Endpoint, LicenseId, PeerId, PublicKey, Signature, X25519Public};
use crate::planted::{Bug, planted};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{fmt, num::NonZeroU16, str::FromStr};

/// The only protocol there is: nothing is negotiated, so nothing can be downgraded.
pub const PROTOCOL: u32 = 1;
/// Largest handshake body, either way (api.md §2).
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// Largest step 1: what a stranger can make the responder keep is of this order (simulation.md H6).
pub const INIT_MAX_BYTES: usize = 4 * 1024;
/// Largest sealed part; its base64 form and the other fields fit into [`BODY_MAX_BYTES`].
pub const SEALED_MAX_BYTES: usize = 47 * 1024;
/// Endpoints of one peer.
pub const ENDPOINTS_MAX: usize = 16;
/// All endpoints of one list, as text.
pub const ENDPOINTS_TEXT_MAX_BYTES: usize = 768;
/// Members named in a sealed part; their ids fill about three quarters of it.
pub const MEMBERS_MAX: usize = 1024;
const VERSION_MAX_BYTES: usize = 32;

pub const IDENTITY_PATH: &str = "/v1/cluster/identity";
pub const INIT_PATH: &str = "/v1/handshake/init";
pub const FINISH_PATH: &str = "/v1/handshake/finish";

#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("message of {bytes} bytes is over the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("message is not of the documented form")]
    Form(#[from] serde_json::Error),
    #[error("message field {0} is over its limit")]
    FieldTooLarge(&'static str),
    #[error("protocol {0} is not supported, only {PROTOCOL} is")]
    Protocol(u32),
}

/// A message with limits of its own.
pub trait Message: DeserializeOwned {
    /// Largest encoded form, in bytes.
    const MAX_BYTES: usize = BODY_MAX_BYTES;

    /// Checks the limits that its types do not enforce.
    fn check(&self) -> Result<(), MessageError>;
}

/// Reads a message from JSON; the size is checked before anything is parsed.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, MessageError> {
    if bytes.len() > M::MAX_BYTES {
        return Err(MessageError::TooLarge { bytes: bytes.len(), limit: M::MAX_BYTES });
    }
    let message: M = serde_json::from_slice(bytes)?;
    message.check()?;
    Ok(message)
}

macro_rules! bytes_as_base64 {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl FromStr for $name {
            type Err = &'static str;
            fn from_str(s: &str) -> Result<Self, &'static str> {
                let bytes = BASE64.decode(s).ok().and_then(|b| b.try_into().ok());
                bytes.map(Self).ok_or(concat!("expected base64 of ", stringify!($len), " bytes"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE64.encode(self.0))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&BASE64.encode(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = std::borrow::Cow::<str>::deserialize(d)?;
                s.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

bytes_as_base64!(
    /// 32 random bytes that a signature must cover. JSON: base64.
    Challenge, 32);
bytes_as_base64!(
    /// Names one open session of a responder. JSON: base64.
    SessionId, 16);

/// Nonce and ciphertext of a sealed part. JSON: base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

impl Serialize for Sealed {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Sealed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<str>::deserialize(d)?;
        BASE64.decode(s.as_bytes()).map(Self).map_err(|_| serde::de::Error::custom("expected base64"))
    }
}

/// Step 0 and the reverse call: `GET /v1/cluster/identity`. Ids that do not exist yet are `""`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    #[serde(with = "empty_is_none")]
    pub peer_id: Option<PeerId>,
    #[serde(with = "empty_is_none")]
    pub public_key: Option<PublicKey>,
    #[serde(with = "empty_is_none")]
    pub license_id: Option<LicenseId>,
    #[serde(with = "empty_is_none")]
    pub cluster_id: Option<ClusterId>,
    /// `vMAJOR.MINOR.PATCH`; information only, nothing depends on it.
    pub version: String,
}

/// `None` as the empty string.
mod empty_is_none {
    use super::*;

    pub fn serialize<T: fmt::Display, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => s.collect_str(value),
            None => s.serialize_str(""),
        }
    }

    pub fn deserialize<'de, T, D>(d: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr,
        T::Err: fmt::Display,
        D: Deserializer<'de>,
    {
        let s = std::borrow::Cow::<str>::deserialize(d)?;
        if s.is_empty() { Ok(None) } else { s.parse().map(Some).map_err(serde::de::Error::custom) }
    }
}

/// Step 1: `POST /v1/handshake/init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    pub protocol: u32,
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    pub challenge: Challenge,
    pub ephemeral: X25519Public,
    pub license_id: LicenseId,
    pub cluster_id: ClusterId,
    /// Where the initiator can be reached, in order. Empty: it does not know.
    pub endpoints: Vec<Endpoint>,
    /// Where the initiator believes the responder to be reachable, in order.
    #[serde(default)]
    pub target_endpoints: Vec<Endpoint>,
    /// Port of the initiator's API, for the call back to the address it is seen at when it knows no endpoint.
    #[serde(default = "default_api_port")]
    pub api_port: NonZeroU16,
}

/// 8080.
pub fn default_api_port() -> NonZeroU16 {
    const { NonZeroU16::new(DEFAULT_API_PORT).expect("8080 is not 0") }
}

/// Step 1r.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitResponse {
    pub session: SessionId,
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    pub challenge2: Challenge,
    pub ephemeral: X25519Public,
    pub license_id: LicenseId,
    pub cluster_id: ClusterId,
    pub signature: Signature,
}

/// Step 2: `POST /v1/handshake/finish`. Seals an [`InitiatorPart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    pub session: SessionId,
    pub signature: Signature,
    pub sealed: Sealed,
}

/// Step 2r. Seals a [`ResponderPart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishResponse {
    pub sealed: Sealed,
}

/// What the initiator says under seal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitiatorPart {
    /// The license document, unchanged.
    pub license: Value,
    /// Everyone the sender trusts, itself included.
    pub members: Vec<PeerId>,
    /// The sender's own `peer` record.
    pub record: Record,
}

/// What the responder says under seal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponderPart {
    #[serde(flatten)]
    pub common: InitiatorPart,
    /// The responder's word about the initiator.
    pub voucher: Voucher,
}

/// The first of `endpoints` that fit into a message, each once.
pub fn bounded_endpoints(endpoints: &[Endpoint]) -> Vec<Endpoint> {
    let mut kept: Vec<Endpoint> = Vec::new();
    for endpoint in endpoints {
        if !kept.contains(endpoint) {
            kept.push(endpoint.clone());
            if check_endpoints("endpoints", &kept).is_err() {
                kept.pop();
                break;
            }
        }
    }
    kept
}

fn check_endpoints(name: &'static str, endpoints: &[Endpoint]) -> Result<(), MessageError> {
    let text: usize = endpoints.iter().map(|e| e.host().len() + ":65535".len()).sum();
    if endpoints.len() > ENDPOINTS_MAX || text > ENDPOINTS_TEXT_MAX_BYTES {
        return Err(MessageError::FieldTooLarge(name));
    }
    Ok(())
}

impl Message for Identity {
    const MAX_BYTES: usize = INIT_MAX_BYTES;

    fn check(&self) -> Result<(), MessageError> {
        if self.version.len() > VERSION_MAX_BYTES { Err(MessageError::FieldTooLarge("version")) } else { Ok(()) }
    }
}

impl Message for Init {
    const MAX_BYTES: usize = INIT_MAX_BYTES;

    fn check(&self) -> Result<(), MessageError> {
        if self.protocol != PROTOCOL {
            return Err(MessageError::Protocol(self.protocol));
        }
        check_endpoints("endpoints", &self.endpoints)?;
        check_endpoints("target_endpoints", &self.target_endpoints)
    }
}

impl Message for InitResponse {
    const MAX_BYTES: usize = INIT_MAX_BYTES;

    fn check(&self) -> Result<(), MessageError> {
        Ok(())
    }
}

impl Message for Finish {
    fn check(&self) -> Result<(), MessageError> {
        self.sealed.check()
    }
}

impl Message for FinishResponse {
    fn check(&self) -> Result<(), MessageError> {
        self.sealed.check()
    }
}

impl Sealed {
    fn check(&self) -> Result<(), MessageError> {
        if self.0.len() > SEALED_MAX_BYTES { Err(MessageError::FieldTooLarge("sealed")) } else { Ok(()) }
    }
}

impl Message for InitiatorPart {
    const MAX_BYTES: usize = SEALED_MAX_BYTES;

    fn check(&self) -> Result<(), MessageError> {
        if self.members.len() > MEMBERS_MAX { Err(MessageError::FieldTooLarge("members")) } else { Ok(()) }
    }
}

impl Message for ResponderPart {
    const MAX_BYTES: usize = SEALED_MAX_BYTES;

    fn check(&self) -> Result<(), MessageError> {
        self.common.check()?;
        check_endpoints("subject_endpoints", &self.voucher.subject_endpoints)
    }
}

/// What the responder signs. `response.signature` is not part of it.
pub fn responder_transcript(init: &Init, response: &InitResponse) -> Transcript {
    transcript(Domain::HandshakeResponder, response.license_id, init, response)
}

/// What the initiator signs.
pub fn initiator_transcript(init: &Init, response: &InitResponse) -> Transcript {
    transcript(Domain::HandshakeInitiator, init.license_id, init, response)
}

fn transcript(domain: Domain, license_id: LicenseId, init: &Init, response: &InitResponse) -> Transcript {
    let fresh = if planted(Bug::FieldLeftUnsigned) { [0; 32] } else { response.challenge2.0 };
    Transcript::new(domain)
        .field(init.challenge.0)
        .field(fresh)
        .field(init.peer_id.to_string())
        .field(response.peer_id.to_string())
        .field(license_id.to_string())
        .field(init.public_key.as_bytes())
        .field(response.public_key.as_bytes())
        .field(init.ephemeral.as_bytes())
        .field(response.ephemeral.as_bytes())
}

/// SHA-256 of steps 1 and 1r: the canonical JSON of the one, then of the other, in the fields named here.
pub fn exchange_digest(init: &Init, response: &InitResponse) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(canonical_bytes(init));
    hash.update(canonical_bytes(response));
    hash.finalize().into()
}

fn canonical_bytes(message: &impl Serialize) -> Vec<u8> {
    let value = serde_json::to_value(message).expect("messages of strings and small integers serialize");
    canonical::to_canonical(&value).expect("messages of strings and small integers have a canonical form")
}

/// The error form of the API (api.md §1), in which refusals travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
    pub code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

impl Message for ErrorBody {
    fn check(&self) -> Result<(), MessageError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, SigningKey, UnixTime};
    use proptest::prelude::*;
    use serde_json::json;

    fn init() -> Init {
        let mut rng = Rng::from_seed([1; 32]);
        let t = UnixTime::from_ms(1);
        Init {
            protocol: PROTOCOL,
            peer_id: PeerId::mint(t, &mut rng),
            public_key: SigningKey::from_seed([2; 32]).public(),
            challenge: Challenge(rng.bytes()),
            ephemeral: X25519Public(rng.bytes()),
            license_id: LicenseId::mint(t, &mut rng),
            cluster_id: ClusterId::mint(t, &mut rng),
            endpoints: vec!["n1".parse().unwrap()],
            target_endpoints: vec!["n2:81".parse().unwrap()],
            api_port: default_api_port(),
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_known_ones_bounded() {
        let mut value = serde_json::to_value(init()).unwrap();
        value["later"] = json!({"x": [1, 2]});
        assert_eq!(decode::<Init>(value.to_string().as_bytes()).unwrap(), init());

        value["endpoints"] = json!(vec!["n1:1"; ENDPOINTS_MAX + 1]);
        assert!(matches!(decode::<Init>(value.to_string().as_bytes()), Err(MessageError::FieldTooLarge("endpoints"))));
        value["endpoints"] = json!([]);
        for bad in [json!(0), json!(65_536), json!(-1), json!("8080")] {
            value["api_port"] = bad;
            assert!(matches!(decode::<Init>(value.to_string().as_bytes()), Err(MessageError::Form(_))));
        }
        value.as_object_mut().unwrap().remove("api_port");
        assert_eq!(decode::<Init>(value.to_string().as_bytes()).unwrap().api_port.get(), 8080);
        value["protocol"] = json!(2);
        assert!(matches!(decode::<Init>(value.to_string().as_bytes()), Err(MessageError::Protocol(2))));
        value["pad"] = json!("x".repeat(INIT_MAX_BYTES));
        assert!(matches!(decode::<Init>(value.to_string().as_bytes()), Err(MessageError::TooLarge { .. })));
        assert!(decode::<Init>(br#"{"protocol":1,"protocol":1}"#).is_err());
    }

    // accepts: 001-54
    #[test]
    fn an_identity_has_the_five_fields_and_empty_strings_before_bootstrap() {
        let none =
            Identity { peer_id: None, public_key: None, license_id: None, cluster_id: None, version: "v1.4.0".into() };
        let text = serde_json::to_string(&none).unwrap();
        assert_eq!(text, r#"{"peer_id":"","public_key":"","license_id":"","cluster_id":"","version":"v1.4.0"}"#);
        assert_eq!(decode::<Identity>(text.as_bytes()).unwrap(), none);
        let i = init();
        let full = Identity {
            peer_id: Some(i.peer_id),
            public_key: Some(i.public_key),
            license_id: Some(i.license_id),
            cluster_id: Some(i.cluster_id),
            version: "v1.4.0".into(),
        };
        let value = serde_json::to_value(&full).unwrap();
        assert!(value["peer_id"].as_str().unwrap().starts_with("peer_"));
        assert!(value["license_id"].as_str().unwrap().starts_with("lic_"));
        assert!(value["cluster_id"].as_str().unwrap().starts_with("clu_"));
        assert_eq!(serde_json::from_value::<Identity>(value).unwrap(), full);
    }

    // accepts: 001-34
    #[test]
    fn both_signatures_cover_every_field_of_the_table() {
        let init = init();
        let mut rng = Rng::from_seed([5; 32]);
        let (t, key) = (UnixTime::from_ms(9), SigningKey::from_seed([6; 32]));
        let response = InitResponse {
            session: SessionId(rng.bytes()),
            peer_id: PeerId::mint(t, &mut rng),
            public_key: key.public(),
            challenge2: Challenge(rng.bytes()),
            ephemeral: X25519Public(rng.bytes()),
            license_id: LicenseId::mint(t, &mut rng),
            cluster_id: init.cluster_id,
            signature: Signature::from_bytes([0; 64]),
        };
        let by_responder = responder_transcript(&init, &response).sign(&key);
        let by_initiator = initiator_transcript(&init, &response).sign(&key);
        assert!(!initiator_transcript(&init, &response).verify(&key.public(), &by_responder));
        assert!(!responder_transcript(&init, &response).verify(&key.public(), &by_initiator));

        let other = Rng::from_seed([7; 32]);
        // Which of the two signatures covers the field: (responder's, initiator's).
        type Edit = fn(&mut Init, &mut InitResponse, &mut Rng);
        let edits: [(Edit, (bool, bool)); 10] = [
            (|i, _, r| i.challenge = Challenge(r.bytes()), (true, true)),
            (|_, a, r| a.challenge2 = Challenge(r.bytes()), (true, true)),
            (|i, _, r| i.peer_id = PeerId::mint(UnixTime::default(), r), (true, true)),
            (|_, a, r| a.peer_id = PeerId::mint(UnixTime::default(), r), (true, true)),
            (|i, _, r| i.public_key = SigningKey::from_seed(r.bytes()).public(), (true, true)),
            (|_, a, r| a.public_key = SigningKey::from_seed(r.bytes()).public(), (true, true)),
            (|i, _, r| i.ephemeral = X25519Public(r.bytes()), (true, true)),
            (|_, a, r| a.ephemeral = X25519Public(r.bytes()), (true, true)),
            (|_, a, r| a.license_id = LicenseId::mint(UnixTime::default(), r), (true, false)),
            (|i, _, r| i.license_id = LicenseId::mint(UnixTime::default(), r), (false, true)),
        ];
        for (n, (edit, covered)) in edits.into_iter().enumerate() {
            let (mut i, mut a) = (init.clone(), response.clone());
            edit(&mut i, &mut a, &mut other.clone());
            let refused = |t: Transcript, signature| !t.verify(&key.public(), signature);
            let found = (
                refused(responder_transcript(&i, &a), &by_responder),
                refused(initiator_transcript(&i, &a), &by_initiator),
            );
            assert_eq!(found, covered, "edit {n}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode::<Identity>(&bytes);
            let _ = decode::<Init>(&bytes);
            let _ = decode::<InitResponse>(&bytes);
            let _ = decode::<Finish>(&bytes);
            let _ = decode::<FinishResponse>(&bytes);
            let _ = decode::<InitiatorPart>(&bytes);
            let _ = decode::<ResponderPart>(&bytes);
            let _ = decode::<ErrorBody>(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(at in 0usize..2000, byte in any::<u8>(), cut in 0usize..2000) {
            let mut text = serde_json::to_vec(&init()).unwrap();
            let at = at % text.len();
            text[at] = byte;
            let _ = decode::<Init>(&text);
            text.truncate(cut);
            let _ = decode::<Init>(&text);
        }
    }
}
