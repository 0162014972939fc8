//! The store: one SQLite file with the signed records and the facts of this host. Every commit that changed something
//! gives a new [`Revision`]; whoever watches it reads again. No clock and no randomness: times and ids are arguments.

mod credentials;
mod meta;
mod migrate;
mod peers;
mod records;
mod services;

pub use meta::ClusterFacts;
pub use peers::PeerRow;
pub use records::{Author, Put};

use crate::model::Refused;
use rusqlite::{Connection, TransactionBehavior};
use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
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
    #[error("database query")]
    Sql(#[from] rusqlite::Error),
    #[error("database holds a {what} that cannot be read: {text}")]
    Corrupt { what: &'static str, text: String },
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
        Refused::internal(e)
    }
}

/// A handle; clones share one connection.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Mutex<Connection>,
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
        let connection = migrate::open(path)?;
        Ok(Self { inner: Arc::new(Inner { connection: Mutex::new(connection), revision: watch::Sender::default() }) })
    }

    /// Changes whenever a commit changed something.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.inner.revision.subscribe()
    }

    /// Runs `f` in one transaction and commits it before returning; an error rolls everything back.
    pub async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let mut connection = self.lock();
        let changes_before = connection.total_changes();
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(StoreError::from)?;
        let out = f(&Tx { view: View { connection: &tx } })?;
        tx.commit().map_err(StoreError::from)?;
        if connection.total_changes() != changes_before {
            self.inner.revision.send_modify(|r| r.0 += 1);
        }
        Ok(out)
    }

    /// Runs `f` on the last committed state.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&View<'_>) -> Result<T, E>) -> Result<T, E> {
        f(&View { connection: &self.lock() })
    }

    /// A panic inside a transaction rolled it back, so the connection stays usable.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.inner.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
