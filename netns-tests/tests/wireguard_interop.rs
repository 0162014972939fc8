//! The tunnel speaks WireGuard: with a stock implementation at the other end, whoever begins (dataplane.md §3).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arctic::dataplane::Engine;
use arctic::env::{EngineSetup, RunningEngines, TunnelState};
use arctic::kernel::{Capture, Intercept, Kernel, LIVENESS_REFRESH, PolicyRouting, Ruleset, Tunnel};
use arctic::model::{
    DataPorts, Endpoint, PeerId, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, Transport, UnixTime,
    X25519Public,
};
use arctic::os::LinuxKernel;
use arctic::routing::{ForwardedService, Forwarding, PeerPath};
use netns_tests::datagram::{DatagramService, ask_udp};
use netns_tests::lab::{Host, Lab, Process};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::at;
use tokio::sync::{oneshot, watch};

const NEAR_WAN: &str = "10.71.0.1";
const STOCK_WAN: &str = "10.71.0.2";
/// Behind the engine, and behind the stock implementation.
const NEAR: [&str; 2] = ["10.87.0.1", "fd87::1"];
const STOCK: [&str; 2] = ["10.88.0.2", "fd88::2"];
const NEAR_NETS: [&str; 2] = ["10.87.0.0/24", "fd87::/64"];
const STOCK_NETS: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];
const OWN_MARK: u32 = 0xfff0_0000;
const STARTED_WITHIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

type Snapshot = watch::Sender<Arc<Forwarding>>;

/// `wireguard-go` with one peer, the engine; ends on drop.
struct Stock {
    _process: Process,
    key: X25519Public,
    name: String,
}

impl Stock {
    /// Its control socket is the machine's, whatever the namespace; so the process's number is part of the name.
    fn start(host: &Host, lab: &Lab, number: u32, engine: X25519Public, endpoint: Option<&str>) -> Stock {
        let name = format!("wg{}-{number}", std::process::id());
        let private = lab.scratch().join(format!("{name}.key"));
        let key = host.sh(&format!("umask 077; wg genkey > {0}; wg pubkey < {0}", private.display())).unwrap();
        let mut command = host.command("wireguard-go");
        command.args(["-f", &name]).env("LOG_LEVEL", "error");
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let process = host.spawn(command).unwrap();
        let deadline = Instant::now() + STARTED_WITHIN;
        while host.sh(&format!("wg show {name}")).is_err() {
            assert!(Instant::now() < deadline, "wireguard-go did not start");
            std::thread::sleep(POLL_INTERVAL);
        }
        let engine = serde_json::to_value(engine).unwrap();
        let endpoint = endpoint.map(|e| format!("endpoint {e}:51840")).unwrap_or_default();
        host.sh(&format!(
            "set -e
             wg set {name} private-key {} listen-port 51840 peer {} allowed-ips 0.0.0.0/0,::/0 {endpoint}
             ip address add {}/24 dev {name}; ip -6 address add {}/64 dev {name} nodad; ip link set {name} up mtu 1420
             ip route add {} dev {name}; ip -6 route add {} dev {name}",
            private.display(),
            engine.as_str().unwrap(),
            STOCK[0],
            STOCK[1],
            NEAR_NETS[0],
            NEAR_NETS[1],
        ))
        .unwrap();
        Stock { _process: process, key: key.trim().parse().unwrap(), name }
    }

    fn handshakes(&self, host: &Host) -> bool {
        let told = host.sh(&format!("wg show {} latest-handshakes", self.name)).unwrap();
        told.split_whitespace().last().is_some_and(|at| at != "0")
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // Whoever is killed leaves it.
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
    }
}

