//! Drives the gossip machine: requests out and in, merges into the store before anything is answered.

use super::{Call, Node, PeerAnswer, STORE_RETRY};
use crate::{
    gossip::{self, CallFailed, Event, Gossip, Reject, Transmit},
    license::{Entitlement, State},
    membership::{self, IDENTITY_CONFLICT_HINT},
    model::{Code, Endpoint, LicenseId, Mono, PeerId, PublicKey, Refused},
    store::StoreError,
    wire::{
        gossip::{Op, Reply, Request},
        handshake::{ErrorBody, decode},
        record::{Record, RevocationBody, kind},
        request::{OnBehalf, REVOCATIONS},
    },
};
use bytes::Bytes;
use serde_json::json;
use std::{collections::BTreeMap, sync::MutexGuard, time::Duration};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// After this long on a fallback endpoint the first one is tried again (cluster.md §6).
const RETURN_TO_FIRST: Duration = Duration::from_secs(300);
/// How long the loop sleeps when the machine has no deadline.
const IDLE_WAIT: Duration = Duration::from_secs(3600);
/// How long a forced round may take, and how often it is looked at.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);
const SYNC_POLL: Duration = Duration::from_millis(20);
/// Handshakes of the agent's own accord at one time; others wait their turn.
const JOINS_AT_ONCE_MAX: usize = 16;
/// Of a call that got no answer.
pub const MAYBE_DONE_HINT: &str = "the request may have been carried out; look before you repeat it";

/// Where a peer answered last.
#[derive(Debug, Clone)]
pub(super) struct Reached {
    endpoint: Endpoint,
    /// Since when it is this one; after `RETURN_TO_FIRST` the list is tried from its start.
    since: Mono,
    round_trip: Duration,
}

/// How far a forced round came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOutcome {
    pub peers: usize,
    pub reached: usize,
}

impl Node {
    /// `POST /v1/gossip/…`; `from` is proven by the signature of the request.
    pub async fn gossip_message(&self, from: PeerId, op: Op, body: &[u8]) -> Result<Vec<u8>, Refused> {
        let now = self.env().clock.mono();
        self.gossip().as_mut().ok_or_else(not_bootstrapped)?.handle_arrival(from, body.len(), now).map_err(refused)?;
        let request = Request::decode(op, body).map_err(|e| Refused::new(Code::InvalidRequest, e.to_string()))?;
        let reply = {
            let mut gossip = self.gossip();
            let machine = gossip.as_mut().ok_or_else(not_bootstrapped)?;
            // What comes back of an own past is judged by what was written here since.
            self.tell_own_changes(machine, now)?;
            machine.handle_request(from, &request, now)
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(reject) => {
                // The refused copy may be the reason for a call to the other one.
                self.inner.gossip_wake.notify_one();
                return Err(refused(reject));
            }
        };
        self.commit_events().await?;
        self.inner.gossip_wake.notify_one();
        Ok(reply.encode())
    }

    /// A peer-signed call to a trusted peer, endpoints in order; a fallback is tried only while nothing was sent. Without an
    /// answer `details.sent` says whether the peer may have acted upon it.
    pub async fn call_peer(&self, peer: PeerId, call: &Call, who: Option<&OnBehalf>) -> Result<PeerAnswer, Refused> {
        if !self.store().read(|v| v.peer(peer))?.is_some_and(|p| p.trusted) {
            let refused = Refused::new(Code::PeerUnreachable, format!("peer {peer} is not trusted"));
            return Err(refused.with_details(json!({ "sent": false })));
        }
        self.call_member(peer, call, who).await
    }

