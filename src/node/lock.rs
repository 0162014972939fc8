//! Drives the lock machine: asks the peers, publishes what was won, and keeps the machine at what the store holds
//! (cluster.md §9).

use super::{Call, Identity, Node, STORE_RETRY};
use crate::{
    lock::{Lock, NotRenewed, Outcome, Standing},
    membership::Author,
    model::{ClientId, Code, PeerId, PeerStatus, Refused, Secret, UnixTime},
    store::{StoreError, Tx},
    wire::{
        gossip::Digest,
        lock::{self, CLEARING_ID, LEASE_ID, Lease, LockBody, LockReply, LockRequest},
        record::{Record, RecordKey, kind},
    },
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard},
    time::Duration,
};
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// A peer that has not granted in this time is asked again.
const GRANT_TIMEOUT: Duration = Duration::from_secs(2);
/// Healthy peers that have not heard by then of a lock that was cleared hear of it by gossip.
const CLEARED_TOLD_WITHIN: Duration = Duration::from_secs(2);
/// How long the driver sleeps when the machine has no deadline.
const IDLE_WAIT: Duration = Duration::from_secs(3600);

/// What a client wants the lock for.
#[derive(Debug, Clone)]
pub struct LockWish {
    /// None: an operator with the recovery token.
    pub client_id: Option<ClientId>,
    pub purpose: String,
    pub ttl_s: u32,
}

/// The lock as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockView {
    pub lease: Lease,
    pub holder_name: String,
    /// If nothing renews it; by the clock of this agent.
    pub expires_at: UnixTime,
}

impl Node {
    /// The lease that stands now.
    pub fn lock_view(&self) -> Result<Option<LockView>, Refused> {
        let standing = self.lock().as_ref().and_then(|machine| machine.standing(self.env().clock.mono()));
        standing.map(|standing| self.shown(standing)).transpose()
    }

    fn shown(&self, Standing { lease, until }: Standing) -> Result<LockView, Refused> {
        let clock = &self.env().clock;
        let holder = self.store().read(|v| v.peer(lease.holder_peer))?;
        let holder_name = holder.map_or_else(|| lease.holder_peer.to_string(), |row| row.display_name());
        Ok(LockView { holder_name, expires_at: clock.unix().plus(until - clock.mono()), lease })
    }

    /// CLUSTER_LOCKED while somebody else holds the lock.
    pub fn check_lock(&self, token: Option<&Secret>) -> Result<(), Refused> {
        let token = token.map(|t| Digest(t.digest()));
        let now = self.env().clock.mono();
        let checked = self.lock().as_ref().map_or(Ok(()), |machine| machine.check_write(token, now));
        checked.map_err(|standing| self.locked(*standing))
    }

    fn locked(&self, standing: Standing) -> Refused {
        match self.shown(standing) {
            Ok(view) => cluster_locked(&view),
            Err(refused) => refused,
        }
    }

    /// Takes the lock; gives its token, which nobody else ever learns. Goes on if the caller hangs up, and gives back
    /// then what it has taken.
    pub async fn take_lock(&self, wish: LockWish) -> Result<(LockView, Secret), Refused> {
        let (node, (done, outcome)) = (self.clone(), oneshot::channel());
        tokio::spawn(async move {
            let taken = node.claim_lock(wish).await;
            if let Err(Ok((view, _))) = done.send(taken)
                && let Err(e) = node.withdraw_lease(Digest(view.lease.token.0)).await
            {
                tracing::error!(error = %e, "a lease that nobody waits for was not withdrawn; it expires");
            }
        });
        outcome.await.map_err(Refused::internal)?
    }

    async fn claim_lock(&self, wish: LockWish) -> Result<(LockView, Secret), Refused> {
        let identity = self.identity().ok_or_else(super::gossip::not_bootstrapped)?;
        let token = Secret::mint(&mut self.fork_rng());
        let lease = Lease {
            holder_peer: identity.peer_id,
            client_id: wish.client_id,
            purpose: wish.purpose,
            token: Digest(token.digest()),
            acquired_at: self.env().clock.unix(),
            ttl_s: wish.ttl_s,
        };
        let (voters, now) = (self.healthy_peers()?, self.env().clock.mono());
        let begun = self.lock().as_mut().map_or(Ok(()), |machine| machine.claim(lease.clone(), &voters, now));
        begun.map_err(|standing| self.locked(*standing))?;
        let mut asked = BTreeSet::new();
        let won = self.win(&identity, lease.token, &mut asked).await;
        if won.is_err() {
            self.end_own_lease(lease.token);
            self.tell_withdrawal(asked, lease.token);
        }
        Ok((won?, token))
    }

