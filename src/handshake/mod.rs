//! The handshake (cluster.md §3 boundary, §4): how two agents prove keys and licenses to each other and come to trust.
//! Two pure machines: a [`Responder`] per agent, an [`Initiator`] per target. Time and randomness are arguments.
//!
//! What a stranger can cost: one verification (a license that is not this agent's own is checked before any other
//! signature), and one of 64 sessions of at most 4 KiB for at most 30 s.

mod admission;
mod failure;
mod initiator;
mod responder;
mod seal;
mod sessions;
mod voucher;

#[cfg(test)]
mod tests;

pub use admission::{Held, LicenseCheck, LicenseGate, Local, PeerLicense, judge_again};
pub use failure::{DialFailure, Direction, Failure, Reason, Refusal, Tried};
pub use initiator::{
    ANSWER_TIMEOUT, ATTEMPT_OFFSETS, CONNECT_TIMEOUT, Call, Event, Initiator, Purpose, Reply, Request, Target,
};
pub use responder::{PendingReverse, REVERSE_BUDGET, Responder, ReverseAnswer};
pub use sessions::{
    RESERVED_SESSIONS, SESSION_LIFETIME, SESSIONS_MAX, SESSIONS_PER_SOURCE_MAX, SPENT_CHALLENGES_MAX, SourcePrefix,
};
pub use voucher::{VOUCHER_LIFETIME, VoidVoucher, accept_voucher, issue as issue_voucher};

use crate::model::{ClusterId, Endpoint, LicenseId, PeerId, PublicKey};
use crate::wire::record::{Record, Voucher};

/// What a handshake is judged against on this side.
#[derive(Clone, Copy)]
pub struct Here<'a> {
    pub local: &'a Local,
    pub held: &'a Held,
    pub licenses: &'a dyn LicenseCheck,
}

/// A peer that has proven its key and its license: what to store.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    /// Where the peer can be reached, in order: its own list, or where it was found if it has none.
    pub endpoints: Vec<Endpoint>,
    /// Its own `peer` record, verified.
    pub record: Record,
    /// Everyone it trusts, itself included. Hearsay: each still needs a voucher and a handshake of its own.
    pub members: Vec<PeerId>,
    pub license_id: LicenseId,
    /// What its license allows.
    pub max_nodes: u32,
    /// The licenses are different issues for one customer: a warning in log and response.
    pub license_differs: bool,
    /// Its cluster; the smaller id of the two wins (cluster.md §3).
    pub cluster_id: ClusterId,
    /// The responder's word about the initiator: issued here, or received.
    pub voucher: Voucher,
    /// Where the other side reaches this agent; for an agent that knows no endpoint of its own.
    pub own_endpoints: Vec<Endpoint>,
    /// The peer stood revoked and the operator takes it back: write a `readmission`.
    pub readmitted: bool,
}

impl Accepted {
    /// The id of the cluster that the two become (cluster.md §3).
    pub fn merged_cluster_id(&self, own: ClusterId) -> ClusterId {
        self.cluster_id.min(own)
    }
}
