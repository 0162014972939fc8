//! Machines, a store each, a lossy network between them, and one event queue in virtual time.

use crate::{
    gossip::{CallFailed, Event, Facts, Gossip, LAGGARD_AFTER, Local, Revocations, Standing, Transmit},
    model::{ApiAccess, DataPorts, Endpoint, LicenseId, Mono, PeerId, PublicKey, Rng, SigningKey, UnixTime},
    wire::{
        gossip::{Digests, Op, Reply, Request},
        record::{PeerBody, ReadmissionBody, Record, RecordKey, RevocationBody, RevocationReason, kind},
    },
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A connect attempt that nobody answers ends after this.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Identity {
    pub id: PeerId,
    pub key: SigningKey,
}

impl Identity {
    pub fn numbered(n: u8) -> Self {
        let mut rng = Rng::from_seed([n; 32]);
        let id = PeerId::mint(UnixTime::from_secs(1_700_000_000 + u64::from(n)), &mut rng);
        Self { id, key: SigningKey::from_seed(rng.bytes()) }
    }

    pub fn local(&self) -> Local {
        Local { peer_id: self.id, public_key: self.key.public() }
    }

    pub fn record(&self, record_kind: &str, id: &str, version: u64, body: Value) -> Record {
        Record::sign(&self.key, self.id, record_kind, id, version, body).unwrap()
    }

    pub fn service(&self, id: &str, version: u64) -> Record {
        self.record(kind::SERVICE, id, version, json!({"name": id, "at": version}))
    }

    pub fn tombstone(&self, record_kind: &str, id: &str, version: u64) -> Record {
        let key = RecordKey { kind: record_kind.into(), id: id.into(), owner: self.id };
        Record::sign_tombstone(&self.key, key, version).unwrap()
    }

    pub fn peer_record(&self, version: u64) -> Record {
        let body = PeerBody {
            name: format!("peer at {}", self.id),
            public_key: self.key.public(),
            x25519_key: self.key.x25519_public(),
            endpoints: vec![Endpoint::new("10.0.0.1", 8080).unwrap()],
            data_ports: DataPorts::default(),
            api_access: ApiAccess::Public,
            version: "v0.1.0".into(),
            license_id: LicenseId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([1; 32])),
            created_at: UnixTime::from_ms(1),
        };
        self.record(kind::PEER, &self.id.to_string(), version, serde_json::to_value(body).unwrap())
    }

    pub fn revocation(&self, subject: &Identity, version: u64, reason: RevocationReason) -> Record {
        let body = RevocationBody {
            peer_id: Some(subject.id),
            public_key: Some(subject.key.public()),
            client_id: None,
            reason,
            revoked_at: UnixTime::from_ms(1),
        };
        self.record(kind::REVOCATION, &subject.id.to_string(), version, serde_json::to_value(body).unwrap())
    }
}

pub fn facts() -> Facts {
    Facts {
        instance: "0123456789abcdef0123456789abcdef".into(),
        starts: 1,
        lineage: "first".into(),
        version: "v0.1.0".into(),
        endpoints: vec![Endpoint::new("10.0.0.1", 8080).unwrap(), Endpoint::new("agent.example.net", 8080).unwrap()],
        license_state: "valid".into(),
        unix: UnixTime::from_secs(1_790_000_000),
    }
}

/// A machine that trusts `peers`, before anything happened.
pub fn machine(who: &Identity, records: Vec<Record>, peers: &[&Identity]) -> Gossip {
    let trusted = keys(peers);
    Gossip::new(who.local(), facts(), records, &trusted, Rng::from_seed([9; 32]), Mono::default())
}

pub fn keys(peers: &[&Identity]) -> BTreeMap<PeerId, PublicKey> {
    peers.iter().map(|p| (p.id, p.key.public())).collect()
}

/// What the network does to calls while faults are on.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub loss_percent: u64,
    pub latency_max_ms: u64,
    /// Requests that arrive once more, a while later.
    pub repeat_percent: u64,
}

impl Faults {
    pub const NONE: Faults = Faults { loss_percent: 0, latency_max_ms: 40, repeat_percent: 0 };
}

enum Arrival {
    Repeat { from: usize, to: usize, request: Request },
    Request { from: usize, to: usize, request: Request },
    Answer { from: usize, to: usize, answer: Result<Reply, CallFailed> },
}

