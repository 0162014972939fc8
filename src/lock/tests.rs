//! The rules one by one, then many agents with lost messages, splits, restarts and clocks that are 10 min off.

use super::*;
use crate::{
    model::{Rng, Signature, UnixTime},
    wire::{
        lock::TTL_DEFAULT_S,
        record::{RecordKey, kind},
    },
};
use proptest::prelude::*;
use std::collections::BinaryHeap;

fn peer(n: u8) -> PeerId {
    PeerId::mint(UnixTime::from_secs(1), &mut Rng::from_seed([n; 32]))
}

fn at(ms: u64) -> Mono {
    Mono::from_ms(ms)
}

fn lease(holder: u8, acquired_at_s: u64) -> Lease {
    let mut token = [holder; 32];
    token[0] = u8::try_from(acquired_at_s % 251).unwrap();
    Lease {
        holder_peer: peer(holder),
        client_id: None,
        purpose: "apply".into(),
        token: Digest(token),
        acquired_at: UnixTime::from_secs(acquired_at_s),
        ttl_s: TTL_DEFAULT_S,
    }
}

fn record(owner: PeerId, id: &str, version: u64, body: Option<&LockBody>) -> Record {
    Record {
        key: RecordKey { kind: kind::LOCK.into(), id: id.into(), owner },
        version,
        deleted: body.is_none(),
        body: body.map_or(serde_json::Value::Null, |b| serde_json::to_value(b).unwrap()),
        signature: Signature::from_bytes([0; 64]),
    }
}

fn published(lease: &Lease, version: u64) -> Record {
    record(lease.holder_peer, LEASE_ID, version, Some(&LockBody::Lease(lease.clone())))
}

fn voters(of: &[u8]) -> BTreeSet<PeerId> {
    of.iter().map(|n| peer(*n)).collect()
}

/// Carries every question of `claimant` to the others and back.
fn ask(claimant: &mut Lock, others: &mut [&mut Lock], now: Mono) {
    while let Some((to, request)) = claimant.poll_request(now) {
        let LockRequest::Claim(lease) = &request else { unreachable!("a claim") };
        let reply = others.iter_mut().find(|o| o.local == to).map(|o| o.handle_request(claimant.local, &request, now));
        claimant.handle_reply(to, lease.token, reply.map(Result::unwrap), now);
    }
}

#[test]
fn a_lease_is_won_when_every_peer_has_granted_it_and_then_others_are_refused() {
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| Lock::new(peer(n)));
    let wish = lease(1, 100);
    a.claim(wish.clone(), &voters(&[1, 2, 3]), at(0)).unwrap();
    assert_eq!(a.poll_outcome(at(0)), None);
    ask(&mut a, &mut [&mut b, &mut c], at(0));
    assert_eq!(a.poll_outcome(at(1)), Some(Outcome::Won(wish.clone())));
    for machine in [&mut a, &mut b, &mut c] {
        machine.handle_records(&[published(&wish, 7)], at(10));
        assert_eq!(machine.check_write(None, at(20)).unwrap_err().lease, wish);
        assert!(machine.check_write(Some(wish.token), at(20)).is_ok());
        assert_eq!(machine.claim(lease(9, 1), &BTreeSet::new(), at(20)).unwrap_err().lease, wish);
    }
    // A renewal is the same lease in a later version; an old version tells nothing.
    b.handle_records(&[published(&wish, 8)], at(50_000));
    c.handle_records(&[published(&wish, 7)], at(50_000));
    assert!(b.check_write(None, at(60_011)).is_err() && c.check_write(None, at(60_011)).is_ok());
    assert!(b.check_write(None, at(110_000)).is_ok(), "it expires by itself");
    a.handle_records(&[record(peer(1), LEASE_ID, 9, None)], at(30));
    assert!(a.check_write(None, at(31)).is_ok(), "released");
}

#[test]
fn of_two_claims_at_once_the_smaller_rank_wins_whatever_order_the_questions_take() {
    for first_is_smaller in [true, false] {
        let [mut a, mut b, mut c] = [1, 2, 3].map(|n| Lock::new(peer(n)));
        let (mine, theirs) = if first_is_smaller { (lease(1, 5), lease(2, 6)) } else { (lease(1, 6), lease(2, 5)) };
        a.claim(mine.clone(), &voters(&[2, 3]), at(0)).unwrap();
        b.claim(theirs.clone(), &voters(&[1, 3]), at(0)).unwrap();
        ask(&mut a, &mut [&mut b, &mut c], at(0));
        ask(&mut b, &mut [&mut a, &mut c], at(0));
        let mut won = Vec::new();
        for step in 0..30 {
            let now = at(step * 200);
            drive(&mut a, [&mut b, &mut c], now, &mut won);
            drive(&mut b, [&mut a, &mut c], now, &mut won);
        }
        let smaller = if first_is_smaller { mine } else { theirs };
        assert_eq!(won, [smaller], "one winner, the smaller rank");
    }
}

