//! What is known of one trusted peer, and what is under way to it. A link of which nothing is under way is small: a
//! simulation holds a hundred million.

use super::reconcile::{Step, Walk};
use crate::{
    model::{Endpoint, Mono, PeerId, PublicKey, UnixTime},
    wire::{
        gossip::{Digests, Heartbeat, Op, life::Tail},
        record::RecordKey,
    },
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Keys that wait for a push to one peer; what does not fit is found by the next comparison.
pub(super) const PENDING_MAX_KEYS: usize = 4096;
/// A call of which nothing was heard for so long is taken as failed, whatever became of it.
pub(super) const CALL_LOST_AFTER: Duration = Duration::from_secs(60);
/// Pushes that may fail in a row before their records are left to the next comparison.
const PUSH_FAILURES_MAX: u32 = 2;
const PUSH_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a peer said of itself last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub instance: String,
    pub starts: u64,
    pub time: UnixTime,
    pub version: String,
    pub endpoints: Vec<Endpoint>,
    pub license_state: String,
    /// When this instance was last heard, directly.
    pub at: Mono,
}

impl Heard {
    fn of(heartbeat: &Heartbeat, at: Mono) -> Self {
        Self {
            at,
            instance: heartbeat.instance.clone(),
            starts: heartbeat.starts,
            time: heartbeat.time,
            version: heartbeat.version.clone(),
            endpoints: heartbeat.endpoints.clone(),
            license_state: heartbeat.license_state.clone(),
        }
    }
}

/// A call that has not been answered yet.
#[derive(Debug, Clone)]
pub(super) struct Call<T> {
    pub sent_at: Mono,
    pub what: T,
}

#[derive(Debug, Clone)]
pub(super) struct Link {
    peer: PeerId,
    pub key: PublicKey,
    life: LastLife,
    rest: Option<Box<Rest>>,
}

const _: () = assert!(size_of::<Link>() <= 64, "idle links are compact");

/// What is known of a peer that was heard, and what is under way.
#[derive(Debug, Clone, Default)]
struct Rest {
    heard: Option<Heard>,
    digests: Option<Arc<Digests>>,
    /// Up to which version it holds all that this agent wrote, as it said last; 0 if it did not.
    holds: u64,
    work: Option<Box<Work>>,
}

/// Milliseconds of the last sign of life, rounded up, above 16 bits: whether there was one, whether it makes the peer
/// healthy, whether it waits to be passed on, and how often it was.
#[derive(Debug, Clone, Copy, Default)]
struct LastLife(u64);

impl LastLife {
    const SEEN: u64 = 1;
    const HEALTHY: u64 = 2;
    const NEWS: u64 = 4;
    const HOPS_SHIFT: u32 = 8;
    const MS_SHIFT: u32 = 16;

    fn set(&mut self, flag: u64, on: bool) {
        self.0 = if on { self.0 | flag } else { self.0 & !flag };
    }
}

/// What is under way to one peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Work {
    /// When the next heartbeat is due; none while others take their turn in a large cluster.
    pub heartbeat_at: Option<Mono>,
    pub heartbeat: Option<Call<()>>,
    pub walk: Option<Box<Walk>>,
    pub step: Option<Call<Box<Step>>>,
    /// Key to how often receivers pass it on.
    pub pending: BTreeMap<RecordKey, u8>,
    pub push_at: Mono,
    pub pending_since: Mono,
    pub push: Option<Call<Vec<(RecordKey, u8)>>>,
    push_failures: u32,
    /// Comparisons in a row that moved no record, and heartbeats to let pass before the next.
    pub fruitless: u32,
    pub skip: u32,
    /// Under which it stands in the queue of timers.
    pub queued: Option<Mono>,
}

impl Link {
    pub fn new(peer: PeerId, key: PublicKey, heartbeat_at: Option<Mono>, last_seen: Option<Mono>) -> Self {
        let mut link = Self { peer, key, life: LastLife::default(), rest: None };
        if let Some(at) = last_seen {
            link.saw(at, 0);
            link.set_healthy(true);
        }
        if heartbeat_at.is_some() {
            link.work_mut().heartbeat_at = heartbeat_at;
        }
        link
    }

    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Direct or relayed.
    pub fn last_seen(&self) -> Option<Mono> {
        (self.life.0 & LastLife::SEEN != 0).then(|| Mono::from_ms(self.life.0 >> LastLife::MS_SHIFT))
    }

    pub fn is_healthy(&self) -> bool {
        self.life.0 & LastLife::HEALTHY != 0
    }

    pub fn set_healthy(&mut self, healthy: bool) {
        self.life.set(LastLife::HEALTHY, healthy);
    }

    /// Whether the last sign of life waits to be passed on.
    pub fn is_news(&self) -> bool {
        self.life.0 & LastLife::NEWS != 0
    }

    pub fn set_news(&mut self, news: bool) {
        self.life.set(LastLife::NEWS, news);
    }

    /// How often the last sign of life was passed on before it came here.
    pub fn hops(&self) -> u8 {
        (self.life.0 >> LastLife::HOPS_SHIFT) as u8
    }