struct Near {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Near {
    /// The engine with the rules that its reconcilers would write.
    fn start(host: &Host, id: PeerId, key: SigningKey, service: ServiceId, snapshot: &Snapshot) -> Near {
        let (forwarding, (stop, mut stopped)) = (snapshot.subscribe(), oneshot::channel::<()>());
        let thread = host.thread(move || {
            // One thread: only it is in the namespace.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (ports, forbidden_ports) = (DataPorts::default(), vec![8080]);
                let setup = EngineSetup { local: id, key, ports, own_mark: OWN_MARK, forbidden_ports };
                let engine = Engine::start(setup, forwarding).await.unwrap();
                let kernel = LinuxKernel::open().unwrap();
                let mut tunnel = engine.tunnel();
                let ready = tunnel.wait_for(|t| matches!(t, TunnelState::Ready { .. })).await.unwrap().clone();
                let TunnelState::Ready { device, index } = ready else { unreachable!() };
                let intercept = engine.intercept_ports();
                let captures = STOCK_NETS.map(|net| Capture {
                    service,
                    route: Some(1),
                    source: None,
                    dest: Some(net.parse().unwrap()),
                    interface: None,
                    mark: 1,
                });
                let ruleset = Ruleset {
                    intercept: Intercept {
                        v4: Some(format!("127.0.0.1:{}", intercept.v4).parse().unwrap()),
                        v6: intercept.v6.map(|port| format!("[::1]:{port}").parse().unwrap()),
                    },
                    captures: captures.into(),
                    tunnel: Some(Tunnel { device, index }),
                    ..Ruleset::default()
                };
                kernel.set_policy(&PolicyRouting::needed_by(&ruleset)).await.unwrap();
                kernel.replace_tables(&ruleset).await.unwrap();
                let mut refresh = tokio::time::interval(LIVENESS_REFRESH);
                loop {
                    tokio::select! {
                        biased;
                        _ = &mut stopped => break,
                        _ = refresh.tick() => kernel.feed_liveness().await.unwrap(),
                    }
                }
                engine.shutdown().await;
            });
        });
        Near { stop: Some(stop), thread: Some(thread.unwrap()) }
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// The engine's view: one peer with this key, reached there, and a service each way.
fn forwarding(
    ids: [PeerId; 2],
    key: X25519Public,
    endpoint: &str,
    services: &[ServiceId; 2],
    revision: u64,
) -> Forwarding {
    let now = UnixTime::from_ms(1);
    let path = PeerPath {
        public_key: SigningKey::from_seed([9; 32]).public(),
        x25519_key: key,
        endpoints: vec![Endpoint::new(endpoint, 8080).unwrap()],
        data_ports: DataPorts::default(),
    };
    let forwarded = |source, target, nets: [&str; 2]| ForwardedService {
        source,
        target,
        transport: Transport::Tcp,
        transparent: false,
        limit_mbps: 0,
        mark: Some(1),
        routes: nets.map(|net| (None, Some(net.parse().unwrap()))).into(),
        whole_interface: false,
    };
    let routes = (1..).zip(STOCK_NETS).map(|(id, net)| Route {
        id,
        source_cidr: None,
        dest_cidr: Some(net.parse().unwrap()),
        priority: 100,
        version: 1,
        created_at: now,
    });
    let body = ServiceBody { routes: routes.collect(), ..ServiceBody::plain("out", ids[0], ids[1], now) };
    let outgoing = Service { id: services[0], version: 1, body };
    let all = BTreeMap::from([
        (services[0], forwarded(ids[0], ids[1], STOCK_NETS)),
        (services[1], forwarded(ids[1], ids[0], NEAR_NETS)),
    ]);
    Forwarding::new(revision, BTreeMap::from([(ids[1], path)]), all, [&outgoing])
}

fn ping(host: &Host, from: &str, to: &str) {
    host.sh(&format!("ping -c 3 -i 0.2 -W 5 -I {from} {to}")).unwrap();
}

/// Both ways, both families, ICMP and UDP.
fn everything_crosses(near: &Host, stock: &Host) {
    for family in [0, 1] {
        ping(stock, STOCK[family], NEAR[family]);
        ping(near, NEAR[family], STOCK[family]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let text = [7; 4000];
        ask_udp(stock, at(ip(NEAR[family]), 53), &text, PATIENCE).unwrap();
    }
}

// accepts: 001-13
#[test]
fn a_stock_wireguard_is_understood_as_initiator_and_as_responder() {
    if !require(&[Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket]) {
        return;
    }
    let mut lab = Lab::new("interop").unwrap();
    let (near, stock) = (lab.host("near").unwrap(), lab.host("stock").unwrap());
    near.sh("command -v wireguard-go && command -v wg").expect("wireguard-go and wg: run scripts/setup");
    lab.veth(&near, &stock, &[&format!("{NEAR_WAN}/30")], &[&format!("{STOCK_WAN}/30")]).unwrap();
    near.ip(&format!("address add {}/32 dev lo", NEAR[0])).unwrap();
    near.ip(&format!("address add {}/128 dev lo nodad", NEAR[1])).unwrap();
    // Packets need a way before rules may give them another.
    near.route("default", STOCK_WAN).unwrap();
    near.ip(&format!("-6 route add default dev to-{stock}")).unwrap();
    near.forward().unwrap();
    let _mirrors = NEAR.map(|ip| DatagramService::udp_mirror(&near, at(ip.parse().unwrap(), 53)).unwrap());

    let mut rng = Rng::from_seed([4; 32]);
    let now = UnixTime::from_ms(1);
    let ids: [PeerId; 2] = std::array::from_fn(|_| PeerId::mint(now, &mut rng));
    let services: [ServiceId; 2] = std::array::from_fn(|_| ServiceId::mint(now, &mut rng));
    let key = SigningKey::from_seed([1; 32]);
    let own = key.x25519_public();

    // The engine knows no address of the other end: that one has to begin.
    let first = Stock::start(&stock, &lab, 1, own, Some(NEAR_WAN));
    let snapshot = Snapshot::new(Arc::new(forwarding(ids, first.key, "127.0.0.1", &services, 1)));
    let _near = Near::start(&near, ids[0], key, services[0], &snapshot);
    let deadline = Instant::now() + STARTED_WITHIN;
    while near.sh(&format!("nft list table inet arctic_iptun | grep -q {}", STOCK_NETS[0])).is_err() {
        assert!(Instant::now() < deadline, "the rules are there");
        std::thread::sleep(POLL_INTERVAL);
    }
    everything_crosses(&near, &stock);
    assert!(first.handshakes(&stock));
    drop(first);

    // The other end, with a new key, knows no address of the engine: that one has to begin.
    let second = Stock::start(&stock, &lab, 2, own, None);
    assert!(!second.handshakes(&stock));
    snapshot.send_replace(Arc::new(forwarding(ids, second.key, STOCK_WAN, &services, 2)));
    ping(&near, NEAR[0], STOCK[0]);
    everything_crosses(&near, &stock);
    assert!(second.handshakes(&stock));
}
