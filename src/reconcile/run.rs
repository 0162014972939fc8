//! The loop: wake, look, plan, apply, say how it went.

use super::{
    desired::{Change, Compiled, Desired, Marks, Skipped, Source, change_of, compile},
    firewall::{Applied, Drift, Firewall, FirewallStep, plan},
    iptun::{self, IpTunnel, TunnelChange},
    lease::{Leased, Leases},
    network::{Network, Worked, interface_wishes},
    pace::{Changes, Looks, Pace, Rewrite},
    report::Report,
    status::{Condition, ConditionStatus, Reconciler, ReconcilerStatus, Status},
    tproxy::{Engine, EngineState, Published},
};
use crate::{
    env::{Clock, TunnelState},
    kernel::{Hints, Kernel, KernelError, MarkMask},
    model::{Mono, Rng, ServiceId, UnixTime},
    routing::Forwarding,
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone)]
pub struct Settings {
    pub mask: MarkMask,
    /// `PARENT_INTERFACE`.
    pub parent_interface: Option<String>,
    /// For the leases of interfaces.
    pub lease_rng: Rng,
    /// `ON_STOP=clear`: a clean stop removes tables, rules and routes.
    pub clear_on_stop: bool,
    pub pace: Pace,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mask: MarkMask::default(),
            parent_interface: None,
            lease_rng: Rng::from_seed([0; 32]),
            clear_on_stop: true,
            pace: Pace::default(),
        }
    }
}

/// The reconcilers of one host, before they run.
pub struct Reconcile<S> {
    kernel: Arc<dyn Kernel>,
    clock: Arc<dyn Clock>,
    source: S,
    settings: Settings,
    marks: Marks,
    network: Network,
    leases: Leases,
    leased: watch::Receiver<Leased>,
    firewall: Firewall,
    engine: Engine,
    tunnel: IpTunnel,
    tunnel_state: watch::Receiver<TunnelState>,
    status: watch::Sender<Status>,
    reports: Reports,
    failures_in_a_row: u32,
    /// The input of the last pass, if that succeeded.
    settled: Option<Desired>,
}

struct Reports {
    network: Report,
    firewall: Report,
    tproxy: Report,
    iptun: Report,
}

enum Wake {
    Stop,
    Liveness,
    Pass,
    Links,
    Engines,
    Changed(Change),
    /// Changes are to be acted upon.
    Act,
    Hint,
}

/// What happens at a time, and when.
struct Due {
    pass: Instant,
    liveness: Instant,
    links: Option<Instant>,
    changes: Option<Instant>,
}

impl<S: Source> Reconcile<S> {
    pub fn new(kernel: Arc<dyn Kernel>, clock: Arc<dyn Clock>, source: S, settings: Settings) -> Self {
        let leases = Leases::new(kernel.clone(), clock.clone(), settings.lease_rng.clone());
        Self {
            leased: leases.watch(),
            leases,
            kernel,
            clock,
            source,
            settings,
            marks: Marks::default(),
            network: Network::default(),
            firewall: Firewall::default(),
            engine: Engine::default(),
            tunnel: IpTunnel::default(),
            tunnel_state: watch::Sender::default().subscribe(),
            status: watch::Sender::default(),
            reports: Reports {
                network: Report::new(Reconciler::Network),
                firewall: Report::new(Reconciler::Firewall),
                tproxy: Report::new(Reconciler::Tproxy),
                iptun: Report::new(Reconciler::Iptun),
            },
            failures_in_a_row: 0,
            settled: None,
        }
    }

    /// With an IP tunnel; there is none otherwise.
    pub fn with_tunnel(self, tunnel_state: watch::Receiver<TunnelState>) -> Self {
        Self { tunnel_state, ..self }
    }

