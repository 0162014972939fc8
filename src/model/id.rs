//! Prefixed ULIDs (spec README, glossary): `peer_01H…`. Input accepts a bare ULID, output is always prefixed.

use super::text::as_text;
use super::{Rng, UnixTime};
use std::{fmt, str::FromStr};
use ulid::Ulid;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} id `{input}`: expected {prefix}_ followed by a ULID")]
pub struct IdError {
    pub kind: &'static str,
    pub prefix: &'static str,
    pub input: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new id from a wall-clock time and 80 random bits.
            pub fn mint(now: UnixTime, rng: &mut Rng) -> Self {
                Self(Ulid::from_parts(now.as_ms(), rng.u128()))
            }

            /// Big-endian, the order of the text form.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_bytes()
            }

            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Ulid::from_bytes(bytes))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                parse_ulid(s, $prefix)
                    .map(Self)
                    .ok_or_else(|| IdError { kind: $kind, prefix: $prefix, input: clip(s) })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", $prefix, self.0)
            }
        }



as_text!($name);
    };
}

id!(/// A peer: an agent with an identity.
    PeerId, "peer", "peer");
id!(/// A cluster; the smaller id wins a merge.
    ClusterId, "clu", "cluster");
id!(/// A service; its first 15 characters name its interface.
    ServiceId, "svc", "service");
id!(/// A client credential.
    ClientId, "cli", "client");
id!(/// One issue of a license.
    LicenseId, "lic", "license");
id!(/// The customer a license was issued to: the boundary of a cluster.
    CustomerId, "cust", "customer");
id!(/// One HTTP request.
    RequestId, "req", "request");

fn parse_ulid(s: &str, prefix: &str) -> Option<Ulid> {
    let bare = match s.strip_prefix(prefix) {
        Some(rest) => rest.strip_prefix('_')?,
        None => s,
    };
    let upper = bare.len() == 26 && bare.bytes().all(|b| b.is_ascii_alphanumeric());
    // Ulid accepts 26 Crockford characters of which the first may overflow 128 bits.
    (upper && bare.as_bytes()[0] <= b'7').then(|| Ulid::from_string(bare).ok()).flatten()
}

fn clip(s: &str) -> String {
    s.chars().take(64).collect()
}

/// Whether a name could be mistaken for an id (names may not look like ids, cli.md).
pub fn looks_like_id(s: &str) -> bool {
    let prefixes = ["peer_", "clu_", "svc_", "cli_", "sec_", "lic_", "cust_", "req_"];
    prefixes.iter().any(|p| s.to_ascii_lowercase().starts_with(p)) || parse_ulid(s, PeerId::PREFIX).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_and_prefixed_ulids_are_one_id() {
        let mut rng = Rng::from_seed([7; 32]);
        let id = PeerId::mint(UnixTime::from_ms(1_700_000_000_000), &mut rng);
        let text = id.to_string();
        assert!(text.starts_with("peer_"));
        assert_eq!(text.parse::<PeerId>(), Ok(id));
        assert_eq!(text["peer_".len()..].parse::<PeerId>(), Ok(id));
        assert!(text.parse::<ServiceId>().is_err());
        assert!("peer_".parse::<PeerId>().is_err());
        assert!("peer_8ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse::<PeerId>().is_err());
        assert!(looks_like_id(&text) && looks_like_id(&text["peer_".len()..]) && !looks_like_id("tokyo"));
    }
}
