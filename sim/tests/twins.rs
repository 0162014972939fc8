//! The same seeds in two processes give the same runs, byte for byte.

use sim::{
    chaos::{Shape, check},
    equal_in_two_processes,
    tickless::{run, trace::Detail},
    trace_digest,
};
use std::{ops::Range, time::Duration};

const SEEDS: Range<u64> = 1..21;
const SHORT: Shape = Shape { chaos: Duration::from_secs(15), nodes: Some(3) };

#[test]
fn runs_of_production_nodes_are_equal_in_two_processes() {
    let test = "runs_of_production_nodes_are_equal_in_two_processes";
    equal_in_two_processes(test, SEEDS, |seed| trace_digest(test, seed, |seed| check(seed, SHORT)));
}

#[test]
fn runs_of_machines_are_equal_in_two_processes() {
    equal_in_two_processes("runs_of_machines_are_equal_in_two_processes", SEEDS, |seed| {
        let world = run(seed, Detail::Full).world;
        assert!(world.failure.is_none(), "scripts/sweep --seed {seed}\n{:?}", world.failure);
        format!("{:016x} of {} lines", world.trace.hash(), world.trace.len())
    });
}
