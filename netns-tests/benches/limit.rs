//! How exactly a large limit is kept, each direction on its own, by both transports, on a link that carries more.
//!
//! `cargo bench -p netns-tests --bench limit [MBIT]`, 1000 by default.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::bulk;
use netns_tests::cluster::{Cluster, wait_for_table};
use netns_tests::lab::Lab;
use netns_tests::topology::{Profile, SERVER, SERVER_NET, TwoSites, at};
use netns_tests::vendor::Grant;

const WINDOW: Duration = Duration::from_secs(6);
const PORT: u16 = 5001;

fn main() -> Result<()> {
    let limit = std::env::args().nth(1).filter(|word| word.parse::<u32>().is_ok()).unwrap_or("1000".to_owned());
    println!("{:<10} {:<9} {:>7} {:>12} {:>8}", "transport", "direction", "limit", "second half", "of it");
    for transport in ["tcp", "kcp"] {
        let sites = TwoSites::build(Lab::new("limit")?, Profile::CLEAN, 1)?;
        let cluster = Cluster::form(&sites, &Grant::default())?;
        let _server = bulk::server(&sites.server, SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)))?;
        let create = ["services", "create", "--target-peer", "tokyo", "--transport", transport];
        let limited = ["--bandwidth-limit", &format!("{limit}Mbit")];
        let service: serde_json::Value = cluster.operator.json(&[&create[..], &limited].concat())?;
        let id = service["id"].as_str().context("an id")?;
        cluster.operator.ok(&["routes", "add", "--service", id, "--dest-cidr", SERVER_NET])?;
        wait_for_table(&sites.london, SERVER_NET)?;
        let server = at(SERVER, PORT);
        for (direction, found) in [
            ("download", bulk::download(&sites.client, server, "cubic", WINDOW)?),
            ("upload", bulk::upload(&sites.client, server, "cubic", WINDOW)?),
        ] {
            let part = 100.0 * found.second_half_mbps / limit.parse::<f64>()?;
            println!("{transport:<10} {direction:<9} {limit:>7} {:>12.1} {part:>6.1} %", found.second_half_mbps);
        }
    }
    Ok(())
}
