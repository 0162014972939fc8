//! Faults begin and end.

use super::{
    faults::{Fault, Kind},
    ledger::{Fate, State},
    network::{Nodes, Rule},
    node::{DiskFault, Hostility},
    world::World,
};
use crate::sometimes;
use arctic::model::Mono;
use std::time::Duration;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// A hostile member, a clone and a foreign clock are rare in life; a wiped database too. One of each a run.
const ONCE_A_RUN: &[Kind] =
    &[Kind::ClonedDisk, Kind::Hostile, Kind::WipedDatabase, Kind::FlippedPage, Kind::OldSnapshot];
const FULL_PERCENT: u64 = 100;

impl World {
    pub(super) fn begin_fault(&mut self, index: usize) {
        let fault = self.faults[index].clone();
        self.trace.line(self.now, format_args!("fault {fault}"));
        let earlier = &self.faults[..index];
        if ONCE_A_RUN.contains(&fault.kind) && earlier.iter().any(|f| f.kind == fault.kind) {
            return;
        }
        let (id, n) = (index as u64, fault.node);
        match fault.kind {
            Kind::Partition | Kind::OneWay | Kind::Isolate | Kind::Bridge => self.build_walls(id, &fault),
            Kind::Loss
            | Kind::Latency
            | Kind::Reorder
            | Kind::Duplicate
            | Kind::Reset
            | Kind::HalfOpen
            | Kind::Drip
            | Kind::Truncate
            | Kind::BitFlip
            | Kind::Mtu => {
                let (from, to) = self.scope(&fault);
                self.rule(id, &fault, from, to);
            }
            Kind::Clog => self.rule(id, &fault, Nodes::All, Nodes::one(n)),
            Kind::Swizzle => self.swizzle(id, &fault),
            Kind::AddressChange => {
                let host = self.nodes[n].address.to_string();
                self.network.lead_astray(&host, id, fault.kind, None);
            }
            Kind::BadDns => {
                let host = self.nodes[n].endpoints[1].host().to_owned();
                let other = fault.amount.is_multiple_of(2).then(|| (n + 1) % self.options.nodes);
                self.network.lead_astray(&host, id, fault.kind, other);
            }
            Kind::NatRebind => self.nodes[n].hidden_source = Some("192.0.2.77".parse().expect("an address")),
            Kind::Crash => {
                self.fire_if_up(n, Kind::Crash);
                self.crash(n);
                self.restart_after(n, fault.lasts);
            }
            Kind::CrashInWrite => self.nodes[n].disk_fault.die_at_next_write = true,
            Kind::OldSnapshot => self.nodes[n].snapshot = Some(self.nodes[n].disk.snapshot()),
            Kind::WipedDatabase => {
                self.crash(n);
                self.lose_database(n, Kind::WipedDatabase);
            }
            Kind::FlippedPage => self.flip_page(n),
            Kind::ClonedDisk => self.clone_node(n),
            Kind::Pause => {
                self.fire_if_up(n, Kind::Pause);
                self.nodes[n].paused_until = self.now + fault.lasts;
            }
            Kind::SlowCpu => self.nodes[n].slow_factor = fault.amount,
            Kind::Minor => {
                self.nodes[n].other_version = Some(format!("v0.{}.0", 2 + fault.amount % 2));
                self.tell_facts_anew(n);
            }
            Kind::Panic => self.nodes[n].panic_percent = fault.amount,
            Kind::FullQueue => self.nodes[n].queue_full_percent = 30 + fault.amount % 70,
            Kind::Skew | Kind::Back | Kind::Forward | Kind::Boot1970 | Kind::Drift => self.turn_clock(&fault),
            Kind::NoSpace => self.nodes[n].disk_fault.no_space_percent = FULL_PERCENT,
            Kind::Eio => self.nodes[n].disk_fault.eio_percent = fault.amount,
            Kind::LostTail => self.nodes[n].disk_fault.tail_percent = fault.amount.min(20),
            Kind::Hostile => {
                let how = Hostility::ALL[fault.amount as usize % Hostility::ALL.len()];
                self.nodes[n].hostile = Some(how);
                self.attack(n, how, 0);
            }
        }
    }

