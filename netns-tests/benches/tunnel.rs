//! Datagrams from a client to a server over a plain veth pair (figure F10): direct, through the IP tunnel of two agents,
//! and through wireguard-go at both ends.
//!
//! `cargo bench -p netns-tests --bench tunnel`. The goal is 1.1 times wireguard-go. On few cores all of them share the
//! processors with sender and receiver.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::cluster::{Cluster, serve_through_tokyo};
use netns_tests::datagram::{DatagramService, Streamed, ask_udp, stream};
use netns_tests::lab::{Host, Lab, Process};
use netns_tests::topology::{
    LONDON_WAN, Profile, SERVER, SERVER_DIRECT, SERVER_NET, TOKYO_LAN, TOKYO_WAN, TwoSites, at,
};
use netns_tests::vendor::Grant;

const PORT: u16 = 5001;
const MIRROR: u16 = 53;
const DATAGRAM_BYTES: u16 = 1200;
/// How a sender gives datagrams to its kernel: one by one, or many at once as QUIC servers do.
const TRAINS: [u16; 2] = [1, 32];
const WINDOW: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;
const STARTED_WITHIN: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const GOAL_FACTOR: f64 = 1.1;

struct Way<'a> {
    name: &'a str,
    sites: &'a TwoSites,
    sink: DatagramService,
    to: IpAddr,
}

impl<'a> Way<'a> {
    fn new(name: &'a str, sites: &'a TwoSites, to: IpAddr) -> Result<Self> {
        Ok(Way { name, sites, sink: DatagramService::udp_sink(&sites.server, at(to, PORT))?, to })
    }

    fn measure(&self, train: u16) -> Result<Streamed> {
        stream(&self.sites.client, &self.sink, at(self.to, PORT), DATAGRAM_BYTES, train, WINDOW)
    }
}

fn main() -> Result<()> {
    let ours = TwoSites::build(Lab::new("tunnel-speed")?, Profile::CLEAN, 1)?;
    let theirs = TwoSites::build(Lab::new("stock-speed")?, Profile::CLEAN, 1)?;
    let cluster = Cluster::form(&ours, &Grant::default())?;
    let _mirrors = [mirror(&ours)?, mirror(&theirs)?];
    serve_through_tokyo(&cluster.operator, &[SERVER_NET])?;
    let _stock = connect_stock(&theirs)?;
    [&ours, &theirs].into_iter().try_for_each(wait_until_tunnelled)?;

    let ways = [
        Way::new("direct", &ours, SERVER_DIRECT)?,
        Way::new("arctic", &ours, SERVER)?,
        Way::new("wireguard-go", &theirs, SERVER)?,
    ];
    let mut is_met = true;
    for train in TRAINS {
        println!("{DATAGRAM_BYTES}-byte datagrams, {train} with each call; median of {ROUNDS} times {WINDOW:?}");
        // In turns, so that what else the machine does is spread over all.
        let mut seen: [Vec<Streamed>; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (way, seen) in ways.iter().zip(&mut seen) {
                seen.push(way.measure(train)?);
            }
        }
        let medians = seen.map(|mut runs| {
            runs.sort_by(|a, b| a.mbps.total_cmp(&b.mbps));
            runs[ROUNDS / 2]
        });
        for (way, found) in ways.iter().zip(medians) {
            println!("{:<14} {:>8.0} Mbit/s {:>6.1} % lost", way.name, found.mbps, found.lost_percent);
        }
        let factor = medians[1].mbps / medians[2].mbps;
        println!("arctic / wireguard-go: {factor:.2} (goal >= {GOAL_FACTOR})");
        is_met &= factor >= GOAL_FACTOR;
    }
    ensure!(is_met, "less than {GOAL_FACTOR} times wireguard-go");
    Ok(())
}

fn mirror(sites: &TwoSites) -> Result<DatagramService> {
    DatagramService::udp_mirror(&sites.server, at(SERVER, MIRROR))
}

fn wait_until_tunnelled(sites: &TwoSites) -> Result<()> {
    let began = Instant::now();
    while !ask_udp(&sites.client, at(SERVER, MIRROR), b"?", POLL_INTERVAL).is_ok_and(|seen| seen == TOKYO_LAN) {
        ensure!(began.elapsed() < STARTED_WITHIN, "no tunnel within {STARTED_WITHIN:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The same way with stock means: wireguard-go on both sides, masquerade at the far one.
fn connect_stock(sites: &TwoSites) -> Result<[Process; 2]> {
    let near = Stock::start(&sites.london, sites, "10.90.0.1/24")?;
    let far = Stock::start(&sites.tokyo, sites, "10.90.0.2/24")?;
    near.meet(&far.key, TOKYO_WAN, &format!("10.90.0.2/32,{SERVER_NET}"))?;
    far.meet(&near.key, LONDON_WAN, "0.0.0.0/0")?;
    sites.london.route(SERVER_NET, "10.90.0.2")?;
    sites.tokyo.sh("nft 'add table ip stock; add chain ip stock out { type nat hook postrouting priority srcnat; };
         add rule ip stock out oifname \"to-server\" masquerade'")?;
    Ok([near.process, far.process])
}

struct Stock {
    host: Host,
    /// Its control socket has no namespace: each needs a name of its own.
    device: String,
    process: Process,
    key: String,
}

impl Stock {
    fn start(host: &Host, sites: &TwoSites, address: &str) -> Result<Stock> {
        let file = sites.lab.scratch().join(format!("{host}.key"));
        let key = host.sh(&format!("umask 077; wg genkey > {0}; wg pubkey < {0}", file.display()))?;
        let device = format!("wg-{host}");
        let mut command = host.command("wireguard-go");
        command.args(["-f", &device]).env("LOG_LEVEL", "error");
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let process = host.spawn(command)?;
        let began = Instant::now();
        while host.sh(&format!("wg show {device}")).is_err() {
            ensure!(began.elapsed() < STARTED_WITHIN, "wireguard-go did not start");
            std::thread::sleep(POLL_INTERVAL);
        }
        host.sh(&format!(
            "set -e; wg set {device} private-key {} listen-port 51999
             ip address add {address} dev {device}; ip link set {device} up mtu 1420",
            file.display()
        ))
        .context("setting wireguard-go up")?;
        Ok(Stock { host: host.clone(), device, process, key: key.trim().to_owned() })
    }

    fn meet(&self, key: &str, at: IpAddr, allowed: &str) -> Result<()> {
        let Stock { host, device, .. } = self;
        host.sh(&format!("wg set {device} peer {key} endpoint {at}:51999 allowed-ips {allowed}")).map(drop)
    }
}
