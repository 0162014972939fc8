//! From the store to the kernel and the engines: level-triggered, idempotent, owning only our own (operations.md §2).
//!
//! ```text
//! store revision | license | kernel hint | 60 s ──> Desired ──compile──> Compiled ──plan──> steps ──apply──> kernel
//!                                                     (pure)             (pure)            engines (Forwarding)
//! ```
//!
//! `network` owns the interfaces of services and what the host must do for them, `tproxy` publishes what the engines
//! need, `firewall` owns the two tables and the policy routing, `iptun` puts the tunnel's device into them and lets the
//! host forward. One loop runs them all, because their order matters: an engine knows a service before packets reach it,
//! and until no packet reaches it.

mod desired;
mod explain;
mod firewall;
mod iptun;
mod lease;
mod network;
mod pace;
mod report;
mod run;
mod status;
mod tproxy;

#[cfg(test)]
mod tests;

pub use desired::{Change, Compiled, Desired, Marks, Source, StoreSource, compile};
pub use explain::{Candidate, Explanation, Flow, Outcome, Plane, Reason, explain};
pub use firewall::{FirewallStep, plan};
pub use network::{InterfacePlan, InterfaceStep, InterfaceWish, interface_wishes, plan_interfaces, remove_interfaces};
pub use pace::Pace;
pub use run::{Reconcile, Settings};
pub use status::{Condition, ConditionStatus, InterfaceFacts, Reconciler, ReconcilerStatus, Status};
pub use tproxy::EngineState;
