//! N7 of simulation.md §7: a cluster of which a tenth of the members goes and as many come every minute.

use super::fleet::{Fleet, facts};
use arctic::{
    gossip::{Event, Facts, Gossip, Local, PUSH_ALL_PEERS},
    handshake::VOUCHER_LIFETIME,
    model::{CustomerId, Mono, PeerId, PeerStatus, PublicKey, Rng, Signature, SigningKey, UnixTime},
    wire::{
        gossip::{PUSH_HOPS_MAX, PushRequest, Records, Request},
        record::{Record, RecordKey, RevocationBody, RevocationReason, Voucher, kind},
    },
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub const MEMBERS: usize = 300;
/// Members that go in a minute, and as many that come: a tenth.
const CHANGES_EACH_MINUTE: u64 = 30;
/// Nobody comes or goes before all have met.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// Drivers commit and act on what machines say so much later at most.
const STEP: Duration = Duration::from_millis(100);
/// Services made in a minute, and as many deleted.
const SERVICES_EACH_MINUTE: u64 = 20;
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Who went is judged for so long after others should know; for ever, the share would fall by itself.
const JUDGED_FOR: Duration = Duration::from_secs(120);
/// An operator finds a dead host and removes it.
const FOUND_DEAD_AFTER: Duration = Duration::from_secs(60);
/// A stopped agent comes back after so long, and up to as much more.
const STOPPED_AT_LEAST_MS: u64 = 20_000;
const STOPPED_UP_TO_MS: u64 = 80_000;
/// Members that give their word about one peer. In production all that have met it do: n² records, too many to simulate
/// for half an hour; who brought it in may go at once, so one is too few.
const VOUCHED_BY: usize = 3;
/// Two calls there and one back.
const HANDSHAKE_MESSAGES: u32 = 6;
/// Seconds until a failed handshake is tried again (cluster.md §4).
const HANDSHAKE_PAUSES_S: [u64; 7] = [1, 2, 10, 20, 40, 80, 160];

/// How a member goes, in turn: two in five come back, the others make room for a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    Stops,
    Leaves,
    IsRemoved,
    Dies,
}

const GOINGS: [Going; 5] = [Going::Stops, Going::Leaves, Going::Stops, Going::IsRemoved, Going::Dies];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up(Mono),
    Down(Mono),
    /// For good. One that was removed may run until it hears of it.
    Gone(Mono),
}

/// What of a member is on disk besides records.
struct Member {
    state: State,
    starts: u64,
    trusted: BTreeMap<PeerId, PublicKey>,
    catching_up: BTreeMap<PeerId, u64>,
    /// Members that gave their word about it.
    vouched_by: usize,
}

#[derive(Debug, Clone, Copy)]
enum Due {
    Restart(usize),
    /// An operator removes the dead one.
    Remove(usize),
    Handshake {
        from: usize,
        to: usize,
        failed: usize,
    },
}

/// Views that were wrong when they should have been right, of all that were judged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Views {
    pub judged: u64,
    pub alive_unknown: u64,
    pub alive_unhealthy: u64,
    pub gone_healthy: u64,
}

impl Views {
    pub fn wrong_percent(&self) -> f64 {
        let wrong = self.alive_unknown + self.alive_unhealthy + self.gone_healthy;
        100.0 * wrong as f64 / self.judged.max(1) as f64
    }
}

/// Tombstones that members hold of what members own, and, on average, of owners that have left by themselves: the services
/// of those stay listed, and nobody collects for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    pub mean: f64,
    pub most: usize,
    pub of_departed: f64,
}

pub struct Churn {
    pub fleet: Fleet,
    members: Vec<Member>,
    /// All that was ever written, oldest first.
    written: BTreeMap<RecordKey, Vec<Arc<Record>>>,
    /// Live services and where they are from.
    services: Vec<(usize, String)>,
    /// What was deleted, and when.
    pub tombstones: Vec<(RecordKey, Mono)>,
    pub revocations: BTreeMap<PeerId, RecordKey>,
    due: BTreeMap<(Mono, u64), Due>,
    sequence: u64,
    goings: usize,
    named: u64,
    pub views: Views,
    /// At the end of each minute since [`SETTLED_AFTER`].
    pub held: Vec<Held>,
}

