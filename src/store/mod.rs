//! The store: one SQLite file with the signed records and the facts of this host. Every commit that changed something
//! gives a new [`Revision`]; whoever watches it reads again. No clock and no randomness: times and ids are arguments.

mod credentials;
mod group_commit;
mod meta;
mod migrate;
mod peers;
mod records;
mod services;

pub use meta::ClusterFacts;
pub use peers::PeerRow;
pub use records::{Author, Put};

use crate::model::{Code, Refused};
use group_commit::GroupCommit;
use rusqlite::Connection;
use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// Counts commits of this process; starts at 0 with each open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database {path}: {action}")]
    Open { path: PathBuf, action: &'static str, source: rusqlite::Error },
    #[error(
        "database {path} has schema {found}, newer than {known} of this version: run the version that wrote it, or restore {path}.pre-{known}"
    )]
    NewerSchema { path: PathBuf, found: u32, known: u32 },
    #[error("database files of {path}")]
    Files { path: PathBuf, source: std::io::Error },
    #[error("database commit: {0}")]
    Commit(String),
    #[error("database query")]
    Sql(#[from] rusqlite::Error),
    #[error("database holds a {what} that cannot be read: {text}")]
    Corrupt { what: &'static str, text: String },
    #[error("another live copy of this identity exists; this one writes nothing to the cluster")]
    IdentityConflict,
    #[error("record to be stored")]
    Record(#[from] crate::wire::record::RecordError),
}

impl StoreError {
    fn corrupt(what: &'static str, text: impl ToString) -> Self {
        Self::Corrupt { what, text: text.to_string() }
    }
}

impl From<StoreError> for Refused {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::IdentityConflict => {
                Refused::new(Code::IdentityConflict, e.to_string()).with_hint(IDENTITY_CONFLICT_HINT)
            }
            other => Refused::internal(other),
        }
    }
}

/// What an operator does about two live copies of one identity (cluster.md §7).
pub const IDENTITY_CONFLICT_HINT: &str =
    "stop one of the two; to keep both, remove peer.key and the database of one of them and add it as a new peer";

/// A handle; clones share one pair of connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writer: GroupCommit,
    reader: Mutex<Connection>,
    revision: watch::Sender<Revision>,
}

/// Reading access to one consistent state.
pub struct View<'a> {
    connection: &'a Connection,
}

/// Writing access within one transaction; reads see the writes before them.
pub struct Tx<'a> {
    view: View<'a>,
}

impl<'a> Deref for Tx<'a> {
    type Target = View<'a>;
    fn deref(&self) -> &View<'a> {
        &self.view
    }
}

impl Store {
    /// Opens or creates the database at `path` and brings it to the newest schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let writer = GroupCommit::new(migrate::open(path)?);
        let reader = Mutex::new(migrate::open_reader(path)?);
        Ok(Self { inner: Arc::new(Inner { writer, reader, revision: watch::Sender::default() }) })
    }

    /// Changes whenever a commit changed something.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.inner.revision.subscribe()
    }

    /// Runs `f` in a transaction that is on disk when this returns; an error undoes what `f` did. Writes that come while
    /// another one is on its way to the disk share the next commit.
    pub async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let told = self.inner.writer.submit(f);
        if self.inner.writer.commit_submitted() {
            self.inner.revision.send_modify(|r| r.0 += 1);
        }
        told.await.expect("a write that panicked has no result")
    }

    /// Runs `f` on the last committed state.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&View<'_>) -> Result<T, E>) -> Result<T, E> {
        let connection = self.inner.reader.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // One transaction, so that all that `f` reads is of one state.
        let state = connection.unchecked_transaction().map_err(StoreError::from)?;
        f(&View { connection: &state })
    }
}

#[cfg(test)]
mod tests;