    /// What the engines read. Start them with it, and tell `run` where they listen.
    pub fn forwarding(&self) -> watch::Receiver<Arc<Forwarding>> {
        self.engine.watch()
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until `stop`; then the kernel state is removed or left, as set. Not cancel-safe otherwise.
    pub async fn run(mut self, mut engines: watch::Receiver<EngineState>, stop: CancellationToken) {
        self.reports.network.info("started");
        self.reports.tproxy.info("started");
        self.reports.iptun.info("started");
        self.reports.firewall.info(&format!("started, marks {}", self.settings.mask));
        let mut hints = self.kernel.changes();
        let mut seen = *hints.borrow_and_update();
        let mut next_pass = Instant::now();
        let mut next_liveness = Instant::now() + self.settings.pace.liveness;
        let mut links = Looks::default();
        let mut changes = Changes::default();
        loop {
            let due = Due { pass: next_pass, liveness: next_liveness, links: links.due, changes: changes.due_at() };
            match self.wake(&stop, &mut engines, &mut hints, due).await {
                Wake::Stop => break,
                Wake::Liveness => {
                    next_liveness = Instant::now() + self.settings.pace.liveness;
                    if self.feed_liveness().await.is_err() {
                        next_pass = Instant::now();
                    }
                    self.hold_settings().await;
                }
                Wake::Pass => {
                    let drift = self.drift().await;
                    next_pass = self.repairing_pass(&engines, drift, Rewrite::Always).await;
                }
                Wake::Links => {
                    links.done();
                    // To read what is desired is to have seen its change.
                    if !self.is_settled() {
                        next_pass = self.repairing_pass(&engines, Ok(None), Rewrite::Always).await;
                    } else if !self.look_at_links().await {
                        next_pass = next_pass.min(Instant::now() + self.settings.pace.retry_first);
                    }
                }
                Wake::Engines => next_pass = self.repairing_pass(&engines, Ok(None), Rewrite::Always).await,
                Wake::Changed(change) => changes.note(change, self.settings.pace.coalesce, Instant::now()),
                Wake::Act => {
                    let asked = changes.take() == Some(Change::Asked);
                    if asked || !self.is_settled() {
                        let rewrite = if asked { Rewrite::Always } else { Rewrite::IfChanged };
                        let began = Instant::now();
                        let again = self.repairing_pass(&engines, Ok(None), rewrite).await;
                        // A pass that may have left the tables alone does not put off the one that writes them.
                        next_pass = if asked { again } else { next_pass.min(again) };
                        changes.passed(began.elapsed(), self.settings.pace.rest_longest, Instant::now());
                    }
                }
                Wake::Hint => {
                    sleep(self.settings.pace.coalesce).await;
                    let now = *hints.borrow_and_update();
                    let ours = (now.tables, now.policy) != (seen.tables, seen.policy);
                    if now.links != seen.links {
                        links.ask(self.settings.pace.links);
                    }
                    seen = now;
                    let drift = if ours { self.drift().await } else { Ok(None) };
                    if !matches!(drift, Ok(None)) {
                        next_pass = self.repairing_pass(&engines, drift, Rewrite::Always).await;
                    }
                }
            }
        }
        self.stop().await;
    }

    async fn wake(
        &mut self,
        stop: &CancellationToken,
        engines: &mut watch::Receiver<EngineState>,
        hints: &mut watch::Receiver<Hints>,
        due: Due,
    ) -> Wake {
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            () = sleep_until(due.liveness) => Wake::Liveness,
            () = sleep_until(due.pass) => Wake::Pass,
            () = sleep_until(due.links.unwrap_or(due.pass)), if due.links.is_some() => Wake::Links,
            () = sleep_until(due.changes.unwrap_or(due.pass)), if due.changes.is_some() => Wake::Act,
            () = change_of(&mut self.leased) => Wake::Links,
            () = change_of(engines) => Wake::Engines,
            () = change_of(&mut self.tunnel_state) => Wake::Engines,
            change = self.source.changed() => Wake::Changed(change),
            () = change_of(hints) => Wake::Hint,
        }
    }

