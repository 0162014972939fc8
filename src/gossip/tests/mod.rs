//! The rules of the machine, one by one and in simulated clusters.

mod cluster;
mod departed;
mod merge;
mod network;
mod rules;
