//! The gossip machine (cluster.md §5-8): heartbeats, eager push, and the comparison of registries that repairs what a
//! push missed. Sans-IO: `handle_*` takes what happened, `poll_*` gives what to do.
//!
//! The driver, after every `handle_*`: drain [`Gossip::poll_event`] and commit what it says before a reply leaves, then
//! send what [`Gossip::poll_transmit`] gives, then sleep until [`Gossip::poll_timeout`]. Each transmit comes back once,
//! through [`Gossip::handle_reply`], as an answer or as a failure.
//!
//! What holds: trusted and revoked peers are disjoint; a head never falls, except that records of a removed owner go; a
//! record is in the index only if its owner signed it; nothing is ordered by a wall clock.

mod admit;
mod collect;
mod exchange;
mod index;
mod instance;
mod life;
mod link;
mod quota;
mod reconcile;
mod revocation;
#[cfg(test)]
mod tests;
mod timers;
mod trie;

pub use admit::Drops;
pub use collect::{FLOOR_INTERVAL, LAGGARD_AFTER};
pub use index::RegistryState;
pub use link::Heard;
pub use revocation::{Revocations, Standing};

use crate::{
    model::{Endpoint, Mono, PeerId, PeerStatus, PublicKey, Rng, UnixTime},
    wire::{
        gossip::{Digests, Heartbeat, Malformed, Op, Registry, Reply, Request},
        record::{FloorBody, Record, RecordHead, RecordKey, RevocationBody, Voucher, kind},
    },
};
use admit::Load;
use collect::{Collection, Ledger};
use index::{Entry, Index};
use instance::Copies;
use life::News;
use link::{Link, Links};
use quota::Quotas;
use reconcile::Walks;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use timers::Timers;

/// Between two heartbeats to one peer, ± 20 %.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Up to so many trusted peers each gets a heartbeat every interval...
pub const HEARTBEAT_ALL_PEERS: usize = 50;
/// ...beyond, so many random ones do, and signs of life are passed on.
pub const HEARTBEAT_FANOUT_PEERS: usize = 16;
/// A peer without a sign of life for so long is unhealthy; for longer in large clusters, see [`Gossip::silence_limit`].
pub const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// A local change is pushed after so much quiet...
pub const PUSH_QUIET: Duration = Duration::from_millis(100);
/// ...but no later than this after the first.
const PUSH_DELAY_MAX: Duration = Duration::from_secs(1);
/// Clusters up to this size push to everyone.
pub const PUSH_ALL_PEERS: usize = 16;
/// Larger ones push to so many, each of which tells so many others what is news to it.
pub const PUSH_FANOUT_PEERS: usize = 4;
/// A readmission is committed with the trust that follows it, but may reach the machine a moment later; trust in a peer
/// that is still revoked after this is reported as void.
const TRUST_GRACE: Duration = Duration::from_secs(5);
/// First heartbeats after a start are spread over this time.
const START_SPREAD_MS: u64 = 1000;
/// Events that may wait; requests beyond are refused until the driver has caught up.
pub const EVENTS_MAX: usize = 4096;
/// Last messages to removed peers that may wait.
const FAREWELLS_MAX: usize = 64;

/// Who this machine speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    pub peer_id: PeerId,
    pub public_key: PublicKey,
}

/// What heartbeats say of this agent; refresh it with [`Gossip::handle_facts`] when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Random at each start.
    pub instance: String,
    pub starts: u64,
    /// Random once for each database: the instance that made it.
    pub lineage: String,
    pub version: String,
    pub endpoints: Vec<Endpoint>,
    pub license_state: String,
    /// Wall clock at the moment the facts are given.
    pub unix: UnixTime,
}

/// A request to be posted to a trusted peer, or once to one that was just removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    pub to: PeerId,
    pub request: Request,
}

/// A call that gave no usable answer: refused, timed out, or answered with anything but 200 and a readable body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallFailed {
    pub op: Op,
}

