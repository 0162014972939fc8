//! Where events come from: this agent looks at what it holds whenever that may have changed, and tells the difference.
//! So it does not matter by which way a change came: API, gossip, a handshake, the passing of time.

use super::{Node, STORE_RETRY, events::News};
use crate::{
    license::State,
    model::{ClientId, ClusterId, Mono, PeerId, PeerStatus, Service, ServiceId, UnixTime},
    reconcile::{Condition, ConditionStatus, Reconciler, Status},
    store::StoreError,
    wire::gossip::Digest,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A peer's health is told again after this time at the earliest...
const HOLD_FIRST: Duration = Duration::from_secs(30);
/// ...three times as long after each further change, up to this; and from the start after this much quiet.
const HOLD_LONGEST: Duration = Duration::from_secs(600);
/// From the second change on, a state counts only when it has lasted for so long.
const STEADY: Duration = Duration::from_secs(60);
/// How long the driver sleeps when nothing is held back.
const IDLE_WAIT: Duration = Duration::from_secs(3600);

/// What the store says.
#[derive(Debug, Clone, PartialEq, Default)]
struct Held {
    services: BTreeMap<ServiceId, Service>,
    /// Issuer, and when it was rotated last.
    credentials: BTreeMap<ClientId, (PeerId, Option<UnixTime>)>,
    /// Trusted peers but this one, by name.
    peers: BTreeMap<PeerId, String>,
    cluster: Option<ClusterId>,
    aliases: BTreeSet<ClusterId>,
}

/// Everything that events are about, but the health of peers.
#[derive(Debug, Clone, PartialEq, Default)]
struct Seen {
    held: Arc<Held>,
    lock: Option<(Digest, Value)>,
    license: Option<(State, UnixTime)>,
    conditions: BTreeMap<ServiceId, Vec<Condition>>,
    /// Of each reconciler that repairs.
    drift_repairs: BTreeMap<Reconciler, u64>,
}

impl Seen {
    /// What is new since `before`.
    fn news_since(&self, before: &Seen) -> Vec<News> {
        let mut news = Vec::new();
        if !Arc::ptr_eq(&self.held, &before.held) {
            news.extend(self.held.news_since(&before.held));
        }
        if self.lock.as_ref().map(|(token, _)| token) != before.lock.as_ref().map(|(token, _)| token) {
            let told = |kind, lock: &Option<(Digest, Value)>| {
                lock.as_ref().map(|(_, shown)| News::new(kind, json!({ "lock": shown })))
            };
            news.extend(told("cluster.unlocked", &before.lock));
            news.extend(told("cluster.locked", &self.lock));
        }
        if let Some((state, since)) = self.license
            && before.license.map(|(state, _)| state) != Some(state)
        {
            news.push(News::new("license.state", json!({"state": state, "since": since})));
        }
        for (id, conditions) in &self.conditions {
            let old = before.conditions.get(id).map_or(&[][..], Vec::as_slice);
            news.extend(self.condition_news(*id, old, conditions));
        }
        for (reconciler, repairs) in &self.drift_repairs {
            for _ in before.drift_repairs.get(reconciler).copied().unwrap_or(0)..*repairs {
                news.push(News::new("drift.repaired", json!({"reconciler": reconciler})));
            }
        }
        news
    }

    fn condition_news(&self, id: ServiceId, old: &[Condition], new: &[Condition]) -> Vec<News> {
        let about = |service: &Service| subject(service);
        let Some(mut data) = self.held.services.get(&id).map(about) else { return Vec::new() };
        let mut news = Vec::new();
        for failed in new.iter().filter(|c| c.status == ConditionStatus::Failed && !left_out_by_license(c)) {
            let same = |c: &&Condition| c.reconciler == failed.reconciler;
            let known = old.iter().find(same).is_some_and(|c| (c.status, &c.reason) == (failed.status, &failed.reason));
            if !known {
                data["reconciler"] = json!(failed.reconciler);
                data["reason"] = json!(failed.reason);
                data["message"] = json!(failed.message);
                news.push(News::new("service.failed", data.clone()));
            }
        }
        if let Some(version) = applied_version(new)
            && applied_version(old) != Some(version)
        {
            data["version"] = json!(version);
            data["reconciler"] = Value::Null;
            data["reason"] = json!("APPLIED");
            data["message"] = json!("every reconciler of this host has applied it");
            news.push(News::new("service.applied", data));
        }
        news
    }
}

impl Held {
    fn news_since(&self, before: &Held) -> Vec<News> {
        let mut news = Vec::new();
        for id in self.aliases.difference(&before.aliases) {
            news.push(News::new("cluster.merged", json!({"cluster_id": self.cluster, "alias": id})));
        }
        let peer = |kind, id: &PeerId, name: &String| News::new(kind, json!({"peer_id": id, "name": name}));
        let added = self.peers.iter().filter(|(id, _)| !before.peers.contains_key(id));
        news.extend(added.map(|(id, name)| peer("peer.added", id, name)));
        let removed = before.peers.iter().filter(|(id, _)| !self.peers.contains_key(id));
        news.extend(removed.map(|(id, name)| peer("peer.removed", id, name)));
        for (id, service) in &self.services {
            match before.services.get(id) {
                None => news.push(News::new("service.created", subject(service))),
                Some(old) if old.version != service.version => news.extend(change_of_service(old, service)),
                Some(_) => {}
            }
        }
        let deleted = before.services.iter().filter(|(id, _)| !self.services.contains_key(id));
        news.extend(deleted.map(|(_, service)| News::new("service.deleted", subject(service))));
        let credential =
            |kind, id: &ClientId, issuer: &PeerId| News::new(kind, json!({"client_id": id, "issuer_peer_id": issuer}));
        for (id, (issuer, rotated_at)) in &self.credentials {
            match before.credentials.get(id) {
                None => news.push(credential("credential.created", id, issuer)),
                Some((_, old)) if old != rotated_at => news.push(credential("credential.rotated", id, issuer)),
                Some(_) => {}
            }
        }
        let revoked = before.credentials.iter().filter(|(id, _)| !self.credentials.contains_key(id));
        news.extend(revoked.map(|(id, (issuer, _))| credential("credential.revoked", id, issuer)));
        news
    }
}

/// Another version of a service: other fields, other routes, or both.
fn change_of_service(old: &Service, new: &Service) -> Vec<News> {
    let mut news = Vec::new();
    let mut without_routes = new.body.clone();
    without_routes.routes.clone_from(&old.body.routes);
    (without_routes.next_route_id, without_routes.updated_at) = (old.body.next_route_id, old.body.updated_at);
    if without_routes != old.body {
        news.push(News::new("service.updated", subject(new)));
    }
    if old.body.routes != new.body.routes {
        let (name, routes) = (&new.body.name, new.body.routes.len());
        let data = json!({"service_id": new.id, "name": name, "version": new.version, "routes": routes});
        news.push(News::new("route.changed", data));
    }
    news
}

fn subject(service: &Service) -> Value {
    json!({
        "service_id": service.id,
        "name": service.body.name,
        "source_peer_id": service.body.source_peer_id,
        "target_peer_id": service.body.target_peer_id,
        "version": service.version,
    })
}

fn left_out_by_license(condition: &Condition) -> bool {
    condition.reconciler == Reconciler::Iptun && condition.reason == "LICENSE_FEATURE_DISABLED"
}

/// The version that every reconciler of this host has applied.
fn applied_version(conditions: &[Condition]) -> Option<u64> {
    let counted: Vec<&Condition> = conditions.iter().filter(|c| !left_out_by_license(c)).collect();
    let all = counted.iter().all(|c| c.status == ConditionStatus::Applied);
    counted.iter().map(|c| c.observed_version).min().filter(|_| all)
}

/// What was told of one peer's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    status: PeerStatus,
    at: Mono,
    /// Changes told with less than [`HOLD_LONGEST`] between them.
    flaps: u32,
    /// What was seen last, and since when.
    seen: (PeerStatus, Mono),
}