impl Churn {
    pub fn new(loss_percent: u64) -> Self {
        let mut fleet = Fleet::new(MEMBERS, 8, 0, 0);
        fleet.loss_percent = loss_percent;
        fleet.sample = u64::MAX;
        fleet.said = Some(Vec::new());
        let trusted: BTreeMap<_, _> = fleet.ids.iter().zip(&fleet.keys).map(|(id, key)| (*id, key.public())).collect();
        let member = |_| Member {
            state: State::Up(Mono::default()),
            starts: 1,
            trusted: trusted.clone(),
            catching_up: BTreeMap::new(),
            vouched_by: VOUCHED_BY,
        };
        let mut churn = Self {
            members: (0..MEMBERS).map(member).collect(),
            fleet,
            written: BTreeMap::new(),
            services: Vec::new(),
            tombstones: Vec::new(),
            revocations: BTreeMap::new(),
            due: BTreeMap::new(),
            sequence: 0,
            goings: 0,
            named: 0,
            views: Views::default(),
            held: Vec::new(),
        };
        churn.found();
        churn
    }

    /// Every member holds one service of each, and the words of some about each.
    fn found(&mut self) {
        for place in 0..MEMBERS {
            drop(self.new_service(place));
            for subject in (1..=VOUCHED_BY).map(|n| (place + n) % MEMBERS) {
                drop(self.word(place, subject));
            }
        }
        let records: Vec<_> = self.written.values().flatten().cloned().collect();
        for place in 0..MEMBERS {
            let rng = Rng::from_seed(std::array::from_fn(|i| (place >> (8 * (i % 2))) as u8));
            let (id, key) = (self.fleet.ids[place], self.fleet.keys[place].clone());
            let machine = self.machine(place, id, &key, records.clone(), rng);
            self.fleet.start(id, key, machine);
        }
    }

    /// Lives for `span`, or until `more` says that the time of the wall is used up; gives how long members came and went.
    pub fn live(&mut self, span: Duration, more: &dyn Fn() -> bool) -> Duration {
        let began = Mono::default() + SETTLED_AFTER;
        let each = |per_minute: u64| Duration::from_millis(60_000 / per_minute);
        let (mut change_at, mut service_at, mut sample_at) = (began, began, began);
        let mut minute_at = began + Duration::from_secs(60);
        while self.fleet.now < began + span && more() {
            let now = self.fleet.now + STEP;
            self.fleet.run(now, &|| true, |_| false);
            self.act();
            if now >= change_at {
                change_at = change_at + each(CHANGES_EACH_MINUTE);
                self.change();
            }
            if now >= service_at {
                service_at = service_at + each(SERVICES_EACH_MINUTE);
                let place = self.some_member();
                self.make_service(place);
                self.delete_service();
            }
            if now >= sample_at {
                sample_at = sample_at + SAMPLE_EVERY;
                self.judge();
            }
            if now >= minute_at {
                minute_at = minute_at + Duration::from_secs(60);
                self.count_tombstones();
            }
        }
        self.fleet.now.saturating_since(began)
    }

    fn is_up(&self, place: usize) -> bool {
        matches!(self.members[place].state, State::Up(_))
    }

    fn some_member(&mut self) -> usize {
        loop {
            let place = self.fleet.below(self.members.len());
            if self.is_up(place) {
                return place;
            }
        }
    }

    fn plan(&mut self, wait: Duration, due: Due) {
        self.sequence += 1;
        self.due.insert((self.fleet.now + wait, self.sequence), due);
    }

    /// One goes, and one comes: at once where it is another one.
    fn change(&mut self) {
        let going = GOINGS[self.goings % GOINGS.len()];
        self.goings += 1;
        let (place, now) = (self.some_member(), self.fleet.now);
        match going {
            Going::Stops => {
                let more = self.fleet.below(STOPPED_UP_TO_MS as usize) as u64;
                self.stop(place, State::Down(now));
                self.plan(Duration::from_millis(STOPPED_AT_LEAST_MS + more), Due::Restart(place));
            }
            Going::Dies => {
                self.stop(place, State::Down(now));
                self.plan(FOUND_DEAD_AFTER, Due::Remove(place));
            }
            Going::IsRemoved => self.remove(place),
            Going::Leaves => self.leave(place),
        }
        if going != Going::Stops {
            self.come();
        }
    }

    fn stop(&mut self, place: usize, state: State) {
        self.members[place].state = state;
        self.fleet.dead.insert(place);
    }

    /// `peers delete` at some member.
    fn remove(&mut self, subject: usize) {
        let by = loop {
            let by = self.some_member();
            if by != subject {
                break by;
            }
        };
        let revocation = self.revoke(by, subject, RevocationReason::Deleted);
        self.members[subject].state = State::Gone(self.fleet.now);
        let id = self.fleet.ids[subject];
        self.members[by].trusted.remove(&id);
        self.fleet.tell(by, &[revocation]);
    }