/// A peer that may be worth a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub peer: PeerId,
    /// Self-given; from a peer record.
    pub name: Option<String>,
    pub endpoints: Vec<Endpoint>,
    /// From a trusted issuer, signature checked; its time and customer are not.
    pub voucher: Option<Voucher>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Verified records, in order, to be committed to the store.
    Merge(Vec<Record>),
    /// Trust in this peer ended, and these records are void: drop both. For the local peer: drop trust in all others.
    Revoked {
        peer: PeerId,
        void: Vec<RecordKey>,
    },
    PeerStatus {
        peer: PeerId,
        status: PeerStatus,
        last_seen: Option<Mono>,
    },
    /// An own record came back with a version above ours (a lost database): continue from it. Own records above `told`
    /// were not known here when that was decided: they are later than whatever came back.
    AdoptOwnVersion {
        version: u64,
        told: u64,
    },
    Discovered(Box<Discovery>),
    /// From now on this peer is complete with `owner` only up to `complete`, until [`Event::CaughtUp`]: to be kept over
    /// restarts, for [`Gossip::handle_resume`].
    CatchingUp {
        owner: PeerId,
        complete: u64,
    },
    CaughtUp(PeerId),
    /// Collected tombstones, and records that a reset did not confirm, with their versions: drop them without a trace, but
    /// for what has been written anew since.
    Forgotten(Vec<(RecordKey, u64)>),
    /// Own records to be written anew under the next versions; a deleted one as a tombstone.
    Republish(Vec<Record>),
    /// Write the own `floor` record: every peer holds all own records up to there.
    PublishFloor(FloorBody),
    /// Peers refuse this copy of the identity because they hear another one; or no longer do.
    Contested(bool),
    /// Two live copies of this peer's identity are heard.
    TwoCopies(PeerId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("gossip with a peer that is not trusted")]
    NotTrusted,
    #[error("gossip message is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("gossip answer to a request that was not made")]
    Unexpected,
    #[error("too much gossip waits to be committed")]
    Busy,
    #[error("more gossip came from this peer in a short time than is taken")]
    OverQuota,
    #[error("another copy of this peer was heard a moment ago; which of them lives is being asked")]
    Unsettled,
    #[error("another live copy of this identity is heard; this one changes nothing in the cluster")]
    IdentityConflict,
}

/// What is known of a trusted peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    pub status: PeerStatus,
    pub last_seen: Option<Mono>,
    /// As it reported last.
    pub registries: Option<Digests>,
    pub heard: Option<Heard>,
    /// A second live copy of its identity is heard.
    pub has_two_copies: bool,
}

#[derive(Debug, Clone)]
pub struct Gossip {
    local: Local,
    facts: Facts,
    facts_at: Mono,
    index: Index,
    revocations: Revocations,
    locally_revoked: bool,
    links: Links,
    timers: Timers,
    /// No peer falls silent before.
    silence_at: Option<Mono>,
    news: News,
    walks: Walks,
    /// Peers that the driver trusts although a revocation stands, with their keys, and until when that is waited for.
    withheld: BTreeMap<PeerId, (PublicKey, Mono)>,
    discovered: BTreeMap<PeerId, RecordHead>,
    own_version: u64,
    /// The highest version of an own record that the driver gave.
    told_version: u64,
    /// When the machine started.
    began: Mono,
    ledger: Ledger,
    collection: Collection,
    quotas: Quotas,
    /// Of owners that are not trusted: too high, never too low, until it is counted anew.
    left_behind: Load,
    copies: Copies,
    /// Records that came in, ever.
    taken: u64,
    drops: Drops,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    rng: Rng,
    now: Mono,
}

impl Gossip {
    /// `records` is everything in the store, verified when it came in; `peers` are the trusted ones with their keys.
    pub fn new(
        local: Local,
        facts: Facts,
        records: Vec<Record>,
        peers: &BTreeMap<PeerId, PublicKey>,
        rng: Rng,
        now: Mono,
    ) -> Self {
        Self::sharing(local, facts, records.into_iter().map(Arc::new), peers, rng, now)
    }