    pub(super) fn end_fault(&mut self, index: usize) {
        let fault = self.faults[index].clone();
        self.trace.line(self.now, format_args!("end of {fault}"));
        let n = fault.node;
        self.network.end(index as u64);
        match fault.kind {
            Kind::NatRebind => self.nodes[n].hidden_source = None,
            Kind::OldSnapshot => {
                if let Some(state) = self.nodes[n].snapshot.take() {
                    self.fire(Kind::OldSnapshot);
                    sometimes!("a node goes back to an old snapshot");
                    self.crash(n);
                    self.replace_disk(n, state);
                    self.restart_after(n, Duration::from_millis(500));
                }
            }
            Kind::ClonedDisk => self.end_clones(n),
            Kind::SlowCpu => self.nodes[n].slow_factor = 1,
            Kind::Minor => {
                self.nodes[n].other_version = None;
                self.tell_facts_anew(n);
            }
            Kind::FlippedPage if !self.nodes[n].disk.is_sound() => {
                self.crash(n);
                self.start(n);
            }
            Kind::Panic => self.nodes[n].panic_percent = 0,
            Kind::FullQueue => self.nodes[n].queue_full_percent = 0,
            Kind::Forward => (0..self.nodes.len()).for_each(|node| self.set_skew(node, 0)),
            Kind::Skew | Kind::Back | Kind::Boot1970 => self.set_skew(n, 0),
            Kind::NoSpace | Kind::Eio | Kind::LostTail | Kind::CrashInWrite => {
                self.nodes[n].disk_fault = DiskFault::default();
            }
            Kind::Hostile => self.nodes[n].hostile = None,
            _ => {}
        }
    }

