//! Heartbeats and pushes: what goes out, what an answer leads to.

use super::{Gossip, PUSH_ALL_PEERS, PUSH_FANOUT_PEERS, Transmit, link::Call};
use crate::{
    model::{Mono, PeerId},
    planted::{Bug, planted},
    wire::{
        gossip::{
            Digests, ENDPOINTS_MAX, Heartbeat, PUSH_HOPS_MAX, PushReply, PushRequest, RECORDS_MAX_BYTES,
            RECORDS_MAX_COUNT, Records, Reply, Request, life::Lives,
        },
        record::{Record, RecordKey},
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// The last word to a peer that was removed: the revocation itself.
pub(super) fn farewell(to: PeerId, revocation: Arc<Record>, instance: String, digests: Digests) -> Transmit {
    let records = Records::shared(vec![revocation]);
    Transmit { to, request: Request::Push(PushRequest { instance, records, hops: 0, digests }) }
}

impl Gossip {
    /// What this agent says of itself to `to`.
    pub(super) fn heartbeat(&self, to: PeerId, lives: Lives) -> Heartbeat {
        let mut heartbeat = Heartbeat {
            instance: self.facts.instance.clone(),
            starts: self.facts.starts,
            time: self.facts.unix.plus(self.now - self.facts_at),
            version: self.facts.version.clone(),
            endpoints: self.facts.endpoints.iter().take(ENDPOINTS_MAX).cloned().collect(),
            license_state: self.facts.license_state.clone(),
            digests: self.index.digests(),
            lives,
            own: None,
            holds: None,
            behind: Vec::new(),
            vouches: BTreeMap::new(),
        };
        self.tell_holdings(to, &mut heartbeat);
        heartbeat
    }

    pub(super) fn due_heartbeat(&mut self, peer: PeerId, now: Mono) -> Option<Transmit> {
        let work = self.links.get(&peer)?.work()?;
        if work.heartbeat.is_some() || work.heartbeat_at.is_none_or(|at| now < at) {
            return None;
        }
        let lives = self.tell_lives(peer);
        let next = self.next_heartbeat(now);
        let link = self.links.get_mut(&peer)?;
        let is_healthy = link.is_healthy();
        let work = link.work_mut();
        work.heartbeat_at = next;
        if planted(Bug::UnhealthyPeersNotCalled) && !is_healthy {
            return None;
        }
        work.heartbeat = Some(Call { sent_at: now, what: () });
        let behind = self.ask_behind();
        Some(Transmit { to: peer, request: Request::Heartbeat(Heartbeat { behind, ..self.heartbeat(peer, lives) }) })
    }

    pub(super) fn due_push(&mut self, peer: PeerId, now: Mono) -> Option<Transmit> {
        let work = self.links.get_mut(&peer)?.busy_mut().filter(|w| w.push.is_none() && now >= w.push_at)?;
        let hops = *work.pending.first_key_value()?.1;
        let mut sent = Vec::new();
        let mut records = Vec::new();
        let mut bytes = 0;
        for (key, _) in work.pending.iter().filter(|(_, h)| **h == hops) {
            if bytes >= RECORDS_MAX_BYTES || records.len() == RECORDS_MAX_COUNT {
                break;
            }
            sent.push((key.clone(), hops));
            if let Some(entry) = self.index.get(key) {
                bytes += entry.wire_bytes;
                records.push(entry.record.clone());
            }
        }
        sent.iter().for_each(|(key, _)| {
            work.pending.remove(key);
        });
        if records.is_empty() {
            return None;
        }
        work.push = Some(Call { sent_at: now, what: sent });
        let (instance, digests) = (self.facts.instance.clone(), self.index.digests());
        let push = PushRequest { instance, records: self.backed(records), hops, digests };
        Some(Transmit { to: peer, request: Request::Push(push) })
    }

    pub(super) fn take_push(&mut self, from: PeerId, push: &PushRequest) -> PushReply {
        let (dropped, news) = self.absorb(from, &push.records, self.now);
        let ours = self.index.shared_digests();
        if let Some(link) = self.links.get_mut(&from) {
            link.set_digests(&push.digests, &ours);
        }
        if let Some(hops) = push.hops.min(PUSH_HOPS_MAX).checked_sub(1)
            && !news.is_empty()
        {
            let (to, _) = self.push_targets(Some(from));
            to.into_iter().for_each(|peer| self.enqueue(peer, &news, hops, self.now));
        }
        PushReply { dropped, digests: *ours }
    }

    pub(super) fn enqueue(&mut self, peer: PeerId, keys: &[RecordKey], hops: u8, at: Mono) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&peer) else { return };
        let work = link.work_mut();
        keys.iter().for_each(|key| work.enqueue(key.clone(), hops, at, now));
        self.touch(peer);
    }

    /// To whom a change is pushed, and how often it is passed on: everyone in a small cluster, else a random few, each
    /// of whom tells a few others as long as it is news.
    pub(super) fn push_targets(&mut self, except: Option<PeerId>) -> (Vec<PeerId>, u8) {
        if self.links.len() < PUSH_ALL_PEERS {
            return (self.links.keys().filter(|peer| Some(*peer) != except).collect(), 0);
        }
        let mut drawn: Vec<PeerId> = Vec::new();
        // Few draws of many: repeats are rare.
        for _ in 0..2 * PUSH_FANOUT_PEERS {
            let at = self.rng.below(self.links.len() as u64) as usize;
            let peer = self.links.nth(at).map(|link| link.peer());
            let is_fresh = |p: &PeerId| Some(*p) != except && !drawn.contains(p);
            drawn.extend(peer.filter(is_fresh));
            if drawn.len() == PUSH_FANOUT_PEERS {
                break;
            }
        }
        (drawn, PUSH_HOPS_MAX)
    }

    pub(super) fn take_reply(&mut self, from: PeerId, reply: &Reply, now: Mono) {
        match reply {
            Reply::Heartbeat(heartbeat) => {
                let work = self.links.get_mut(&from).and_then(|link| link.busy_mut());
                let call = work.and_then(|work| work.heartbeat.take());
                self.settle_copy(from, heartbeat, call.map(|call| call.sent_at), now);
                self.hear(from, heartbeat);
                self.begin_walk(from, &heartbeat.digests, now);
            }
            Reply::Reconcile(reply) => self.take_step_reply(from, reply, now),
            Reply::Push(reply) => {
                let ours = self.index.shared_digests();
                let Some(link) = self.links.get_mut(&from) else { return };
                link.set_digests(&reply.digests, &ours);
                if let Some(work) = link.busy_mut() {
                    work.push = None;
                    work.push_succeeded();
                }
            }
        }
    }
}