fn drive(claimant: &mut Lock, mut others: [&mut Lock; 2], now: Mono, won: &mut Vec<Lease>) {
    let Some(claimed) = claimant.claim.as_ref().map(|c| c.lease.token) else { return };
    ask(claimant, &mut others, now);
    match claimant.poll_outcome(now) {
        Some(Outcome::Won(lease)) => won.push(lease),
        Some(_) => others.into_iter().for_each(|o| {
            o.handle_request(claimant.local, &LockRequest::Withdraw(claimed), now).unwrap();
        }),
        None => {}
    }
}

#[test]
fn a_silent_peer_is_named_after_five_seconds_unless_it_is_not_healthy() {
    let (mut a, mut b) = (Lock::new(peer(1)), Lock::new(peer(2)));
    a.claim(lease(1, 1), &voters(&[2, 3]), at(0)).unwrap();
    ask(&mut a, &mut [&mut b], at(0));
    assert_eq!(a.poll_outcome(at(4_999)), None);
    assert_eq!(a.poll_outcome(at(5_000)), Some(Outcome::Unanswered(vec![peer(3)])));
    assert!(a.check_write(None, at(5_000)).is_ok(), "the claim leaves nothing behind");
    b.handle_request(peer(1), &LockRequest::Withdraw(lease(1, 1).token), at(5_000)).unwrap();
    a.claim(lease(1, 2), &voters(&[2, 3]), at(6_000)).unwrap();
    ask(&mut a, &mut [&mut b], at(6_000));
    a.handle_healthy(&voters(&[2]), at(6_001));
    assert!(matches!(a.poll_outcome(at(6_001)), Some(Outcome::Won(_))));
}

#[test]
fn a_peer_that_comes_back_during_a_claim_is_asked_too() {
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| Lock::new(peer(n)));
    let held = lease(3, 1);
    c.claim(held.clone(), &BTreeSet::new(), at(0)).unwrap();
    assert_eq!(c.poll_outcome(at(0)), Some(Outcome::Won(held.clone())));
    c.handle_records(&[published(&held, 1)], at(0));
    a.claim(lease(1, 2), &voters(&[2]), at(0)).unwrap();
    a.handle_healthy(&voters(&[2, 3]), at(1));
    ask(&mut a, &mut [&mut b], at(1));
    assert_eq!(a.poll_outcome(at(2)), None, "the grant of the returned peer is missing");
    ask(&mut a, &mut [&mut b, &mut c], at(201));
    assert!(matches!(a.poll_outcome(at(202)), Some(Outcome::Lost(standing)) if standing.lease == held));
}

#[test]
fn leases_of_both_sides_of_a_split_meet_and_the_larger_rank_is_lost() {
    let (mut a, mut b) = (Lock::new(peer(1)), Lock::new(peer(2)));
    let (early, late) = (lease(1, 5), lease(2, 6));
    for (machine, own) in [(&mut a, &early), (&mut b, &late)] {
        machine.claim(own.clone(), &BTreeSet::new(), at(0)).unwrap();
        assert_eq!(machine.poll_outcome(at(0)), Some(Outcome::Won(own.clone())));
        machine.handle_records(&[published(own, 1)], at(0));
    }
    assert!(a.renewable(early.token, at(1)).is_ok() && b.renewable(late.token, at(1)).is_ok());
    for machine in [&mut a, &mut b] {
        machine.handle_records(&[published(&early, 1), published(&late, 1)], at(1_000));
    }
    assert!(a.renewable(early.token, at(1_001)).is_ok() && a.stale_lease(at(1_001)).is_none());
    let Err(NotRenewed::Lost(standing)) = b.renewable(late.token, at(1_001)) else { panic!("lost") };
    assert_eq!(standing.lease, early);
    assert!(b.stale_lease(at(1_001)).is_some(), "its record is to be withdrawn");
    assert!(b.check_write(Some(late.token), at(1_001)).is_err());
}

