//! The cluster file (compose.md): reading, canonical layout, what has to change, in which order. Pure.
//!
//! ```text
//! text --yaml, comments--> Document --read, fields--> ClusterFile --+
//!                              | layout                             | plan --> Plan --steps--> Step…
//!                              v                             Live --+
//!                         canonical text <--export--           \--saved: SavedPlan
//! ```

mod comments;
mod diagnostic;
mod export;
mod fields;
mod graph;
mod layout;
mod live;
mod model;
mod plan;
mod read;
mod saved;
mod schema;
mod steps;
mod yaml;

#[cfg(test)]
mod tests;

pub use diagnostic::{Diagnostic, Place, Severity};
pub use export::{Export, SCHEMA_LINE, export};
pub use fields::{Field, Table};
pub use graph::{dot, mermaid};
pub use layout::{format, text_scalar};
pub use live::{Contact, Live, LivePeer, LiveRoute, LiveService, View};
pub use model::{ClusterFile, Interface, Peer, Route, Service};
pub use plan::{Action, Change, Counts, FieldChange, Plan, RouteChange, Symbol, plan};
pub use read::{Rules, read};
pub use saved::{SavedPlan, SavedPlanError};
pub use schema::schema;
pub use steps::{Need, Step, Work, steps};
pub use yaml::{Document, parse};
