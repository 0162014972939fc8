//! Large clusters: many machines, messages handed over as they are, no store. What spreads, and how soon.

use super::network::facts;
use crate::{
    gossip::{CallFailed, Event, Gossip, HEARTBEAT_INTERVAL, Local, Transmit},
    model::{Mono, PeerId, PeerStatus, PublicKey, Rng, SigningKey, UnixTime},
    wire::{
        gossip::{Op, Reply, Request},
        record::{Record, kind},
    },
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);

enum Arrival {
    Request { from: usize, to: usize, request: Request },
    Answer { from: usize, to: usize, answer: Result<Reply, CallFailed> },
}

struct Fleet {
    ids: Vec<PeerId>,
    places: BTreeMap<PeerId, usize>,
    key: SigningKey,
    machines: Vec<Gossip>,
    now: Mono,
    loss_percent: u64,
    latency_ms: u64,
    dead: BTreeSet<usize>,
    /// Peers are split into those below and those above.
    split_at: Option<usize>,
    /// (observer, subject, when) of each peer that was found unhealthy.
    blamed: Vec<(usize, PeerId, Mono)>,
    carried: BTreeMap<Op, u64>,
    /// Who wanted to publish a floor.
    floors: BTreeSet<usize>,
    timers: BTreeSet<(Mono, usize)>,
    queued: Vec<Option<Mono>>,
    arrivals: BTreeMap<(Mono, u64), Arrival>,
    sequence: u64,
    rng: Rng,
}

impl Fleet {
    /// All trust each other, and sign with one key.
    fn new(size: usize, seed: u8) -> Self {
        let mut rng = Rng::from_seed([seed; 32]);
        let key = SigningKey::from_seed([1; 32]);
        let ids: Vec<_> =
            (0..size).map(|i| PeerId::mint(UnixTime::from_secs(1_700_000_000 + i as u64), &mut rng)).collect();
        let trusted: BTreeMap<PeerId, PublicKey> = ids.iter().map(|id| (*id, key.public())).collect();
        let machine = |id: &PeerId| {
            let local = Local { peer_id: *id, public_key: key.public() };
            Gossip::new(local, facts(), Vec::new(), &trusted, rng.fork(), Mono::default())
        };
        let machines = ids.iter().map(machine).collect();
        let mut fleet = Self {
            places: ids.iter().enumerate().map(|(place, id)| (*id, place)).collect(),
            ids,
            key,
            machines,
            now: Mono::default(),
            loss_percent: 0,
            latency_ms: 50,
            dead: BTreeSet::new(),
            split_at: None,
            blamed: Vec::new(),
            carried: BTreeMap::new(),
            floors: BTreeSet::new(),
            timers: BTreeSet::new(),
            queued: vec![None; size],
            arrivals: BTreeMap::new(),
            sequence: 0,
            rng,
        };
        (0..size).for_each(|place| fleet.flush(place));
        fleet
    }

    fn write(&mut self, place: usize) -> Record {
        let record = Record::sign(&self.key, self.ids[place], kind::SERVICE, "s", 2, json!({"a": 1})).unwrap();
        self.tell(place, std::slice::from_ref(&record));
        record
    }

    fn tell(&mut self, place: usize, records: &[Record]) {
        self.machines[place].handle_local_change(records, self.now);
        self.flush(place);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Looks at `done` every 100 ms; says when it came.
    fn run_until(&mut self, end: Mono, done: impl Fn(&Self) -> bool) -> Option<Mono> {
        let mut look_at = self.now;
        while self.now < end {
            let next = [self.timers.first().map(|t| t.0), self.arrivals.first_key_value().map(|a| a.0.0)];
            let next = next.into_iter().flatten().min().unwrap_or(end).min(end);
            while look_at <= next {
                self.now = self.now.max(look_at);
                if done(self) {
                    return Some(self.now);
                }
                look_at = look_at + Duration::from_millis(100);
            }
            self.now = self.now.max(next);
            if let Some(entry) = self.arrivals.first_entry().filter(|entry| entry.key().0 <= next) {
                let arrival = entry.remove();
                self.deliver(arrival);
            } else if let Some((at, place)) = self.timers.first().copied()
                && at <= next
            {
                self.machines[place].handle_timeout(self.now);
                self.flush(place);
            }
        }
        None
    }

    fn deliver(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Request { from, to, request } => {
                let op = request.op();
                *self.carried.entry(op).or_default() += 1;
                let reply = self.machines[to].handle_request(self.ids[from], &request, self.now);
                self.flush(to);
                let answer = reply.map_err(|_| CallFailed { op });
                let (delay, answer) = if self.is_lost(to, from) {
                    (CALL_TIMEOUT, Err(CallFailed { op }))
                } else {
                    (self.delay(), answer)
                };
                self.schedule(delay, Arrival::Answer { from: to, to: from, answer });
            }
            Arrival::Answer { from, to, answer } => {
                let reply = answer.as_ref().map_err(|failed| *failed);
                self.machines[to].handle_reply(self.ids[from], reply, self.now).unwrap();
                self.flush(to);
            }
        }
    }

