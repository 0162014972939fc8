//! One WireGuard session with each peer: keys, addresses, handshakes. The protocol is `gotatun`'s state machine, which
//! reads the clock itself (a virtual one with the feature `simulation`); everything around it is here and does no I/O.

use crate::{
    model::{PeerId, Rng, SigningKey},
    os::datagram::Way,
    routing::PeerPath,
};
use bytes::BytesMut;
use gotatun::{
    noise::{Tunn, TunnResult, handshake::parse_handshake_anon, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::{Packet, WgKind},
    tun::MtuWatcher,
    x25519::{PublicKey, StaticSecret},
};
use rand::{SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Handshake messages of one address a second before it has to prove that it is there (whitepaper §5.3).
const HANDSHAKES_PER_SECOND: u64 = 100;
/// Initiations of all addresses between two ticks: each costs two key agreements before its sender is known.
pub(super) const MAX_INITIATIONS_PER_TICK: u32 = 200;
/// Session numbers of a peer under which it may still send: its eight sessions, and handshakes on their way.
const MAX_NUMBERS_PER_PEER: usize = 16;
/// Header and tag of a data message.
const DATA_OVERHEAD_BYTES: usize = 16 + 16;
/// The same with the headers of IP and UDP.
const V4_OVERHEAD_BYTES: u32 = 20 + 8 + 16 + 16;
const V6_OVERHEAD_BYTES: u32 = 40 + 8 + 16 + 16;
/// IPv6 asks this of every link.
const INNER_MTU_MIN: u16 = 1280;
const TYPE_INITIATION: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const TYPE_DATA: u8 = 4;
const INITIATION_BYTES: usize = 148;
const RESPONSE_BYTES: usize = 92;

/// A datagram to be sent.
pub struct Outgoing {
    pub way: Way,
    pub datagram: Vec<u8>,
    /// The kernel takes no train of datagrams that it has to cut.
    pub alone: bool,
}

/// What came of a datagram.
#[derive(Debug)]
pub enum Received {
    /// Part of the protocol's own talk.
    Handled,
    Packet(PeerId, BytesMut),
    /// Not of a peer, not authentic, or seen before.
    Refused,
}

struct Session {
    tunn: Tunn,
    key: [u8; 32],
    /// The peer's addresses in the order in which they are tried.
    addresses: Vec<IpAddr>,
    port: u16,
    /// Of `addresses`, the one that is tried now.
    trying: usize,
    /// Initiations since the peer was last heard.
    unanswered: u32,
    /// Whence authentic datagrams came last.
    heard: Option<Way>,
    numbers: VecDeque<u32>,
    mtu: u16,
}

impl Session {
    /// Where datagrams go now.
    fn way(&self) -> Option<Way> {
        let configured = || self.addresses.get(self.trying % self.addresses.len().max(1)).copied();
        self.heard.or_else(|| Some(Way::to(SocketAddr::new(configured()?, self.port))))
    }

    fn heard_from(&mut self, way: Way) {
        self.heard = Some(way);
        self.unanswered = 0;
    }

    /// A second initiation without an answer goes to an address from the list, a third to the next one.
    fn initiating(&mut self) {
        if self.unanswered > 0 && !self.addresses.is_empty() && self.heard.take().is_none() {
            self.trying = (self.trying + 1) % self.addresses.len();
        }
        self.unanswered = self.unanswered.saturating_add(1);
    }
}

pub struct Sessions {
    secret: StaticSecret,
    public: PublicKey,
    rng: Rng,
    limiter: Arc<RateLimiter>,
    index: IndexTable,
    mtu: MtuWatcher,
    initiations: u32,
    peers: BTreeMap<PeerId, Session>,
    by_key: BTreeMap<[u8; 32], PeerId>,
    by_number: BTreeMap<u32, PeerId>,
}

impl Sessions {
    /// `rng` numbers the sessions and spreads the retries; keys come from the system.
    pub fn new(key: &SigningKey, mtu: u16, mut rng: Rng) -> Self {
        let secret = StaticSecret::from(key.x25519_secret().to_bytes());
        let public = PublicKey::from(&secret);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND)),
            index: IndexTable::from_rng(StdRng::from_seed(rng.bytes())),
            mtu: MtuWatcher::new(mtu),
            initiations: 0,
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_number: BTreeMap::new(),
            secret,
            public,
            rng,
        }
    }

    /// Goes by a new list of peers; sessions of peers that are gone, or have another key, end at once.
    pub fn follow(&mut self, peers: &BTreeMap<PeerId, PeerPath>) {
        let is_same = |id: &PeerId, s: &Session| peers.get(id).is_some_and(|path| path.x25519_key.0 == s.key);
        self.peers.retain(|id, session| is_same(id, session));
        let known = &self.peers;
        self.by_key.retain(|key, id| known.get(id).is_some_and(|s| s.key == *key));
        self.by_number.retain(|_, id| known.contains_key(id));
        for (id, path) in peers {
            let session = self.peers.entry(*id).or_insert_with(|| {
                let key = path.x25519_key.0;
                self.by_key.insert(key, *id);
                let (secret, theirs) = (self.secret.clone(), PublicKey::from(key));
                let (index, limiter, rng) = (self.index.clone(), self.limiter.clone(), self.rng.bytes());
                Session {
                    tunn: Tunn::new_with_rng(secret, theirs, None, None, index, limiter, StdRng::from_seed(rng)),
                    key,
                    addresses: vec![],
                    port: path.data_ports.iptun,
                    trying: 0,
                    unanswered: 0,
                    heard: None,
                    numbers: VecDeque::new(),
                    mtu: self.mtu.get(),
                }
            });
            session.port = path.data_ports.iptun;
        }
    }

    /// The addresses of a peer, in the order in which they are tried.
    pub fn set_addresses(&mut self, peer: PeerId, addresses: Vec<IpAddr>) {
        if let Some(session) = self.peers.get_mut(&peer)
            && session.addresses != addresses
        {
            (session.addresses, session.trying) = (addresses, 0);
        }
    }

    /// The kernel sends nothing more from the address by which a way began, which is no longer this host's: from now on
    /// it chooses one. The way that is left.
    pub fn leave(&mut self, way: Way) -> Way {
        let left = Way::to(way.remote);
        self.peers.values_mut().filter(|s| s.heard == Some(way)).for_each(|s| s.heard = Some(left));
        left
    }

    /// Begins a session with each peer that has none, so that the first packet finds one.
    pub fn greet(&mut self, peers: impl Iterator<Item = PeerId>, out: &mut Vec<Outgoing>) {
        for peer in peers {
            let Some(session) = self.peers.get_mut(&peer).filter(|s| s.way().is_some()) else { continue };
            if session.unanswered == 0
                && session.heard.is_none()
                && let Some(initiation) = session.tunn.format_handshake_initiation(false)
            {
                self.emit(peer, initiation.into(), None, out);
            }
        }
    }

    /// Begins a new handshake, whatever the state of the old one.
    #[cfg(test)]
    pub fn rekey(&mut self, peer: PeerId, out: &mut Vec<Outgoing>) {
        let initiation = self.peers.get_mut(&peer).and_then(|s| s.tunn.format_handshake_initiation(true));
        if let Some(initiation) = initiation {
            self.emit(peer, initiation.into(), None, out);
        }
    }

    /// The largest packet for each peer that was heard, by the largest one that `path_mtu` says its way takes.
    pub fn measure(&mut self, path_mtu: impl Fn(SocketAddr) -> Option<u32>) {
        for session in self.peers.values_mut() {
            let Some(way) = session.heard else { continue };
            let headers = if way.remote.is_ipv4() { V4_OVERHEAD_BYTES } else { V6_OVERHEAD_BYTES };
            let Some(outer) = path_mtu(way.remote) else { continue };
            let inner = u16::try_from(outer.saturating_sub(headers)).unwrap_or(u16::MAX);
            session.mtu = inner.clamp(INNER_MTU_MIN, self.mtu.get());
        }
    }

    /// The largest packet that reaches a peer without fragments outside.
    pub fn mtu(&self, peer: PeerId) -> Option<u16> {
        self.peers.get(&peer).map(|session| session.mtu)
    }

    /// Sends a packet to a peer; it waits for the handshake if there is no session. Whether the peer has an address.
    pub fn send(&mut self, peer: PeerId, packet: &[u8], out: &mut Vec<Outgoing>) -> bool {
        let Some(session) = self.peers.get_mut(&peer).filter(|s| s.way().is_some()) else { return false };
        let packet = Packet::from_bytes(BytesMut::from(packet));
        if let Some(message) = session.tunn.handle_outgoing_packet(packet, Some(&mut self.mtu)) {
            self.emit(peer, message, None, out);
        }
        true
    }

    /// What time asks for: retries, new keys, keepalives. To be called several times a second.
    pub fn tick(&mut self, out: &mut Vec<Outgoing>) {
        self.initiations = 0;
        self.limiter.try_reset_count();
        let ids: Vec<_> = self.peers.keys().copied().collect();
        for id in ids {
            let due = self.peers.get_mut(&id).map(|session| session.tunn.update_timers());
            // An error says that there is no session any more; the next packet begins one.
            if let Some(Ok(Some(message))) = due {
                self.emit(id, message, None, out);
            }
        }
    }

    pub fn receive(&mut self, way: Way, datagram: &[u8], out: &mut Vec<Outgoing>) -> Received {
        let message = match self.limiter.verify_packet(way.remote, Packet::from_bytes(BytesMut::from(datagram))) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                out.push(Outgoing { way, datagram: bytes_of(cookie), alone: true });
                return Received::Handled;
            }
            Err(_) => return Received::Refused,
        };
        let initiation = matches!(message, WgKind::HandshakeInit(_));
        self.initiations += u32::from(initiation);
        if initiation && self.initiations > MAX_INITIATIONS_PER_TICK {
            return Received::Refused;
        }
        let Some(peer) = self.sender(&message) else { return Received::Refused };
        let Some(session) = self.peers.get_mut(&peer) else { return Received::Refused };
        let had_session = session.tunn.has_active_session();
        match session.tunn.handle_incoming_packet(message) {
            TunnResult::Done => Received::Handled,
            TunnResult::Err(_) => Received::Refused,
            TunnResult::WriteToNetwork(answer) => {
                // An initiation may be an old one to an agent that was restarted: it is answered, and moves nothing.
                if !initiation {
                    session.heard_from(way);
                }
                self.emit(peer, answer, Some(way), out);
                if !initiation {
                    self.flush(peer, out);
                }
                Received::Handled
            }
            TunnResult::WriteToTunnel(packet) => {
                session.heard_from(way);
                if !had_session {
                    self.flush(peer, out);
                }
                let packet: BytesMut = Packet::into_bytes(packet).buf_mut().split();
                if packet.is_empty() { Received::Handled } else { Received::Packet(peer, packet) }
            }
        }
    }

    fn sender(&self, message: &WgKind) -> Option<PeerId> {
        let number = match message {
            WgKind::HandshakeInit(initiation) => {
                let half = parse_handshake_anon(&self.secret, &self.public, initiation).ok()?;
                return self.by_key.get(&half.peer_static_public).copied();
            }
            WgKind::HandshakeResp(response) => response.receiver_idx.get(),
            WgKind::CookieReply(cookie) => cookie.receiver_idx.get(),
            WgKind::Data(data) => data.header.receiver_idx.get(),
        };
        self.by_number.get(&number).copied()
    }

    /// Packets that waited for the handshake.
    fn flush(&mut self, peer: PeerId, out: &mut Vec<Outgoing>) {
        let Some(session) = self.peers.get_mut(&peer).filter(|s| s.tunn.has_active_session()) else { return };
        let waiting: Vec<_> = session.tunn.get_queued_packets(&mut self.mtu).collect();
        for message in waiting {
            self.emit(peer, message, None, out);
        }
    }

    /// `answer_to`: a handshake is answered where it came from.
    fn emit(&mut self, peer: PeerId, message: WgKind, answer_to: Option<Way>, out: &mut Vec<Outgoing>) {
        let datagram = bytes_of(message);
        let Some(session) = self.peers.get_mut(&peer) else { return };
        if datagram.first() != Some(&TYPE_DATA) {
            if let Some(number) = own_number(&datagram) {
                self.by_number.insert(number, peer);
                session.numbers.push_back(number);
                if session.numbers.len() > MAX_NUMBERS_PER_PEER
                    && let Some(oldest) = session.numbers.pop_front()
                {
                    self.by_number.remove(&oldest);
                }
            }
            if datagram.first() == Some(&TYPE_INITIATION) {
                session.initiating();
            }
        }
        if let Some(way) = answer_to.or_else(|| session.way()) {
            let alone = datagram.len() > usize::from(session.mtu) + DATA_OVERHEAD_BYTES;
            out.push(Outgoing { way, datagram, alone });
        }
    }
}

fn bytes_of(message: WgKind) -> Vec<u8> {
    Packet::from(message).to_vec()
}

/// The number under which this agent wants to be answered.
fn own_number(datagram: &[u8]) -> Option<u32> {
    let handshake = matches!(
        (datagram.first(), datagram.len()),
        (Some(&TYPE_INITIATION), INITIATION_BYTES) | (Some(&TYPE_RESPONSE), RESPONSE_BYTES)
    );
    let number = datagram.get(4..8).filter(|_| handshake)?;
    Some(u32::from_le_bytes([number[0], number[1], number[2], number[3]]))
}
