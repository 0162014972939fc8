//! Vouchers: a trusted peer's signed word about a third one (cluster.md §4).

use super::{Held, Local};
use crate::model::{CustomerId, Endpoint, PeerId, PublicKey, Signature, UnixTime};
use crate::wire::record::Voucher;
use std::time::Duration;

pub const VOUCHER_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a voucher says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VoidVoucher {
    #[error("voucher is for another customer")]
    OtherCustomer,
    #[error("voucher has expired")]
    Expired,
    #[error("voucher is valid for longer than seven days")]
    Lifetime,
    #[error("voucher is from a peer that is not trusted")]
    UntrustedIssuer,
    #[error("voucher is from or about a revoked peer")]
    Revoked,
    #[error("voucher conflicts with a held key")]
    Conflict,
    #[error("voucher is not signed by its issuer")]
    BadSignature,
}

/// Signs for a peer that `local` has itself handshaken.
pub fn issue(local: &Local, peer: PeerId, key: PublicKey, endpoints: Vec<Endpoint>, now: UnixTime) -> Voucher {
    let mut voucher = Voucher {
        subject_peer_id: peer,
        subject_public_key: key,
        subject_endpoints: endpoints,
        customer_id: local.customer_id,
        issuer_peer_id: local.peer_id,
        issued_at: now,
        expires_at: now.plus(VOUCHER_LIFETIME),
        signature: Signature::from_bytes([0; 64]),
    };
    voucher.signature = voucher.transcript().sign(&local.key);
    voucher
}

/// Judges a voucher about a third peer. Where it is good, the subject's key counts as held; trust still needs a
/// handshake. The caller holds the key with [`Held::hold`].
pub fn accept_voucher(
    voucher: &Voucher,
    held: &Held,
    customer: CustomerId,
    now: UnixTime,
) -> Result<(PeerId, PublicKey), VoidVoucher> {
    let (subject, key) = (voucher.subject_peer_id, voucher.subject_public_key);
    if voucher.customer_id != customer {
        return Err(VoidVoucher::OtherCustomer);
    }
    if voucher.expires_at <= now {
        return Err(VoidVoucher::Expired);
    }
    if voucher.expires_at.saturating_since(voucher.issued_at) > VOUCHER_LIFETIME {
        return Err(VoidVoucher::Lifetime);
    }
    let Some(issuer_key) = held.key_of(&voucher.issuer_peer_id).filter(|_| held.trusts(&voucher.issuer_peer_id)) else {
        return Err(VoidVoucher::UntrustedIssuer);
    };
    if held.is_revoked(&voucher.issuer_peer_id, issuer_key) || held.is_revoked(&subject, &key) {
        return Err(VoidVoucher::Revoked);
    }
    if held.conflicts(&subject, &key) {
        return Err(VoidVoucher::Conflict);
    }
    if !voucher.transcript().verify(issuer_key, &voucher.signature) {
        return Err(VoidVoucher::BadSignature);
    }
    Ok((subject, key))
}