pub struct Node {
    pub who: Identity,
    pub gossip: Gossip,
    /// What the driver committed, as the store would hold it.
    pub store: BTreeMap<RecordKey, Record>,
    pub trusted: BTreeMap<PeerId, PublicKey>,
    pub version: u64,
    pub discovered: Vec<PeerId>,
    pub facts: Facts,
    pub catching_up: BTreeMap<PeerId, u64>,
    /// Own records that it had from others.
    returned: BTreeSet<RecordKey>,
    pub contested: bool,
}

/// A copy of a node's disk.
#[derive(Clone)]
pub struct Snapshot {
    store: BTreeMap<RecordKey, Record>,
    trusted: BTreeMap<PeerId, PublicKey>,
    version: u64,
    pub facts: Facts,
    catching_up: BTreeMap<PeerId, u64>,
    returned: BTreeSet<RecordKey>,
}

impl Snapshot {
    pub fn live_services_of(&self, owner: PeerId) -> impl Iterator<Item = RecordKey> {
        let own = self.store.values().filter(move |r| r.key.kind == kind::SERVICE && r.key.owner == owner);
        own.filter(|r| !r.deleted).map(|r| r.key.clone())
    }
}

pub struct Network {
    pub nodes: Vec<Node>,
    pub now: Mono,
    pub faults: Faults,
    /// Pairs (from, to) over which nothing passes.
    pub cut: BTreeSet<(usize, usize)>,
    /// Pairs (from, to) where `from` cannot call `to`, though it can answer it.
    pub unreachable: BTreeSet<(usize, usize)>,
    /// Requests carried, by kind.
    pub carried: BTreeMap<Op, usize>,
    pub trace: Vec<String>,
    /// Nodes whose disk was lost or replaced.
    pub lossy: BTreeSet<usize>,
    queue: BTreeMap<(Mono, u64), Arrival>,
    sequence: u64,
    rng: Rng,
}

impl Network {
    /// `size` machines that all trust each other, each with its own peer record.
    pub fn new(size: u8, seed: u64, faults: Faults) -> Self {
        let mut seed_bytes = [0; 32];
        seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = Rng::from_seed(seed_bytes);
        let all: Vec<_> = (0..size).map(Identity::numbered).collect();
        let everyone = keys(&all.iter().collect::<Vec<_>>());
        let nodes = all
            .into_iter()
            .map(|who| {
                let mut trusted = everyone.clone();
                trusted.remove(&who.id);
                let own = who.peer_record(1);
                let gossip = Gossip::new(
                    who.local(),
                    facts(),
                    vec![own.clone()],
                    &trusted,
                    Rng::from_seed(rng.bytes()),
                    Mono::default(),
                );
                Node {
                    who,
                    gossip,
                    store: BTreeMap::from([(own.key.clone(), own)]),
                    trusted,
                    version: 1,
                    discovered: Vec::new(),
                    facts: facts(),
                    catching_up: BTreeMap::new(),
                    returned: BTreeSet::new(),
                    contested: false,
                }
            })
            .collect();
        let mut network = Self {
            nodes,
            now: Mono::default(),
            faults,
            cut: BTreeSet::new(),
            unreachable: BTreeSet::new(),
            carried: BTreeMap::new(),
            trace: Vec::new(),
            lossy: BTreeSet::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            rng,
        };
        network.flush_all();
        network
    }

    /// Writes a service on a node, as its API would.
    pub fn write(&mut self, node: usize, id: &str, deleted: bool) {
        let n = &mut self.nodes[node];
        n.version += 1;
        let record = if deleted { n.who.tombstone(kind::SERVICE, id, n.version) } else { n.who.service(id, n.version) };
        self.commit_local(node, record);
    }

    /// Removes a peer on a node, as `peers delete` would.
    pub fn revoke(&mut self, node: usize, subject: usize) {
        let subject = Identity::numbered(u8::try_from(subject).unwrap());
        let n = &mut self.nodes[node];
        n.version += 1;
        let record = n.who.revocation(&subject, n.version, RevocationReason::Deleted);
        self.commit_local(node, record);
    }