    /// The same, also to a peer that was just removed, as long as it is known where it answered last.
    async fn call_member(&self, peer: PeerId, call: &Call, who: Option<&OnBehalf>) -> Result<PeerAnswer, Refused> {
        let identity = self.identity().ok_or_else(not_bootstrapped)?;
        let endpoints = match self.store().read(|v| v.peer(peer))? {
            Some(row) => row.all_endpoints(),
            None => self.endpoint_reached(peer).into_iter().collect(),
        };
        let (mut reason, mut sent) = ("no endpoint is known".to_owned(), false);
        for endpoint in self.in_preferred_order(peer, endpoints) {
            match self.client().call_signed(&identity, peer, &endpoint, call, who).await {
                Ok(answer) => {
                    self.remember_reached(peer, endpoint, answer.round_trip);
                    return Ok(answer);
                }
                Err(e) => {
                    sent = e.may_have_been_sent();
                    reason = format!("{endpoint}: {e}");
                    if sent {
                        break;
                    }
                }
            }
        }
        let refused = Refused::new(Code::PeerUnreachable, format!("peer {peer} cannot be reached: {reason}"))
            .with_details(json!({ "sent": sent }));
        Err(if sent { refused.with_hint(MAYBE_DONE_HINT) } else { refused })
    }

    /// As [`Self::call_peer`], for an answer that does not end.
    pub async fn open_stream(
        &self,
        peer: PeerId,
        call: &Call,
        who: &OnBehalf,
    ) -> Result<(PeerAnswer, mpsc::Receiver<Bytes>), Refused> {
        let identity = self.identity().ok_or_else(not_bootstrapped)?;
        let row = self.store().read(|v| v.peer(peer))?.filter(|p| p.trusted);
        let endpoints = row.map(|row| row.all_endpoints()).unwrap_or_default();
        let mut reason = "it is not trusted, or no endpoint is known".to_owned();
        for endpoint in self.in_preferred_order(peer, endpoints) {
            match self.client().open_signed(&identity, peer, &endpoint, call, Some(who)).await {
                Ok(opened) => return Ok(opened),
                Err(e) => reason = format!("{endpoint}: {e}"),
            }
        }
        Err(Refused::new(Code::PeerUnreachable, format!("peer {peer} cannot be reached: {reason}")))
    }

    fn in_preferred_order(&self, peer: PeerId, mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
        let now = self.env().clock.mono();
        let reached = self.reached().get(&peer).cloned();
        if let Some(Reached { endpoint, since, .. }) = reached
            && now - since < RETURN_TO_FIRST
            && let Some(at) = endpoints.iter().position(|e| *e == endpoint)
        {
            endpoints[..=at].rotate_right(1);
        }
        endpoints
    }

    fn remember_reached(&self, peer: PeerId, endpoint: Endpoint, round_trip: Duration) {
        let now = self.env().clock.mono();
        let mut reached = self.reached();
        let standing = reached.get(&peer).filter(|r| r.endpoint == endpoint && now - r.since < RETURN_TO_FIRST);
        let since = standing.map_or(now, |r| r.since);
        reached.insert(peer, Reached { endpoint, since, round_trip });
    }

    /// The last round trip to `peer`.
    pub(super) fn round_trip(&self, peer: PeerId) -> Option<Duration> {
        self.reached().get(&peer).map(|r| r.round_trip)
    }

    /// Where `peer` answered last.
    pub(super) fn endpoint_reached(&self, peer: PeerId) -> Option<Endpoint> {
        self.reached().get(&peer).map(|r| r.endpoint.clone())
    }

    /// The peer is removed, and nothing goes to it any more.
    pub(super) fn forget_reached(&self, peer: PeerId) {
        self.reached().remove(&peer);
    }

    pub(super) fn forget_all_reached(&self) {
        self.reached().clear();
    }

