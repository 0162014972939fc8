//! Group commit: whoever writes first takes the others along, so that one sync to disk serves all who wait.
//!
//! A write is submitted to a queue. One submitter at a time leads: it runs what is queued, each in a savepoint of its
//! own, commits once, and then tells everyone. Alone, a write runs on the thread of its caller, in order.

use super::{StoreError, Tx, View, services::ParsedServices};
use crate::planted::{Bug, planted};
use rusqlite::{Connection, DropBehavior, TransactionBehavior};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
};
use tokio::sync::oneshot;

/// Writes in one commit; more wait for the next, so that the first are not kept waiting.
const BATCH_MAX_WRITES: usize = 256;
/// The planted bug holds back one commit in so many, so that what reads after it writes mostly works.
const HELD_ONE_IN: u64 = 4;

/// Tells a submitter how the commit went.
type Tell = Box<dyn FnOnce(Result<(), Arc<rusqlite::Error>>) + Send>;
/// A queued write: runs in a savepoint, or not at all where there is no transaction; whether what it did stays, and how
/// to tell.
type Job = Box<dyn FnOnce(Option<&Tx<'_>>) -> (bool, Tell) + Send>;

pub(super) struct GroupCommit {
    connection: Mutex<Connection>,
    parsed: Arc<ParsedServices>,
    queue: Mutex<VecDeque<Job>>,
}

impl GroupCommit {
    pub fn new(connection: Connection, parsed: Arc<ParsedServices>) -> Self {
        Self { connection: Mutex::new(connection), parsed, queue: Mutex::default() }
    }

    /// Queues a write; its result arrives after the commit.
    pub fn submit<T, E, F>(&self, f: F) -> oneshot::Receiver<Result<T, E>>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let job = move |tx: Option<&Tx<'_>>| -> (bool, Tell) {
            let result = tx.map(f);
            let stays = matches!(result, Some(Ok(_)));
            let answer = move |commit: Result<(), Arc<rusqlite::Error>>| {
                let outcome = match (result, commit) {
                    (Some(Err(e)), _) => Err(e),
                    (Some(Ok(value)), Ok(())) => Ok(value),
                    (_, Err(error)) => Err(StoreError::commit(&error).into()),
                    (None, Ok(())) => Err(StoreError::Commit("the write was not run".into()).into()),
                };
                // A caller that has gone away wants no answer.
                drop(tell.send(outcome));
            };
            (stays, Box::new(answer))
        };
        self.queue().push_back(Box::new(job));
        told
    }

    /// Commits what is queued, unless another submitter leads: then that one does. Says whether anything changed.
    pub fn commit_submitted(&self) -> bool {
        let mut changed = false;
        // Whoever queued while this one led found the lock taken: so look again after giving it back.
        while !self.queue().is_empty() {
            let mut connection = match self.connection.try_lock() {
                Ok(connection) => connection,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => break,
            };
            let batch: Vec<Job> = {
                let mut queue = self.queue();
                let count = queue.len().min(BATCH_MAX_WRITES);
                queue.drain(..count).collect()
            };
            changed |= allowed_to_block(|| run(&mut connection, &self.parsed, batch));
        }
        changed
    }

    /// Commits what the planted bug left open; whether that changed anything.
    pub fn commit_open(&self) -> bool {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        commit_open(&connection).unwrap_or(false)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the runtime move other tasks away while this thread waits for the disk; a runtime of one thread cannot.
fn allowed_to_block<T>(f: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(f),
        _ => f(),
    }
}

/// Runs one batch and commits it; whether it changed anything.
fn run(connection: &mut Connection, parsed: &ParsedServices, batch: Vec<Job>) -> bool {
    let mut tells = Vec::with_capacity(batch.len());
    let mut jobs = batch.into_iter();
    let outcome = commit(connection, parsed, &mut jobs, &mut tells).map_err(Arc::new);
    // After an error the rest of the batch is not run, only told.
    tells.extend(jobs.map(|job| job(None).1));
    for tell in tells {
        tell(outcome.clone().map(drop));
    }
    outcome.unwrap_or(false)
}

/// Commits what the planted bug acknowledged and left open; whether there was any.
fn commit_open(connection: &Connection) -> rusqlite::Result<bool> {
    let is_open = planted(Bug::AckBeforeCommit) && !connection.is_autocommit();
    if is_open {
        connection.execute_batch("COMMIT")?;
    }
    Ok(is_open)
}

fn commit(
    connection: &mut Connection,
    parsed: &ParsedServices,
    jobs: &mut impl Iterator<Item = Job>,
    tells: &mut Vec<Tell>,
) -> rusqlite::Result<bool> {
    let was_open = commit_open(connection)?;
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut changed = false;
    loop {
        let savepoint = transaction.savepoint()?;
        let Some(job) = jobs.next() else { break };
        let before = savepoint.total_changes();
        let view = View { connection: &savepoint, parsed };
        let done = catch_unwind(AssertUnwindSafe(|| job(Some(&Tx { view }))));
        let stays = done.as_ref().is_ok_and(|(stays, _)| *stays);
        tells.extend(done.into_iter().map(|(_, tell)| tell));
        // Dropping a savepoint undoes it.
        if stays {
            changed |= savepoint.total_changes() != before;
            savepoint.commit()?;
        }
    }
    if planted(Bug::AckBeforeCommit) && tells.len() == 1 && transaction.total_changes() % HELD_ONE_IN == 0 {
        tells.drain(..).for_each(|tell| tell(Ok(())));
        transaction.set_drop_behavior(DropBehavior::Ignore);
        return Ok(false);
    }
    transaction.commit()?;
    Ok(changed || was_open)
}
