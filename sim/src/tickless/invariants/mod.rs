//! What must hold (simulation.md §4), by letter and number: E after every event, Q at quiescence, T over the whole run.

mod disk;
mod merges;
mod order;
mod promises;
pub(super) mod proofs;
mod quiet;
mod records;
mod sessions;
mod terms;

use super::{node::Node, world::World};
use arctic::{
    model::{Mono, PeerId},
    wire::{
        handshake::Init,
        record::{RecordHead, RecordKey},
    },
};
use std::collections::{BTreeMap, BTreeSet};

pub use quiet::CONVERGENCE_BOUND;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its letter and number.
    pub invariant: &'static str,
    pub what: String,
    pub at: Mono,
    pub step: u64,
}

/// What an all-knowing observer remembers of a run.
#[derive(Debug, Default)]
pub struct Witness {
    pub index_of: BTreeMap<PeerId, usize>,
    pub customer_of: BTreeMap<PeerId, u8>,
    /// What owners have written, and what became of it.
    pub order: order::Order,
    /// Own records of each node whose write was acknowledged to an operator, until it deletes them or loses its disk.
    pub acked: BTreeMap<usize, BTreeMap<RecordKey, RecordHead>>,
    /// The last tombstone that each owner wrote, by version.
    pub tombstones: BTreeMap<RecordKey, u64>,
    /// Services that their owners deleted and no operator has written since.
    pub deleted: BTreeSet<RecordKey>,
    /// Nodes that have held the tombstone of a service on a disk that they still have.
    pub knew_deleted: BTreeSet<(usize, RecordKey)>,
    /// Tombstones that each node has held, on whatever disk.
    pub held_tombstones: BTreeSet<(usize, RecordKey, u64)>,
    /// Pairs of nodes, the lower first, that have trusted each other; a removal, or a loss on both sides, ends one.
    pub members: BTreeSet<(usize, usize)>,
    /// Revocations that operators were told of, with the time of the last one.
    pub removed: BTreeMap<PeerId, Mono>,
    /// When an operator last asked to take a revoked peer back.
    pub readmitted: BTreeMap<PeerId, Mono>,
    /// Nodes that have held the revocation of a peer on a disk that they still have.
    pub knew: BTreeSet<(usize, PeerId)>,
    /// Members that were hostile at some time.
    pub hostile: BTreeSet<PeerId>,
    /// Tombstones that were collected, by version: once rightly, they may go everywhere.
    pub collected: BTreeSet<(RecordKey, u64)>,
    /// Nodes that lost their disk, or got an older one; who left the cluster has emptied it rightly.
    pub wiped: BTreeSet<usize>,
    /// Nodes that have removed themselves.
    pub left: BTreeSet<usize>,
    /// Copies of nodes, with what they are copies of.
    pub clones: BTreeMap<usize, usize>,
    /// Peers that each node trusted when it was looked at last; none before the first look at its disk.
    pub(super) trusted: BTreeMap<usize, Vec<PeerId>>,
    /// Merges over which a node has died.
    pub(super) merging: BTreeMap<usize, merges::Merge>,
    /// Records that were on pages of a node when these were flipped.
    pub(super) flipped: BTreeMap<usize, BTreeSet<RecordKey>>,
    /// Who has sent which first step of a handshake, by its challenge.
    pub(super) offers: BTreeMap<[u8; 32], (usize, Init)>,
    /// Sessions of each node and boot.
    pub(super) handshakes: BTreeMap<(usize, u64), BTreeMap<[u8; 16], proofs::Seen>>,
    /// Sessions that a call to a node goes on with.
    pub(super) finishing: BTreeMap<(usize, u64), [u8; 16]>,
    pub(super) challenges: BTreeSet<(usize, u64, [u8; 32])>,
    pub(super) sessions: BTreeSet<(usize, [u8; 16])>,
    pub(super) minted: BTreeSet<(usize, u64, [u8; 16])>,
    pub(super) nonces: BTreeSet<(usize, u64, PeerId, [u8; 16])>,
    /// The high-water mark of each node's license clock, by its boot.
    pub(super) marks: BTreeMap<usize, (u64, arctic::model::UnixTime)>,
    /// Revision of each disk that was looked at.
    pub(super) seen_revision: BTreeMap<usize, u64>,
    /// When each node started last.
    pub(super) started: BTreeMap<usize, Mono>,
}

impl Witness {
    /// Whether a peer is an honest node of this world.
    pub fn is_honest(&self, peer: PeerId) -> bool {
        self.index_of.contains_key(&peer) && !self.hostile.contains(&peer)
    }
}

impl World {
    /// What nodes say of themselves, for reports.
    pub fn node_lines(&self) -> Vec<String> {
        self.nodes.iter().map(|node| self.node_line(node)).collect()
    }

    fn node_line(&self, node: &Node) -> String {
        let name = node.name();
        let copy = node.is_clone_of.map_or(String::new(), |of| format!(" (copy of n{})", of + 1));
        let Some(member) = node.member() else {
            return format!("{name}{copy} {}", if node.is_up() { "not bootstrapped" } else { "down" });
        };
        let trusted: Vec<String> = node.disk.trusted_keys().into_keys().map(|p| self.peer_name(p)).collect();
        let version = node.disk.read(|s| s.facts.own_version);
        let records = node.disk.read(|s| s.records.len());
        let digest = member.gossip.digests();
        let state = member.entitlement.state;
        let unlinked: Vec<String> = node
            .disk
            .trusted_keys()
            .into_keys()
            .filter(|p| *p != node.id() && member.gossip.peer_view(*p).is_none())
            .map(|p| self.peer_name(p))
            .collect();
        let unlinked = if unlinked.is_empty() { String::new() } else { format!(" unlinked={}", unlinked.join(",")) };
        format!(
            "{name}{copy} rev={version} records={records} trusts={} license={state} digests={}{unlinked}",
            trusted.join(","),
            arctic::wire::gossip::Registry::ALL.map(|r| digest.get(r).to_string()[..6].to_owned()).join("/"),
        )
    }
}