#[test]
fn a_cleared_lease_is_gone_everywhere_and_is_not_renewed() {
    let mut a = Lock::new(peer(1));
    let held = lease(2, 5);
    a.handle_records(&[published(&held, 1)], at(0));
    let clearing = record(peer(1), CLEARING_ID, 4, Some(&LockBody::Clearing { cleared: held.token }));
    a.handle_records(&[published(&held, 1), clearing.clone()], at(10));
    assert!(a.check_write(None, at(11)).is_ok());
    a.handle_records(&[published(&held, 2), clearing.clone()], at(20));
    assert!(a.check_write(None, at(21)).is_ok(), "a renewal that comes late changes nothing");
    assert_eq!(a.handle_request(peer(2), &LockRequest::Claim(held.clone()), at(22)), Err(Reject::Malformed));
    assert_eq!(a.stale_clearing(|_| false, at(60_009)), None);
    assert_eq!(a.stale_clearing(|token| token == held.token, at(60_010)), None, "its record is still about");
    assert_eq!(a.stale_clearing(|_| false, at(60_010)), Some(held.token));
}

#[test]
fn a_restart_of_the_holder_ends_its_lease_and_keeps_those_of_others() {
    let mut a = Lock::new(peer(1));
    let (own, other) = (lease(1, 5), lease(2, 6));
    a.handle_records(&[published(&own, 3), published(&other, 9)], at(0));
    assert_eq!(a.renewable(own.token, at(1)), Err(NotRenewed::Lost(a.standing(at(1)).unwrap().into())));
    assert_eq!(a.stale_lease(at(1)), Some(own.token), "its record is to be withdrawn");
    assert_eq!(a.standing(at(59_999)).unwrap().lease, other, "a life from the moment it is known");
    assert_eq!(a.standing(at(60_000)), None);
}

/// Whatever became of its record, and if that is written at last, it is withdrawn.
#[test]
fn an_own_claim_or_lease_that_is_ended_is_over_at_once() {
    let [mut a, mut b] = [1, 2].map(|n| Lock::new(peer(n)));
    let wish = lease(1, 100);
    a.claim(wish.clone(), &voters(&[1, 2]), at(0)).unwrap();
    let foreign = lease(2, 200);
    a.handle_records(&[published(&foreign, 1)], at(0));
    a.end_own(foreign.token);
    a.end_own(wish.token);
    a.handle_records(&[record(peer(2), LEASE_ID, 2, None)], at(1));
    ask(&mut a, &mut [&mut b], at(1));
    assert_eq!((a.poll_outcome(at(1)), a.poll_outcome(at(2))), (Some(Outcome::Ended), None));
    a.claim(wish.clone(), &voters(&[1]), at(3)).unwrap();
    assert_eq!(a.poll_outcome(at(3)), Some(Outcome::Won(wish.clone())));
    a.end_own(wish.token);
    assert_eq!((a.standing(at(4)), a.stale_lease(at(4))), (None, None));
    a.handle_records(&[published(&wish, 7)], at(5));
    assert_eq!((a.standing(at(5)), a.stale_lease(at(5))), (None, Some(wish.token)));
    a.handle_records(&[published(&foreign, 3)], at(6));
    a.end_own(foreign.token);
    assert_eq!(a.standing(at(6)).unwrap().lease, foreign, "that is for its holder to end");
}

#[test]
fn hostile_claims_change_nothing() {
    let mut a = Lock::new(peer(1));
    let claim = |lease| LockRequest::Claim(lease);
    let reject = |a: &mut Lock, l: Lease| a.handle_request(peer(2), &claim(l), at(0)).unwrap_err();
    assert_eq!(reject(&mut a, lease(3, 1)), Reject::NotTheHolder);
    for wrong in [
        Lease { ttl_s: u32::MAX, ..lease(2, 1) },
        Lease { ttl_s: 0, ..lease(2, 1) },
        Lease { purpose: "x".repeat(201), ..lease(2, 1) },
        Lease { purpose: "a\nb".into(), ..lease(2, 1) },
        Lease { purpose: " ".into(), ..lease(2, 1) },
    ] {
        assert_eq!(reject(&mut a, wrong), Reject::Malformed);
    }
    // A record may speak for its owner only, and one peer's claims never add up.
    let forged = record(peer(3), LEASE_ID, 1, Some(&LockBody::Lease(lease(2, 1))));
    a.handle_records(&[forged], at(0));
    for n in 0..100 {
        a.handle_request(peer(2), &claim(lease(2, n)), at(0)).unwrap();
    }
    assert_eq!(a.leases.len(), 1);
    a.handle_request(peer(3), &LockRequest::Withdraw(lease(2, 99).token), at(0)).unwrap();
    assert!(a.check_write(None, at(1)).is_err(), "only the claimant withdraws");
}

