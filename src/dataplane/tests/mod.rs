//! Two engines on loopback: `a` is the source, `b` the exit. Captured connections are handed in; 198.18.0.0/16 and
//! 2001:2::/48 stand for the servers' network.

mod ends;
mod kcp;
mod refusals;
mod trust;

use super::*;
use crate::{
    model::{DataPorts, Endpoint, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, Transport, UnixTime},
    routing::{ForwardedService, PeerPath},
};
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A bound on what only a bug lets run for ever.
pub(super) const TEST_LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_LIMIT, work).await.unwrap_or_else(|_| panic!("did not happen: {what}"))
}

/// Looks until it is so: for counts that nothing announces.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A port that nobody else takes while it is free for a moment: the kernel gives out higher ones, and other runs of the
/// tests begin to look elsewhere.
pub(super) fn lasting_port() -> u16 {
    static LOOKED_AT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 200) as u16 * 100;
    loop {
        let port = first + LOOKED_AT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

pub(super) struct Peer {
    pub id: PeerId,
    pub key: SigningKey,
    pub snapshot: watch::Sender<Arc<Forwarding>>,
    pub engine: Option<Engine>,
}

impl Peer {
    fn new(seed: u8) -> Self {
        let id = PeerId::mint(UnixTime::from_ms(u64::from(seed)), &mut Rng::from_seed([seed; 32]));
        Self { id, key: SigningKey::from_seed([seed; 32]), snapshot: watch::Sender::default(), engine: None }
    }
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }
    pub fn start(&mut self, port: u16) {
        self.start_timed(port, Timing::default());
    }
    pub fn start_timed(&mut self, port: u16, timing: Timing) {
        self.start_at(DataPorts { tproxy: port, kcp: 0, ..DataPorts::default() }, timing);
    }
    pub fn start_at(&mut self, ports: DataPorts, timing: Timing) {
        let config =
            EngineSetup { local: self.id, key: self.key.clone(), ports, own_mark: 0, forbidden_ports: vec![8080] };
        self.engine = Some(Engine::start_with(config, self.snapshot.subscribe(), timing, None).unwrap());
    }
    pub fn path(&self) -> PeerPath {
        let tproxy = self.engine.as_ref().map_or(1, Engine::stream_port);
        let kcp = self.engine.as_ref().map_or(1, Engine::kcp_port);
        PeerPath {
            public_key: self.key.public(),
            x25519_key: self.key.x25519_public(),
            endpoints: vec![Endpoint::new("127.0.0.1", 8080).unwrap()],
            data_ports: DataPorts { tproxy, kcp, ..DataPorts::default() },
        }
    }
}

pub(super) struct Pair {
    pub a: Peer,
    pub b: Peer,
    pub service: ServiceId,
    pub forwarded: ForwardedService,
}

impl Pair {
    /// Both engines run and know each other; nothing is published yet.
    pub fn unpublished() -> Self {
        let (mut a, mut b) = (Peer::new(1), Peer::new(2));
        a.start(0);
        b.start(0);
        let service = ServiceId::mint(UnixTime::from_ms(3), &mut Rng::from_seed([3; 32]));
        let nets = ["198.18.0.0/16", "2001:2::/48"];
        let forwarded = ForwardedService {
            source: a.id,
            target: b.id,
            transport: Transport::Tcp,
            transparent: false,
            limit_mbps: 0,
            mark: Some(1),
            routes: nets.iter().map(|n| (None, Some(n.parse().unwrap()))).collect(),
            whole_interface: false,
        };
        Self { a, b, service, forwarded }
    }

    /// The same with the service published on both.
    pub fn new() -> Self {
        let pair = Self::unpublished();
        pair.publish_a(|_| {});
        pair.publish_b(|_| {});
        pair
    }

    /// The same over another transport.
    pub fn over(transport: Transport) -> Self {
        let mut pair = Self::unpublished();
        pair.forwarded.transport = transport;
        pair.publish_a(|_| {});
        pair.publish_b(|_| {});
        pair
    }

