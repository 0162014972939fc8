//! How much the WAN emulator carries: one TCP flow through it, beside the same flow over a veth pair.
//!
//! `cargo bench -p netns-tests --bench wan`. The goal is 500 Mbit/s at MTU 1500 through the emulator.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::bulk::{self, Throughput};
use netns_tests::lab::Lab;
use netns_tests::wan::path::Conditions;
use netns_tests::wan::{Direction, Wan};

const WINDOW: Duration = Duration::from_secs(5);
const GOAL_MBPS: f64 = 500.0;

fn main() -> Result<()> {
    println!("{:<34} {:<7} {:>10} {:>12}", "path", "cc", "Mbit/s", "second half");
    for congestion in ["cubic", "bbr"] {
        print_row("veth", congestion, &over_veth(congestion)?);
        let free = over_wan(congestion, Conditions::default())?;
        print_row("wan, no conditions", congestion, &free);
        ensure!(free.mbps >= GOAL_MBPS, "the emulator carries less than {GOAL_MBPS} Mbit/s");
        let continent =
            Conditions { delay: Duration::from_millis(30), rate_bps: Some(500_000_000), ..Conditions::default() };
        print_row("wan, 60 ms RTT, 500 Mbit/s", congestion, &over_wan(congestion, continent)?);
    }
    Ok(())
}

fn over_veth(congestion: &str) -> Result<Throughput> {
    let mut lab = Lab::new("bench")?;
    let (a, b) = (lab.host("london")?, lab.host("tokyo")?);
    lab.veth(&a, &b, &["10.71.0.1/30"], &["10.71.0.2/30"])?;
    let server = bulk::server(&b, "10.71.0.2:5001".parse()?)?;
    bulk::download(&a, server.address(), congestion, WINDOW)
}

fn over_wan(congestion: &str, conditions: Conditions) -> Result<Throughput> {
    let mut lab = Lab::new("bench")?;
    let (a, b) = (lab.host("london")?, lab.host("tokyo")?);
    let wan = Wan::connect((&a, &["10.71.0.1/30"]), (&b, &["10.71.0.2/30"]), conditions, 1)?;
    let server = bulk::server(&b, "10.71.0.2:5001".parse()?)?;
    let found = bulk::download(&a, server.address(), congestion, WINDOW)?;
    for direction in [Direction::AToB, Direction::BToA] {
        ensure!(wan.counters(direction).dropped_emulator == 0, "the emulator itself dropped packets");
    }
    Ok(found)
}

fn print_row(path: &str, congestion: &str, found: &Throughput) {
    println!("{path:<34} {congestion:<7} {:>10.0} {:>12.0}", found.mbps, found.second_half_mbps);
}
