//! Drives the handshake machines: as initiator for `peers add` and for discovered peers, as responder for others.

use super::{Call, CallError, Node, peer_client::PeerClient};
use crate::{
    gossip::Discovery,
    handshake::{
        self, Accepted, DialFailure, Event, Held, Here, Initiator, LicenseCheck, LicenseGate, Local, PeerLicense,
        PendingReverse, Purpose, REVERSE_BUDGET, Reply, Request, ReverseAnswer, Target,
    },
    license::{Entitlement, LicenseDocument, State, TrustRoots},
    model::{Code, Endpoint, Mono, PeerId, PeerStatus, PublicKey, Refused},
    store::{ClusterFacts, PeerRow, StoreError, Tx, View},
    wire::{
        handshake::{Finish, Identity as PeerIdentity, Init, MessageError, decode, default_api_port},
        record::{PeerBody, ReadmissionBody, Record, RecordKey, kind},
    },
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, MutexGuard},
    time::Duration,
};

/// An operator's wish to join another agent to the cluster.
#[derive(Debug, Clone)]
pub struct AddPeer {
    /// In order; each is tried.
    pub endpoints: Vec<Endpoint>,
    pub name: Option<String>,
    /// Pins the key at first contact.
    pub public_key: Option<PublicKey>,
}

impl LicenseCheck for TrustRoots {
    fn verify(&self, document: &Value) -> Result<PeerLicense, String> {
        let document = LicenseDocument::from_value(document).map_err(|e| e.to_string())?;
        document.verify(self).map_err(|e| e.to_string())?;
        Ok(PeerLicense {
            license_id: document.license_id(),
            customer_id: document.customer_id(),
            max_nodes: document.max_nodes(),
        })
    }
}

/// A handshake with a discovered peer.
pub(super) enum Attempt {
    Due(Vec<Endpoint>),
    /// One at a time; `then` are endpoints that became known meanwhile, tried if these fail.
    Running {
        called: Vec<Endpoint>,
        then: Option<Vec<Endpoint>>,
    },
    /// Of no avail, until something changes, or done.
    Ended {
        failed: bool,
        at: Mono,
    },
}

/// After a handshake of its own accord with a trusted peer, the agent lets so long pass before the next: a 401 may have
/// other reasons than a lost database.
const RENEWAL_PAUSE: Duration = Duration::from_secs(300);

/// This side of a handshake, as of one moment.
struct Side {
    local: Local,
    held: Held,
}