    /// Takes a removed peer back on a node, as `peers add` would: both trust each other again.
    pub fn readmit(&mut self, node: usize, subject: usize) {
        let who = Identity::numbered(u8::try_from(subject).unwrap());
        let key = who.key.public();
        let body = ReadmissionBody {
            peer_id: who.id,
            public_key: key,
            answers: self.nodes[node].gossip.revocations.against(who.id, &key),
            readmitted_at: UnixTime::from_ms(1),
        };
        self.put_own(node, kind::READMISSION, &who.id.to_string(), serde_json::to_value(body).unwrap());
        self.meet(node, subject);
    }

    /// A handshake, if neither has removed the other.
    pub fn meet(&mut self, a: usize, b: usize) {
        let is_clear = |n: &Self, at: usize, of: usize| {
            let of = &n.nodes[of].who;
            let revocations = &n.nodes[at].gossip.revocations;
            let local = n.nodes[at].who.local();
            revocations.standing(of.id, Some(&of.key.public())) == Standing::Clear
                && revocations.standing(local.peer_id, Some(&local.public_key)) == Standing::Clear
        };
        if is_clear(self, a, b) && is_clear(self, b, a) {
            self.trust(a, b);
            self.trust(b, a);
        }
    }

    pub fn trust(&mut self, node: usize, peer: usize) {
        let (id, key) = (self.nodes[peer].who.id, self.nodes[peer].who.key.public());
        self.nodes[node].trusted.insert(id, key);
        self.trust_changed(node);
    }