    /// Waits until every peer has granted what is claimed, and publishes it.
    async fn win(
        &self,
        identity: &Arc<Identity>,
        token: Digest,
        asked: &mut BTreeSet<PeerId>,
    ) -> Result<LockView, Refused> {
        let lost = || Refused::new(Code::Conflict, "the lock was lost as soon as it was taken");
        match self.ask_for_grants(token, asked).await? {
            Outcome::Won(lease) => {
                self.publish_lease(identity, &lease).await?;
                tracing::info!(purpose = lease.purpose, peers = asked.len(), "cluster lock taken");
                self.lock_view()?.filter(|view| view.lease.token == token).ok_or_else(lost)
            }
            Outcome::Lost(standing) => Err(self.locked(standing)),
            Outcome::Ended => Err(lost()),
            Outcome::Unanswered(peers) => Err(self.unanswered(&peers)),
        }
    }

    /// Carries questions and answers until the claim has ended; notes who was asked.
    async fn ask_for_grants(&self, token: Digest, asked: &mut BTreeSet<PeerId>) -> Result<Outcome, Refused> {
        let clock = self.env().clock.clone();
        let mut calls = JoinSet::new();
        loop {
            let (healthy, now) = (self.healthy_peers()?, clock.mono());
            let (questions, outcome, due) = {
                let mut guard = self.lock();
                let machine = guard.as_mut().ok_or_else(super::gossip::not_bootstrapped)?;
                machine.handle_healthy(&healthy, now);
                let questions: Vec<_> = std::iter::from_fn(|| machine.poll_request(now)).collect();
                (questions, machine.poll_outcome(now), machine.poll_timeout(now))
            };
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
            for (peer, question) in questions {
                asked.insert(peer);
                let node = self.clone();
                calls.spawn(async move { (peer, node.ask_peer(peer, &question).await) });
            }
            tokio::select! {
                biased;
                Some(done) = calls.join_next() => match done {
                    Ok((peer, reply)) => {
                        if let Some(machine) = self.lock().as_mut() {
                            machine.handle_reply(peer, token, reply, clock.mono());
                        }
                    }
                    Err(e) => tracing::error!(error = %e, "a question for the cluster lock ended early"),
                },
                () = tokio::time::sleep(due.map_or(IDLE_WAIT, |due| due - now)) => {}
            }
        }
    }

    async fn ask_peer(&self, peer: PeerId, question: &LockRequest) -> Option<LockReply> {
        let body = serde_json::to_vec(question).ok()?;
        let call = Call { answer_timeout: GRANT_TIMEOUT, ..Call::post(lock::PATH, body) };
        match self.call_peer(peer, &call, None).await {
            Ok(answer) if answer.status == 200 => serde_json::from_slice(&answer.body).ok(),
            Ok(answer) => {
                tracing::debug!(%peer, status = answer.status, "question for the cluster lock refused");
                None
            }
            Err(e) => {
                tracing::debug!(%peer, reason = %e, "question for the cluster lock failed");
                None
            }
        }
    }

    /// Grants of a failed claim end by themselves too; telling the peers is faster.
    fn tell_withdrawal(&self, asked: BTreeSet<PeerId>, token: Digest) {
        for peer in asked {
            let node = self.clone();
            tokio::spawn(async move { node.ask_peer(peer, &LockRequest::Withdraw(token)).await });
        }
    }

    fn unanswered(&self, peers: &[PeerId]) -> Refused {
        let named = |peer: &PeerId| {
            let row = self.store().read(|v| v.peer(*peer)).ok().flatten();
            row.map_or_else(|| peer.to_string(), |row| row.display_name())
        };
        let names: Vec<String> = peers.iter().map(named).collect();
        let text = format!("the lock was not acknowledged within 5 s by {}", names.join(", "));
        Refused::new(Code::PeerUnreachable, text)
            .with_details(json!({ "peers": peers }))
            .with_hint("a peer that is down no longer counts 30 s after its last heartbeat: try again")
    }

    /// Renews the lease of this agent under `token`.
    pub async fn renew_lock(&self, token: &Secret, ttl_s: Option<u32>) -> Result<LockView, Refused> {
        let identity = self.identity().ok_or_else(super::gossip::not_bootstrapped)?;
        let (digest, now) = (Digest(token.digest()), self.env().clock.mono());
        let renewable = self.lock().as_ref().map_or(Err(NotRenewed::Gone), |machine| machine.renewable(digest, now));
        let mut lease = renewable.map_err(|e| match e {
            NotRenewed::Lost(standing) => self.locked(*standing),
            NotRenewed::Gone => lease_gone(),
        })?;
        lease.ttl_s = ttl_s.unwrap_or(lease.ttl_s);
        self.publish_again(&identity, lease).await?;
        self.lock_view()?.filter(|view| view.lease.token == digest).ok_or_else(lease_gone)
    }

