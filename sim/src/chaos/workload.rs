//! An operator at work while things fail.

use super::{
    calm::services_at,
    errands::Licenses,
    memory::{Ending, Memory, Presence},
};
use crate::{Answer, Operator};
use arctic::model::Rng;
use hyper::Method;
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

/// Of a license that allows 100.
const SERVICES_MAX: usize = 40;

/// The operator's desk: what is known of hosts and of what was written.
pub(super) struct Workload {
    pub op: Operator,
    pub rng: Rng,
    pub hosts: Vec<String>,
    pub peer_ids: BTreeMap<String, String>,
    pub license: Value,
    pub licenses: Licenses,
    pub memory: Rc<RefCell<Memory>>,
    /// Removed and perhaps taken back in the course of the run.
    pub leaver: Option<String>,
    /// May lose its database.
    pub loser: String,
    pub ends_at: Duration,
}

impl Workload {
    pub async fn run(mut self) {
        let started = turmoil::elapsed();
        let (leaves_at, returns_at) = (self.moment(started, 30, 60), self.moment(started, 65, 90));
        let returns = self.rng.below(2) == 0;
        let (mut left, mut came_back) = (self.leaver.is_none(), self.leaver.is_none() || !returns);
        while turmoil::elapsed() < started + self.ends_at {
            let pause = Duration::from_millis(50 + self.rng.below(800));
            tokio::time::sleep(pause).await;
            self.bootstrap_the_wiped().await;
            self.see_who_caught_up().await;
            self.run_an_errand().await;
            if !left && turmoil::elapsed() >= leaves_at {
                left = self.remove_leaver().await;
            } else if left && !came_back && turmoil::elapsed() >= returns_at {
                came_back = self.readmit_leaver().await;
            } else {
                self.one_write().await;
            }
        }
    }

    /// Between two percentages of the way.
    fn moment(&mut self, started: Duration, from: u64, to: u64) -> Duration {
        let percent = from + self.rng.below(to - from);
        started + self.ends_at * u32::try_from(percent).unwrap_or(100) / 100
    }

    async fn one_write(&mut self) {
        match self.rng.below(17) {
            0..=5 => self.create().await,
            6..=11 => self.add_route().await,
            12..=13 => self.delete_route().await,
            14..=15 => self.delete_service().await,
            _ => self.look().await,
        }
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = self.rng.below(from.len() as u64) as usize;
        from.get(at).cloned()
    }

    /// A host that an operator would call: a member that is not known to lag behind.
    fn called(&mut self) -> Option<String> {
        let memory = self.memory.borrow();
        let usable = |h: &&String| memory.is_member(h) == Some(true) && !memory.recovering.contains(*h);
        let usable: Vec<String> = self.hosts.iter().filter(usable).cloned().collect();
        drop(memory);
        self.pick(&usable)
    }

    async fn send(&self, host: &str, method: Method, path: &str, body: Option<Value>) -> (Ending, Answer) {
        let losses = self.memory.borrow().losses;
        self.memory.borrow_mut().in_flight = Some(host.to_owned());
        let answer = match (method, body) {
            (Method::POST, Some(body)) => self.op.post(host, path, body).await,
            _ => self.op.delete(host, path).await,
        };
        self.memory.borrow_mut().in_flight = None;
        let mut ending = ending_of(&answer);
        if ending == Ending::Acknowledged && losses != self.memory.borrow().losses {
            // What was written on the way may have been lost before its acknowledgement came.
            ending = Ending::Unknown;
        }
        crate::record(format_args!("operator {host}{path} {} {ending:?}", answer.status));
        (ending, answer)
    }

    async fn create(&mut self) {
        if self.memory.borrow().services.len() >= SERVICES_MAX {
            return;
        }
        let (Some(called), Some(source), Some(target)) = (self.called(), self.called(), self.called()) else { return };
        if source == target {
            return;
        }
        let name = format!("s{}", self.memory.borrow_mut().next_number());
        let body =
            json!({"name": name, "source_peer_id": self.peer_ids[&source], "target_peer_id": self.peer_ids[&target]});
        let (ending, answer) = self.send(&called, Method::POST, "/v1/services", Some(body)).await;
        let id = answer.body["id"].as_str().map(str::to_owned).filter(|_| ending == Ending::Acknowledged);
        self.memory.borrow_mut().created(name, source, target, id, ending);
    }

    /// A service that is there, by name and path, and a host to call about it.
    fn service(&mut self) -> Option<(String, String, String)> {
        let memory = self.memory.borrow();
        let writable = |host: &String| memory.is_member(host) == Some(true) && !memory.recovering.contains(host);
        let there: Vec<(String, String)> = memory
            .services
            .iter()
            .filter(|(_, s)| s.presence == Presence::Must && writable(&s.source))
            .filter_map(|(name, s)| Some((name.clone(), format!("/v1/services/{}", s.id.as_ref()?))))
            .collect();
        drop(memory);
        let (name, path) = self.pick(&there)?;
        Some((name, path, self.called()?))
    }

