//! What operators do to a cluster in a run.

use super::{
    ledger::NoResult,
    node::Why,
    world::{Event, World},
};
use crate::sometimes;
use arctic::{
    handshake::{Purpose, Target},
    license::{EffectiveClock, EndpointGroup, Entitlement, check_admission},
    membership::{self, Ledger, LedgerView},
    model::{Code, Mono, PeerId, Refused, Rng, Route, Service, ServiceBody, ServiceId},
    wire::{
        gossip::{PUSH_HOPS_MAX, PushRequest, Request},
        record::kind,
    },
};
use std::{fmt, time::Duration};

/// How long the others may take to hear that a peer leaves.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(3);

/// A piece of work at one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    Bootstrap,
    Add {
        other: usize,
    },
    Create {
        target: usize,
        name: u64,
    },
    Update,
    Delete,
    Remove {
        other: usize,
    },
    Renew,
    Oversize,
    Sync,
    /// `peers remove-self`.
    Leave,
}

impl Work {
    /// The row of the allow-lists that its request falls under.
    fn group(&self) -> EndpointGroup {
        match self {
            Work::Bootstrap => EndpointGroup::Unlisted,
            Work::Add { .. } | Work::Create { .. } | Work::Update | Work::Oversize => EndpointGroup::CreateOrUpdate,
            Work::Delete | Work::Remove { .. } => EndpointGroup::Administer,
            Work::Renew => EndpointGroup::License,
            Work::Sync => EndpointGroup::Read,
            Work::Leave => EndpointGroup::LeaveCluster,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub at: Mono,
    pub node: usize,
    pub work: Work,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}s n{} {:?}", self.at.since_start().as_secs_f64(), self.node + 1, self.work)
    }
}

