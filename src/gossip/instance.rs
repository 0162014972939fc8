//! Two live copies of one identity (cluster.md §7): which of them is believed, and what the other one does about it.
//!
//! A restart looks like a second copy at first, so the known endpoint is asked: whoever answers there is the peer. The
//! believed copy is left only for one that answers there, or when it fell silent.

use super::{Event, Gossip, Reject, SILENCE_LIMIT};
use crate::{
    model::{Mono, PeerId},
    wire::gossip::{Heartbeat, Op, Request},
};
use std::{collections::BTreeMap, time::Duration};

/// A copy with a start counter that is not higher takes over only after so much silence: it is an older state.
const OLDER_COPY_AFTER: Duration = Duration::from_secs(300);
/// A rival that is not heard for so long is no longer reported.
const RIVAL_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Refusals within this time may be one restart; beyond it they are meant.
const REFUSED_IN_EARNEST_AFTER: Duration = Duration::from_secs(5);

/// The copies of identities, beyond the believed one of each peer, which is the link's `heard`.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies {
    rivals: BTreeMap<PeerId, Rival>,
    /// Peers that refuse this very copy: since when, and when last.
    refusals: BTreeMap<PeerId, (Mono, Mono)>,
    /// As the driver was told.
    contested: bool,
}

#[derive(Debug, Clone)]
struct Rival {
    instance: String,
    since: Mono,
    last: Mono,
    /// The believed copy was heard after this one appeared: both live.
    is_second: bool,
}

impl Copies {
    pub fn are_two(&self, peer: PeerId, now: Mono) -> bool {
        self.rivals.get(&peer).is_some_and(|r| r.is_second && now - r.last < RIVAL_FORGOTTEN_AFTER)
    }

    pub fn forget(&mut self, peer: PeerId) {
        self.rivals.remove(&peer);
        self.refusals.remove(&peer);
    }

    fn refuses_in_earnest(&self, peer: PeerId) -> bool {
        self.refusals.get(&peer).is_some_and(|(first, last)| *last - *first >= REFUSED_IN_EARNEST_AFTER)
    }
}

impl Gossip {
    /// Whether the copy that sent a request is the one that is believed. May ask the peer at its endpoint.
    pub(super) fn judge_copy(&mut self, from: PeerId, request: &Request, now: Mono) -> Result<(), Reject> {
        let (instance, starts) = match request {
            Request::Heartbeat(heartbeat) => (&heartbeat.instance, Some(heartbeat.starts)),
            Request::Push(push) if !push.instance.is_empty() => (&push.instance, None),
            _ => return Ok(()),
        };
        let Some(believed) = self.links.get_mut(&from).and_then(|link| link.heard_mut()) else { return Ok(()) };
        let silence = now - believed.at;
        if believed.instance == *instance {
            believed.at = now;
            self.believed_is_alive(from);
            return Ok(());
        }
        let is_next = starts.is_some_and(|starts| starts > believed.starts);
        if (is_next && silence >= SILENCE_LIMIT) || (starts.is_some() && silence >= OLDER_COPY_AFTER) {
            self.copies.rivals.remove(&from);
            return Ok(());
        }
        let known = self.copies.rivals.remove(&from).filter(|rival| rival.instance == *instance);
        let (since, is_second) = known.map_or((now, false), |rival| (rival.since, rival.is_second));
        self.copies.rivals.insert(from, Rival { instance: instance.clone(), since, last: now, is_second });
        if is_second {
            return Err(Reject::IdentityConflict);
        }
        self.call_soon(from, now);
        Err(Reject::Unsettled)
    }

    fn call_soon(&mut self, peer: PeerId, now: Mono) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.work_mut().heartbeat_at = Some(now);
            self.touch(peer);
        }
    }

    /// The believed copy was heard: one that appeared before is a second one.
    fn believed_is_alive(&mut self, peer: PeerId) {
        if let Some(rival) = self.copies.rivals.get_mut(&peer).filter(|rival| !rival.is_second) {
            rival.is_second = true;
            self.events.push_back(Event::TwoCopies(peer));
        }
    }

    /// The peer answered at its endpoint a call of `sent_at`: whoever that is, is believed.
    pub(super) fn settle_copy(&mut self, from: PeerId, heartbeat: &Heartbeat, sent_at: Option<Mono>, now: Mono) {
        let believed = self.links.get(&from).and_then(|link| link.heard());
        let is_believed = believed.is_none_or(|heard| heard.instance == heartbeat.instance);
        let Some(rival) = self.copies.rivals.get(&from) else { return };
        if !is_believed {
            self.copies.rivals.remove(&from);
        } else if sent_at.is_some_and(|sent| sent >= rival.since) {
            self.believed_is_alive(from);
        } else if !rival.is_second {
            self.call_soon(from, now);
        }
    }

    /// A peer refused this copy with IDENTITY_CONFLICT. That its call failed is told as well.
    pub fn handle_identity_refusal(&mut self, from: PeerId, now: Mono) {
        self.now = now;
        if self.links.contains_key(&from) {
            self.copies.refusals.entry(from).or_insert((now, now)).1 = now;
        }
        self.drive(now);
    }

    /// A peer answered a call in which this copy names itself.
    pub(super) fn was_accepted(&mut self, by: PeerId, op: Op) {
        if op != Op::Reconcile {
            self.copies.refusals.remove(&by);
        }
    }

    /// This copy is contested while more peers refuse it than hear it, so that no single one can stop it.
    pub(super) fn tend_standing_of_copy(&mut self) {
        if self.copies.refusals.is_empty() && !self.copies.contested {
            return;
        }
        let refuses = |peer: PeerId| self.copies.refuses_in_earnest(peer);
        let refusing = self.links.keys().filter(|peer| refuses(*peer)).count();
        let hearing = self.links.values().filter(|link| link.is_healthy() && !refuses(link.peer())).count();
        let contested = refusing > hearing;
        if contested != self.copies.contested {
            self.copies.contested = contested;
            self.events.push_back(Event::Contested(contested));
        }
    }
}