    /// The usual snapshot, changed by `change`.
    pub fn snapshot(&self, change: impl FnOnce(&mut Forwarding)) -> Arc<Forwarding> {
        let routes = self.forwarded.routes.iter().zip(1..).map(|((source_cidr, dest_cidr), id)| Route {
            id,
            source_cidr: *source_cidr,
            dest_cidr: *dest_cidr,
            priority: 100,
            version: 1,
            created_at: UnixTime::from_ms(0),
        });
        let body = ServiceBody {
            name: "s".into(),
            source_peer_id: self.a.id,
            target_peer_id: self.b.id,
            transport_type: self.forwarded.transport,
            requires_interface: false,
            desired_ipv4_cidr: None,
            desired_ipv6_cidr: None,
            bandwidth_limit_mbps: 0,
            fully_transparent: self.forwarded.transparent,
            routes: routes.collect(),
            next_route_id: 9,
            created_at: UnixTime::from_ms(0),
            updated_at: UnixTime::from_ms(0),
        };
        let peers = BTreeMap::from([(self.a.id, self.a.path()), (self.b.id, self.b.path())]);
        let services = BTreeMap::from([(self.service, self.forwarded.clone())]);
        let mut forwarding = Forwarding::new(1, peers, services, &[Service { id: self.service, version: 1, body }]);
        change(&mut forwarding);
        Arc::new(forwarding)
    }
    pub fn publish_a(&self, change: impl FnOnce(&mut Forwarding)) {
        self.a.snapshot.send_replace(self.snapshot(change));
    }
    pub fn publish_b(&self, change: impl FnOnce(&mut Forwarding)) {
        self.b.snapshot.send_replace(self.snapshot(change));
    }

    /// A client's connection that engine `a` takes as captured on its way to `dest`.
    pub async fn connect(&self, dest: SocketAddr) -> TcpStream {
        let entry = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(entry.local_addr().unwrap()).await.unwrap();
        let (captured, source) = entry.accept().await.unwrap();
        self.a.engine().carry_captured(captured, source, dest);
        client
    }

    /// A flow to a server of its own: the client's end and the server's.
    pub async fn flow(&self) -> (TcpStream, TcpStream) {
        let server = Server::new().await;
        let client = self.connect(server.dest()).await;
        (client, server.accept().await)
    }

    pub fn refused_a(&self, refusal: Refusal) -> u64 {
        refused(self.a.engine(), self.service, refusal)
    }
    pub fn refused_b(&self, refusal: Refusal) -> u64 {
        refused(self.b.engine(), self.service, refusal)
    }
}

fn refused(engine: &Engine, service: ServiceId, refusal: Refusal) -> u64 {
    let of_service = engine.counters().services().get(&service).and_then(|c| c.refused.get(&refusal).copied());
    of_service.unwrap_or(0) + engine.counters().engine().refused.get(&refusal).copied().unwrap_or(0)
}

pub(super) struct Server(TcpListener);

impl Server {
    pub async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }
    pub async fn new_v6() -> Option<Self> {
        TcpListener::bind("[::1]:0").await.ok().map(Self)
    }
    pub fn dest(&self) -> SocketAddr {
        let addr = self.0.local_addr().unwrap();
        let host = if addr.is_ipv4() { "198.18.0.9" } else { "2001:2::9" };
        SocketAddr::new(host.parse::<IpAddr>().unwrap(), addr.port())
    }
    pub async fn accept(&self) -> TcpStream {
        soon("the exit dials the server", self.0.accept()).await.unwrap().0
    }
}

pub(super) async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = vec![];
    soon("the stream ends", stream.read_to_end(&mut all)).await.map(|_| all)
}

pub(super) async fn assert_reset(stream: &mut TcpStream) {
    let ended = read_all(stream).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// Shows that the flow carries bytes both ways.
pub(super) async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let mut four = [0; 4];
    client.write_all(b"ping").await.unwrap();
    soon("ping arrives", server.read_exact(&mut four)).await.unwrap();
    assert_eq!(&four, b"ping");
    server.write_all(b"pong").await.unwrap();
    soon("pong arrives", client.read_exact(&mut four)).await.unwrap();
    assert_eq!(&four, b"pong");
}

pub(super) fn net(s: &str) -> IpNet {
    s.parse().unwrap()
}
