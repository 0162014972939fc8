//! Scenarios of simulation.md §8 that harness A proves, by those names. Each builds what it needs and breaks what it
//! must; a violated invariant, or [`World::violate`], is its failure.

pub mod crafted_signature;
pub mod edge_signatures;

use super::world::World;

/// A named story with a seed.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// Seeds of one sweep.
    pub seeds: u64,
    pub run: fn(seed: u64, real_crypto: bool, detail: super::trace::Detail) -> World,
}

pub const SCENARIOS: &[Scenario] = &[];
