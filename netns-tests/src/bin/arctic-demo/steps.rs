//! What an operator does by hand: license, bootstrap, peer, service, route; then a file through it.

use std::time::Instant;

use anyhow::{Result, ensure};
use netns_tests::cluster;
use netns_tests::content::{Content, digest};
use netns_tests::topology::{self, SERVER_NET};
use netns_tests::vendor::{Grant, Vendor};

use crate::holder::{FILE_BYTES, FILE_NAME, FILE_SEED};
use crate::say;
use crate::world::World;

/// The license is for the demo's day.
const LICENSE_DAYS: u32 = 60;

pub fn run(world: &World, vendor: &Vendor) -> Result<()> {
    let license = world.scratch("license.json");
    vendor.issue(&Grant { days: LICENSE_DAYS, ..Grant::default() }, &license)?;
    say("license", &format!("throw-away vendor key outside version control, {LICENSE_DAYS} days"));
    let operator = world.operator("london")?.shown();
    cluster::bootstrap_and_join(&operator, &world.operator("tokyo")?.shown(), &license)?;
    cluster::serve_through_tokyo(&operator, &[SERVER_NET])?;
    say("service", &format!("london -> tokyo, route {SERVER_NET}"));
    let table = cluster::wait_for_table(world.host("london")?, SERVER_NET)?;
    fetch(world)?;
    println!("\nlondon # nft list table inet arctic\n{table}");
    Ok(())
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
