//! Scenarios of simulation.md §8 that harness A proves, by those names. Each builds what it needs and breaks what it
//! must; a violated invariant, or [`World::violate`], is its failure.

mod acts;
mod clocks;
mod clusters;
mod crafted_signature;
mod edge_signatures;
mod hosts;
mod removal;
mod splits;
mod stage;
mod stampede;
// WireGuard's machine has a clock of its own, which only that feature makes virtual.
#[cfg(feature = "simulation")]
mod tunnel;

use super::{
    panic_text,
    runs::PANIC,
    trace::Detail,
    world::{Options, World},
};
use stage::Casting;
use std::panic::catch_unwind;

/// A named story with a seed.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// Seeds of one sweep.
    pub seeds: u64,
    pub run: fn(seed: u64, real_crypto: bool, detail: Detail) -> World,
}

impl Scenario {
    /// Runs it. One that panics leaves an empty world that says so: the panic itself has told where.
    pub fn play(&self, seed: u64, real_crypto: bool, detail: Detail) -> World {
        catch_unwind(|| (self.run)(seed, real_crypto, detail)).unwrap_or_else(|panic| {
            let mut world = World::new(Options { detail, ..Options::new(seed, 0) });
            world.violate(PANIC, panic_text(panic.as_ref()));
            world
        })
    }
}

macro_rules! scenarios {
    ($($(#[$when:meta])* $room:ident :: $name:ident),* $(,)?) => {
        pub const SCENARIOS: &[Scenario] = &[$($(#[$when])* Scenario {
            name: stringify!($name),
            seeds: 100,
            run: |seed, real_crypto, detail| $room::$name(Casting { seed, real_crypto, detail }),
        }),*];
    };
}

scenarios![
    removal::revoked_peer_never_returns_after_collection,
    removal::mentions_do_not_readmit_and_quiet_peers_are_not_reaped,
    splits::split_heals_without_seed_list,
    splits::one_sick_peer_cannot_fail_the_fleet,
    splits::asymmetric_and_bridge_partition_stays_live,
    splits::oversize_state_never_wedges_the_queue,
    crafted_signature::crafted_signature_has_one_verdict,
    clocks::future_clock_wins_nothing,
    clocks::license_survives_rollback_1970_and_jump,
    hosts::restart_never_changes_membership,
    hosts::bad_disk_degrades,
    hosts::dual_stack_identity_is_one,
    hosts::cloned_disk_is_reported,
    #[cfg(feature = "simulation")]
    tunnel::tunnel_replay_and_roaming,
    clusters::merge_in_any_order_with_crashes,
    clusters::poison_record_is_contained,
    clusters::bootstrap_and_join_stampede,
];
