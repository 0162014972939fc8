//! What an operator does by hand: license, bootstrap, peer, service, route; then a file through it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::content::{Content, digest};
use netns_tests::topology::{self, API_PORT, SERVER_NET};
use netns_tests::vendor::{Grant, Vendor};

use crate::holder::{FILE_BYTES, FILE_NAME, FILE_SEED};
use crate::say;
use crate::world::World;

/// Applied within 1-2 s (operations.md §2), with room for a busy machine.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);
/// The license is for the demo's day.
const LICENSE_DAYS: u32 = 60;

pub fn run(world: &World, vendor: &Vendor) -> Result<()> {
    let license = world.scratch("license.json");
    vendor.issue(&Grant { days: LICENSE_DAYS, ..Grant::default() }, &license)?;
    say("license", &format!("throw-away vendor key outside version control, {LICENSE_DAYS} days"));
    let license = license.to_str().context("path of the license")?;

    let london = format!("http://{}:{API_PORT}", topology::LONDON_WAN);
    let tokyo = format!("http://{}:{API_PORT}", topology::TOKYO_WAN);
    let newcomer = format!("{}:{API_PORT}", topology::TOKYO_WAN);
    let operator = world.operator("london")?;
    let command = |arguments: &[&str]| {
        println!("$ arctic {}", arguments.join(" "));
        operator.ok(arguments)
    };
    command(&["bootstrap", "--url", &london, "--license-file", license, "--name", "london"])?;
    command(&["bootstrap", "--url", &tokyo, "--license-file", license, "--name", "tokyo"])?;
    command(&["peers", "add", &newcomer, "--name", "tokyo"])?;
    let service: serde_json::Value =
        serde_json::from_str(&command(&["services", "create", "--target-peer", "tokyo", "-j"])?)?;
    let service = service["id"].as_str().with_context(|| format!("services create answered {service}"))?;
    command(&["routes", "add", "--service", service, "--dest-cidr", SERVER_NET])?;
    say("service", &format!("london -> tokyo, route {SERVER_NET}"));

    let table = wait_until_applied(world)?;
    fetch(world)?;
    println!("\nlondon # nft list table inet arctic\n{table}");
    Ok(())
}

/// The table of london, once it holds the route.
fn wait_until_applied(world: &World) -> Result<String> {
    let london = world.host("london")?;
    let deadline = Instant::now() + APPLIED_WITHIN;
    loop {
        let table = london.sh("nft list table inet arctic");
        match table {
            Ok(table) if table.contains(SERVER_NET) => return Ok(table),
            Ok(table) if Instant::now() >= deadline => bail!("route {SERVER_NET} is not in london's table:\n{table}"),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(_) | Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Fetches the file directly and through the service, and compares every byte and who the server saw.
fn fetch(world: &World) -> Result<()> {
    let (expected, _) = digest(&Content::bytes(FILE_SEED, FILE_BYTES)[..])?;
    let client = world.host("client")?;
    for (path, server, seen) in [
        ("direct", topology::SERVER_DIRECT, topology::CLIENT),
        ("through arctic", topology::SERVER, topology::TOKYO_LAN),
    ] {
        let (file, head) = (world.scratch("fetched"), world.scratch("head"));
        let start = Instant::now();
        client.sh(&format!(
            "curl -sS --fail --max-time 60 -D {} -o {} http://{server}/{FILE_NAME}",
            head.display(),
            file.display()
        ))?;
        let seconds = start.elapsed().as_secs_f64();
        let (found, bytes) = digest(std::fs::File::open(&file)?)?;
        ensure!(found == expected, "{path}: the file differs: {bytes} bytes, sha256 {found}, not {expected}");
        let head = std::fs::read_to_string(head)?.to_ascii_lowercase();
        ensure!(
            head.contains(&format!("x-seen-from: {seen}\r\n")),
            "{path}: the server should have seen {seen}; it answered\n{head}"
        );
        let mib = FILE_BYTES / 1024 / 1024;
        say(
            "fetch",
            &format!("{mib} MiB {path} in {seconds:.2} s, seen from {seen}, byte-identical ({}…)", &found[..12]),
        );
    }
    Ok(())
}
