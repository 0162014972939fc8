//! Drives the handshake machines: as initiator for `peers add` and for discovered peers, as responder for others.

use super::{Call, CallError, Identity, Node, peer_client::PeerClient};
use crate::{
    gossip::Discovery,
    handshake::{
        self, Accepted, DialFailure, Event, Initiator, PendingReverse, Purpose, REVERSE_BUDGET, Reason, Reply, Request,
        ReverseAnswer, Target,
    },
    license::Entitlement,
    membership::{self, Acceptance, Attempts, Own, Side, VOUCHER_CHECK_INTERVAL},
    model::{Code, Endpoint, Mono, PeerId, PublicKey, Refused},
    store::{Revision, StoreError},
    wire::handshake::{Finish, Identity as PeerIdentity, Init, MessageError, decode, default_api_port},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, MutexGuard, atomic::Ordering},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// An operator's wish to join another agent to the cluster.
#[derive(Debug, Clone)]
pub struct AddPeer {
    /// In order; each is tried.
    pub endpoints: Vec<Endpoint>,
    pub name: Option<String>,
    /// Pins the key at first contact.
    pub public_key: Option<PublicKey>,
}

/// A peer that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    pub peer: PeerId,
    /// What the operator should know of it.
    pub warnings: Vec<String>,
}

/// What makes this node a member of a cluster, beside the store.
struct Member {
    identity: Arc<Identity>,
    entitlement: Arc<Entitlement>,
}

/// This side of a handshake as of one state of the store and one of the license.
#[derive(Clone)]
pub(super) struct KnownSide {
    revision: Revision,
    entitlement: Arc<Entitlement>,
    side: Arc<Side>,
}

impl KnownSide {
    fn is_of(&self, revision: Revision, entitlement: &Arc<Entitlement>) -> bool {
        self.revision == revision && Arc::ptr_eq(&self.entitlement, entitlement)
    }
}

impl Node {
    /// `peers add`: returns when the handshake succeeded or finally failed.
    pub async fn add_peer(&self, wish: AddPeer) -> Result<Added, Refused> {
        if let Some(own) = self.own_endpoint_among(&wish.endpoints)? {
            return Err(Refused::new(Code::InvalidRequest, format!("{own} is this agent itself")));
        }
        let target = Target {
            endpoints: wish.endpoints,
            pinned_key: wish.public_key,
            expected_peer: None,
            purpose: Purpose::Add,
        };
        self.handshake(target, wish.name).await
    }

    /// Keeps a peer that a trusted one vouches for; the gossip driver then starts a handshake with it. Of any other only
    /// where it is now, if it is known and could not be reached.
    pub(super) async fn discovered(&self, found: Discovery) -> Result<(), Refused> {
        if found.voucher.is_none() {
            let row = self.store().read(|v| v.peer(found.peer))?;
            if row.is_some_and(|row| self.attempts().handle_endpoints(&row, &found.endpoints)) {
                self.inner.gossip_wake.notify_one();
            }
            return Ok(());
        }
        let (node, member, now) = (self.clone(), self.member()?, self.env().clock.unix());
        let worth_an_attempt =
            self.store().write(move |tx| membership::discovered(tx, node.own(&member), &found, now)).await?;
        if let Some((peer, endpoints)) = worth_an_attempt {
            self.attempts().handle_voucher(peer, endpoints);
            self.inner.gossip_wake.notify_one();
        }
        Ok(())
    }

    /// Forgets candidates for whom nobody who is trusted vouches any more, and handshakes with peers that are not known.
    pub(super) async fn tend_candidates(&self) -> Result<(), StoreError> {
        if let Ok(member) = self.member() {
            let (node, now) = (self.clone(), self.env().clock.unix());
            let met = self.store().write(move |tx| membership::forget_unvouched(tx, node.own(&member), now)).await?;
            for (peer, endpoints) in met {
                self.attempts().handle_voucher(peer, endpoints);
                self.inner.gossip_wake.notify_one();
            }
        }
        let known: BTreeSet<PeerId> = self.store().read(|v| v.peers())?.into_iter().map(|p| p.peer_id).collect();
        self.attempts().retain(|peer| known.contains(&peer));
        Ok(())
    }

