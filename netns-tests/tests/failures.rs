//! What goes wrong between and in the hosts, and what flows see of it (dataplane.md §10).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::agent::{Agent, AgentSettings, Cli};
use netns_tests::bulk;
use netns_tests::cluster::{Cluster, wait_for_route};
use netns_tests::datagram::ask_udp;
use netns_tests::lab::Host;
use netns_tests::probe::require;
use netns_tests::service::{seen_from, seen_from_within};
use netns_tests::topology::{API_PORT, CLIENT, Profile, SERVER, SERVER_DIRECT, SERVER_DIRECT_V6, SERVER_V6, at};
use netns_tests::wan::Direction;
use netns_tests::world::{
    ANSWERED, BULK_PORT, DNS, ECHO_PORT, MIRROR_PORT, PATIENCE, PRODUCT, SHORT, World, connections, exit_towards,
    is_carried, is_plain, wait, wait_for_metric,
};
use rustix::process::Signal;

const SERVERS: [IpAddr; 4] = [SERVER, SERVER_V6, SERVER_DIRECT, SERVER_DIRECT_V6];
const QUICK: Profile = Profile { name: "quick", rtt: Duration::from_millis(20), loss: 0.0, rate_mbps: Some(200) };
/// What every IPv6 path carries; the packets of the WAN are of both families.
const NARROW_MTU_BYTES: usize = 1280;
/// Of some thousands: transfers are on their way.
const BEGUN_PACKETS: u64 = 500;
/// 2 MB both ways: half a second, or many where the machine does something else. What stays in a black hole never ends.
const SMALL_WITHIN: Duration = Duration::from_secs(15);
/// dataplane.md §10.
const FALL_BACK_WITHIN: Duration = Duration::from_secs(10);
/// How long a look at who answers lasts, before the next one.
const LOOK: Duration = Duration::from_millis(200);
/// A flow whose ground is gone is reset within this time.
const RESET_WITHIN: Duration = Duration::from_secs(5);
/// Nobody answers: the exit gives up a server after 10 s, the source its exit after 20 s.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(25);

fn is_long() -> bool {
    std::env::var_os("NETNS_LONG").is_some_and(|value| value == "1")
}

fn dial(host: &Host, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = host.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(GIVEN_UP_WITHIN))?;
    Ok(stream)
}

fn open(host: &Host, to: SocketAddr) -> TcpStream {
    dial(host, to).unwrap()
}

fn echo(flow: &mut TcpStream) -> std::io::Result<()> {
    flow.write_all(b"x")?;
    flow.read_exact(&mut [0])
}

/// A flow to each of the server's addresses, in use.
fn flows(host: &Host) -> Vec<TcpStream> {
    let open = |ip| {
        let mut flow = open(host, at(ip, ECHO_PORT));
        echo(&mut flow).unwrap();
        flow
    };
    SERVERS.map(open).into()
}

/// How a new flow ends that says nothing, and when.
fn end_of(host: &Host, to: SocketAddr) -> (ErrorKind, Duration) {
    let started = Instant::now();
    // Perhaps before the client has seen that it was open.
    let ended = dial(host, to).and_then(|mut flow| flow.read(&mut [0])).expect_err("it does not end in order");
    (ended.kind(), started.elapsed())
}

#[test]
fn a_path_that_swallows_large_packets_without_a_word_carries_every_plane() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("blackhole", QUICK);
    let (client, wan) = (&world.sites.client, world.sites.wan.as_ref().unwrap());
    world.wait_until_carried(PATIENCE);
    // From some moment on, under transfers both ways and by both transports.
    thread::scope(|scope| {
        let transfers: Vec<_> = (70..)
            .zip([SERVER, SERVER_DIRECT])
            .flat_map(|(seed, server)| {
                let to = at(server, BULK_PORT);
                let fetch = scope.spawn(move || bulk::fetch_exactly(client, to, seed, 6_000_000));
                let push = scope.spawn(move || bulk::push_exactly(client, to, seed, 6_000_000));
                [fetch, push]
            })
            .collect();
        while [Direction::AToB, Direction::BToA].iter().any(|d| wan.counters(*d).delivered < BEGUN_PACKETS) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(transfers.iter().any(|transfer| !transfer.is_finished()), "the path changes in the middle");
        wan.change(|conditions| conditions.mtu_bytes = Some(NARROW_MTU_BYTES));
        transfers.into_iter().for_each(|transfer| transfer.join().unwrap().unwrap());
    });
    let too_big = || [Direction::AToB, Direction::BToA].map(|d| wan.counters(d).dropped_too_big);
    println!("packets too big for the path: {:?}", too_big());
    assert!(too_big().iter().all(|n| *n > 0), "kcp was wide before");
    // And for those who come later, operators and agents as well.
    for (seed, server) in (80..).zip(SERVERS) {
        let started = Instant::now();
        bulk::fetch_exactly(client, at(server, BULK_PORT), seed, 2_000_000).unwrap();
        bulk::push_exactly(client, at(server, BULK_PORT), seed, 2_000_000).unwrap();
        println!("2 MB both ways to {server} in {:?}", started.elapsed());
        assert!(started.elapsed() < SMALL_WITHIN);
        let asked = ask_udp(client, at(server, DNS), &[7; 1000], ANSWERED).unwrap();
        assert_eq!(asked, exit_towards(server));
    }
    let list: Vec<serde_json::Value> =
        world.cluster.operator.json(&["services", "list", "--url", &format!("http://10.71.0.2:{API_PORT}")]).unwrap();
    assert_eq!(list.len(), 2);
}

