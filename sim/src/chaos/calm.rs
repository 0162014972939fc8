//! What must hold once nothing fails any more (simulation.md §4).

use super::{
    memory::{Memory, Presence},
    workload::endpoint_of,
};
use crate::{Operator, captures};
use arctic::kernel::FakeKernel;
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// 6 heartbeat rounds of at most 12 s, and twice 30 s (S10).
pub const CONVERGENCE_BOUND: Duration = Duration::from_secs(6 * 12 + 2 * 30);
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Inspection {
    pub op: Operator,
    pub kernels: BTreeMap<String, Arc<FakeKernel>>,
    pub peer_ids: BTreeMap<String, String>,
    pub memory: Rc<RefCell<Memory>>,
    pub license: Value,
    /// What it lists after its loss says nothing of what its owner wrote before.
    pub loser: String,
}

/// What the hosts say at one moment.
struct Seen {
    status: BTreeMap<String, Value>,
    /// Hosts that took a token of a credential that is deleted.
    credulous: BTreeSet<String>,
    peers: BTreeMap<String, Vec<Value>>,
    /// By host and name, each with its routes.
    services: BTreeMap<String, BTreeMap<String, Value>>,
}

/// Invariants that do not hold, and what the hosts say of themselves.
pub(super) struct Failing {
    pub violated: Vec<String>,
    pub node_lines: Vec<String>,
}

impl Seen {
    fn lines(&self) -> Vec<String> {
        let line = |(host, status): (&String, &Value)| {
            let healthy = |p: &&Value| p["status"] == "healthy";
            let peers = self.peers.get(host).map_or(0, |peers| peers.iter().filter(healthy).count());
            let services = self.services.get(host).map_or(0, BTreeMap::len);
            let [license, cluster, converged] = ["license_state", "cluster_id", "converged"].map(|key| &status[key]);
            format!(
                "{host} license={license} cluster={cluster} converged={converged} healthy={peers} services={services}"
            )
        };
        self.status.iter().map(line).collect()
    }
}

