//! Bytes arrive exactly, whatever the WAN does to packets: lost, late, overtaken, twice, and on another path from some
//! moment on. `NETNS_LONG=1` carries 1 GiB by each transport and 2,000 flows.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::bulk;
use netns_tests::lab::Host;
use netns_tests::probe::require;
use netns_tests::topology::{Profile, SERVER, SERVER_DIRECT, SERVER_DIRECT_V6, SERVER_V6, at};
use netns_tests::wan::Direction;
use netns_tests::wan::path::Conditions;
use netns_tests::world::{BULK_PORT, PATIENCE, PRODUCT, World};

const MIB: u64 = 1 << 20;
/// By tcp and by kcp, each in both families.
const SERVERS: [IpAddr; 4] = [SERVER, SERVER_V6, SERVER_DIRECT, SERVER_DIRECT_V6];
const HARD: Profile = Profile { name: "hard", rtt: Duration::from_millis(30), loss: 0.005, rate_mbps: Some(400) };
const WORKERS: u64 = 20;
/// Of fifty thousand and more: transfers are in their middle.
const BEGUN_PACKETS: u64 = 10_000;

/// Another path: longer, slower, and narrower without a word.
fn elsewhere(conditions: &mut Conditions) {
    conditions.delay = Duration::from_millis(35);
    conditions.rate_bps = Some(250_000_000);
    conditions.mtu_bytes = Some(1280);
}

/// Of all sizes: nothing, a few bytes, a few packets, more than a window lets out at once.
fn size(seed: u64) -> u64 {
    match seed % 5 {
        0 => 0,
        1 => 1 + seed % 100,
        2 => 3_000 + seed,
        _ => 20_000 + (seed * 7919) % 200_000,
    }
}

fn transfer(client: &Host, server: IpAddr, seed: u64, bytes: u64) {
    let to = at(server, BULK_PORT);
    // No bytes can be asked for only in this direction.
    let done = if bytes == 0 || seed.is_multiple_of(2) {
        bulk::push_exactly(client, to, seed, bytes)
    } else {
        bulk::fetch_exactly(client, to, seed, bytes)
    };
    done.unwrap_or_else(|error| panic!("{bytes} bytes with {server}: {error:#}"));
}

#[test]
fn large_transfers_and_many_flows_arrive_exactly_by_both_transports_and_families() {
    if !require(&PRODUCT) {
        return;
    }
    let is_long = std::env::var_os("NETNS_LONG").is_some_and(|value| value == "1");
    // The shorter run is of 64 MiB in all, and most of it by tcp: kcp without optimisation is bound by the processor.
    let (by_tcp, by_kcp, flows) = if is_long { (512 * MIB, 512 * MIB, 2000) } else { (24 * MIB, 8 * MIB, 200) };
    let world = World::new("exact", HARD);
    let (client, wan) = (&world.sites.client, world.sites.wan.as_ref().unwrap());
    world.wait_until_carried(PATIENCE);
    wan.change(|conditions| {
        (conditions.jitter, conditions.reorder, conditions.duplicate) = (Duration::from_millis(5), true, 0.02);
    });
    thread::scope(|scope| {
        let started = Instant::now();
        let sizes = [by_tcp, by_tcp, by_kcp, by_kcp];
        let transfers = (31..).zip(SERVERS).zip(sizes).map(|((seed, server), each_bytes)| {
            scope.spawn(move || {
                transfer(client, server, seed, each_bytes);
                println!("{} MiB with {server}: {:?}", each_bytes / MIB, started.elapsed());
            })
        });
        let transfers: Vec<_> = transfers.collect();
        while wan.counters(Direction::AToB).delivered + wan.counters(Direction::BToA).delivered < BEGUN_PACKETS {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(transfers.iter().any(|transfer| !transfer.is_finished()), "the path changes in the middle");
        wan.change(elsewhere);
        transfers.into_iter().for_each(|transfer| transfer.join().unwrap());
    });

    let started = Instant::now();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                for n in 0..flows / WORKERS {
                    let seed = 1000 + worker * 1000 + n;
                    transfer(client, SERVERS[((worker + n) % 4) as usize], seed, size(seed));
                }
            });
        }
    });
    println!("{flows} flows: {:?}", started.elapsed());
    for direction in [Direction::AToB, Direction::BToA] {
        let counters = wan.counters(direction);
        println!("{direction:?}: {counters:?}");
        assert!(counters.dropped_random > 50 && counters.delivered > counters.offered - counters.dropped_random);
        assert_eq!(counters.dropped_emulator, 0);
    }
}
