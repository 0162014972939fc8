//! The three exchanges: what goes out, what an answer leads to.

use super::{
    Gossip, HEARTBEAT_INTERVAL, PUSH_ALL_PEERS, PUSH_FANOUT_PEERS, Reject, SILENCE_LIMIT, Transmit,
    index::{Entry, keyed_head},
    link::{Call, Page, Walk},
};
use crate::{
    model::{Mono, PeerId, Rng},
    wire::{
        gossip::{
            Digests, ENDPOINTS_MAX, Heartbeat, KeyedHead, Malformed, Op, PAGE_MAX_HEADS, PushReply,
            PushRequest, RECORDS_MAX_BYTES, RECORDS_MAX_COUNT, ReconcileReply, ReconcileRequest, Reply, Request,
        },
        record::{Record, RecordKey},
    },
};
use std::{collections::BTreeMap, time::Duration};

/// The last word to a peer that was removed: the revocation itself.
pub(super) fn farewell(to: PeerId, revocation: Record, instance: String, digests: Digests) -> Transmit {
    let records = vec![revocation].into();
    Transmit { to, request: Request::Push(PushRequest { instance, records, relay: false, digests }) }
}

impl Gossip {
    /// Sends what is due and notices who fell silent.
    pub(super) fn drive(&mut self, now: Mono) {
        self.settle_withheld(now);
        self.tend_collection(now);
        self.tend_standing_of_copy(now);
        for peer in self.links.keys().copied().collect::<Vec<_>>() {
            while let Some(op) = self.links.get(&peer).and_then(|link| link.lost_call(now)) {
                self.call_failed(peer, op, now);
            }
            self.notice_silence(peer, now);
            for request in [self.due_heartbeat(peer, now), self.due_page(peer, now), self.due_push(peer, now)] {
                self.transmits.extend(request.map(|request| Transmit { to: peer, request }));
            }
        }
    }