/// How long connected agents may both believe to hold the lock after they were split: one round of gossip.
const MEETING: Duration = Duration::from_secs(15);
const ROUND: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ask { from: usize, to: usize, nth: usize },
    Answer { from: usize, to: usize, nth: usize },
    Round(usize),
    Pump(usize),
    Renew(usize),
    Claim(usize),
    Split(u8),
    Heal,
    Restart(usize),
}

#[derive(Debug)]
struct Agent {
    machine: Lock,
    disk: BTreeMap<RecordKey, Record>,
    version: u64,
    /// How far its wall clock is ahead of 20 min before the truth.
    skew: Duration,
    /// When it heard of each other agent last.
    heard: Vec<Mono>,
    asked: BTreeSet<usize>,
    /// What its client believes to hold, and how often it will still renew.
    client: Option<(Digest, u32)>,
}

struct World {
    rng: Rng,
    now: Mono,
    agents: Vec<Agent>,
    queue: BinaryHeap<std::cmp::Reverse<(Mono, u64, What)>>,
    sent: u64,
    loss_percent: u64,
    /// Agents whose bit is set are apart from the others, since then.
    split: (u8, Mono),
    calls: Vec<(LockRequest, Option<LockReply>)>,
    wins: usize,
    faults: bool,
}

impl World {
    fn new(seed: u64, count: usize, loss_percent: u64) -> Self {
        let mut seed_bytes = [0; 32];
        seed_bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut rng = Rng::from_seed(seed_bytes);
        let agents = (0..count)
            .map(|n| Agent {
                machine: Lock::new(peer(u8::try_from(n).unwrap())),
                disk: BTreeMap::new(),
                version: 0,
                skew: Duration::from_millis(rng.below(1_200_000)),
                heard: vec![at(1_000_000); count],
                asked: BTreeSet::new(),
                client: None,
            })
            .collect();
        let mut world = Self {
            rng,
            now: at(1_000_000),
            agents,
            queue: BinaryHeap::new(),
            sent: 0,
            loss_percent,
            split: (0, at(0)),
            calls: Vec::new(),
            wins: 0,
            faults: true,
        };
        (0..count).for_each(|n| world.later(Duration::from_secs(1), ROUND, What::Round(n)));
        world
    }

    fn later(&mut self, least: Duration, spread: Duration, what: What) {
        let by = least + Duration::from_millis(self.rng.below(spread.as_millis() as u64 + 1));
        self.sent += 1;
        self.queue.push(std::cmp::Reverse((self.now + by, self.sent, what)));
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        (self.split.0 >> a) & 1 == (self.split.0 >> b) & 1
    }

    /// As heartbeats show it: a silent peer counts for 30 s, a returned one after its next heartbeat.
    fn healthy(&self, of: usize) -> BTreeSet<PeerId> {
        let counts = |other: usize| self.now - self.agents[of].heard[other] < Duration::from_secs(30);
        (0..self.agents.len()).filter(|o| *o != of && counts(*o)).map(|o| self.agents[o].machine.local).collect()
    }

    fn is_lost(&mut self) -> bool {
        let percent = if self.faults { self.loss_percent } else { 0 };
        self.rng.below(100) < percent
    }

    fn publish(&mut self, n: usize, id: &str, body: Option<&LockBody>) {
        let agent = &mut self.agents[n];
        agent.version += 1;
        let record = record(agent.machine.local, id, agent.version, body);
        agent.disk.insert(record.key.clone(), record);
        for other in 0..self.agents.len() {
            if other == n || (self.connected(n, other) && !self.is_lost()) {
                self.spread(n, other);
            }
        }
    }

    fn spread(&mut self, from: usize, to: usize) {
        for record in self.agents[from].disk.clone().into_values() {
            let held = self.agents[to].disk.get(&record.key).map(|r| r.version);
            if held.is_none_or(|version| version < record.version) {
                self.agents[to].disk.insert(record.key.clone(), record);
            }
        }
        self.load(to);
    }

