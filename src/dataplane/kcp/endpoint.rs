//! All sessions of one socket: handshakes, keys and their renewal, addresses, trust.

use super::{
    EPHEMERALS_MAX, HANDSHAKE_BURST, HANDSHAKE_RETRY_MAX, HANDSHAKES_PER_SECOND, HEADER_BYTES, MTU_BYTES, PENDING_AGE,
    PENDING_MAX, PENDING_MAX_PER_PEER, REJECT_AFTER, TAG_BYTES,
    held::{ATTEMPTS_MAX, Attempt, EPOCHS_MAX, Epoch, Held, Transmit, Use},
    noise::{self, Answered, Identity, StaticKey},
    session::{Notice, Role, Session, Violation},
};
use crate::model::{Mono, PeerId, Rng};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};
use x25519_dalek::StaticSecret;

/// Names a session for as long as the endpoint lives; one begun anew has another.
pub(super) type Handle = u64;

/// Why a datagram was dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reject {
    #[error("not a datagram of this protocol")]
    Malformed,
    #[error("its mac is not for this peer")]
    Mac,
    #[error("more handshakes than are answered")]
    Busy,
    #[error("handshake seen before")]
    Repeated,
    #[error("handshake is not authentic, or of a peer that is not trusted")]
    Handshake,
    #[error("no session has this index")]
    Index,
    #[error("packet seen before or too old")]
    Replay,
    #[error("packet is not authentic")]
    Seal,
    #[error("peer broke the protocol: {0}")]
    Violation(#[from] Violation),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The session can carry flows.
    Established(Handle),
    /// Its flows are reset; a source tries to begin anew.
    Lost(Handle),
    Flow(Handle, Notice),
}

struct Pending {
    answered: Answered,
    remote_index: u32,
    known: bool,
    at: Mono,
    order: u64,
}

pub(super) struct Endpoint {
    identity: Identity,
    rng: Rng,
    trusted: BTreeMap<StaticKey, PeerId>,
    sessions: BTreeMap<Handle, Held>,
    /// Sessions that are over, until the owners of their flows have let go.
    lost: BTreeMap<Handle, Session>,
    next_handle: Handle,
    by_peer: BTreeMap<(StaticKey, bool), Handle>,
    indices: BTreeMap<u32, Use>,
    pending: BTreeMap<u32, Pending>,
    ephemerals: (BTreeSet<[u8; 32]>, VecDeque<[u8; 32]>),
    tokens: f64,
    refilled: Mono,
    answers: VecDeque<(Transmit, Vec<u8>)>,
    events: VecDeque<Event>,
    cursor: Handle,
    payload: Vec<u8>,
    /// Handshakes of others that a packet has confirmed.
    pub handshakes: u64,
}

fn is_source(role: Role) -> bool {
    role == Role::Source
}

impl Endpoint {
    /// `aes`: whether the processor has instructions for it.
    pub fn new(secret: StaticSecret, aes: bool, rng: Rng) -> Self {
        Self {
            identity: Identity::new(secret, aes),
            rng,
            trusted: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lost: BTreeMap::new(),
            next_handle: 0,
            by_peer: BTreeMap::new(),
            indices: BTreeMap::new(),
            pending: BTreeMap::new(),
            ephemerals: (BTreeSet::new(), VecDeque::new()),
            tokens: f64::from(HANDSHAKE_BURST),
            refilled: Mono::default(),
            answers: VecDeque::new(),
            events: VecDeque::new(),
            cursor: 0,
            payload: Vec::with_capacity(MTU_BYTES),
            handshakes: 0,
        }
    }