    /// The same; many machines in one process share the records.
    pub fn sharing(
        local: Local,
        facts: Facts,
        records: impl IntoIterator<Item = Arc<Record>>,
        peers: &BTreeMap<PeerId, PublicKey>,
        mut rng: Rng,
        now: Mono,
    ) -> Self {
        let others = peers.iter().filter(|(peer, _)| **peer != local.peer_id);
        let is_large = others.clone().count() > HEARTBEAT_ALL_PEERS;
        let links = Links::from_links(others.map(|(peer, key)| {
            let first = now + Duration::from_millis(rng.below(START_SPREAD_MS));
            Link::new(*peer, *key, (!is_large).then_some(first), None)
        }));
        let mut gossip = Self {
            local,
            facts,
            facts_at: now,
            index: Index::default(),
            revocations: Revocations::default(),
            locally_revoked: false,
            links,
            timers: Timers::starting(is_large.then_some(now)),
            silence_at: None,
            news: News::default(),
            walks: Walks::default(),
            withheld: BTreeMap::new(),
            discovered: BTreeMap::new(),
            own_version: 0,
            told_version: 0,
            began: now,
            ledger: Ledger::default(),
            collection: Collection::default(),
            quotas: Quotas::default(),
            left_behind: Load::default(),
            copies: Copies::default(),
            taken: 0,
            drops: Drops::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            rng,
            now,
        };
        for record in records {
            gossip.index_committed(record);
        }
        let revoking = gossip.index.of_registry(Registry::Revocations).map(|entry| entry.record.key.clone());
        let revoking: Vec<_> = revoking.collect();
        gossip.settle_revocations(&revoking, now);
        gossip.begin_collection();
        gossip.links.keys().collect::<Vec<_>>().into_iter().for_each(|peer| gossip.touch(peer));
        gossip
    }

    /// Serves a request of `from`, whose signature on it has been checked.
    pub fn handle_request(&mut self, from: PeerId, request: &Request, now: Mono) -> Result<Reply, Reject> {
        if !self.links.contains_key(&from) {
            return Err(Reject::NotTrusted);
        }
        request.check()?;
        if self.events.len() >= EVENTS_MAX {
            return Err(Reject::Busy);
        }
        if let Err(reject) = self.judge_copy(from, request, now) {
            self.now = now;
            self.drive(now);
            return Err(reject);
        }
        self.now = now;
        self.saw(from, now);
        let reply = match request {
            Request::Heartbeat(heartbeat) => {
                self.hear(from, heartbeat);
                let lives = self.tell_lives(from);
                let vouches = self.vouch(&heartbeat.behind);
                Reply::Heartbeat(Heartbeat { vouches, ..self.heartbeat(from, lives) })
            }
            Request::Reconcile(request) => Reply::Reconcile(self.serve_step(from, request)),
            Request::Push(push) => Reply::Push(self.take_push(from, push)),
        };
        self.drive(now);
        Ok(reply)
    }

    /// Takes the answer to a transmit, or its failure. Answers of peers that were removed meanwhile are `NotTrusted`.
    pub fn handle_reply(&mut self, from: PeerId, reply: Result<&Reply, CallFailed>, now: Mono) -> Result<(), Reject> {
        let link = self.links.get(&from).ok_or(Reject::NotTrusted)?;
        let op = reply.map_or_else(|failed| failed.op, Reply::op);
        let is_awaited = link.work().is_some_and(|work| match op {
            Op::Heartbeat => work.heartbeat.is_some(),
            Op::Reconcile => work.step.is_some(),
            Op::Push => work.push.is_some(),
        });
        if !is_awaited {
            return Err(Reject::Unexpected);
        }
        if let Ok(reply) = reply {
            reply.check()?;
            if let Reply::Reconcile(reply) = reply {
                self.check_step(from, reply)?;
            }
        }
        self.now = now;
        match reply {
            Ok(reply) => {
                self.saw(from, now);
                self.was_accepted(from, op);
                self.take_reply(from, reply, now);
            }
            Err(CallFailed { op }) => self.call_failed(from, op, now),
        }
        self.touch(from);
        self.drive(now);
        Ok(())
    }

    /// Takes records that were just committed to the store: own ones, or those a handshake brought.
    pub fn handle_local_change(&mut self, records: &[Record], now: Mono) {
        self.now = now;
        let (revoking, others): (Vec<_>, Vec<_>) =
            records.iter().partition(|r| Registry::of(&r.key.kind) == Registry::Revocations);
        let mut keys = self.index_all_committed(&revoking);
        if !revoking.is_empty() {
            self.settle_revocations(&keys, now);
        }
        keys.extend(self.index_all_committed(&others));
        self.collect();
        self.index.settle_digests();
        self.tell_removed(&keys);
        if !keys.is_empty() {
            let (to, hops) = self.push_targets(None);
            for peer in to {
                let waiting = self.links.get(&peer).and_then(|link| link.work()).filter(|w| !w.pending.is_empty());
                let first = waiting.map_or(now, |work| work.pending_since);
                self.enqueue(peer, &keys, hops, (now + PUSH_QUIET).min(first + PUSH_DELAY_MAX));
            }
        }
        self.drive(now);
    }

