//! Harness A (simulation.md §1): production machines of many nodes on one event queue with virtual time. No tick, no
//! task, no thread; one seed gives one run.
//!
//! ```text
//! faults, work ─┐                        ┌─ node: Gossip, Responder, Initiators, license ── Disk ── FakeKernel
//!               ├─> World: (time, seq, event) ─┤        ... as `node` wires them, decisions by `membership`
//! calls ────────┘        │               └─ node …
//!                        └─ Witness: what must hold after each event, at rest, over the run
//! ```

mod book;
mod calls;
mod chaos;
pub mod faults;
mod hostile;
mod impersonate;
pub mod invariants;
pub mod ledger;
mod lifecycle;
pub mod marks;
mod member;
mod message;
pub mod network;
pub mod node;
mod reconcile;
pub mod report;
mod runs;
pub mod scale;
pub mod scenarios;
mod serve;
pub mod shrink;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod workload;
pub mod world;

pub use invariants::{CONVERGENCE_BOUND, Violation};
pub use message::Encoding;
pub(crate) use runs::panic_text;
pub use runs::{CHAOS_END, Plan, Run, plan, run, run_plan};
pub use world::{Options, World};

/// Signs with Ed25519 or, in a build with the feature `simulation`, with a keyed hash. Of this thread.
pub fn use_crypto(real: bool) {
    #[cfg(feature = "simulation")]
    arctic::model::stub::switch(!real);
    let _without_stubs_it_is_always_real = real;
}
