//! The cluster file (compose.md): reading, canonical layout, what has to change, in which order. Pure.

mod comments;
mod diagnostic;
mod fields;
mod layout;
mod yaml;

#[cfg(test)]
mod tests;

pub use diagnostic::{Diagnostic, Place, Severity};
pub use layout::format;
pub use yaml::{Document, parse};
