//! The data plane alone, without agents around it: real capture (rules written by hand), the WAN, a real exit.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use arctic::dataplane::Engine;
use arctic::env::{EngineSetup, InterceptPorts};
use arctic::model::{
    DataPorts, Endpoint, PeerId, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, Transport, UnixTime,
};
use arctic::routing::{ForwardedService, Forwarding, PeerPath};
use tokio::sync::{oneshot, watch};

use crate::lab::{Host, Lab};
use crate::topology::{self, LONDON_WAN, Profile, SERVER, TOKYO_WAN, TwoSites, at};

const OWN_MARK: u32 = 0xfff0_0000;
const ROUTED: [&str; 2] = [topology::SERVER_NET, topology::SERVER_NET_V6];

type Snapshot = watch::Sender<Arc<Forwarding>>;

/// An engine on a thread of its own inside a host.
pub struct Running {
    pub intercept: InterceptPorts,
    engine: Option<Arc<Engine>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(host: &Host, id: PeerId, key: SigningKey, snapshot: &Snapshot) -> Running {
        let (forwarding, (tell, told), (stop, stopped)) =
            (snapshot.subscribe(), mpsc::channel(), oneshot::channel::<()>());
        let work = move || {
            // One thread: only it is in the namespace.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let config = EngineSetup {
                    local: id,
                    key,
                    ports: DataPorts::default(),
                    own_mark: OWN_MARK,
                    forbidden_ports: vec![8080],
                };
                let engine = Arc::new(Engine::start(config, forwarding).await.unwrap());
                tell.send(engine.clone()).unwrap();
                let _ = stopped.await;
            });
        };
        let thread = host.thread(work).unwrap();
        let engine: Arc<Engine> = told.recv_timeout(Duration::from_secs(10)).expect("the engine starts");
        Running { intercept: engine.intercept_ports(), engine: Some(engine), stop: Some(stop), thread: Some(thread) }
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine.take();
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Two sites with engines that know each other, and one service from london to tokyo.
pub struct Plane {
    pub london: Running,
    _tokyo: Running,
    pub service: ServiceId,
    pub sites: TwoSites,
}

pub fn plane(name: &str, profile: Profile) -> Plane {
    let sites = TwoSites::build(Lab::new(name).unwrap(), profile, 1).unwrap();
    let mut rng = Rng::from_seed([4; 32]);
    let now = UnixTime::from_ms(1);
    let ids: [PeerId; 2] = std::array::from_fn(|_| PeerId::mint(now, &mut rng));
    let keys = [1, 2].map(|seed| SigningKey::from_seed([seed; 32]));
    let snapshot = Arc::new(forwarding(ids, &keys, &mut rng));
    let service = *snapshot.services.keys().next().unwrap();
    let snapshot = Snapshot::new(snapshot);
    let [london_key, tokyo_key] = keys;
    let tokyo = Running::start(&sites.tokyo, ids[1], tokyo_key, &snapshot);
    let london = Running::start(&sites.london, ids[0], london_key, &snapshot);
    capture(&sites.london, london.intercept);
    // The snapshot outlives its sender.
    Plane { london, _tokyo: tokyo, service, sites }
}

fn forwarding(ids: [PeerId; 2], keys: &[SigningKey; 2], rng: &mut Rng) -> Forwarding {
    let now = UnixTime::from_ms(1);
    let path = |key: &SigningKey, host: String| PeerPath {
        public_key: key.public(),
        x25519_key: key.x25519_public(),
        endpoints: vec![Endpoint::new(&host, topology::API_PORT).unwrap()],
        data_ports: DataPorts::default(),
    };
    let peers = BTreeMap::from([
        (ids[0], path(&keys[0], LONDON_WAN.to_string())),
        (ids[1], path(&keys[1], TOKYO_WAN.to_string())),
    ]);
    let routes = ROUTED.map(|net| (None, Some(net.parse().unwrap())));
    let body = ServiceBody {
        routes: (1..)
            .zip(routes)
            .map(|(id, (source_cidr, dest_cidr))| Route {
                id,
                source_cidr,
                dest_cidr,
                priority: 100,
                version: 1,
                created_at: now,
            })
            .collect(),
        next_route_id: 3,
        ..ServiceBody::plain("servers", ids[0], ids[1], now)
    };
    let service = Service { id: ServiceId::mint(now, rng), version: 1, body };
    let forwarded = ForwardedService {
        source: ids[0],
        target: ids[1],
        transport: Transport::Tcp,
        transparent: false,
        limit_mbps: 0,
        mark: Some(1),
        routes: routes.to_vec(),
        whole_interface: false,
    };
    Forwarding::new(1, peers, BTreeMap::from([(service.id, forwarded)]), [&service])
}

/// What the firewall reconciler does, in the words of `nft`.
fn capture(host: &Host, ports: InterceptPorts) {
    let v6 = ports.v6.expect("namespaces have IPv6");
    let [net, net6] = ROUTED;
    let mark = 0x0010_0000;
    for command in [
        format!("ip rule add fwmark {mark} lookup 610 && ip route add local default dev lo table 610"),
        format!("ip -6 rule add fwmark {mark} lookup 610 && ip -6 route add local default dev lo table 610"),
        "nft add table inet arctic".to_owned(),
        "nft 'add chain inet arctic prerouting { type filter hook prerouting priority -150; }'".to_owned(),
        "nft 'add chain inet arctic output { type route hook output priority -150; }'".to_owned(),
        format!(
            "nft 'add rule inet arctic prerouting meta l4proto tcp socket transparent 1 meta mark set {mark} accept'"
        ),
        format!(
            "nft 'add rule inet arctic prerouting ip daddr {net} meta l4proto tcp tproxy ip to 127.0.0.1:{} meta mark set {mark} accept'",
            ports.v4
        ),
        format!(
            "nft 'add rule inet arctic prerouting ip6 daddr {net6} meta l4proto tcp tproxy ip6 to [::1]:{v6} meta mark set {mark} accept'"
        ),
        format!("nft 'add rule inet arctic output meta mark {OWN_MARK} accept'"),
        format!("nft 'add rule inet arctic output ip daddr {net} meta l4proto tcp meta mark set {mark}'"),
        format!("nft 'add rule inet arctic output ip6 daddr {net6} meta l4proto tcp meta mark set {mark}'"),
    ] {
        host.sh(&command).unwrap();
    }
}

/// Waits until connections to the exit stand ready, as a service has them that exists for a moment. Needs an echo at the
/// server.
pub fn warm(plane: &Plane) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while plane.london.engine().counters().engine().warm_taken == 0 {
        assert!(Instant::now() < deadline, "no connection was ready");
        let answer = plane.sites.client.run(|| {
            let mut stream = TcpStream::connect(at(SERVER, 7)).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read(&mut [0]).unwrap_or(0)
        });
        assert_eq!(answer, 1);
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A new flow that says and hears one word; where it came from.
pub fn echo_through(host: &Host, dest: SocketAddr) -> SocketAddr {
    host.run(|| {
        let mut stream = TcpStream::connect(dest).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut five = [0; 5];
        stream.read_exact(&mut five).unwrap();
        assert_eq!(&five, b"hello");
        stream.local_addr().unwrap()
    })
}
