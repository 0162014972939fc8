//! Two live copies of one identity (cluster.md §7): which of them is believed, and what the other one does about it.
//!
//! A restart looks like a second copy at first, so the known endpoint is asked: whoever answers there is the peer. The
//! believed copy is left only for one that answers there, or when it fell silent.

use super::{Event, Gossip, Reject, SILENCE_LIMIT};
use crate::{
    model::{Mono, PeerId},
    wire::gossip::{Heartbeat, Op, Request},
};
use std::time::Duration;

/// A copy with a start counter that is not higher takes over only after so much silence: it is an older state.
const OLDER_COPY_AFTER: Duration = Duration::from_secs(300);
/// A rival that is not heard for so long is no longer reported.
const RIVAL_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Refusals within this time may be one restart; beyond it they are meant.
const REFUSED_IN_EARNEST_AFTER: Duration = Duration::from_secs(5);

/// The copies of a peer's identity, as this agent hears them. The believed one is the link's `heard`.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies {
    /// The believed copy, directly.
    pub heard_at: Option<Mono>,
    rival: Option<Rival>,
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
    pub fn are_two(&self, now: Mono) -> bool {
        self.rival.as_ref().is_some_and(|r| r.is_second && now - r.last < RIVAL_FORGOTTEN_AFTER)
    }
}

/// How a peer refuses this copy.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals {
    first: Option<Mono>,
    last: Option<Mono>,
    accepted_at: Option<Mono>,
}

impl Refusals {
    fn is_earnest(&self) -> bool {
        self.first.zip(self.last).is_some_and(|(first, last)| last - first >= REFUSED_IN_EARNEST_AFTER)
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
        let Some(link) = self.links.get_mut(&from) else { return Ok(()) };
        let Some(believed) = link.heard.as_ref() else { return Ok(()) };
        let silence = link.notes.copies.heard_at.map_or(Duration::MAX, |at| now - at);
        if believed.instance == *instance {
            link.notes.copies.heard_at = Some(now);
            self.believed_is_alive(from);
            return Ok(());
        }
        let is_next = starts.is_some_and(|starts| starts > believed.starts);
        if (is_next && silence >= SILENCE_LIMIT) || (starts.is_some() && silence >= OLDER_COPY_AFTER) {
            link.notes.copies.rival = None;
            return Ok(());
        }
        let copies = &mut link.notes.copies;
        let mut rival = copies.rival.take().filter(|rival| rival.instance == *instance).unwrap_or_else(|| Rival {
            instance: instance.clone(),
            since: now,
            last: now,
            is_second: false,
        });
        rival.last = now;
        let is_second = rival.is_second;
        copies.rival = Some(rival);
        if is_second {
            return Err(Reject::IdentityConflict);
        }
        link.heartbeat_at = now;
        Err(Reject::Unsettled)
    }

    /// The believed copy was heard: one that appeared before is a second one.
    fn believed_is_alive(&mut self, peer: PeerId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if let Some(rival) = link.notes.copies.rival.as_mut().filter(|rival| !rival.is_second) {
            rival.is_second = true;
            self.events.push_back(Event::TwoCopies(peer));
        }
    }

    /// The peer answered at its endpoint a call of `sent_at`: whoever that is, is believed.
    pub(super) fn settle_copy(&mut self, from: PeerId, heartbeat: &Heartbeat, sent_at: Option<Mono>, now: Mono) {
        let Some(link) = self.links.get_mut(&from) else { return };
        let is_believed = link.heard.as_ref().is_none_or(|heard| heard.instance == heartbeat.instance);
        let Some(rival) = link.notes.copies.rival.as_ref() else { return };
        if !is_believed {
            link.notes.copies.rival = None;
        } else if sent_at.is_some_and(|sent| sent >= rival.since) {
            self.believed_is_alive(from);
        } else if !rival.is_second {
            link.heartbeat_at = now;
        }
    }

    /// A peer refused this copy with IDENTITY_CONFLICT. Its failed call is told apart from this.
    pub fn handle_identity_refusal(&mut self, from: PeerId, now: Mono) {
        self.now = now;
        let Some(link) = self.links.get_mut(&from) else { return };
        link.notes.refusals.first.get_or_insert(now);
        link.notes.refusals.last = Some(now);
        self.drive(now);
    }

    /// A peer answered a call in which this copy names itself.
    pub(super) fn was_accepted(&mut self, by: PeerId, op: Op, now: Mono) {
        if op == Op::Reconcile {
            return;
        }
        if let Some(link) = self.links.get_mut(&by) {
            link.notes.refusals = Refusals { accepted_at: Some(now), ..Refusals::default() };
        }
    }

    /// This copy is contested while more peers refuse it than take it, so that no single one can stop it.
    pub(super) fn tend_standing_of_copy(&mut self, now: Mono) {
        let refusing = self.links.values().filter(|link| link.notes.refusals.is_earnest()).count();
        if refusing == 0 && !self.contested {
            return;
        }
        let accepts = |at: Mono| now - at < SILENCE_LIMIT;
        let accepting = self.links.values().filter(|l| l.notes.refusals.accepted_at.is_some_and(accepts)).count();
        let contested = refusing > accepting;
        if contested != self.contested {
            self.contested = contested;
            self.events.push_back(Event::Contested(contested));
        }
    }
}
