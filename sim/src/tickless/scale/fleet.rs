//! Gossip machines alone on a lean event queue: no store, no handshakes, messages handed over as they are. For figures of
//! clusters that are too large for [`World`](super::super::World).

use arctic::{
    gossip::{CallFailed, Event, Facts, Gossip, Local, Reject, Transmit},
    model::{Endpoint, Mono, PeerId, PeerStatus, PublicKey, Rng, SigningKey, UnixTime},
    wire::{
        gossip::{Op, Reply, Request},
        record::{Record, kind},
    },
};
use serde_json::json;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const LATENCY_MAX_MS: u64 = 50;
/// Counted by hand: request line, host, type, length and the four headers of a signed request; status line, type,
/// length, date and request id of an answer.
const REQUEST_HEAD_BYTES: u64 = 342;
const ANSWER_HEAD_BYTES: u64 = 150;
/// Events between two looks at the clock of the wall.
const LOOK_EVERY: u64 = 4096;

enum Arrival {
    Request { from: u32, to: u32, request: Box<Request> },
    Answer { from: u32, to: u32, answer: Result<Box<Reply>, CallFailed> },
}

pub struct Fleet {
    pub ids: Vec<PeerId>,
    places: BTreeMap<PeerId, u32>,
    pub keys: Vec<SigningKey>,
    pub machines: Vec<Gossip>,
    pub now: Mono,
    pub loss_percent: u64,
    /// Neither called nor awake.
    pub dead: BTreeSet<usize>,
    /// Peers are split into those below and those above.
    pub split_at: Option<usize>,
    /// (observer, subject, when) of each peer that was found unhealthy.
    pub blamed: Vec<(usize, PeerId, Mono)>,
    /// Of each written service: who holds it, and since when the last of them does.
    pub reached: BTreeMap<String, (usize, Mono)>,
    /// One message in so many is encoded to count its bytes.
    pub sample: u64,
    /// Bytes with headers, as far as the samples tell.
    pub bytes: u64,
    pub messages: u64,
    pub steps: u64,
    /// What machines said that nothing here follows, for who drives members that come and go; none is kept otherwise.
    pub said: Option<Vec<(usize, Event)>>,
    /// (caller, called) of calls that were refused for want of trust, where they are kept.
    pub refused: Vec<(usize, usize)>,
    version: u64,
    timers: BinaryHeap<Reverse<(Mono, u32)>>,
    queued: Vec<Option<Mono>>,
    times: BinaryHeap<Reverse<(Mono, u64, u32)>>,
    arrivals: Vec<Option<Arrival>>,
    free: Vec<u32>,
    sequence: u64,
    rng: Rng,
}

pub fn facts() -> Facts {
    let endpoint = |host: &str| Endpoint::new(host, 8080).ok();
    Facts {
        instance: "0123456789abcdef".into(),
        starts: 1,
        lineage: "first".into(),
        version: "v0.1.0".into(),
        endpoints: [endpoint("10.0.0.1"), endpoint("agent.example.net")].into_iter().flatten().collect(),
        license_state: "valid".into(),
        unix: UnixTime::from_secs(1_790_000_000),
    }
}

/// `count` services of `owner`.
pub fn services(key: &SigningKey, owner: PeerId, count: u64) -> Vec<Arc<Record>> {
    let body = |n: u64| json!({"name": format!("svc-{n}"), "dest": "192.0.2.0/24", "port": n % 65_536});
    let record = |n: u64| Record::sign(key, owner, kind::SERVICE, &format!("old-{n}"), n + 1, body(n)).ok();
    (0..count).filter_map(record).map(Arc::new).collect()
}

impl Fleet {
    /// All trust each other; the first `knowing` of them hold `records` services of the first.
    pub fn new(size: usize, seed: u8, records: u64, knowing: usize) -> Self {
        let mut rng = Rng::from_seed([seed; 32]);
        let ids: Vec<_> =
            (0..size).map(|i| PeerId::mint(UnixTime::from_secs(1_700_000_000 + i as u64), &mut rng)).collect();
        let keys: Vec<_> = (0..size).map(|_| SigningKey::from_seed(rng.bytes())).collect();
        let trusted: BTreeMap<PeerId, PublicKey> = ids.iter().zip(&keys).map(|(id, key)| (*id, key.public())).collect();
        let first = ids.first().zip(keys.first());
        let held = first.map(|(id, key)| services(key, *id, records)).unwrap_or_default();
        let machine = |(place, id): (usize, &PeerId)| {
            let local = Local { peer_id: *id, public_key: keys[place].public() };
            let held = if place < knowing { held.as_slice() } else { &[] };
            Gossip::sharing(local, facts(), held.iter().cloned(), &trusted, rng.fork(), Mono::default())
        };
        let machines = ids.iter().enumerate().map(machine).collect();
        let mut fleet = Self {
            places: ids.iter().enumerate().map(|(place, id)| (*id, place as u32)).collect(),
            ids,
            keys,
            machines,
            now: Mono::default(),
            loss_percent: 0,
            dead: BTreeSet::new(),
            split_at: None,
            blamed: Vec::new(),
            reached: BTreeMap::new(),
            sample: 64,
            bytes: 0,
            messages: 0,
            steps: 0,
            said: None,
            refused: Vec::new(),
            version: records + 1,
            timers: BinaryHeap::new(),
            queued: vec![None; size],
            times: BinaryHeap::new(),
            arrivals: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            rng,
        };
        (0..size).for_each(|place| fleet.flush(place));
        fleet
    }

