//! Births, starts, crashes: a process comes and goes, its disk stays.

use super::{
    ledger::{Disk, DiskError, NoResult, State},
    node::{DiskFault, HostClock, Member, Node, Process},
    world::{Event, World, derive},
};
use crate::sometimes;
use arctic::{
    gossip::{self, Gossip},
    handshake::Responder,
    kernel::FakeKernel,
    license::{EffectiveClock, Entitlement, LicenseDocument, TICK_INTERVAL, check_admission},
    membership::{
        Attempts, Author, Birth, FirstWords, Ledger, LedgerView, OwnSettings, VOUCHER_CHECK_INTERVAL, publish_settings,
        resume_writing,
    },
    model::{ApiAccess, Code, DataPorts, Endpoint, Mono, PeerId, Refused, Rng, Secret, SigningKey},
    planted::{Bug, planted},
    reconcile::Marks,
};
use std::{net::IpAddr, sync::Arc, time::Duration};

const API_PORT: u16 = 8080;

impl World {
    /// A host with an identity and a fresh process.
    pub(super) fn add_node(&mut self, index: usize) {
        let seed = self.options.seed;
        let mut rng = Rng::from_seed(derive(seed, "node", index as u64));
        let born = super::node::EPOCH.minus(Duration::from_secs(1000 - index.min(999) as u64));
        let author = Author { peer_id: PeerId::mint(born, &mut rng), key: SigningKey::from_seed(rng.bytes()) };
        let customer = u8::from(index >= self.options.foreigners_from);
        let license = self.first_license(customer);
        self.put_node(index, author, customer, license, Disk::default(), rng);
    }

    /// One document a customer, as operators use it for all their agents.
    fn first_license(&mut self, customer: u8) -> Arc<LicenseDocument> {
        let same = self.nodes.iter().find(|n| n.customer == customer).map(|n| n.license.clone());
        let lasts = self.options.license_lasts;
        same.unwrap_or_else(|| self.license(customer, super::node::EPOCH, lasts))
    }

    pub(super) fn put_node(
        &mut self,
        index: usize,
        author: Author,
        customer: u8,
        license: Arc<LicenseDocument>,
        disk: Disk,
        rng: Rng,
    ) {
        let (high, low) = (index / 250 % 250, index % 250 + 1);
        let address: IpAddr = format!("10.{}.{high}.{low}", index / 62_500).parse().expect("an address");
        let name = format!("n{}.example.net", index + 1);
        self.network.name_host(&address.to_string(), index);
        self.network.name_host(&name, index);
        let endpoints = [address.to_string(), name].map(|host| Endpoint::new(&host, API_PORT).expect("a host"));
        self.nodes.push(Node {
            index,
            author,
            customer,
            endpoints: endpoints.to_vec(),
            address,
            license,
            disk,
            disk_fault: DiskFault::default(),
            clock: HostClock { skew_ms: 0, drift_ppm: 0, booted: self.now },
            process: None,
            boots: 0,
            paused_until: Mono::default(),
            restart_at: None,
            slow_factor: 1,
            queue_full_percent: 0,
            panic_percent: 0,
            other_version: None,
            hidden_source: None,
            snapshot: None,
            last_refusal: None,
            hostile: None,
            is_clone_of: None,
            kernel: FakeKernel::new(),
            applied: None,
            marks: Marks::default(),
            rng,
        });
        if self.nodes[index].is_clone_of.is_none() {
            let (id, customer) = (self.nodes[index].id(), self.nodes[index].customer);
            self.witness.index_of.entry(id).or_insert(index);
            self.witness.customer_of.insert(id, customer);
        }
        self.start(index);
    }

    /// Starts the process of a node on its disk.
    pub fn start(&mut self, index: usize) {
        let (seed, now) = (self.options.seed, self.now);
        let node = &mut self.nodes[index];
        if node.is_up() {
            return;
        }
        if !node.disk.is_sound() && !planted(Bug::DamageServed) {
            return self.set_damaged_aside(index);
        }
        if node.disk.read(|s| s.facts.leaving) {
            self.witness_left(index);
            self.clear_membership(index);
        }
        let node = &mut self.nodes[index];
        node.boots += 1;
        node.restart_at = None;
        node.clock.booted = now;
        node.marks = Marks::default();
        let boot = node.boots;
        let mut rng = Rng::from_seed(derive(seed, "boot", (index as u64) << 32 | boot));
        let instance = format!("{:016x}", rng.u128() >> 64);
        node.process = Some(Process {
            boot,
            rng,
            instance,
            responder: Responder::new(),
            nonces: Default::default(),
            calls: Default::default(),
            handshakes: Default::default(),
            reverses: Default::default(),
            member: None,
            wake_at: None,
            reached: Default::default(),
            known: Default::default(),
            known_at: 0,
        });
        self.trace.line(now, format_args!("start n{} boot={boot}", index + 1));
        if self.nodes[index].disk.read(|s| s.facts.cluster.is_some()) && !self.resume(index) {
            sometimes!("a start fails on its disk and is tried again");
            self.crash(index);
            return self.restart_after(index, Duration::from_secs(2));
        }
        self.witness_start(index);
        self.settle(index);
    }

