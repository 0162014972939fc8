//! The store: one SQLite file with the signed records and the facts of this host. Every commit that changed something
//! gives a new [`Revision`]; whoever watches it reads again. No clock and no randomness: times and ids are arguments.

mod credentials;
mod files;
mod group_commit;
mod integrity;
mod ledger;
mod meta;
mod migrate;
mod peers;
mod records;
mod services;

pub use crate::membership::{Author, ClusterFacts, PeerRow, Put};

use crate::{
    membership::IdentityConflict,
    model::{Code, Refused},
    planted::{Bug, planted},
};
use group_commit::GroupCommit;
use rusqlite::Connection;
use services::ParsedServices;
use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

/// How late the planted bug commits.
const COMMIT_LATE: Duration = Duration::from_millis(150);

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
    #[error(
        "database {path} is damaged ({reason}) and is not used; it is kept as {kept}: put a backup in its place, or start the agent again and bootstrap it; its identity stays in peer.key, and its peers bring the cluster's state back"
    )]
    Damaged { path: PathBuf, kept: PathBuf, reason: String },
    #[error("database files of {path}")]
    Files { path: PathBuf, source: std::io::Error },
    #[error("database commit: {0}")]
    Commit(String),
    /// The disk refused, as opposed to the database: full, or failing.
    #[error("database commit: the disk refuses it: {0}")]
    Disk(String),
    #[error("database query")]
    Sql(#[from] rusqlite::Error),
    #[error("database holds a {what} that cannot be read: {text}")]
    Corrupt { what: &'static str, text: String },
    #[error(transparent)]
    IdentityConflict(#[from] IdentityConflict),
    /// Not yet, or not any more.
    #[error("agent is not bootstrapped")]
    NotAMember,
    #[error("record to be stored")]
    Record(#[from] crate::wire::record::RecordError),
}

impl StoreError {
    fn corrupt(what: &'static str, text: impl ToString) -> Self {
        Self::Corrupt { what, text: text.to_string() }
    }

    /// What the disk said, where it is the disk that failed.
    fn disk_refused(&self) -> Option<String> {
        match self {
            Self::Disk(reason) => Some(reason.clone()),
            Self::Sql(e) if is_of_disk(e) => Some(e.to_string()),
            _ => None,
        }
    }

    /// Why a commit failed, told to each whose write was in it.
    fn commit(error: &rusqlite::Error) -> Self {
        if is_of_disk(error) { Self::Disk(error.to_string()) } else { Self::Commit(error.to_string()) }
    }
}

impl From<StoreError> for Refused {
    fn from(e: StoreError) -> Self {
        if let StoreError::IdentityConflict(conflict) = e {
            return conflict.into();
        }
        if let StoreError::NotAMember = e {
            return Refused::new(Code::NotBootstrapped, e.to_string());
        }
        let Some(reason) = e.disk_refused() else { return Refused::internal(e) };
        tracing::error!(reason, "the disk refuses a write of the database");
        Refused::new(Code::Internal, format!("the change was not saved, nothing has changed: {reason}"))
            .with_hint("free space in the agent's DATA_DIR, or see to its disk; then try again")
    }
}

/// Whether a failure is the disk's.
fn is_of_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(DiskFull | SystemIoFailure | CannotOpen | ReadOnly))
}

/// A handle; clones share one pair of connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Arc<GroupCommit>,
    reader: Mutex<Connection>,
    parsed: Arc<ParsedServices>,
}

/// Reading access to one consistent state.
pub struct View<'a> {
    connection: &'a Connection,
    parsed: &'a ParsedServices,
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
        let parsed = Arc::<ParsedServices>::default();
        let writer = Arc::new(GroupCommit::new(migrate::open(path)?, parsed.clone()));
        let reader = Mutex::new(migrate::open_reader(path)?);
        Ok(Self { inner: Arc::new(Inner { writer, reader, parsed }) })
    }

    /// Changes whenever a commit changed something, before those who wrote are told.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.inner.writer.revision()
    }

    /// Runs `f` in a transaction that is on disk when this returns; an error undoes what `f` did. Writes that come while
    /// another one is on its way to the disk share the next commit.
    pub async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let written = self.inner.writer.write(f).await;
        if planted(Bug::AckBeforeCommit) {
            self.commit_late();
        }
        written
    }

    /// The same for what only a member of a cluster writes: refused as soon as the word that this peer leaves is written,
    /// for nobody would hear of it, and it must not be found by whoever bootstraps this agent next.
    pub async fn write_as_member<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let write = self.write(move |tx| {
            if tx.is_leaving()? || tx.cluster()?.is_none() {
                return Err(StoreError::NotAMember.into());
            }
            f(tx)
        });
        write.await
    }

    /// The planted bug: what was acknowledged already comes to the disk a while later.
    fn commit_late(&self) {
        let inner = self.inner.clone();
        tokio::spawn(async move {
            tokio::time::sleep(COMMIT_LATE).await;
            inner.writer.commit_open();
        });
    }

    /// Runs `f` on the last committed state.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&View<'_>) -> Result<T, E>) -> Result<T, E> {
        let connection = self.inner.reader.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // One transaction, so that all that `f` reads is of one state.
        let state = connection.unchecked_transaction().map_err(StoreError::from)?;
        f(&View { connection: &state, parsed: &self.inner.parsed })
    }
}

#[cfg(test)]
mod tests;
