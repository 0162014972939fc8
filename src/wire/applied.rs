//! `POST /v1/gossip/applied` (api.md §2): one peer asks another whether its reconcilers have applied a service.

use crate::model::ServiceId;
use serde::{Deserialize, Serialize};

pub const PATH: &str = "/v1/gossip/applied";
/// How long an answer may be waited for.
pub const WAIT_MAX_S: u64 = 120;

/// Which state of which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppliedRequest {
    pub service: ServiceId,
    /// This version or a later one; absent: the service is gone.
    pub version: Option<u64>,
    /// The answer comes once it is so, or after this time.
    pub wait_ms: u64,
}

/// What is not applied, by reconciler; nothing: all is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppliedReply {
    pub waiting_for: Vec<Unapplied>,
}

/// A condition that does not hold yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unapplied {
    /// Absent where the peer gave no answer.
    pub reconciler: Option<String>,
    /// `pending` or `failed`.
    pub status: String,
    pub reason: String,
    pub message: String,
}