    fn reached(&self) -> MutexGuard<'_, BTreeMap<PeerId, Reached>> {
        self.inner.reached.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub(super) fn gossip(&self) -> MutexGuard<'_, Option<Gossip>> {
        self.inner.gossip.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Runs while the node is a member of a cluster.
    pub(super) async fn drive_gossip(self, stop: CancellationToken) {
        let mut revision = self.store().revision();
        let mut entitlement = self.inner.entitlement.subscribe();
        let mut licensed = entitlement.borrow_and_update().as_deref().map(terms);
        let mut calls: JoinSet<(PeerId, Result<Reply, CallFailed>)> = JoinSet::new();
        let mut joins: JoinSet<()> = JoinSet::new();
        let mut was_silent = self.is_silent();
        let clock = self.env().clock.clone();
        // Not begun yet, or behind the store.
        let (mut has_begun, mut is_behind) = (false, false);
        loop {
            if let Err(e) = self.settle_gossip(&mut has_begun, &mut is_behind).await {
                tracing::error!(error = %e, "gossip and database do not agree; it is tried again");
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(STORE_RETRY) => continue,
                }
            }
            let room = JOINS_AT_ONCE_MAX.saturating_sub(joins.len());
            for (peer, endpoints) in self.attempts().take_due(room, clock.mono()) {
                let node = self.clone();
                joins.spawn(async move { node.join_once(peer, endpoints).await });
            }
            let (transmits, deadline) = self.poll_gossip();
            for transmit in transmits {
                let node = self.clone();
                calls.spawn(async move { node.transmit_to_end(transmit).await });
            }
            let has_room = joins.len() < JOINS_AT_ONCE_MAX;
            let retry = self.attempts().poll_timeout().filter(|_| has_room);
            let expiry = self.expire_handshakes(clock.mono());
            let due = deadline.into_iter().chain(retry).chain(expiry).min();
            let wait = due.map_or(IDLE_WAIT, |due| due - clock.mono());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = calls.join_next() => match done {
                    Ok((peer, reply)) => self.take_reply(peer, reply),
                    Err(e) => tracing::error!(error = %e, "gossip call ended early"),
                },
                Some(_) = joins.join_next() => {}
                changed = revision.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    is_behind = true;
                }
                _ = entitlement.changed() => {
                    // What could not be read is read, or reported, before the next round.
                    is_behind |= self.refresh_facts().is_err();
                    let now = entitlement.borrow_and_update().as_deref().map(terms);
                    if std::mem::replace(&mut licensed, now) != now {
                        self.attempts().handle_license_change();
                    }
                    let silent = self.is_silent();
                    if std::mem::replace(&mut was_silent, silent) && !silent {
                        self.with_gossip(|machine, now| machine.handle_sync(now));
                    }
                }
                () = self.inner.gossip_wake.notified() => {}
                () = tokio::time::sleep(wait) => self.with_gossip(|machine, now| machine.handle_timeout(now)),
            }
        }
    }

    /// Brings what was written meanwhile to the machine, and what the machine decided into the store.
    async fn settle_gossip(&self, has_begun: &mut bool, is_behind: &mut bool) -> Result<(), Refused> {
        if !*has_begun {
            self.begin_gossip()?;
            *has_begun = true;
        }
        if *is_behind {
            self.push_local_changes()?;
            self.refresh_facts()?;
            *is_behind = false;
        }
        self.commit_events().await
    }

    /// Starts the machine from the store.
    pub(super) fn begin_gossip(&self) -> Result<(), StoreError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        // Held from before the store is read, so that no change of trust falls between the two.
        let mut gossip = self.gossip();
        let (records, catching_up, returned, peers) = self.store().read::<_, StoreError>(|v| {
            Ok((v.all_records()?, v.catching_up()?, v.taken_of(identity.peer_id)?, v.peers()?))
        })?;
        self.attempts().resume(&peers);
        let now = self.env().clock.mono();
        let mut machine = Gossip::new(
            gossip::Local { peer_id: identity.peer_id, public_key: identity.key.public() },
            self.facts()?,
            records,
            &self.trusted_keys()?,
            self.env().rng("gossip"),
            now,
        );
        machine.handle_resume(&catching_up, returned, now);
        *gossip = Some(machine);
        Ok(())
    }

    fn push_local_changes(&self) -> Result<(), StoreError> {
        let now = self.env().clock.mono();
        let mut gossip = self.gossip();
        let Some(machine) = gossip.as_mut() else { return Ok(()) };
        self.tell_own_changes(machine, now)
    }

    fn tell_own_changes(&self, machine: &mut Gossip, now: Mono) -> Result<(), StoreError> {
        let records = self.own_changes(machine)?;
        if !records.is_empty() {
            machine.handle_local_change(&records, now);
        }
        Ok(())
    }

    /// Own records that the machine has not been told, all of them: what it says of its own version has no gaps.
    fn own_changes(&self, machine: &Gossip) -> Result<Vec<Record>, StoreError> {
        let Some(identity) = self.identity() else { return Ok(Vec::new()) };
        self.store().read(|v| v.records_since(identity.peer_id, machine.told_version()))
    }

    fn facts(&self) -> Result<gossip::Facts, StoreError> {
        let own = self.identity().map(|i| i.peer_id);
        let (row, starts, lineage) = self.store().read::<_, StoreError>(|v| {
            Ok((own.map(|id| v.peer(id)).transpose()?.flatten(), v.starts()?, v.lineage()?))
        })?;
        Ok(gossip::Facts {
            instance: self.inner.instance.clone(),
            starts,
            lineage,
            version: crate::model::VERSION.to_owned(),
            endpoints: row.map(|r| r.all_endpoints()).unwrap_or_default(),
            license_state: self.entitlement().map(|e| e.state.to_string()).unwrap_or_default(),
            unix: self.env().clock.unix(),
        })
    }

    fn refresh_facts(&self) -> Result<(), StoreError> {
        let facts = self.facts()?;
        self.with_gossip(|machine, now| machine.handle_facts(facts, now));
        Ok(())
    }

    fn trusted_keys(&self) -> Result<BTreeMap<PeerId, PublicKey>, StoreError> {
        let peers = self.store().read(|v| v.trusted_peers())?;
        Ok(peers.into_iter().map(|p| (p.peer_id, p.public_key)).collect())
    }

    /// Tells the machine what was just committed, and whom the store trusts since: a readmission before the trust that
    /// rests on it.
    pub(super) fn trust_changed(&self, brought: &[Record]) -> Result<(), StoreError> {
        let now = self.env().clock.mono();
        let own = self.identity().map(|i| i.peer_id);
        // The lock comes first: of two changes at once, the one told last has read the later state.
        let mut gossip = self.gossip();
        let trusted = self.trusted_keys()?;
        if let Some(machine) = gossip.as_mut() {
            let mut records = self.own_changes(machine)?;
            records.extend(brought.iter().filter(|r| Some(r.key.owner) != own).cloned());
            machine.handle_local_change(&records, now);
            machine.handle_trust(&trusted, now);
        }
        drop(gossip);
        self.inner.gossip_wake.notify_one();
        Ok(())
    }

    /// Wipes the keys of handshakes that are over; when the next ones have to go.
    fn expire_handshakes(&self, now: Mono) -> Option<Mono> {
        let mut responder = self.responder();
        responder.handle_timeout(now);
        responder.poll_timeout().map(|(due, _)| due)
    }

    fn with_gossip(&self, f: impl FnOnce(&mut Gossip, Mono)) {
        let now = self.env().clock.mono();
        if let Some(machine) = self.gossip().as_mut() {
            f(machine, now);
        }
    }

    fn poll_gossip(&self) -> (Vec<Transmit>, Option<Mono>) {
        let mut gossip = self.gossip();
        let Some(machine) = gossip.as_mut() else { return (Vec::new(), None) };
        let transmits = std::iter::from_fn(|| machine.poll_transmit()).collect();
        (transmits, machine.poll_timeout().map(|(due, _)| due))
    }

    /// The outcome of a call, also where it ends by a defect of ours: the machine waits for one.
    async fn transmit_to_end(&self, transmit: Transmit) -> (PeerId, Result<Reply, CallFailed>) {
        let (node, to, op) = (self.clone(), transmit.to, transmit.request.op());
        let call = AbortOnDropHandle::new(tokio::spawn(async move { node.transmit(transmit).await }));
        call.await.unwrap_or_else(|e| {
            tracing::error!(peer = %to, op = op.name(), error = %e, "gossip call ended early");
            (to, Err(CallFailed { op }))
        })
    }

    async fn transmit(&self, Transmit { to, request }: Transmit) -> (PeerId, Result<Reply, CallFailed>) {
        let op = request.op();
        if self.is_silent() {
            return (to, Err(CallFailed { op }));
        }
        let call = Call::post(op.path(), request.encode());
        let reply = match self.call_member(to, &call, None).await {
            Ok(answer) if answer.status == 200 => Reply::decode(op, &answer.body).map_err(|e| e.to_string()),
            Ok(answer) => {
                if answer.status == Code::Unauthorized.http_status() {
                    self.take_unauthorized(to, &answer.body).await;
                } else if code_of(&answer.body) == Some(Code::IdentityConflict) {
                    self.with_gossip(|machine, now| machine.handle_identity_refusal(to, now));
                }
                Err(format!("status {}", answer.status))
            }
            Err(refused) => Err(refused.text),
        };
        // What a removed peer was sent is the last; where it answered is of no more use.
        if self.store().read(|v| v.peer(to)).is_ok_and(|known| known.is_none()) {
            self.forget_reached(to);
        }
        let reply = reply.map_err(|reason| {
            tracing::debug!(peer = %to, op = op.name(), %reason, "gossip call failed");
            CallFailed { op }
        });
        (to, reply)
    }

    /// A suspended agent neither gossips nor is gossiped with (licensing.md §3).
    fn is_silent(&self) -> bool {
        self.entitlement().is_some_and(|e| e.state == State::Suspended)
    }

    /// A trusted peer does not trust this one: it has removed it, or lost its database.
    async fn take_unauthorized(&self, peer: PeerId, body: &[u8]) {
        let details = decode::<ErrorBody>(body).ok().and_then(|body| body.details);
        let records = details.and_then(|d| serde_json::from_value::<Vec<Record>>(d.get(REVOCATIONS)?.clone()).ok());
        // Without them it is the request that is refused, for its clock or its signature, and not the peer.
        let Some(records) = records else { return };
        match self.was_removed(records).await {
            Ok(true) => {}
            Ok(false) => self.renew_trust(peer),
            Err(e) => tracing::error!(%peer, error = %e, "what the peer says of this one was not stored"),
        }
    }

    fn take_reply(&self, peer: PeerId, reply: Result<Reply, CallFailed>) {
        self.with_gossip(|machine, now| {
            if let Err(e) = self.tell_own_changes(machine, now) {
                tracing::error!(error = %e, "own changes could not be read; the driver reads them again");
            }
            if let Err(e) = machine.handle_reply(peer, reply.as_ref().map_err(|failed| *failed), now) {
                tracing::debug!(%peer, error = %e, "gossip answer refused");
            }
        });
    }

    /// Brings what the machine decided into the store.
    async fn commit_events(&self) -> Result<(), Refused> {
        // An answer must not leave while another task still commits what it rests on. What fails stays first in line:
        // the machine holds it already and would never ask for it again.
        let mut uncommitted = self.inner.commit_turn.lock().await;
        loop {
            let next = uncommitted.take().or_else(|| self.gossip().as_mut()?.poll_event());
            let Some(event) = next else { return Ok(()) };
            *uncommitted = Some(event.clone());
            self.commit_event(event).await?;
            *uncommitted = None;
        }
    }

    async fn commit_event(&self, event: Event) -> Result<(), Refused> {
        match event {
            Event::Merge(records) => self.merge(records).await?,
            Event::Revoked { peer, void } => self.peer_was_revoked(peer, void).await?,
            Event::AdoptOwnVersion { version, told } => self.adopt_own_version(version, told).await?,
            Event::PeerStatus { peer, status, .. } => {
                tracing::info!(%peer, ?status, "peer status");
                self.look_for_events();
            }
            Event::Discovered(discovery) => self.discovered(*discovery).await?,
            Event::CatchingUp { owner, complete } => self.note_catching_up(owner, Some(complete)).await?,
            Event::CaughtUp(owner) => self.note_catching_up(owner, None).await?,
            Event::Forgotten(gone) => self.forget(gone).await?,
            Event::Republish(records) => self.republish(records).await?,
            Event::PublishFloor(floor) => self.publish_floor(floor).await?,
            Event::Contested(contested) => self.contested(contested).await?,
            Event::TwoCopies(peer) => {
                tracing::warn!(%peer, "two live copies of this peer are heard; the second one is refused");
            }
        }
        Ok(())
    }

    async fn merge(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let revokes_client = |r: &Record| {
            r.key.kind == kind::REVOCATION && r.body_as::<RevocationBody>().is_ok_and(|body| body.client_id.is_some())
        };
        let ends_a_word = |r: &Record| r.key.kind == kind::REVOCATION || (r.key.kind == kind::VOUCHER && r.deleted);
        let ends_words = records.iter().any(ends_a_word);
        self.store()
            .write_as_member(move |tx| {
                membership::merge_records(tx, &identity, &records)?;
                if records.iter().any(revokes_client) {
                    membership::retire_revoked_credentials(tx, &identity)?;
                }
                Ok::<(), StoreError>(())
            })
            .await?;
        if ends_words { self.tend_candidates().await } else { Ok(()) }
    }

    async fn adopt_own_version(&self, version: u64, told: u64) -> Result<(), StoreError> {
        let Some(author) = self.identity() else { return Ok(()) };
        tracing::warn!(version, "an own record came back newer than this database: continuing from it");
        let write = self.store().write(move |tx| {
            let taken = tx.taken_of(author.peer_id)?;
            membership::adopt_own_version(tx, &author, version, |r| r.version > told && !taken.contains(&r.key))
        });
        write.await
    }

    /// A round with every trusted peer now; wakes all reconcilers.
    pub async fn sync(&self) -> SyncOutcome {
        self.inner.reconcile_wake.notify_waiters();
        let local = self.identity().map(|i| i.peer_id);
        let peers: Vec<PeerId> =
            self.trusted_keys().unwrap_or_default().into_keys().filter(|p| Some(*p) != local).collect();
        let reached = self.gossip_round(&peers, SYNC_TIMEOUT).await;
        SyncOutcome { peers: peers.len(), reached }
    }

    /// A round with every peer now; returns how many of these were heard, once all of them were or the time is up.
    pub(super) async fn gossip_round(&self, peers: &[PeerId], within: Duration) -> usize {
        let started = self.env().clock.mono();
        // What was written just now is part of it.
        if let Err(e) = self.push_local_changes() {
            tracing::warn!(error = %e, "own changes could not be read for a round of gossip");
        }
        self.with_gossip(|machine, now| machine.handle_sync(now));
        self.inner.gossip_wake.notify_one();
        let reached = || {
            let gossip = self.gossip();
            let seen = |p: &&PeerId| gossip.as_ref()?.peer_view(**p)?.last_seen;
            peers.iter().filter(|p| seen(p).is_some_and(|at| at >= started)).count()
        };
        let idle = || self.gossip().as_ref().is_none_or(Gossip::is_idle);
        while !(idle() && reached() == peers.len()) && self.env().clock.mono() - started < within {
            tokio::time::sleep(SYNC_POLL).await;
        }
        reached()
    }
}

