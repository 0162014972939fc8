//! The rules of the machine, one by one and in simulated clusters.

mod cluster;
mod collection;
mod copies;
mod departed;
mod fleet;
mod hostile;
mod machine;
mod merge;
mod network;
mod ranges;
mod rules;
