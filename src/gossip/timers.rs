//! What is due, and when. Only links of which something is under way stand in the queue; an event costs the links that
//! it is about, not all.

use super::{Gossip, HEARTBEAT_FANOUT_PEERS, HEARTBEAT_INTERVAL, Transmit, link::Link};
use crate::{
    model::{Mono, PeerId, Rng},
    wire::gossip::Op,
};
use std::{collections::BTreeSet, time::Duration};

/// Draws for a peer of the wanted health; then any will do.
const DRAWS_MAX: u32 = 8;
/// Of so many heartbeats in a large cluster one goes to a peer that looks dead, if there is one: for ever, so that a
/// split heals without anyone's help.
const PROBE_EVERY_BEATS: u64 = 8;
/// Of so many, one goes to a peer that has not acknowledged the oldest own tombstone: at random, a cluster in which some
/// always come and go would not have a moment in which all have.
const COLLECT_EVERY_BEATS: u64 = 2;

#[derive(Debug, Clone, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Mono, PeerId)>,
    /// In a large cluster: when the next peer is drawn for a heartbeat.
    pub beat_at: Option<Mono>,
    beats: u64,
}

impl Timers {
    pub fn starting(beat_at: Option<Mono>) -> Self {
        Self { beat_at, ..Self::default() }
    }

    pub fn next(&self) -> Option<(Mono, &'static str)> {
        let link = self.queue.first().map(|(at, _)| (*at, "link"));
        let beat = self.beat_at.map(|at| (at, "heartbeat"));
        [link, beat].into_iter().flatten().min()
    }
}

impl Gossip {
    /// Puts a link where it belongs in the queue; after each change of what is under way.
    pub(super) fn touch(&mut self, peer: PeerId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let Some(work) = link.busy_mut() else { return };
        let due = work.deadline();
        if work.queued != due {
            let before = std::mem::replace(&mut work.queued, due);
            if let Some(at) = before {
                self.timers.queue.remove(&(at, peer));
            }
            if let Some(at) = due {
                self.timers.queue.insert((at, peer));
            }
        }
        if due.is_none() && work.fruitless == 0 {
            link.drop_work();
        }
    }

    /// Takes a link that goes away off the queue.
    pub(super) fn unqueue(&mut self, peer: PeerId) {
        let queued = self.links.get(&peer).and_then(|link| link.work()?.queued);
        if let Some(at) = queued {
            self.timers.queue.remove(&(at, peer));
        }
    }

    /// Sends what is due and notices who fell silent.
    pub(super) fn drive(&mut self, now: Mono) {
        self.settle_withheld(now);
        self.settle_cadence(now);
        self.draw_heartbeats(now);
        while let Some((at, peer)) = self.timers.queue.first().copied()
            && at <= now
        {
            self.attend(peer, now);
        }
        self.notice_silence(now);
        self.tend_collection(now);
        self.tend_standing_of_copy();
    }

    fn attend(&mut self, peer: PeerId, now: Mono) {
        while let Some(op) = self.links.get(&peer).and_then(|link| link.work()?.lost_call(now)) {
            self.call_failed(peer, op, now);
        }
        for due in [Gossip::due_heartbeat, Gossip::due_step, Gossip::due_push] {
            let transmit: Option<Transmit> = due(self, peer, now);
            self.transmits.extend(transmit);
        }
        self.touch(peer);
    }

    /// A small cluster has a heartbeat timer a peer, a large one draws peers at random.
    fn settle_cadence(&mut self, now: Mono) {
        if self.is_large() == self.timers.beat_at.is_some() {
            return;
        }
        let is_large = self.is_large();
        self.timers.beat_at = is_large.then_some(now);
        for peer in self.links.keys().collect::<Vec<_>>() {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            if is_large {
                link.busy_mut().into_iter().for_each(|work| work.heartbeat_at = None);
            } else if link.work().is_none_or(|work| work.heartbeat_at.is_none()) {
                let wait = Duration::from_millis(self.rng.below(HEARTBEAT_INTERVAL.as_millis() as u64));
                link.work_mut().heartbeat_at = Some(now + wait);
            }
            self.touch(peer);
        }
        self.silence_at = Some(now);
    }

    /// The heartbeats of a round are spread over it: news moves on between them.
    fn draw_heartbeats(&mut self, now: Mono) {
        if self.timers.beat_at.is_none_or(|at| now < at) {
            return;
        }
        self.timers.beat_at = Some(now + jittered(&mut self.rng) / HEARTBEAT_FANOUT_PEERS as u32);
        self.timers.beats += 1;
        let wants_healthy = !self.timers.beats.is_multiple_of(PROBE_EVERY_BEATS);
        let is_for_collection = !self.timers.beats.is_multiple_of(COLLECT_EVERY_BEATS);
        let wanted = if is_for_collection { self.draw_unacknowledging() } else { None };
        let Some(peer) = wanted.or_else(|| self.draw_at_random(wants_healthy)) else { return };
        if let Some(link) = self.links.get_mut(&peer) {
            link.work_mut().heartbeat_at = Some(now);
        }
        self.touch(peer);
    }

    /// One that is healthy, or one that is not; after some draws in vain any.
    fn draw_at_random(&mut self, wants_healthy: bool) -> Option<PeerId> {
        let mut drawn = None;
        for _ in 0..DRAWS_MAX {
            let at = self.rng.below(self.links.len() as u64) as usize;
            let link = self.links.nth(at)?;
            drawn = Some(link.peer());
            if link.is_healthy() == wants_healthy {
                break;
            }
        }
        drawn
    }

    /// A healthy peer that has not said that it holds the oldest own tombstone; the first from a random one on.
    fn draw_unacknowledging(&mut self) -> Option<PeerId> {
        let (oldest, _) = self.index.tombstones(self.local.peer_id).next()?;
        let count = self.links.len();
        let from = self.rng.below(count as u64) as usize;
        let is_called = |link: &Link| link.work().is_some_and(|work| work.heartbeat.is_some());
        let after = (0..count).filter_map(|n| self.links.nth((from + n) % count));
        let mut wanted = after.filter(|link| link.is_healthy() && link.holds() < oldest && !is_called(link));
        wanted.next().map(Link::peer)
    }

    pub(super) fn next_heartbeat(&mut self, now: Mono) -> Option<Mono> {
        (!self.is_large()).then(|| now + jittered(&mut self.rng))
    }

    pub(super) fn call_failed(&mut self, peer: PeerId, op: Op, now: Mono) {
        let Some(work) = self.links.get_mut(&peer).and_then(|link| link.busy_mut()) else { return };
        match op {
            Op::Heartbeat => work.heartbeat = None,
            Op::Reconcile => self.end_walk(peer, now),
            Op::Push => {
                if let Some(call) = work.push.take() {
                    work.push_failed(call.what, now);
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
