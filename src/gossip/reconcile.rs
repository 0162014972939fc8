//! Comparison of registries by ranges (cluster.md §6). The side that starts keeps a list of ranges that differ; each
//! step tells digests or heads of some, the answer goes one digit further, and so two levels a round trip. The side that
//! answers keeps nothing.

use super::{Gossip, Reject, Transmit, index::Entry, link::Call};
use crate::{
    model::{Mono, PeerId},
    wire::{
        gossip::{
            ASKED_MAX_BRANCHES, ASKED_MAX_PARTS, Digests, Malformed, RECORDS_MAX_BYTES, RECORDS_MAX_COUNT,
            ReconcileReply, ReconcileRequest, Registry, Request,
            range::{FANOUT, LEAF_MAX_RECORDS, Part, Path, Prefix, Salt, Short, ShortHead},
        },
        record::{Record, RecordHead, RecordKey},
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Steps of one comparison; a hundred thousand records take some hundred.
const STEPS_MAX: u32 = 4096;
/// Steps in a row that move no record: an honest descent needs half as many as a path has digits.
const IDLE_STEPS_MAX: u32 = 64;
/// A step that brought only records that were refused counts for so many: a member that floods others holds up their
/// comparisons with it for a few messages.
const REFUSED_STEP_COST: u32 = 16;
/// Ranges that wait; those beyond are left to the next comparison.
const TODO_MAX_RANGES: usize = 65_536;
/// A comparison without progress for so long no longer keeps others from starting. One at a time, so that a peer that
/// joins a large cluster does not load everything from each member.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// Peers that wait for their comparison; others have to wait for the next heartbeat.
const WAITING_MAX_PEERS: usize = 64;
/// Heartbeats without a comparison after several that moved nothing.
const SKIP_MAX_HEARTBEATS: u32 = 3;
/// Heads remembered of records that were refused for their owner.
const DECLINED_MAX_RECORDS: usize = 16_384;

/// Where a comparison with the peer goes on.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    registries: VecDeque<Registry>,
    salt: Salt,
    /// Ranges that differ, the next one last.
    todo: Vec<Prefix>,
    wants: BTreeMap<Prefix, Vec<Short>>,
    /// Records that the peer lacks.
    owed: VecDeque<RecordKey>,
    steps: u32,
    idle_steps: u32,
    moved: bool,
}

/// What an answer may be about.
#[derive(Debug, Clone)]
pub(super) struct Step {
    registry: Registry,
    /// In order.
    asked: Vec<(Prefix, Asked)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Branch,
    Leaf,
    Wants,
}

impl Step {
    fn asked(&self, inner: &Prefix) -> Option<&(Prefix, Asked)> {
        let after = self.asked.partition_point(|(prefix, _)| prefix <= inner);
        self.asked[..after].last().filter(|(prefix, _)| prefix.contains(inner))
    }

    fn allows(&self, part: &Part) -> bool {
        let Some((asked, what)) = self.asked(part.prefix()) else { return false };
        let deeper = part.prefix().digits() - asked.digits();
        match part {
            Part::Branch(..) => *what == Asked::Branch && deeper == 1,
            Part::Leaf(..) => *what == Asked::Branch && deeper <= 1,
            Part::Open(_) => *what != Asked::Branch,
            Part::Wants(..) => *what == Asked::Leaf && deeper == 0,
        }
    }

    fn allows_record(&self, record: &Record) -> bool {
        let path = Path::of(&record.key);
        let after = self.asked.partition_point(|(prefix, _)| *prefix.path() <= path);
        let within = self.asked[..after].last().filter(|(prefix, what)| prefix.holds(&path) && *what != Asked::Branch);
        Registry::of(&record.key.kind) == self.registry && within.is_some()
    }
}

/// Which comparisons run, and what keeps them small.
#[derive(Debug, Clone, Default)]
pub(super) struct Walks {
    /// Started here; when it last got on.
    running: BTreeMap<PeerId, Mono>,
    waiting: VecDeque<PeerId>,
    /// Started by the peer; when it last asked.
    served: BTreeMap<PeerId, Mono>,
    /// Records that were refused because of who owns them: asking again would bring them again.
    declined: BTreeMap<(Registry, Path), RecordHead>,
}

impl Walks {
    fn is_free(&self, now: Mono) -> bool {
        self.running.values().all(|at| now >= *at + STALLED_AFTER)
    }

    pub fn forget(&mut self, peer: PeerId) {
        self.running.remove(&peer);
        self.served.remove(&peer);
        self.waiting.retain(|p| *p != peer);
    }

    pub fn decline(&mut self, key: &RecordKey, head: RecordHead) {
        if self.declined.len() < DECLINED_MAX_RECORDS {
            self.declined.insert((Registry::of(&key.kind), Path::of(key)), head);
        }
    }

    /// Other owners may be trusted now.
    pub fn reconsider(&mut self) {
        self.declined.clear();
    }

    fn declines(&self, registry: Registry, prefix: &Prefix, salt: &Salt, head: &ShortHead) -> bool {
        self.declined(registry, prefix).any(|(path, declined)| salt.head(path, declined) == *head)
    }

    fn declined(&self, registry: Registry, prefix: &Prefix) -> impl Iterator<Item = (&Path, &RecordHead)> {
        let from = self.declined.range((registry, *prefix.path())..);
        let prefix = *prefix;
        let within = from.take_while(move |((r, path), _)| *r == registry && prefix.holds(path));
        within.map(|((_, path), head)| (path, head))
    }
}

/// Room in one message.
struct Room {
    bytes: usize,
    records: Vec<Arc<Record>>,
}

impl Room {
    fn new() -> Self {
        Self { bytes: 0, records: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.bytes >= RECORDS_MAX_BYTES || self.records.len() >= RECORDS_MAX_COUNT
    }

    fn put(&mut self, entry: &Entry) {
        self.bytes += entry.wire_bytes;
        self.records.push(entry.record.clone());
    }
}

impl Gossip {
    /// After an answer to a heartbeat that told other digests.
    pub(super) fn begin_walk(&mut self, peer: PeerId, theirs: &Digests, now: Mono) {
        let differing = self.index.digests().differing(theirs);
        let Some(link) = self.links.get_mut(&peer) else { return };
        let work = link.work_mut();
        if differing.is_empty() {
            (work.fruitless, work.skip) = (0, 0);
            return;
        }
        let skipped = work.skip > 0;
        work.skip = work.skip.saturating_sub(1);
        if work.walk.is_some() || skipped {
            return;
        }
        if self.walks.served.get(&peer).is_some_and(|at| now < *at + STALLED_AFTER) {
            return;
        }
        if !self.walks.is_free(now) {
            if self.walks.waiting.len() < WAITING_MAX_PEERS && !self.walks.waiting.contains(&peer) {
                self.walks.waiting.push_back(peer);
            }
            return;
        }
        work.walk = Some(Box::new(Walk {
            registries: differing.into(),
            salt: Salt(self.rng.bytes()),
            todo: vec![Prefix::ROOT],
            wants: BTreeMap::new(),
            owed: VecDeque::new(),
            steps: 0,
            idle_steps: 0,
            moved: false,
        }));
        self.walks.running.insert(peer, now);
    }

    pub(super) fn end_walk(&mut self, peer: PeerId, now: Mono) {
        self.walks.running.remove(&peer);
        if let Some(work) = self.links.get_mut(&peer).and_then(|link| link.busy_mut()) {
            let moved = work.walk.take().is_some_and(|walk| walk.moved);
            work.step = None;
            work.fruitless = if moved { 0 } else { work.fruitless.saturating_add(1) };
            work.skip = work.fruitless.saturating_sub(1).min(SKIP_MAX_HEARTBEATS);
        }
        while self.walks.is_free(now)
            && let Some(next) = self.walks.waiting.pop_front()
        {
            let told = self.links.get(&next).and_then(|link| link.digests().cloned());
            if let Some(told) = told {
                self.begin_walk(next, &told, now);
                self.touch(next);
            }
        }
    }

    /// The next step of the comparison under way.
    pub(super) fn due_step(&mut self, peer: PeerId, now: Mono) -> Option<Transmit> {
        let (index, walks) = (&self.index, &self.walks);
        let work = self.links.get_mut(&peer)?.busy_mut().filter(|work| work.step.is_none())?;
        let walk = work.walk.as_deref_mut()?;
        let registry = *walk.registries.front()?;
        walk.steps += 1;
        let mut parts: Vec<Part> = Vec::new();
        let mut branches = 0;
        while parts.len() < ASKED_MAX_PARTS
            && branches < ASKED_MAX_BRANCHES
            && let Some(prefix) = walk.todo.pop()
        {
            let mut part = index.part(registry, prefix, &walk.salt);
            if let Part::Leaf(_, heads) = &mut part {
                // What was declined is told as if it were held.
                heads.extend(walks.declined(registry, &prefix).map(|(path, head)| walk.salt.head(path, head)));
                if heads.len() > LEAF_MAX_RECORDS {
                    walk.todo.extend((0..FANOUT).filter_map(|digit| prefix.child(digit)));
                    continue;
                }
            }
            branches += usize::from(matches!(part, Part::Branch(..)));
            parts.push(part);
        }
        while parts.len() < ASKED_MAX_PARTS
            && let Some((prefix, ids)) = walk.wants.pop_first()
        {
            parts.push(Part::Wants(prefix, ids));
        }
        parts.sort_by_key(|part| *part.prefix());
        let mut room = Room::new();
        while !room.is_full()
            && let Some(key) = walk.owed.pop_front()
        {
            // What was collected since would be taken for what the floor of its owner still lets stand.
            index.get(&key).into_iter().for_each(|entry| room.put(entry));
        }
        walk.moved |= !room.records.is_empty();
        walk.idle_steps = if room.records.is_empty() { walk.idle_steps + 1 } else { 0 };
        let asked = parts.iter().map(|part| (*part.prefix(), asked(part))).collect();
        work.step = Some(Call { sent_at: now, what: Box::new(Step { registry, asked }) });
        let salt = walk.salt;
        let request = ReconcileRequest { registry, salt, parts, records: self.backed(room.records) };
        Some(Transmit { to: peer, request: Request::Reconcile(request) })
    }

    /// Answers a step: sends what is newer here, asks for what is newer there, leaves open what does not fit.
    pub(super) fn serve_step(&mut self, from: PeerId, request: &ReconcileRequest) -> ReconcileReply {
        self.absorb(from, &request.records, self.now);
        let now = self.now;
        self.walks.served.retain(|_, at| now < *at + STALLED_AFTER);
        self.walks.served.insert(from, now);
        let mut room = Room::new();
        let mut parts = Vec::new();
        for part in &request.parts {
            self.answer(request, part, &mut room, &mut parts);
        }
        let digest = parts.is_empty().then(|| self.index.digests().get(request.registry));
        ReconcileReply { parts, records: self.backed(room.records), digest }
    }

    fn answer(&self, request: &ReconcileRequest, part: &Part, room: &mut Room, answers: &mut Vec<Part>) {
        let ReconcileRequest { registry, salt, .. } = request;
        match part {
            Part::Branch(prefix, theirs) => match self.index.part(*registry, *prefix, salt) {
                Part::Branch(_, ours) => {
                    let children = differing(prefix, &ours, theirs);
                    answers.extend(children.map(|child| self.index.part(*registry, child, salt)));
                }
                leaf => answers.push(leaf),
            },
            Part::Leaf(prefix, theirs) => self.answer_leaf(request, *prefix, theirs, room, answers),
            Part::Wants(prefix, ids) => {
                for entry in self.index.shelf(*registry).under(prefix) {
                    if ids.contains(&salt.id(&entry.path)) {
                        if room.is_full() {
                            return answers.push(Part::Open(*prefix));
                        }
                        room.put(entry);
                    }
                }
            }
            Part::Open(_) => {}
        }
    }

    fn answer_leaf(
        &self,
        request: &ReconcileRequest,
        prefix: Prefix,
        theirs: &[ShortHead],
        room: &mut Room,
        answers: &mut Vec<Part>,
    ) {
        if room.is_full() {
            return answers.push(Part::Open(prefix));
        }
        let mut first_left = None;
        let newer_there = self.difference(request.registry, &prefix, &request.salt, theirs, |entry| {
            if room.is_full() {
                first_left = Some(entry.path);
                return false;
            }
            room.put(entry);
            true
        });
        if let Some(path) = first_left {
            let leaf = self.index.shelf(request.registry).leaf_prefix(&path);
            answers.extend(rest_of(&prefix, &leaf).into_iter().map(Part::Open));
        } else if !newer_there.is_empty() {
            answers.push(Part::Wants(prefix, newer_there));
        }
    }

    /// Compares one range: gives what the other side lacks until told to stop, and names what it has newer.
    fn difference(
        &self,
        registry: Registry,
        prefix: &Prefix,
        salt: &Salt,
        theirs: &[ShortHead],
        mut give: impl FnMut(&Entry) -> bool,
    ) -> Vec<Short> {
        let mut unmatched: BTreeMap<Short, &ShortHead> = theirs.iter().map(|head| (head.id, head)).collect();
        let mut newer_there = Vec::new();
        for entry in self.index.shelf(registry).under(prefix) {
            let pair = (!unmatched.is_empty()).then(|| salt.head(&entry.path, &entry.head));
            let pair = pair.and_then(|ours| Some((ours, unmatched.remove(&ours.id)?)));
            // Of two contents under one version both sides learn, and each keeps the larger.
            if pair.is_some_and(|(ours, theirs)| *theirs != ours && theirs.version >= ours.version) {
                newer_there.extend(pair.map(|(ours, _)| ours.id));
            }
            let is_newer_here = pair.is_none_or(|(ours, theirs)| *theirs != ours && theirs.version <= ours.version);
            if is_newer_here && !give(entry) {
                return newer_there;
            }
        }
        let unknown = unmatched.into_values().filter(|head| !self.walks.declines(registry, prefix, salt, head));
        newer_there.extend(unknown.map(|head| head.id));
        newer_there
    }

    /// An answer is about the ranges that were asked about, no other.
    pub(super) fn check_step(&self, from: PeerId, reply: &ReconcileReply) -> Result<(), Reject> {
        let step = self.links.get(&from).and_then(|link| link.work()?.step.as_ref());
        let Some(Call { what: step, .. }) = step else { return Err(Reject::Unexpected) };
        let is_sound = reply.parts.iter().all(|part| step.allows(part))
            && reply.records.list.iter().all(|record| step.allows_record(record));
        if is_sound { Ok(()) } else { Err(Reject::Malformed(Malformed("the answer is about other ranges"))) }
    }

    pub(super) fn take_step_reply(&mut self, from: PeerId, reply: &ReconcileReply, now: Mono) {
        let taken_before = self.taken;
        self.absorb(from, &reply.records, now);
        let is_taken = self.taken > taken_before;
        let ours = self.index.shared_digests();
        let Some(link) = self.links.get_mut(&from) else { return };
        let Some((step, mut walk)) = link.busy_mut().and_then(|work| work.step.take().zip(work.walk.take())) else {
            return;
        };
        if let Some((mut told, digest)) = link.digests().map(|told| **told).zip(reply.digest) {
            told.set(step.what.registry, digest);
            link.set_digests(&told, &ours);
        }
        if is_taken {
            (walk.moved, walk.idle_steps) = (true, 0);
        } else if !reply.records.is_empty() {
            walk.idle_steps += REFUSED_STEP_COST;
        }
        for part in &reply.parts {
            self.follow(step.what.registry, part, &mut walk);
        }
        walk.todo.truncate(TODO_MAX_RANGES);
        if walk.todo.is_empty() && walk.wants.is_empty() && walk.owed.is_empty() {
            walk.registries.pop_front();
            walk.todo.push(Prefix::ROOT);
        }
        let is_over = walk.registries.is_empty() || walk.steps >= STEPS_MAX || walk.idle_steps >= IDLE_STEPS_MAX;
        if let Some(work) = self.links.get_mut(&from).and_then(|link| link.busy_mut()) {
            work.walk = Some(walk);
        }
        self.walks.running.insert(from, now);
        if is_over {
            self.end_walk(from, now);
        }
    }

    /// What one part of an answer leads to.
    fn follow(&self, registry: Registry, part: &Part, walk: &mut Walk) {
        match part {
            Part::Branch(prefix, theirs) => match self.index.part(registry, *prefix, &walk.salt) {
                Part::Branch(_, ours) => walk.todo.extend(differing(prefix, &ours, theirs)),
                _ => walk.todo.push(*prefix),
            },
            Part::Leaf(prefix, theirs) => {
                let salt = walk.salt;
                let newer_there = self.difference(registry, prefix, &salt, theirs, |entry| {
                    walk.owed.push_back(entry.record.key.clone());
                    true
                });
                if !newer_there.is_empty() {
                    walk.wants.insert(*prefix, newer_there);
                }
            }
            Part::Open(prefix) => walk.todo.push(*prefix),
            Part::Wants(prefix, ids) => {
                let held = self.index.shelf(registry).under(prefix);
                let wanted = held.filter(|entry| ids.contains(&walk.salt.id(&entry.path)));
                walk.owed.extend(wanted.map(|entry| entry.record.key.clone()));
            }
        }
    }
}

fn asked(part: &Part) -> Asked {
    match part {
        Part::Branch(..) => Asked::Branch,
        Part::Wants(..) => Asked::Wants,
        Part::Leaf(..) | Part::Open(_) => Asked::Leaf,
    }
}

fn differing(prefix: &Prefix, ours: &[Short; FANOUT], theirs: &[Short; FANOUT]) -> impl Iterator<Item = Prefix> {
    let differ = (0..FANOUT).filter(|digit| ours[*digit] != theirs[*digit]).collect::<Vec<_>>();
    let prefix = *prefix;
    differ.into_iter().filter_map(move |digit| prefix.child(digit))
}

/// The ranges from `leaf` on to the end of `whole`, in order.
fn rest_of(whole: &Prefix, leaf: &Prefix) -> Vec<Prefix> {
    if leaf.digits() <= whole.digits() {
        return vec![*whole];
    }
    let mut above = vec![*whole];
    for depth in whole.digits()..leaf.digits() {
        let next = above.last().and_then(|prefix| prefix.child(leaf.path().digit(depth)));
        above.extend(next);
    }
    let mut rest = vec![*leaf];
    for (prefix, depth) in above.iter().zip(whole.digits()..leaf.digits()).rev() {
        let later = leaf.path().digit(depth) + 1..FANOUT;
        rest.extend(later.filter_map(|digit| prefix.child(digit)));
    }
    rest
}
