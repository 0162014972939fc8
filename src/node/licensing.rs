//! Keeps the license and its effective time, takes renewals, and publishes what the agent is entitled to
//! (licensing.md §3-5).

use super::{Identity, Node};
use crate::{
    license::{ClockSnapshot, EffectiveClock, Entitlement, LicenseDocument, MARK_PERSIST_INTERVAL, TICK_INTERVAL},
    license::{State, check_admission},
    membership,
    model::{Code, Refused, UnixTime},
    store::StoreError,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often the log repeats the warnings of a license that should be renewed (licensing.md §3).
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest pause between two ticks: the wall clock may stand before a border that it never passes.
const TICK_PAUSE_MIN: Duration = Duration::from_secs(1);

/// The license of this node and the clock that it goes by.
pub(super) struct Licensed {
    document: Arc<LicenseDocument>,
    clock: EffectiveClock,
    /// The effective time at which the log had the warnings last.
    warned_at: Option<UnixTime>,
}

/// What a restart continues from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptLicensing {
    #[serde(flatten)]
    clock: ClockSnapshot,
    #[serde(default)]
    warned_at: Option<UnixTime>,
}

impl Licensed {
    /// At bootstrap: the wall clock is taken as it is.
    pub(super) fn new(document: Arc<LicenseDocument>, clock: EffectiveClock) -> Self {
        Self { document, clock, warned_at: None }
    }

    fn entitlement(&self) -> Arc<Entitlement> {
        Arc::new(Entitlement::new(self.document.clone(), &self.clock))
    }

    pub(super) fn document(&self) -> Arc<LicenseDocument> {
        self.document.clone()
    }

    pub(super) fn kept(&self) -> KeptLicensing {
        KeptLicensing { clock: self.clock.snapshot(), warned_at: self.warned_at }
    }

    /// Gives the log what it has to say once a day.
    fn warn(&mut self, entitlement: &Entitlement, state_changed: bool) {
        let (now, warnings) = (entitlement.effective_time, entitlement.warnings());
        // A clock that was in doubt may have come back from far ahead.
        let due = self.warned_at.is_none_or(|at| now < at || now.saturating_since(at) >= WARNING_INTERVAL);
        if warnings.is_empty() || !(state_changed || due) {
            return;
        }
        self.warned_at = Some(now);
        for warning in warnings {
            tracing::warn!(license = %entitlement.document.license_id(), "{warning}");
        }
    }
}

impl Node {
    /// The license of a restarted node, in the state that was reached.
    pub(super) fn resumed(&self, document: Arc<LicenseDocument>, kept: Option<KeptLicensing>) -> Licensed {
        let (now, mono) = (self.env().clock.unix(), self.env().clock.mono());
        match kept {
            Some(KeptLicensing { clock, warned_at }) => {
                Licensed { document, clock: EffectiveClock::resume(&clock, now, mono), warned_at }
            }
            None => Licensed::new(document, EffectiveClock::start(now, mono)),
        }
    }

    /// From here on the node is a member of a cluster.
    pub(super) fn begin_membership(&self, identity: Arc<Identity>, licensed: Licensed) {
        let entitlement = licensed.entitlement();
        tracing::info!(license = %entitlement.document.license_id(), state = %entitlement.state,
            since = %entitlement.state_since, "license state");
        self.inner.entitlement.send_replace(Some(entitlement));
        *self.licensed() = Some(licensed);
        self.begin_lock(identity.peer_id);
        self.inner.identity.send_replace(Some(identity));
    }