    pub fn saw(&mut self, at: Mono, hops: u8) {
        let ms = at.since_start().as_nanos().div_ceil(1_000_000) as u64;
        let flags = self.life.0 & (LastLife::HEALTHY | LastLife::NEWS) | LastLife::SEEN;
        self.life.0 = ms << LastLife::MS_SHIFT | u64::from(hops) << LastLife::HOPS_SHIFT | flags;
    }

    fn rest_mut(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    pub fn heard(&self) -> Option<&Heard> {
        self.rest.as_ref()?.heard.as_ref()
    }

    pub fn heard_mut(&mut self) -> Option<&mut Heard> {
        self.rest.as_mut()?.heard.as_mut()
    }

    /// As the peer reported last.
    pub fn digests(&self) -> Option<&Arc<Digests>> {
        self.rest.as_ref()?.digests.as_ref()
    }

    /// `ours` is kept in place of an equal copy.
    pub fn set_digests(&mut self, digests: &Digests, ours: &Arc<Digests>) {
        let shared = if **ours == *digests { ours.clone() } else { Arc::new(*digests) };
        self.rest_mut().digests = Some(shared);
    }

    pub fn holds(&self) -> u64 {
        self.rest.as_ref().map_or(0, |rest| rest.holds)
    }

    /// `instance`: what the peer says it holds is said to that start of this agent, or counts for nothing.
    pub fn hear(&mut self, heartbeat: &Heartbeat, instance: &str, ours: &Arc<Digests>, now: Mono) {
        let rest = self.rest_mut();
        rest.heard = Some(Heard::of(heartbeat, now));
        rest.holds = heartbeat.holds.as_ref().filter(|holds| holds.of == instance).map_or(0, |holds| holds.through);
        self.set_digests(&heartbeat.digests, ours);
    }

    pub fn work(&self) -> Option<&Work> {
        self.rest.as_ref()?.work.as_deref()
    }

    pub fn work_mut(&mut self) -> &mut Work {
        self.rest_mut().work.get_or_insert_default()
    }

    /// What is under way, if anything is.
    pub fn busy_mut(&mut self) -> Option<&mut Work> {
        self.rest.as_mut()?.work.as_deref_mut()
    }

    pub fn drop_work(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.work = None;
            if rest.heard.is_none() && rest.digests.is_none() {
                self.rest = None;
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.work().is_none_or(Work::is_idle)
    }
}

impl Work {
    /// Queues a record to be pushed at `at`, or earlier if others already wait.
    pub fn enqueue(&mut self, key: RecordKey, hops: u8, at: Mono, now: Mono) {
        if self.pending.is_empty() {
            self.pending_since = now;
        }
        if self.pending.len() < PENDING_MAX_KEYS || self.pending.contains_key(&key) {
            self.pending.entry(key).and_modify(|h| *h = hops.max(*h)).or_insert(hops);
        }
        self.push_at = at;
    }

    pub fn push_succeeded(&mut self) {
        self.push_failures = 0;
    }

    /// Tries the records once more a little later; then the next comparison has to find them.
    pub fn push_failed(&mut self, unsent: Vec<(RecordKey, u8)>, now: Mono) {
        self.push_failures = self.push_failures.saturating_add(1);
        if self.push_failures >= PUSH_FAILURES_MAX {
            self.pending.clear();
            return;
        }
        for (key, hops) in unsent {
            self.enqueue(key, hops, now + PUSH_RETRY_AFTER, now);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.heartbeat.is_none()
            && self.step.is_none()
            && self.push.is_none()
            && self.walk.is_none()
            && self.pending.is_empty()
    }

    /// The call that is lost at `now`, if there is one.
    pub fn lost_call(&self, now: Mono) -> Option<Op> {
        let lost = |sent_at: Option<Mono>| sent_at.is_some_and(|at| now >= at + CALL_LOST_AFTER);
        [
            (Op::Heartbeat, self.heartbeat.as_ref().map(|c| c.sent_at)),
            (Op::Reconcile, self.step.as_ref().map(|c| c.sent_at)),
            (Op::Push, self.push.as_ref().map(|c| c.sent_at)),
        ]
        .into_iter()
        .find_map(|(op, sent_at)| lost(sent_at).then_some(op))
    }

    /// The next time this link needs attention.
    pub fn deadline(&self) -> Option<Mono> {
        let lost = |sent_at: Mono| sent_at + CALL_LOST_AFTER;
        let heartbeat = match &self.heartbeat {
            Some(call) => Some(lost(call.sent_at)),
            None => self.heartbeat_at,
        };
        let push = match &self.push {
            Some(call) => Some(lost(call.sent_at)),
            None if self.pending.is_empty() => None,
            None => Some(self.push_at),
        };
        let step = match &self.step {
            Some(call) => Some(lost(call.sent_at)),
            None => self.walk.is_some().then(Mono::default),
        };
        [heartbeat, push, step].into_iter().flatten().min()
    }
}

/// The links, by the random tail of their peer's id. A list without gaps: a map would take half as much again.
#[derive(Debug, Clone, Default)]
pub(super) struct Links {
    list: Vec<Link>,
    /// Where each part of the range of tails begins in the list; a lookup reads one of these and a link or two.
    starts: Vec<u32>,
}

/// Links that a part of the range of tails holds, on average.
const LINKS_PER_PART: usize = 2;

type Rank = (Tail, PeerId);

fn rank(peer: PeerId) -> Rank {
    (Tail::of(peer), peer)
}

impl Links {
    pub fn from_links(links: impl IntoIterator<Item = Link>) -> Self {
        let mut list: Vec<Link> = links.into_iter().collect();
        list.sort_by_key(|link| rank(link.peer));
        list.shrink_to_fit();
        let mut links = Self { list, starts: Vec::new() };
        links.divide();
        links
    }

    /// Sets the parts for the present number of links.
    fn divide(&mut self) {
        let parts = self.list.len() / LINKS_PER_PART + 1;
        self.starts = vec![0; parts + 1];
        for at in 0..self.list.len() {
            let part = self.part(Tail::of(self.list[at].peer));
            self.starts[part + 1] += 1;
        }
        for part in 0..parts {
            self.starts[part + 1] += self.starts[part];
        }
    }

    fn part(&self, tail: Tail) -> usize {
        let parts = self.starts.len().saturating_sub(1) as u128;
        ((u128::from(tail.0) * parts) >> 48) as usize
    }

    fn position(&self, wanted: &Rank) -> Result<usize, usize> {
        let part = self.part(wanted.0);
        let Some([low, high]) = self.starts.get(part..part + 2) else { return Err(0) };
        let (low, high) = (*low as usize, *high as usize);
        let found = self.list[low..high].binary_search_by(|link| rank(link.peer).cmp(wanted));
        found.map(|i| i + low).map_err(|i| i + low)
    }

    /// After a link came or went: the parts after its own begin one later or earlier, or all anew if they no longer fit.
    fn shift(&mut self, tail: Tail, came: bool) {
        let wanted = self.list.len() / LINKS_PER_PART + 1;
        let parts = self.starts.len().saturating_sub(1);
        if parts == 0 || wanted > 2 * parts || 4 * wanted < parts {
            return self.divide();
        }
        let part = self.part(tail);
        for start in &mut self.starts[part + 1..] {
            *start = if came { *start + 1 } else { *start - 1 };
        }
    }

    pub fn get(&self, peer: &PeerId) -> Option<&Link> {
        self.position(&rank(*peer)).ok().map(|i| &self.list[i])
    }

    pub fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Link> {
        self.position(&rank(*peer)).ok().map(|i| &mut self.list[i])
    }

    pub fn contains_key(&self, peer: &PeerId) -> bool {
        self.get(peer).is_some()
    }

    /// The first peer whose id ends so. Two that do are too rare to care: the other one is heard directly.
    pub fn of_tail(&mut self, tail: Tail) -> Option<&mut Link> {
        let (Ok(at) | Err(at)) = self.position(&(tail, PeerId::from_bytes([0; 16])));
        self.list.get_mut(at).filter(|link| Tail::of(link.peer) == tail)
    }

    pub fn nth(&self, index: usize) -> Option<&Link> {
        self.list.get(index)
    }

    pub fn insert(&mut self, link: Link) {
        match self.position(&rank(link.peer)) {
            Ok(at) => self.list[at] = link,
            Err(at) => {
                let tail = Tail::of(link.peer);
                self.list.insert(at, link);
                self.shift(tail, true);
            }
        }
    }

    pub fn remove(&mut self, peer: &PeerId) -> Option<Link> {
        let at = self.position(&rank(*peer)).ok()?;
        let link = self.list.remove(at);
        self.shift(Tail::of(*peer), false);
        Some(link)
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn keys(&self) -> impl Iterator<Item = PeerId> {
        self.list.iter().map(|link| link.peer)
    }

    pub fn values(&self) -> impl Iterator<Item = &Link> {
        self.list.iter()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.list.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, SigningKey};

    #[test]
    fn links_are_found_by_peer_and_by_tail_while_others_come_and_go() {
        let mut rng = Rng::from_seed([3; 32]);
        let key = SigningKey::from_seed([1; 32]).public();
        let ids: Vec<PeerId> = (0..600).map(|n| PeerId::mint(UnixTime::from_ms(n), &mut rng)).collect();
        let link = |id: &PeerId| Link::new(*id, key, None, None);
        let mut links = Links::from_links(ids[..40].iter().map(link));
        ids[40..].iter().for_each(|id| links.insert(link(id)));
        assert_eq!(links.len(), 600);
        for (n, id) in ids.iter().enumerate().filter(|(n, _)| n % 7 != 0) {
            assert!(links.remove(id).is_some(), "{n}");
            assert!(links.remove(id).is_none(), "{n}");
        }
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(links.contains_key(id), n % 7 == 0, "{n}");
            assert_eq!(links.of_tail(Tail::of(*id)).map(|l| l.peer()), (n % 7 == 0).then_some(*id));
        }
        assert!(links.values().is_sorted_by_key(|l| rank(l.peer)));
    }
}
