//! The license: its document, the keys that vouch for it, the state it is in at a time, and what that state permits
//! (licensing.md). Pure: files, clocks and sockets are the business of the callers.

mod allow;
mod clock;
mod document;
mod entitlement;
mod features;
mod limits;
mod roots;
mod state;
mod strict_json;

pub use allow::{EndpointGroup, LicenseRefusal, RENEWAL_COMMAND, check};
pub use clock::{ClockSnapshot, EffectiveClock, MARK_PERSIST_INTERVAL, TICK_INTERVAL, median_time};
pub use document::{LICENSE_MAX_BYTES, LicenseDocument, LicenseError, Terms};
pub use entitlement::{AdmissionError, Entitlement, check_admission};
pub use features::{Features, FeaturesError, IP_TUNNEL, KNOWN_FEATURES, features_of};
pub use limits::{LimitError, check_feature, check_nodes, check_services};
pub use roots::{TrustRoots, key_id};
pub use state::{State, days_left, grace_ends_at, read_only_ends_at, state_at, state_since, warning_begins_at};
pub use strict_json::{JsonError, parse as parse_strict_json};

#[cfg(test)]
mod tests;