#[test]
fn the_traffic_of_a_frozen_agents_host_falls_back_and_comes_again() {
    if !require(&PRODUCT) {
        return;
    }
    let mut world = World::new("frozen", Profile::CLEAN);
    world.wait_until_carried(PATIENCE);
    let mut old = flows(&world.sites.client);
    world.cluster.london.process().signal(Signal::STOP).unwrap();
    let frozen = Instant::now();
    // One element of the rules decides about all: the time is that of the first answer, and the others follow at once.
    let took = wait("plain routing", FALL_BACK_WITHIN, || {
        let seen = seen_from_within(&world.sites.client, at(SERVER, MIRROR_PORT), LOOK)?;
        ensure!(seen == CLIENT, "{seen}");
        Ok(())
    });
    println!("plain routing {took:?} after the agent froze");
    is_plain(&world.sites.client, ANSWERED).unwrap();
    let seen = seen_from(&world.sites.london, at(SERVER, MIRROR_PORT)).unwrap();
    assert_ne!(seen, exit_towards(SERVER));
    let length = if is_long() { Duration::from_secs(60) } else { Duration::from_secs(11) };
    while frozen.elapsed() < length {
        is_plain(&world.sites.client, ANSWERED).unwrap();
        thread::sleep(Duration::from_millis(200));
    }
    world.cluster.london.process().signal(Signal::CONT).unwrap();
    let took = world.wait_until_carried(PATIENCE);
    println!("carried again {took:?} after it went on");
    // Flows that it carried before wait for it.
    old.iter_mut().for_each(|flow| echo(flow).unwrap());
}

#[test]
fn what_the_exit_cannot_reach_is_reset_and_counted_and_a_silent_wan_gives_up() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::prepared("refusing", QUICK, |sites| {
        sites.tokyo.ip("route add unreachable 10.71.2.77/32").unwrap();
        sites.server.sh("nft add table inet deaf").unwrap();
        sites.server.sh("nft 'add chain inet deaf input { type filter hook input priority 0; }'").unwrap();
        sites.server.sh("nft add rule inet deaf input tcp dport 9 drop").unwrap();
    });
    let (client, london, wan) = (&world.sites.client, &world.sites.london, world.sites.wan.as_ref().unwrap());
    world.wait_until_carried(PATIENCE);
    for (to, reason) in [
        (at(SERVER, 8), "exit_connection_refused"),
        (at(SERVER_DIRECT, 8), "exit_connection_refused"),
        (at("10.71.2.77".parse().unwrap(), 8), "exit_unreachable"),
    ] {
        let before = connections(london, reason);
        let (kind, took) = end_of(client, to);
        assert_eq!(kind, ErrorKind::ConnectionReset, "{to}");
        assert!(took < RESET_WITHIN, "{to}: {took:?}");
        wait_for_metric(reason, before + 1, || connections(london, reason));
    }
    let mut old = flows(client);
    thread::scope(|scope| {
        let silent = [SERVER, SERVER_DIRECT].map(|server| scope.spawn(move || end_of(client, at(server, 9))));
        for ended in silent {
            let (kind, took) = ended.join().unwrap();
            assert_eq!(kind, ErrorKind::ConnectionReset);
            assert!((9..13).contains(&took.as_secs()), "{took:?}");
        }
    });
    wait_for_metric("given up", 2, || connections(london, "exit_connection_timed_out"));

    // Nothing crosses any more. What is new is not sent around the exit, and is told when nobody answers.
    wan.cut();
    let new = thread::scope(|scope| {
        let new = [SERVER, SERVER_DIRECT].map(|server| scope.spawn(move || end_of(client, at(server, ECHO_PORT))));
        thread::sleep(Duration::from_secs(1));
        assert!(ask_udp(client, at(SERVER, DNS), b"who asks", SHORT).is_err());
        new.map(|ended| ended.join().unwrap())
    });
    wan.heal();
    for (kind, took) in new {
        println!("given up after {took:?}");
        assert_eq!(kind, ErrorKind::ConnectionReset);
        assert!(took < GIVEN_UP_WITHIN, "{took:?}");
    }
    let took = world.wait_until_carried(PATIENCE);
    println!("carried again {took:?} after the WAN came back");
    // Flows that were open have only waited.
    old.iter_mut().for_each(|flow| echo(flow).unwrap());
}