    /// Brings the own record up to date and becomes a member again, as `Node::start` does.
    fn resume(&mut self, index: usize) -> bool {
        let node = &mut self.nodes[index];
        let fate = node.next_fate();
        let Some(license) = node.disk.read(|s| s.facts.license.clone()) else { return false };
        let (author, settings, instance) = (node.author.clone(), settings_of(node), node.instance());
        let license_id = license.license_id();
        let written = node.disk.transaction(fate, |tx| {
            let own = tx.peer(author.peer_id)?.ok_or_else(|| Refused::new(Code::Internal, "no own row"))?;
            let was_contested = tx.is_contested()?;
            tx.edit_facts(|f| {
                f.starts += 1;
                // Whether another copy lives, each start finds out anew.
                f.contested = false;
                name_lineage(f, &instance);
            });
            if was_contested {
                resume_writing(tx, &author)?;
            }
            publish_settings(tx, &author, own, &settings, license_id).map_err(|e: DiskError| e.into())
        });
        if written.is_err() {
            return false;
        }
        let (now, mono) = (node.clock.unix(self.now), node.clock.mono(self.now));
        let clock = match node.disk.read(|s| s.facts.license_clock.clone()) {
            Some(snapshot) => EffectiveClock::resume(&snapshot, now, mono),
            None => EffectiveClock::start(now, mono),
        };
        self.begin_membership(index, license, clock);
        true
    }

