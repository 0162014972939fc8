//! Two clusters become one: wholly or not at all, whatever dies meanwhile.

use super::super::{ledger::NoResult, world::World};
use crate::sometimes;
use arctic::{
    handshake::Accepted,
    membership::{ClusterFacts, LedgerView},
    model::{ClusterId, PeerId, PublicKey},
    wire::record::{ClusterBody, RecordHead, RecordKey, Voucher, kind},
};
use std::collections::{BTreeMap, BTreeSet};

/// What a node was before it stored a peer, and what that peer is.
#[derive(Debug, Clone)]
pub(in super::super) struct Merge {
    peer: PeerId,
    key: PublicKey,
    /// Of its own record.
    head: Option<RecordHead>,
    cluster_id: ClusterId,
    is_too_large: bool,
    is_readmitted: bool,
    before: Members,
}

/// As much of a disk as a merge changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Members {
    cluster: Option<ClusterFacts>,
    trusted: BTreeMap<PeerId, PublicKey>,
    own_version: u64,
    records: usize,
}

impl World {
    fn members_of(&self, n: usize) -> Members {
        let disk = &self.nodes[n].disk;
        let (cluster, own_version, records) =
            disk.read(|s| (s.facts.cluster.clone(), s.facts.own_version, s.records.len()));
        Members { cluster, trusted: disk.trusted_keys(), own_version, records }
    }

    /// A proven peer is about to be stored.
    pub(in super::super) fn witness_merge(&self, n: usize, accepted: &Accepted) -> Merge {
        Merge {
            peer: accepted.peer_id,
            key: accepted.public_key,
            head: accepted.record.head().ok(),
            cluster_id: accepted.cluster_id,
            is_too_large: self.is_too_large(n, accepted),
            is_readmitted: accepted.readmitted,
            before: self.members_of(n),
        }
    }

    /// cluster.md §3: the members of both sides, unless the peer has been counted before.
    fn is_too_large(&self, n: usize, accepted: &Accepted) -> bool {
        let (disk, own, peer) = (&self.nodes[n].disk, self.nodes[n].id(), accepted.peer_id);
        let mut members: BTreeSet<PeerId> = disk.trusted_keys().into_keys().chain([own]).collect();
        let is_counted = members.contains(&peer)
            || accepted.members.contains(&own)
            || disk.vouched().is_ok_and(|vouched| vouched.contains(&peer));
        members.extend(accepted.members.iter().chain([&peer]));
        let own_max = self.nodes[n].member().map_or(u32::MAX, |member| member.license.max_nodes());
        !is_counted && members.len() > own_max.min(accepted.max_nodes) as usize
    }

    /// C3: what was stored is stored wholly; what was not has changed nothing. One that died is looked at when it is down.
    pub(in super::super) fn check_merge(&mut self, n: usize, merge: Merge, ending: Result<(), &NoResult>) {
        match ending {
            Err(NoResult::Dead) => drop(self.witness.merging.insert(n, merge)),
            Ok(()) => {
                let peer = self.peer_name(merge.peer);
                if merge.is_too_large {
                    self.violate("C3", format!("n{} takes {peer} in over the node limit", n + 1));
                }
                if let Some(missing) = self.missing_of(n, &merge) {
                    self.violate("C3", format!("n{} has taken {peer} in without {missing}", n + 1));
                }
            }
            Err(_) => {
                self.check_untouched(n, &merge);
            }
        }
    }

    /// C3 for a node that died over a merge and is down now.
    pub(super) fn check_torn_merge(&mut self, n: usize, merge: &Merge) {
        let is_stored = self.nodes[n].disk.trusted_key(merge.peer).is_some();
        sometimes!(is_stored, "a node dies after it has stored a merge");
        sometimes!(!is_stored, "a node dies before it has stored a merge");
        let missing = self.missing_of(n, merge);
        if let Some(missing) = missing
            && self.members_of(n) != merge.before
        {
            let peer = self.peer_name(merge.peer);
            self.violate("C3", format!("n{} died over taking {peer} in, and has half of it: not {missing}", n + 1));
        }
    }

    fn check_untouched(&mut self, n: usize, merge: &Merge) {
        if self.members_of(n) != merge.before {
            let peer = self.peer_name(merge.peer);
            self.violate("C3", format!("n{} has not taken {peer} in, and is another than before", n + 1));
        }
    }

    /// What a whole merge leaves on the disk, and is not there.
    fn missing_of(&self, n: usize, merge: &Merge) -> Option<&'static str> {
        let (disk, own) = (&self.nodes[n].disk, self.nodes[n].id());
        if disk.trusted_key(merge.peer) != Some(merge.key) {
            return Some("trust");
        }
        let record =
            |kind: &str, id: String, owner| disk.record(&RecordKey { kind: kind.into(), id, owner }).ok().flatten();
        let id = merge.peer.to_string();
        let held = record(kind::PEER, id.clone(), merge.peer).and_then(|record| record.head().ok());
        if held < merge.head {
            return Some("its record");
        }
        let word = record(kind::VOUCHER, id.clone(), own).filter(|record| !record.deleted);
        let word: Option<Voucher> = word.and_then(|record| record.body_as().ok());
        if word.is_none_or(|word| word.subject_public_key != merge.key) {
            return Some("its voucher");
        }
        if merge.is_readmitted && record(kind::READMISSION, id, own).is_none_or(|record| record.deleted) {
            return Some("its readmission");
        }
        let ids = [Some(merge.cluster_id), merge.before.cluster.as_ref().map(|facts| facts.cluster_id)];
        self.id_missing(n, ids.into_iter().flatten()).then_some("the id of its cluster")
    }

    /// Whether the cluster of `n` does not go by the smallest of the ids, or has forgotten one of them.
    fn id_missing(&self, n: usize, mut ids: impl Iterator<Item = ClusterId>) -> bool {
        let facts = self.nodes[n].disk.read(|s| s.facts.cluster.clone());
        facts.is_none_or(|facts| {
            let is_known = |id: ClusterId| id == facts.cluster_id || facts.aliases.contains(&id);
            ids.any(|id| id < facts.cluster_id || !is_known(id))
        })
    }

    /// C2 at rest: of the ids that members were born with the smallest is the id, and the others are its aliases.
    pub(super) fn lost_cluster_id(&self, n: usize) -> Option<String> {
        self.nodes[n].member()?;
        let trusted = |owner: PeerId| self.nodes[n].disk.trusted_key(owner).is_some();
        let births: Vec<ClusterId> = self.nodes[n]
            .disk
            .read(|s| {
                let first =
                    RecordKey { kind: kind::CLUSTER.into(), id: String::new(), owner: PeerId::from_bytes([0; 16]) };
                let of_kind = s.records.range(first..).take_while(|(key, _)| key.kind == kind::CLUSTER);
                let live = of_kind.filter(|(_, held)| !held.record.deleted);
                live.map(|(key, held)| (key.owner, held.record.body_as::<ClusterBody>()))
                    .filter_map(|(owner, body)| Some((owner, body.ok()?.cluster_id)))
                    .collect::<Vec<_>>()
            })
            .into_iter()
            .filter(|(owner, _)| trusted(*owner))
            .map(|(_, id)| id)
            .collect();
        let lost = self.id_missing(n, births.into_iter());
        lost.then(|| format!("n{} does not go by the smallest id of its members, or not by one of the others", n + 1))
    }
}