    /// A record of a peer whose revocation waits to be committed is void already.
    fn index_all_committed(&mut self, records: &[&Record]) -> Vec<RecordKey> {
        let mut keys = Vec::new();
        for record in records {
            let is_own = record.key.owner == self.local.peer_id;
            let is_void = !is_own && !self.standing_of(record.key.owner).keeps(&record.key.kind);
            if is_void || self.is_suspect(record) {
                continue;
            }
            if let Some(key) = self.index_committed((*record).clone()) {
                self.note_contradiction(record);
                self.note_floor(record);
                self.note_written(record);
                keys.push(key);
            }
        }
        keys
    }

    /// Takes the peers that are trusted now: after a handshake, after a removal. Revoked ones stay out until a
    /// readmission is known.
    pub fn handle_trust(&mut self, trusted: &BTreeMap<PeerId, PublicKey>, now: Mono) {
        self.now = now;
        let gone: Vec<_> = self.links.keys().filter(|peer| !trusted.contains_key(peer)).collect();
        gone.into_iter().for_each(|peer| {
            self.unlink(peer);
            self.forget_stranger(peer);
        });
        self.withheld.retain(|peer, (key, _)| trusted.get(peer) == Some(key));
        self.walks.reconsider();
        let local = self.local.peer_id;
        let mut new = BTreeSet::new();
        for (peer, key) in trusted.iter().filter(|(peer, _)| **peer != local) {
            if self.links.get(peer).is_some_and(|link| link.key == *key) {
                continue;
            }
            self.unlink(*peer);
            if self.revocations.standing(*peer, Some(key)) == Standing::Clear {
                self.link(*peer, *key, now);
                new.insert(*peer);
            } else {
                self.withheld.entry(*peer).or_insert((*key, now + TRUST_GRACE));
            }
        }
        self.count_left_behind();
        if !new.is_empty() {
            // They may have been read when their issuers were not trusted, or just before a crash.
            self.meet_vouched(|voucher| new.contains(&voucher.owner));
        }
        self.drive(now);
    }

    /// Takes new facts for the heartbeats that follow.
    pub fn handle_facts(&mut self, facts: Facts, now: Mono) {
        self.facts = facts;
        self.facts_at = now;
        self.now = now;
    }

    /// Starts a round with every trusted peer now. It is over when [`Gossip::is_idle`].
    pub fn handle_sync(&mut self, now: Mono) {
        self.now = now;
        for peer in self.links.keys().collect::<Vec<_>>() {
            if let Some(link) = self.links.get_mut(&peer) {
                let work = link.work_mut();
                work.heartbeat_at = Some(now);
                work.push_at = now;
                (work.fruitless, work.skip) = (0, 0);
            }
            self.touch(peer);
        }
        self.drive(now);
    }

