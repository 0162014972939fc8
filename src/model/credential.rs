//! Scopes and secrets of API clients (api.md §2).

use super::Rng;
use super::text::json_as_text;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, fmt, str::FromStr};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const URN: &str = "urn:tillered:arctic:";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown scope `{0}`")]
pub struct UnknownScope(pub String);

/// One permission. Written as its urn; short names are accepted as input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Admin,
    PeersRead,
    PeersWrite,
    ServicesRead,
    ServicesWrite,
    CredentialsRead,
    CredentialsWrite,
}

impl Scope {
    pub const ALL: [Scope; 7] = [
        Scope::Admin,
        Scope::PeersRead,
        Scope::PeersWrite,
        Scope::ServicesRead,
        Scope::ServicesWrite,
        Scope::CredentialsRead,
        Scope::CredentialsWrite,
    ];

    pub fn short_name(self) -> &'static str {
        match self {
            Scope::Admin => "admin",
            Scope::PeersRead => "peers.read",
            Scope::PeersWrite => "peers.write",
            Scope::ServicesRead => "services.read",
            Scope::ServicesWrite => "services.write",
            Scope::CredentialsRead => "credentials.read",
            Scope::CredentialsWrite => "credentials.write",
        }
    }

    /// Whether holding `self` permits what `wanted` permits: admin everything, a write scope its read scope.
    pub fn grants(self, wanted: Scope) -> bool {
        self == wanted
            || self == Scope::Admin
            || matches!(
                (self, wanted),
                (Scope::PeersWrite, Scope::PeersRead)
                    | (Scope::ServicesWrite, Scope::ServicesRead)
                    | (Scope::CredentialsWrite, Scope::CredentialsRead)
            )
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{URN}{}", self.short_name())
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;
    fn from_str(s: &str) -> Result<Self, UnknownScope> {
        let short = s.strip_prefix(URN).unwrap_or(s);
        Scope::ALL
            .into_iter()
            .find(|scope| scope.short_name() == short)
            .ok_or_else(|| UnknownScope(s.chars().take(64).collect()))
    }
}

json_as_text!(Scope);

/// A set of scopes; as text, space-separated urns (RFC 6749 §3.3).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScopeSet(pub BTreeSet<Scope>);

impl ScopeSet {
    pub fn admin() -> Self {
        Self(BTreeSet::from([Scope::Admin]))
    }
    pub fn grants(&self, wanted: Scope) -> bool {
        self.0.iter().any(|s| s.grants(wanted))
    }
    /// Whether every scope of `other` is granted by this set.
    pub fn covers(&self, other: &ScopeSet) -> bool {
        other.0.iter().all(|s| self.grants(*s))
    }
}

impl fmt::Display for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(Scope::to_string).collect();
        f.write_str(&names.join(" "))
    }
}

impl FromStr for ScopeSet {
    type Err = UnknownScope;

    /// Separated by spaces or commas.
    fn from_str(s: &str) -> Result<Self, UnknownScope> {
        s.split([' ', ',']).filter(|p| !p.is_empty()).map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A client secret, `sec_` and 43 base64url characters. No `Debug`, no `Serialize`; wiped on drop.
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn mint(rng: &mut Rng) -> Self {
        Self(Zeroizing::new(format!("sec_{}", URL_SAFE_NO_PAD.encode(rng.bytes::<32>()))))
    }
    pub fn from_input(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
    /// The text itself, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
    /// SHA-256 of the text: all that is stored and replicated.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
    pub fn digest_hex(&self) -> String {
        self.digest().iter().map(|b| format!("{b:02x}")).collect()
    }
    /// Constant-time comparison with a stored digest.
    pub fn matches(&self, digest: &[u8; 32]) -> bool {
        self.digest().ct_eq(digest).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_implies_read_and_admin_implies_all() {
        let set: ScopeSet = "peers.write urn:tillered:arctic:services.read".parse().unwrap();
        assert!(set.grants(Scope::PeersRead) && set.grants(Scope::ServicesRead));
        assert!(!set.grants(Scope::ServicesWrite) && !set.grants(Scope::Admin));
        assert!(Scope::ALL.into_iter().all(|s| ScopeSet::admin().grants(s)));
        assert!(ScopeSet::admin().covers(&set) && !set.covers(&ScopeSet::admin()));
        assert!("peers.wriet".parse::<ScopeSet>().is_err());
    }

    // accepts: 000-14
    #[test]
    fn secrets_have_the_documented_form_and_match_only_their_digest() {
        let mut rng = Rng::from_seed([1; 32]);
        let (a, b) = (Secret::mint(&mut rng), Secret::mint(&mut rng));
        assert!(a.reveal().starts_with("sec_") && a.reveal().len() == 4 + 43);
        assert!(a.matches(&a.digest()) && !a.matches(&b.digest()));
        let id = super::super::ClientId::mint(super::super::UnixTime::from_ms(0), &mut rng);
        assert!(id.to_string().starts_with("cli_"));
    }
}