    fn load(&mut self, n: usize) {
        let now = self.now;
        let agent = &mut self.agents[n];
        let records: Vec<Record> = agent.disk.values().cloned().collect();
        agent.machine.handle_records(&records, now);
        if agent.machine.stale_lease(now).is_some() {
            self.publish(n, LEASE_ID, None);
        }
    }

    fn holds(&self, n: usize) -> bool {
        let agent = &self.agents[n];
        agent.client.is_some_and(|(token, _)| agent.machine.renewable(token, self.now).is_ok())
    }

    fn pump(&mut self, n: usize) {
        let (now, healthy) = (self.now, self.healthy(n));
        self.agents[n].machine.handle_healthy(&healthy, now);
        while let Some((to, request)) = self.agents[n].machine.poll_request(now) {
            let to = self.agents.iter().position(|a| a.machine.local == to).unwrap();
            self.agents[n].asked.insert(to);
            self.calls.push((request, None));
            let nth = self.calls.len() - 1;
            self.later(Duration::from_millis(1), Duration::from_millis(200), What::Ask { from: n, to, nth });
        }
        let claimed = self.agents[n].machine.claim.as_ref().map(|c| c.lease.token);
        match self.agents[n].machine.poll_outcome(now) {
            None => {
                let wait = self.agents[n].machine.poll_timeout(now).map(|due| due - now);
                if let Some(wait) = wait.filter(|_| claimed.is_some()) {
                    self.later(wait, Duration::ZERO, What::Pump(n));
                }
            }
            Some(Outcome::Won(lease)) => self.won(n, lease),
            Some(Outcome::Lost(_) | Outcome::Ended | Outcome::Unanswered(_)) => {
                for to in std::mem::take(&mut self.agents[n].asked) {
                    if self.connected(n, to) && !self.is_lost() {
                        let (from, withdraw) = (self.agents[n].machine.local, LockRequest::Withdraw(claimed.unwrap()));
                        self.agents[to].machine.handle_request(from, &withdraw, now).unwrap();
                    }
                }
            }
        }
    }

    fn won(&mut self, n: usize, lease: Lease) {
        self.wins += 1;
        for other in (0..self.agents.len()).filter(|o| *o != n && self.holds(*o)) {
            let was_asked = self.healthy(n).contains(&self.agents[other].machine.local);
            assert!(!was_asked, "agent {n} won while agent {other} held, which it had to ask");
        }
        self.agents[n].asked.clear();
        let renewals = u32::try_from(self.rng.below(6)).unwrap();
        self.agents[n].client = Some((lease.token, renewals));
        self.publish(n, LEASE_ID, Some(&LockBody::Lease(lease)));
        self.later(Duration::from_secs(20), Duration::ZERO, What::Renew(n));
    }

    fn step(&mut self) -> bool {
        let Some(std::cmp::Reverse((due, _, what))) = self.queue.pop() else { return false };
        self.now = due;
        self.act(what);
        if self.now - self.split.1 > MEETING {
            let holders: Vec<usize> = (0..self.agents.len()).filter(|n| self.holds(*n)).collect();
            for (i, a) in holders.iter().enumerate() {
                for b in &holders[i + 1..] {
                    assert!(!self.connected(*a, *b), "{a} and {b} are connected and both hold the lock");
                }
            }
        }
        true
    }

    fn act(&mut self, what: What) {
        let now = self.now;
        match what {
            What::Ask { from, to, nth } => {
                let arrives = self.connected(from, to) && !self.is_lost();
                if arrives {
                    let claimant = self.agents[from].machine.local;
                    let reply = self.agents[to].machine.handle_request(claimant, &self.calls[nth].0, now);
                    self.calls[nth].1 = reply.ok().filter(|_| !self.is_lost());
                }
                let wait = if self.calls[nth].1.is_some() { Duration::from_millis(1) } else { Duration::from_secs(1) };
                self.later(wait, Duration::from_millis(200), What::Answer { from: to, to: from, nth });
            }
            What::Answer { from, to, nth } => {
                let (LockRequest::Claim(lease), reply) = self.calls[nth].clone() else { return };
                let voter = self.agents[from].machine.local;
                self.agents[to].machine.handle_reply(voter, lease.token, reply, now);
                self.pump(to);
            }
            What::Round(n) => {
                for other in 0..self.agents.len() {
                    if other != n && self.connected(n, other) {
                        self.spread(n, other);
                        self.agents[n].heard[other] = now;
                        self.agents[other].heard[n] = now;
                    }
                }
                self.later(ROUND, Duration::ZERO, What::Round(n));
            }
            What::Pump(n) => self.pump(n),
            What::Renew(n) => self.renew(n),
            What::Claim(n) => self.begin(n),
            What::Split(sides) => self.split = (sides, now),
            What::Heal => self.split = (0, now),
            What::Restart(n) => {
                self.agents[n].machine = Lock::new(self.agents[n].machine.local);
                self.agents[n].asked.clear();
                self.load(n);
            }
        }
    }

