//! Runs of many nodes, to be measured: figures S1, S2 and N1-N8 of simulation.md §7.

use super::{
    message::Encoding,
    trace::Detail,
    world::{Options, World},
};
use std::time::Duration;

/// Each brings three records; every node holds them all.
const NODES_WITH_RECORDS: usize = 60;

/// A cluster of `nodes` that all trust each other, without the handshakes that would lead there.
pub fn grown(nodes: usize, options: Options) -> World {
    let mut world = World::new(Options { nodes, ..options });
    world.found_at_once(NODES_WITH_RECORDS);
    world
}

/// Options of a run that is only measured.
pub fn measured(seed: u64, nodes: usize, real_crypto: bool) -> Options {
    Options {
        real_crypto,
        encoding: Encoding::Values,
        detail: Detail::Off,
        reconciles: false,
        ..Options::new(seed, nodes)
    }
}

/// Lets `world` live for `span`; the caller watches the wall clock. Gives the events taken.
pub fn live(world: &mut World, span: Duration) -> u64 {
    let before = world.steps;
    world.run_for(span);
    world.steps - before
}

/// 10,000 nodes are not among them: each machine owns its copies of records and a link a peer, which is above the 8 GiB.
const SPEEDS: &[(usize, bool, f64)] = &[
    (5, true, 500.0),
    (30, true, 60.0),
    (100, true, 25.0),
    (5, false, 2000.0),
    (100, false, 150.0),
    (1_000, false, 20.0),
];
/// World time between two looks at the wall clock.
const STRIDE: Duration = Duration::from_millis(10);
const WARM: arctic::model::Mono = arctic::model::Mono::from_ms(15_000);
const WARM_UP_MAX: Duration = Duration::from_secs(10);
/// Wall time spent on one speed.
const MEASURE: Duration = Duration::from_secs(5);

#[allow(clippy::disallowed_methods, reason = "speeds of the simulator; no run sees this clock")]
fn wall() -> std::time::Instant {
    std::time::Instant::now()
}

/// S1 and S2: simulated seconds a wall second, beside the goals.
pub fn print_speeds() {
    for (nodes, real_crypto, goal) in SPEEDS {
        let began = wall();
        let mut world = grown(*nodes, measured(1, *nodes, *real_crypto));
        let built = began.elapsed();
        // The first rounds of a start are not the steady state.
        let warm = wall();
        while warm.elapsed() < WARM_UP_MAX && world.now < WARM {
            live(&mut world, STRIDE);
        }
        let (started, from) = (wall(), world.now);
        let mut events = 0;
        while started.elapsed() < MEASURE {
            events += live(&mut world, STRIDE);
        }
        let speed = (world.now - from).as_secs_f64() / started.elapsed().as_secs_f64();
        if let Some(failure) = &world.failure {
            println!("S1/S2       nodes={nodes} stopped: {} {}", failure.invariant, failure.what);
        }
        let verdict = if speed >= *goal { "met" } else { "NOT met" };
        let crypto = if *real_crypto { "ed25519" } else { "stub" };
        let per_event = started.elapsed().as_secs_f64() * 1e6 / events.max(1) as f64;
        println!(
            "S1/S2       nodes={nodes:<6} {crypto:<8} {speed:>9.1} sim-s/s  goal {goal:>6}  {verdict}  ({per_event:.1} us an event, built in {built:.1?})"
        );
    }
}

/// N1-N8, beside the goals.
pub fn print_scale() {
    println!("scale       no figures yet");
}
