use super::{
    Features,
    roots::{TrustRoots, key_id},
    strict_json::{self, JsonError},
};
use crate::{
    model::{self, Code, CustomerId, KeyError, LicenseId, Refused, Signature, SigningKey, UnixTime},
    wire::{
        canonical::{self, CanonicalError},
        sign::{Domain, Transcript},
    },
};
use serde_json::{Map, Value, json};
use std::str::FromStr;

/// Largest license document, in bytes (licensing.md §1).
pub const LICENSE_MAX_BYTES: usize = 64 * 1024;
const KEY_ID_HEX_CHARS: usize = 16;
const SIGNATURE: &str = "signature";

/// Why a document is not a valid license. The API code of all of them is `LICENSE_INVALID`.
#[derive(Debug, thiserror::Error)]
pub enum LicenseError {
    #[error("license of {bytes} bytes is over the limit of {LICENSE_MAX_BYTES}")]
    TooLarge { bytes: usize },
    #[error("license cannot be read as JSON")]
    Json(#[source] serde_json::Error),
    #[error("license has the key `{key}` twice")]
    DuplicateKey { key: String },
    #[error("license has no canonical form")]
    NotCanonical(#[source] CanonicalError),
    #[error("license is not a JSON object")]
    NotAnObject,
    #[error("license field `{0}` is missing")]
    MissingField(&'static str),
    #[error("license field `{field}` is not {expected}")]
    WrongType { field: &'static str, expected: &'static str },
    #[error("license field `{0}` must be at least 1")]
    LimitBelowOne(&'static str),
    #[error("license field `expires_at` ({expires_at}) is not after `issued_at` ({issued_at})")]
    ExpiresBeforeIssue { issued_at: UnixTime, expires_at: UnixTime },
    #[error("this build embeds no license keys")]
    NoTrustRoots,
    #[error("license {license_id} is signed by key {key_id}, which this build does not know")]
    UnknownKey { license_id: LicenseId, key_id: String },
    #[error("signature of license {license_id} does not match its content and key {key_id}")]
    BadSignature { license_id: LicenseId, key_id: String },
}

impl LicenseError {
    pub fn code(&self) -> Code {
        Code::LicenseInvalid
    }

    /// The reason with its cause, for readers who see only one line.
    pub fn reason(&self) -> String {
        model::with_causes(self)
    }
}

impl From<LicenseError> for Refused {
    fn from(e: LicenseError) -> Self {
        Refused::new(e.code(), e.reason())
    }
}

/// What a license grants.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    pub license_id: LicenseId,
    pub customer_id: CustomerId,
    pub customer_name: Option<String>,
    pub issued_at: UnixTime,
    pub expires_at: UnixTime,
    pub max_nodes: u32,
    pub max_services: u32,
    pub features: Features,
}

/// A license whose form has been checked; `verify` checks who signed it. Keeps the document as it was, extra fields
/// included, because the signature covers them (licensing.md §1).
#[derive(Debug, Clone, PartialEq)]
pub struct LicenseDocument {
    value: Value,
    terms: Terms,
    key_id: String,
    signature: Signature,
}

impl LicenseDocument {
    /// Reads the bytes of a license file or request.
    pub fn parse(bytes: &[u8]) -> Result<Self, LicenseError> {
        if bytes.len() > LICENSE_MAX_BYTES {
            return Err(LicenseError::TooLarge { bytes: bytes.len() });
        }
        let value = strict_json::parse(bytes).map_err(|e| match e {
            JsonError::Syntax(source) => LicenseError::Json(source),
            JsonError::DuplicateKey(key) => LicenseError::DuplicateKey { key },
        })?;
        Self::from_value(&value)
    }

    /// Reads a document that is already a JSON value. The value must come from `parse_strict_json` or from our own
    /// serialization: an ordinary parser has dropped repeated keys without a word.
    pub fn from_value(value: &Value) -> Result<Self, LicenseError> {
        let fields = Fields(value.as_object().ok_or(LicenseError::NotAnObject)?);
        let bytes = canonical::to_canonical(value).map_err(LicenseError::NotCanonical)?.len();
        if bytes > LICENSE_MAX_BYTES {
            return Err(LicenseError::TooLarge { bytes });
        }
        let terms = Terms {
            license_id: fields.id("license_id", "`lic_` and a ULID")?,
            customer_id: fields.id("customer_id", "`cust_` and a ULID")?,
            customer_name: fields.optional_text("customer_name")?,
            issued_at: fields.time("issued_at")?,
            expires_at: fields.time("expires_at")?,
            max_nodes: fields.limit("max_nodes")?,
            max_services: fields.limit("max_services")?,
            features: fields.features("features")?,
        };
        if terms.expires_at <= terms.issued_at {
            let Terms { issued_at, expires_at, .. } = terms;
            return Err(LicenseError::ExpiresBeforeIssue { issued_at, expires_at });
        }
        let key_id = fields.key_id("key_id")?;
        let signature = fields.signature(SIGNATURE)?;
        Ok(Self { value: value.clone(), terms, key_id, signature })
    }

    /// Signs `terms`: the vendor's side, and tests.
    pub fn issue(key: &SigningKey, terms: Terms) -> Result<Self, LicenseError> {
        Self::issue_with_extra_fields(key, terms, Map::new())
    }

    /// As `issue`, with fields that this version does not know; they must not repeat known ones.
    pub fn issue_with_extra_fields(
        key: &SigningKey,
        terms: Terms,
        extra: Map<String, Value>,
    ) -> Result<Self, LicenseError> {
        let mut value = extra;
        value.insert("license_id".into(), json!(terms.license_id));
        value.insert("customer_id".into(), json!(terms.customer_id));
        if let Some(name) = terms.customer_name {
            value.insert("customer_name".into(), json!(name));
        }
        value.insert("issued_at".into(), json!(terms.issued_at));
        value.insert("expires_at".into(), json!(terms.expires_at));
        value.insert("max_nodes".into(), json!(terms.max_nodes));
        value.insert("max_services".into(), json!(terms.max_services));
        value.insert("features".into(), json!(terms.features));
        value.insert("key_id".into(), json!(key_id(&key.public())));
        let signature = transcript(&value)?.sign(key);
        value.insert(SIGNATURE.into(), json!(signature));
        Self::from_value(&Value::Object(value))
    }

    /// Strict Ed25519 verification against the trust roots; needs no network.
    pub fn verify(&self, roots: &TrustRoots) -> Result<(), LicenseError> {
        if roots.is_empty() {
            return Err(LicenseError::NoTrustRoots);
        }
        let (license_id, key_id) = (self.license_id(), self.key_id.clone());
        let Some(key) = roots.get(&self.key_id) else {
            return Err(LicenseError::UnknownKey { license_id, key_id });
        };
        let fields = self.value.as_object().ok_or(LicenseError::NotAnObject)?;
        if transcript(fields)?.verify(key, &self.signature) {
            Ok(())
        } else {
            Err(LicenseError::BadSignature { license_id, key_id })
        }
    }

    /// The whole document, unchanged.
    pub fn as_value(&self) -> &Value {
        &self.value
    }
    pub fn license_id(&self) -> LicenseId {
        self.terms.license_id
    }
    pub fn customer_id(&self) -> CustomerId {
        self.terms.customer_id
    }
    pub fn customer_name(&self) -> Option<&str> {
        self.terms.customer_name.as_deref()
    }
    pub fn issued_at(&self) -> UnixTime {
        self.terms.issued_at
    }
    pub fn expires_at(&self) -> UnixTime {
        self.terms.expires_at
    }
    pub fn max_nodes(&self) -> u32 {
        self.terms.max_nodes
    }
    pub fn max_services(&self) -> u32 {
        self.terms.max_services
    }
    pub fn features(&self) -> &Features {
        &self.terms.features
    }
    /// The id of the key that the document claims to be signed by: 16 lower-case hex digits.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }
}

/// What is signed: `arctic/license/v1`, a zero byte, and the canonical JSON of all fields but the signature.
fn transcript(fields: &Map<String, Value>) -> Result<Transcript, LicenseError> {
    let mut signed = fields.clone();
    signed.remove(SIGNATURE);
    let bytes = canonical::to_canonical(&Value::Object(signed)).map_err(LicenseError::NotCanonical)?;
    Ok(Transcript::new(Domain::License).rest(&bytes))
}

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, field: &'static str) -> Result<&Value, LicenseError> {
        self.0.get(field).ok_or(LicenseError::MissingField(field))
    }

    fn text(&self, field: &'static str, expected: &'static str) -> Result<&str, LicenseError> {
        self.get(field)?.as_str().ok_or(LicenseError::WrongType { field, expected })
    }

    fn optional_text(&self, field: &'static str) -> Result<Option<String>, LicenseError> {
        if !self.0.contains_key(field) {
            return Ok(None);
        }
        self.text(field, "a string").map(|s| Some(s.to_owned()))
    }

    /// Only the one spelling that we print: prefixed and upper case.
    fn id<T: FromStr + ToString>(&self, field: &'static str, expected: &'static str) -> Result<T, LicenseError> {
        let text = self.text(field, expected)?;
        let id = text.parse::<T>().ok().filter(|id| id.to_string() == text);
        id.ok_or(LicenseError::WrongType { field, expected })
    }

    fn time(&self, field: &'static str) -> Result<UnixTime, LicenseError> {
        const EXPECTED: &str = "an RFC 3339 time";
        let text = self.text(field, EXPECTED)?;
        UnixTime::parse_rfc3339(text).map_err(|_| LicenseError::WrongType { field, expected: EXPECTED })
    }

    fn limit(&self, field: &'static str) -> Result<u32, LicenseError> {
        const EXPECTED: &str = "an integer of up to 32 bits";
        let n = self.get(field)?.as_i64().ok_or(LicenseError::WrongType { field, expected: EXPECTED })?;
        if n < 1 {
            return Err(LicenseError::LimitBelowOne(field));
        }
        u32::try_from(n).map_err(|_| LicenseError::WrongType { field, expected: EXPECTED })
    }

    fn features(&self, field: &'static str) -> Result<Features, LicenseError> {
        const WRONG: LicenseError = LicenseError::WrongType { field: "features", expected: "a list of strings" };
        let items = self.get(field)?.as_array().ok_or(WRONG)?;
        let names = items.iter().map(|v| v.as_str().ok_or(WRONG)).collect::<Result<Vec<_>, _>>()?;
        let expected = "a list of names, or `*` alone";
        Features::from_names(names).map_err(|_| LicenseError::WrongType { field, expected })
    }

    fn key_id(&self, field: &'static str) -> Result<String, LicenseError> {
        const EXPECTED: &str = "16 lower-case hex digits";
        let text = self.text(field, EXPECTED)?;
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && text.len() == KEY_ID_HEX_CHARS {
            Ok(text.to_owned())
        } else {
            Err(LicenseError::WrongType { field, expected: EXPECTED })
        }
    }

    fn signature(&self, field: &'static str) -> Result<Signature, LicenseError> {
        const EXPECTED: &str = "base64 of 64 bytes";
        let text = self.text(field, EXPECTED)?;
        text.parse().map_err(|_: KeyError| LicenseError::WrongType { field, expected: EXPECTED })
    }
}
