//! Scenarios of simulation.md §8 that harness A proves, a seed or two each; `scripts/sweep --scenario NAME --seeds 100`
//! runs many. Each runs twice, and the traces are equal.

use sim::chosen_seeds;
use sim::tickless::{
    report::Report,
    scenarios::{SCENARIOS, Scenario},
    trace::Detail,
};
use std::ops::Range;

fn told(name: &str, seeds: Range<u64>) {
    let scenario: &Scenario = SCENARIOS.iter().find(|s| s.name == name).expect("a scenario of that name");
    for seed in chosen_seeds(seeds) {
        let world = (scenario.run)(seed, false, Detail::Recent);
        if world.failure.is_some() {
            let reproduce = format!("scripts/sweep --scenario {name} --seed {seed}");
            let report = Report { scenario: name, seed, world: &world, plans: None, commit: "a test", reproduce };
            panic!("{}", report.write());
        }
        let again = (scenario.run)(seed, false, Detail::Recent);
        let traces = [&world, &again].map(|w| (w.trace.len(), w.trace.hash()));
        assert_eq!(traces[0], traces[1], "{name} at seed {seed} has two traces");
    }
}

macro_rules! scenarios {
    ($($(#[$accepts:meta])* $name:ident: $seeds:expr;)*) => {
        $($(#[$accepts])* #[test]
        fn $name() {
            told(stringify!($name), $seeds);
        })*

        #[test]
        fn every_scenario_is_here() {
            let here = [$(stringify!($name)),*];
            let missing: Vec<_> = SCENARIOS.iter().map(|s| s.name).filter(|name| !here.contains(name)).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    };
}

scenarios! {
    revoked_peer_never_returns_after_collection: 1..2;
    mentions_do_not_readmit_and_quiet_peers_are_not_reaped: 1..2;
    split_heals_without_seed_list: 1..3;
    asymmetric_and_bridge_partition_stays_live: 1..2;
    oversize_state_never_wedges_the_queue: 1..3;
    crafted_signature_has_one_verdict: 1..3;
    future_clock_wins_nothing: 1..3;
    license_survives_rollback_1970_and_jump: 1..4;
    restart_never_changes_membership: 1..2;
    bad_disk_degrades: 1..3;
    dual_stack_identity_is_one: 1..4;
    cloned_disk_is_reported: 1..3;
    poison_record_is_contained: 1..3;
    merge_in_any_order_with_crashes: 1..3;
    #[cfg(feature = "simulation")] tunnel_replay_and_roaming: 1..3;
    #[cfg(not(debug_assertions))] one_sick_peer_cannot_fail_the_fleet: 1..2;
    #[cfg(not(debug_assertions))] bootstrap_and_join_stampede: 1..2;
}