    async fn add_route(&mut self) {
        let Some((name, path, called)) = self.service() else { return };
        let number = self.memory.borrow_mut().next_number();
        let dest = format!("10.{}.{}.0/24", number / 256, number % 256);
        let body = json!({"routes": [{"dest_cidr": dest}]});
        let (ending, answer) = self.send(&called, Method::POST, &format!("{path}/routes"), Some(body)).await;
        let id = answer.body["route_ids"][0].as_u64();
        self.memory.borrow_mut().route_added(&name, dest, id, ending);
    }

    async fn delete_route(&mut self) {
        let Some((name, path, called)) = self.service() else { return };
        let there: Vec<(String, u64)> = self.memory.borrow().services[&name]
            .routes
            .iter()
            .filter(|(_, r)| r.presence == Presence::Must)
            .filter_map(|(dest, r)| Some((dest.clone(), r.id?)))
            .collect();
        let Some((dest, id)) = self.pick(&there) else { return };
        let (ending, _) = self.send(&called, Method::DELETE, &format!("{path}/routes/{id}"), None).await;
        self.memory.borrow_mut().route_deleted(&name, &dest, ending);
    }

    async fn delete_service(&mut self) {
        let Some((name, path, called)) = self.service() else { return };
        let (ending, _) = self.send(&called, Method::DELETE, &path, None).await;
        self.memory.borrow_mut().deleted(&name, ending);
    }

    /// What was seen at its owner is true for good. No wall clock alone suspends a license (L3).
    async fn look(&mut self) {
        let Some(called) = self.called() else { return };
        let answer = self.op.get(&called, "/v1/cluster/status").await;
        if answer.body["license_state"] == "suspended" {
            self.memory.borrow_mut().seen.push(format!("L3 {called} is suspended"));
        }
        if called != self.loser
            && let Some(services) = services_at(&self.op, &called).await
        {
            self.memory.borrow_mut().seen_at(&called, &services);
        }
    }

    async fn remove_leaver(&mut self) -> bool {
        let (Some(leaver), Some(called)) = (self.leaver.clone(), self.called()) else { return true };
        if leaver == called {
            return false;
        }
        let path = format!("/v1/peers/{}", self.peer_ids[&leaver]);
        let (ending, _) = self.send(&called, Method::DELETE, &path, None).await;
        self.memory.borrow_mut().peer_removed(&leaver, ending);
        ending != Ending::Refused
    }

    async fn readmit_leaver(&mut self) -> bool {
        let (Some(leaver), Some(called)) = (self.leaver.clone(), self.called()) else { return true };
        let (ending, _) = self.send(&called, Method::POST, "/v1/peers", Some(endpoint_of(&leaver))).await;
        self.memory.borrow_mut().peer_readmitted(&leaver, ending);
        true
    }

    async fn bootstrap_the_wiped(&self) {
        let waiting: Vec<String> = self.memory.borrow().to_bootstrap.iter().cloned().collect();
        for host in waiting {
            if self.op.try_bootstrap(&host, &self.license).await {
                crate::record(format_args!("operator bootstrapped {host} again"));
                self.memory.borrow_mut().to_bootstrap.remove(&host);
            }
        }
    }

    async fn see_who_caught_up(&self) {
        let waiting: Vec<String> = self.memory.borrow().recovering.iter().cloned().collect();
        for host in waiting {
            let answer = self.op.get(&host, "/v1/cluster/status").await;
            let others = answer.body["peers"].as_array().map_or(0, |all| {
                all.iter().filter(|p| p["status"] == "healthy" && !p["registries"]["services"].is_null()).count()
            });
            if answer.status == 200 && answer.body["converged"] == true && others > 0 {
                self.memory.borrow_mut().recovering.remove(&host);
            }
        }
    }
}

pub(super) fn endpoint_of(host: &str) -> Value {
    json!({"endpoints": [format!("{host}:8080")]})
}

/// An owner that was asked and gave no answer may have acted all the same, and so may the other side of a handshake.
pub(super) fn ending_of(answer: &Answer) -> Ending {
    let may_be_done = match answer.body["code"].as_str() {
        Some("PEER_UNREACHABLE") => answer.body["details"]["sent"] != false,
        Some("HANDSHAKE_FAILED") => true,
        _ => false,
    };
    match answer.status {
        200..300 => Ending::Acknowledged,
        0 | 500.. => Ending::Unknown,
        _ if may_be_done => Ending::Unknown,
        _ => Ending::Refused,
    }
}
