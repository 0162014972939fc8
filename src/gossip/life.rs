//! Who is alive (cluster.md §6). In a large cluster each peer is heard directly only now and then; in between, signs of
//! life are passed on. Each carries its age and how often it was passed on, so what a relay adds in error is bounded:
//! a member that lies keeps a dead peer looking alive for as long as it goes on lying, and no longer than
//! [`Gossip::silence_limit`] after that.

use super::{Gossip, HEARTBEAT_ALL_PEERS, HEARTBEAT_FANOUT_PEERS, HEARTBEAT_INTERVAL, SILENCE_LIMIT};
use crate::{
    model::{Mono, PeerId},
    wire::gossip::life::{AGE_MAX, HOPS_MAX, LIVES_MAX, Life, Lives, Tail},
};
use std::{collections::VecDeque, time::Duration};

/// A relayed sign of life counts when it is so much newer than what is known: what each message improves by less would
/// only be noise.
const NEWS_MIN: Duration = Duration::from_secs(2);
/// Added to the age at each relay, so that what the network delays does not make a sign of life younger.
const RELAY_DELAY: Duration = Duration::from_millis(300);
/// Messages that one piece of news is told in.
const TELLINGS: u8 = 6;
/// Peers of whom news waits to be told; beyond them the oldest is dropped.
const NEWS_MAX_PEERS: usize = 1024;
/// Of the signs of life that reach a peer in a large cluster, one in so many is news to it.
const REDUNDANCY: u32 = 4;

/// Peers of whom something is to be told, and how often it was.
#[derive(Debug, Clone, Default)]
pub(super) struct News(VecDeque<(PeerId, u8)>);

impl Gossip {
    /// Whether the cluster is too large for heartbeats to everyone.
    pub(super) fn is_large(&self) -> bool {
        self.links.len() > HEARTBEAT_ALL_PEERS
    }

    /// Without a sign of life for so long a peer is unhealthy: 30 s, or three times what news takes in a cluster of this
    /// size.
    pub fn silence_limit(&self) -> Duration {
        if self.is_large() { SILENCE_LIMIT.max(3 * self.news_delay()) } else { SILENCE_LIMIT }
    }

    /// What news of a peer takes to arrive, as is to be expected: a round for the relays, and the time in which as many
    /// signs of life come in as there are peers. A round brings [`LIVES_MAX`] with each heartbeat sent and each received.
    fn news_delay(&self) -> Duration {
        let a_round = 2 * HEARTBEAT_FANOUT_PEERS as u32 * LIVES_MAX as u32;
        HEARTBEAT_INTERVAL + HEARTBEAT_INTERVAL * self.links.len() as u32 * REDUNDANCY / a_round
    }

    /// A message of the peer itself.
    pub(super) fn saw(&mut self, peer: PeerId, now: Mono) {
        self.noticed(peer, now, 0);
    }

    /// Takes over signs of life that `from` passes on; only those that are newer count.
    pub(super) fn take_lives(&mut self, from: PeerId, lives: &Lives, now: Mono) {
        if !self.is_large() {
            return;
        }
        let limit = self.silence_limit();
        for life in &lives.0 {
            let age = life.age + RELAY_DELAY;
            let Some(link) = self.links.of_tail(life.of).filter(|link| link.peer() != from) else { continue };
            let Some(since_start) = now.since_start().checked_sub(age).filter(|_| age < limit) else { continue };
            let at = Mono::from_duration(since_start);
            if link.last_seen().is_none_or(|seen| at >= seen + NEWS_MIN) {
                let peer = link.peer();
                self.noticed(peer, at, life.hops);
            }
        }
    }

    fn noticed(&mut self, peer: PeerId, at: Mono, hops: u8) {
        let (limit, is_large) = (self.silence_limit(), self.is_large());
        let Some(link) = self.links.get_mut(&peer) else { return };
        let before = link.last_seen();
        if before.is_none_or(|seen| at > seen) {
            link.saw(at, hops);
        }
        if is_large && hops < HOPS_MAX && !link.is_news() && before.is_none_or(|seen| at >= seen + NEWS_MIN) {
            link.set_news(true);
            self.news.0.push_back((peer, 0));
            self.bound_news();
        }
        let Some(link) = self.links.get_mut(&peer).filter(|link| !link.is_healthy()) else { return };
        link.set_healthy(true);
        let silent_at = at + limit;
        self.silence_at = Some(self.silence_at.map_or(silent_at, |known| known.min(silent_at)));
        self.events.push_back(self.status_event(peer));
    }

    fn bound_news(&mut self) {
        while self.news.0.len() > NEWS_MAX_PEERS {
            let oldest = self.news.0.pop_front();
            if let Some(link) = oldest.and_then(|(peer, _)| self.links.get_mut(&peer)) {
                link.set_news(false);
            }
        }
    }

    /// What is told to `to` of others.
    pub(super) fn tell_lives(&mut self, to: PeerId) -> Lives {
        let mut lives = Vec::new();
        if !self.is_large() {
            return Lives(lives);
        }
        let limit = self.silence_limit().min(AGE_MAX);
        for _ in 0..self.news.0.len() {
            if lives.len() == LIVES_MAX {
                break;
            }
            let Some((peer, told)) = self.news.0.pop_front() else { break };
            let Some(link) = self.links.get_mut(&peer) else { continue };
            let age = link.last_seen().map_or(AGE_MAX, |seen| self.now - seen);
            if age >= limit || told >= TELLINGS || link.hops() >= HOPS_MAX {
                link.set_news(false);
                continue;
            }
            if peer != to {
                lives.push(Life { of: Tail::of(peer), age, hops: link.hops() + 1 });
            }
            self.news.0.push_back((peer, told + u8::from(peer != to)));
        }
        Lives(lives)
    }

    /// Finds who fell silent. Signs of life only come in, so nobody falls silent before the time that the last search
    /// found; no timer a peer is needed.
    pub(super) fn notice_silence(&mut self, now: Mono) {
        if self.silence_at.is_none_or(|at| now < at) {
            return;
        }
        let limit = self.silence_limit();
        let mut silent = Vec::new();
        let mut next = None;
        for link in self.links.values_mut().filter(|link| link.is_healthy()) {
            let at = link.last_seen().map_or(now, |seen| seen + limit);
            if at <= now {
                link.set_healthy(false);
                silent.push(link.peer());
            } else {
                next = Some(next.map_or(at, |first: Mono| first.min(at)));
            }
        }
        self.silence_at = next;
        silent.sort_unstable();
        for peer in silent {
            let event = self.status_event(peer);
            self.events.push_back(event);
        }
    }
}
