//! One peer of the tunnel: production's `Gate` and `Sessions`, driven as `dataplane::iptun` drives them.

use super::super::super::world::derive;
use arctic::{
    dataplane::iptun::{Gate, INNER_MTU, Outgoing, Passed, Received, Sessions, Stop},
    model::{
        DataPorts, Endpoint, Mono, PeerId, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, Transport, UnixTime,
    },
    os::datagram::Way,
    routing::{ForwardedService, Forwarding, PeerPath},
};
use mock_instant::thread_local::MockClock;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

pub const PEERS: usize = 3;
/// Peers 0 and 2 have a service each to this one.
pub const EXIT: usize = 1;
pub const PORT: u16 = 51840;
/// Networks of clients and servers; a client's of peer 0 are `10.1`, `fd01`, of peer 2 `10.3`, `fd03`.
const SERVERS: [&str; 2] = ["10.9.0.0/16", "fd09::/16"];

/// The clock that WireGuard's machine reads.
pub fn set_clock(now: Mono) {
    MockClock::set_time(now.since_start());
}

pub struct Peer {
    index: usize,
    pub id: PeerId,
    key: SigningKey,
    rng: Rng,
    gate: Gate,
    sessions: Sessions,
    pub up: bool,
    /// Of the host; the ports that others see may be those of a NAT before it.
    pub host: IpAddr,
    pub nat_port: u16,
}

/// What a peer made of a datagram.
pub enum Taken {
    Handled,
    Refused,
    /// An authentic packet of this peer, and what the gate said.
    Packet(PeerId, Vec<u8>, Result<Passed, Stop>),
}

impl Peer {
    /// Made of no more than a seed and a number.
    pub fn new(seed: u64, index: usize) -> Self {
        let mut rng = Rng::from_seed(derive(seed, "tunnel", index as u64));
        let (id, key) = (peer_id(seed, index), key(seed, index));
        let gate = Gate::new(id, Box::new(|_| false));
        let sessions = Sessions::new(&key, INNER_MTU, rng.fork());
        let host = home(index);
        Self { index, id, key, rng, gate, sessions, up: false, host, nat_port: PORT }
    }

    /// As others see it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.nat_port)
    }

    /// A process that knows nothing but its keys and what the store says.
    ///
    /// WireGuard's machine takes the wall time of its beginning from the system, where virtual time stands still; it is
    /// made at zero of the clock, so that the handshakes of all processes of one host are in the order of their times.
    pub fn start(&mut self, seed: u64, known: &[Vec<IpAddr>], now: Mono, out: &mut Vec<Outgoing>) {
        let snapshot = snapshot(seed, self.index);
        set_clock(Mono::default());
        self.sessions = Sessions::new(&self.key, INNER_MTU, self.rng.fork());
        self.sessions.follow(&snapshot.peers);
        set_clock(now);
        self.gate = Gate::new(self.id, Box::new(|_| false));
        let served = snapshot.services.values().map(|s| if s.source == self.id { s.target } else { s.source });
        let served: Vec<PeerId> = served.collect();
        self.gate.follow(Arc::new(snapshot));
        self.up = true;
        for (other, addresses) in known.iter().enumerate().filter(|(other, _)| *other != self.index) {
            self.sessions.set_addresses(peer_id(seed, other), addresses.clone());
        }
        self.sessions.greet(served.into_iter(), out);
    }

    pub fn learn(&mut self, peer: PeerId, addresses: Vec<IpAddr>) {
        self.sessions.set_addresses(peer, addresses);
    }

    pub fn tick(&mut self, out: &mut Vec<Outgoing>) {
        self.sessions.tick(out);
    }

    /// A packet that the kernel of this host gives to the device; to whom it went.
    pub fn send(&mut self, packet: &mut [u8], now: Mono, out: &mut Vec<Outgoing>) -> Option<PeerId> {
        let passed = self.gate.take_from_device(packet, now).ok()?;
        self.sessions.send(passed.peer, &packet[..passed.len], out).then_some(passed.peer)
    }

    /// A packet that a peer sends although its own gate would not let it.
    pub fn force(&mut self, to: PeerId, packet: &[u8], out: &mut Vec<Outgoing>) {
        self.sessions.send(to, packet, out);
    }

    pub fn receive(&mut self, way: Way, datagram: &[u8], now: Mono, out: &mut Vec<Outgoing>) -> Taken {
        match self.sessions.receive(way, datagram, out) {
            Received::Handled => Taken::Handled,
            Received::Refused => Taken::Refused,
            Received::Packet(peer, mut packet) => {
                let verdict = self.gate.take_from_peer(peer, &mut packet, now);
                Taken::Packet(peer, packet.to_vec(), verdict)
            }
        }
    }

    /// The kernel does not send from an address that the host no longer has.
    pub fn cannot_send(&mut self, way: Way) -> Way {
        self.sessions.leave(way)
    }
}

pub fn peer_id(seed: u64, index: usize) -> PeerId {
    PeerId::mint(UnixTime::from_ms(1), &mut Rng::from_seed(derive(seed, "tunnel id", index as u64)))
}

fn key(seed: u64, index: usize) -> SigningKey {
    SigningKey::from_seed(derive(seed, "tunnel key", index as u64))
}

/// Where a peer is at first.
pub fn home(index: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 1 + index as u8).into()
}

fn path(seed: u64, index: usize) -> PeerPath {
    let key = key(seed, index);
    let endpoints = Endpoint::new(&home(index).to_string(), 8080).into_iter().collect();
    PeerPath {
        public_key: key.public(),
        x25519_key: key.x25519_public(),
        endpoints,
        data_ports: DataPorts { iptun: PORT, ..DataPorts::default() },
    }
}

fn clients(index: usize) -> [String; 2] {
    [format!("10.{}.0.0/16", 1 + index), format!("fd{:02}::/16", 1 + index)]
}

/// What the store of a peer makes of two services, one of peer 0 and one of peer 2.
fn snapshot(seed: u64, local: usize) -> Forwarding {
    let now = UnixTime::from_ms(1);
    let (mut services, mut own) = (BTreeMap::new(), Vec::new());
    for source in (0..PEERS).filter(|n| *n != EXIT) {
        let id = ServiceId::mint(now, &mut Rng::from_seed(derive(seed, "tunnel service", source as u64)));
        let nets: Vec<_> =
            clients(source).iter().map(|c| c.parse().ok()).zip(SERVERS.map(|s| s.parse().ok())).collect();
        let made = (1..).zip(&nets).map(|(id, (source_cidr, dest_cidr))| Route {
            id,
            source_cidr: *source_cidr,
            dest_cidr: *dest_cidr,
            priority: 100,
            version: 1,
            created_at: now,
        });
        let (from, to) = (peer_id(seed, source), peer_id(seed, EXIT));
        let body = ServiceBody { routes: made.collect(), ..ServiceBody::plain("s", from, to, now) };
        if source == local {
            own.push(Service { id, version: 1, body });
        }
        let forwarded = ForwardedService {
            source: from,
            target: to,
            transport: Transport::Tcp,
            transparent: false,
            limit_mbps: 0,
            mark: Some(1),
            routes: nets,
            whole_interface: false,
        };
        services.insert(id, forwarded);
    }
    let others = (0..PEERS).filter(|n| *n != local).map(|n| (peer_id(seed, n), path(seed, n))).collect();
    Forwarding::new(1, others, services, &own)
}

/// How long a process lives before WireGuard's machine, which was made at zero of the clock, thinks that it was idle for
/// too long (three times 180 s).
pub const STORY_MAX: Duration = Duration::from_secs(540);
