//! Group commit: whoever writes first takes the others along, so that one sync to disk serves all who wait.
//!
//! A write is submitted to a queue. One submitter at a time leads: it runs what is queued, each in a savepoint of its
//! own, commits once, tells everyone, and gives the lead to the first that still waits. So each leads one commit, with its
//! own write in it, and has its answer then, however many come after. Alone, a write runs on the thread of its caller, in
//! order.

use super::{Revision, StoreError, Tx, View, services::ParsedServices};
use crate::planted::{Bug, planted};
use rusqlite::{Connection, DropBehavior, TransactionBehavior};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{oneshot, watch};

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
    queue: Mutex<Queue>,
    revision: watch::Sender<Revision>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Somebody has the lead; otherwise nothing waits.
    is_led: bool,
}

struct Waiting {
    job: Job,
    /// How its submitter is given the lead, once.
    lead: Option<oneshot::Sender<Lead>>,
}

/// The right and the duty to commit what is queued. Dropped, it passes to the first submitter that still waits; where all
/// of them have gone away, what they queued is committed first.
struct Lead(Option<Arc<GroupCommit>>);

impl Lead {
    fn commit(self) {
        if let Some(writer) = &self.0 {
            writer.commit_batch();
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if let Some(writer) = self.0.take() {
            while !writer.pass_on_lead() {
                writer.commit_batch();
            }
        }
    }
}

impl GroupCommit {
    pub fn new(connection: Connection, parsed: Arc<ParsedServices>) -> Self {
        Self { connection: Mutex::new(connection), parsed, queue: Mutex::default(), revision: watch::Sender::default() }
    }

    /// Changes whenever a commit changed something, before those who wrote are told.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Runs `f` with others that wait; on disk when this returns.
    pub async fn write<T, E, F>(self: &Arc<Self>, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (tell, mut told) = oneshot::channel();
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
        let (give, mut lead) = oneshot::channel();
        if let Some(lead) = self.submit(Box::new(job), give) {
            lead.commit();
        }
        let outcome = tokio::select! {
            biased;
            outcome = &mut told => outcome,
            Ok(lead) = &mut lead => {
                lead.commit();
                told.await
            }
        };
        outcome.expect("a write that panicked has no result")
    }

    /// Queues a write; gives the lead if nobody has it.
    fn submit(self: &Arc<Self>, job: Job, give: oneshot::Sender<Lead>) -> Option<Lead> {
        let mut queue = self.queue();
        queue.waiting.push_back(Waiting { job, lead: Some(give) });
        let is_led = std::mem::replace(&mut queue.is_led, true);
        (!is_led).then(|| Lead(Some(self.clone())))
    }

    /// Commits the first of what is queued.
    fn commit_batch(&self) {
        let (batch, unled): (Vec<Job>, Vec<_>) = {
            let waiting = &mut self.queue().waiting;
            let count = waiting.len().min(BATCH_MAX_WRITES);
            waiting.drain(..count).map(|waiting| (waiting.job, waiting.lead)).unzip()
        };
        allowed_to_block(|| {
            let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            self.run(&mut connection, batch);
        });
        // Not before they are told: it would wake each of them once more.
        drop(unled);
    }

    /// Gives the lead away, or up where nothing waits; false where nobody is left to lead what waits.
    fn pass_on_lead(self: &Arc<Self>) -> bool {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.is_led = false;
            return true;
        }
        for give in queue.waiting.iter_mut().filter_map(|waiting| waiting.lead.take()) {
            match give.send(Lead(Some(self.clone()))) {
                Ok(()) => return true,
                Err(mut refused) => drop(refused.0.take()),
            }
        }
        false
    }

    /// Runs one batch and commits it.
    fn run(&self, connection: &mut Connection, batch: Vec<Job>) {
        let mut tells = Vec::with_capacity(batch.len());
        let mut jobs = batch.into_iter();
        let outcome = commit(connection, &self.parsed, &mut jobs, &mut tells).map_err(Arc::new);
        if let Ok(true) = outcome {
            self.count_revision();
        }
        // After an error the rest of the batch is not run, only told.
        tells.extend(jobs.map(|job| job(None).1));
        for tell in tells {
            tell(outcome.clone().map(drop));
        }
    }