    /// Whether the last pass succeeded with the very input that there is now, so that only the revision is new. Most
    /// commits are about other things, as the status of peers.
    fn is_settled(&mut self) -> bool {
        let (Ok(now), Some(settled)) = (self.source.desired(), &self.settled) else { return false };
        let revision = now.revision;
        let same = Desired { revision: settled.revision, ..now } == *settled;
        if same {
            self.status.send_modify(|s| s.applied_revision = revision);
        }
        same
    }

    /// Only while something is captured: the base tables need no liveness.
    async fn feed_liveness(&mut self) -> Result<(), KernelError> {
        if self.firewall.applied().is_none_or(|ruleset| ruleset.captures.is_empty()) {
            return Ok(());
        }
        let fed = self.kernel.feed_liveness().await;
        if let Err(e) = &fed {
            self.reports.firewall.debug(&e.to_string());
        }
        fed
    }

    /// The kernel does not say when someone changes them.
    async fn hold_settings(&mut self) {
        match self.kernel.hold_host_settings().await {
            Ok(set) if set.is_empty() => {}
            Ok(set) => {
                let what = format!("settings of the host were changed, they are again {}", set.join(", "));
                self.reports.network.event("drift.repaired", &what);
                self.status.send_modify(|s| s.network.drift_repairs += 1);
            }
            Err(e) => self.reports.network.debug(&e.to_string()),
        }
    }

    async fn drift(&self) -> Result<Option<Drift>, KernelError> {
        self.firewall.drift(&*self.kernel).await
    }

    /// One pass, which also repairs drift; when the next one is due.
    async fn repairing_pass(
        &mut self,
        engines: &watch::Receiver<EngineState>,
        drift: Result<Option<Drift>, KernelError>,
        rewrite: Rewrite,
    ) -> Instant {
        let engines = engines.borrow().clone();
        if let Err(e) = &drift {
            self.reports.firewall.debug(&e.to_string());
        }
        let succeeded = self.pass(&engines, matches!(drift, Ok(None)), rewrite).await;
        if let (true, Ok(Some(drift))) = (succeeded, drift) {
            self.reports.firewall.event("drift.repaired", drift.what);
            self.status.send_modify(|s| s.firewall.drift_repairs += 1);
        }
        let pace = self.settings.pace;
        self.failures_in_a_row = if succeeded { 0 } else { self.failures_in_a_row.saturating_add(1) };
        Instant::now() + if succeeded { pace.resync } else { pace.retry(self.failures_in_a_row) }
    }

    /// `intact`: the kernel is not known to differ from what was applied last.
    async fn pass(&mut self, engines: &EngineState, intact: bool, rewrite: Rewrite) -> bool {
        let started = self.clock.mono();
        self.settled = None;
        let desired = match self.source.desired() {
            Ok(desired) => desired,
            Err(e) => {
                let reason = format!("reading the store: {e}");
                let failed = || Err(reason.clone());
                let outcomes = Outcomes { network: failed(), firewall: failed(), tproxy: failed(), iptun: failed() };
                self.finish(started, None, &outcomes, intact);
                return false;
            }
        };
        let network = self.work_on_interfaces(&desired).await;
        let mut compiled = compile(&desired, self.settings.mask, engines.intercept(), &mut self.marks);
        if let EngineState::Failed(reason) = engines {
            without_engines(&mut compiled, reason);
        }
        let tunnel_state = self.tunnel_state.borrow_and_update().clone();
        iptun::complete(&mut compiled, &desired, &tunnel_state);
        let tunnel = self.tunnel.apply(&*self.kernel, compiled.ruleset.tunnel.as_ref(), &tunnel_state).await;
        let before = self.firewall.applied().cloned();
        let mut done = Applied::default();
        let mut published = None;
        let mut outcome = Ok(());
        let there = rewrite == Rewrite::IfChanged && intact && before.as_ref() == Some(&compiled.ruleset);
        for step in plan(before.as_ref(), &compiled.ruleset) {
            if there && matches!(step, FirewallStep::Tables(_)) {
                continue;
            }
            // The engines change between the rules that both states share and the new rules.
            if !matches!(step, FirewallStep::Shrink(_)) && published.is_none() {
                published = Some(self.engine.publish(compiled.forwarding.clone()));
            }
            outcome = self.firewall.apply(&*self.kernel, step, &mut done).await;
            if outcome.is_err() {
                break;
            }
        }
        // A rule that cannot be removed must not keep a revoked peer alive in the engines.
        let published = published.unwrap_or_else(|| self.engine.publish(compiled.forwarding.clone()));
        let changed = before.as_ref() != self.firewall.applied() || !done.policy.is_empty();
        self.report(&compiled, &published, &done, changed && outcome.is_ok(), started);
        let firewall = outcome.map_err(|e| e.to_string());
        self.report_tunnel(&compiled, &tunnel, started);
        let succeeded = firewall.is_ok() && network.is_ok();
        let iptun = tunnel.map(drop).and(iptun::outcome(&tunnel_state));
        let outcomes = Outcomes { network, firewall, tproxy: engines.outcome(), iptun };
        self.finish(started, Some(&compiled), &outcomes, intact);
        self.settled = succeeded.then_some(desired);
        succeeded
    }