    fn flush(&mut self, place: usize) {
        while let Some(event) = self.machines[place].poll_event() {
            match event {
                Event::PeerStatus { peer, status: PeerStatus::Unhealthy, .. } => {
                    self.blamed.push((place, peer, self.now));
                }
                Event::PublishFloor(_) => drop(self.floors.insert(place)),
                _ => {}
            }
        }
        while let Some(Transmit { to, request }) = self.machines[place].poll_transmit() {
            let to = self.places[&to];
            if self.dead.contains(&place) || self.is_lost(place, to) {
                let answer = Err(CallFailed { op: request.op() });
                self.schedule(CALL_TIMEOUT, Arrival::Answer { from: to, to: place, answer });
            } else {
                let delay = self.delay();
                self.schedule(delay, Arrival::Request { from: place, to, request });
            }
        }
        let due = self.machines[place].poll_timeout().map(|(at, _)| at);
        if due != self.queued[place] {
            self.timers.extend(due.map(|at| (at, place)));
            if let Some(at) = std::mem::replace(&mut self.queued[place], due) {
                self.timers.remove(&(at, place));
            }
        }
    }

    fn is_lost(&mut self, from: usize, to: usize) -> bool {
        let is_cut = self.split_at.is_some_and(|at| (from < at) != (to < at));
        is_cut || self.dead.contains(&from) || self.dead.contains(&to) || self.rng.below(100) < self.loss_percent
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(1 + self.rng.below(self.latency_ms))
    }

    fn schedule(&mut self, delay: Duration, arrival: Arrival) {
        self.sequence += 1;
        self.arrivals.insert((self.now + delay, self.sequence), arrival);
    }

    fn holders(&self, record: &Record) -> usize {
        self.machines.iter().filter(|m| m.record(&record.key) == Some(record)).count()
    }

    /// How many of all views of living peers say healthy.
    fn healthy_views(&self) -> usize {
        let alive = || (0..self.ids.len()).filter(|place| !self.dead.contains(place));
        let is_healthy = |by: usize, of: usize| {
            self.machines[by].peer_view(self.ids[of]).is_some_and(|view| view.status == PeerStatus::Healthy)
        };
        alive().map(|by| alive().filter(|of| *of != by && is_healthy(by, *of)).count()).sum()
    }

    /// When everybody alive has found `subject` unhealthy after `since`.
    fn known_everywhere(&self, subject: usize, since: Mono) -> Option<Mono> {
        let told = self.blamed.iter().filter(|(_, peer, at)| *peer == self.ids[subject] && *at >= since);
        let by: BTreeSet<_> = told.clone().map(|(by, ..)| *by).collect();
        (by.len() + self.dead.len() >= self.ids.len()).then(|| told.map(|(.., at)| *at).max()).flatten()
    }
}

/// simulation.md N1: a change reaches all in two rounds at 100 peers, with a tenth of all calls lost.
#[test]
fn a_change_spreads_through_a_large_lossy_cluster() {
    let mut fleet = Fleet::new(100, 1);
    fleet.loss_percent = 10;
    fleet.run_for(Duration::from_secs(15));
    fleet.carried.clear();
    let written = fleet.now;
    let record = fleet.write(0);
    let reached = fleet.run_until(written + 2 * HEARTBEAT_INTERVAL, |f| f.holders(&record) == 100);
    let pushes = fleet.carried.get(&Op::Push).copied().unwrap_or_default();
    assert!(reached.is_some(), "{} of 100", fleet.holders(&record));
    assert!(pushes <= 4 * 100 * 2, "{pushes} pushes for one change");
}

/// simulation.md N5, scaled down: no healthy peer is blamed, and a death is known to all.
#[test]
fn relayed_signs_of_life_blame_nobody_and_a_death_is_known_everywhere() {
    let mut fleet = Fleet::new(60, 2);
    fleet.loss_percent = 5;
    fleet.run_for(Duration::from_secs(40));
    assert_eq!(fleet.healthy_views(), 60 * 59);
    fleet.run_for(Duration::from_secs(80));
    assert_eq!(fleet.blamed, []);
    let died = fleet.now;
    fleet.dead.insert(7);
    fleet.run_for(Duration::from_secs(45));
    assert!(fleet.known_everywhere(7, died).is_some(), "{} know", fleet.blamed.len());
    let dead = fleet.ids[7];
    assert!(fleet.blamed.iter().all(|(by, peer, _)| *by == 7 || *peer == dead), "only the dead one is blamed");
}

/// simulation.md N2 for a cluster in which not everyone calls everyone.
#[test]
fn a_large_split_heals_by_itself() {
    let mut fleet = Fleet::new(60, 3);
    fleet.run_for(Duration::from_secs(20));
    fleet.split_at = Some(30);
    fleet.run_for(Duration::from_secs(100));
    assert_eq!(fleet.healthy_views(), 2 * 30 * 29);
    fleet.split_at = None;
    let record = fleet.write(3);
    let end = fleet.now + Duration::from_secs(60);
    assert!(fleet.run_until(end, |f| f.holders(&record) == 60).is_some());
    assert!(fleet.run_until(end, |f| f.healthy_views() == 60 * 59).is_some());
}

/// cluster.md §6: at random alone it takes a large cluster minutes until everybody has told the owner.
#[test]
fn an_owner_calls_those_that_have_not_acknowledged_its_tombstone() {
    let mut fleet = Fleet::new(60, 4);
    fleet.run_for(Duration::from_secs(20));
    let record = fleet.write(0);
    fleet.run_for(Duration::from_secs(5));
    let tombstone = Record::sign_tombstone(&fleet.key, record.key, 3).unwrap();
    fleet.tell(0, &[tombstone]);
    let end = fleet.now + Duration::from_secs(60);
    assert!(fleet.run_until(end, |f| f.floors.contains(&0)).is_some(), "not all have acknowledged");
}