    fn begin(&mut self, n: usize) {
        let (now, voters) = (self.now, self.healthy(n));
        let agent = &mut self.agents[n];
        if agent.machine.claim.is_some() {
            return;
        }
        let acquired_at = UnixTime::from_secs(1_800_000_000).plus(now.since_start()).plus(agent.skew);
        let token = Digest(self.rng.bytes());
        let wish = Lease { holder_peer: agent.machine.local, token, acquired_at, ..lease(0, 0) };
        if agent.machine.claim(wish, &voters, now).is_ok() {
            self.pump(n);
        }
    }

    /// The client renews, gives the lock back, or is never heard of again.
    fn renew(&mut self, n: usize) {
        let Some((token, left)) = self.agents[n].client else { return };
        match (self.agents[n].machine.renewable(token, self.now), left) {
            (Ok(lease), 1..) => {
                self.agents[n].client = Some((token, left - 1));
                self.publish(n, LEASE_ID, Some(&LockBody::Lease(lease)));
                self.later(Duration::from_secs(20), Duration::ZERO, What::Renew(n));
            }
            (outcome, _) => {
                self.agents[n].client = None;
                if outcome.is_ok() && self.rng.below(2) == 0 {
                    self.publish(n, LEASE_ID, None);
                }
            }
        }
    }

    fn run_until(&mut self, end: Mono) {
        while self.queue.peek().is_some_and(|next| next.0.0 <= end) {
            self.step();
        }
        self.now = end;
    }
}

fn two_never_win(seed: u64, count: usize, loss_percent: u64) -> usize {
    let mut world = World::new(seed, count, loss_percent);
    let minutes = Duration::from_secs(600);
    for _ in 0..40 {
        let n = world.rng.below(count as u64) as usize;
        let what = match world.rng.below(12) {
            0 => What::Split(u8::try_from(world.rng.below(1 << count)).unwrap()),
            1 => What::Heal,
            2 => What::Restart(n),
            _ => What::Claim(n),
        };
        let rival = matches!(what, What::Claim(_)).then(|| world.rng.below(count as u64) as usize);
        world.later(Duration::ZERO, minutes, what);
        if let Some(rival) = rival {
            // A rival at nearly the same moment is what the rule is about.
            let std::cmp::Reverse((due, ..)) = *world.queue.iter().max_by_key(|e| e.0.1).unwrap();
            world.sent += 1;
            let late = Duration::from_millis(world.rng.below(100));
            world.queue.push(std::cmp::Reverse((due + late, world.sent, What::Claim(rival))));
        }
    }
    world.run_until(world.now + minutes);

    // Faults stop; whatever is held runs out, and then anyone can take the lock.
    world.faults = false;
    world.split = (0, world.now);
    world.run_until(world.now + Duration::from_secs(300));
    for n in 0..count {
        assert_eq!(world.agents[n].machine.standing(world.now), None, "agent {n} still sees a lock");
    }
    let wins = world.wins;
    let lucky = world.rng.below(count as u64) as usize;
    world.begin(lucky);
    world.run_until(world.now + CLAIM_TIMEOUT);
    assert_eq!(world.wins, wins + 1, "a free lock is taken at once");
    assert!(world.agents.iter().all(|a| a.machine.check_write(None, world.now).is_err()));
    wins
}

#[test]
fn no_two_connected_agents_win_under_loss_splits_restarts_and_skew() {
    let mut wins = 0;
    for seed in 0..100 {
        wins += two_never_win(seed, 2 + (seed % 4) as usize, (seed % 3) * 15);
    }
    assert!(wins > 100, "the lock is taken often enough to mean something: {wins}");
}

/// A split ends while the third agent waits for grants, and the first one, from the other side, holds the lock.
#[test]
fn no_agent_wins_past_one_that_came_back_while_it_claimed() {
    two_never_win(12_891_484_202_803_001_522, 4, 24);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_two_connected_agents_win(seed in any::<u64>(), count in 2usize..6, loss in 0u64..40) {
        two_never_win(seed, count, loss);
    }
}