    /// Because links changed, with nothing else to do; whether it went well.
    async fn look_at_links(&mut self) -> bool {
        let started = self.clock.mono();
        let Some(desired) = self.settled.clone() else { return true };
        let outcome = self.work_on_interfaces(&desired).await;
        note(&mut self.reports.network, &outcome);
        let (at, took_ms) = (self.clock.unix(), self.took_ms(started));
        self.status.send_modify(|status| count(&mut status.network, &outcome, at, took_ms));
        outcome.is_ok()
    }

    async fn work_on_interfaces(&mut self, desired: &Desired) -> Result<(), String> {
        // Before it sets what is needed now, so that what others changed is told.
        self.hold_settings().await;
        let parent = self.settings.parent_interface.clone();
        let worked = self.network.work(&*self.kernel, &mut self.leases, desired, parent.as_deref()).await;
        let worked = worked.map_err(|e| e.to_string())?;
        let report = &mut self.reports.network;
        worked.lines.iter().for_each(|line| report.info(line));
        worked.repaired.iter().for_each(|what| report.event("drift.repaired", what));
        report.skipped(worked.skipped.iter().map(|(id, s)| (format!("service {id}"), s.message.clone())).collect());
        let at = self.clock.unix();
        self.status.send_modify(|status| {
            status.network.drift_repairs += worked.repaired.len() as u64;
            set_interface_conditions(status, desired, &worked, at);
            status.interfaces = worked.facts.clone();
        });
        worked.failure.map_or(Ok(()), Err)
    }

    fn took_ms(&self, started: Mono) -> u64 {
        u64::try_from(self.clock.mono().saturating_since(started).as_millis()).unwrap_or(u64::MAX)
    }

    fn report(
        &mut self,
        compiled: &Compiled,
        published: &Published,
        done: &Applied,
        firewall_changed: bool,
        started: Mono,
    ) {
        let took = self.clock.mono().saturating_since(started).as_millis();
        let revision = compiled.forwarding.revision;
        if !published.is_empty() {
            let (added, changed, removed) = (published.added.len(), published.changed.len(), published.removed.len());
            let (services, peers) = (compiled.forwarding.services.len(), compiled.forwarding.peers.len());
            self.reports.tproxy.info(&format!(
                "applied engine and shaper config: {services} services (+{added} ~{changed} -{removed}), {peers} peers, \
                 in {took} ms, revision {revision}"
            ));
        }
        let text = format!(
            "applied {} capture routes, {} excluded peer ports, policy +{} -{}, {} transactions, in {took} ms, revision \
             {revision}",
            compiled.ruleset.captures.len(),
            compiled.ruleset.peers.len(),
            done.policy.added.len(),
            done.policy.deleted.len(),
            done.transactions,
        );
        if firewall_changed {
            self.reports.firewall.info(&text);
        } else {
            self.reports.firewall.debug(&text);
        }
        self.reports.firewall.skipped(skipped_by(compiled, Reconciler::Firewall));
        self.reports.tproxy.skipped(skipped_by(compiled, Reconciler::Tproxy));
    }

