//! Two agents made one cluster, as an operator does it by hand with the real command line.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::{Agent, AgentSettings, Cli};
use crate::lab::Host;
use crate::topology::{API_PORT, LONDON_WAN, TOKYO_WAN, TwoSites};
use crate::vendor::{Grant, Vendor};

/// Applied within 1-2 s (operations.md §2), with room for a busy machine.
pub const APPLIED_WITHIN: Duration = Duration::from_secs(10);
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

/// Makes a service from london to tokyo for the destinations (CIDR); its id.
pub fn serve_through_tokyo(operator: &Cli, destinations: &[&str]) -> Result<String> {
    let service: serde_json::Value = operator.json(&["services", "create", "--target-peer", "tokyo"])?;
    let id = service["id"].as_str().with_context(|| format!("services create answered {service}"))?;
    for destination in destinations {
        operator.ok(&["routes", "add", "--service", id, "--dest-cidr", destination])?;
    }
    Ok(id.to_owned())
}

/// `nft list table inet arctic` of a host, once it says `text`.
pub fn wait_for_table(host: &Host, text: &str) -> Result<String> {
    let deadline = Instant::now() + APPLIED_WITHIN;
    loop {
        match host.sh("nft list table inet arctic") {
            Ok(table) if table.contains(text) => return Ok(table),
            Ok(table) if Instant::now() >= deadline => bail!("{text:?} is not in the table of {host}:\n{table}"),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(_) | Err(_) => thread::sleep(POLL_INTERVAL),
        }
    }
}
