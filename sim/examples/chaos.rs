//! Random faults over production nodes: `cargo run --release -p sim --example chaos -- 1..51 [seconds of chaos]`.
//!
//! `speed` instead of seeds prints how fast the harness runs (S3).
//!
//! `SIM_FAULTS=0,3` keeps only those faults of each seed's list; `shrink` after the seconds leaves out what is not needed.

// The speed of the simulator in real time is a subject here.
#![allow(clippy::disallowed_methods)]

use sim::chaos::{Shape, idle, run_chosen, shrink, sweep};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

const THREADS: usize = 2;
/// Nodes, and simulated seconds left alone.
const SPEED_RUNS: [(usize, u64); 4] = [(3, 600), (5, 600), (10, 200), (30, 30)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "speed") {
        for (nodes, seconds) in SPEED_RUNS {
            let started = Instant::now();
            let simulated = idle(nodes, Duration::from_secs(seconds));
            let speed = simulated.as_secs_f64() / started.elapsed().as_secs_f64();
            println!("S3 {nodes:>3} nodes: {speed:.0} simulated seconds a second");
        }
        return ExitCode::SUCCESS;
    }
    let bounds = arguments.first().and_then(|range| range.split_once(".."));
    let Some((Ok(from), Ok(to))) = bounds.map(|(from, to)| (from.parse::<u64>(), to.parse::<u64>())) else {
        eprintln!("which seeds? give a range such as 1..51");
        return ExitCode::FAILURE;
    };
    let seconds = arguments.get(1).and_then(|s| s.parse().ok()).map(Duration::from_secs);
    let shape = Shape { chaos: seconds.unwrap_or(Shape::default().chaos), ..Shape::default() };
    let summary = sweep(from..to, THREADS, |seed| run_chosen(seed, shape), |outcome| println!("{outcome}"));
    println!("{summary}");
    for knob in summary.never_fired() {
        println!("never fired        {knob}");
    }
    if arguments.iter().any(|word| word == "shrink") {
        for outcome in &summary.failed {
            println!("seed {} needs faults {:?}", outcome.seed, shrink(outcome, shape));
        }
    }
    if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
