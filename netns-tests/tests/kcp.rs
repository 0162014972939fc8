//! The kcp transport between two real agents on the real kernel, over a WAN that loses and reorders.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::bulk;
use netns_tests::cluster::{APPLIED_WITHIN, Cluster, serve_with};
use netns_tests::content::Content;
use netns_tests::lab::{Capture, Host, Lab, contains};
use netns_tests::probe::{Feature, require};
use netns_tests::service::TcpService;
use netns_tests::topology::{Profile, SERVER, SERVER_DIRECT, SERVER_NET, SERVER_NET_V6, SERVER_V6, TwoSites, at};
use netns_tests::vendor::Grant;
use netns_tests::wan::Direction;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const BULK_PORT: u16 = 5001;
const ECHO_PORT: u16 = 7;
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A flow whose ground is gone is reset within this time.
const RESET_WITHIN: Duration = Duration::from_secs(2);
/// 40 ms and 1 % each way, reordering by up to 10 ms.
const ROUGH: Profile = Profile { name: "rough", rtt: Duration::from_millis(40), loss: 0.01, rate_mbps: Some(300) };

/// A tenth of the packets is lost each way.
const LOSSY: Profile = Profile { name: "lossy", rtt: Duration::from_millis(100), loss: 0.1, rate_mbps: Some(100) };

struct World {
    cluster: Cluster,
    service: String,
    _servers: [TcpService; 2],
    sites: TwoSites,
}

impl World {
    fn new(name: &str, profile: Profile) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), profile, 1).unwrap();
        let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let servers = [
            bulk::server(&sites.server, any(BULK_PORT)).unwrap(),
            TcpService::echo(&sites.server, any(ECHO_PORT)).unwrap(),
        ];
        let service = serve_with(&cluster.operator, &["--transport", "kcp"], &[SERVER_NET, SERVER_NET_V6]).unwrap();
        let world = World { cluster, service, _servers: servers, sites };
        // The session is established by the first flow at the latest.
        world.echo(SERVER);
        world
    }

    fn echo(&self, server: IpAddr) -> Duration {
        echo(&self.sites.client, at(server, ECHO_PORT))
    }
}

/// A new connection that says and hears one word; how long that took.
fn echo(client: &Host, dest: SocketAddr) -> Duration {
    client.run(|| {
        let start = Instant::now();
        let mut stream = TcpStream::connect(dest).unwrap();
        stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        start.elapsed()
    })
}

// accepts: 001-31
#[test]
fn flows_over_kcp_arrive_exactly_and_never_in_clear() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("kcp", ROUGH);
    let (client, wan) = (&world.sites.client, world.sites.wan.as_ref().unwrap());
    wan.change(|conditions| (conditions.jitter, conditions.reorder) = (Duration::from_millis(10), true));
    let capture = Capture::start(&world.sites.london, "wan-tokyo", world.sites.lab.scratch()).unwrap();
    for server in [SERVER, SERVER_V6] {
        bulk::fetch_exactly(client, at(server, BULK_PORT), 21, 6_000_000).unwrap();
        bulk::push_exactly(client, at(server, BULK_PORT), 22, 6_000_000).unwrap();
    }
    let seen = capture.stop().unwrap();
    assert!(seen.len() > 24_000_000, "the transfers crossed the WAN as datagrams");
    for seed in [21, 22] {
        for piece in Content::bytes(seed, 6_000_000).chunks_exact(100_000) {
            assert!(!contains(&seen, &piece[..16]), "payload in clear");
        }
    }
    bulk::fetch_exactly(client, at(SERVER, BULK_PORT), 23, 30_000_000).unwrap();

    // A few hundred at once, of all sizes, both families and both ways.
    thread::scope(|scope| {
        for worker in 0..20u64 {
            scope.spawn(move || {
                for n in 0..15 {
                    let seed = 1000 + worker * 100 + n;
                    let bytes = match seed % 5 {
                        0 => 0,
                        1 => 1 + seed % 100,
                        2 => 3_000 + seed,
                        _ => 20_000 + (seed * 7919) % 120_000,
                    };
                    let server = at(if n % 3 == 0 { SERVER_V6 } else { SERVER }, BULK_PORT);
                    if bytes == 0 || n % 2 == 0 {
                        bulk::push_exactly(client, server, seed, bytes).unwrap();
                    } else {
                        bulk::fetch_exactly(client, server, seed, bytes).unwrap();
                    }
                }
            });
        }
    });
    let dropped = [Direction::AToB, Direction::BToA].map(|d| wan.counters(d).dropped_random);
    assert!(dropped.iter().all(|n| *n > 100), "the WAN lost packets: {dropped:?}");

    // A black hole of some seconds costs time and no flow; the answer to a half-closed request is heard after it.
    let late = thread::scope(|scope| {
        let transfer = scope.spawn(|| bulk::push_exactly(client, at(SERVER, BULK_PORT), 31, 3_000_000));
        thread::sleep(Duration::from_millis(200));
        wan.cut();
        thread::sleep(Duration::from_secs(3));
        wan.heal();
        transfer.join().unwrap()
    });
    late.unwrap();

    // Removed, the peer is cut off at once: an open flow is reset.
    client.run(|| {
        let mut stream = TcpStream::connect(at(SERVER, ECHO_PORT)).unwrap();
        stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        world.cluster.operator.ok(&["peers", "delete", "tokyo", "--yes"]).unwrap();
        let removed = Instant::now();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert!(removed.elapsed() < RESET_WITHIN, "it took {:?}", removed.elapsed());
    });
}

// accepts: 001-31, 002-14
#[test]
fn new_connections_over_a_lossy_path_are_quicker_than_over_tcp() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("kcpfast", LOSSY);
    // Past the service at the same time: two round trips, and what the machine adds.
    let (kcp, past) = thread::scope(|scope| {
        let past = scope.spawn(|| new_connections(&world, SERVER_DIRECT));
        (new_connections(&world, SERVER), past.join().unwrap())
    });
    world.cluster.operator.ok(&["services", "update", &world.service, "--transport", "tcp"]).unwrap();
    let deadline = Instant::now() + APPLIED_WITHIN;
    while world.sites.london.sh("ss -Htn state established dport = :61000").unwrap().lines().count() < 2 {
        assert!(Instant::now() < deadline, "no connections of the tcp transport stand ready");
        thread::sleep(Duration::from_millis(50));
    }
    let tcp = new_connections(&world, SERVER);
    let at = |all: &[Duration], part: f64| all[(all.len() as f64 * part) as usize];
    eprintln!(
        "new connection, p50 and p90: kcp {:?} {:?}, tcp {:?} {:?}, past the service {:?}",
        at(&kcp, 0.5),
        at(&kcp, 0.9),
        at(&tcp, 0.5),
        at(&tcp, 0.9),
        at(&past, 0.5)
    );
    let of_machine = 2 * at(&past, 0.5).saturating_sub(2 * LOSSY.rtt);
    assert!(at(&kcp, 0.5) < LOSSY.rtt.mul_f64(1.2) + of_machine, "one round trip: {:?}", at(&kcp, 0.5));
    assert!(at(&kcp, 0.9).mul_f64(1.5) < at(&tcp, 0.9), "{:?} against {:?}", at(&kcp, 0.9), at(&tcp, 0.9));
}

/// How long new connections took from connect to answer, shortest first.
fn new_connections(world: &World, server: IpAddr) -> Vec<Duration> {
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let workers: Vec<_> = (0..6).map(|_| scope.spawn(|| [(); 12].map(|()| world.echo(server)))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    took.sort();
    took
}