    /// Ends the lease that stands: the record of an own one goes, a clearing ends any other.
    pub async fn clear_lock(&self, view: &LockView) -> Result<(), Refused> {
        let identity = self.identity().ok_or_else(super::gossip::not_bootstrapped)?;
        if view.lease.holder_peer == identity.peer_id {
            return self.withdraw_lease(view.lease.token).await;
        }
        let body = LockBody::Clearing { cleared: view.lease.token };
        self.store()
            .write_as_member(move |tx| tx.put_own(&identity, kind::LOCK, CLEARING_ID, &body).map(drop))
            .await
            .map_err(|e: StoreError| Refused::from(e))?;
        Ok(self.refresh_lock()?)
    }

    /// So that a write which follows at another peer does not meet a lock that is gone, nor its grant where the lease came
    /// and went without having been heard of.
    pub async fn tell_cleared(&self, view: &LockView) -> Result<(), Refused> {
        let peers: Vec<PeerId> = self.healthy_peers()?.into_iter().collect();
        let own = self.identity().map(|i| i.peer_id);
        let others: Vec<PeerId> = peers.into_iter().filter(|p| Some(*p) != own).collect();
        if own == Some(view.lease.holder_peer) {
            let withdrawal = |peer: &PeerId| {
                let (node, peer, token) = (self.clone(), *peer, view.lease.token);
                async move { node.ask_peer(peer, &LockRequest::Withdraw(token)).await }
            };
            let told: JoinSet<_> = others.iter().map(withdrawal).collect();
            told.join_all().await;
        }
        self.gossip_round(&others, CLEARED_TOLD_WITHIN).await;
        Ok(())
    }

    async fn publish_lease(&self, identity: &Arc<Identity>, lease: &Lease) -> Result<(), Refused> {
        let (author, body) = (identity.clone(), LockBody::Lease(lease.clone()));
        self.store()
            .write_as_member(move |tx| tx.put_own(&author, kind::LOCK, LEASE_ID, &body).map(drop))
            .await
            .map_err(|e: StoreError| Refused::from(e))?;
        Ok(self.refresh_lock()?)
    }

    /// Unless it was withdrawn since.
    async fn publish_again(&self, identity: &Arc<Identity>, lease: Lease) -> Result<(), Refused> {
        let author = identity.clone();
        let write = self.store().write_as_member(move |tx| -> Result<(), StoreError> {
            match is_published(tx, &author, LEASE_ID, lease.token)? {
                true => tx.put_own(&author, kind::LOCK, LEASE_ID, &LockBody::Lease(lease)).map(drop),
                false => Ok(()),
            }
        });
        write.await?;
        Ok(self.refresh_lock()?)
    }

    /// The own lease ends, if it is still the one with this token.
    async fn withdraw_lease(&self, token: Digest) -> Result<(), Refused> {
        let Some(author) = self.identity() else { return Ok(()) };
        self.store().write(move |tx| withdraw(tx, &author, LEASE_ID, token)).await?;
        self.end_own_lease(token);
        Ok(self.refresh_lock()?)
    }

    fn end_own_lease(&self, token: Digest) {
        if let Some(machine) = self.lock().as_mut() {
            machine.end_own(token);
        }
    }

    /// `POST /v1/gossip/lock`; `from` is proven by the signature of the request.
    pub fn lock_message(&self, from: PeerId, body: &[u8]) -> Result<LockReply, Refused> {
        let invalid = |text: String| Refused::new(Code::InvalidRequest, text);
        let request: LockRequest = serde_json::from_slice(body).map_err(|e| invalid(format!("lock question: {e}")))?;
        let now = self.env().clock.mono();
        let mut guard = self.lock();
        let machine = guard.as_mut().ok_or_else(super::gossip::not_bootstrapped)?;
        machine.handle_request(from, &request, now).map_err(|e| invalid(e.to_string()))
    }

