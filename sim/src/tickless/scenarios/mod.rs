//! The scenarios of simulation.md §8 that tier A runs.

pub mod crafted_signature;
pub mod edge_signatures;
