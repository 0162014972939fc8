//! The IP tunnel on the real kernel against whoever has recorded it, across a restart, and when a host moves
//! (dataplane.md §3; `tunnel_replay_and_roaming` of the simulation plan).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netns_tests::agent::{Agent, AgentSettings};
use netns_tests::cluster::{Cluster, serve_through_tokyo, wait_for_route};
use netns_tests::datagram::{DatagramService, UdpPacket, packet_sender};
use netns_tests::lab::{Capture, Host, Lab, ipv4_packets};
use netns_tests::probe::require;
use netns_tests::topology::{Profile, SERVER, SERVER_NET, TwoSites, at};
use netns_tests::vendor::Grant;
use netns_tests::world::{DNS, PATIENCE, PRODUCT, SHORT, wait};

const TUNNEL_PORT: u16 = 51840;
const QUESTIONS: u32 = 300;
/// How often everything is played again, before the restart and after it.
const ROUNDS: u32 = 20;
/// A peer that moved is heard with its next packet.
const MOVED_WITHIN: Duration = Duration::from_secs(3);

type Counts = Arc<Mutex<BTreeMap<u32, u32>>>;

/// A client that asks a server by numbered datagrams; how often each number came to the server, and back to the client.
struct Talk {
    client: UdpSocket,
    asked: Counts,
    answered: BTreeMap<u32, u32>,
    next: u32,
    _server: DatagramService,
}

impl Talk {
    fn new(sites: &TwoSites) -> Talk {
        let asked = Counts::default();
        let counts = asked.clone();
        let server = DatagramService::answering(&sites.server, at(SERVER, DNS), move |question, _| {
            *counts.lock().unwrap().entry(number(question)).or_default() += 1;
            Some(question.to_vec())
        });
        let client = sites.client.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        client.set_read_timeout(Some(SHORT)).unwrap();
        Talk { client, asked, answered: BTreeMap::new(), next: 0, _server: server.unwrap() }
    }

    /// Asks once; whether this very question was answered.
    fn ask(&mut self) -> bool {
        self.next += 1;
        self.client.send_to(&self.next.to_be_bytes(), at(SERVER, DNS)).unwrap();
        while self.listen() {
            if self.answered.contains_key(&self.next) {
                return true;
            }
        }
        false
    }

    fn listen(&mut self) -> bool {
        let mut answer = [0; 64];
        let Ok(n) = self.client.recv(&mut answer) else { return false };
        *self.answered.entry(number(&answer[..n])).or_default() += 1;
        true
    }

    #[track_caller]
    fn ask_until_answered(&mut self, within: Duration) -> Duration {
        let started = Instant::now();
        while !self.ask() {
            assert!(started.elapsed() < within, "no answer in {within:?}");
        }
        started.elapsed()
    }

    #[track_caller]
    fn nothing_came_twice(&mut self) {
        while self.listen() {}
        let asked = self.asked.lock().unwrap();
        let twice = |counts: &BTreeMap<u32, u32>| counts.iter().filter(|(_, n)| **n > 1).count();
        assert_eq!((twice(&asked), twice(&self.answered)), (0, 0), "of {} and {}", asked.len(), self.answered.len());
    }
}

fn number(datagram: &[u8]) -> u32 {
    u32::from_be_bytes(datagram.try_into().unwrap())
}

/// Someone on the way who has recorded everything: he plays it again as it was, and from an address of his own.
struct Thief<'a> {
    sites: &'a TwoSites,
    recorded: Vec<UdpPacket>,
    own: UdpSocket,
}

impl Thief<'_> {
    fn play(&self) {
        let [at_london, at_tokyo] = [&self.sites.london, &self.sites.tokyo].map(|host| packet_sender(host).unwrap());
        for packet in &self.recorded {
            let as_it_was = if is_to_tokyo(packet) { &at_london } else { &at_tokyo };
            packet.send_again(as_it_was).unwrap();
            if is_to_tokyo(packet) {
                self.own.send_to(packet.payload(), packet.dest()).unwrap();
            }
        }
    }

    /// What was sent to his own address.
    fn heard(&self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| self.own.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())).collect()
    }
}

