//! The rules of the machine, one by one and in simulated clusters.

mod cluster;
mod fleet;
mod merge;
mod network;
mod ranges;
mod rules;