    /// Commits what the planted bug left open.
    pub fn commit_open(&self) {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if commit_open(&connection).unwrap_or(false) {
            self.count_revision();
        }
    }

    fn count_revision(&self) {
        self.revision.send_modify(|r| r.0 += 1);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
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

#[cfg(test)]
mod tests {
    use crate::store::{Store, StoreError};
    use std::{
        future::Future,
        pin::Pin,
        sync::{
            Arc, Mutex,
            atomic::{AtomicU64, Ordering},
        },
        task::{Context, Waker},
    };

    const LOAD: u64 = 300;

    /// Writes, and sees to it that the next write is queued before this one has ended; how many had run by its answer.
    fn one_after_another(store: Store, ran: Arc<AtomicU64>) -> Pin<Box<dyn Future<Output = u64> + Send>> {
        Box::pin(async move {
            let (next, counted) = (store.clone(), ran.clone());
            let write = store.write(move |tx| -> Result<(), StoreError> {
                if ran.fetch_add(1, Ordering::SeqCst) < LOAD {
                    tokio::spawn(one_after_another(next.clone(), ran.clone()));
                    while next.inner.writer.queue().waiting.is_empty() {
                        std::thread::yield_now();
                    }
                }
                tx.set_own_version(tx.own_version()? + 1)
            });
            write.await.unwrap();
            counted.load(Ordering::SeqCst)
        })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_leads_is_answered_after_its_own_commit_however_many_more_are_queued() {
        let (_dir, store) = open();
        let ran = Arc::<AtomicU64>::default();
        let ran_by_the_first_answer = one_after_another(store, ran.clone()).await;
        while ran.load(Ordering::SeqCst) <= LOAD {
            tokio::task::yield_now().await;
        }
        assert!(ran_by_the_first_answer < LOAD / 2, "{ran_by_the_first_answer}");
    }
    fn open() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("arctic.db")).unwrap();
        (dir, store)
    }

    type Write = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

    fn count_up(store: &Store) -> Write {
        let store = store.clone();
        Box::pin(async move { store.write(|tx| tx.set_own_version(tx.own_version()? + 1)).await })
    }

    /// Leads a commit, during which another write is queued; gives that one.
    async fn queued_behind_a_write(store: &Store) -> Write {
        let (other, place) = (store.clone(), Arc::new(Mutex::new(None)));
        let kept = place.clone();
        let write = store.write(move |tx| -> Result<(), StoreError> {
            let mut write = count_up(&other);
            assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            *kept.lock().unwrap() = Some(write);
            tx.set_own_version(1)
        });
        write.await.unwrap();
        place.lock().unwrap().take().unwrap()
    }

    fn counted(store: &Store) -> u64 {
        store.read::<_, StoreError>(|v| v.own_version()).unwrap()
    }

    #[tokio::test]
    async fn the_lead_goes_to_who_waits() {
        let (_dir, store) = open();
        let waiting = queued_behind_a_write(&store).await;
        assert_eq!(counted(&store), 1);
        waiting.await.unwrap();
        assert_eq!(counted(&store), 2);
    }

    #[tokio::test]
    async fn a_write_whose_caller_has_gone_away_with_the_lead_is_carried_out_and_holds_nobody_up() {
        let (_dir, store) = open();
        let abandoned = queued_behind_a_write(&store).await;
        let mut waiting = count_up(&store);
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(abandoned);
        waiting.await.unwrap();
        assert_eq!(counted(&store), 3);
        drop(queued_behind_a_write(&store).await);
        assert_eq!(counted(&store), 2);
        count_up(&store).await.unwrap();
        assert_eq!(counted(&store), 3);
    }
}