    fn report_tunnel(&mut self, compiled: &Compiled, change: &Result<TunnelChange, String>, started: Mono) {
        let report = &mut self.reports.iptun;
        report.skipped(skipped_by(compiled, Reconciler::Iptun));
        let Ok(change @ (TunnelChange::Applied | TunnelChange::Repaired)) = change else { return };
        if *change == TunnelChange::Repaired {
            report.event("drift.repaired", "the device of the tunnel was gone");
            self.status.send_modify(|s| s.iptun.drift_repairs += 1);
        }
        let took = self.clock.mono().saturating_since(started).as_millis();
        let (services, peers) = (compiled.forwarding.services.len(), compiled.forwarding.peers.len());
        let revision = compiled.forwarding.revision;
        let way = match &compiled.ruleset.tunnel {
            Some(tunnel) => format!("by {}", tunnel.device),
            None => "without a device".to_owned(),
        };
        report.info(&format!(
            "applied tunnel config: {services} services, {peers} peers, {way}, in {took} ms, revision {revision}"
        ));
    }

    /// Publishes how the pass went.
    fn finish(&mut self, started: Mono, compiled: Option<&Compiled>, outcomes: &Outcomes, intact: bool) {
        let Outcomes { network, firewall, tproxy, iptun } = outcomes;
        note(&mut self.reports.network, network);
        note(&mut self.reports.firewall, firewall);
        note(&mut self.reports.tproxy, tproxy);
        note(&mut self.reports.iptun, iptun);
        let (at, took_ms) = (self.clock.unix(), self.took_ms(started));
        let (mask, marks) = (self.settings.mask, &self.marks);
        let applied = self.firewall.applied();
        self.status.send_modify(|status| {
            if let Some(applied) = applied.filter(|applied| **applied != *status.ruleset) {
                status.ruleset = Arc::new(applied.clone());
            }
            count(&mut status.network, network, at, took_ms);
            count(&mut status.firewall, firewall, at, took_ms);
            count(&mut status.tproxy, tproxy, at, took_ms);
            count(&mut status.iptun, iptun, at, took_ms);
            let Some(compiled) = compiled else { return };
            set_conditions(status, compiled, firewall, intact, at);
            status.fwmarks =
                compiled.outgoing.iter().filter_map(|id| Some((*id, mask.service(marks.of(*id)?)))).collect();
            if firewall.is_ok() && network.is_ok() {
                status.applied_revision = compiled.forwarding.revision;
            }
        });
    }

    async fn stop(&mut self) {
        if !self.settings.clear_on_stop {
            self.reports.firewall.info("stopped, kernel state is kept");
        } else if let Err(e) = self.firewall.clear(&*self.kernel).await {
            self.reports.firewall.failure(&e.to_string());
        } else {
            self.reports.firewall.info("stopped, kernel state is removed");
        }
        if self.settings.clear_on_stop
            && let Err(reason) = self.tunnel.apply(&*self.kernel, None, &TunnelState::Off).await
        {
            self.reports.iptun.failure(&reason);
        }
        self.reports.iptun.info("stopped");
        if self.settings.clear_on_stop {
            match self.network.clear(&*self.kernel, &mut self.leases).await {
                Ok(()) => self.reports.network.info("stopped, interfaces are removed"),
                Err(e) => self.reports.network.failure(&e.to_string()),
            }
        } else {
            self.reports.network.info("stopped, interfaces are kept");
        }
        self.engine.publish(Forwarding::default());
        self.reports.tproxy.info("stopped");
    }
}

/// How a pass went, by reconciler.
struct Outcomes {
    network: Result<(), String>,
    firewall: Result<(), String>,
    tproxy: Result<(), String>,
    iptun: Result<(), String>,
}

fn without_engines(compiled: &mut Compiled, reason: &str) {
    for id in compiled.versions.keys() {
        let skipped = || Skipped::failed("ENGINE_UNAVAILABLE", reason);
        compiled.skipped.entry((*id, Reconciler::Tproxy)).or_insert_with(skipped);
    }
}