impl Node {
    /// `peers add`: returns when the handshake succeeded or finally failed.
    pub async fn add_peer(&self, wish: AddPeer) -> Result<PeerId, Refused> {
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

    /// Keeps a peer that a trusted one vouches for; the gossip driver then starts a handshake with it.
    pub(super) async fn discovered(&self, found: Discovery) -> Result<(), Refused> {
        let Some(voucher) = found.voucher else { return Ok(()) };
        let side = self.side()?;
        let now = self.env().clock.unix();
        let (peer, key) = match handshake::accept_voucher(&voucher, &side.held, side.local.customer_id, now) {
            Ok(subject) => subject,
            Err(void) => {
                tracing::debug!(peer = %found.peer, reason = %void, "voucher refused");
                return Ok(());
            }
        };
        if peer == side.local.peer_id || side.held.trusts(&peer) {
            return Ok(());
        }
        let mut endpoints = found.endpoints;
        endpoints.extend(voucher.subject_endpoints);
        endpoints.dedup();
        let row = PeerRow { trusted: false, ..PeerRow::trusted(peer, key, endpoints.clone(), now) };
        let is_news = self.store().write(move |tx| -> Result<bool, StoreError> {
            // A handshake may have succeeded since the look above.
            let is_news = tx.peer(peer)?.is_none_or(|known| !known.trusted);
            if is_news {
                tx.put_peer(&row)?;
            }
            Ok(is_news)
        });
        if is_news.await? {
            self.make_due(peer, endpoints);
        }
        Ok(())
    }

    fn make_due(&self, peer: PeerId, endpoints: Vec<Endpoint>) {
        let mut attempts = self.attempts();
        match attempts.get_mut(&peer) {
            Some(Attempt::Running { called, then }) => {
                let more = endpoints.iter().any(|e| !called.contains(e));
                *then = more.then_some(endpoints).or(then.take());
            }
            _ => drop(attempts.insert(peer, Attempt::Due(endpoints))),
        }
        self.inner.gossip_wake.notify_one();
    }

    /// After a start every handshake that has not succeeded is made anew.
    pub(super) fn resume_attempts(&self, peers: &[PeerRow]) {
        let due = peers.iter().filter(|p| !p.trusted).map(|p| (p.peer_id, Attempt::Due(p.all_endpoints())));
        self.attempts().extend(due);
    }

    /// A trusted peer answers that it does not know this one: it has lost its database (cluster.md §4).
    pub(super) fn renew_trust(&self, peer: PeerId) {
        let Ok(Some(row)) = self.store().read(|v| v.peer(peer)) else { return };
        let now = self.env().clock.mono();
        let mut attempts = self.attempts();
        let is_time = match attempts.get(&peer) {
            None => true,
            Some(Attempt::Due(_) | Attempt::Running { .. }) => false,
            Some(Attempt::Ended { at, .. }) => now - *at >= RENEWAL_PAUSE,
        };
        if row.trusted && is_time {
            tracing::info!(%peer, "peer no longer knows this agent: handshake begins");
            attempts.insert(peer, Attempt::Due(row.all_endpoints()));
            self.inner.gossip_wake.notify_one();
        }
    }

    /// At most `room` peers whose handshake has not begun; it is taken to begin now.
    pub(super) fn take_discovered(&self, room: usize) -> Vec<(PeerId, Vec<Endpoint>)> {
        let mut due = Vec::new();
        for (peer, attempt) in self.attempts().iter_mut() {
            if due.len() == room {
                break;
            }
            if let Attempt::Due(endpoints) = attempt {
                let called = std::mem::take(endpoints);
                due.push((*peer, called.clone()));
                *attempt = Attempt::Running { called, then: None };
            }
        }
        due
    }

    /// A handshake of the agent's own accord with a peer whose key is held from a voucher.
    pub(super) async fn join_once(&self, peer: PeerId, endpoints: Vec<Endpoint>) {
        let target = Target { endpoints, pinned_key: None, expected_peer: Some(peer), purpose: Purpose::Join };
        let failed = self.handshake(target, None).await.is_err();
        let ended = Attempt::Ended { failed, at: self.env().clock.mono() };
        let before = self.attempts().insert(peer, ended);
        if failed && let Some(Attempt::Running { then: Some(endpoints), .. }) = before {
            self.make_due(peer, endpoints);
        }
    }

    /// Where the handshake with a peer that is not trusted stands.
    pub(super) fn attempt_status(&self, peer: PeerId) -> PeerStatus {
        match self.attempts().get(&peer) {
            None | Some(Attempt::Ended { failed: false, .. }) => PeerStatus::Discovered,
            Some(Attempt::Due(_) | Attempt::Running { .. }) => PeerStatus::Handshaking,
            Some(Attempt::Ended { failed: true, .. }) => PeerStatus::Unreachable,
        }
    }

    fn attempts(&self) -> MutexGuard<'_, BTreeMap<PeerId, Attempt>> {
        self.inner.attempts.lock().unwrap_or_else(|p| p.into_inner())
    }

    async fn handshake(&self, target: Target, name: Option<String>) -> Result<PeerId, Refused> {
        let clock = &self.env().clock;
        let mut rng = self.fork_rng();
        let initiator_id = self.side()?.local.peer_id;
        let mut machine = Initiator::new(target, clock.mono());
        loop {
            if let Some(event) = machine.poll_event() {
                return match event {
                    Event::Done(accepted) => {
                        let peer = accepted.peer_id;
                        self.accept(*accepted, name, false).await?;
                        Ok(peer)
                    }
                    Event::Failed(failure) => {
                        tracing::warn!(initiator = %initiator_id, attempts = failure.attempts, details = %failure.details(),
                            tried = ?failure.tried, "{failure}");
                        Err(Refused::from(&failure))
                    }
                };
            }
            if let Some(call) = machine.poll_transmit() {
                let reply = self.make_call(&call).await;
                let side = self.side()?;
                machine.handle_reply(self.here(&side), reply, clock.mono(), &mut rng);
            } else if let Some((due, _)) = machine.poll_timeout() {
                tokio::time::sleep(due - clock.mono()).await;
                machine.handle_timeout(clock.mono());
            }
        }
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
        let side = self.side()?;
        let mut rng = self.fork_rng();
        let now = self.env().clock.mono();
        let response = self.responder().handle_init(self.here(&side), source, &init, now, &mut rng);
        let response = response.inspect_err(|refusal| {
            tracing::info!(initiator = %init.peer_id, responder = %side.local.peer_id, %source,
                cause = refusal.cause, "{refusal}");
        })?;
        serde_json::to_value(response).map_err(Refused::internal)
    }

