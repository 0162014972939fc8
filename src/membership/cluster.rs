//! What two clusters become (cluster.md §3), and how every member comes to know it.
//!
//! The ids of a cluster form a set that only grows, and its id is the smallest of them: in whatever order merges happen
//! and are heard of, all members end with the same. Each peer keeps the `cluster` record that its own bootstrap made, and
//! adds to it the ids it goes by later: so whoever trusts a peer knows every id that may stand in a token of that peer.

use super::{
    Author, Ledger,
    removal::{end_what_is_for_removed, forget_removed_strangers},
};
use crate::{
    model::{ClusterId, UnixTime},
    wire::record::{ClusterBody, Record, kind},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Aliases kept; beyond them new ones are not taken.
pub const ALIASES_MAX: usize = 16_384;
/// Later ids in a peer's own record: the last ones, tokens under earlier ids have long expired.
pub const LATER_IDS_MAX: usize = 64;

/// The cluster this peer belongs to. Present exactly when the peer is bootstrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    pub cluster_id: ClusterId,
    pub created_at: UnixTime,
    /// Ids of clusters that were merged into this one; tokens issued under them still work.
    pub aliases: Vec<ClusterId>,
}

/// Stores verified records that gossip brought.
pub fn merge_records<L: Ledger>(ledger: &L, author: &Author, records: &[Record]) -> Result<(), L::Error> {
    records.iter().try_for_each(|record| ledger.put_verified(record).map(drop))?;
    end_what_is_for_removed(ledger, author, records)?;
    forget_removed_strangers(ledger, records)?;
    let met: BTreeSet<ClusterId> = records.iter().filter_map(cluster_of).flat_map(ids).collect();
    take_ids(ledger, author, &met)
}

/// The own cluster is also known by these ids: the smallest of all wins.
pub(super) fn take_ids<L: Ledger>(ledger: &L, author: &Author, met: &BTreeSet<ClusterId>) -> Result<(), L::Error> {
    let Some(facts) = ledger.cluster()? else { return Ok(()) };
    let winner = met.first().map_or(facts.cluster_id, |smallest| facts.cluster_id.min(*smallest));
    let known: BTreeSet<ClusterId> = facts.aliases.iter().copied().chain([winner]).collect();
    let met = met.iter().copied().chain([facts.cluster_id]);
    let news: BTreeSet<ClusterId> = met.filter(|id| !known.contains(id)).collect();
    if news.is_empty() {
        return Ok(());
    }
    let mut aliases = facts.aliases;
    for alias in news {
        tracing::info!(%winner, %alias, "clusters merged");
        aliases.push(alias);
    }
    aliases.truncate(ALIASES_MAX);
    let has_another = winner != facts.cluster_id;
    ledger.set_cluster(&ClusterFacts { cluster_id: winner, aliases, ..facts })?;
    if has_another { publish_id(ledger, author) } else { Ok(()) }
}

/// Adds the id by which the cluster goes now to the newest own `cluster` record, if it does not say so yet. A contested
/// copy of an identity leaves it for later.
pub(super) fn publish_id<L: Ledger>(ledger: &L, author: &Author) -> Result<(), L::Error> {
    let Some(ClusterFacts { cluster_id: winner, .. }) = ledger.cluster()? else { return Ok(()) };
    if ledger.is_contested()? {
        return Ok(());
    }
    let records = ledger.records_of(kind::CLUSTER)?;
    let own = records.iter().filter(|record| record.key.owner == author.peer_id).filter_map(cluster_of);
    let Some(mut body) = own.max_by_key(|body| (body.created_at, body.cluster_id)) else { return Ok(()) };
    if body.aliases.last() == Some(&winner) || body.cluster_id == winner {
        return Ok(());
    }
    body.aliases.push(winner);
    let surplus = body.aliases.len().saturating_sub(LATER_IDS_MAX);
    body.aliases.drain(..surplus);
    ledger.put_own(author, kind::CLUSTER, &body.cluster_id.to_string(), &body).map(drop)
}

/// A live `cluster` record, if it is about its id.
fn cluster_of(record: &Record) -> Option<ClusterBody> {
    let live = record.key.kind == kind::CLUSTER && !record.deleted;
    let body: ClusterBody = live.then(|| record.body_as().ok())??;
    (body.cluster_id.to_string() == record.key.id && body.aliases.len() <= LATER_IDS_MAX).then_some(body)
}

fn ids(body: ClusterBody) -> impl Iterator<Item = ClusterId> {
    std::iter::once(body.cluster_id).chain(body.aliases)
}
