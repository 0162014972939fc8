//! What an endpoint knows of one session: keys, addresses, handshakes in progress.

use super::{
    HANDSHAKE_RETRY, KEEPALIVE, REJECT_AFTER, REKEY_AFTER, UNANSWERED,
    endpoint::Handle,
    noise::{Initiated, Keys, SessionId, StaticKey},
    session::{Role, Session},
};
use crate::model::{Mono, PeerId};
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Where a datagram goes, and the own address it leaves from, if that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transmit {
    pub to: SocketAddr,
    pub from: Option<IpAddr>,
}

pub(super) struct Epoch {
    pub index: u32,
    pub remote_index: u32,
    pub keys: Keys,
    pub since: Mono,
}

pub(super) struct Attempt {
    pub index: u32,
    pub initiated: Initiated,
    pub at: Mono,
}

/// A source's handshakes in progress.
pub(super) struct Dialling {
    pub attempts: VecDeque<Attempt>,
    pub next: Mono,
    pub wait: Duration,
    /// Which address is next; the one that works comes before all.
    pub turn: usize,
}

pub(super) const ATTEMPTS_MAX: usize = 5;
pub(super) const EPOCHS_MAX: usize = 3;

pub(super) struct Held {
    pub key: StaticKey,
    pub peer: PeerId,
    pub id: SessionId,
    pub role: Role,
    pub addresses: Vec<SocketAddr>,
    pub remote: Option<Transmit>,
    pub epochs: Vec<Epoch>,
    pub dialling: Option<Dialling>,
    pub session: Option<Session>,
    pub highest: Option<u64>,
    /// Ends with its last packet.
    pub leaving: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Attempt(Handle),
    Epoch(Handle),
    Pending,
}

impl Held {
    pub fn new(key: StaticKey, peer: PeerId, id: SessionId, role: Role) -> Self {
        Self {
            key,
            peer,
            id,
            role,
            addresses: vec![],
            remote: None,
            epochs: vec![],
            dialling: None,
            session: None,
            highest: None,
            leaving: false,
        }
    }

    pub fn dial(&mut self, now: Mono) {
        if self.dialling.is_none() {
            self.dialling = Some(Dialling { attempts: VecDeque::new(), next: now, wait: HANDSHAKE_RETRY, turn: 0 });
        }
    }

    pub fn end_dialling(&mut self, indices: &mut BTreeMap<u32, Use>) {
        if let Some(dialling) = self.dialling.take() {
            indices.retain(|index, _| dialling.attempts.iter().all(|attempt| attempt.index != *index));
        }
    }

    pub fn expired(&self, now: Mono) -> bool {
        self.session.is_some() && self.epochs.last().is_none_or(|epoch| now - epoch.since >= REJECT_AFTER)
    }

    /// What a source does about age and silence.
    pub fn ask(&mut self, now: Mono) {
        let (Some(session), Some(epoch)) = (&mut self.session, self.epochs.last()) else { return self.dial(now) };
        let stale = now - epoch.since >= REKEY_AFTER;
        let silent = session.asked_at.is_some_and(|at| now - at >= UNANSWERED);
        if session.asked_at.is_none() && now - session.last_heard >= KEEPALIVE {
            session.ping();
        }
        if stale || silent {
            self.dial(now);
        }
    }

    pub fn deadlines(&self) -> impl Iterator<Item = Mono> {
        let session = self.session.as_ref();
        let newest = self.epochs.last().map(|epoch| epoch.since);
        let mut due = vec![session.and_then(Session::poll_timeout), newest.map(|at| at + REJECT_AFTER)];
        if self.leaving {
            due.push(Some(Mono::default()));
        } else if self.role == Role::Source {
            due.push(self.dialling.as_ref().map(|d| d.next));
            if self.dialling.is_none() {
                due.push(newest.map(|at| at + REKEY_AFTER));
                due.push(session.and_then(|s| s.asked_at).map(|at| at + UNANSWERED));
            }
            let heard = session.filter(|s| s.asked_at.is_none()).map(|s| s.last_heard + KEEPALIVE);
            due.push(heard);
        }
        due.into_iter().flatten()
    }
}
