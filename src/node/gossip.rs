//! Drives the gossip machine: requests out and in, merges into the store before anything is answered.

use super::{Call, Node, PeerAnswer};
use crate::{
    gossip::{CallFailed, Event, Gossip, Transmit},
    model::{Code, Endpoint, Mono, PeerId, PublicKey, Refused, UnixTime},
    store::{StoreError, Tx},
    wire::{
        gossip::{Op, Reply, Request},
        record::Record,
        request::OnBehalf,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::MutexGuard,
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// After this long on a fallback endpoint the first one is tried again (cluster.md §6).
const RETURN_TO_FIRST: Duration = Duration::from_secs(300);

/// Where a peer answered last.
#[derive(Debug, Clone)]
pub(super) struct Reached {
    endpoint: Endpoint,
    /// When the first endpoint of the list failed last.
    since: Mono,
}

/// How far a forced round came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOutcome {
    pub peers: usize,
    pub reached: usize,
}

impl Node {
    /// `POST /v1/gossip/…`; `from` is proven by the signature of the request.
    pub async fn gossip_request(&self, from: PeerId, op: Op, body: &[u8]) -> Result<Vec<u8>, Refused> {
        let malformed = |e: &dyn std::error::Error| Refused::new(Code::InvalidRequest, e.to_string());
        let request = Request::decode(op, body).map_err(|e| malformed(&e))?;
        let now = self.env().clock.mono();
        let reply = {
            let mut gossip = self.gossip();
            let machine = gossip.as_mut().ok_or_else(not_bootstrapped)?;
            machine.handle_request(from, &request, now).map_err(|e| malformed(&e))?
        };
        self.commit_events().await?;
        self.inner.gossip_wake.notify_one();
        Ok(reply.encode())
    }

    /// A peer-signed call to a trusted peer, endpoints in order; a fallback is tried only while nothing was sent.
    pub async fn call_peer(&self, peer: PeerId, call: &Call, who: Option<&OnBehalf>) -> Result<PeerAnswer, Refused> {
        let identity = self.identity().ok_or_else(not_bootstrapped)?;
        let row = self.store().read(|v| v.peer(peer))?.filter(|p| p.trusted);
        let endpoints = row.map(|p| p.all_endpoints()).unwrap_or_default();
        let mut reason = "no endpoint is known".to_owned();
        for endpoint in self.in_preferred_order(peer, endpoints) {
            match self.client().call_signed(&identity, peer, &endpoint, call, who).await {
                Ok(answer) => {
                    self.remember_reached(peer, endpoint);
                    return Ok(answer);
                }
                Err(e) => {
                    let sent = e.may_have_been_sent();
                    reason = format!("{endpoint}: {e}");
                    if sent {
                        break;
                    }
                }
            }
        }
        Err(Refused::new(Code::PeerUnreachable, format!("peer {peer} cannot be reached: {reason}")))
    }

    fn in_preferred_order(&self, peer: PeerId, mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
        let now = self.env().clock.mono();
        let reached = self.reached().get(&peer).cloned();
        if let Some(Reached { endpoint, since }) = reached
            && now - since < RETURN_TO_FIRST
            && let Some(at) = endpoints.iter().position(|e| *e == endpoint)
        {
            endpoints[..=at].rotate_right(1);
        }
        endpoints
    }

    fn remember_reached(&self, peer: PeerId, endpoint: Endpoint) {
        let now = self.env().clock.mono();
        let mut reached = self.reached();
        let known = reached.entry(peer).or_insert_with(|| Reached { endpoint: endpoint.clone(), since: now });
        if known.endpoint != endpoint || now - known.since >= RETURN_TO_FIRST {
            *known = Reached { endpoint, since: now };
        }
    }

    /// Where `peer` answered last.
    pub(super) fn endpoint_reached(&self, peer: PeerId) -> Option<Endpoint> {
        self.reached().get(&peer).map(|r| r.endpoint.clone())
    }

    fn reached(&self) -> MutexGuard<'_, BTreeMap<PeerId, Reached>> {
        self.inner.reached.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub(super) fn gossip(&self) -> MutexGuard<'_, Option<Gossip>> {
        self.inner.gossip.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Runs while the node is a member of a cluster.
    pub(super) async fn drive_gossip(self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut revision = self.store().revision();
        let mut calls: JoinSet<(PeerId, Mono, Result<Reply, CallFailed>)> = JoinSet::new();
        let mut joins: JoinSet<PeerId> = JoinSet::new();
        let mut joining = BTreeSet::new();
        let mut pushed = self.begin_gossip()?;
        loop {
            let (transmits, deadline) = self.poll_gossip();
            for transmit in transmits {
                let node = self.clone();
                calls.spawn(async move { node.transmit(transmit).await });
            }
            for (peer, endpoints) in self.commit_events().await.unwrap_or_default() {
                if joining.insert(peer) {
                    let node = self.clone();
                    joins.spawn(async move {
                        drop(node.join_discovered(peer, endpoints).await);
                        peer
                    });
                }
            }
            let clock = self.env().clock.clone();
            let wait = deadline.map_or(Duration::MAX, |due| due - clock.mono());
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(done) = calls.join_next() => {
                    if let Ok((peer, sent_at, reply)) = done {
                        self.take_reply(peer, sent_at, reply);
                    }
                }
                Some(done) = joins.join_next() => {
                    if let Ok(peer) = done {
                        joining.remove(&peer);
                    }
                }
                changed = revision.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    pushed = self.push_local_changes(pushed)?;
                }
                () = self.inner.gossip_wake.notified() => {}
                () = tokio::time::sleep(wait) => {
                    if let Some(machine) = self.gossip().as_mut() {
                        machine.handle_timeout(clock.mono());
                    }
                }
            }
        }
    }

    fn poll_gossip(&self) -> (Vec<Transmit>, Option<Mono>) {
        let mut gossip = self.gossip();
        let Some(machine) = gossip.as_mut() else { return (Vec::new(), None) };
        let transmits = std::iter::from_fn(|| machine.poll_transmit()).collect();
        (transmits, machine.poll_timeout().map(|(due, _)| due))
    }

    async fn transmit(&self, transmit: Transmit) -> (PeerId, Mono, Result<Reply, CallFailed>) {
        let op = transmit.request.op();
        let sent_at = self.env().clock.mono();
        let call = Call::post(op.path(), transmit.request.encode());
        let reply = match self.call_peer(transmit.to, &call, None).await {
            Ok(answer) if answer.status == 200 => Reply::decode(op, &answer.body).map_err(|e| {
                tracing::warn!(peer = %transmit.to, error = %e, "gossip answer cannot be read");
                CallFailed
            }),
            Ok(answer) => {
                tracing::debug!(peer = %transmit.to, status = answer.status, "gossip refused");
                Err(CallFailed)
            }
            Err(e) => {
                tracing::debug!(peer = %transmit.to, "{e}");
                Err(CallFailed)
            }
        };
        (transmit.to, sent_at, reply)
    }

    fn take_reply(&self, peer: PeerId, sent_at: Mono, reply: Result<Reply, CallFailed>) {
        let now = self.env().clock.mono();
        let mut gossip = self.gossip();
        let Some(machine) = gossip.as_mut() else { return };
        if let Err(e) = machine.handle_reply(peer, reply.as_ref().map_err(|f| *f), sent_at, now) {
            tracing::warn!(%peer, error = %e, "gossip answer refused");
        }
    }

    /// Brings what the machine decided into the store; gives the peers that want a handshake.
    async fn commit_events(&self) -> Result<Vec<(PeerId, Vec<Endpoint>)>, Refused> {
        let events: Vec<Event> = match self.gossip().as_mut() {
            Some(machine) => std::iter::from_fn(|| machine.poll_event()).collect(),
            None => return Ok(Vec::new()),
        };
        let mut discovered = Vec::new();
        for event in events {
            match event {
                Event::Merge(records) => self.merge(records).await?,
                other => drop(other),
            }
        }
        discovered.clear();
        Ok(discovered)
    }

    async fn merge(&self, records: Vec<Record>) -> Result<(), Refused> {
        self.store()
            .write(move |tx: &Tx<'_>| -> Result<(), StoreError> {
                for record in &records {
                    tx.put_verified(record)?;
                }
                Ok(())
            })
            .await?;
        Ok(())
    }
}

fn not_bootstrapped() -> Refused {
    Refused::new(Code::NotBootstrapped, "agent is not bootstrapped")
}
