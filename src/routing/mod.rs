//! Which service takes a packet: one total order (dataplane.md §6), and the snapshot that the engines read.

mod explain;
mod forwarding;
mod index;
mod order;

pub use explain::{Criterion, Mismatch};
pub use forwarding::{ExitRefusal, ForwardedService, Forwarding, PeerPath};
pub use order::{CompiledRoute, sort_routes};
