//! The table: one flow of bulk TCP, direct and through Arctic, each row with its congestion control.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::bulk::{self, Throughput};
use netns_tests::lab::Host;
use netns_tests::topology::{SERVER, SERVER_DIRECT, at};

use crate::holder::BULK_PORT;
use crate::world::World;

const WINDOW: Duration = Duration::from_secs(10);
/// What the demo promises against direct cubic on the default WAN.
const GOAL_FACTOR: f64 = 10.0;
/// The data port of the tcp transport (operations.md §1).
const TRANSPORT_PORT: u16 = 61000;

pub fn run(world: &World) -> Result<()> {
    let client = world.host("client")?;
    let direct = at(SERVER_DIRECT, BULK_PORT);
    println!("one flow of bulk TCP, server to client, {} s each", WINDOW.as_secs());
    println!(
        "{:<16} {:<26} {:>8} {:>8} {:>12} {:>8}",
        "path", "congestion control", "seconds", "Mbit/s", "second half", "factor"
    );

    let cubic = bulk::download(client, direct, "cubic", WINDOW).context("direct, cubic")?;
    print_row("direct", "cubic", &cubic, &cubic);
    let bbr = bulk::download(client, direct, "bbr", WINDOW).context("direct, bbr")?;
    print_row("direct", "bbr", &bbr, &cubic);
    let (arctic, on_wan) = through_arctic(client, world.host("tokyo")?).context("through arctic")?;
    print_row("through arctic", &format!("cubic, {on_wan} on the WAN"), &arctic, &cubic);

    let factor = arctic.mbps / cubic.mbps;
    println!("\narctic carries {factor:.1} times the direct cubic flow; client and server are stock cubic in both");
    ensure!(factor >= GOAL_FACTOR, "that is less than {GOAL_FACTOR} times");
    Ok(())
}

/// The flow, and the congestion control that the sending agent's WAN sockets had meanwhile.
fn through_arctic(client: &Host, sender: &Host) -> Result<(Throughput, String)> {
    let server = at(SERVER, BULK_PORT);
    thread::scope(|scope| {
        let flow = scope.spawn(|| bulk::download(client, server, "cubic", WINDOW));
        thread::sleep(WINDOW / 2);
        let sockets = sender
            .sh(&format!("ss -tinH state established '( sport = :{TRANSPORT_PORT} or dport = :{TRANSPORT_PORT} )'"));
        let flow = flow.join().expect("a download does not panic")?;
        Ok((flow, congestion_controls(&sockets?)))
    })
}

/// The names found in the output of `ss -i`.
fn congestion_controls(sockets: &str) -> String {
    let known = ["bbr", "cubic", "reno"];
    let found: BTreeSet<&str> = sockets.split_whitespace().filter(|word| known.contains(word)).collect();
    if found.is_empty() { "unknown".to_owned() } else { Vec::from_iter(found).join("+") }
}

fn print_row(path: &str, congestion: &str, found: &Throughput, base: &Throughput) {
    println!(
        "{path:<16} {congestion:<26} {:>8.1} {:>8.1} {:>12.1} {:>7.1}x",
        found.seconds,
        found.mbps,
        found.second_half_mbps,
        found.mbps / base.mbps
    );
}
