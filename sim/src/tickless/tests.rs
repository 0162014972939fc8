//! A fixed list of seeds; the sweep runs thousands.

use super::{run, trace::Detail};

const SEEDS: std::ops::Range<u64> = 1..13;

#[test]
fn chaos_leaves_no_invariant_violated_and_two_runs_of_a_seed_are_equal() {
    for seed in crate::chosen_seeds(SEEDS) {
        let first = run(seed, Detail::Full).world;
        let lines = first.node_lines().join("\n");
        assert!(first.failure.is_none(), "scripts/sweep --seed {seed}\n{:?}\n{lines}", first.failure);
        let second = run(seed, Detail::Full).world;
        let differing = first.trace.lines().zip(second.trace.lines()).find(|(a, b)| a != b);
        assert_eq!(differing, None, "seed {seed}");
        assert_eq!((first.trace.len(), first.trace.hash()), (second.trace.len(), second.trace.hash()), "seed {seed}");
    }
}

#[test]
fn a_run_is_the_same_on_whatever_thread() {
    let hash = |seed| run(seed, Detail::Recent).world.trace.hash();
    let here: Vec<u64> = crate::chosen_seeds(SEEDS).take(4).map(hash).collect();
    let there = std::thread::spawn(move || crate::chosen_seeds(SEEDS).take(4).map(hash).collect::<Vec<u64>>()).join();
    assert_eq!(Some(here), there.ok());
}