    /// Keeps what this agent says of its peers valid, and what others say of strangers (cluster.md §4).
    pub(super) async fn drive_vouchers(self, stop: CancellationToken) {
        loop {
            if let Ok(member) = self.member() {
                let (node, now) = (self.clone(), self.env().clock.unix());
                let renewed =
                    self.store().write(move |tx| membership::renew_vouchers(tx, node.own(&member), now)).await;
                match renewed {
                    Ok(0) => {}
                    Ok(count) => tracing::debug!(count, "vouchers for peers were renewed"),
                    Err(e) => {
                        tracing::error!(error = %e, "vouchers were not renewed; it is tried again within the hour")
                    }
                }
                if let Err(e) = self.tend_candidates().await {
                    tracing::error!(error = %e, "peers that nobody vouches for were not forgotten; it is tried again");
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(VOUCHER_CHECK_INTERVAL) => {}
            }
        }
    }

    /// A trusted peer answers that it does not know this one: it has lost its database (cluster.md §4).
    pub(super) fn renew_trust(&self, peer: PeerId) {
        let Ok(Some(row)) = self.store().read(|v| v.peer(peer)) else { return };
        if self.attempts().handle_unknown_there(&row, self.env().clock.mono()) {
            tracing::info!(%peer, "peer no longer knows this agent: handshake begins");
            self.inner.gossip_wake.notify_one();
        }
    }

    /// A handshake of the agent's own accord with a peer whose key is held from a voucher.
    pub(super) async fn join_once(&self, peer: PeerId, endpoints: Vec<Endpoint>) {
        let target = Target { endpoints, pinned_key: None, expected_peer: Some(peer), purpose: Purpose::Join };
        let node = self.clone();
        // Its end is noted also where it ends by a defect of ours: otherwise it would run for ever.
        let handshake = AbortOnDropHandle::new(tokio::spawn(async move { node.handshake(target, None).await }));
        let outcome = handshake.await.map_err(Refused::internal).and_then(|ended| ended);
        // The peer may have begun one as well, which succeeded.
        let is_trusted = self.store().read(|v| v.peer(peer)).is_ok_and(|row| row.is_some_and(|row| row.trusted));
        self.attempts().handle_end(peer, outcome.is_err() && !is_trusted, self.env().clock.mono());
        self.look_for_events();
        self.inner.gossip_wake.notify_one();
    }

    /// A trusted peer will not have this agent: trust in it ends here too, until one is added to the other again.
    async fn end_unanswered_trust(&self, peer: PeerId, why: Reason) -> Result<(), StoreError> {
        let view = self.gossip().as_ref().and_then(|machine| machine.peer_view(peer));
        if !why.ends_trust(view.is_some_and(|view| view.heard.is_some())) {
            return Ok(());
        }
        let Some(identity) = self.identity() else { return Ok(()) };
        if self.store().write(move |tx| membership::withdraw_trust(tx, &identity, peer)).await? {
            tracing::warn!(%peer, "peer does not take this agent in: it is no member here either, until it is added again");
        }
        self.trust_changed(&[])?;
        self.tend_candidates().await
    }

    pub(super) fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.inner.attempts.lock().unwrap_or_else(|p| p.into_inner())
    }

    async fn handshake(&self, target: Target, name: Option<String>) -> Result<Added, Refused> {
        let clock = &self.env().clock;
        let mut rng = self.fork_rng();
        let initiator_id = self.member()?.identity.peer_id;
        let joined = target.expected_peer.filter(|_| target.purpose == Purpose::Join);
        let mut machine = Initiator::new(target, clock.mono());
        loop {
            if let Some(event) = machine.poll_event() {
                return match event {
                    Event::Done(accepted) => {
                        let (peer, warnings) = (accepted.peer_id, self.warnings(&accepted));
                        if joined.is_some() && self.store().read(|v| v.peer(peer))?.is_none() {
                            // The key that it was to have went while the handshake ran.
                            let text = format!("no trusted peer vouches for {peer} any more");
                            return Err(Refused::new(Code::HandshakeFailed, text));
                        }
                        self.accept(*accepted, name, false).await?;
                        Ok(Added { peer, warnings })
                    }
                    Event::Failed(failure) => {
                        tracing::warn!(initiator = %initiator_id, attempts = failure.attempts, details = %failure.details(),
                            tried = ?failure.tried, "{failure}");
                        if let Some(peer) = joined {
                            self.end_unanswered_trust(peer, failure.reason).await?;
                        }
                        Err(Refused::from(&failure))
                    }
                };
            }
            if let Some(call) = machine.poll_transmit() {
                let reply = self.make_call(&call).await;
                let member = self.member()?;
                let side = self.side(&member)?;
                machine.handle_reply(side.here(self.own(&member)), reply, clock.mono(), &mut rng);
            } else if let Some((due, _)) = machine.poll_timeout() {
                tokio::time::sleep(due - clock.mono()).await;
                machine.handle_timeout(clock.mono());
            }
        }
    }