    fn begin_membership(&mut self, index: usize, license: Arc<LicenseDocument>, clock: EffectiveClock) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(process) = node.process.as_mut() else { return };
        let entitlement = Entitlement::new(license.clone(), &clock);
        let local = gossip::Local { peer_id: node.author.peer_id, public_key: node.author.key.public() };
        let facts = facts_of(&node.disk, &process.instance, &node.author, &entitlement, node.clock.unix(now), None);
        let mono = node.clock.mono(now);
        let mut machine =
            Gossip::new(local, facts, node.disk.all_records(), &node.disk.trusted_keys(), process.rng.fork(), mono);
        let (catching_up, returned) = node.disk.read(|s| (s.facts.catching_up.clone(), s.taken_of(local.peer_id)));
        machine.handle_resume(&catching_up, returned, mono);
        let mut attempts = Attempts::default();
        attempts.resume(&node.disk.peers().unwrap_or_default());
        process.member = Some(Member {
            gossip: machine,
            attempts,
            license,
            license_clock: clock,
            entitlement,
            uncommitted: None,
            retry_at: None,
            vouchers_due: Mono::default(),
            revision: node.disk.revision(),
            reconciled_revision: None,
        });
        let boot = process.boot;
        self.after(TICK_INTERVAL, Event::LicenseTick { node: index, boot });
    }

    /// `POST /v1/bootstrap`.
    pub fn bootstrap(&mut self, index: usize) -> Result<(), NoResult> {
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(process) = node.process.as_mut() else { return Err(NoResult::Dead) };
        if node.disk.read(|s| s.facts.cluster.is_some()) {
            return Err(NoResult::Refused(Refused::new(Code::AlreadyBootstrapped, "agent is already bootstrapped")));
        }
        let mut rng = process.rng.fork();
        let wall = node.clock.unix(now);
        let clock = EffectiveClock::start(wall, node.clock.mono(now));
        let license = node.license.clone();
        check_admission(&license, &self.roots, None, &clock).map_err(|e| NoResult::Refused(e.into()))?;
        let secret = Secret::mint(&mut rng);
        let settings = settings_of(node);
        let words = FirstWords { name: node.name(), description: String::new() };
        let birth = Birth::new(&node.author, words, settings, &license, &secret, wall, &mut rng);
        let instance = node.instance();
        let (author, fate) = (node.author.clone(), node.next_fate());
        let written = node.disk.transaction(fate, |tx| {
            birth.write(tx, &author).map_err(|e: DiskError| Refused::from(e))?;
            tx.edit_facts(|f| {
                name_lineage(f, &instance);
                f.license = Some(license.clone());
                f.license_clock = Some(clock.snapshot());
            });
            Ok(())
        });
        self.trace
            .line(now, format_args!("bootstrap n{} {}", index + 1, if written.is_ok() { "ok" } else { "failed" }));
        match written {
            Ok(()) => {
                self.begin_membership(index, license, clock);
                self.witness_birth(index);
                self.settle(index);
                Ok(())
            }
            Err(NoResult::Dead) => {
                self.crash(index);
                self.restart_after(index, Duration::from_secs(1));
                Err(NoResult::Dead)
            }
            Err(other) => Err(other),
        }
    }

    /// Every node a member that trusts all others, without a call. All hold the records of the first few, and only
    /// those: what is measured is how many nodes there are, and not how many records.
    pub fn found_at_once(&mut self, nodes_with_records: usize) {
        for n in 0..self.nodes.len() {
            let _founded = self.bootstrap(n);
        }
        let rows: Vec<_> = self.nodes.iter().filter_map(|node| node.disk.peer(node.id()).ok().flatten()).collect();
        let with_records = self.nodes.iter().take(nodes_with_records);
        let records: Vec<_> = with_records.flat_map(|node| node.disk.all_records()).collect();
        let clusters = self.nodes.iter().filter_map(|n| n.disk.read(|s| s.facts.cluster.clone()));
        let Some(facts) = clusters.min_by_key(|c| c.cluster_id) else { return };
        for n in 0..self.nodes.len() {
            self.crash(n);
            let own = self.nodes[n].disk.all_records();
            let grown = self.nodes[n].disk.transaction(super::ledger::Fate::Synced, |tx| {
                if n >= nodes_with_records {
                    own.iter().try_for_each(|record| tx.forget_record(&record.key))?;
                }
                rows.iter().try_for_each(|row| tx.put_peer(row))?;
                records.iter().try_for_each(|record| tx.put_verified(record).map(drop))?;
                Ok(tx.set_cluster(&facts)?)
            });
            grown.expect("a disk without faults");
        }
        self.witness.acked.clear();
        for n in 0..self.nodes.len() {
            drop(self.nodes[n].disk.take_changes());
            self.start(n);
            // They never shook hands, so all would give their word about all others at this moment, n² records.
            let due = self.nodes[n].clock.mono(self.now) + VOUCHER_CHECK_INTERVAL;
            if let Some(member) = self.nodes[n].member_mut() {
                member.vouchers_due = due;
            }
        }
    }

    /// The process is gone this instant, and what was not synced with it.
    pub fn crash(&mut self, index: usize) {
        if self.nodes[index].process.take().is_some() {
            self.trace.line(self.now, format_args!("crash n{}", index + 1));
            self.nodes[index].disk.crash();
            self.witness_crash(index);
        }
    }

    /// A crash in the middle of a write.
    pub(super) fn die(&mut self, n: usize) {
        sometimes!("a node dies in the middle of a write");
        self.crash(n);
        let wait = Duration::from_millis(200 + self.rng.below(5000));
        self.restart_after(n, wait);
    }

    pub(super) fn restart_after(&mut self, index: usize, wait: std::time::Duration) {
        let at = self.now + wait;
        self.nodes[index].restart_at = Some(at);
        self.at(at, Event::Restart { node: index });
    }

    pub(super) fn restart_if_due(&mut self, index: usize) {
        if self.nodes[index].restart_at == Some(self.now) {
            self.start(index);
        }
    }

    /// An older or empty disk is put into a node that is down.
    pub fn replace_disk(&mut self, index: usize, state: State) {
        self.put_disk(index, state);
        self.witness.wiped.insert(index);
    }

    /// The disk of a node that is down holds this from now on.
    pub(super) fn put_disk(&mut self, index: usize, state: State) {
        self.check_node(index);
        self.trace.line(self.now, format_args!("disk n{} replaced", index + 1));
        self.nodes[index].disk.replace(state);
        self.witness_disk_replaced(index);
    }
}

pub(super) fn settings_of(node: &Node) -> OwnSettings {
    OwnSettings { endpoints: node.endpoints.clone(), data_ports: DataPorts::default(), api_access: ApiAccess::Public }
}

/// What heartbeats of the node say.
pub(super) fn facts_of(
    disk: &Disk,
    instance: &str,
    author: &Author,
    entitlement: &Entitlement,
    unix: arctic::model::UnixTime,
    version: Option<&str>,
) -> gossip::Facts {
    let own = disk.peer(author.peer_id).ok().flatten();
    gossip::Facts {
        instance: instance.to_owned(),
        starts: disk.read(|s| s.facts.starts),
        lineage: disk.read(|s| s.facts.lineage.clone()),
        version: version.unwrap_or(arctic::model::VERSION).to_owned(),
        endpoints: own.map(|row| row.all_endpoints()).unwrap_or_default(),
        license_state: entitlement.state.to_string(),
        unix,
    }
}

/// The first process on a database names it.
fn name_lineage(facts: &mut super::ledger::Facts, instance: &str) {
    if facts.lineage.is_empty() {
        facts.lineage = instance.to_owned();
    }
}
