//! Peer-signed HTTP requests (api.md §2): four headers over method, path, body, time, nonce, both peer ids and, for
//! forwarded calls, whom they are for and why they are forwarded.

use super::nonces::NONCE_BYTES;
use super::sign::{Domain, Transcript};
use crate::model::{ClientId, PeerId, PublicKey, ScopeSet, Signature, SigningKey, UnixTime};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::time::Duration;

pub const HEADER_PEER: &str = "x-arctic-peer";
/// In the details of a 401: the records by which the sender was removed, so that it learns of it.
pub const REVOCATIONS: &str = "revocations";
pub const HEADER_TIMESTAMP: &str = "x-arctic-timestamp";
pub const HEADER_NONCE: &str = "x-arctic-nonce";
pub const HEADER_SIGNATURE: &str = "x-arctic-signature";
pub const HEADER_ON_BEHALF: &str = "x-arctic-on-behalf";

/// How far the clocks of two peers may differ.
pub const CLOCK_WINDOW: Duration = Duration::from_secs(60);
/// How long a nonce is remembered: twice the window.
pub const NONCE_MEMORY: Duration = Duration::from_secs(120);
/// Marks a call that the operator sent to this very peer.
const PROXIED: &str = "proxied";

/// Two clocks are too far apart for a request to be taken; both are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "request was signed at {signed_at} by the clock of {sender}, and here it is {now}: clocks may differ by {} s",
    CLOCK_WINDOW.as_secs()
)]
pub struct ClocksApart {
    pub sender: PeerId,
    pub signed_at: UnixTime,
    pub now: UnixTime,
}

/// Whether a request signed at `signed_at` may be taken at `now`.
pub fn check_clock(sender: PeerId, signed_at: UnixTime, now: UnixTime) -> Result<(), ClocksApart> {
    let apart = now.saturating_since(signed_at).max(signed_at.saturating_since(now));
    if apart <= CLOCK_WINDOW { Ok(()) } else { Err(ClocksApart { sender, signed_at, now }) }
}

/// The operator for whom a peer forwards a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnBehalf {
    pub client_id: ClientId,
    pub scopes: ScopeSet,
    /// The operator chose the receiver (`X-Arctic-Target-Peer`); otherwise it is asked because it owns the object.
    pub proxied: bool,
}

impl OnBehalf {
    /// `cli_…;scope,scope`, with `;proxied` behind it for a proxied call.
    pub fn header(&self) -> String {
        let scopes = self.scopes.to_string().replace(' ', ",");
        if self.proxied {
            format!("{};{scopes};{PROXIED}", self.client_id)
        } else {
            format!("{};{scopes}", self.client_id)
        }
    }
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let (client_id, scopes) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let proxied = match (parts.next(), parts.next()) {
            (None, _) => false,
            (Some(PROXIED), None) => true,
            _ => return None,
        };
        Some(Self { client_id, scopes, proxied })
    }
}

/// Names, in the answer to a forwarded write, the record that it left at its owner.
pub const HEADER_WRITTEN: &str = "x-arctic-written";

/// What a forwarded write left at its owner: version `version` of the record `kind`/`id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub kind: String,
    pub id: String,
    pub version: u64,
}

impl Written {
    /// `kind/id;version`.
    pub fn header(&self) -> String {
        format!("{}/{};{}", self.kind, self.id, self.version)
    }
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('/')?;
        let (id, version) = rest.rsplit_once(';')?;
        Some(Self { kind: kind.into(), id: id.into(), version: version.parse().ok()? })
    }
}

/// The signed facts of one request. `path` includes the query.
#[derive(Debug, Clone)]
pub struct SignedRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub body: &'a [u8],
    pub timestamp: UnixTime,
    pub nonce: [u8; NONCE_BYTES],
    pub sender: PeerId,
    pub target: PeerId,
    pub on_behalf: Option<&'a OnBehalf>,
}

impl SignedRequest<'_> {
    fn transcript(&self) -> Transcript {
        let transcript = Transcript::new(Domain::Request)
            .field(self.method)
            .field(self.path)
            .field(Sha256::digest(self.body))
            .integer(self.timestamp.as_ms())
            .field(self.nonce)
            .field(self.sender.to_string())
            .field(self.target.to_string());
        let Some(who) = self.on_behalf else { return transcript };
        let transcript = transcript.field(who.client_id.to_string()).field(who.scopes.to_string());
        if who.proxied { transcript.field(PROXIED) } else { transcript }
    }

    /// The headers to send with the request.
    pub fn headers(&self, key: &SigningKey) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (HEADER_PEER, self.sender.to_string()),
            (HEADER_TIMESTAMP, self.timestamp.as_ms().to_string()),
            (HEADER_NONCE, URL_SAFE_NO_PAD.encode(self.nonce)),
            (HEADER_SIGNATURE, self.transcript().sign(key).to_string()),
        ];
        headers.extend(self.on_behalf.map(|who| (HEADER_ON_BEHALF, who.header())));
        headers
    }

    pub fn verify(&self, key: &PublicKey, signature: &Signature) -> bool {
        self.transcript().verify(key, signature)
    }
}

pub fn parse_nonce(text: &str) -> Option<[u8; NONCE_BYTES]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rng;

    #[test]
    fn what_was_written_is_read_back() {
        let written = Written { kind: "service".into(), id: "svc_1".into(), version: 42 };
        assert_eq!(written.header(), "service/svc_1;42");
        assert_eq!(Written::parse(&written.header()), Some(written));
        for bad in ["", "service;42", "service/svc_1", "service/svc_1;-1", "service/svc_1;x"] {
            assert_eq!(Written::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_signed_fact_counts() {
        let mut rng = Rng::from_seed([1; 32]);
        let now = UnixTime::from_ms(1_000_000);
        let (a, b) = (PeerId::mint(now, &mut rng), PeerId::mint(now, &mut rng));
        let who = OnBehalf { client_id: ClientId::mint(now, &mut rng), scopes: ScopeSet::admin(), proxied: false };
        let proxied = OnBehalf { proxied: true, ..who.clone() };
        for form in [&who, &proxied] {
            assert_eq!(OnBehalf::parse(&form.header()).as_ref(), Some(form));
            assert_eq!(OnBehalf::parse(&format!("{};other", form.header())), None);
        }
        let key = SigningKey::from_seed([2; 32]);
        let request = SignedRequest {
            method: "POST",
            path: "/v1/x?y=1",
            body: b"{}",
            timestamp: now,
            nonce: rng.bytes(),
            sender: a,
            target: b,
            on_behalf: Some(&who),
        };
        let headers = request.headers(&key);
        let signature = headers.iter().find(|h| h.0 == HEADER_SIGNATURE).unwrap().1.parse().unwrap();
        assert!(request.verify(&key.public(), &signature));
        let variants = [
            SignedRequest { method: "PUT", ..request.clone() },
            SignedRequest { path: "/v1/x", ..request.clone() },
            SignedRequest { body: b"", ..request.clone() },
            SignedRequest { timestamp: now.plus(Duration::from_millis(1)), ..request.clone() },
            SignedRequest { nonce: [0; 16], ..request.clone() },
            SignedRequest { sender: b, ..request.clone() },
            SignedRequest { target: a, ..request.clone() },
            SignedRequest { on_behalf: None, ..request.clone() },
            SignedRequest { on_behalf: Some(&proxied), ..request.clone() },
        ];
        assert!(variants.iter().all(|v| !v.verify(&key.public(), &signature)));
    }
}
