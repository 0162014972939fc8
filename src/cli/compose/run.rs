//! One step after the other (compose.md §4): what a failed step was needed for is skipped, the rest goes on.

use super::{
    apply::Job,
    id_of,
    lease::Lease,
    survey::{self, Seat, is_member, view_of},
};
use crate::{
    cli::{
        args::Globals,
        bootstrap::{BootstrapRequest, entry_of, with_exact_text},
        client::{Auth, Call},
        config::{ClusterEntry, Config, PeerEntry, peer_entry},
        errors::{CliError, Exit},
        output,
        peers::{ADD_PATIENCE, fold_newcomer},
        session::Session,
    },
    compose::{Contact, Live, Need, Peer, Step, Work},
    env::{Clock, SystemClock},
    model::{PeerId, ServiceId},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// A newcomer is introduced to all members by then.
const INTRODUCED_WITHIN: Duration = Duration::from_secs(60);
/// A deletion is known to all members by then.
const HEARD_WITHIN: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// What came of a run.
pub struct Outcome {
    pub done: Vec<String>,
    pub failed: Vec<(String, CliError)>,
    /// With the reason.
    pub skipped: Vec<(String, String)>,
    pub interrupted: Option<Exit>,
    /// The first write that `--wait` gave up waiting for.
    pub not_applied: Option<CliError>,
}

/// SIGINT and SIGTERM let the step in progress finish. A second one ends the process at once.
pub struct Interrupts(Arc<AtomicU8>);

impl Interrupts {
    pub fn watch() -> Result<Self, CliError> {
        let seen = Arc::new(AtomicU8::new(0));
        for (kind, exit) in [(SignalKind::interrupt(), Exit::Interrupted), (SignalKind::terminate(), Exit::Terminated)]
        {
            let mut signals = signal(kind)
                .map_err(|e| CliError::new(Exit::General, "INTERNAL", format!("cannot watch for signals: {e}")))?;
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if seen.swap(exit as u8, Ordering::Relaxed) != 0 {
                        std::process::exit(exit as i32);
                    }
                }
            });
        }
        Ok(Self(seen))
    }

    fn seen(&self) -> Option<Exit> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            code if code == Exit::Terminated as u8 => Some(Exit::Terminated),
            _ => Some(Exit::Interrupted),
        }
    }
}

pub struct Run<'a> {
    globals: &'a Globals,
    session: Session,
    job: &'a Job,
    /// Ids of listed peers, by name in the file.
    peers: BTreeMap<String, PeerId>,
    /// Ids of services that this run made, by name.
    services: BTreeMap<String, ServiceId>,
    /// Owners of the services that the plan changes.
    owners: BTreeMap<ServiceId, PeerId>,
    /// Whether this run has deleted a service.
    deleted_any: bool,
    seat: Option<PeerId>,
    lease: Option<Lease>,
    interrupts: Interrupts,
    unmet: BTreeSet<Need>,
    outcome: Outcome,
}

impl<'a> Run<'a> {
    #[expect(clippy::too_many_arguments, reason = "what a survey and a plan found, each of another kind")]
    pub fn new(
        globals: &'a Globals,
        session: Session,
        job: &'a Job,
        live: &Live,
        contacts: &[Contact],
        seat: Option<PeerId>,
        lease: Option<Lease>,
        interrupts: Interrupts,
    ) -> Self {
        let mut peers = BTreeMap::new();
        let mut unmet = BTreeSet::new();
        for (peer, contact) in job.file.peers.iter().zip(contacts) {
            let by_name = || live.peers.iter().find(|l| l.name.eq_ignore_ascii_case(&peer.name)).map(|l| l.id);
            let id = match contact {
                Contact::Bootstrapped(id) => Some(*id),
                Contact::Unreachable => by_name(),
                Contact::Unbootstrapped => None,
            };
            if *contact == Contact::Unreachable {
                unmet.insert(Need::Peer(peer.name.clone()));
            }
            peers.extend(id.map(|id| (peer.name.clone(), id)));
        }
        let owners = live.services.iter().map(|s| (s.id, s.source)).collect();
        let outcome = Outcome { done: vec![], failed: vec![], skipped: vec![], interrupted: None, not_applied: None };
        let services = BTreeMap::new();
        let deleted_any = false;
        Run { globals, session, job, peers, services, owners, deleted_any, seat, lease, interrupts, unmet, outcome }
    }