    /// Faults stop: every link, host, disk and clock is well again.
    pub fn calm(&mut self) {
        self.trace.line(self.now, format_args!("faults stop"));
        self.network.rules.clear();
        for index in 0..self.faults.len() {
            self.network.end(index as u64);
        }
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            node.disk_fault = DiskFault::default();
            (node.slow_factor, node.panic_percent, node.queue_full_percent) = (1, 0, 0);
            (node.hidden_source, node.other_version, node.hostile) = (None, None, None);
            node.paused_until = node.paused_until.min(self.now);
            self.set_skew(n, 0);
            if !self.nodes[n].disk.is_sound() {
                self.crash(n);
            }
            if self.nodes[n].is_clone_of.is_none() && !self.nodes[n].is_up() {
                self.start(n);
            }
            self.bootstrap_what_was_wiped(n);
        }
        self.end_clones(usize::MAX);
    }

    /// What the disk did is counted where it had an effect.
    pub(super) fn fire_fate(&mut self, n: usize, fate: Fate) {
        let disk = self.nodes[n].disk_fault;
        match fate {
            Fate::Synced => {}
            Fate::Fails("no space left on device") => self.fire(Kind::NoSpace),
            Fate::Fails(_) | Fate::FailsUnsurely(_) => self.fire(Kind::Eio),
            Fate::DiesBefore if disk.tail_percent > 0 => self.fire(Kind::LostTail),
            Fate::DiesBefore | Fate::DiesAfter => self.fire(Kind::CrashInWrite),
        }
    }

    fn rule(&mut self, id: u64, fault: &Fault, from: Nodes, to: Nodes) {
        let until = fault.at + fault.lasts;
        self.network.rules.push(Rule { id, kind: fault.kind, from, to, amount: fault.amount, until });
    }

    /// Everything, what one node sends, or what it receives.
    fn scope(&self, fault: &Fault) -> (Nodes, Nodes) {
        match fault.lasts.as_millis() % 3 {
            0 => (Nodes::All, Nodes::All),
            1 => (Nodes::one(fault.node), Nodes::All),
            _ => (Nodes::All, Nodes::one(fault.node)),
        }
    }

    fn build_walls(&mut self, id: u64, fault: &Fault) {
        let mask = fault.amount;
        let bridge = 1_u64 << fault.node.min(63);
        match fault.kind {
            Kind::Partition => {
                self.rule(id, fault, Nodes::Mask(mask), Nodes::Not(mask));
                self.rule(id, fault, Nodes::Not(mask), Nodes::Mask(mask));
            }
            Kind::OneWay => self.rule(id, fault, Nodes::Mask(mask), Nodes::Not(mask)),
            Kind::Isolate => {
                self.rule(id, fault, Nodes::Mask(bridge), Nodes::Not(bridge));
                self.rule(id, fault, Nodes::Not(bridge), Nodes::Mask(bridge));
            }
            _ => {
                let (one, other) = (mask & !bridge, !mask & !bridge);
                self.rule(id, fault, Nodes::Mask(one), Nodes::Mask(other));
                self.rule(id, fault, Nodes::Mask(other), Nodes::Mask(one));
            }
        }
    }

    fn swizzle(&mut self, id: u64, fault: &Fault) {
        for n in 0..self.options.nodes.min(64) {
            let freed = fault.at + Duration::from_millis(self.rng.below(1 + fault.lasts.as_millis() as u64));
            let rule = Rule {
                id,
                kind: fault.kind,
                from: Nodes::All,
                to: Nodes::one(n),
                amount: 0,
                until: freed.max(self.now),
            };
            self.network.rules.push(rule);
        }
    }

    /// The database of a node that is down is gone; its key stays.
    fn lose_database(&mut self, n: usize, kind: Kind) {
        if self.nodes[n].disk.read(|s| s.facts.cluster.is_some()) {
            self.fire(kind);
            sometimes!("a node loses its database and keeps its key");
        }
        self.replace_disk(n, State::default());
        self.start(n);
        // The operator notices and bootstraps again, with the identity that is still there.
        let _refused_or_dead = self.bootstrap(n);
    }

    /// A start reads the whole database: a damaged one is set aside and never served.
    pub(super) fn set_damaged_aside(&mut self, n: usize) {
        self.lose_database(n, Kind::FlippedPage);
    }

    fn fire_if_up(&mut self, n: usize, kind: Kind) {
        if self.nodes[n].is_up() {
            self.fire(kind);
        }
    }

    /// What heartbeats of the node say has changed beside its disk.
    fn tell_facts_anew(&mut self, n: usize) {
        if let Some(member) = self.nodes[n].member_mut() {
            member.revision = u64::MAX;
        }
    }

    /// A wrong clock or a bad disk refuses a bootstrap, which the operator repeats once all is well: until then the others
    /// list the peer as unhealthy, for nobody told them that it left.
    fn bootstrap_what_was_wiped(&mut self, n: usize) {
        let is_due = self.witness.wiped.contains(&n) && !self.witness.left.contains(&n);
        if is_due && self.nodes[n].disk.read(|s| s.facts.cluster.is_none()) {
            sometimes!("a bootstrap is repeated when the clock is right again");
            let _refused_or_dead = self.bootstrap(n);
        }
    }

    fn turn_clock(&mut self, fault: &Fault) {
        let n = fault.node;
        let before = self.nodes[n].clock;
        let seconds = i64::try_from(fault.amount).unwrap_or(0);
        let sign = if seconds % 2 == 0 { 1 } else { -1 };
        match fault.kind {
            Kind::Skew => self.set_skew(n, sign * (seconds / 2) * 1000),
            Kind::Back => self.set_skew(n, -seconds * 1000),
            Kind::Forward => self.jump_ahead(n, fault.amount),
            Kind::Boot1970 => {
                sometimes!("a node boots in 1970");
                self.crash(n);
                let epoch = i64::try_from(super::node::EPOCH.as_ms()).unwrap_or(i64::MAX);
                self.set_skew(n, -epoch);
                self.start(n);
            }
            _ => self.drift(n, u32::try_from(fault.amount).unwrap_or(0)),
        }
        if self.nodes[n].clock != before {
            self.fire_if_up(n, fault.kind);
        }
    }

    /// Ten years; with one amount in four two thirds of the nodes have asked the same wrong server.
    fn jump_ahead(&mut self, n: usize, amount: u64) {
        let spared = amount.is_multiple_of(4).then_some(amount / 4 % 3);
        for node in 0..self.nodes.len() {
            if node == n || spared.is_some_and(|spared| node as u64 % 3 != spared) {
                self.set_skew(node, 10 * i64::try_from(YEAR.as_millis()).unwrap_or(0));
            }
        }
    }

    /// A drifting clock keeps its reading at the moment it begins to drift; so it starts with the process.
    fn drift(&mut self, n: usize, ppm: u32) {
        self.crash(n);
        self.nodes[n].clock.drift_ppm = ppm;
        self.start(n);
    }

    pub fn set_skew(&mut self, n: usize, skew_ms: i64) {
        if self.nodes[n].clock.skew_ms != skew_ms {
            self.trace.line(self.now, format_args!("n{} skew {skew_ms} ms", n + 1));
            self.nodes[n].clock.skew_ms = skew_ms;
        }
    }

    /// A second host runs on a copy of the disk and the key.
    pub fn clone_node(&mut self, n: usize) {
        if self.nodes[n].disk.read(|s| s.facts.cluster.is_none()) || !self.nodes[n].disk.is_sound() {
            return;
        }
        self.fire(Kind::ClonedDisk);
        sometimes!("two live copies of one identity");
        let (author, customer) = (self.nodes[n].author.clone(), self.nodes[n].customer);
        let (license, state) = (self.nodes[n].license.clone(), self.nodes[n].disk.snapshot());
        let disk = super::ledger::Disk::default();
        disk.replace(state);
        let index = self.nodes.len();
        let rng = self.rng.fork();
        self.witness.clones.insert(index, n);
        self.put_node(index, author, customer, license, disk, rng);
        self.nodes[index].is_clone_of = Some(n);
    }

    /// The copies of `n`, or all copies, are switched off for ever.
    fn end_clones(&mut self, n: usize) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].is_clone_of.is_some_and(|of| of == n || n == usize::MAX) {
                self.crash(index);
                self.nodes[index].restart_at = None;
            }
        }
    }

    /// `n` sends nothing to the others any more, though it hears them; the others must come to rest without it.
    pub fn set_outside(&mut self, n: usize) {
        self.outside.insert(n);
        self.wall(Nodes::one(n), Nodes::All);
        sometimes!("a healthy core comes to rest beside a faulty node");
    }

    /// World time, for faults made by hand.
    pub fn moment(&self, after: Duration) -> Mono {
        self.now + after
    }
}
