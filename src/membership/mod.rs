//! What a change of membership means (cluster.md §2-4, §8): who is trusted, which cluster this is, what goes with a peer
//! that leaves. Decisions over a [`Ledger`], each to be run within one transaction; the node brings the bytes and the
//! clock, the store (or a ledger in memory) keeps the outcome.
//!
//! What holds after each of them: a trusted peer is not revoked; the cluster id is the smallest ever met, and every other
//! one an alias; refusals come before the first write, so that a refused change has changed nothing.

mod accept;
mod anew;
mod attempts;
mod birth;
mod cluster;
mod collection;
mod confirm;
mod credentials;
mod ledger;
mod memory;
mod removal;
mod side;
#[cfg(test)]
mod tests;

pub use accept::{Acceptance, VOUCHER_CHECK_INTERVAL, accept, discovered, forget_unvouched, renew_vouchers};
pub use anew::{begin_anew, creator_of};
pub use attempts::{Attempts, RENEWAL_PAUSE, RENEWAL_PAUSE_MAX};
pub use birth::{Birth, FirstWords, OwnSettings, publish_settings};
pub use cluster::{ClusterFacts, merge_records};
pub use collection::{adopt_own_version, forget, publish_floor, republish, resume_writing};
pub use confirm::{Kept, KeptService, PendingConfirm, Restored, keep_services, restore_services};
pub use credentials::{
    Credential, NewCredential, ROTATION_OVERLAP, issue_credential, retire_revoked_credentials, revoke_credential,
    revoked_clients, rotate_credential, shared_credential,
};
pub use ledger::{
    Author, IDENTITY_CONFLICT_HINT, IdentityConflict, Ledger, LedgerView, Origin, PeerRow, Put, read_service,
};
pub use memory::MemoryLedger;
pub use removal::{
    Departure, delete_service_of_departed, grounds, leave, peer_was_revoked, remove_peer, take_grounds, withdraw_trust,
};
pub use side::{Own, Side, side};