    /// `peers remove-self`: the last word goes to all that can be reached.
    fn leave(&mut self, place: usize) {
        let revocation = Arc::new(self.revoke(place, place, RevocationReason::Deactivated));
        let others = self.members[place].trusted.keys().filter(|id| **id != self.fleet.ids[place]);
        let others: Vec<usize> = others.filter_map(|id| self.fleet.place(*id)).collect();
        let hops = if others.len() > PUSH_ALL_PEERS { PUSH_HOPS_MAX } else { 0 };
        let digests = self.fleet.machines[place].digests();
        for other in others {
            let records = Records::shared(vec![revocation.clone()]);
            let push = PushRequest { instance: String::new(), records, hops, digests };
            self.fleet.post(place, other as u32, Request::Push(push));
        }
        self.stop(place, State::Gone(self.fleet.now));
    }

    fn revoke(&mut self, by: usize, subject: usize, reason: RevocationReason) -> Record {
        let (id, key) = (self.fleet.ids[subject], self.fleet.keys[subject].public());
        let body = RevocationBody {
            peer_id: Some(id),
            public_key: Some(key),
            client_id: None,
            reason,
            revoked_at: UnixTime::from_secs(1_790_000_000),
        };
        let revocation = self.sign(by, kind::REVOCATION, &id.to_string(), Some(json!(body)));
        self.revocations.insert(id, revocation.key.clone());
        revocation
    }

    /// A newcomer that an operator adds at some member.
    fn come(&mut self) {
        let seed = self.members.len() as u64;
        let mut rng = Rng::from_seed(std::array::from_fn(|i| seed.to_be_bytes()[i % 8] ^ i as u8));
        let id = PeerId::mint(UnixTime::from_secs(1_700_100_000 + seed), &mut rng);
        let key = SigningKey::from_seed(rng.bytes());
        let host = self.some_member();
        let trusted = BTreeMap::from([(id, key.public())]);
        let now = self.fleet.now;
        self.members.push(Member {
            state: State::Up(now),
            starts: 1,
            trusted,
            catching_up: BTreeMap::new(),
            vouched_by: 0,
        });
        let machine = self.machine(self.members.len() - 1, id, &key, Vec::new(), rng);
        let place = self.fleet.start(id, key, machine);
        self.make_service(place);
        self.plan(STEP, Due::Handshake { from: host, to: place, failed: 0 });
    }

    fn machine(&self, place: usize, id: PeerId, key: &SigningKey, held: Vec<Arc<Record>>, mut rng: Rng) -> Gossip {
        let member = &self.members[place];
        let (instance, lineage) = (format!("{:016x}", rng.u128() >> 64), id.to_string());
        let facts = Facts { instance, starts: member.starts, lineage, ..facts() };
        let local = Local { peer_id: id, public_key: key.public() };
        let mut machine = Gossip::sharing(local, facts, held, &member.trusted, rng, self.fleet.now);
        machine.handle_resume(&member.catching_up, BTreeSet::new(), self.fleet.now);
        machine
    }

    /// The agent of a stopped member starts again, with what it held.
    fn restart(&mut self, place: usize) {
        let now = self.fleet.now;
        let member = &mut self.members[place];
        if member.state == State::Up(now) || matches!(member.state, State::Gone(_)) {
            return;
        }
        member.state = State::Up(now);
        member.starts += 1;
        let (id, key) = (self.fleet.ids[place], self.fleet.keys[place].clone());
        let before = &self.fleet.machines[place];
        let held_of = |(key, versions): (&RecordKey, &Vec<Arc<Record>>)| {
            let version = before.record(key)?.version;
            versions.iter().rev().find(|record| record.version == version).cloned()
        };
        let held = self.written.iter().filter_map(held_of).collect();
        let seed = (place as u64) << 32 | self.members[place].starts;
        let rng = Rng::from_seed(std::array::from_fn(|i| seed.to_be_bytes()[i % 8] ^ i as u8));
        let machine = self.machine(place, id, &key, held, rng);
        self.fleet.start(id, key, machine);
    }

    /// Signs the next record of a key; a tombstone without a body.
    fn sign(&mut self, place: usize, record_kind: &str, id: &str, body: Option<Value>) -> Record {
        let version = self.fleet.next_version();
        let (key, owner) = (&self.fleet.keys[place], self.fleet.ids[place]);
        let signed = match body {
            Some(body) => Record::sign(key, owner, record_kind, id, version, body),
            None => {
                let of = RecordKey { kind: record_kind.into(), id: id.into(), owner };
                Record::sign_tombstone(key, of, version)
            }
        };
        let record = signed.expect("plain JSON has a canonical form");
        self.written.entry(record.key.clone()).or_default().push(Arc::new(record.clone()));
        record
    }

