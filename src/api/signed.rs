//! Peer-signed requests at the receiver (api.md §2): a trusted peer, a clock near ours, a nonce not seen, a signature
//! made for us.

use super::answer::unauthorized;
use crate::{
    model::{Mono, PeerId, PublicKey, Refused, Signature, UnixTime},
    wire::{
        nonces::{NonceMemory, NonceRefusal},
        request::{
            HEADER_NONCE, HEADER_ON_BEHALF, HEADER_PEER, HEADER_SIGNATURE, HEADER_TIMESTAMP, OnBehalf, SignedRequest,
            check_clock, parse_nonce,
        },
    },
};
use hyper::HeaderMap;

/// What the headers claim, before the signature is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) sender: PeerId,
    pub(super) on_behalf: Option<OnBehalf>,
    timestamp: UnixTime,
    nonce: [u8; 16],
    signature: Signature,
}

pub(super) fn is_signed(headers: &HeaderMap) -> bool {
    headers.contains_key(HEADER_SIGNATURE)
}

impl Claim {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Refused> {
        let text = |name: &'static str| {
            let mut values = headers.get_all(name).iter();
            let value = values.next().and_then(|v| v.to_str().ok());
            value.filter(|_| values.next().is_none()).ok_or_else(|| unauthorized(format!("header {name} is missing")))
        };
        let bad = |name: &str| unauthorized(format!("header {name} is malformed"));
        let on_behalf = match headers.contains_key(HEADER_ON_BEHALF) {
            true => Some(OnBehalf::parse(text(HEADER_ON_BEHALF)?).ok_or_else(|| bad(HEADER_ON_BEHALF))?),
            false => None,
        };
        let timestamp_ms: u64 = text(HEADER_TIMESTAMP)?.parse().map_err(|_| bad(HEADER_TIMESTAMP))?;
        Ok(Self {
            sender: text(HEADER_PEER)?.parse().map_err(|_| bad(HEADER_PEER))?,
            on_behalf,
            timestamp: UnixTime::from_ms(timestamp_ms),
            nonce: parse_nonce(text(HEADER_NONCE)?).ok_or_else(|| bad(HEADER_NONCE))?,
            signature: text(HEADER_SIGNATURE)?.parse().map_err(|_| bad(HEADER_SIGNATURE))?,
        })
    }

    /// The refusal names both clocks.
    pub(super) fn check_clock(&self, now: UnixTime) -> Result<(), Refused> {
        check_clock(self.sender, self.timestamp, now).map_err(|apart| unauthorized(apart.to_string()))
    }

    /// `path` includes the query.
    pub(super) fn check_signature(
        &self,
        (method, path, body): (&str, &str, &[u8]),
        target: PeerId,
        key: &PublicKey,
    ) -> Result<(), Refused> {
        let request = SignedRequest {
            method,
            path,
            body,
            timestamp: self.timestamp,
            nonce: self.nonce,
            sender: self.sender,
            target,
            on_behalf: self.on_behalf.as_ref(),
        };
        if request.verify(key, &self.signature) {
            Ok(())
        } else {
            Err(unauthorized(format!("signature does not match the request, or was not made for {target}")))
        }
    }

    /// A request serves once. The caller has verified the signature.
    pub(super) fn check_nonce(&self, memory: &mut NonceMemory, now: Mono) -> Result<(), Refused> {
        memory.take(self.sender, self.nonce, now).map_err(|refusal| match refusal {
            NonceRefusal::Seen => unauthorized(refusal.to_string()),
            NonceRefusal::TooMany => super::answer::rate_limited("signed requests", 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClientId, Rng, ScopeSet, SigningKey};
    use std::time::Duration;

    fn headers(list: &[(&'static str, String)]) -> HeaderMap {
        list.iter().map(|(k, v)| (hyper::header::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    #[test]
    fn a_signed_request_is_taken_once_by_its_target_within_the_window() {
        let (now, mut rng) = (UnixTime::from_secs(1_800_000_000), Rng::from_seed([1; 32]));
        let (a, b) = (PeerId::mint(now, &mut rng), PeerId::mint(now, &mut rng));
        let key = SigningKey::from_seed([2; 32]);
        let who = OnBehalf { client_id: ClientId::mint(now, &mut rng), scopes: ScopeSet::admin(), proxied: false };
        let request = SignedRequest {
            method: "POST",
            path: "/v1/services?x=1",
            body: b"{}",
            timestamp: now,
            nonce: rng.bytes(),
            sender: a,
            target: b,
            on_behalf: Some(&who),
        };
        let list = request.headers(&key);
        let claim = Claim::read(&headers(&list)).unwrap();
        assert_eq!((claim.sender, claim.on_behalf.clone()), (a, Some(who.clone())));
        let parts = ("POST", "/v1/services?x=1", &b"{}"[..]);
        assert!(claim.check_signature(parts, b, &key.public()).is_ok());
        assert!(claim.check_signature(parts, a, &key.public()).is_err());
        assert!(claim.check_signature(("POST", "/v1/services", b"{}"), b, &key.public()).is_err());
        let edge = Duration::from_secs(60);
        assert!(claim.check_clock(now.plus(edge)).is_ok() && claim.check_clock(now.minus(edge)).is_ok());
        let late = now.plus(edge + Duration::from_millis(1));
        let text = claim.check_clock(late).unwrap_err().text;
        assert!(text.contains(&now.to_string()) && text.contains(&late.to_string()), "{text}");

        let mut memory = NonceMemory::default();
        assert!(claim.check_nonce(&mut memory, Mono::from_ms(0)).is_ok());
        assert!(claim.check_nonce(&mut memory, Mono::from_ms(120_000)).is_err());
        for missing in 0..4 {
            let mut some = list.clone();
            some.remove(missing);
            assert!(Claim::read(&headers(&some)).is_err());
        }
    }
}
