//! One flow of the kcp transport each way, over each kind of WAN: how much arrives, what both agents' processors give
//! for it, and what crosses the WAN (figures F8 and F11).
//!
//! `cargo bench -p netns-tests --bench kcp [PROFILE…]`, all by default. Goals: 0.85 of the link at 1.2 bytes on the wire
//! a byte, 1.35 at most.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::bulk::{self, Throughput};
use netns_tests::lab::Host;
use netns_tests::topology::{Profile, SERVER, SERVER_DIRECT, at};
use netns_tests::world::{BULK_PORT, World};

const WINDOW: Duration = Duration::from_secs(8);
/// What is left of a flow that was hung up on ends meanwhile.
const REST: Duration = Duration::from_secs(2);
/// Transfers that are counted on the wire, in time at the rate of the link.
const COUNTED: Duration = Duration::from_secs(6);
/// The same where the link has no rate.
const COUNTED_BYTES: u64 = 500_000_000;

fn main() -> Result<()> {
    let named: Vec<Profile> = std::env::args().skip(1).filter_map(|word| Profile::named(&word)).collect();
    let profiles = if named.is_empty() { Profile::ALL.to_vec() } else { named };
    println!(
        "{:<10} {:<4} {:<5} {:>10} {:>12} {:>8} {:>9} {:>9} {:>9}",
        "profile", "by", "way", "Mbit/s", "second half", "of link", "CPU s/GB", "whole", "wire/byte"
    );
    profiles.into_iter().try_for_each(measure)
}

fn measure(profile: Profile) -> Result<()> {
    let mut world = World::new("kcp-speed", profile);
    let ways = if profile.rate_mbps.is_none() {
        &[("tcp", SERVER), ("kcp", SERVER_DIRECT)][..]
    } else {
        &[("kcp", SERVER_DIRECT)]
    };
    for &(transport, address) in ways {
        let server = at(address, BULK_PORT);
        for way in ["down", "up"] {
            std::thread::sleep(REST);
            let before = processor_time(&mut world)?;
            let client = &world.sites.client;
            let found = match way {
                "down" => bulk::download(client, server, "cubic", WINDOW)?,
                _ => bulk::upload(client, server, "cubic", WINDOW)?,
            };
            let spent = processor_time(&mut world)? - before;
            std::thread::sleep(REST);
            let counted = count(&world, way)?;
            print_row(profile, transport, way, &found, spent, &counted);
        }
    }
    Ok(())
}

fn print_row(profile: Profile, transport: &str, way: &str, found: &Throughput, spent: Duration, counted: &Counted) {
    let part = profile.rate_mbps.map_or("-".to_owned(), |rate| format!("{:.2}", found.mbps / rate as f64));
    let cost = spent.as_secs_f64() / (found.bytes as f64 / 1e9);
    println!(
        "{:<10} {transport:<4} {way:<5} {:>10.1} {:>12.1} {part:>8} {cost:>9.2} {:>9.1} {:>9.3}",
        profile.name, found.mbps, found.second_half_mbps, counted.mbps, counted.wire
    );
}

/// A transfer of a known size.
struct Counted {
    mbps: f64,
    /// Bytes that the sender's agent put on the WAN, for each that arrived.
    wire: f64,
}

fn count(world: &World, way: &str) -> Result<Counted> {
    let sites = &world.sites;
    let bytes = sites.profile.rate_mbps.map_or(COUNTED_BYTES, |rate| rate * 125_000 * COUNTED.as_secs());
    let (sender, peer) = if way == "down" { (&sites.tokyo, &sites.london) } else { (&sites.london, &sites.tokyo) };
    let device = format!("{}-{peer}", if sites.wan.is_some() { "wan" } else { "to" });
    let (start, before) = (Instant::now(), sent_bytes(sender, &device)?);
    let server = at(SERVER_DIRECT, BULK_PORT);
    match way {
        "down" => bulk::fetch_exactly(&sites.client, server, 1, bytes)?,
        _ => bulk::push_exactly(&sites.client, server, 1, bytes)?,
    }
    let wire = (sent_bytes(sender, &device)? - before) as f64 / bytes as f64;
    Ok(Counted { mbps: bytes as f64 * 8e-6 / start.elapsed().as_secs_f64(), wire })
}

fn sent_bytes(host: &Host, device: &str) -> Result<u64> {
    const SENT: usize = 8;
    let table = host.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    let row = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let sent = row.and_then(|row| row.split_whitespace().nth(SENT)).context("the device in /proc/net/dev")?;
    Ok(sent.parse()?)
}

/// What all threads of both agents have used.
fn processor_time(world: &mut World) -> Result<Duration> {
    let mut spent = Duration::ZERO;
    for agent in [&mut world.cluster.london, &mut world.cluster.tokyo] {
        for thread in fs::read_dir(format!("/proc/{}/task", agent.process().pid()))? {
            let used = fs::read_to_string(thread?.path().join("schedstat"))?;
            let used = used.split_whitespace().next().context("the time of a thread")?;
            spent += Duration::from_nanos(used.parse()?);
        }
    }
    Ok(spent)
}
