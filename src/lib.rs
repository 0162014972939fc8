//! Arctic: an agent that carries chosen traffic between sites, and its CLI.
//!
//! # Follow one parameter down
//!
//! ```text
//!  operator                                     peer agent
//!     | arctic CLI / HTTP API                       | peer-signed HTTP
//!     v                                             v
//!  api --write--> store <--merge-- gossip, handshake (pure) <-- node (drivers) <-- env::Net
//!                   | Revision (watch)
//!                   v
//!                reconcile: Desired --compile--> --plan--> apply --> kernel::Kernel --> os (nftables, rules)
//!                   | Forwarding (watch, immutable)
//!                   v
//!  client --> dataplane: intercept --> TLS connection of the pool --> exit --> server
//!                   |    what is not TCP: device --> iptun (WireGuard) --> device, masqueraded
//!  license (pure) --- Entitlement (watch): gates api and reconcile, never the packet path
//! ```
//!
//! A noun keeps its name in every room: a route is `model::Route`, `api/routes.rs`, `store/services.rs` (one record with
//! its service), `routing::CompiledRoute` (the total order), `kernel::Capture`, `os/nft`. The interface of a service is
//! `reconcile/network.rs` (which, where, what stands in its way), `kernel::Interface`, `os/interface.rs`.
//!
//! # Rooms
//!
//! Imports point down only; `tidy.rs` checks it, with the other rules that a compiler does not know.
//!
//! | room | holds | style |
//! |---|---|---|
//! | `model`, `wire` | the nouns; signing, records, messages: bounded, versioned | values |
//! | `gossip`, `handshake`, `license`, `lock`, `routing` | machines and rules | sans-IO: time and randomness are arguments |
//! | `dhcp` | the client of one lease: messages, frames, times | sans-IO |
//! | `membership` | what a change of membership means, over a `Ledger` | decisions; sans-IO |
//! | `kernel`, `env` | what is outside the process, as traits: kernel, network, clock, engines, randomness | dyn, few verbs |
//! | `store` | SQLite: signed records and facts of this host; every commit gives a `Revision` | transactions |
//! | `reconcile` | from the store to kernel and engines: `compile` and `plan` are pure, `apply` is thin | level-triggered |
//! | `dataplane`, `os` | engines; the only Linux code, the only `unsafe` | async |
//! | `node`, `api` | drivers and the one entry, `Node::start` and `Node::run`; HTTP | async |
//! | `compose` | the cluster file: reading, layout, plan, order of steps | pure |
//! | `cli` | the operator's commands | |
//!
//! # How many there are
//!
//! | type | a process has |
//! |---|---|
//! | `node::Node`, `store::Store`, `env::Env` | one, shared by clones of a handle |
//! | `gossip::Gossip`, `lock::Lock`, `handshake::Responder` | one each, from membership on; behind a lock that is never held across an await |
//! | `handshake::Initiator` | one a handshake that this agent begins |
//! | `reconcile::Reconcile`, `dataplane::Engine` | one each, from membership on |
//! | `routing::Forwarding`, `license::Entitlement` | one current snapshot in a watch; old ones live while a flow reads them |
//!
//! # What is absent
//!
//! - No clock and no randomness but `env::Clock` and `Env::seed`: a simulated node replays byte for byte.
//! - Nothing calls a reconciler; whoever wants a change writes to the store.
//! - No external command, no configuration file of another program, no kernel object that is not recognisably ours.
//! - No lock across an await, no unbounded queue, no retry without a limit.

pub mod api;
pub mod cli;
pub mod compose;
pub mod dataplane;
pub mod dhcp;
pub mod env;
pub mod gossip;
pub mod handshake;
pub mod kernel;
pub mod license;
pub mod lock;
pub mod membership;
pub mod model;
pub mod node;
pub mod os;
pub mod planted;
pub mod reconcile;
pub mod routing;
pub mod store;
pub mod wire;

#[cfg(test)]
mod tidy;