    pub fn untrust(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].who.id;
        self.nodes[node].trusted.remove(&id);
        self.trust_changed(node);
    }

    fn trust_changed(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.gossip.handle_trust(&n.trusted, self.now);
        self.flush(node);
    }

    /// Writes an own record under the next version; a null body deletes.
    pub fn put_own(&mut self, node: usize, record_kind: &str, id: &str, body: Value) {
        let n = &mut self.nodes[node];
        n.version += 1;
        let record = match body {
            Value::Null => n.who.tombstone(record_kind, id, n.version),
            body => n.who.record(record_kind, id, n.version, body),
        };
        self.commit_local(node, record);
    }

    pub fn commit_local(&mut self, node: usize, record: Record) {
        let n = &mut self.nodes[node];
        n.store.insert(record.key.clone(), record.clone());
        n.returned.remove(&record.key);
        n.gossip.handle_local_change(&[record], self.now);
        self.flush(node);
    }

    /// Stops and starts a node on what its store holds.
    pub fn restart(&mut self, node: usize) {
        let seed = self.rng.bytes();
        let n = &mut self.nodes[node];
        n.facts.starts += 1;
        n.facts.instance = format!("{:032x}", Rng::from_seed(seed).u128());
        if n.facts.lineage.is_empty() {
            n.facts.lineage = n.facts.instance.clone();
        }
        let records = n.store.values().cloned().collect();
        n.gossip = Gossip::new(n.who.local(), n.facts.clone(), records, &n.trusted, Rng::from_seed(seed), self.now);
        n.gossip.handle_resume(&n.catching_up, n.returned.clone(), self.now);
        n.contested = false;
        self.flush(node);
    }

    /// Its database is lost; it was bootstrapped anew and its handshakes were renewed.
    pub fn wipe(&mut self, node: usize) {
        self.lossy.insert(node);
        let n = &mut self.nodes[node];
        let own = n.who.peer_record(1);
        n.store = BTreeMap::from([(own.key.clone(), own)]);
        n.version = 1;
        n.catching_up.clear();
        n.returned.clear();
        n.facts.starts = 0;
        n.facts.lineage.clear();
        self.restart(node);
    }

    pub fn snapshot(&self, node: usize) -> Snapshot {
        let n = &self.nodes[node];
        Snapshot {
            store: n.store.clone(),
            trusted: n.trusted.clone(),
            version: n.version,
            facts: n.facts.clone(),
            catching_up: n.catching_up.clone(),
            returned: n.returned.clone(),
        }
    }

    pub fn restore(&mut self, node: usize, old: Snapshot) {
        self.lossy.insert(node);
        let n = &mut self.nodes[node];
        (n.store, n.trusted, n.version) = (old.store, old.trusted, old.version);
        (n.facts, n.catching_up, n.returned) = (old.facts, old.catching_up, old.returned);
        self.restart(node);
    }

    /// Cuts or heals everything between one node and the others.
    pub fn isolate(&mut self, node: usize, cut: bool) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            for pair in [(node, other), (other, node)] {
                if cut {
                    self.cut.insert(pair)
                } else {
                    self.cut.remove(&pair)
                };
            }
        }
    }

    /// Lets time pass in which nobody does anything.
    pub fn sleep(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }

    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now + duration, |_| false);
    }

    /// Steps until `done` or `end`; says whether `done` came.
    pub fn run_until(&mut self, end: Mono, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let timers = self.nodes.iter().enumerate().filter_map(|(i, n)| Some((n.gossip.poll_timeout()?.0, i)));
            let timer = timers.min();
            let arrival = self.queue.keys().next().copied();
            let next = [timer.map(|t| t.0), arrival.map(|a| a.0)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(next);
            match arrival.filter(|a| a.0 <= next) {
                Some(key) => {
                    let arrived = self.queue.remove(&key).unwrap();
                    self.deliver(arrived);
                }
                None => {
                    let node = timer.unwrap().1;
                    self.nodes[node].gossip.handle_timeout(self.now);
                    self.flush(node);
                }
            }
        }
    }

    fn deliver(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Request { from, to, request } => {
                let op = request.op();
                *self.carried.entry(op).or_default() += 1;
                let request = Request::decode(op, &request.encode()).unwrap();
                let sender = self.nodes[from].who.id;
                let reply = self.nodes[to].gossip.handle_request(sender, &request, self.now);
                self.trace.push(format!("{:?} {from}>{to} {} {}", self.now, op.name(), reply.is_ok()));
                self.flush(to);
                let answer = reply.map_err(|_| CallFailed { op });
                self.carry_answer(to, from, answer);
            }
            Arrival::Repeat { from, to, request } => {
                let sender = self.nodes[from].who.id;
                let taken = self.nodes[to].gossip.handle_request(sender, &request, self.now);
                self.trace.push(format!("{:?} {from}>{to} again {}", self.now, taken.is_ok()));
                self.flush(to);
            }
            Arrival::Answer { from, to, answer } => {
                let sender = self.nodes[from].who.id;
                let reply = answer.as_ref().map_err(|failed| *failed);
                let taken = self.nodes[to].gossip.handle_reply(sender, reply, self.now);
                self.trace.push(format!("{:?} {to}<{from} {} {:?}", self.now, answer.is_ok(), taken.is_ok()));
                self.flush(to);
            }
        }
    }

    /// Does the driver's part for one node: commits events, sends transmits.
    fn flush(&mut self, node: usize) {
        while let Some(event) = self.nodes[node].gossip.poll_event() {
            self.trace.push(format!("{:?} {node} {event:?}", self.now));
            self.commit(node, event);
        }
        while let Some(Transmit { to, request }) = self.nodes[node].gossip.poll_transmit() {
            let to = self.nodes.iter().position(|n| n.who.id == to).unwrap();
            let failed = Err(CallFailed { op: request.op() });
            if self.cut.contains(&(node, to)) || self.unreachable.contains(&(node, to)) || self.lost() {
                self.schedule(CALL_TIMEOUT, Arrival::Answer { from: to, to: node, answer: failed });
            } else {
                if self.below(100) < self.faults.repeat_percent {
                    let late = 3 * self.delay();
                    self.schedule(late, Arrival::Repeat { from: node, to, request: request.clone() });
                }
                let delay = self.delay();
                self.schedule(delay, Arrival::Request { from: node, to, request });
            }
        }
    }

    pub fn flush_all(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.flush(node));
    }

    fn commit(&mut self, node: usize, event: Event) {
        let n = &mut self.nodes[node];
        match event {
            Event::Merge(records) => {
                for record in records {
                    let held = n.store.get(&record.key);
                    assert!(held.is_none_or(|h| h.head().unwrap() <= record.head().unwrap()), "a version fell");
                    if record.key.owner == n.who.id {
                        n.returned.insert(record.key.clone());
                    }
                    n.store.insert(record.key.clone(), record);
                }
            }
            Event::Revoked { peer, void } => {
                if peer == n.who.id {
                    n.trusted.clear();
                }
                n.trusted.remove(&peer);
                void.iter().for_each(|key| assert!(n.store.remove(key).is_some(), "void records were held"));
            }
            Event::AdoptOwnVersion { version, .. } => n.version = n.version.max(version),
            Event::Discovered(discovery) => n.discovered.push(discovery.peer),
            Event::Forgotten(gone) => {
                n.store.retain(|key, held| !gone.iter().any(|(gone, version)| gone == key && held.version <= *version));
            }
            Event::CatchingUp { owner, complete } => drop(n.catching_up.insert(owner, complete)),
            Event::CaughtUp(owner) => drop(n.catching_up.remove(&owner)),
            Event::PublishFloor(floor) => {
                self.assert_everyone_holds(node, floor.through);
                let id = self.nodes[node].who.id.to_string();
                self.put_own(node, kind::FLOOR, &id, serde_json::to_value(floor).unwrap());
            }
            Event::Republish(records) => {
                for record in records {
                    let held = self.nodes[node].store.get(&record.key);
                    if held.is_none_or(|held| held.version <= record.version) {
                        self.put_own(node, &record.key.kind, &record.key.id, record.body);
                    }
                }
            }
            Event::Contested(contested) => n.contested = contested,
            Event::PeerStatus { .. } | Event::TwoCopies(_) => {}
        }
    }

    /// R2: what goes is known to every peer that is not silent for 30 days. Nodes that lost something are reset.
    fn assert_everyone_holds(&self, owner: usize, through: u64) {
        let of = &self.nodes[owner];
        for tombstone in of.store.values().filter(|r| r.deleted && r.key.owner == of.who.id && r.version <= through) {
            for (at, other) in self.nodes.iter().enumerate() {
                let Some(view) = of.gossip.peer_view(other.who.id) else { continue };
                let is_laggard = view.last_seen.is_none_or(|seen| self.now - seen >= LAGGARD_AFTER);
                let held = other.store.get(&tombstone.key);
                let knows = held.is_none_or(|held| held.version >= tombstone.version);
                assert!(knows || is_laggard || self.lossy.contains(&at), "collected before {at} acknowledged it");
            }
        }
    }

    fn carry_answer(&mut self, from: usize, to: usize, answer: Result<Reply, CallFailed>) {
        let op = answer.as_ref().map_or_else(|failed| failed.op, Reply::op);
        let is_lost = self.cut.contains(&(from, to)) || self.lost();
        let (delay, answer) = if is_lost { (CALL_TIMEOUT, Err(CallFailed { op })) } else { (self.delay(), answer) };
        self.schedule(delay, Arrival::Answer { from, to, answer });
    }

    fn lost(&mut self) -> bool {
        self.rng.below(100) < self.faults.loss_percent
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(1 + self.rng.below(self.faults.latency_max_ms))
    }

    fn schedule(&mut self, delay: Duration, arrival: Arrival) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), arrival);
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    pub fn digests(&self) -> Vec<Digests> {
        self.nodes.iter().map(|n| n.gossip.digests()).collect()
    }

    pub fn is_equal(&self) -> bool {
        self.digests().windows(2).all(|pair| pair[0] == pair[1])
    }

    /// The index and the committed records never part: what is stored is indexed or in doubt, and what is indexed is stored.
    /// Where nothing is in doubt, a start from what is stored knows the same.
    pub fn assert_stores_match(&self) {
        for n in &self.nodes {
            assert_eq!(Revocations::of(n.store.values()), n.gossip.revocations, "who is revoked");
            let is_known = |r: &Record| n.gossip.index.head(&r.key) == r.head().ok() || n.gossip.is_suspect(r);
            assert!(n.store.values().all(is_known), "a stored record is neither indexed nor in doubt");
            let owners = n.gossip.index.owners().map(|(owner, _)| owner).collect();
            let indexed = n.gossip.index.keys_of_owners(&owners);
            let is_stored = |key: &RecordKey| n.store.get(key).and_then(|r| r.head().ok()) == n.gossip.index.head(key);
            assert!(indexed.iter().all(is_stored), "an indexed record is not stored");
        }
        for n in self.nodes.iter().filter(|n| n.catching_up.is_empty()) {
            let records = n.store.values().cloned().collect();
            let rebuilt =
                Gossip::new(n.who.local(), facts(), records, &n.trusted, Rng::from_seed([0; 32]), Mono::default());
            assert_eq!(rebuilt.digests(), n.gossip.digests());
        }
    }
}