    /// Carries the steps out, in their order.
    pub async fn all(&mut self, steps: Vec<Step>) -> Result<Outcome, CliError> {
        let total = steps.len();
        let mut armed = self.job.confirm_within.is_none();
        for (i, step) in steps.iter().enumerate() {
            if let Some(exit) = self.interrupts.seen() {
                self.outcome.interrupted = Some(exit);
                self.skip_all(&steps[i..], "interrupted");
                break;
            }
            if let Err(e) = self.keep_lock().await {
                self.skip_all(&steps[i..], &format!("the cluster lock was lost: {}", e.text));
                self.outcome.failed.push(("keep the cluster lock".to_owned(), e));
                break;
            }
            if !armed && !is_about_peers(step) {
                // Nothing may change before every owner keeps the way back.
                self.arm(&steps).await?;
                armed = true;
            }
            if let Some(need) = step.needs.iter().find(|need| self.unmet.contains(*need)) {
                self.outcome.skipped.push((step.title.clone(), need_words(need)));
                self.unmet.extend(step.makes.clone());
                continue;
            }
            self.session.log.hint(&format!("[{}/{total}] {}", i + 1, step.title));
            match self.step(&step.work).await {
                Ok(()) => self.outcome.done.push(step.title.clone()),
                Err(e) => {
                    self.unmet.extend(step.makes.clone());
                    self.outcome.failed.push((step.title.clone(), e));
                }
            }
        }
        self.sync().await;
        if self.job.save_config {
            self.save_config().await;
        }
        if let (Some(within), false, true) = (self.job.confirm_within, self.outcome.done.is_empty(), armed) {
            let seconds = within.as_secs();
            self.session
                .log
                .hint(&format!("Unless confirmed within {seconds} s the changes are undone: arctic compose confirm"));
        }
        let empty = Outcome { done: vec![], failed: vec![], skipped: vec![], interrupted: None, not_applied: None };
        Ok(std::mem::replace(&mut self.outcome, empty))
    }

    /// Gives the lock back.
    pub async fn finish(mut self) -> (Session, Result<(), CliError>) {
        let released = match self.lease.take() {
            Some(lease) => lease.give_back(&self.session).await,
            None => Ok(()),
        };
        (self.session, released)
    }

    fn skip_all(&mut self, steps: &[Step], reason: &str) {
        self.outcome.skipped.extend(steps.iter().map(|s| (s.title.clone(), reason.to_owned())));
    }

    async fn keep_lock(&mut self) -> Result<(), CliError> {
        match &mut self.lease {
            Some(lease) => lease.renew(&self.session).await,
            None => Ok(()),
        }
    }

    async fn step(&mut self, work: &Work) -> Result<(), CliError> {
        match work {
            Work::Bootstrap { peer } => self.bootstrap(peer).await,
            Work::Join { peer } => self.join(peer).await,
            Work::Views { viewer } => self.views(viewer).await,
            Work::CreateService { name, source, target, body } => {
                let mut body = body.clone();
                body.insert("source_peer_id".to_owned(), json!(self.peer_id(source)?));
                body.insert("target_peer_id".to_owned(), json!(self.peer_id(target)?));
                let body = Value::Object(body);
                let made = self.write_once_known(|| Call::post("/v1/services", &body)).await?;
                self.services.insert(name.clone(), id_of(&made["id"])?);
                Ok(())
            }
            Work::UpdateService { id, version, body } => {
                let (path, body) = (format!("/v1/services/{id}"), Value::Object(body.clone()));
                self.write_once_known(|| Call::put(path.clone(), &body).if_match(*version)).await.map(drop)
            }
            Work::DeleteService { id, version } => {
                self.gone(Call::delete(format!("/v1/services/{id}")).if_match(*version)).await?;
                self.deleted_any = true;
                Ok(())
            }
            Work::AddRoutes { service, id, routes } => {
                let id = id.or_else(|| self.services.get(service).copied());
                let id = id.ok_or_else(|| CliError::not_found(format!("service {service} was not made")))?;
                let call = Call::post(format!("/v1/services/{id}/routes"), &json!({ "routes": routes }));
                self.write(call).await.map(drop)
            }
            Work::SetPriority { id, route, version, priority } => {
                let path = format!("/v1/services/{id}/routes/{route}");
                self.write(Call::put(path, &json!({ "priority": priority })).if_match(*version)).await.map(drop)
            }
            Work::DeleteRoute { id, route, version } => {
                self.gone(Call::delete(format!("/v1/services/{id}/routes/{route}")).if_match(*version)).await
            }
        }
    }