/// What a refused handshake may have been refused for.
fn terms(entitlement: &Entitlement) -> (LicenseId, State) {
    (entitlement.document.license_id(), entitlement.state)
}

fn refused(reject: Reject) -> Refused {
    let code = match reject {
        Reject::NotTrusted => Code::Unauthorized,
        Reject::Busy | Reject::OverQuota | Reject::Unsettled => Code::RateLimited,
        Reject::IdentityConflict => Code::IdentityConflict,
        Reject::Malformed(_) | Reject::Unexpected => Code::InvalidRequest,
    };
    let refused = Refused::new(code, reject.to_string());
    if code == Code::IdentityConflict {
        return refused.with_hint(IDENTITY_CONFLICT_HINT);
    }
    if code == Code::RateLimited { refused.with_details(json!({"retry_after_s": 1})) } else { refused }
}

/// The code of an error answer.
fn code_of(body: &[u8]) -> Option<Code> {
    #[derive(serde::Deserialize)]
    struct Error {
        code: Code,
    }
    serde_json::from_slice::<Error>(body).ok().map(|e| e.code)
}

pub(super) fn not_bootstrapped() -> Refused {
    Refused::new(Code::NotBootstrapped, "agent is not bootstrapped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_learns_why_its_gossip_is_refused() {
        let code = |reject| (refused(reject).code.http_status(), refused(reject).code);
        assert_eq!(code(Reject::NotTrusted), (401, Code::Unauthorized));
        assert_eq!(code(Reject::Busy), (429, Code::RateLimited));
        assert_eq!(code(Reject::Unexpected), (400, Code::InvalidRequest));
    }
}
