//! What two clusters become (cluster.md §3).

use super::{Author, Ledger};
use crate::{
    handshake::Accepted,
    model::{ClusterId, UnixTime},
    wire::record::Record,
};
use serde::{Deserialize, Serialize};

/// The cluster this peer belongs to. Present exactly when the peer is bootstrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    pub cluster_id: ClusterId,
    pub created_at: UnixTime,
    /// Ids of clusters that were merged into this one; tokens issued under them still work.
    pub aliases: Vec<ClusterId>,
}

/// The smaller id wins; the other stays as an alias so that its tokens work until they expire.
pub(super) fn merge_with<L: Ledger>(ledger: &L, accepted: &Accepted) -> Result<(), L::Error> {
    let Some(facts) = ledger.cluster()? else { return Ok(()) };
    let winner = accepted.merged_cluster_id(facts.cluster_id);
    let mut aliases = facts.aliases;
    for id in [facts.cluster_id, accepted.cluster_id] {
        if id != winner && !aliases.contains(&id) {
            tracing::info!(winner = %winner, alias = %id, "clusters merged");
            aliases.push(id);
        }
    }
    ledger.set_cluster(&ClusterFacts { cluster_id: winner, aliases, ..facts })
}

/// Stores verified records that gossip brought.
pub fn merge_records<L: Ledger>(ledger: &L, _author: &Author, records: &[Record]) -> Result<(), L::Error> {
    records.iter().try_for_each(|record| ledger.put_verified(record).map(drop))
}