    /// Who may speak from now on. Sessions of anyone else end at once.
    pub fn trust(&mut self, trusted: BTreeMap<StaticKey, PeerId>) {
        self.trusted = trusted;
        let revoked = |held: &Held| self.trusted.get(&held.key) != Some(&held.peer);
        let gone: Vec<Handle> = self.sessions.iter().filter(|(_, held)| revoked(held)).map(|(h, _)| *h).collect();
        gone.into_iter().for_each(|handle| self.remove(handle));
        let distrusted: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, p)| !self.trusted.contains_key(&p.answered.peer))
            .map(|(i, _)| *i)
            .collect();
        distrusted.into_iter().for_each(|index| self.forget_pending(index));
    }

    /// The own session to a peer, which may not be established.
    pub fn handle(&self, key: &StaticKey) -> Option<Handle> {
        self.by_peer.get(&(*key, true)).copied()
    }

    /// The session to a peer, begun now if there is none. The addresses are tried in order.
    pub fn connect(&mut self, now: Mono, key: StaticKey, addresses: &[SocketAddr]) -> Option<Handle> {
        let peer = *self.trusted.get(&key)?;
        if let Some(handle) = self.by_peer.get(&(key, true)) {
            if let Some(held) = self.sessions.get_mut(handle)
                && held.addresses != addresses
            {
                held.addresses = addresses.to_vec();
            }
            return Some(*handle);
        }
        let id = self.rng.bytes();
        let mut held = Held::new(key, peer, id, Role::Source);
        held.addresses = addresses.to_vec();
        held.dial(now);
        Some(self.add(held))
    }

    /// Ends the session to a peer; its flows are reset on both sides.
    pub fn disconnect(&mut self, key: &StaticKey) {
        if let Some(handle) = self.by_peer.get(&(*key, true)).copied() {
            self.leave(handle);
        }
    }

    /// Ends all sessions; what tells the peers is to be sent still.
    pub fn close(&mut self) {
        self.sessions.keys().copied().collect::<Vec<_>>().into_iter().for_each(|handle| self.leave(handle));
    }

    fn leave(&mut self, handle: Handle) {
        let Some(held) = self.sessions.get_mut(&handle) else { return };
        self.by_peer.remove(&(held.key, is_source(held.role)));
        match held.session.as_mut().filter(|_| !held.epochs.is_empty()) {
            Some(session) => {
                session.close();
                held.leaving = true;
                self.events.push_back(Event::Lost(handle));
            }
            None => self.remove(handle),
        }
    }

    /// The flows of a session.
    pub fn session(&mut self, handle: Handle) -> Option<&mut Session> {
        match self.sessions.get_mut(&handle) {
            Some(held) => held.session.as_mut(),
            None => self.lost.get_mut(&handle),
        }
    }

    pub fn is_established(&self, handle: Handle) -> bool {
        self.sessions.get(&handle).is_some_and(|held| held.session.is_some() && !held.leaving)
    }

    /// The peer that proved its key in the session.
    pub fn peer(&self, handle: Handle) -> Option<PeerId> {
        self.sessions.get(&handle).map(|held| held.peer)
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn add(&mut self, held: Held) -> Handle {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.by_peer.insert((held.key, is_source(held.role)), handle);
        self.sessions.insert(handle, held);
        handle
    }

    fn remove(&mut self, handle: Handle) {
        let Some(mut held) = self.sessions.remove(&handle) else { return };
        self.by_peer.retain(|_, other| *other != handle);
        self.indices.retain(|_, used| *used != Use::Epoch(handle));
        held.end_dialling(&mut self.indices);
        if let Some(session) = held.session.take() {
            self.lose(handle, session);
        }
    }

    fn lose(&mut self, handle: Handle, mut session: Session) {
        session.abort();
        Self::collect(handle, &mut session, &mut self.events);
        self.events.push_back(Event::Lost(handle));
        self.lost.retain(|_, session| session.flow_count() > 0);
        self.lost.insert(handle, session);
    }

    /// Begins a source's session anew, under another handle: numbers and keys are forgotten, flows are reset.
    fn renew(&mut self, handle: Handle) -> Option<Handle> {
        let mut held = self.sessions.remove(&handle)?;
        held.epochs.clear();
        self.indices.retain(|_, used| *used != Use::Epoch(handle));
        held.highest = None;
        if let Some(session) = held.session.take() {
            self.lose(handle, session);
        }
        let renewed = self.next_handle;
        for attempt in held.dialling.iter().flat_map(|d| &d.attempts) {
            self.indices.insert(attempt.index, Use::Attempt(renewed));
        }
        Some(self.add(held))
    }

    fn forget_pending(&mut self, index: u32) {
        self.pending.remove(&index);
        self.indices.remove(&index);
    }

    fn new_index(&mut self) -> u32 {
        loop {
            let index = self.rng.u64() as u32;
            if !self.indices.contains_key(&index) {
                return index;
            }
        }
    }

    // ---- datagrams in

    /// Takes a datagram that came from `from` to the own address `to`. A rejected one changes nothing and gets no answer.
    pub fn handle_datagram(
        &mut self,
        now: Mono,
        from: SocketAddr,
        to: Option<IpAddr>,
        datagram: &[u8],
    ) -> Result<(), Reject> {
        let kind = datagram.first_chunk::<4>().ok_or(Reject::Malformed)?;
        match kind {
            [noise::DATA, 0, 0, 0] => self.on_data(now, Transmit { to: from, from: to }, datagram),
            [noise::INITIATION, 0, 0, 0] if datagram.len() == noise::INITIATION_BYTES => {
                self.on_initiation(now, Transmit { to: from, from: to }, datagram)
            }
            [noise::RESPONSE, 0, 0, 0] if datagram.len() == noise::RESPONSE_BYTES => {
                self.on_response(now, from, datagram)
            }
            _ => Err(Reject::Malformed),
        }
    }

    fn on_data(&mut self, now: Mono, way: Transmit, datagram: &[u8]) -> Result<(), Reject> {
        let (head, sealed) = datagram.split_first_chunk::<HEADER_BYTES>().ok_or(Reject::Malformed)?;
        let index = number_at(head, 4);
        let number = u64::from_be_bytes(head[8..].try_into().map_err(|_| Reject::Malformed)?);
        if sealed.len() < TAG_BYTES || number > super::frame::NUMBER_MAX {
            return Err(Reject::Malformed);
        }
        match self.indices.get(&index) {
            Some(Use::Epoch(handle)) => self.on_packet(now, way, *handle, index, number, sealed),
            Some(Use::Pending) => self.confirm(now, way, index, number, sealed),
            _ => Err(Reject::Index),
        }
    }

    fn on_packet(
        &mut self,
        now: Mono,
        way: Transmit,
        handle: Handle,
        index: u32,
        number: u64,
        sealed: &[u8],
    ) -> Result<(), Reject> {
        let held = self.sessions.get_mut(&handle).ok_or(Reject::Index)?;
        let epoch = held.epochs.iter().find(|epoch| epoch.index == index).ok_or(Reject::Index)?;
        let session = held.session.as_mut().ok_or(Reject::Index)?;
        if now - epoch.since >= REJECT_AFTER {
            return Err(Reject::Index);
        }
        if !session.replay.is_fresh(number) {
            return Err(Reject::Replay);
        }
        epoch.keys.open(number, sealed, &mut self.payload).ok_or(Reject::Seal)?;
        session.receive(now, number, &self.payload)?;
        if held.highest.is_none_or(|highest| number > highest) {
            held.highest = Some(number);
            // The exit follows its source to new addresses, but only by authentic packets.
            if held.role == Role::Exit {
                held.remote = Some(way);
            }
        }
        Self::collect(handle, session, &mut self.events);
        if session.closed && !held.leaving {
            self.on_closed_by_peer(now, handle);
        }
        Ok(())
    }

    fn collect(handle: Handle, session: &mut Session, events: &mut VecDeque<Event>) {
        while let Some(notice) = session.poll_notice() {
            events.push_back(Event::Flow(handle, notice));
        }
    }

    fn on_closed_by_peer(&mut self, now: Mono, handle: Handle) {
        match self.sessions.get_mut(&handle) {
            Some(held) if held.role == Role::Source => self.begin_anew(now, handle),
            _ => self.remove(handle),
        }
    }

    fn begin_anew(&mut self, now: Mono, handle: Handle) {
        let id = self.rng.bytes();
        if let Some(held) = self.renew(handle).and_then(|renewed| self.sessions.get_mut(&renewed)) {
            held.end_dialling(&mut self.indices);
            held.id = id;
            held.dial(now);
        }
    }

    fn on_initiation(&mut self, now: Mono, way: Transmit, datagram: &[u8]) -> Result<(), Reject> {
        if !self.identity.is_for_us(datagram) {
            return Err(Reject::Mac);
        }
        let ephemeral: [u8; 32] = datagram[8..40].try_into().map_err(|_| Reject::Malformed)?;
        if self.ephemerals.0.contains(&ephemeral) {
            return Err(Reject::Repeated);
        }
        self.expire_pending(now);
        let refill = (now - self.refilled).as_secs_f64() * f64::from(HANDSHAKES_PER_SECOND);
        (self.tokens, self.refilled) = ((self.tokens + refill).min(f64::from(HANDSHAKE_BURST)), now);
        if self.tokens < 1.0 || self.pending.len() >= PENDING_MAX {
            return Err(Reject::Busy);
        }
        self.tokens -= 1.0;
        let index = self.new_index();
        let mut known = false;
        let (trusted, by_peer, sessions) = (&self.trusted, &self.by_peer, &self.sessions);
        let answer = self.identity.respond(datagram, &mut self.rng, |peer, id| {
            trusted.get(peer)?;
            let held = by_peer.get(&(*peer, false)).and_then(|handle| sessions.get(handle));
            known = held.is_some_and(|held| held.id == *id && !held.leaving);
            Some((index, known))
        });
        let (answered, response) = answer.ok_or(Reject::Handshake)?;
        self.remember(ephemeral);
        let order = self.handshakes + self.pending.len() as u64;
        let of_peer: Vec<u32> =
            self.pending.iter().filter(|(_, p)| p.answered.peer == answered.peer).map(|(i, _)| *i).collect();
        if of_peer.len() >= PENDING_MAX_PER_PEER
            && let Some(oldest) = of_peer.into_iter().min_by_key(|i| self.pending.get(i).map(|p| (p.at, p.order)))
        {
            self.forget_pending(oldest);
        }
        let remote_index = number_at(datagram, 4);
        self.pending.insert(index, Pending { answered, remote_index, known, at: now, order });
        self.indices.insert(index, Use::Pending);
        self.answers.push_back((way, response));
        Ok(())
    }

    fn remember(&mut self, ephemeral: [u8; 32]) {
        let (known, order) = &mut self.ephemerals;
        known.insert(ephemeral);
        order.push_back(ephemeral);
        if order.len() > EPHEMERALS_MAX
            && let Some(oldest) = order.pop_front()
        {
            known.remove(&oldest);
        }
    }

    fn expire_pending(&mut self, now: Mono) {
        let old: Vec<u32> = self.pending.iter().filter(|(_, p)| now - p.at >= PENDING_AGE).map(|(i, _)| *i).collect();
        old.into_iter().for_each(|index| self.forget_pending(index));
    }

    /// The first packet of an initiator proves that it is no replay: only now its handshake counts.
    fn confirm(&mut self, now: Mono, way: Transmit, index: u32, number: u64, sealed: &[u8]) -> Result<(), Reject> {
        let pending = self.pending.get(&index).ok_or(Reject::Index)?;
        if now - pending.at >= PENDING_AGE {
            return Err(Reject::Index);
        }
        pending.answered.keys.open(number, sealed, &mut self.payload).ok_or(Reject::Seal)?;
        let (key, id, known) = (pending.answered.peer, pending.answered.session, pending.known);
        let peer = *self.trusted.get(&key).ok_or(Reject::Handshake)?;
        let existing = self.by_peer.get(&(key, false)).copied();
        let same = existing.filter(|handle| self.sessions.get(handle).is_some_and(|held| held.id == id));
        if known && same.is_none() {
            // Promised to go on with a session that has ended since: the initiator asks anew.
            self.forget_pending(index);
            return Err(Reject::Index);
        }
        let Some(Pending { answered, remote_index, .. }) = self.pending.remove(&index) else {
            return Err(Reject::Index);
        };
        let handle = match same {
            Some(handle) => handle,
            None => {
                // Another session of the peer means that its process began anew.
                existing.into_iter().for_each(|handle| self.remove(handle));
                let mut held = Held::new(key, peer, id, Role::Exit);
                held.session = Some(Session::new(now, Role::Exit, None));
                held.remote = Some(way);
                self.add(held)
            }
        };
        self.handshakes += 1;
        self.add_epoch(handle, Epoch { index, remote_index, keys: answered.keys, since: now });
        if same.is_none() {
            self.events.push_back(Event::Established(handle));
        }
        self.on_packet(now, way, handle, index, number, sealed)
    }

    fn add_epoch(&mut self, handle: Handle, epoch: Epoch) {
        self.indices.insert(epoch.index, Use::Epoch(handle));
        if let Some(held) = self.sessions.get_mut(&handle) {
            held.epochs.push(epoch);
            if held.epochs.len() > EPOCHS_MAX {
                let old = held.epochs.remove(0);
                self.indices.remove(&old.index);
            }
        }
    }

    fn on_response(&mut self, now: Mono, from: SocketAddr, datagram: &[u8]) -> Result<(), Reject> {
        let (remote_index, index) = (number_at(datagram, 4), number_at(datagram, 8));
        let Some(Use::Attempt(handle)) = self.indices.get(&index).copied() else { return Err(Reject::Index) };
        if !self.identity.is_for_us(datagram) {
            return Err(Reject::Mac);
        }
        let held = self.sessions.get_mut(&handle).ok_or(Reject::Index)?;
        let dialling = held.dialling.as_mut().ok_or(Reject::Index)?;
        let at = dialling.attempts.iter().position(|a| a.index == index).ok_or(Reject::Index)?;
        let known = dialling.attempts[at].initiated.finish(datagram).ok_or(Reject::Handshake)?;
        let attempt = dialling.attempts.remove(at).ok_or(Reject::Index)?;
        self.indices.remove(&index);
        held.end_dialling(&mut self.indices);
        let keys = attempt.initiated.into_keys().ok_or(Reject::Handshake)?;
        // A peer that has forgotten the session begins at its first number again. One that never answered may not even have
        // begun, and then nothing is lost.
        let forgotten = held.session.is_some() && held.highest.is_some() && !known;
        let handle = if forgotten { self.renew(handle).ok_or(Reject::Index)? } else { handle };
        let held = self.sessions.get_mut(&handle).ok_or(Reject::Index)?;
        held.remote = Some(Transmit { to: from, from: None });
        let rtt = now - attempt.at;
        let is_new = held.session.is_none();
        let session = held.session.get_or_insert_with(|| Session::new(now, Role::Source, Some(rtt)));
        (session.last_heard, session.asked_at) = (now, None);
        // The peer's first packet under the new keys waits for ours.
        session.ping();
        self.add_epoch(handle, Epoch { index, remote_index, keys, since: now });
        if is_new {
            self.events.push_back(Event::Established(handle));
        }
        Ok(())
    }

    // ---- time

    pub fn handle_timeout(&mut self, now: Mono) {
        self.expire_pending(now);
        self.lost.retain(|_, session| session.flow_count() > 0);
        for handle in self.sessions.keys().copied().collect::<Vec<_>>() {
            let Some(held) = self.sessions.get_mut(&handle) else { continue };
            if let Some(session) = &mut held.session {
                session.handle_timeout(now);
                Self::collect(handle, session, &mut self.events);
            }
            if held.expired(now) {
                if held.role == Role::Exit || held.leaving {
                    self.remove(handle);
                    continue;
                }
                self.begin_anew(now, handle);
                continue;
            }
            if held.role == Role::Source && !held.leaving {
                held.ask(now);
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Mono> {
        let sessions = self.sessions.values().flat_map(Held::deadlines).min();
        if self.answers.is_empty() { sessions } else { Some(Mono::default()) }
    }

    // ---- datagrams out

    /// Appends the next datagram to `out`.
    pub fn poll_transmit(&mut self, now: Mono, out: &mut Vec<u8>) -> Option<Transmit> {
        if let Some((way, answer)) = self.answers.pop_front() {
            out.extend(answer);
            return Some(way);
        }
        let later = self.sessions.range(self.cursor..).map(|(h, _)| *h);
        let order: Vec<Handle> = later.chain(self.sessions.range(..self.cursor).map(|(h, _)| *h)).collect();
        for handle in order {
            if let Some(way) = self.transmit_of(now, handle, out) {
                self.cursor = handle;
                return Some(way);
            }
        }
        None
    }

    fn transmit_of(&mut self, now: Mono, handle: Handle, out: &mut Vec<u8>) -> Option<Transmit> {
        if let Some(way) = self.poll_attempt(now, handle, out) {
            return Some(way);
        }
        let held = self.sessions.get_mut(&handle)?;
        let (session, epoch, way) = (held.session.as_mut()?, held.epochs.last()?, held.remote?);
        if now - epoch.since >= REJECT_AFTER {
            return None;
        }
        let number = session.poll_payload(now, &mut self.payload);
        Self::collect(handle, session, &mut self.events);
        let Some(number) = number else {
            if held.leaving {
                self.remove(handle);
            }
            return None;
        };
        out.extend([noise::DATA, 0, 0, 0]);
        out.extend(epoch.remote_index.to_be_bytes());
        out.extend(number.to_be_bytes());
        epoch.keys.seal(number, &self.payload, out);
        Some(way)
    }

    fn poll_attempt(&mut self, now: Mono, handle: Handle, out: &mut Vec<u8>) -> Option<Transmit> {
        let held = self.sessions.get(&handle)?;
        if held.leaving || held.dialling.as_ref().is_none_or(|d| d.next > now) {
            return None;
        }
        let index = self.new_index();
        let held = self.sessions.get_mut(&handle)?;
        let dialling = held.dialling.as_mut()?;
        let spread = dialling.wait.mul_f64(0.75 + 0.5 * self.rng.below(1000) as f64 / 1000.0);
        dialling.next = now + spread;
        // Each address has its turn before the waits grow.
        if (dialling.turn + 1).is_multiple_of(held.addresses.len().max(1)) {
            dialling.wait = (dialling.wait * 2).min(HANDSHAKE_RETRY_MAX);
        }
        let way = match held.remote.filter(|_| dialling.turn == 0) {
            Some(way) => way,
            None => Transmit { to: *held.addresses.get(dialling.turn % held.addresses.len().max(1))?, from: None },
        };
        dialling.turn += 1;
        let (initiated, datagram) = self.identity.initiate(&held.key, index, &held.id, &mut self.rng)?;
        dialling.attempts.push_back(Attempt { index, initiated, at: now });
        self.indices.insert(index, Use::Attempt(handle));
        if dialling.attempts.len() > ATTEMPTS_MAX
            && let Some(old) = dialling.attempts.pop_front()
        {
            self.indices.remove(&old.index);
        }
        out.extend(datagram);
        Some(way)
    }
}

fn number_at(datagram: &[u8], at: usize) -> u32 {
    datagram.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}
