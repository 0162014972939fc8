//! Runs of many nodes, to be measured: figures S1-S12 and N1-N8 of simulation.md §7.

mod churn;
mod figures;
mod fleet;

use super::{
    message::Encoding,
    trace::Detail,
    world::{Options, World},
};
use figures::{cpu, line};
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

/// Nodes, whether signatures are real, simulated seconds a second.
const SPEEDS: &[(usize, bool, f64)] = &[
    (5, true, 500.0),
    (30, true, 60.0),
    (100, true, 25.0),
    (5, false, 2000.0),
    (100, false, 150.0),
    (1_000, false, 20.0),
];
/// Wall time spent on one speed, once it is built.
const MEASURE: Duration = Duration::from_secs(5);
/// Nodes of harness B, simulated seconds, simulated seconds a second.
const NODE_SPEEDS: &[(usize, u64, f64)] = &[(3, 60, 100.0), (5, 60, 100.0), (10, 30, 40.0), (30, 10, 8.0)];
/// No further step of the bench begins after so much wall time.
const BENCH: Duration = Duration::from_secs(240);
/// Seeds of the short sweep, and the wall time it may take.
const SHORT_SWEEP_SEEDS: u64 = 60;
const SHORT_SWEEP: Duration = Duration::from_secs(40);
/// Six rounds of at most 12 s, and twice the silence limit.
const CONVERGENCE_GOAL: Duration = Duration::from_secs(6 * 12 + 2 * 30);

#[allow(clippy::disallowed_methods, reason = "speeds of the simulator; no run sees this clock")]
fn wall() -> std::time::Instant {
    std::time::Instant::now()
}

/// S1-S12, beside the goals. Speeds are per second of the wall and, in brackets, of the processor: on a host that does
/// other things as well only the latter says something about the simulator.
pub fn print_bench() {
    let began = wall();
    let is_over = || began.elapsed() >= BENCH;
    for (nodes, real_crypto, goal) in SPEEDS {
        let what = format!("{nodes} nodes, {} signatures", if *real_crypto { "Ed25519" } else { "stub" });
        let goal_text = format!(">= {goal} sim-s/s");
        if is_over() {
            line("S1/S2", &what, "the bench used up its time", &goal_text, None);
        } else {
            let (text, speed) = speed(*nodes, *real_crypto);
            line("S1/S2", &what, &text, &goal_text, Some(speed >= *goal));
        }
    }
    line(
        "S2",
        "10,000 nodes, stub, 1,000 records",
        "see scripts/sweep --scale: gossip alone",
        ">= 1 sim-s/s, <= 8 GiB",
        None,
    );
    print_short_sweep(&is_over);
    for (nodes, lasts, goal) in NODE_SPEEDS {
        let (what, goal_text) = (format!("harness B, {nodes} nodes"), format!(">= {goal} sim-s/s"));
        if is_over() {
            line("S3", &what, "the bench used up its time", &goal_text, None);
            continue;
        }
        let (started, cpu_from) = (wall(), cpu());
        let lived = crate::chaos::idle(*nodes, Duration::from_secs(*lasts)).as_secs_f64();
        let speed = lived / started.elapsed().as_secs_f64();
        let text = format!("{speed:.1} sim-s/s ({:.1})", lived / (cpu() - cpu_from).as_secs_f64());
        line("S3", &what, &text, &goal_text, Some(speed >= *goal));
    }
    line("S6", "replay exact by seed alone", "scripts/sweep --hashes in two processes", "20 of 20 equal", None);
    line("S7", "lints deny the leaks of rule 2", "cargo clippy --workspace", "no warning", None);
    line("S8", "planted bugs found", "scripts/sweep --canaries", "all, 12 or more", None);
    line("S9", "lines of the pure rooms covered", "needs a build with coverage", ">= 85 %", None);
    line("S12", "seeds excused", "none: sim/seeds runs first, and a red seed fails the sweep", "0", Some(true));
}

/// What one size and kind of signature reaches.
fn speed(nodes: usize, real_crypto: bool) -> (String, f64) {
    let (began, first) = (wall(), cpu());
    let mut world = grown(nodes, measured(1, nodes, real_crypto));
    // The first rounds of a start are not the steady state.
    while world.now.since_start() < Duration::from_secs(15) && began.elapsed() < 3 * MEASURE && world.failure.is_none()
    {
        live(&mut world, Duration::from_millis(500));
    }
    let built = cpu() - first;
    let (started, from, cpu_from) = (wall(), world.now, cpu());
    let mut events = 0;
    while started.elapsed() < MEASURE && world.failure.is_none() {
        events += live(&mut world, Duration::from_millis(500));
    }
    if let Some(failure) = &world.failure {
        return (format!("the run failed at {:.1?}: {}", world.now.since_start(), failure.invariant), 0.0);
    }
    let lived = (world.now - from).as_secs_f64();
    let used = (cpu() - cpu_from).as_secs_f64();
    let speed = lived / started.elapsed().as_secs_f64();
    let per_event = used * 1e6 / events.max(1) as f64;
    let text = format!("{speed:.1} sim-s/s ({:.1}; {per_event:.0} us an event, built in {built:.1?})", lived / used);
    (text, speed)
}

/// S4, S5, S10, S11 of a few seeds of chaos on one thread.
fn print_short_sweep(is_over: &dyn Fn() -> bool) {
    let started = wall();
    let (mut seeds, mut failed, mut lived, mut worst) = (0, 0, Duration::ZERO, Duration::ZERO);
    for seed in 1..=SHORT_SWEEP_SEEDS {
        if started.elapsed() >= SHORT_SWEEP || is_over() {
            break;
        }
        let run = super::run_plan(&super::plan(seed), Detail::Off);
        seeds += 1;
        failed += u64::from(run.world.failure.is_some());
        lived += run.world.now.since_start();
        worst = worst.max(run.world.rested_after.unwrap_or_default());
    }
    let each = started.elapsed() / seeds.max(1) as u32;
    // 2,000 seeds on two threads.
    let whole = each * 1_000;
    let text = format!("{seeds} seeds, {failed} failed, {each:.0?} each: 2,000 in {whole:.0?}");
    line(
        "S4/S5",
        "2,000 seeds of harness A (estimate)",
        &text,
        "<= 15 min with B",
        Some(failed == 0 && whole <= Duration::from_secs(900)),
    );
    let text = format!("slowest {worst:.1?} of {:.0?} simulated", lived);
    line("S10", "at rest after faults stop", &text, "<= 132 s", (seeds > 0).then_some(worst <= CONVERGENCE_GOAL));
    line("S11", "shrinking", "only where a seed fails: scripts/sweep --plant", "<= 10 faults in 5 min", None);
}

/// N1-N8, beside the goals. `whole`: those that a limit of the wall cuts off run to their end.
pub fn print_scale(whole: bool) {
    super::use_crypto(false);
    figures::print(whole);
}