fn note(report: &mut Report, outcome: &Result<(), String>) {
    match outcome {
        Ok(()) => report.success(),
        Err(reason) => report.failure(reason),
    }
}

fn count(status: &mut ReconcilerStatus, outcome: &Result<(), String>, at: UnixTime, took_ms: u64) {
    status.passes += 1;
    status.last_pass_ms = took_ms;
    status.failure = outcome.as_ref().err().cloned();
    match outcome {
        Ok(()) => status.last_success = Some(at),
        Err(_) => status.failures += 1,
    }
}

fn skipped_by(compiled: &Compiled, reconciler: Reconciler) -> BTreeMap<String, String> {
    let of = compiled.skipped.iter().filter(|((_, by), _)| *by == reconciler);
    of.map(|((id, _), skipped)| (format!("service {id}"), skipped.message.clone())).collect()
}

fn set_interface_conditions(status: &mut Status, desired: &Desired, worked: &Worked, at: UnixTime) {
    let by = Reconciler::Network;
    let (wishes, _) = interface_wishes(desired);
    let left: Vec<ServiceId> = status.conditions.keys().copied().collect();
    for id in left {
        if !worked.skipped.contains_key(&id) && !wishes.iter().any(|wish| wish.service == id) {
            status.drop_condition(id, by);
        }
    }
    for service in &desired.services {
        let said = match worked.skipped.get(&service.id) {
            Some(skipped) => Some(skipped.clone()),
            None => wishes.iter().find(|w| w.service == service.id).and_then(|wish| wish.shortfall(worked)),
        };
        let about_it = worked.facts.contains_key(&service.id) || said.is_some();
        let condition = said.map(|s| s.condition(by, service.version, at)).unwrap_or_else(|| Condition {
            reconciler: by,
            status: ConditionStatus::Applied,
            reason: "APPLIED".to_owned(),
            message: "its interface is in the kernel".to_owned(),
            observed_version: service.version,
            at,
        });
        if about_it {
            status.set_condition(service.id, condition);
        }
    }
}

fn set_conditions(status: &mut Status, compiled: &Compiled, firewall: &Result<(), String>, intact: bool, at: UnixTime) {
    status.conditions.retain(|id, _| compiled.versions.contains_key(id));
    for (&id, &version) in &compiled.versions {
        let made = |reconciler, status, reason: &str, message: &str| Condition {
            reconciler,
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_version: version,
            at,
        };
        let skipped = |by| compiled.skipped.get(&(id, by)).map(|s| s.condition(by, version, at));
        let applied = |by, message| made(by, ConditionStatus::Applied, "APPLIED", message);
        let tproxy = skipped(Reconciler::Tproxy);
        status.set_condition(id, tproxy.unwrap_or_else(|| applied(Reconciler::Tproxy, "the engine carries it")));
        let tunnelled = compiled.ruleset.tunnel.is_some() && compiled.forwarding.services.contains_key(&id);
        match skipped(Reconciler::Iptun) {
            Some(tunnel) => status.set_condition(id, tunnel),
            None if tunnelled => status.set_condition(id, applied(Reconciler::Iptun, "the IP tunnel carries the rest")),
            None => status.drop_condition(id, Reconciler::Iptun),
        }
        if !compiled.outgoing.contains(&id) {
            continue;
        }
        let by = Reconciler::Firewall;
        let holds = |c: &Condition| c.observed_version == version && c.status == ConditionStatus::Applied;
        let condition = match (firewall, skipped(by)) {
            (_, Some(skipped)) => skipped,
            (Ok(()), None) => applied(by, "its rules are in the kernel"),
            // The last good state stays, and it was of this version.
            (Err(_), None) if intact && status.condition(id, by).is_some_and(holds) => continue,
            (Err(reason), None) => made(by, ConditionStatus::Failed, "KERNEL_REFUSED", reason),
        };
        status.set_condition(id, condition);
    }
}
