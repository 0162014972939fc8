//! The rules of the machine, one by one and in simulated clusters.

mod cluster;
mod merge;
mod network;
mod rules;