    fn warnings(&self, accepted: &Accepted) -> Vec<String> {
        let own = self.entitlement().filter(|_| accepted.license_differs);
        let text = |own: Arc<Entitlement>| {
            let (own, other) = (own.document.license_id(), accepted.license_id);
            format!("the licenses differ: {own} here, {other} on the peer; each agent enforces the limits of its own")
        };
        own.map(text).into_iter().collect()
    }

    async fn make_call(&self, call: &handshake::Call) -> Result<Reply, DialFailure> {
        let http = Call {
            answer_timeout: call.answer_timeout,
            ..match &call.request {
                Request::Identity => Call::get(call.request.path()),
                other => Call::post(other.path(), other.body()),
            }
        };
        tracing::debug!(endpoint = %call.endpoint, path = call.request.path(), "handshake call");
        let answer = self.client().call(&call.endpoint, &http).await.map_err(dial_failure)?;
        Ok(Reply::decode(&call.request, answer.status, &answer.body))
    }

    /// `POST /v1/handshake/init`; `source` is the address of the caller.
    pub async fn handshake_init(&self, source: IpAddr, body: &[u8]) -> Result<Value, Refused> {
        let init: Init = decode(body).map_err(malformed)?;
        let member = self.member()?;
        let side = self.side(&member)?;
        let mut rng = self.fork_rng();
        let now = self.env().clock.mono();
        let response = self.responder().handle_init(side.here(self.own(&member)), source, &init, now, &mut rng);
        let response = response.inspect_err(|refusal| {
            tracing::info!(initiator = %init.peer_id, responder = %side.local.peer_id, %source,
                cause = refusal.cause, "{refusal}");
        })?;
        // Its keys have to go with it.
        self.inner.gossip_wake.notify_one();
        self.was_contacted_by(init.peer_id, now)?;
        serde_json::to_value(response).map_err(Refused::internal)
    }

    /// Contact from a peer with which the own handshakes failed is worth another one.
    fn was_contacted_by(&self, peer: PeerId, now: Mono) -> Result<(), StoreError> {
        if let Some(row) = self.store().read(|v| v.peer(peer))?
            && self.attempts().handle_contact(&row, now)
        {
            self.inner.gossip_wake.notify_one();
        }
        Ok(())
    }

    /// `POST /v1/handshake/finish`: proves the initiator, calls it back, and stores it.
    pub async fn handshake_finish(&self, source: IpAddr, body: &[u8]) -> Result<Value, Refused> {
        let finish: Finish = decode(body).map_err(malformed)?;
        let member = self.member()?;
        let side = self.side(&member)?;
        let clock = &self.env().clock;
        let log = |refusal: &handshake::Refusal| {
            tracing::warn!(responder = %side.local.peer_id, %source, cause = refusal.cause, "{refusal}");
        };
        let here = side.here(self.own(&member));
        let pending = self.responder().handle_finish(here, &finish, clock.mono()).inspect_err(log)?;
        let answer = call_back(self.client(), &pending).await;
        // The store may have moved on during the call back.
        let side = self.side(&member)?;
        let mut rng = self.fork_rng();
        let (response, accepted) = self
            .responder()
            .confirm_reverse(
                side.here(self.own(&member)),
                &pending.session,
                &answer,
                clock.mono(),
                clock.unix(),
                &mut rng,
            )
            .inspect_err(log)?;
        self.accept(accepted, None, true).await?;
        serde_json::to_value(response).map_err(Refused::internal)
    }

    fn member(&self) -> Result<Member, Refused> {
        let both = self.identity().zip(self.entitlement()).filter(|_| !self.inner.leaving.load(Ordering::SeqCst));
        both.map(|(identity, entitlement)| Member { identity, entitlement }).ok_or_else(not_bootstrapped)
    }

