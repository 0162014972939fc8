//! Random faults over production nodes, then calm: every invariant holds in time.

use sim::chaos::{Shape, check};
use sim::twin_run;
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 1..4;
const SHORT: Shape = Shape { chaos: Duration::from_secs(60), nodes: None };

#[test]
fn faults_pass_and_every_invariant_holds() {
    twin_run("faults_pass_and_every_invariant_holds", SEEDS, |seed| check(seed, SHORT));
}

/// `SIM_SWEEP=100..150` runs those seeds, on two threads.
#[test]
fn a_sweep_of_seeds_finds_nothing() {
    let range = std::env::var("SIM_SWEEP").unwrap_or_else(|_| "1000..1004".into());
    let (from, to) = range.split_once("..").expect("SIM_SWEEP is a range");
    let (from, to): (u64, u64) = (from.parse().expect("a seed"), to.parse().expect("a seed"));
    let summary = sim::chaos::sweep(from..to, 2, |outcome| println!("{outcome}"));
    println!("{summary}");
    assert!(summary.failed.is_empty());
    let silent = summary.never_fired();
    assert!(to - from < 40 || silent.is_empty(), "knobs that never turned: {silent:?}");
}