    /// `POST /v1/handshake/finish`: proves the initiator, calls it back, and stores it.
    pub async fn handshake_finish(&self, source: IpAddr, body: &[u8]) -> Result<Value, Refused> {
        let finish: Finish = decode(body).map_err(malformed)?;
        let side = self.side()?;
        let clock = &self.env().clock;
        let log = |refusal: &handshake::Refusal| {
            tracing::warn!(responder = %side.local.peer_id, %source, cause = refusal.cause, "{refusal}");
        };
        let pending = self.responder().handle_finish(self.here(&side), &finish, clock.mono()).inspect_err(log)?;
        let answer = call_back(self.client(), &pending).await;
        // The store may have moved on during the call back.
        let side = self.side()?;
        let mut rng = self.fork_rng();
        let (response, accepted) = self
            .responder()
            .confirm_reverse(self.here(&side), &pending.session, &answer, clock.mono(), clock.unix(), &mut rng)
            .inspect_err(log)?;
        self.accept(accepted, None, true).await?;
        serde_json::to_value(response).map_err(Refused::internal)
    }

    fn here<'a>(&'a self, side: &'a Side) -> Here<'a> {
        Here { local: &side.local, held: &side.held, licenses: self.trust_roots() }
    }

    fn side(&self) -> Result<Side, Refused> {
        let not_bootstrapped = || Refused::new(Code::NotBootstrapped, "agent is not bootstrapped");
        let (identity, entitlement) = self.identity().zip(self.entitlement()).ok_or_else(not_bootstrapped)?;
        self.store().read(|v| {
            let cluster = v.cluster()?.ok_or_else(not_bootstrapped)?;
            let key = RecordKey { kind: kind::PEER.into(), id: identity.peer_id.to_string(), owner: identity.peer_id };
            let record = v.record(&key)?.ok_or_else(not_bootstrapped)?;
            let peers = v.peers()?;
            let own = peers.iter().find(|p| p.peer_id == identity.peer_id);
            let local = Local {
                peer_id: identity.peer_id,
                key: identity.key.clone(),
                license: entitlement.document.as_value().clone(),
                license_id: entitlement.document.license_id(),
                customer_id: entitlement.document.customer_id(),
                max_nodes: entitlement.document.max_nodes(),
                cluster_id: cluster.cluster_id,
                endpoints: own.map(PeerRow::all_endpoints).unwrap_or_default(),
                api_port: self.config().api_bind.port().try_into().unwrap_or(default_api_port()),
                record,
                members: peers.iter().filter(|p| p.trusted).map(|p| p.peer_id).collect(),
                gate: gate(&entitlement),
            };
            Ok(Side { held: held(v, &peers, identity.peer_id)?, local })
        })
    }

    fn own_endpoint_among(&self, endpoints: &[Endpoint]) -> Result<Option<Endpoint>, Refused> {
        let own = self.side()?.local.endpoints;
        Ok(endpoints.iter().find(|e| own.contains(e)).cloned())
    }

    /// Stores a proven peer: trust, its record, our word about it, and what the two clusters become.
    async fn accept(&self, accepted: Accepted, name: Option<String>, we_answered: bool) -> Result<(), Refused> {
        let Some(identity) = self.identity() else {
            return Err(Refused::new(Code::NotBootstrapped, "agent is not bootstrapped"));
        };
        let side = self.side()?;
        let now = self.env().clock.unix();
        let (initiator, responder) =
            if we_answered { (accepted.peer_id, identity.peer_id) } else { (identity.peer_id, accepted.peer_id) };
        tracing::info!(%initiator, %responder, cluster = %accepted.merged_cluster_id(side.local.cluster_id),
            "handshake succeeded");
        if accepted.license_differs {
            tracing::warn!(peer = %accepted.peer_id, license = %accepted.license_id, "peer runs on another issue of the license");
        }
        let voucher = if we_answered {
            accepted.voucher.clone()
        } else {
            let (peer, key, endpoints) = (accepted.peer_id, accepted.public_key, accepted.endpoints.clone());
            handshake::issue_voucher(&side.local, peer, key, endpoints, now)
        };
        let mut row = PeerRow::trusted(accepted.peer_id, accepted.public_key, accepted.endpoints.clone(), now);
        row.license_id = Some(accepted.license_id);
        row.local_name = name;
        let max_nodes = side.local.max_nodes;
        let brought = self
            .store()
            .write(move |tx| -> Result<Vec<Record>, Refused> {
                let mut brought = vec![accepted.record.clone()];
                if accepted.readmitted {
                    let readmission = ReadmissionBody {
                        peer_id: accepted.peer_id,
                        public_key: accepted.public_key,
                        answers: tx.revocations()?.against(accepted.peer_id, &accepted.public_key),
                        readmitted_at: now,
                    };
                    let id = accepted.peer_id.to_string();
                    brought.push(tx.put_own(&identity, kind::READMISSION, &id, &readmission)?);
                }
                check_room(tx, accepted.peer_id, max_nodes)?;
                tx.put_peer(&row)?;
                tx.put_verified(&accepted.record)?;
                tx.put_own(&identity, kind::VOUCHER, &accepted.peer_id.to_string(), &voucher)?;
                merge_cluster(tx, &accepted)?;
                learn_own_endpoints(tx, &identity, &accepted.own_endpoints)?;
                Ok(brought)
            })
            .await?;
        self.trust_changed(&brought)?;
        Ok(())
    }
}

