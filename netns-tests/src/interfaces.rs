//! Two sites with agents, for services that have an interface in london.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::agent::http_get;
use crate::cluster::Cluster;
use crate::lab::{Host, Lab};
use crate::probe::Feature;
use crate::topology::{API_PORT, LONDON_WAN, Profile, TwoSites, at};
use crate::vendor::Grant;

pub const PRODUCT: [Feature; 5] =
    [Feature::Root, Feature::Veth, Feature::Macvlan, Feature::NftTproxy, Feature::NftSocket];
/// With room for a busy machine.
pub const SEEN_WITHIN: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A clean WAN, a cluster of london and tokyo.
pub struct World {
    pub cluster: Cluster,
    pub sites: TwoSites,
}

impl World {
    pub fn new(name: &str) -> World {
        World::prepared(name, |_| ())
    }

    /// `prepare` runs before the agents.
    pub fn prepared(name: &str, prepare: impl FnOnce(&TwoSites)) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
        prepare(&sites);
        World { cluster: Cluster::form(&sites, &Grant::default()).unwrap(), sites }
    }

    /// A service from london to tokyo with an interface; its id and the name of that.
    pub fn serve(&self, more: &[&str]) -> (String, String) {
        let base = ["services", "create", "--target-peer", "tokyo", "--requires-interface"];
        let made: Value = self.cluster.operator.json(&[&base[..], more].concat()).unwrap();
        let id = made["id"].as_str().unwrap().to_owned();
        let name = id[..15].to_owned();
        assert_eq!(made["interface_name"], name);
        (id, name)
    }

    pub fn service(&self, id: &str) -> Value {
        self.cluster.operator.json(&["services", "get", id]).unwrap()
    }

    /// What the network reconciler says of a service.
    pub fn condition(&self, id: &str) -> Value {
        let service = self.service(id);
        let conditions = service["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|c| c["reconciler"] == "network").unwrap_or(Value::Null)
    }

    /// Lines of the agent in london, as `journalctl -u arctic | grep <word>` shows them.
    pub fn journal(&self, word: &str) -> Vec<String> {
        self.cluster.london.log().unwrap().lines().filter(|l| l.contains(word)).map(str::to_owned).collect()
    }

    /// Flows that london has opened for a service.
    pub fn opened(&self, service: &str) -> u64 {
        let (_, metrics) = http_get(&self.sites.london, at(LONDON_WAN, API_PORT), "/metrics").unwrap();
        let of_it = |line: &&str| {
            line.starts_with("arctic_service_connections_total")
                && line.contains(service)
                && line.contains("\"opened\"")
        };
        let line = metrics.lines().find(of_it).unwrap_or("0");
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
    }
}

/// Waits until `seen` answers something; that, and how long it took.
#[track_caller]
pub fn wait<T>(what: &str, within: Duration, seen: impl Fn() -> Option<T>) -> (T, Duration) {
    let started = Instant::now();
    loop {
        if let Some(found) = seen() {
            return (found, started.elapsed());
        }
        assert!(started.elapsed() < within, "never: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// `ip -d address show` of a link, if there is one.
pub fn link(host: &Host, name: &str) -> Option<String> {
    host.ip(&format!("-d address show dev {name}")).ok()
}

/// The value of a setting of a host, by its path below `/proc/sys`.
pub fn sysctl(host: &Host, key: &str) -> Result<String> {
    Ok(host.run(|| std::fs::read_to_string(format!("/proc/sys/{key}")))?.trim().to_owned())
}