    /// Writes services of these names at `place` and tells them to its machine at once.
    pub fn write(&mut self, place: usize, names: &[String]) {
        let mut records = Vec::new();
        for name in names {
            let version = self.next_version();
            let body = json!({"at": version});
            records.extend(Record::sign(&self.keys[place], self.ids[place], kind::SERVICE, name, version, body));
        }
        self.tell(place, &records);
    }

    /// Above all that were ever given: nobody's counter falls.
    pub fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Tells a machine of records that were committed at its place.
    pub fn tell(&mut self, place: usize, records: &[Record]) {
        self.machines[place].handle_local_change(records, self.now);
        self.flush(place);
    }

    pub fn trust(&mut self, place: usize, trusted: &BTreeMap<PeerId, PublicKey>) {
        self.machines[place].handle_trust(trusted, self.now);
        self.flush(place);
    }

    /// Puts a machine at a new place, or at that of one that was dead.
    pub fn start(&mut self, id: PeerId, key: SigningKey, machine: Gossip) -> usize {
        let place = match self.places.get(&id) {
            Some(place) => *place as usize,
            None => {
                self.places.insert(id, self.ids.len() as u32);
                self.ids.push(id);
                self.keys.push(key);
                self.queued.push(None);
                self.ids.len() - 1
            }
        };
        if place == self.machines.len() {
            self.machines.push(machine);
        } else {
            self.machines[place] = machine;
        }
        self.dead.remove(&place);
        self.flush(place);
        place
    }

    pub fn place(&self, id: PeerId) -> Option<usize> {
        self.places.get(&id).map(|place| *place as usize)
    }

    /// Writes one service whose spread is followed.
    pub fn write_followed(&mut self, place: usize, name: &str) {
        self.reached.insert(name.to_owned(), (1, self.now));
        self.write(place, &[name.to_owned()]);
    }

    /// Runs until `done`, `end`, or until `more` says that the time of the wall is used up; says whether `done` came.
    pub fn run(&mut self, end: Mono, more: &dyn Fn() -> bool, done: impl Fn(&Self) -> bool) -> bool {
        let mut look_at = self.now;
        loop {
            let timer = self.timers.peek().map(|Reverse(next)| *next);
            let arrival = self.times.peek().map(|Reverse(next)| *next);
            let next = [timer.map(|t| t.0), arrival.map(|a| a.0)].into_iter().flatten().min();
            let next = next.unwrap_or(end);
            if next >= look_at {
                look_at = next + Duration::from_millis(100);
                if done(self) {
                    return true;
                }
            }
            if next >= end || (self.steps.is_multiple_of(LOOK_EVERY) && !more()) {
                self.now = self.now.max(next.min(end));
                return done(self);
            }
            self.steps += 1;
            self.now = self.now.max(next);
            match arrival.filter(|a| a.0 <= next) {
                Some((.., slot)) => {
                    self.times.pop();
                    self.free.push(slot);
                    if let Some(arrival) = self.arrivals[slot as usize].take() {
                        self.deliver(arrival);
                    }
                }
                None => {
                    self.timers.pop();
                    let Some((at, place)) = timer else { continue };
                    if self.queued[place as usize] == Some(at) {
                        self.queued[place as usize] = None;
                        if self.dead.contains(&(place as usize)) {
                            continue;
                        }
                        self.machines[place as usize].handle_timeout(self.now);
                        self.flush(place as usize);
                    }
                }
            }
        }
    }

