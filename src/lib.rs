//! Arctic: an agent that carries chosen traffic between sites, and its CLI.
//!
//! # Code map
//!
//! Imports point down only:
//!
//! | room | holds | style |
//! |---|---|---|
//! | `model`, `wire` | the nouns; bytes and messages | values |
//! | `gossip`, `handshake`, `license`, `routing` | machines and rules | sans-IO: time and randomness are arguments |
//! | `kernel`, `env` | what is outside the process, as traits | |
//! | `store` | SQLite: signed records and local facts; every commit gives a revision | |
//! | `reconcile` | store to kernel and engines: `desired`, `plan` (pure), `apply` | level-triggered |
//! | `dataplane`, `os` | engines; the only Linux code | async, `unsafe` allowed |
//! | `node`, `api` | drivers, `node::run`; HTTP | async |
//! | `cli` | the operator's commands | |

pub mod api;
pub mod cli;
pub mod dataplane;
pub mod env;
pub mod gossip;
pub mod handshake;
pub mod kernel;
pub mod license;
pub mod model;
pub mod node;
pub mod os;
pub mod reconcile;
pub mod routing;
pub mod store;
pub mod wire;

#[cfg(test)]
mod tidy;