    async fn write(&mut self, call: Call) -> Result<Value, CliError> {
        let answer = self.session.call(self.session.writing.call(call.applied())).await?;
        let waited = self.session.writing.check(&answer);
        if self.outcome.not_applied.is_none() {
            self.outcome.not_applied = waited.err();
        }
        Ok(answer)
    }

    /// As `write`, for what may need a name or a place that this run made free: its owner may hear of that a moment
    /// later than the owner of what was deleted.
    async fn write_once_known(&mut self, call: impl Fn() -> Call) -> Result<Value, CliError> {
        let clock = SystemClock::new();
        let started = clock.mono();
        loop {
            let refused = match self.write(call()).await {
                Err(e) if matches!(e.code.as_str(), "ALREADY_EXISTS" | "SERVICE_LIMIT_EXCEEDED") => e,
                other => return other,
            };
            if !self.deleted_any || clock.mono() - started > HEARD_WITHIN {
                return Err(refused);
            }
            self.sync().await;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// What somebody else has deleted meanwhile is as gone as it should be.
    async fn gone(&mut self, call: Call) -> Result<(), CliError> {
        match self.write(call).await {
            Err(e) if e.code != "NOT_FOUND" => Err(e),
            _ => Ok(()),
        }
    }

    fn peer(&self, name: &str) -> Result<&'a Peer, CliError> {
        let unknown = || CliError::not_found(format!("peer {name} is not listed"));
        self.job.file.peers.iter().find(|p| p.name == name).ok_or_else(unknown)
    }

    fn peer_id(&self, name: &str) -> Result<PeerId, CliError> {
        self.peers.get(name).copied().ok_or_else(|| CliError::not_found(format!("peer {name} has not joined")))
    }

    /// The credential is kept as soon as it is known: it is given out this once.
    async fn bootstrap(&mut self, name: &str) -> Result<(), CliError> {
        let peer = self.peer(name)?;
        let first = self.seat.is_none();
        if first && !self.job.save_config {
            let text = "the first peer's credential would be lost with --save-config=false";
            return Err(CliError::usage(text));
        }
        let license = self.job.license.as_deref().ok_or_else(|| CliError::missing("--license-file"))?;
        let request = BootstrapRequest { license, name: Some(name), endpoints: Some(&peer.endpoints) };
        let body = serde_json::to_string(&request)
            .map_err(|e| CliError::new(Exit::General, "INTERNAL", format!("cannot write the request: {e}")))?;
        let client = survey::public_client(&self.session, peer.endpoints.clone());
        let answer = client.json(Call::post_text("/v1/bootstrap", body).public()).await.map_err(with_exact_text)?;
        let id: PeerId = id_of(&answer["peer_id"])?;
        self.peers.insert(name.to_owned(), id);
        let agent = client.agent().or(peer.endpoints.first());
        if let (true, Some(path), Some(agent)) = (self.job.save_config, &self.session.config_path, agent) {
            let entry = entry_of(agent, name, license, &answer);
            let key = entry.cluster_id.clone();
            Config::update(path, |config| config.take_up_bootstrap(entry, first))?;
            if first {
                self.session.reload(key)?;
            } else if let Some(cluster) = self.session.cluster.clone() {
                self.session.reload(cluster)?;
            }
        }
        if first {
            self.seat = Some(id);
            let seat = Seat { peer, id, cluster_id: output::plain(&answer["cluster_id"]) };
            survey::sit(self.globals, &mut self.session, &seat, &self.job.reach)?;
            self.lease = Some(Lease::take(&self.session, &seat.cluster_id, &self.job.purpose).await?);
        }
        Ok(())
    }

    async fn join(&mut self, name: &str) -> Result<(), CliError> {
        let peer = self.peer(name)?;
        if self.peers.get(name).is_some_and(|id| Some(*id) == self.seat) {
            return Ok(());
        }
        let body = json!({ "endpoints": peer.endpoints, "name": name });
        match self.session.call(Call::post("/v1/peers", &body).patience(ADD_PATIENCE)).await {
            Ok(added) => {
                let id: PeerId = id_of(&added["id"])?;
                self.peers.insert(name.to_owned(), id);
                for warning in added["warnings"].as_array().into_iter().flatten() {
                    self.session.log.warn(&output::plain(warning));
                }
            }
            // By gossip since the plan was made.
            Err(e) if e.code == "ALREADY_EXISTS" && self.peers.contains_key(name) => {}
            Err(e) => return Err(e),
        }
        if let (true, Some(id)) = (self.job.save_config, self.peers.get(name).copied())
            && let Some(surviving) = fold_newcomer(&self.session, &id.to_string()).await?
        {
            self.session.reload(surviving)?;
        }
        Ok(())
    }

    /// Names and QoS of all listed peers on one of them, as soon as it knows them all.
    async fn views(&mut self, viewer: &str) -> Result<(), CliError> {
        let viewer = self.peer_id(viewer)?;
        let wanted: Vec<(&Peer, PeerId)> =
            self.job.file.peers.iter().filter_map(|p| self.peers.get(&p.name).map(|id| (p, *id))).collect();
        let rows = self.rows_once_known(viewer, &wanted).await?;
        for (peer, id) in wanted {
            let Some(row) = row_of(&rows, id) else { continue };
            let seen = view_of(row);
            let mut body = json!({});
            if seen.name != peer.name {
                body["name"] = json!(peer.name);
            }
            if id != viewer && seen.qos_enabled != peer.qos_enabled {
                body["qos_enabled"] = json!(peer.qos_enabled);
            }
            if body.as_object().is_some_and(|b| !b.is_empty()) {
                let call = Call::put(format!("/v1/peers/{id}"), &body);
                self.session.call(self.at(call, viewer)).await?;
            }
        }
        Ok(())
    }

    /// The called agent handles its own calls.
    fn at(&self, call: Call, peer: PeerId) -> Call {
        if Some(peer) == self.seat { call } else { call.at(peer) }
    }

    async fn rows_once_known(&self, viewer: PeerId, wanted: &[(&Peer, PeerId)]) -> Result<Vec<Value>, CliError> {
        let clock = SystemClock::new();
        let started = clock.mono();
        loop {
            let rows = match Some(viewer) == self.seat {
                true => self.session.peers().await?,
                false => survey::peers_at(&self.session, viewer).await?,
            };
            let missing = wanted.iter().find(|(peer, id)| {
                !self.unmet.contains(&Need::Peer(peer.name.clone())) && !row_of(&rows, *id).is_some_and(is_member)
            });
            let Some((peer, _)) = missing else { return Ok(rows) };
            if clock.mono() - started > INTRODUCED_WITHIN {
                let text = format!("peer {} is not known there yet", peer.name);
                return Err(
                    CliError::new(Exit::General, "NOT_FOUND", text).with_hint("arctic cluster sync, then apply again")
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Every owner keeps the reverse of what will be changed (compose.md §5).
    async fn arm(&mut self, steps: &[Step]) -> Result<(), CliError> {
        let Some(within) = self.job.confirm_within else { return Ok(()) };
        let mut by_owner: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for step in steps {
            let (owner, service) = match &step.work {
                Work::CreateService { name, source, .. } => (self.peers.get(source).copied(), name.clone()),
                Work::UpdateService { id, .. }
                | Work::DeleteService { id, .. }
                | Work::SetPriority { id, .. }
                | Work::DeleteRoute { id, .. }
                | Work::AddRoutes { id: Some(id), .. } => (self.owners.get(id).copied(), id.to_string()),
                _ => continue,
            };
            if let Some(owner) = owner {
                let services = by_owner.entry(owner).or_default();
                if !services.contains(&service) {
                    services.push(service);
                }
            }
        }
        let mut pending: Option<Value> = None;
        for (owner, services) in by_owner {
            let mut body = json!({ "within_s": within.as_secs(), "services": services });
            if let Some(id) = &pending {
                body["id"] = id.clone();
            }
            let call = Call::post("/v1/cluster/pending-confirm", &body);
            let armed = self.session.call(self.at(call, owner)).await;
            pending = Some(armed?["pending"]["id"].clone());
        }
        Ok(())
    }

    /// So that all members know before the next heartbeat; the next round tells them anyway.
    async fn sync(&mut self) {
        if self.seat.is_none() {
            return;
        }
        if let Err(e) = self.session.call(Call::post_empty("/v1/cluster/sync").patience(ADD_PATIENCE)).await {
            self.session.log.debug(&format!("no sync: {}", e.text));
        }
    }

    /// Lists the peers of the file in the entry of their cluster, a new one for a credential that was given.
    async fn save_config(&self) {
        let Some(path) = &self.session.config_path else { return };
        let Some(fresh) = self.entry_to_save().await else { return };
        let known = self.session.config.clusters.get(&fresh.cluster_id).map(|c| c.peers.as_slice()).unwrap_or_default();
        let lists = |e: &PeerEntry| known.iter().any(|p| p.peer_id == e.peer_id && p.name == e.name);
        if fresh.peers.iter().all(lists) {
            return;
        }
        let saved = Config::update(path, |config| {
            let key = fresh.cluster_id.clone();
            config.current_cluster.get_or_insert_with(|| key.clone());
            let entry = config.clusters.entry(key).or_insert_with(|| ClusterEntry { peers: vec![], ..fresh.clone() });
            for new in &fresh.peers {
                match entry.peers.iter_mut().find(|p| p.peer_id == new.peer_id) {
                    Some(old) => old.name.clone_from(&new.name),
                    None => entry.peers.push(new.clone()),
                }
            }
        });
        if let Err(e) = saved {
            self.session.log.warn(&format!("the config file was not updated: {}", e.text));
        }
    }

    /// The entry as this run knows it; `cluster_id` is its key. None where no credential could be kept with it.
    async fn entry_to_save(&self) -> Option<ClusterEntry> {
        let mut entry = match (&self.session.cluster, &self.session.client.auth) {
            (Some(key), _) => ClusterEntry { cluster_id: key.clone(), ..ClusterEntry::default() },
            (None, Auth::Credential { client_id, client_secret }) => {
                let identity = self.session.call(Call::get("/v1/cluster/identity").public()).await.ok()?;
                let (client_id, client_secret) = (client_id.clone(), client_secret.reveal().to_owned());
                let cluster_id = output::plain(&identity["cluster_id"]);
                ClusterEntry { cluster_id, client_id, client_secret, ..ClusterEntry::default() }
            }
            _ => return None,
        };
        for peer in &self.job.file.peers {
            let (Some(id), Some(first)) = (self.peers.get(&peer.name), peer.endpoints.first()) else { continue };
            if !self.unmet.contains(&Need::Peer(peer.name.clone())) {
                let mut listed = peer_entry(&id.to_string(), &peer.name, first);
                listed.endpoints = peer.endpoints.iter().map(crate::cli::values::agent_url).collect();
                entry.peers.push(listed);
            }
        }
        Some(entry)
    }
}

fn row_of(rows: &[Value], id: PeerId) -> Option<&Value> {
    let id = id.to_string();
    rows.iter().find(|row| row["id"] == id.as_str())
}

fn is_about_peers(step: &Step) -> bool {
    matches!(step.work, Work::Bootstrap { .. } | Work::Join { .. } | Work::Views { .. })
}

fn need_words(need: &Need) -> String {
    match need {
        Need::Peer(name) => format!("peer {name} is not there"),
        Need::License(name) => format!("peer {name} has no license"),
        Need::Service(name) => format!("service {name} is not there"),
        Need::Gone(name) => format!("the old service {name} is still there"),
    }
}