    fn deliver(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Request { from, to, request } if self.dead.contains(&(to as usize)) => {
                let answer = Err(CallFailed { op: request.op() });
                self.schedule(CALL_TIMEOUT, Arrival::Answer { from: to, to: from, answer });
            }
            // It died before the answer came.
            Arrival::Answer { to, .. } if self.dead.contains(&(to as usize)) => {}
            Arrival::Request { from, to, request } => {
                let op = request.op();
                let reply = self.machines[to as usize].handle_request(self.ids[from as usize], &request, self.now);
                if self.said.is_some() && matches!(reply, Err(Reject::NotTrusted)) {
                    self.refused.push((from as usize, to as usize));
                }
                self.flush(to as usize);
                self.count(ANSWER_HEAD_BYTES, || reply.as_ref().map_or(64, |reply| reply.encode().len()));
                let (delay, answer) = if self.is_lost(to, from) {
                    (CALL_TIMEOUT, Err(CallFailed { op }))
                } else {
                    (self.delay(), reply.map(Box::new).map_err(|_| CallFailed { op }))
                };
                self.schedule(delay, Arrival::Answer { from: to, to: from, answer });
            }
            Arrival::Answer { from, to, answer } => {
                let reply = answer.as_deref().map_err(|failed| *failed);
                // An answer that the machine no longer waits for changes nothing.
                let _stale = self.machines[to as usize].handle_reply(self.ids[from as usize], reply, self.now);
                self.flush(to as usize);
            }
        }
    }

    fn count(&mut self, head: u64, body: impl FnOnce() -> usize) {
        self.messages += 1;
        if self.messages.is_multiple_of(self.sample) {
            self.bytes += (head + body() as u64) * self.sample;
        }
    }

    fn flush(&mut self, place: usize) {
        while let Some(event) = self.machines[place].poll_event() {
            match event {
                Event::PeerStatus { peer, status: PeerStatus::Unhealthy, .. } => {
                    self.blamed.push((place, peer, self.now));
                }
                Event::Merge(records) => {
                    for record in records {
                        if let Some((holders, last)) = self.reached.get_mut(&record.key.id) {
                            (*holders, *last) = (*holders + 1, self.now);
                        }
                    }
                }
                event => self.said.iter_mut().for_each(|said| said.push((place, event.clone()))),
            }
        }
        while let Some(Transmit { to, request }) = self.machines[place].poll_transmit() {
            self.post(place, self.places[&to], request);
        }
        let due = self.machines[place].poll_timeout().map(|(at, _)| at);
        if due != self.queued[place] {
            self.timers.extend(due.map(|at| Reverse((at, place as u32))));
            self.queued[place] = due;
        }
    }

    /// Posts a request, of a machine or of its driver.
    pub fn post(&mut self, from: usize, to: u32, request: Request) {
        let from = from as u32;
        self.count(REQUEST_HEAD_BYTES, || request.encode().len());
        if self.is_lost(from, to) {
            let answer = Err(CallFailed { op: request.op() });
            self.schedule(CALL_TIMEOUT, Arrival::Answer { from: to, to: from, answer });
        } else {
            let delay = self.delay();
            self.schedule(delay, Arrival::Request { from, to, request: Box::new(request) });
        }
    }

    fn is_lost(&mut self, from: u32, to: u32) -> bool {
        let (from, to) = (from as usize, to as usize);
        let is_cut = self.split_at.is_some_and(|at| (from < at) != (to < at));
        is_cut || self.dead.contains(&from) || self.dead.contains(&to) || self.rng.below(100) < self.loss_percent
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(1 + self.rng.below(LATENCY_MAX_MS))
    }

    fn schedule(&mut self, delay: Duration, arrival: Arrival) {
        self.sequence += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.arrivals.push(None);
            (self.arrivals.len() - 1) as u32
        });
        self.arrivals[slot as usize] = Some(arrival);
        self.times.push(Reverse((self.now + delay, self.sequence, slot)));
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.rng.below(bound as u64) as usize
    }

    /// A heartbeat of the second machine to the first and its answer, in bytes with headers; waits for a moment in which
    /// none is under way.
    pub fn exchange_bytes(&mut self) -> Option<u64> {
        (0..20).find_map(|_| {
            self.run(self.now + Duration::from_millis(700), &|| true, |_| false);
            self.exchange_now()
        })
    }

    fn exchange_now(&mut self) -> Option<u64> {
        self.machines[1].handle_sync(self.now);
        let to = self.ids[0];
        let sent = std::iter::from_fn(|| self.machines[1].poll_transmit());
        let sent = sent.into_iter().find(|t| t.to == to && t.request.op() == Op::Heartbeat)?;
        let reply = self.machines[0].handle_request(self.ids[1], &sent.request, self.now).ok()?;
        let bodies = sent.request.encode().len() + reply.encode().len();
        Some(bodies as u64 + REQUEST_HEAD_BYTES + ANSWER_HEAD_BYTES)
    }

    pub fn are_equal(&self) -> bool {
        self.machines.windows(2).all(|pair| pair[0].digests() == pair[1].digests())
    }
}
