//! Keeps the license's effective time and publishes what it entitles to (licensing.md §3-4).

use super::{Identity, Node};
use crate::{
    license::{EffectiveClock, Entitlement, LicenseDocument, MARK_PERSIST_INTERVAL, TICK_INTERVAL},
    model::Mono,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often the log repeats the warnings of a license that should be renewed (licensing.md §3).
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// The license of this node and the clock that it goes by.
pub(super) struct Licensed {
    document: Arc<LicenseDocument>,
    clock: EffectiveClock,
    /// When the log had the warnings last.
    warned_at: Option<Mono>,
}

impl Licensed {
    pub(super) fn new(document: Arc<LicenseDocument>, clock: EffectiveClock) -> Self {
        Self { document, clock, warned_at: None }
    }
    pub(super) fn entitlement(&self) -> Arc<Entitlement> {
        Arc::new(Entitlement::new(self.document.clone(), &self.clock))
    }
}

impl Node {
    /// From here on the node is a member of a cluster.
    pub(super) fn begin_membership(
        &self,
        identity: Arc<Identity>,
        document: Arc<LicenseDocument>,
        clock: EffectiveClock,
    ) {
        let licensed = Licensed::new(document, clock);
        self.inner.entitlement.send_replace(Some(licensed.entitlement()));
        *self.licensed() = Some(licensed);
        self.begin_lock(identity.peer_id);
        self.inner.identity.send_replace(Some(identity));
    }

    fn licensed(&self) -> std::sync::MutexGuard<'_, Option<Licensed>> {
        self.inner.licensed.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Brings the effective time and the entitlement up to date. Whether the clock is in doubt has to survive a
    /// restart, so a change of that is persisted at once.
    pub(crate) async fn tick_license(&self) {
        if self.tick_clock() {
            self.persist_license_clock().await;
        }
    }

    /// Says whether the clock fell into doubt or came out of it.
    fn tick_clock(&self) -> bool {
        let (now, mono) = (self.env().clock.unix(), self.env().clock.mono());
        let median = self.median_peer_time();
        let mut licensed = self.licensed();
        let Some(licensed) = licensed.as_mut() else { return false };
        let was_suspect = licensed.clock.is_suspect();
        licensed.clock.handle_tick(now, mono, median);
        let entitlement = licensed.entitlement();
        let before = self.inner.entitlement.send_replace(Some(entitlement.clone()));
        let changed = before.is_none_or(|b| b.state != entitlement.state);
        if changed {
            tracing::info!(state = %entitlement.state, since = %entitlement.state_since, "license state");
        }
        if changed || licensed.warned_at.is_none_or(|at| mono - at >= WARNING_INTERVAL) {
            licensed.warned_at = Some(mono);
            for warning in entitlement.warnings() {
                tracing::warn!(license = %entitlement.document.license_id(), "{warning}");
            }
        }
        entitlement.clock_suspect != was_suspect
    }

    pub(super) async fn persist_license_clock(&self) {
        let Some(snapshot) = self.licensed().as_ref().map(|l| l.clock.snapshot()) else { return };
        if let Err(e) = self.store().write(move |tx| tx.set_license_clock(&snapshot)).await {
            tracing::error!(error = %e, "license clock was not persisted; it is tried again within the hour");
        }
    }

    pub(super) async fn drive_license(self, stop: CancellationToken) {
        let mut persisted = self.env().clock.mono();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(TICK_INTERVAL) => self.tick_license().await,
            }
            if self.env().clock.mono() - persisted >= MARK_PERSIST_INTERVAL {
                persisted = self.env().clock.mono();
                self.persist_license_clock().await;
            }
        }
        self.persist_license_clock().await;
    }
}