    fn notice_silence(&mut self, peer: PeerId, now: Mono) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.healthy && link.last_seen.is_none_or(|seen| now >= seen + SILENCE_LIMIT) {
            link.healthy = false;
            self.events.push_back(self.status_event(peer));
        }
    }

    /// What this agent says of itself to `to`.
    pub(super) fn heartbeat(&self, to: PeerId) -> Heartbeat {
        let mut heartbeat = Heartbeat {
            instance: self.facts.instance.clone(),
            starts: self.facts.starts,
            time: self.facts.unix.plus(self.now - self.facts_at),
            version: self.facts.version.clone(),
            endpoints: self.facts.endpoints.iter().take(ENDPOINTS_MAX).cloned().collect(),
            license_state: self.facts.license_state.clone(),
            digests: self.index.digests(),
            own: None,
            holds: None,
            behind: Vec::new(),
            vouches: BTreeMap::new(),
        };
        self.tell_holdings(to, &mut heartbeat);
        heartbeat
    }

    fn due_heartbeat(&mut self, peer: PeerId, now: Mono) -> Option<Request> {
        let link = self.links.get_mut(&peer).filter(|link| link.heartbeat.is_none() && now >= link.heartbeat_at)?;
        link.heartbeat_at = now + jittered(&mut self.rng);
        link.heartbeat = Some(Call { sent_at: now, what: () });
        let behind = self.ask_behind();
        Some(Request::Heartbeat(Heartbeat { behind, ..self.heartbeat(peer) }))
    }

    /// The next page of the comparison under way.
    fn due_page(&mut self, peer: PeerId, now: Mono) -> Option<Request> {
        let link = self.links.get_mut(&peer).filter(|link| link.page.is_none())?;
        let walk = link.walk.as_ref()?;
        let Some(registry) = walk.registries.front().copied() else {
            link.walk = None;
            return None;
        };
        let after = walk.after.clone();
        let mut held = self.index.range(registry, after.as_ref(), None).map(keyed_head);
        let heads: Vec<_> = held.by_ref().take(PAGE_MAX_HEADS).collect();
        let through = held.next().and_then(|_| heads.last().map(|head| head.key.clone()));
        link.page =
            Some(Call { sent_at: now, what: Page { registry, after: after.clone(), through: through.clone() } });
        Some(Request::Reconcile(ReconcileRequest { registry, after, through, heads }))
    }

    fn due_push(&mut self, peer: PeerId, now: Mono) -> Option<Request> {
        let link = self.links.get_mut(&peer).filter(|link| link.push.is_none() && now >= link.push_at)?;
        let relay = *link.pending.first_key_value()?.1;
        let mut sent = Vec::new();
        let mut records = Vec::new();
        let mut bytes = 0;
        for (key, _) in link.pending.iter().filter(|(_, r)| **r == relay) {
            if bytes >= RECORDS_MAX_BYTES || records.len() == RECORDS_MAX_COUNT {
                break;
            }
            sent.push((key.clone(), relay));
            if let Some(entry) = self.index.get(key) {
                bytes += entry.wire_bytes;
                records.push(entry.record.clone());
            }
        }
        sent.iter().for_each(|(key, _)| {
            link.pending.remove(key);
        });
        if records.is_empty() {
            return None;
        }
        link.push = Some(Call { sent_at: now, what: sent });
        let (instance, records) = (self.facts.instance.clone(), self.backed(records));
        Some(Request::Push(PushRequest { instance, records, relay, digests: self.index.digests() }))
    }

    /// Answers a page: sends what is newer here, asks for what is newer there, stops when the answer is full.
    pub(super) fn compare(&self, request: &ReconcileRequest) -> ReconcileReply {
        let mut reply = ReconcileReply {
            records: Vec::new().into(),
            wants: Vec::new(),
            through: None,
            digests: self.index.digests(),
        };
        let mut bytes = 0;
        let mut last: Option<&RecordKey> = None;
        let ours = self.index.range(request.registry, request.after.as_ref(), request.through.as_ref());
        for (key, ours, theirs) in side_by_side(ours, &request.heads) {
            let is_full = bytes >= RECORDS_MAX_BYTES
                || reply.records.list.len() == RECORDS_MAX_COUNT
                || reply.wants.len() == PAGE_MAX_HEADS;
            if is_full {
                reply.through = last.cloned();
                break;
            }
            match (ours, theirs) {
                (Some(ours), theirs) if theirs.is_none_or(|theirs| theirs.head < ours.head) => {
                    bytes += ours.wire_bytes;
                    reply.records.list.push(ours.record.clone());
                }
                (_, Some(theirs)) if self.wants(key, theirs.head) => reply.wants.push(key.clone()),
                _ => {}
            }
            last = Some(key);
        }
        reply.records = self.backed(reply.records.list);
        reply
    }

    pub(super) fn take_push(&mut self, from: PeerId, push: &PushRequest) -> PushReply {
        let (dropped, news) = self.absorb(from, &push.records, self.now);
        if let Some(link) = self.links.get_mut(&from) {
            link.digests = Some(push.digests);
        }
        if push.relay {
            let (to, _) = self.push_targets(Some(from));
            for peer in to {
                let Some(link) = self.links.get_mut(&peer) else { continue };
                news.iter().for_each(|key| link.enqueue(key.clone(), false, self.now, self.now));
            }
        }
        PushReply { dropped, digests: self.index.digests() }
    }

    /// To whom a change is pushed, and whether they relay it: everyone in a small cluster, else a random few.
    pub(super) fn push_targets(&mut self, except: Option<PeerId>) -> (Vec<PeerId>, bool) {
        let mut peers: Vec<_> = self.links.keys().filter(|peer| Some(**peer) != except).copied().collect();
        if self.links.len() < PUSH_ALL_PEERS {
            return (peers, false);
        }
        for i in 0..PUSH_FANOUT_PEERS.min(peers.len()) {
            let rest = (peers.len() - i) as u64;
            peers.swap(i, i + self.rng.below(rest) as usize);
        }
        peers.truncate(PUSH_FANOUT_PEERS);
        (peers, true)
    }

    /// An answer that stops early has to stop inside the page that was asked about.
    pub(super) fn check_page_end(&self, from: PeerId, reply: &Reply) -> Result<(), Reject> {
        let (Reply::Reconcile(reply), Some(link)) = (reply, self.links.get(&from)) else { return Ok(()) };
        match (&reply.through, &link.page) {
            (Some(through), Some(page)) if !page.what.holds(through) => {
                Err(Reject::Malformed(Malformed("the answer ends outside the page")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn take_reply(&mut self, from: PeerId, reply: &Reply, now: Mono) {
        match reply {
            Reply::Heartbeat(heartbeat) => self.take_heartbeat_reply(from, heartbeat, now),
            Reply::Reconcile(reply) => self.take_page_reply(from, reply, now),
            Reply::Push(reply) => {
                if let Some(link) = self.links.get_mut(&from) {
                    link.push = None;
                    link.push_succeeded();
                    link.digests = Some(reply.digests);
                }
            }
        }
    }

    fn take_heartbeat_reply(&mut self, from: PeerId, heartbeat: &Heartbeat, now: Mono) {
        let call = self.links.get_mut(&from).and_then(|link| link.heartbeat.take());
        self.settle_copy(from, heartbeat, call.map(|call| call.sent_at), now);
        self.hear(from, heartbeat);
        let ours = self.index.digests();
        let Some(link) = self.links.get_mut(&from) else { return };
        let differing = ours.differing(&heartbeat.digests);
        if link.walk.is_none() && !differing.is_empty() {
            link.walk = Some(Walk { registries: differing.into(), after: None });
        }
    }

    fn take_page_reply(&mut self, from: PeerId, reply: &ReconcileReply, now: Mono) {
        self.absorb(from, &reply.records, now);
        let Some(link) = self.links.get_mut(&from) else { return };
        link.digests = Some(reply.digests);
        let page = link.page.take();
        for key in &reply.wants {
            let is_ours = self.index.get(key).is_some();
            let is_asked = page.as_ref().is_some_and(|page| page.what.holds(key));
            if is_ours && is_asked {
                link.enqueue(key.clone(), false, now, now);
            }
        }
        let Some((walk, page)) = link.walk.as_mut().zip(page) else { return };
        walk.after = reply.through.clone().or(page.what.through);
        if walk.after.is_none() {
            walk.registries.pop_front();
        }
        if walk.registries.is_empty() {
            link.walk = None;
        }
    }

    pub(super) fn call_failed(&mut self, peer: PeerId, op: Op, now: Mono) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        match op {
            Op::Heartbeat => link.heartbeat = None,
            Op::Reconcile => {
                link.page = None;
                link.walk = None;
            }
            Op::Push => {
                if let Some(call) = link.push.take() {
                    link.push_failed(call.what, now);
                }
            }
        }
    }
}

/// 10 s ± 20 %.
fn jittered(rng: &mut Rng) -> Duration {
    let whole = HEARTBEAT_INTERVAL.as_millis() as u64;
    Duration::from_millis(whole * 4 / 5 + rng.below(whole * 2 / 5 + 1))
}

type Pair<'a> = (&'a RecordKey, Option<&'a Entry>, Option<&'a KeyedHead>);

/// Both sorted lists as one, in key order.
fn side_by_side<'a>(ours: impl Iterator<Item = &'a Entry>, theirs: &'a [KeyedHead]) -> impl Iterator<Item = Pair<'a>> {
    let mut ours = ours.peekable();
    let mut theirs = theirs.iter().peekable();
    std::iter::from_fn(move || {
        let our_key = ours.peek().map(|entry| &entry.record.key);
        let their_key = theirs.peek().map(|head| &head.key);
        let key = match (our_key, their_key) {
            (Some(our), Some(their)) => our.min(their),
            (our, their) => our.or(their)?,
        };
        let our = (our_key == Some(key)).then(|| ours.next()).flatten();
        let their = (their_key == Some(key)).then(|| theirs.next()).flatten();
        Some((key, our, their))
    })
}