impl Told {
    /// When a change may be told.
    fn due(self) -> Mono {
        match self.flaps {
            0 => self.at,
            1 => self.at + HOLD_FIRST,
            flaps => {
                let hold = HOLD_FIRST.saturating_mul(3u32.saturating_pow(flaps - 1)).min(HOLD_LONGEST);
                (self.at + hold).max(self.seen.1 + STEADY)
            }
        }
    }
}

/// The health of peers as it was told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Healths(BTreeMap<PeerId, Told>);

impl Healths {
    /// What is to be told now, and when to look again for what is held back.
    fn news(&mut self, now: Mono, current: &BTreeMap<PeerId, (String, PeerStatus)>) -> (Vec<News>, Option<Mono>) {
        self.0.retain(|peer, _| current.contains_key(peer));
        let (mut news, mut next) = (Vec::new(), None::<Mono>);
        for (peer, (name, status)) in current {
            let kind = match status {
                PeerStatus::Healthy => "peer.healthy",
                PeerStatus::Unhealthy => "peer.unhealthy",
                PeerStatus::Unreachable => "peer.unreachable",
                PeerStatus::Discovered | PeerStatus::Handshaking => continue,
            };
            let told = self.0.get_mut(peer).map(|told| {
                if told.seen.0 != *status {
                    told.seen = (*status, now);
                }
                *told
            });
            if told.is_some_and(|told| told.status == *status) {
                continue;
            }
            if let Some(due) = told.map(Told::due).filter(|due| *due > now) {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            let flaps = told.map_or(0, |told| if now - told.at >= HOLD_LONGEST { 1 } else { told.flaps + 1 });
            self.0.insert(*peer, Told { status: *status, at: now, flaps, seen: (*status, now) });
            news.push(News::new(kind, json!({"peer_id": peer, "name": name, "status": status})));
        }
        (news, next)
    }
}

impl Node {
    pub(super) fn tell(&self, news: News) {
        self.events().record(news, self.env().clock.unix());
    }