    fn licensed(&self) -> MutexGuard<'_, Option<Licensed>> {
        self.inner.licensed.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Takes another license of the same customer, at once (licensing.md §5). A dry run only judges it, and gives what
    /// the agent would be entitled to.
    pub async fn update_license(&self, document: &Value, dry_run: bool) -> Result<Arc<Entitlement>, Refused> {
        let _turn = self.inner.membership_turn.lock().await;
        self.tick_license().await;
        let offered = Arc::new(LicenseDocument::from_value(document)?);
        let (identity, customer, clock) = {
            let licensed = self.licensed();
            let current = self.identity().zip(licensed.as_ref());
            let (identity, current) = current.ok_or_else(|| {
                Refused::new(Code::NotBootstrapped, "a license is renewed once the agent is bootstrapped")
            })?;
            (identity, current.document.customer_id(), current.clock.clone())
        };
        check_admission(&offered, self.trust_roots(), Some(customer), &clock)?;
        if dry_run {
            return Ok(Arc::new(Entitlement::new(offered, &clock)));
        }
        let (node, license) = (self.clone(), offered.clone());
        self.store()
            .write_as_member(move |tx| -> Result<(), StoreError> {
                tx.set_license(license.as_value())?;
                node.write_kept(tx)?;
                let Some(mut own) = tx.peer(identity.peer_id)? else { return Ok(()) };
                own.license_id = Some(license.license_id());
                tx.put_peer(&own)?;
                membership::publish_settings(tx, &identity, own, &node.own_settings(), license.license_id())
            })
            .await?;
        let entitlement = self.adopt(offered)?;
        tracing::info!(license = %entitlement.document.license_id(), state = %entitlement.state,
            expires_at = %entitlement.document.expires_at(), "license updated");
        Ok(entitlement)
    }

    /// The stored license becomes the one that counts.
    fn adopt(&self, document: Arc<LicenseDocument>) -> Result<Arc<Entitlement>, Refused> {
        let mut licensed = self.licensed();
        let licensed =
            licensed.as_mut().ok_or_else(|| Refused::new(Code::NotBootstrapped, "the agent left its cluster"))?;
        licensed.document = document;
        let entitlement = licensed.entitlement();
        self.inner.entitlement.send_replace(Some(entitlement.clone()));
        Ok(entitlement)
    }

    /// Brings the effective time and the entitlement up to date. What a restart must not forget is persisted at once:
    /// a new state, a clock that fell into doubt or came out of it, and the day of the last warning.
    pub(crate) async fn tick_license(&self) {
        if self.tick_clock() {
            self.persist_license_clock().await;
        }
    }

    /// Says whether anything has to be persisted.
    fn tick_clock(&self) -> bool {
        let (now, mono) = (self.env().clock.unix(), self.env().clock.mono());
        let median = self.median_peer_time();
        let mut licensed = self.licensed();
        let Some(licensed) = licensed.as_mut() else { return false };
        let (was_suspect, warned_at) = (licensed.clock.is_suspect(), licensed.warned_at);
        licensed.clock.handle_tick(now, mono, median);
        let entitlement = licensed.entitlement();
        let before = self.inner.entitlement.send_replace(Some(entitlement.clone()));
        let before = before.map_or(State::Valid, |b| b.state);
        let changed = before != entitlement.state;
        if changed {
            tracing::info!(license = %entitlement.document.license_id(), state = %entitlement.state,
                since = %entitlement.state_since, "license state");
        }
        licensed.warn(&entitlement, changed);
        changed || was_suspect != entitlement.clock_suspect || warned_at != licensed.warned_at
    }

    pub(crate) async fn persist_license_clock(&self) {
        let node = self.clone();
        if let Err(e) = self.store().write(move |tx| node.write_kept(tx)).await {
            tracing::error!(error = %e, "license clock was not persisted; it is tried again within the hour");
        }
    }

    /// Read inside the transaction, so that the last one to commit has the latest.
    fn write_kept(&self, tx: &crate::store::Tx<'_>) -> Result<(), StoreError> {
        let kept = self.licensed().as_ref().map(Licensed::kept);
        kept.map_or(Ok(()), |kept| tx.set_license_clock(&kept))
    }

    pub(super) async fn drive_license(self, stop: CancellationToken) {
        let mut entitlement = self.inner.entitlement.subscribe();
        let mut persisted = self.env().clock.mono();
        loop {
            self.tick_license().await;
            if self.env().clock.mono() - persisted >= MARK_PERSIST_INTERVAL {
                persisted = self.env().clock.mono();
                self.persist_license_clock().await;
            }
            let next_state = entitlement.borrow_and_update().as_ref().and_then(|e| e.until_next_state());
            let wait = next_state.map_or(TICK_INTERVAL, |wait| wait.clamp(TICK_PAUSE_MIN, TICK_INTERVAL));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // A renewal: its next state may come sooner.
                changed = entitlement.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.persist_license_clock().await;
    }
}
