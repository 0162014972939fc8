//! Random faults over production nodes, then calm: every invariant holds in time.

use sim::chaos::{Shape, check, known_seeds};
use sim::{twin_run, twin_run_with};
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 1..4;
const SHORT: Shape = Shape { chaos: Duration::from_secs(60), nodes: None };

#[test]
fn faults_pass_and_every_invariant_holds() {
    twin_run("faults_pass_and_every_invariant_holds", SEEDS, |seed| check(seed, SHORT));
}

#[test]
fn seeds_that_once_failed_pass() {
    for seed in known_seeds().expect("the list of seeds") {
        twin_run_with(seed, "seeds_that_once_failed_pass", |seed| check(seed, Shape::default()));
    }
}