    fn own<'a>(&'a self, member: &'a Member) -> Own<'a> {
        Own {
            author: &member.identity,
            entitlement: &member.entitlement,
            licenses: self.trust_roots(),
            api_port: self.config().api_bind.port().try_into().unwrap_or(default_api_port()),
            endpoints_are_set: !self.config().advertise_endpoints.is_empty(),
        }
    }

    /// Read anew only where something has changed: strangers make an agent ask for it.
    fn side(&self, member: &Member) -> Result<Arc<Side>, Refused> {
        // Before the store is read: what is committed meanwhile makes it out of date.
        let revision = *self.store().revision().borrow();
        let known = self.known_side().clone();
        if let Some(known) = known.filter(|known| known.is_of(revision, &member.entitlement)) {
            return Ok(known.side);
        }
        let side = self.store().read(|v| membership::side(v, self.own(member)))?;
        let side = Arc::new(side.ok_or_else(not_bootstrapped)?);
        let entitlement = member.entitlement.clone();
        *self.known_side() = Some(KnownSide { revision, entitlement, side: side.clone() });
        Ok(side)
    }

    fn known_side(&self) -> MutexGuard<'_, Option<KnownSide>> {
        self.inner.side.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub(super) fn own_endpoint_among(&self, endpoints: &[Endpoint]) -> Result<Option<Endpoint>, Refused> {
        let side = self.side(&self.member()?)?;
        Ok(endpoints.iter().find(|e| side.local.endpoints.contains(e)).cloned())
    }

    /// Stores a proven peer and tells the gossip machine of it.
    async fn accept(&self, accepted: Accepted, local_name: Option<String>, we_answered: bool) -> Result<(), Refused> {
        let member = self.member()?;
        let (own_id, peer) = (member.identity.peer_id, accepted.peer_id);
        let (initiator, responder) = if we_answered { (peer, own_id) } else { (own_id, peer) };
        if accepted.license_differs {
            tracing::warn!(%peer, license = %accepted.license_id, "peer runs on another issue of the license");
        }
        let (node, now) = (self.clone(), self.env().clock.unix());
        let acceptance = Acceptance { accepted, local_name, we_answered, now };
        let brought =
            self.store().write_as_member(move |tx| membership::accept(tx, node.own(&member), &acceptance)).await?;
        tracing::info!(%initiator, %responder, "handshake succeeded");
        self.attempts().handle_trusted(peer, self.env().clock.mono());
        self.trust_changed(&brought)?;
        Ok(())
    }
}

/// Calls a proven initiator at its own endpoints; the first right answer, else the most telling failure.
async fn call_back(client: &PeerClient, pending: &PendingReverse) -> ReverseAnswer {
    let first = pending.endpoints[0].clone();
    let mut last = ReverseAnswer { endpoint: first, result: Err(DialFailure::Timeout) };
    let try_all = async {
        for endpoint in &pending.endpoints {
            let answer = client.call(endpoint, &Call::get(crate::wire::handshake::IDENTITY_PATH)).await;
            let result = match answer {
                Ok(answer) => decode_identity(&answer.body),
                Err(e) => Err(dial_failure(e)),
            };
            let right = result.as_ref().is_ok_and(|identity| pending.is_answered_by(identity));
            last = ReverseAnswer { endpoint: endpoint.clone(), result };
            if right {
                return;
            }
        }
    };
    // On time-out `last` holds what was learned so far.
    drop(tokio::time::timeout(REVERSE_BUDGET, try_all).await);
    last
}

pub(super) fn decode_identity(body: &[u8]) -> Result<PeerIdentity, DialFailure> {
    decode(body).map_err(|_| DialFailure::Failed)
}

pub(super) fn dial_failure(e: CallError) -> DialFailure {
    match e {
        CallError::Refused => DialFailure::Refused,
        CallError::Timeout | CallError::NoAnswer => DialFailure::Timeout,
        CallError::NoSuchHost => DialFailure::NameNotFound,
        CallError::NotAnotherHost => DialFailure::NotAnotherHost,
        CallError::Io(_) | CallError::Protocol(_) | CallError::OtherPeer => DialFailure::Failed,
    }
}

fn not_bootstrapped() -> Refused {
    Refused::new(Code::NotBootstrapped, "agent is not bootstrapped")
}

fn malformed(e: MessageError) -> Refused {
    handshake::Refusal::from(e).into()
}