fn is_to_tokyo(packet: &UdpPacket) -> bool {
    packet.dest().ip() == netns_tests::topology::TOKYO_WAN
}

/// Datagrams that sockets of a host were given, and have taken.
fn met(host: &Host) -> u64 {
    let counters = host.sh("cat /proc/net/snmp").unwrap();
    // Names, then numbers.
    let line = counters.lines().filter(|line| line.starts_with("Udp: ")).nth(1).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

// accepts: 001-13
#[test]
fn recorded_datagrams_deliver_nothing_across_a_restart_and_a_host_that_moves_is_heard_at_once() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = TwoSites::build(Lab::new("replay").unwrap(), Profile::CLEAN, 1).unwrap();
    let Cluster { london: _london, tokyo, operator } = Cluster::form(&sites, &Grant::default()).unwrap();
    let scratch = sites.lab.scratch();
    let capture = Capture::start(&sites.london, "to-tokyo", scratch).unwrap();
    serve_through_tokyo(&operator, &[SERVER_NET]).unwrap();
    wait_for_route(&sites.london, SERVER_NET).unwrap();
    let mut talk = Talk::new(&sites);
    talk.ask_until_answered(PATIENCE);
    for _ in 0..QUESTIONS {
        assert!(talk.ask());
    }
    let capture = capture.stop().unwrap();
    let of_tunnel = |p: &UdpPacket| p.source().port() == TUNNEL_PORT && p.dest().port() == TUNNEL_PORT;
    let udp = ipv4_packets(&capture).into_iter().filter_map(UdpPacket::parse);
    let recorded: Vec<_> = udp.filter(of_tunnel).collect();
    let to_tokyo = recorded.iter().filter(|p| is_to_tokyo(p)).count() as u64;
    assert!(to_tokyo > u64::from(QUESTIONS) && recorded.len() as u64 - to_tokyo > u64::from(QUESTIONS));

    let own = sites.london.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    own.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let thief = Thief { sites: &sites, recorded, own };
    // The agents have read all of them.
    let play = || {
        let before = [met(&sites.london), met(&sites.tokyo)];
        let all = [thief.recorded.len() as u64 - to_tokyo, 2 * to_tokyo];
        thief.play();
        wait("all were met", PATIENCE, || {
            let met = [met(&sites.london) - before[0], met(&sites.tokyo) - before[1]];
            anyhow::ensure!(met.iter().zip(all).all(|(met, all)| *met >= all), "{met:?} of {all:?}");
            Ok(())
        });
    };
    for _ in 0..ROUNDS {
        play();
    }
    assert_eq!(thief.heard(), Vec::<Vec<u8>>::new(), "whoever is no peer gets no answer");
    assert!(talk.ask(), "the tunnel carries on");
    talk.nothing_came_twice();

    assert!(tokyo.stop().unwrap().success());
    let _tokyo = Agent::start(&sites.tokyo, AgentSettings::new(scratch, "tokyo")).unwrap();
    let took = talk.ask_until_answered(PATIENCE);
    println!("answered {took:?} after the restart");
    for _ in 0..ROUNDS {
        play();
    }
    let heard = thief.heard();
    assert!(heard.iter().all(|datagram| datagram[0] != 4 && datagram.len() <= 148), "{heard:?}");
    talk.ask_until_answered(PATIENCE);
    talk.nothing_came_twice();
    println!("{} datagrams played again", 2 * ROUNDS as usize * (thief.recorded.len() + to_tokyo as usize));

    // london loses its address and has another: its next packet goes out by that, and tokyo answers there.
    sites.london.ip("address add 10.71.4.1/24 dev to-tokyo").unwrap();
    sites.tokyo.ip("address add 10.71.4.2/24 dev to-london").unwrap();
    sites.london.ip("address del 10.71.0.1/30 dev to-tokyo").unwrap();
    sites.london.ip("route replace 10.71.0.2/32 dev to-tokyo src 10.71.4.1").unwrap();
    let took = talk.ask_until_answered(MOVED_WITHIN);
    println!("answered {took:?} after the move");
    thief.play();
    talk.ask_until_answered(MOVED_WITHIN);
    talk.nothing_came_twice();
}
