//! An agent that becomes a cluster of its own (api.md §8, `cluster/init`).

use super::{Author, ClusterFacts, Ledger};
use crate::{
    model::{ClientId, ClusterId, PeerId, UnixTime},
    wire::record::{ClusterBody, CredentialBody, Record, RecordKey, kind},
};

/// Who made the cluster record of this id, as far as it is known here.
pub fn creator_of(records: &[Record], id: ClusterId) -> Option<PeerId> {
    let made = records.iter().find(|r| r.key.kind == kind::CLUSTER && !r.deleted && r.key.id == id.to_string());
    made.map(|r| r.key.owner)
}

/// A new cluster id; every other peer, every record of another owner and every own service go. Own credentials and own
/// revocations stay. `foreign`: keys of all records that others own.
pub fn begin_anew<L: Ledger>(
    ledger: &L,
    author: &Author,
    foreign: &[RecordKey],
    id: ClusterId,
    now: UnixTime,
) -> Result<(), L::Error> {
    for peer in ledger.peers()?.into_iter().filter(|p| p.peer_id != author.peer_id) {
        ledger.forget_peer(peer.peer_id)?;
    }
    foreign.iter().try_for_each(|key| ledger.forget_record(key))?;
    let client_id = own_client(ledger, author)?;
    for gone in [kind::SERVICE, kind::STATUS, kind::VOUCHER, kind::CLUSTER, kind::LOCK] {
        for record in ledger.records_of(gone)?.iter().filter(|r| r.key.owner == author.peer_id && !r.deleted) {
            ledger.delete_own(author, gone, &record.key.id)?;
        }
    }
    if let Some(client_id) = client_id {
        let body = ClusterBody { cluster_id: id, created_at: now, client_id, aliases: Vec::new() };
        ledger.put_own(author, kind::CLUSTER, &id.to_string(), &body)?;
    }
    ledger.set_cluster(&ClusterFacts { cluster_id: id, created_at: now, aliases: Vec::new() })
}

/// The own credential that becomes the shared one: the oldest.
fn own_client<L: Ledger>(ledger: &L, author: &Author) -> Result<Option<ClientId>, L::Error> {
    let records = ledger.records_of(kind::CREDENTIAL)?;
    let own = records.iter().filter(|r| r.key.owner == author.peer_id && !r.deleted);
    Ok(own.filter_map(|r| r.body_as::<CredentialBody>().ok()).map(|body| body.client_id).min())
}
