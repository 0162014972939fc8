//! Which service takes a packet: one total order (dataplane.md §6), and the snapshot that the engines read.

mod forwarding;
mod order;

pub use forwarding::{ExitRefusal, ForwardedService, Forwarding, PeerPath};
pub use order::{CompiledRoute, sort_routes};
