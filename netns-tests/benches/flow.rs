//! One flow over the ocean (150 ms, 0.5 % loss, 200 Mbit/s): direct, and through the engines.
//!
//! `cargo bench -p netns-tests --bench flow`. The goal is ten times the direct cubic flow, and one round trip for a new
//! flow's connect, request and answer.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::bulk::{self, Throughput};
use netns_tests::plane::{echo_through, plane, warm};
use netns_tests::service::TcpService;
use netns_tests::topology::{self, Profile, SERVER, at};

const WINDOW: Duration = Duration::from_secs(10);
const GOAL_FACTOR: f64 = 10.0;
const NEW_FLOWS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    let plane = plane("ocean", Profile::OCEAN);
    let (client, server) = (&plane.sites.client, &plane.sites.server);
    let (dest, direct, echo) = (at(SERVER, 5001), at(topology::SERVER_DIRECT, 5001), at(SERVER, 7));
    let _echo = TcpService::echo(server, echo)?;
    let _bulk = [bulk::server(server, dest)?, bulk::server(server, direct)?];
    warm(&plane);

    println!("{}", Profile::OCEAN);
    println!("{:<24} {:>10} {:>12}", "one flow", "Mbit/s", "second half");
    let cubic = print_row("direct, cubic", bulk::download(client, direct, "cubic", WINDOW)?);
    print_row("direct, bbr", bulk::download(client, direct, "bbr", WINDOW)?);
    let through = print_row("through engines, down", bulk::download(client, dest, "cubic", WINDOW)?);
    print_row("through engines, up", bulk::upload(client, dest, "cubic", WINDOW)?);

    let mut took: Vec<Duration> = (0..NEW_FLOWS)
        .map(|_| {
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            echo_through(client, echo);
            start.elapsed()
        })
        .collect();
    took.sort();
    println!("new flow, first answer: median {:?}, worst {:?}", took[NEW_FLOWS / 2], took[NEW_FLOWS - 1]);
    ensure!(through >= GOAL_FACTOR * cubic, "less than {GOAL_FACTOR} times the direct cubic flow");
    Ok(())
}

fn print_row(path: &str, found: Throughput) -> f64 {
    println!("{path:<24} {:>10.0} {:>12.0}", found.mbps, found.second_half_mbps);
    found.mbps
}
