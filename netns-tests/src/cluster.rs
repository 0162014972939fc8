//! Two agents made one cluster, as an operator does it by hand with the real command line.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::agent::{Agent, AgentSettings, Cli};
use crate::lab::Host;
use crate::topology::{API_PORT, LONDON_WAN, TOKYO_WAN, TwoSites};
use crate::vendor::{Grant, Vendor};

/// Applied within 1-2 s (operations.md §2), with room for a busy machine.
pub const APPLIED_WITHIN: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Agents in london and tokyo, trusted by each other, without services; and the operator who sits in london.
pub struct Cluster {
    pub london: Agent,
    pub tokyo: Agent,
    pub operator: Cli,
}

impl Cluster {
    pub fn form(sites: &TwoSites, grant: &Grant) -> Result<Cluster> {
        let scratch = sites.lab.scratch();
        let license = scratch.join("license.json");
        Vendor::find()?.issue(grant, &license)?;
        let home = scratch.join("operator");
        let cluster = Cluster {
            london: Agent::start(&sites.london, AgentSettings::new(scratch, "london"))?,
            tokyo: Agent::start(&sites.tokyo, AgentSettings::new(scratch, "tokyo"))?,
            operator: Cli::new(&sites.london, &home)?,
        };
        bootstrap_and_join(&cluster.operator, &Cli::new(&sites.tokyo, &home)?, &license)?;
        Ok(cluster)
    }
}

/// Bootstraps both agents with one license, each on its own host because the answer is a secret in clear, and makes
/// tokyo a peer of london. The operator carries one configuration to both.
pub fn bootstrap_and_join(london: &Cli, tokyo: &Cli, license: &Path) -> Result<()> {
    let license = license.to_str().context("path of the license")?;
    for (name, operator, address) in [("london", london, LONDON_WAN), ("tokyo", tokyo, TOKYO_WAN)] {
        let url = format!("http://{address}:{API_PORT}");
        operator.ok(&["bootstrap", "--url", &url, "--license-file", license, "--name", name])?;
    }
    london.ok(&["peers", "add", &format!("{TOKYO_WAN}:{API_PORT}"), "--name", "tokyo"]).map(drop)
}

/// Makes a service from london to tokyo for the destinations (CIDR), which both ends have applied; its id.
pub fn serve_through_tokyo(operator: &Cli, destinations: &[&str]) -> Result<String> {
    serve_with(operator, &[], destinations)
}

/// The same with more flags of `services create`.
pub fn serve_with(operator: &Cli, flags: &[&str], destinations: &[&str]) -> Result<String> {
    let create = [&["services", "create", "--target-peer", "tokyo"], flags].concat();
    let service: serde_json::Value = operator.json(&create)?;
    let id = service["id"].as_str().with_context(|| format!("services create answered {service}"))?;
    for destination in destinations {
        operator.ok(&["routes", "add", "--service", id, "--dest-cidr", destination, "--wait"])?;
    }
    Ok(id.to_owned())
}

/// `nft list table inet arctic` of a host, once it says `text`.
pub fn wait_for_table(host: &Host, text: &str) -> Result<String> {
    wait_for_tables(host, &["arctic"], text)
}

/// `nft list table inet arctic` of a host, once everything there is about a route to `destination` is in its kernel, for
/// TCP and for the IP tunnel: both tables name it. The policy of both is written before a rule that needs it.
pub fn wait_for_route(host: &Host, destination: &str) -> Result<String> {
    wait_for_tables(host, &["arctic", "arctic_iptun"], destination)
}

/// The first of the tables, once each of them says `text`.
fn wait_for_tables(host: &Host, names: &[&str], text: &str) -> Result<String> {
    let deadline = Instant::now() + APPLIED_WITHIN;
    let look = || -> Result<String> {
        let tables = names.iter().map(|name| host.sh(&format!("nft list table inet {name}")));
        let mut tables = tables.collect::<Result<Vec<_>>>()?;
        for table in &tables {
            ensure!(table.contains(text), "{text:?} is not in the table of {host}:\n{table}");
        }
        Ok(tables.swap_remove(0))
    };
    loop {
        match look() {
            Ok(table) => return Ok(table),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(POLL_INTERVAL),
        }
    }
}