    pub(super) async fn drive_lock(self, stop: CancellationToken) {
        let mut revision = self.store().revision();
        let clock = self.env().clock.clone();
        loop {
            revision.borrow_and_update();
            let retry = self.retire_lock_records().await.err().map(|e| {
                tracing::error!(error = %e, "the cluster lock was not brought up to date; it is tried again");
                STORE_RETRY
            });
            self.look_for_events();
            let now = clock.mono();
            let due = self.lock().as_mut().and_then(|machine| {
                machine.handle_timeout(now);
                machine.poll_timeout(now)
            });
            let wait = due.map(|due| due - now).into_iter().chain(retry).min();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = revision.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(wait.unwrap_or(IDLE_WAIT)) => {}
            }
        }
    }

    /// Brings the machine to what the store holds, and withdraws own records that no longer say anything; a contested copy
    /// leaves them until it is heard again.
    async fn retire_lock_records(&self) -> Result<(), StoreError> {
        self.refresh_lock()?;
        let Some(author) = self.identity() else { return Ok(()) };
        let now = self.env().clock.mono();
        let (records, is_contested) =
            self.store().read::<_, StoreError>(|v| Ok((v.records_of(kind::LOCK)?, v.is_contested()?)))?;
        let published = |token| records.iter().any(|r| r.key.id == LEASE_ID && token_of(r) == Some(token));
        let stale: Vec<(&'static str, Digest)> = match self.lock().as_ref().filter(|_| !is_contested) {
            Some(machine) => {
                let stale =
                    [(LEASE_ID, machine.stale_lease(now)), (CLEARING_ID, machine.stale_clearing(published, now))];
                stale.into_iter().filter_map(|(id, token)| Some((id, token?))).collect()
            }
            None => return Ok(()),
        };
        if stale.is_empty() {
            return Ok(());
        }
        self.store()
            .write(move |tx| stale.iter().try_for_each(|(id, token)| withdraw(tx, &author, id, *token)))
            .await?;
        self.refresh_lock()
    }

    /// Brings the machine to what the store holds.
    pub(super) fn refresh_lock(&self) -> Result<(), StoreError> {
        let now = self.env().clock.mono();
        // The lock comes first: of two refreshes at once, the one told last has read the later state.
        let mut guard = self.lock();
        let records = self.store().read(|v| v.records_of(kind::LOCK))?;
        if let Some(machine) = guard.as_mut() {
            machine.handle_records(&records, now);
        }
        Ok(())
    }

    pub(super) fn begin_lock(&self, local: PeerId) {
        *self.lock() = Some(Lock::new(local));
        if let Err(e) = self.refresh_lock() {
            tracing::error!(error = %e, "the cluster lock was not read; the driver reads it again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lock>> {
        self.inner.lock.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn healthy_peers(&self) -> Result<BTreeSet<PeerId>, StoreError> {
        let peers = self.store().read(|v| v.trusted_peers())?;
        let healthy = |peer: &PeerId| self.peer_health(*peer).status == PeerStatus::Healthy;
        Ok(peers.into_iter().map(|p| p.peer_id).filter(healthy).collect())
    }
}

/// Deletes the own record under `id` if it is still about this lease: another one may have come since that was read.
fn withdraw(tx: &Tx<'_>, author: &Author, id: &str, token: Digest) -> Result<(), StoreError> {
    if is_published(tx, author, id, token)? { tx.delete_own(author, kind::LOCK, id).map(drop) } else { Ok(()) }
}

fn is_published(tx: &Tx<'_>, author: &Author, id: &str, token: Digest) -> Result<bool, StoreError> {
    let key = RecordKey { kind: kind::LOCK.into(), id: id.into(), owner: author.peer_id };
    Ok(tx.record(&key)?.as_ref().and_then(token_of) == Some(token))
}

/// The lease that a record publishes or clears.
fn token_of(record: &Record) -> Option<Digest> {
    match record.body_as().ok().filter(|_| !record.deleted)? {
        LockBody::Lease(lease) => Some(lease.token),
        LockBody::Clearing { cleared } => Some(cleared),
    }
}

fn cluster_locked(view: &LockView) -> Refused {
    let LockView { lease, holder_name, expires_at } = view;
    let text = format!(
        "the cluster is locked by {holder_name} for `{}` since {}; it expires at {expires_at} unless it is renewed",
        lease.purpose, lease.acquired_at
    );
    Refused::new(Code::ClusterLocked, text)
        .with_details(json!({
            "holder_peer": lease.holder_peer,
            "holder_name": holder_name,
            "client_id": lease.client_id,
            "purpose": lease.purpose,
            "acquired_at": lease.acquired_at,
            "expires_at": expires_at,
        }))
        .with_hint("wait, or end it with `arctic cluster lock clear --force`")
}

fn lease_gone() -> Refused {
    Refused::new(Code::Conflict, "the lease has expired or was cleared").with_hint("take the lock anew")
}
