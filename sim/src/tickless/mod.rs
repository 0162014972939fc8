//! Harness A.

pub mod scenarios;
