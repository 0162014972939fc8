//! Scenarios of simulation.md §8 that harness A proves, a seed or two each; `scripts/sweep --scenario NAME --seeds 100`
//! runs many. Each runs twice, and the traces are equal.

use sim::tickless::{
    report::Report,
    scenarios::{SCENARIOS, Scenario},
    trace::Detail,
};

/// Too much for a build without optimization; `scripts/sweep --scenario` runs them.
const ONLY_IN_THE_SWEEP: &[&str] =
    &["one_sick_peer_cannot_fail_the_fleet", "merge_in_any_order_with_crashes", "bootstrap_and_join_stampede"];

fn told(name: &str, seeds: impl IntoIterator<Item = u64>) {
    let scenario: &Scenario = SCENARIOS.iter().find(|s| s.name == name).expect("a scenario of that name");
    for seed in seeds {
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
            let here = [&[$(stringify!($name)),*], ONLY_IN_THE_SWEEP].concat();
            let missing: Vec<_> = SCENARIOS.iter().map(|s| s.name).filter(|name| !here.contains(name)).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    };
}

scenarios! {
    revoked_peer_never_returns_after_collection: [1];
    mentions_do_not_readmit_and_quiet_peers_are_not_reaped: [1];
    split_heals_without_seed_list: [1, 2];
    asymmetric_and_bridge_partition_stays_live: [1];
    oversize_state_never_wedges_the_queue: [1, 2];
    crafted_signature_has_one_verdict: [1, 2];
    future_clock_wins_nothing: [1, 2];
    license_survives_rollback_1970_and_jump: [1, 2, 3];
    restart_never_changes_membership: [1];
    bad_disk_degrades: [1, 2];
    dual_stack_identity_is_one: [1, 2, 3];
    cloned_disk_is_reported: [1, 2];
    poison_record_is_contained: [1, 2];
}
