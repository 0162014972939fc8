//! Undoes what was not confirmed in time (compose.md §5), also after a restart.

use super::{Node, STORE_RETRY};
use crate::{
    membership::{self, PendingConfirm},
    model::Mono,
    store::StoreError,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest time to a deadline.
pub const CONFIRM_MAX: Duration = Duration::from_secs(3600);
const IDLE_WAIT: Duration = Duration::from_secs(3600);

impl Node {
    /// Runs while the node is a member of a cluster. A deadline is counted on the monotonic clock from the moment it is
    /// seen: a wall clock that is set moves none.
    pub(super) async fn drive_confirm(self, stop: CancellationToken) {
        let mut revision = self.store().revision();
        let mut counted: Option<(PendingConfirm, Mono)> = None;
        loop {
            revision.borrow_and_update();
            let wait = self.tend_confirm(&mut counted).await.unwrap_or_else(|e| {
                tracing::error!(error = %e, "a change that nobody may have confirmed was not undone; it is tried again");
                STORE_RETRY
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = revision.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Undoes what is due; how long until something may be.
    async fn tend_confirm(&self, counted: &mut Option<(PendingConfirm, Mono)>) -> Result<Duration, StoreError> {
        let pending = self.store().read(|v| v.pending_confirm())?;
        let clock = &self.env().clock;
        let now = clock.mono();
        *counted = pending.map(|pending| match counted.take() {
            Some((old, due)) if (&old.id, old.deadline) == (&pending.id, pending.deadline) => (pending, due),
            _ => {
                let left = pending.deadline.saturating_since(clock.unix()).min(CONFIRM_MAX);
                (pending, now + left)
            }
        });
        let Some((pending, due)) = counted else { return Ok(IDLE_WAIT) };
        let wait = due.saturating_since(now);
        if !wait.is_zero() {
            return Ok(wait);
        }
        // Whether it is undone or was confirmed meanwhile, the store has changed.
        self.undo(pending.clone()).await.map(|()| IDLE_WAIT)
    }

    async fn undo(&self, due: PendingConfirm) -> Result<(), StoreError> {
        let Some(author) = self.identity() else { return Ok(()) };
        let now = self.env().clock.unix();
        let id = due.id.clone();
        let write = self.store().write_as_member(move |tx| {
            // Whoever confirmed meanwhile was in time.
            let Some(pending) = tx.pending_confirm()?.filter(|p| (&p.id, p.deadline) == (&due.id, due.deadline)) else {
                return Ok::<_, StoreError>(None);
            };
            let restored = membership::restore_services(tx, &author, &pending, now)?;
            tx.set_pending_confirm(None)?;
            Ok(Some(restored))
        });
        if let Some(restored) = write.await? {
            let (put_back, deleted) = (restored.put_back, restored.deleted);
            tracing::warn!(confirm = id, put_back, deleted, "a change was not confirmed in time: it is undone");
        }
        Ok(())
    }
}