    pub fn handle_timeout(&mut self, now: Mono) {
        self.now = now;
        self.drive(now);
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Gossip::handle_timeout`] is due, and why.
    pub fn poll_timeout(&self) -> Option<(Mono, &'static str)> {
        if !self.transmits.is_empty() || !self.events.is_empty() {
            return Some((self.now, "output queued"));
        }
        let withheld = self.withheld.values().map(|(_, until)| (*until, "trust in a revoked peer"));
        let silence = self.silence_at.map(|at| (at, "peer silent"));
        withheld.chain(silence).chain(self.timers.next()).min()
    }

    /// What this agent holds, by registry.
    pub fn registries(&self) -> BTreeMap<Registry, RegistryState> {
        Registry::ALL.into_iter().map(|r| (r, self.index.registry_state(r))).collect()
    }

    pub fn digests(&self) -> Digests {
        self.index.digests()
    }

    /// None for peers that are not trusted.
    pub fn peer_view(&self, peer: PeerId) -> Option<PeerView> {
        self.links.get(&peer).map(|link| PeerView {
            status: status_of(link),
            last_seen: link.last_seen(),
            registries: link.digests().map(|digests| **digests),
            heard: link.heard().cloned(),
            has_two_copies: self.copies.are_two(peer, self.now),
        })
    }

    /// Every healthy trusted peer reported the digests that this agent has.
    pub fn converged(&self) -> bool {
        let ours = self.index.shared_digests();
        self.links.values().filter(|link| link.is_healthy()).all(|link| link.digests() == Some(&ours))
    }

    /// No call is under way and nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.transmits.is_empty() && self.links.values().all(Link::is_idle)
    }

    /// Own records of the store up to this version are known here.
    pub fn told_version(&self) -> u64 {
        self.told_version
    }

    pub fn drops(&self) -> Drops {
        self.drops
    }

    /// The held record of this key, tombstones included.
    pub fn record(&self, key: &RecordKey) -> Option<&Record> {
        self.index.get(key).map(|entry| entry.record.as_ref())
    }

    /// Indexes a record of the store without verifying it again; gives its key if it was news.
    fn index_committed(&mut self, record: impl Into<Arc<Record>>) -> Option<RecordKey> {
        let record = record.into();
        let key = record.key.clone();
        if key.owner == self.local.peer_id {
            self.own_version = self.own_version.max(record.version);
            self.told_version = self.told_version.max(record.version);
        }
        let Some(entry) = Entry::new(record) else {
            self.drops.malformed += 1;
            return None;
        };
        self.index.offer(entry).then_some(key)
    }

    /// Tells peers that these own records revoke, once and without a retry; nobody else may reach them any more.
    fn tell_removed(&mut self, keys: &[RecordKey]) {
        let digests = self.index.digests();
        for key in keys.iter().filter(|key| key.kind == kind::REVOCATION && key.owner == self.local.peer_id) {
            let Some(record) = self.index.get(key).map(|entry| entry.record.clone()) else { continue };
            let subject = record.body_as::<RevocationBody>().ok().and_then(|body| body.peer_id);
            let Some(subject) = subject.filter(|peer| !self.is_known(*peer)) else { continue };
            if self.transmits.iter().filter(|t| !self.links.contains_key(&t.to)).count() < FAREWELLS_MAX {
                self.transmits.push_back(exchange::farewell(subject, record, self.facts.instance.clone(), digests));
            }
        }
    }

    fn link(&mut self, peer: PeerId, key: PublicKey, now: Mono) {
        self.discovered.remove(&peer);
        self.unlink(peer);
        self.links.insert(Link::new(peer, key, Some(now), Some(now)));
        self.touch(peer);
        let silent_at = now + self.silence_limit();
        self.silence_at = Some(self.silence_at.map_or(silent_at, |known| known.min(silent_at)));
        self.events.push_back(self.status_event(peer));
    }

    /// Links withheld peers that have been readmitted, and gives up on those that were not.
    fn settle_withheld(&mut self, now: Mono) {
        for (peer, (key, until)) in self.withheld.clone() {
            if self.revocations.standing(peer, Some(&key)) == Standing::Clear {
                self.withheld.remove(&peer);
                self.link(peer, key, now);
            } else if now >= until {
                self.withheld.remove(&peer);
                self.events.push_back(Event::Revoked { peer, void: Vec::new() });
            }
        }
    }

    /// Drops a peer and what waits for it; says whether there was one.
    fn unlink(&mut self, peer: PeerId) -> bool {
        self.transmits.retain(|transmit| transmit.to != peer);
        self.unqueue(peer);
        self.walks.forget(peer);
        self.copies.forget(peer);
        let was_linked = self.links.remove(&peer).is_some();
        if self.links.len() == 0 {
            self.silence_at = None;
        }
        was_linked
    }

    fn hear(&mut self, from: PeerId, heartbeat: &Heartbeat) {
        let ours = self.index.shared_digests();
        let Some(link) = self.links.get_mut(&from) else { return };
        let is_new = link.heard().is_none_or(|heard| heard.instance != heartbeat.instance);
        link.hear(heartbeat, &self.facts.instance, &ours, self.now);
        if is_new {
            self.unconfirm(from);
        }
        self.take_holdings(from, heartbeat);
        self.take_lives(from, &heartbeat.lives, self.now);
    }

    fn is_known(&self, peer: PeerId) -> bool {
        peer == self.local.peer_id || self.links.contains_key(&peer)
    }

    fn status_event(&self, peer: PeerId) -> Event {
        let link = self.links.get(&peer);
        Event::PeerStatus {
            peer,
            status: link.map_or(PeerStatus::Unhealthy, status_of),
            last_seen: link.and_then(Link::last_seen),
        }
    }
}

fn status_of(link: &Link) -> PeerStatus {
    if link.is_healthy() { PeerStatus::Healthy } else { PeerStatus::Unhealthy }
}