    /// Something that no watch covers may have changed: the health of a peer, the lock.
    pub(super) fn look_for_events(&self) {
        self.inner.events_wake.notify_one();
    }

    /// Runs while the node is a member of a cluster. To one that `is_new` everything is news, to one that was started
    /// again nothing is that was there before.
    pub(super) async fn drive_events(self, is_new: bool, stop: CancellationToken) {
        let mut revision = self.store().revision();
        let mut entitlement = self.inner.entitlement.subscribe();
        let mut status = self.reconcile_status_watch();
        let mut seen = is_new.then(Seen::default);
        let mut healths = Healths::default();
        let mut is_stale = true;
        loop {
            if status.is_none() {
                status = self.reconcile_status_watch();
            }
            let wait = match self.tell_news(&mut seen, &mut healths, is_stale) {
                Ok(wait) => {
                    is_stale = false;
                    wait
                }
                Err(e) => {
                    tracing::error!(error = %e, "what happened is not known; it is looked for again");
                    STORE_RETRY
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = revision.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    is_stale = true;
                }
                _ = entitlement.changed() => {}
                () = change_of(&mut status) => {}
                () = self.inner.events_wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Tells what differs from what was `seen`, which becomes what is seen now; how long until something that is held back
    /// may be told. `is_stale`: the store has changed since.
    fn tell_news(
        &self,
        seen: &mut Option<Seen>,
        healths: &mut Healths,
        is_stale: bool,
    ) -> Result<Duration, StoreError> {
        let known = seen.as_ref().map(|seen| seen.held.clone());
        let held = match known.clone().filter(|_| !is_stale) {
            Some(held) => held,
            None => {
                let held = self.look_into_store()?;
                known.filter(|known| **known == held).unwrap_or_else(|| Arc::new(held))
            }
        };
        let now = self.look(held)?;
        if let Some(before) = seen.as_ref() {
            now.news_since(before).into_iter().for_each(|news| self.tell(news));
        }
        let mono = self.env().clock.mono();
        let (news, next) = healths.news(mono, &self.healths(&now.held));
        news.into_iter().for_each(|news| self.tell(news));
        *seen = Some(now);
        Ok(next.map_or(IDLE_WAIT, |due| due.saturating_since(mono)))
    }

    fn look_into_store(&self) -> Result<Held, StoreError> {
        let own = self.identity().map(|i| i.peer_id);
        self.store().read(|v| {
            let cluster = v.cluster()?;
            let trusted = v.trusted_peers()?.into_iter().filter(|p| Some(p.peer_id) != own);
            Ok(Held {
                services: v.services()?.into_iter().map(|s| (s.id, s)).collect(),
                credentials: v
                    .credentials()?
                    .into_iter()
                    .map(|(issuer, body)| (body.client_id, (issuer, body.rotated_at)))
                    .collect(),
                peers: trusted.map(|p| (p.peer_id, p.display_name())).collect(),
                cluster: cluster.as_ref().map(|c| c.cluster_id),
                aliases: cluster.map(|c| c.aliases).into_iter().flatten().collect(),
            })
        })
    }

    fn look(&self, held: Arc<Held>) -> Result<Seen, StoreError> {
        let status = self.reconcile_status();
        let lock = self.lock_view().ok().flatten().map(|view| {
            let lease = &view.lease;
            let shown = json!({
                "holder_peer": lease.holder_peer,
                "holder_name": view.holder_name,
                "client_id": lease.client_id,
                "purpose": lease.purpose,
                "acquired_at": lease.acquired_at,
            });
            (lease.token, shown)
        });
        Ok(Seen {
            held,
            lock,
            license: self.entitlement().map(|e| (e.state, e.state_since)),
            conditions: status.conditions,
            drift_repairs: BTreeMap::from([
                (Reconciler::Network, status.network.drift_repairs),
                (Reconciler::Firewall, status.firewall.drift_repairs),
                (Reconciler::Iptun, status.iptun.drift_repairs),
            ]),
        })
    }

    fn healths(&self, held: &Held) -> BTreeMap<PeerId, (String, PeerStatus)> {
        let own = self.identity().map(|i| i.peer_id);
        let others = self.store().read(|v| v.peers()).unwrap_or_default();
        let others = others.into_iter().filter(|p| Some(p.peer_id) != own);
        others
            .map(|p| {
                let name = held.peers.get(&p.peer_id).cloned().unwrap_or_else(|| p.display_name());
                (p.peer_id, (name, self.peer_health(p.peer_id).status))
            })
            .collect()
    }

    fn reconcile_status_watch(&self) -> Option<watch::Receiver<Status>> {
        self.inner.reconcile_status.lock().unwrap_or_else(|p| p.into_inner()).clone()
    }
}

/// Never, where nothing reconciles.
async fn change_of(status: &mut Option<watch::Receiver<Status>>) {
    let changed = match status {
        Some(status) => status.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, Route, ServiceBody};

    fn kinds(news: &[News]) -> Vec<&'static str> {
        news.iter().map(|n| n.kind).collect()
    }

    fn service(version: u64, name: &str, routes: u32) -> Service {
        let (now, mut rng) = (UnixTime::from_secs(1), Rng::from_seed([1; 32]));
        let (a, b) = (PeerId::mint(now, &mut rng), PeerId::mint(now, &mut rng));
        let route = |id| Route {
            id,
            source_cidr: None,
            dest_cidr: "10.0.0.0/8".parse().ok(),
            priority: 100,
            version,
            created_at: now,
        };
        let mut body = ServiceBody::plain(name, a, b, now);
        (body.routes, body.next_route_id) = ((1..=routes).map(route).collect(), routes + 1);
        Service { id: ServiceId::mint(now, &mut rng), version, body }
    }

    fn held(services: impl IntoIterator<Item = Service>) -> Held {
        Held { services: services.into_iter().map(|s| (s.id, s)).collect(), ..Held::default() }
    }

    #[test]
    fn a_service_is_told_by_what_changed_of_it() {
        let told = |old: &Held, new: &Held| kinds(&new.news_since(old));
        let (one, none) = (held([service(1, "a", 0)]), held([]));
        assert_eq!(told(&none, &one), ["service.created"]);
        assert_eq!(told(&one, &one), [""; 0]);
        assert_eq!(told(&one, &held([service(2, "b", 0)])), ["service.updated"]);
        assert_eq!(told(&one, &held([service(2, "a", 1)])), ["route.changed"]);
        assert_eq!(told(&one, &held([service(2, "b", 1)])), ["service.updated", "route.changed"]);
        assert_eq!(told(&one, &none), ["service.deleted"]);
    }

    #[test]
    fn conditions_are_told_once() {
        let at = UnixTime::from_secs(1);
        let condition = |status, reason: &str, observed_version| Condition {
            reconciler: Reconciler::Tproxy,
            status,
            reason: reason.into(),
            message: String::new(),
            observed_version,
            at,
        };
        let one = service(3, "a", 0);
        let id = one.id;
        let held = Arc::new(held([one]));
        let seen = |condition: Condition| Seen {
            held: held.clone(),
            conditions: BTreeMap::from([(id, vec![condition])]),
            ..Seen::default()
        };
        let nothing = Seen { held: held.clone(), ..Seen::default() };
        let applied = seen(condition(ConditionStatus::Applied, "APPLIED", 3));
        let later = seen(condition(ConditionStatus::Applied, "APPLIED", 4));
        let failed = seen(condition(ConditionStatus::Failed, "X", 4));
        assert_eq!(kinds(&applied.news_since(&nothing)), ["service.applied"]);
        assert_eq!(kinds(&applied.news_since(&applied)), [""; 0]);
        assert_eq!(kinds(&later.news_since(&applied)), ["service.applied"]);
        assert_eq!(kinds(&failed.news_since(&later)), ["service.failed"]);
        assert_eq!(kinds(&seen(condition(ConditionStatus::Failed, "X", 5)).news_since(&failed)), [""; 0]);
        assert_eq!(kinds(&seen(condition(ConditionStatus::Pending, "Y", 5)).news_since(&failed)), [""; 0]);
        let repaired = Seen { drift_repairs: BTreeMap::from([(Reconciler::Network, 1)]), ..nothing.clone() };
        assert_eq!(kinds(&repaired.news_since(&nothing)), ["drift.repaired"]);
    }

    #[test]
    fn a_flapping_peer_is_told_seldom_and_its_last_state_always() {
        let peer = PeerId::mint(UnixTime::from_secs(1), &mut Rng::from_seed([1; 32]));
        let current = |status| BTreeMap::from([(peer, ("tokyo".to_owned(), status))]);
        let (mut healths, mut now, mut told) = (Healths::default(), Mono::from_ms(0), 0);
        assert_eq!(kinds(&healths.news(now, &current(PeerStatus::Healthy)).0), ["peer.healthy"]);
        // Silence must last 30 s before it counts.
        for _ in 0..50 {
            for (status, seconds) in [(PeerStatus::Unhealthy, 10), (PeerStatus::Healthy, 30)] {
                now = now + Duration::from_secs(seconds);
                told += healths.news(now, &current(status)).0.len();
            }
        }
        assert!(told <= 5, "{told} events of 50 flaps");
        for status in [PeerStatus::Unhealthy, PeerStatus::Healthy] {
            let (news, due) = healths.news(now, &current(status));
            if news.is_empty() && healths.0[&peer].status != status {
                now = due.expect("what is held back is looked at again");
                assert_eq!(healths.news(now, &current(status)).0.len(), 1);
            }
            assert_eq!(healths.0[&peer].status, status, "the last state is told in the end");
        }
        now = now + HOLD_LONGEST;
        assert_eq!(kinds(&healths.news(now, &current(PeerStatus::Unhealthy)).0), [""; 0], "not before it is steady");
    }
}
