//! The API over loopback HTTP, with the production node behind it.

mod access;
mod agent;
mod anew;
mod confirming;
mod conformance;
mod credentials;
mod enduring;
mod explaining;
mod hanging_up;
mod hostile;
mod joining;
mod leaving;
mod license_table;
mod license_update;
mod locking;
mod matrix;
mod objects;
mod peers_only;
mod proxying;
mod starting;
mod updates;
mod watching;