/// The limit once more: two handshakes may have passed it at the same time. A renewal adds nobody.
fn check_room(tx: &Tx<'_>, newcomer: PeerId, max_nodes: u32) -> Result<(), Refused> {
    if tx.peer(newcomer)?.is_some_and(|known| known.trusted) {
        return Ok(());
    }
    let others = tx.trusted_peers()?.iter().filter(|p| p.peer_id != newcomer).count();
    if others < max_nodes as usize {
        return Ok(());
    }
    Err(Refused::new(Code::NodeLimitExceeded, handshake::Reason::NodeLimitExceeded.text()))
}

/// The smaller id wins; the other stays as an alias so that its tokens work until they expire (cluster.md §3).
fn merge_cluster(tx: &Tx<'_>, accepted: &Accepted) -> Result<(), StoreError> {
    let Some(facts) = tx.cluster()? else { return Ok(()) };
    let winner = accepted.merged_cluster_id(facts.cluster_id);
    let mut aliases = facts.aliases;
    for id in [facts.cluster_id, accepted.cluster_id] {
        if id != winner && !aliases.contains(&id) {
            tracing::info!(winner = %winner, alias = %id, "clusters merged");
            aliases.push(id);
        }
    }
    tx.set_cluster(&ClusterFacts { cluster_id: winner, aliases, ..facts })
}

/// An agent that knows no endpoint of its own takes those by which it was reached (cluster.md §2).
fn learn_own_endpoints(tx: &Tx<'_>, identity: &Arc<super::Identity>, told: &[Endpoint]) -> Result<(), StoreError> {
    let Some(mut own) = tx.peer(identity.peer_id)? else { return Ok(()) };
    let Some(body) = own.body.take().filter(|b| b.endpoints.is_empty() && !told.is_empty()) else { return Ok(()) };
    let body = PeerBody { endpoints: told.to_vec(), ..body };
    own.endpoints = told.to_vec();
    tx.put_peer(&own)?;
    tx.put_own(identity, kind::PEER, &identity.peer_id.to_string(), &body).map(drop)
}

fn held(v: &View<'_>, peers: &[PeerRow], own: PeerId) -> Result<Held, StoreError> {
    let mut held = Held::default();
    for peer in peers.iter().filter(|p| p.peer_id != own) {
        if peer.trusted {
            held.trust(peer.peer_id, peer.public_key);
        } else {
            held.hold(peer.peer_id, peer.public_key);
        }
    }
    for (peer, key) in v.revoked_identities()? {
        held.revoke(peer, key);
    }
    Ok(held)
}

fn gate(entitlement: &Entitlement) -> LicenseGate {
    match entitlement.state {
        State::Valid | State::Warning | State::GracePeriod => LicenseGate::Open,
        State::ReadOnly => LicenseGate::ReadOnly,
        State::Suspended => LicenseGate::Suspended,
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

fn decode_identity(body: &[u8]) -> Result<PeerIdentity, DialFailure> {
    decode(body).map_err(|_| DialFailure::Failed)
}

fn dial_failure(e: CallError) -> DialFailure {
    match e {
        CallError::Refused => DialFailure::Refused,
        CallError::Timeout | CallError::NoAnswer => DialFailure::Timeout,
        CallError::NoSuchHost => DialFailure::NameNotFound,
        CallError::Io(_) | CallError::Protocol(_) | CallError::OtherPeer => DialFailure::Failed,
    }
}

fn malformed(e: MessageError) -> Refused {
    handshake::Refusal::from(e).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Rng, SigningKey, UnixTime},
        store::Store,
    };

    #[tokio::test]
    async fn a_full_cluster_renews_with_its_members_and_takes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("arctic.db")).unwrap();
        let (now, mut rng) = (UnixTime::from_secs(1_800_000_000), Rng::from_seed([1; 32]));
        let ids: Vec<PeerId> = (0..4).map(|_| PeerId::mint(now, &mut rng)).collect();
        let rows: Vec<PeerRow> = (0..3u8)
            .map(|n| {
                let key = SigningKey::from_seed([n; 32]).public();
                PeerRow::trusted(ids[usize::from(n)], key, Vec::new(), now)
            })
            .collect();
        let checked = store.write(move |tx| -> Result<_, StoreError> {
            rows.iter().try_for_each(|row| tx.put_peer(row))?;
            Ok([check_room(tx, ids[1], 2), check_room(tx, ids[3], 3), check_room(tx, ids[3], 4)])
        });
        let [renewal, over, within] = checked.await.unwrap();
        assert_eq!((renewal, within), (Ok(()), Ok(())), "a license that shrank keeps its members");
        assert_eq!(over.unwrap_err().code, Code::NodeLimitExceeded);
    }
}