#[test]
fn a_dead_target_resets_its_flows_and_nothing_goes_around_it() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("dead", Profile::CLEAN);
    world.wait_until_carried(PATIENCE);
    let mut old = flows(&world.sites.client);
    let (by_tcp, by_kcp) = old.split_at_mut(2);
    let World { sites, cluster: Cluster { london: _london, tokyo, operator: _operator }, .. } = world;
    let client = &sites.client;
    let killed = Instant::now();
    tokyo.kill().unwrap();
    for flow in by_tcp {
        assert_eq!(flow.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert!(killed.elapsed() < RESET_WITHIN, "it took {:?}", killed.elapsed());
    let (kind, took) = end_of(client, at(SERVER, ECHO_PORT));
    assert_eq!(kind, ErrorKind::ConnectionReset);
    assert!(took < RESET_WITHIN, "it took {took:?}");
    wait_for_metric("no target", 1, || connections(&sites.london, "target_unreachable"));
    let asked = ask_udp(client, at(SERVER, DNS), b"who asks", SHORT);
    assert!(asked.is_err(), "{asked:?}");
    thread::scope(|scope| {
        // A session tells of its end only when the exit is back; what had not begun begins then.
        let waiting = scope.spawn(|| echo(&mut open(client, at(SERVER_DIRECT, ECHO_PORT))));
        thread::sleep(Duration::from_secs(1));
        let _tokyo = Agent::start(&sites.tokyo, AgentSettings::new(sites.lab.scratch(), "tokyo")).unwrap();
        waiting.join().unwrap().unwrap();
        for flow in by_kcp {
            assert_eq!(flow.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        let took = wait("everything is carried again", PATIENCE, || is_carried(client));
        println!("carried again {took:?} after the exit came back");
    });
}

/// Flows of an agent in the client's host, by way of london's host but not of its agent.
fn load(client: &Host, server: SocketAddr, stop: &AtomicBool) -> Result<(u64, u64)> {
    thread::scope(|scope| {
        let bulk = scope.spawn(|| {
            let mut transfers = 0;
            while !stop.load(Ordering::Relaxed) {
                bulk::fetch_exactly(client, at(server.ip(), BULK_PORT), transfers, 3_000_000)?;
                transfers += 1;
            }
            Ok(transfers)
        });
        let (mut flow, mut echoes) = (open(client, server), 0);
        while !stop.load(Ordering::Relaxed) {
            echo(&mut flow)?;
            echoes += 1;
            thread::sleep(Duration::from_millis(20));
        }
        bulk.join().unwrap().map(|transfers| (transfers, echoes))
    })
}

#[test]
fn a_restart_under_load_costs_other_agents_no_flow_and_new_ones_work() {
    if !require(&PRODUCT) {
        return;
    }
    let server = "10.71.4.2".parse().unwrap();
    let world = World::prepared("restart", Profile::CLEAN, |sites| {
        sites.tokyo.ip("address add 10.71.4.1/24 dev to-server").unwrap();
        sites.server.ip(&format!("address add {server}/24 dev to-tokyo")).unwrap();
    });
    world.wait_until_carried(PATIENCE);
    let World { sites, cluster: Cluster { mut london, tokyo: _tokyo, operator }, .. } = world;
    let (client, scratch) = (&sites.client, sites.lab.scratch());
    let _paris = Agent::start(client, AgentSettings::new(scratch, "paris")).unwrap();
    let in_paris = Cli::new(client, &scratch.join("operator")).unwrap();
    let (paris, license) = (format!("{CLIENT}:{API_PORT}"), scratch.join("license.json"));
    let url = format!("http://{paris}");
    let there = |arguments: &[&str]| in_paris.ok(&[arguments, &["--url", &url]].concat());
    there(&["bootstrap", "--license-file", license.to_str().unwrap(), "--name", "paris"]).unwrap();
    operator.ok(&["peers", "add", &paris, "--name", "paris"]).unwrap();
    wait("paris knows tokyo", PATIENCE, || there(&["peers", "get", "tokyo"]).map(drop));
    there(&["services", "create", "--target-peer", "tokyo", "--name", "of-paris"]).unwrap();
    there(&["routes", "add", "--service", "of-paris", "--dest-cidr", "10.71.4.0/24"]).unwrap();
    wait_for_route(client, "10.71.4.0/24").unwrap();
    wait("paris is served", PATIENCE, || {
        let seen = seen_from(client, at(server, MIRROR_PORT))?;
        ensure!(seen == exit_towards(server), "{seen}");
        Ok(())
    });

    let stop = AtomicBool::new(false);
    let (transfers, echoes) = thread::scope(|scope| {
        let loaded = scope.spawn(|| load(client, at(server, ECHO_PORT), &stop));
        for clean in [true, false] {
            let ended = if clean { london.stop() } else { london.kill() };
            assert_eq!(ended.unwrap().success(), clean);
            london = Agent::start(&sites.london, AgentSettings::new(scratch, "london")).unwrap();
            let took = wait("everything of london is carried again", PATIENCE, || is_carried(client));
            println!("new flows were carried {took:?} after the agent lived again");
            assert!(!loaded.is_finished(), "the load broke off");
        }
        stop.store(true, Ordering::Relaxed);
        loaded.join().unwrap().unwrap()
    });
    println!("meanwhile {transfers} transfers and {echoes} echoes of the other agent");
    assert!(transfers > 1 && echoes > 5);
}