impl Inspection {
    /// Looks until all invariants hold; what is still violated after the bound.
    pub async fn run(self) -> Result<Duration, Failing> {
        self.bootstrap_the_wiped().await;
        let started = turmoil::elapsed();
        let mut asked = BTreeSet::new();
        loop {
            let seen = self.look().await;
            let violated = self.violated(&seen);
            let waited = turmoil::elapsed() - started;
            if violated.is_empty() {
                return Ok(waited);
            }
            if waited >= CONVERGENCE_BOUND {
                return Err(Failing { violated, node_lines: seen.lines() });
            }
            self.ask_for_the_unreachable(&seen, &mut asked).await;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn bootstrap_the_wiped(&self) {
        let waiting = std::mem::take(&mut self.memory.borrow_mut().to_bootstrap);
        for host in waiting {
            while !self.op.try_bootstrap(&host, &self.license).await {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// Handshakes that failed for good wait for an operator (cluster.md §4).
    async fn ask_for_the_unreachable(&self, seen: &Seen, asked: &mut BTreeSet<(String, String)>) {
        for (host, peers) in &seen.peers {
            for (other, id) in &self.peer_ids {
                let stuck = peers.iter().any(|p| p["id"] == id.as_str() && p["status"] == "unreachable");
                if stuck && self.member(other) && asked.insert((host.clone(), other.clone())) {
                    crate::record(format_args!("operator asks {host} for {other}"));
                    self.op.post(host, "/v1/peers", endpoint_of(other)).await;
                }
            }
        }
    }

    fn member(&self, host: &str) -> bool {
        self.memory.borrow().is_member(host) == Some(true)
    }

    /// Those that the operator knows to be members.
    fn members(&self) -> Vec<String> {
        self.peer_ids.keys().filter(|h| self.member(h)).cloned().collect()
    }

    async fn look(&self) -> Seen {
        let mut seen = Seen {
            status: BTreeMap::new(),
            credulous: BTreeSet::new(),
            peers: BTreeMap::new(),
            services: BTreeMap::new(),
        };
        for host in self.peer_ids.keys() {
            seen.status.insert(host.clone(), self.op.get(host, "/v1/cluster/status").await.body);
            let peers = self.op.get(host, "/v1/peers").await.body["peers"].as_array().cloned().unwrap_or_default();
            seen.peers.insert(host.clone(), peers);
            let dead = self.memory.borrow().dead_tokens.clone();
            for token in dead {
                if self.op.get_with(host, "/v1/services", &token).await.status == 200 {
                    seen.credulous.insert(host.clone());
                }
            }
            let services = services_at(&self.op, host).await;
            if let Some(services) = services.as_ref().filter(|_| *host != self.loser) {
                self.memory.borrow_mut().seen_at(host, services);
            }
            seen.services.insert(host.clone(), services.unwrap_or_default());
        }
        seen
    }

    fn violated(&self, seen: &Seen) -> Vec<String> {
        let mut wrong = self.memory.borrow().seen.clone();
        self.check_registries(seen, &mut wrong);
        self.check_peers(seen, &mut wrong);
        for host in self.members() {
            self.check_services(&host, &seen.services[&host], &mut wrong);
        }
        self.check_kernels(seen, &mut wrong);
        wrong
    }

    /// G1, C2, L1.
    fn check_registries(&self, seen: &Seen, wrong: &mut Vec<String>) {
        let members = self.members();
        let Some(first) = members.first() else { return };
        let of_first = &seen.status[first];
        for host in &members {
            let status = &seen.status[host];
            for (registry, state) in of_first["registries"].as_object().into_iter().flatten() {
                if status["registries"][registry] != *state {
                    let theirs = &status["registries"][registry];
                    wrong.push(format!("G1 {registry}: {first} has {state}, {host} has {theirs}"));
                }
            }
            if status["converged"] != true {
                wrong.push(format!("G1 {host} says that it has not converged"));
            }
            if status["cluster_id"] != of_first["cluster_id"] || status["cluster_id"].is_null() {
                let [one, other] = [&of_first["cluster_id"], &status["cluster_id"]];
                wrong.push(format!("C2 {first} is in {one}, {host} in {other}"));
            }
            if !status["lock"].is_null() {
                wrong.push(format!("lock {host}: {}", status["lock"]));
            }
            if seen.credulous.contains(host) {
                wrong.push(format!("R1 {host} takes the token of a credential that was deleted"));
            }
            if status["license_state"] != "valid" {
                wrong.push(format!("L1 {host}: {}", status["license_state"]));
            }
        }
    }

    /// Members know each other; who was removed is gone, and knows it.
    fn check_peers(&self, seen: &Seen, wrong: &mut Vec<String>) {
        let members = self.members();
        for host in &members {
            for (other, id) in &self.peer_ids {
                let entry = seen.peers[host].iter().find(|p| p["id"] == id.as_str());
                let status = entry.map(|p| p["status"].as_str().unwrap_or_default().to_owned());
                match (self.memory.borrow().is_member(other), status) {
                    (Some(true), Some(status)) if status == "healthy" => {}
                    (Some(true), status) => wrong.push(format!("G1 {host} holds member {other} for {status:?}")),
                    (Some(false), Some(status)) => wrong.push(format!("R4 {host} lists removed {other} as {status}")),
                    (Some(false) | None, _) => {}
                }
            }
        }
        for host in self.peer_ids.keys().filter(|h| self.memory.borrow().is_member(h) == Some(false)) {
            // Who is listed without trust is no member (cluster.md §4): one that had not heard of the removal yet may have
            // called, was taken in, and has refused since.
            let is_trusted = |p: &&Value| p["status"] == "healthy" || p["status"] == "unhealthy";
            let trusted = seen.peers[host].iter().filter(is_trusted).count();
            if trusted > 1 {
                wrong.push(format!("R3 removed {host} still trusts {} others", trusted - 1));
            }
        }
    }

    /// D1, R1: what was acknowledged is there, what was deleted is not, and nothing comes from nowhere.
    fn check_services(&self, host: &str, services: &BTreeMap<String, Value>, wrong: &mut Vec<String>) {
        let memory = self.memory.borrow();
        for (name, expected) in &memory.services {
            let found = services.get(name);
            if expected.presence.denies(found.is_some()) {
                let (rule, is) = if found.is_some() { ("R1", "is back") } else { ("D1", "is lost") };
                wrong.push(format!("{rule} {host}: service {name} of {} {is}", expected.source));
            }
            let Some(found) = found else { continue };
            let dests: BTreeSet<&str> = destinations(found).collect();
            for (dest, route) in &expected.routes {
                if route.presence.denies(dests.contains(dest.as_str())) {
                    let rule = if route.presence == Presence::Must { "D1" } else { "R1" };
                    wrong.push(format!("{rule} {host}: route {dest} of {name} ought to be {:?}", route.presence));
                }
            }
            if let Some(dest) = dests.iter().find(|dest| !expected.routes.contains_key(**dest)) {
                wrong.push(format!("D2 {host}: route {dest} of {name} was never written"));
            }
        }
        for name in services.keys().filter(|name| !memory.services.contains_key(*name)) {
            wrong.push(format!("D2 {host}: service {name:?} was never written"));
        }
    }

    /// K1: a host captures the destinations of the services that begin at it, and nothing else.
    fn check_kernels(&self, seen: &Seen, wrong: &mut Vec<String>) {
        let memory = self.memory.borrow();
        let every: BTreeSet<&String> = memory.services.values().flat_map(|s| s.routes.keys()).collect();
        for (host, id) in &self.peer_ids {
            let member = memory.is_member(host);
            let own: BTreeSet<&str> = seen.services[host]
                .values()
                .filter(|s| s["source_peer_id"] == id.as_str() && member != Some(false))
                .flat_map(destinations)
                .collect();
            for dest in every.iter().filter(|_| member.is_some()) {
                let wanted = own.contains(dest.as_str());
                let probe = dest.replace(".0/24", ".1");
                if captures(&self.kernels[host], &probe) != wanted {
                    wrong.push(format!("K1 {host}: {dest} is {}captured", if wanted { "not " } else { "" }));
                }
            }
        }
    }
}

/// What a host lists, by name, each with its routes; `None` if it did not answer every question.
pub(super) async fn services_at(op: &Operator, host: &str) -> Option<BTreeMap<String, Value>> {
    let mut services = BTreeMap::new();
    let list = op.get(host, "/v1/services").await;
    for service in list.body["services"].as_array().filter(|_| list.status == 200)? {
        let whole = op.get(host, &format!("/v1/services/{}", service["id"].as_str()?)).await;
        if whole.status != 200 {
            return None;
        }
        services.insert(whole.body["name"].as_str()?.to_owned(), whole.body);
    }
    Some(services)
}

pub(super) fn destinations(service: &Value) -> impl Iterator<Item = &str> {
    service["routes"].as_array().into_iter().flatten().filter_map(|r| r["dest_cidr"].as_str())
}