/// Bootstraps and joins, then work at random between `from` and `until`.
pub fn draw(rng: &mut Rng, nodes: usize, count: usize, from: Mono, until: Mono) -> Vec<Op> {
    let mut work = found_cluster(rng, nodes);
    let span_ms = (until - from).as_millis() as u64;
    for _ in 0..count {
        let at = from + Duration::from_millis(rng.below(span_ms));
        let node = rng.below(nodes as u64) as usize;
        let other = (node + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
        let what = match rng.below(100) {
            0..40 => Work::Create { target: other, name: rng.below(8) },
            40..62 => Work::Update,
            62..76 => Work::Delete,
            76..80 => Work::Remove { other },
            80..88 => Work::Add { other },
            88..92 => Work::Renew,
            92..94 => Work::Oversize,
            94..96 => Work::Leave,
            _ => Work::Sync,
        };
        work.push(Op { at, node, work: what });
    }
    work.sort_by_key(|op| op.at);
    work
}

/// Everyone bootstraps, then the first takes the others in, some of them through the second.
pub fn found_cluster(rng: &mut Rng, nodes: usize) -> Vec<Op> {
    let mut work: Vec<Op> =
        (0..nodes).map(|node| Op { at: Mono::from_ms(rng.below(1000)), node, work: Work::Bootstrap }).collect();
    for other in 1..nodes {
        let node = if other > 1 && rng.below(3) == 0 { 1 } else { 0 };
        work.push(Op { at: Mono::from_ms(1500 + 300 * other as u64), node, work: Work::Add { other } });
    }
    work
}

impl World {
    pub(super) fn operate(&mut self, index: usize) {
        let Op { node, work, .. } = self.work[index].clone();
        self.trace.line(self.now, format_args!("work n{} {work:?}", node + 1));
        self.work_at(node, work);
    }

    /// The operator of node `n` does something now. What a node that is down is asked is lost.
    pub fn work_at(&mut self, n: usize, work: Work) {
        if work == Work::Bootstrap {
            let _refused_or_dead = self.bootstrap(n);
            return;
        }
        if self.nodes[n].member().is_none() {
            return;
        }
        let Some(entitlement) = self.nodes[n].member().map(|m| m.entitlement.clone()) else { return };
        if entitlement.check(work.group(), false).is_err() {
            sometimes!("a write is blocked by the license");
            return;
        }
        let done = match &work {
            Work::Bootstrap => Ok(()),
            Work::Add { other } => return self.add_peer(n, *other, &work),
            Work::Create { target, name } => self.create_service(n, *target, *name),
            Work::Update => self.change_service(n, false),
            Work::Delete => self.change_service(n, true),
            Work::Remove { other } => self.remove_peer(n, *other),
            Work::Renew => self.renew_license(n),
            Work::Oversize => self.write_oversize(n),
            Work::Leave => self.leave_cluster(n),
            Work::Sync => {
                let now = self.now;
                let mono = self.nodes[n].clock.mono(now);
                if let Some(member) = self.nodes[n].member_mut() {
                    member.gossip.handle_sync(mono);
                }
                Ok(())
            }
        };
        self.witness_work(n, work.group(), entitlement.state, done.is_ok());
        match done {
            Err(NoResult::Dead) => self.die(n),
            Err(NoResult::Refused(refused)) => {
                self.trace.line(self.now, format_args!("n{} refused: {}", n + 1, refused.text));
            }
            Err(NoResult::Disk(reason)) => {
                sometimes!("an operator is told that the disk failed");
                self.trace.line(self.now, format_args!("n{} not written: {reason}", n + 1));
            }
            Ok(()) => self.witness_ack(n),
        }
        self.settle(n);
    }

    fn add_peer(&mut self, n: usize, other: usize, work: &Work) {
        let endpoints = self.endpoints_of(other);
        let id = self.nodes[other].id();
        let was_revoked = self.nodes[n].disk.revoked_identities().is_ok_and(|r| r.iter().any(|(peer, _)| *peer == id));
        if was_revoked {
            self.witness_readmission(n, id);
        }
        let target = Target { endpoints, pinned_key: None, expected_peer: None, purpose: Purpose::Add };
        self.begin_handshake(n, target, Why::Add(work.clone()));
    }

    /// An operation that took its time is over.
    pub(super) fn work_done(&mut self, n: usize, work: &Work, succeeded: bool) {
        self.trace.line(self.now, format_args!("n{} {work:?} {}", n + 1, if succeeded { "done" } else { "failed" }));
        if succeeded {
            self.witness_ack(n);
        }
    }

    fn create_service(&mut self, n: usize, target: usize, name: u64) -> Result<(), NoResult> {
        let now = self.now;
        let target = self.nodes[target].id();
        let node = &mut self.nodes[n];
        let wall = node.clock.unix(now);
        let id = ServiceId::mint(wall, &mut node.rng);
        let cidr = format!("198.18.{}.0/24", node.rng.below(250)).parse().ok();
        let max_services = node.member().map_or(0, |m| m.license.max_services()) as usize;
        self.write(n, |tx, own| {
            if tx.peer(target)?.is_none_or(|row| !row.trusted) {
                return Err(Refused::new(Code::NotFound, "target is not trusted").into());
            }
            let services = tx.services()?;
            if services.len() >= max_services {
                sometimes!("a service limit refuses a service");
                return Err(Refused::new(Code::ServiceLimitExceeded, "service limit exceeded").into());
            }
            let name = format!("service-{name}");
            if services.iter().any(|s| s.body.name == name) {
                sometimes!("two services want one name");
            }
            let mut body = ServiceBody::plain(&name, own.author.peer_id, target, wall);
            body.routes.push(Route {
                id: 1,
                source_cidr: None,
                dest_cidr: cidr,
                priority: 100,
                version: 1,
                created_at: wall,
            });
            body.next_route_id = 2;
            tx.put_own(own.author, kind::SERVICE, &id.to_string(), &body)?;
            Ok(())
        })
    }

    /// Updates or deletes one of the own services, if there is any.
    fn change_service(&mut self, n: usize, deletes: bool) -> Result<(), NoResult> {
        let own_id: PeerId = self.nodes[n].id();
        let services = self.nodes[n].disk.services().unwrap_or_default();
        let own: Vec<Service> = services.into_iter().filter(|s| s.body.source_peer_id == own_id).collect();
        if own.is_empty() {
            return Err(NoResult::Refused(Refused::new(Code::NotFound, "no own service")));
        }
        let chosen = own[self.nodes[n].rng.below(own.len() as u64) as usize].clone();
        let wall = self.nodes[n].clock.unix(self.now);
        let limit = self.nodes[n].rng.below(1000) as u32;
        let id = chosen.id.to_string();
        let written = self.write(n, |tx, own| {
            if deletes {
                sometimes!("a service is deleted");
                tx.delete_own(own.author, kind::SERVICE, &id)?;
            } else {
                let body = ServiceBody { bandwidth_limit_mbps: limit, updated_at: wall, ..chosen.body.clone() };
                tx.put_own(own.author, kind::SERVICE, &id, &body)?;
            }
            Ok(())
        });
        if !deletes && matches!(written, Ok(()) | Err(NoResult::Dead)) {
            self.witness_service_written(n, &id);
        }
        written
    }

    /// `peers delete`.
    pub fn remove_peer(&mut self, n: usize, other: usize) -> Result<(), NoResult> {
        let subject = self.nodes[other].id();
        let wall = self.nodes[n].clock.unix(self.now);
        let removed = self.write(n, |tx, own| Ok(membership::remove_peer(tx, own.author, subject, wall)?))?;
        if removed.is_none() {
            return Err(NoResult::Refused(Refused::new(Code::NotFound, "no such peer")));
        }
        sometimes!("an operator removes a peer");
        self.witness_removal(n, subject);
        self.trust_changed(n, &[]);
        match self.tend_candidates(n) {
            Err(NoResult::Dead) => Err(NoResult::Dead),
            // It is done again with what the machine makes of the removal.
            _ => Ok(()),
        }
    }

    /// `peers remove-self`: the others are told for 3 s, then the disk is emptied and the agent stops. Whoever runs the
    /// host starts it again, without a cluster.
    fn leave_cluster(&mut self, n: usize) -> Result<(), NoResult> {
        let own = self.nodes[n].id();
        let wall = self.nodes[n].clock.unix(self.now);
        let digests = self.nodes[n].member().map(|m| m.gossip.digests());
        let departure = self.write(n, |tx, own| {
            let departure = membership::leave(tx, own.author, wall)?;
            tx.edit_facts(|f| f.leaving = departure.is_some());
            Ok(departure)
        })?;
        let (Some(departure), Some(digests)) = (departure, digests) else { return Ok(()) };
        sometimes!("a peer removes itself");
        self.witness_left(n);
        self.check_node(n);
        let peers: Vec<PeerId> = self.nodes[n].disk.trusted_keys().into_keys().filter(|peer| *peer != own).collect();
        let hops = if peers.len() > arctic::gossip::PUSH_ALL_PEERS { PUSH_HOPS_MAX } else { 0 };
        for peer in peers {
            let (instance, records) = (String::new(), departure.last_words.clone().into());
            let push = Request::Push(PushRequest { instance, records, hops, digests });
            self.shoot(n, peer, push, super::node::Purpose::Farewell);
        }
        if let Some(process) = self.nodes[n].process.as_mut() {
            process.member = None;
        }
        self.after(ANNOUNCE_TIMEOUT, Event::Leave { node: n });
        Ok(())
    }

    /// What a peer that has left keeps.
    pub(super) fn clear_membership(&mut self, n: usize) {
        let (own_version, starts) = self.nodes[n].disk.read(|s| (s.facts.own_version, s.facts.starts));
        let facts = super::ledger::Facts { own_version, starts, ..Default::default() };
        self.put_disk(n, super::ledger::State { facts, ..Default::default() });
    }

    /// What was to be said is said.
    pub(super) fn end_membership(&mut self, n: usize) {
        self.crash(n);
        self.clear_membership(n);
        self.restart_after(n, Duration::from_secs(1));
    }

    /// `PUT /v1/license` with a new issue.
    pub fn renew_license(&mut self, n: usize) -> Result<(), NoResult> {
        let (customer, lasts) = (self.nodes[n].customer, self.options.license_lasts);
        let issued_at = super::node::EPOCH.plus(self.now.since_start());
        let license = self.license(customer, issued_at, lasts);
        let node = &self.nodes[n];
        let Some(member) = node.member() else { return Err(NoResult::Dead) };
        let customer_id = Some(member.license.customer_id());
        let clock: &EffectiveClock = &member.license_clock;
        check_admission(&license, &self.roots, customer_id, clock).map_err(|e| NoResult::Refused(e.into()))?;
        self.write(n, |tx, _| {
            tx.edit_facts(|f| f.license = Some(license.clone()));
            Ok(())
        })?;
        sometimes!("a license is renewed");
        let node = &mut self.nodes[n];
        node.license = license.clone();
        if let Some(member) = node.member_mut() {
            member.license = license;
            member.entitlement = Entitlement::new(member.license.clone(), &member.license_clock);
            member.attempts.handle_license_change();
        }
        Ok(())
    }

    /// A body above the limit of a record is refused at its source.
    fn write_oversize(&mut self, n: usize) -> Result<(), NoResult> {
        let body = serde_json::json!("x".repeat(arctic::wire::record::RECORD_MAX_BYTES));
        let written = self.write(n, |tx, own| {
            tx.put_own(own.author, "status", "oversize", &body)?;
            Ok(())
        });
        if written.is_ok() {
            self.violate("G7", format!("n{} wrote a record above the limit", n + 1));
        }
        sometimes!("a record above the limit is refused");
        written
    }
}