    fn new_service(&mut self, place: usize) -> Record {
        self.named += 1;
        let name = format!("svc-{}", self.named);
        let record = self.sign(place, kind::SERVICE, &name, Some(json!({"dest": "192.0.2.0/24", "n": self.named})));
        self.services.push((place, name));
        record
    }

    fn make_service(&mut self, place: usize) {
        let record = self.new_service(place);
        self.fleet.tell(place, &[record]);
    }

    fn delete_service(&mut self) {
        for _ in 0..self.services.len() {
            let (place, name) = self.services.swap_remove(self.fleet.below(self.services.len()));
            match self.members[place].state {
                State::Up(_) => {
                    let tombstone = self.sign(place, kind::SERVICE, &name, None);
                    self.tombstones.push((tombstone.key.clone(), self.fleet.now));
                    return self.fleet.tell(place, &[tombstone]);
                }
                State::Down(_) => self.services.push((place, name)),
                State::Gone(_) => {}
            }
        }
    }

    /// What drivers do: about what machines said, refused calls, and what is due.
    fn act(&mut self) {
        for (caller, called) in std::mem::take(&mut self.fleet.refused) {
            self.tell_grounds(caller, called);
        }
        loop {
            let said = self.fleet.said.as_mut().map(std::mem::take).unwrap_or_default();
            if said.is_empty() {
                break;
            }
            for (place, event) in said {
                self.take(place, event);
            }
        }
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= self.fleet.now) {
            match entry.remove() {
                Due::Restart(place) => self.restart(place),
                Due::Remove(place) => self.remove(place),
                Due::Handshake { from, to, failed } => self.shake_hands(from, to, failed),
            }
        }
        self.fleet.blamed.clear();
    }

    fn take(&mut self, place: usize, event: Event) {
        if self.fleet.dead.contains(&place) {
            return;
        }
        match event {
            Event::Discovered(found) if found.voucher.is_some() => {
                let wait = Duration::from_millis(50 + self.fleet.below(200) as u64);
                if let Some(to) = self.fleet.place(found.peer) {
                    self.plan(wait, Due::Handshake { from: place, to, failed: 0 });
                }
            }
            Event::Revoked { peer, .. } if peer == self.fleet.ids[place] => {
                self.members[place].trusted.clear();
                self.stop(place, State::Gone(self.fleet.now));
            }
            Event::Revoked { peer, .. } => {
                self.members[place].trusted.remove(&peer);
            }
            Event::CatchingUp { owner, complete } => {
                self.members[place].catching_up.insert(owner, complete);
            }
            Event::CaughtUp(owner) => {
                self.members[place].catching_up.remove(&owner);
            }
            Event::PublishFloor(floor) => {
                let id = self.fleet.ids[place].to_string();
                let record = self.sign(place, kind::FLOOR, &id, Some(json!(floor)));
                self.fleet.tell(place, &[record]);
            }
            Event::Republish(records) => {
                for record in records {
                    let body = (!record.deleted).then(|| record.body.clone());
                    let record = self.sign(place, &record.key.kind, &record.key.id, body);
                    self.fleet.tell(place, &[record]);
                }
            }
            _ => {}
        }
    }

    /// A removed peer that calls is told the revocation, and takes it if it trusts its issuer.
    fn tell_grounds(&mut self, caller: usize, called: usize) {
        let Some(key) = self.revocations.get(&self.fleet.ids[caller]) else { return };
        let is_trusted = self.members[caller].trusted.contains_key(&key.owner);
        if let Some(record) = self.fleet.machines[called].record(key).filter(|_| is_trusted).cloned()
            && !self.fleet.dead.contains(&caller)
        {
            self.fleet.tell(caller, &[record]);
        }
    }

    fn shake_hands(&mut self, from: usize, to: usize, failed: usize) {
        let (caller, called) = (self.fleet.ids[from], self.fleet.ids[to]);
        let knows_removal = |at: usize, of: &PeerId| {
            let removal = self.revocations.get(of);
            removal.is_some_and(|key| self.fleet.machines[at].record(key).is_some())
        };
        let is_refused = knows_removal(from, &called) || knows_removal(to, &caller);
        if is_refused || self.fleet.dead.contains(&from) || self.members[from].trusted.contains_key(&called) {
            return;
        }
        let loss = self.fleet.loss_percent;
        let is_lost = (0..HANDSHAKE_MESSAGES).any(|_| (self.fleet.below(100) as u64) < loss);
        if is_lost || self.fleet.dead.contains(&to) {
            if let Some(pause) = HANDSHAKE_PAUSES_S.get(failed) {
                self.plan(Duration::from_secs(*pause), Due::Handshake { from, to, failed: failed + 1 });
            }
            return;
        }
        for (place, other) in [(from, to), (to, from)] {
            let (id, key) = (self.fleet.ids[other], self.fleet.keys[other].public());
            self.members[place].trusted.insert(id, key);
            let trusted = std::mem::take(&mut self.members[place].trusted);
            self.fleet.trust(place, &trusted);
            self.members[place].trusted = trusted;
            if self.members[other].vouched_by < VOUCHED_BY {
                self.members[other].vouched_by += 1;
                let record = self.word(place, other);
                self.fleet.tell(place, &[record]);
            }
        }
    }

    /// The voucher of one for another.
    fn word(&mut self, issuer: usize, subject: usize) -> Record {
        let issued_at = UnixTime::from_secs(1_790_000_000);
        let mut voucher = Voucher {
            subject_peer_id: self.fleet.ids[subject],
            subject_public_key: self.fleet.keys[subject].public(),
            subject_endpoints: facts().endpoints,
            customer_id: CustomerId::mint(issued_at, &mut Rng::from_seed([1; 32])),
            issuer_peer_id: self.fleet.ids[issuer],
            issued_at,
            expires_at: issued_at.plus(VOUCHER_LIFETIME),
            signature: Signature::from_bytes([0; 64]),
        };
        voucher.signature = voucher.transcript().sign(&self.fleet.keys[issuer]);
        self.sign(issuer, kind::VOUCHER, &voucher.subject_peer_id.to_string(), Some(json!(voucher)))
    }

    /// Looks at what every member that is up says of every other one, as far as both have been what they are for so long
    /// that it should know: the silence limit after a start or a removal, and the expected rumour delay (a third of that
    /// limit) longer after a death. A view is wrong where one that is up is not healthy or not known, and where one that
    /// is down or gone is healthy.
    fn judge(&mut self) {
        let now = self.fleet.now;
        let since = |at: Mono| now.saturating_since(at);
        let mut views = self.views;
        for by in (0..self.members.len()).filter(|place| self.is_up(*place)) {
            let machine = &self.fleet.machines[by];
            let known_after = machine.silence_limit();
            let dead_after = known_after + known_after / 3;
            if !matches!(self.members[by].state, State::Up(at) if since(at) >= known_after) {
                continue;
            }
            for (of, member) in self.members.iter().enumerate().filter(|(of, _)| *of != by) {
                let is_up = match member.state {
                    State::Up(at) if since(at) >= known_after => true,
                    State::Down(at) if since(at) >= dead_after => false,
                    State::Gone(at) if since(at) >= dead_after && since(at) < dead_after + JUDGED_FOR => false,
                    _ => continue,
                };
                views.judged += 1;
                let status = machine.peer_view(self.fleet.ids[of]).map(|view| view.status);
                match (is_up, status) {
                    (true, None) => views.alive_unknown += 1,
                    (true, Some(status)) if status != PeerStatus::Healthy => views.alive_unhealthy += 1,
                    (false, Some(PeerStatus::Healthy)) => views.gone_healthy += 1,
                    _ => {}
                }
            }
        }
        self.views = views;
    }

    /// Tombstones that were made in the last `span`.
    pub fn made_within(&self, span: Duration) -> usize {
        self.tombstones.iter().filter(|(_, at)| self.fleet.now.saturating_since(*at) <= span).count()
    }

    fn count_tombstones(&mut self) {
        let departed: BTreeSet<PeerId> =
            self.revocations.iter().filter(|(id, key)| **id == key.owner).map(|(id, _)| *id).collect();
        let (mut counted, mut held, mut of_departed, mut most) = (0, 0, 0, 0);
        for place in (0..self.members.len()).step_by(7).filter(|place| self.is_up(*place)) {
            let machine = &self.fleet.machines[place];
            let is_held = |key: &&RecordKey| machine.record(key).is_some_and(|record| record.deleted);
            let here = self.tombstones.iter().map(|(key, _)| key).filter(is_held);
            let (gone, here): (Vec<_>, Vec<_>) = here.partition(|key| departed.contains(&key.owner));
            (counted, held, of_departed) = (counted + 1, held + here.len(), of_departed + gone.len());
            most = most.max(here.len());
        }
        let mean = |sum: usize| sum as f64 / f64::from(counted.max(1));
        self.held.push(Held { mean: mean(held), most, of_departed: mean(of_departed) });
    }
}
