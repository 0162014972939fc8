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
mod streams;
pub mod tickless;
mod trace;

pub use clock::{EPOCH, SimClock, Skew};
pub use cluster::{Cluster, Options, SimHost, captures, verdict};
pub use net::SimNet;
pub use operator::{Answer, Operator};
pub use processes::equal_in_two_processes;
pub use streams::{StreamFault, StreamFaults};
pub use trace::{Trace, record};

/// turmoil reports panics of spawned tasks only under `tokio_unstable`; without it a broken node would look healthy.
/// The flag is set by `.cargo/config.toml`, and an environment RUSTFLAGS replaces that file.
#[allow(clippy::assertions_on_constants, reason = "a run-time failure says what to do; a build failure would hide it")]
pub fn assert_panics_are_reported() {
    assert!(
        cfg!(tokio_unstable),
        "built without --cfg tokio_unstable: unset RUSTFLAGS, or add the flag to it, and run again"
    );
}

/// Runs a scenario twice with one seed and demands equal traces. `SIM_SEED` replaces the given seeds.
pub fn twin_run(scenario: &str, seeds: impl IntoIterator<Item = u64>, run: impl Fn(u64)) {
    assert_panics_are_reported();
    let chosen = std::env::var("SIM_SEED").ok().map(|s| s.parse().expect("SIM_SEED is a number"));
    let seeds: Vec<u64> = chosen.map_or_else(|| seeds.into_iter().collect(), |seed| vec![seed]);
    for seed in seeds {
        let first = trace::recorded(scenario, seed, || run(seed));
        let second = trace::recorded(scenario, seed, || run(seed));
        first.assert_equal(&second, scenario, seed);
    }
}

/// Runs a scenario once; the digest of its trace.
pub fn trace_digest(scenario: &str, seed: u64, run: impl Fn(u64)) -> String {
    assert_panics_are_reported();
    trace::recorded(scenario, seed, || run(seed)).digest()
}
