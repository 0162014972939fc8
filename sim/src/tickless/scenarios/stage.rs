//! What scenarios have in common: a founded cluster, waiting, and looking at nodes.

use super::super::{
    invariants::CONVERGENCE_BOUND,
    ledger::NoResult,
    trace::Detail,
    workload::{Work, found_cluster},
    world::{Options, World, derive},
};
use arctic::{
    membership::LedgerView,
    model::{PeerId, Rng, ServiceId},
    wire::record::{RecordKey, kind},
};
use std::{collections::BTreeSet, time::Duration};

pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// How a scenario is run.
#[derive(Debug, Clone, Copy)]
pub struct Casting {
    pub seed: u64,
    pub real_crypto: bool,
    pub detail: Detail,
}

/// A world with the randomness of its story.
pub struct Stage {
    pub world: World,
    pub rng: Rng,
}

impl Stage {
    /// Nodes without a cluster.
    pub fn empty(casting: Casting, nodes: usize, tune: impl FnOnce(&mut Options)) -> Self {
        let Casting { seed, real_crypto, detail } = casting;
        let mut options = Options { real_crypto, detail, ..Options::new(seed, nodes) };
        tune(&mut options);
        Self { world: World::new(options), rng: Rng::from_seed(derive(seed, "story", 0)) }
    }

    /// Nodes that were made one cluster by their operators, at rest.
    pub fn founded(casting: Casting, nodes: usize, tune: impl FnOnce(&mut Options)) -> Self {
        Self::founded_with_guests(casting, nodes, 0, tune)
    }

    /// The same beside some nodes, the last ones, that belong to no cluster yet.
    pub fn founded_with_guests(casting: Casting, nodes: usize, guests: usize, tune: impl FnOnce(&mut Options)) -> Self {
        let mut stage = Self::empty(casting, nodes + guests, tune);
        let work = found_cluster(&mut stage.rng, nodes);
        stage.world.plan_work(work);
        stage.world.run_for(Duration::from_millis(2000 + 300 * nodes as u64));
        stage.rest();
        stage
    }

    pub fn rest(&mut self) {
        self.world.come_to_rest(CONVERGENCE_BOUND);
    }

    pub fn demand(&mut self, invariant: &'static str, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.world.violate(invariant, what());
        }
    }

    /// Waits until it holds, and demands that it does in time.
    pub fn within(
        &mut self,
        bound: Duration,
        invariant: &'static str,
        what: &str,
        holds: impl Fn(&World) -> bool,
    ) -> Duration {
        let start = self.world.now;
        while self.world.failure.is_none() && !holds(&self.world) && self.world.now - start < bound {
            self.world.run_for(Duration::from_millis(500));
        }
        let held = holds(&self.world);
        self.demand(invariant, held, || format!("not within {bound:?}: {what}"));
        self.world.now - start
    }

    /// Random work of random operators among `nodes`, spread over `span`.
    pub fn busy(&mut self, nodes: &[usize], count: u64, span: Duration) {
        for _ in 0..count {
            let node = self.one_of(nodes);
            let target = self.one_of(nodes);
            let work = match self.rng.below(10) {
                0..5 if target != node => Work::Create { target, name: self.rng.below(8) },
                0..8 => Work::Update,
                _ => Work::Delete,
            };
            self.world.work_at(node, work);
            self.world.run_for(span / u32::try_from(count).unwrap_or(1));
        }
    }

    pub fn one_of(&mut self, nodes: &[usize]) -> usize {
        nodes[self.rng.below(nodes.len() as u64) as usize]
    }

    /// A service of `source` with a route.
    pub fn serve(&mut self, source: usize, target: usize) -> Option<ServiceId> {
        let before = services(&self.world, source);
        let name = self.rng.below(1000);
        self.world.work_at(source, Work::Create { target, name });
        let made = services(&self.world, source).difference(&before).next().copied();
        self.demand("D1", made.is_some(), || format!("n{} could not create a service", source + 1));
        made
    }

    pub fn delete_own(&mut self, n: usize, record_kind: &str, id: &str) {
        let deleted: Result<(), NoResult> = self.world.write(n, |tx, own| {
            arctic::membership::Ledger::delete_own(tx, own.author, record_kind, id).map(drop)?;
            Ok(())
        });
        self.demand("D1", deleted.is_ok(), || format!("n{} could not delete {id}", n + 1));
        self.world.witness_ack(n);
        self.world.settle(n);
    }

    pub fn remove(&mut self, at: usize, whom: usize) {
        let removed = self.world.remove_peer(at, whom);
        self.demand("R4", removed.is_ok(), || format!("n{} could not remove n{}", at + 1, whom + 1));
        self.world.settle(at);
    }

    /// Days in which nothing is seen but a minute each: hosts sleep in between.
    pub fn days_pass(&mut self, days: u32) {
        for _ in 0..days {
            self.world.leap(DAY - Duration::from_secs(60));
            self.world.run_for(Duration::from_secs(60));
        }
    }
}

pub fn id(world: &World, n: usize) -> PeerId {
    world.nodes[n].id()
}

pub fn trusts(world: &World, a: usize, b: usize) -> bool {
    world.nodes[a].disk.trusted_key(id(world, b)).is_some()
}

pub fn all_trust(world: &World, nodes: &[usize]) -> bool {
    nodes.iter().all(|a| nodes.iter().all(|b| a == b || trusts(world, *a, *b)))
}

/// Services that a node's operator sees.
pub fn services(world: &World, n: usize) -> BTreeSet<ServiceId> {
    world.nodes[n].disk.services().unwrap_or_default().into_iter().map(|s| s.id).collect()
}

/// Live records of `owner` that the node's disk holds, revocations apart.
pub fn held_of(world: &World, n: usize, owner: PeerId) -> Vec<RecordKey> {
    world.nodes[n].disk.read(|s| {
        let live = s.records.iter().filter(|(key, held)| key.owner == owner && !held.record.deleted);
        live.map(|(key, _)| key.clone()).filter(|key| key.kind != kind::REVOCATION).collect()
    })
}

/// Whether these nodes hold the same records.
pub fn agree(world: &World, nodes: &[usize]) -> bool {
    let digests = |n: &usize| world.nodes[*n].member().map(|m| m.gossip.digests());
    let first = nodes.first().and_then(digests);
    first.is_some() && nodes.iter().all(|n| digests(n) == first)
}
