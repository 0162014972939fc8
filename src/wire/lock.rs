//! The cluster lock on the wire (cluster.md §9): bodies of `lock` records, and the question that a claimant asks its peers.

use super::gossip::Digest;
use crate::model::{ClientId, PeerId, UnixTime};
use serde::{Deserialize, Serialize};

/// Where the question is posted.
pub const PATH: &str = "/v1/gossip/lock";
/// Longest purpose, in characters.
pub const PURPOSE_MAX_CHARS: usize = 200;
/// Life of a lease without a renewal, in seconds: shortest, default, longest.
pub const TTL_MIN_S: u32 = 5;
pub const TTL_DEFAULT_S: u32 = 60;
pub const TTL_MAX_S: u32 = 600;
/// Ids of the two `lock` records that a peer may own.
pub const LEASE_ID: &str = "lease";
pub const CLEARING_ID: &str = "clearing";

/// What the holder may tell everyone: the token itself is known to it alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub holder_peer: PeerId,
    /// None: an operator with the recovery token of that peer.
    pub client_id: Option<ClientId>,
    pub purpose: String,
    /// SHA-256 of the token.
    pub token: Digest,
    /// By the holder's clock; orders competing leases and nothing else.
    pub acquired_at: UnixTime,
    pub ttl_s: u32,
}

impl Lease {
    /// Of competing leases the one with the smaller rank stands.
    pub fn rank(&self) -> (UnixTime, Digest) {
        (self.acquired_at, self.token)
    }

    pub fn is_sound(&self) -> bool {
        (TTL_MIN_S..=TTL_MAX_S).contains(&self.ttl_s) && is_purpose(&self.purpose)
    }
}

/// Whether a text may say what a lock is for.
pub fn is_purpose(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= PURPOSE_MAX_CHARS && !text.chars().any(char::is_control)
}

/// Body of a `lock` record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LockBody {
    /// Under [`LEASE_ID`].
    Lease(Lease),
    /// Under [`CLEARING_ID`]: an operator ended the lease whose token has this digest.
    Clearing { cleared: Digest },
}

/// What a claimant asks each peer, and tells it when the claim has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockRequest {
    Claim(Lease),
    Withdraw(Digest),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockReply {
    /// For `Withdraw` too.
    Granted,
    /// This peer has granted or knows another lease. `held`: it stands; otherwise it is a claim as well.
    Refused { lease: Lease, held: bool },
}
