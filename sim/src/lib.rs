//! The deterministic simulator (simulation.md). One seed gives one run; the trace of two runs is equal byte for byte.
//!
//! - [`tickless`], harness A: the pure machines of many nodes on one event queue, thousands of seeds, `scripts/sweep`.
//! - The rest, harness B: production nodes (`arctic::node`) with real HTTP and SQLite on a simulated network, virtual
//!   time and a kernel kept in memory.

pub mod chaos;
mod clock;
mod cluster;
mod net;
mod operator;
mod processes;
mod seeds;
mod streams;
pub mod tickless;
mod trace;

pub use clock::{EPOCH, SimClock, Skew};
pub use cluster::{Cluster, Options, SimHost, captures, verdict};
pub use net::{BadNames, Names, SimNet};
pub use operator::{Answer, Operator};
pub use processes::equal_in_two_processes;
pub use seeds::{KnownSeed, known_seeds};
pub use streams::{StreamFault, StreamFaults};
pub use trace::{Trace, record};

use std::{ops::Range, process::Command};

/// turmoil reports panics of spawned tasks only under `tokio_unstable`; without it a broken node would look healthy.
/// The flag is set by `.cargo/config.toml`, and an environment RUSTFLAGS replaces that file.
#[allow(clippy::assertions_on_constants, reason = "a run-time failure says what to do; a build failure would hide it")]
pub fn assert_panics_are_reported() {
    assert!(
        cfg!(tokio_unstable),
        "built without --cfg tokio_unstable: unset RUSTFLAGS, or add the flag to it, and run again"
    );
}

/// The commit that was built from, as `a1b2c3d (dirty)`.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let here = env!("CARGO_MANIFEST_DIR");
        let output = Command::new("git").current_dir(here).args(arguments).output().ok().filter(|o| o.status.success());
        output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    };
    let id = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let is_dirty = git(&["status", "--porcelain", "-uno"]).is_some_and(|text| !text.is_empty());
    if is_dirty { format!("{id} (dirty)") } else { id }
}

/// Seeds that a test takes in a build without optimization, where a run is ten times as slow.
const DEBUG_SEEDS: u64 = 1;

/// The seeds that a test is to take of its own: `SIM_SEED` names one instead, `SIM_SEEDS` says how many, also beyond
/// them. A build without optimization takes the first.
pub fn chosen_seeds(own: Range<u64>) -> Range<u64> {
    let number =
        |name| std::env::var(name).ok().map(|s| s.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")));
    match (number("SIM_SEED"), number("SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => own.start..own.start + count,
        (None, None) if cfg!(debug_assertions) => own.start..own.end.min(own.start + DEBUG_SEEDS),
        (None, None) => own,
    }
}

/// Runs a scenario twice with each of the chosen seeds and demands equal traces.
pub fn twin_run(scenario: &str, seeds: Range<u64>, run: impl Fn(u64)) {
    chosen_seeds(seeds).for_each(|seed| twin_run_with(seed, scenario, &run));
}

/// Runs a scenario twice with this very seed, whatever seeds are chosen, and demands equal traces.
pub fn twin_run_with(seed: u64, scenario: &str, run: impl Fn(u64)) {
    assert_panics_are_reported();
    let first = trace::recorded(scenario, seed, || run(seed));
    let second = trace::recorded(scenario, seed, || run(seed));
    first.assert_equal(&second, scenario, seed);
}

/// Runs a scenario once; the digest of its trace.
pub fn trace_digest(scenario: &str, seed: u64, run: impl Fn(u64)) -> String {
    assert_panics_are_reported();
    trace::recorded(scenario, seed, || run(seed)).digest()
}
