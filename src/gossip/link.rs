//! What is known of one trusted peer, and what is under way to it.

use super::instance::{Copies, Refusals};
use crate::{
    model::{Endpoint, Mono, PublicKey, UnixTime},
    wire::{
        gossip::{Digests, Heartbeat, Op, Registry},
        record::RecordKey,
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

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
}

impl Heard {
    fn of(heartbeat: &Heartbeat) -> Self {
        Self {
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

/// One page of a comparison: a registry after a key up to another.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub registry: Registry,
    pub after: Option<RecordKey>,
    pub through: Option<RecordKey>,
}

impl Page {
    /// A key the answer to this page may end at.
    pub fn holds(&self, key: &RecordKey) -> bool {
        Registry::of(&key.kind) == self.registry
            && self.after.as_ref().is_none_or(|after| key > after)
            && self.through.as_ref().is_none_or(|through| key <= through)
    }
}

/// Where a comparison with the peer goes on.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    pub registries: VecDeque<Registry>,
    pub after: Option<RecordKey>,
}

/// What the peer has acknowledged, and which copy of it is believed.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    /// Since when the link stands.
    pub since: Mono,
    /// Up to where it holds all records of the local peer.
    pub acknowledged: Option<u64>,
    pub copies: Copies,
    pub refusals: Refusals,
}

#[derive(Debug, Clone)]
pub(super) struct Link {
    pub key: PublicKey,
    pub last_seen: Option<Mono>,
    pub healthy: bool,
    pub heard: Option<Heard>,
    pub digests: Option<Digests>,
    pub notes: Notes,
    pub heartbeat_at: Mono,
    pub heartbeat: Option<Call<()>>,
    pub walk: Option<Walk>,
    pub page: Option<Call<Page>>,
    /// Key to whether the receiver relays it.
    pub pending: BTreeMap<RecordKey, bool>,
    pub push_at: Mono,
    pub pending_since: Mono,
    pub push: Option<Call<Vec<(RecordKey, bool)>>>,
    push_failures: u32,
}

impl Link {
    pub fn new(key: PublicKey, heartbeat_at: Mono, last_seen: Option<Mono>) -> Self {
        Self {
            key,
            last_seen,
            healthy: last_seen.is_some(),
            heard: None,
            digests: None,
            notes: Notes::default(),
            heartbeat_at,
            heartbeat: None,
            walk: None,
            page: None,
            pending: BTreeMap::new(),
            push_at: heartbeat_at,
            pending_since: heartbeat_at,
            push: None,
            push_failures: 0,
        }
    }

    pub fn hear(&mut self, heartbeat: &Heartbeat) {
        self.heard = Some(Heard::of(heartbeat));
        self.digests = Some(heartbeat.digests);
    }

    /// Queues a record to be pushed at `at`, or earlier if others already wait.
    pub fn enqueue(&mut self, key: RecordKey, relay: bool, at: Mono, now: Mono) {
        if self.pending.is_empty() {
            self.pending_since = now;
        }
        if self.pending.len() < PENDING_MAX_KEYS || self.pending.contains_key(&key) {
            self.pending.entry(key).and_modify(|r| *r |= relay).or_insert(relay);
        }
        self.push_at = at;
    }

    pub fn push_succeeded(&mut self) {
        self.push_failures = 0;
    }

    /// Tries the records once more a little later; then the next comparison has to find them.
    pub fn push_failed(&mut self, unsent: Vec<(RecordKey, bool)>, now: Mono) {
        self.push_failures = self.push_failures.saturating_add(1);
        if self.push_failures >= PUSH_FAILURES_MAX {
            self.pending.clear();
            return;
        }
        for (key, relay) in unsent {
            self.enqueue(key, relay, now + PUSH_RETRY_AFTER, now);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.heartbeat.is_none()
            && self.page.is_none()
            && self.push.is_none()
            && self.walk.is_none()
            && self.pending.is_empty()
    }

    /// The call that is lost at `now`, if there is one.
    pub fn lost_call(&self, now: Mono) -> Option<Op> {
        let lost = |sent_at: Option<Mono>| sent_at.is_some_and(|at| now >= at + CALL_LOST_AFTER);
        [
            (Op::Heartbeat, self.heartbeat.as_ref().map(|c| c.sent_at)),
            (Op::Reconcile, self.page.as_ref().map(|c| c.sent_at)),
            (Op::Push, self.push.as_ref().map(|c| c.sent_at)),
        ]
        .into_iter()
        .find_map(|(op, sent_at)| lost(sent_at).then_some(op))
    }

    /// The next time this link needs attention, and why.
    pub fn deadline(&self, silence: Duration) -> Option<(Mono, &'static str)> {
        let lost = |sent_at: Mono| (sent_at + CALL_LOST_AFTER, "call lost");
        let heartbeat = match &self.heartbeat {
            Some(call) => lost(call.sent_at),
            None => (self.heartbeat_at, "heartbeat"),
        };
        let push = match &self.push {
            Some(call) => Some(lost(call.sent_at)),
            None if self.pending.is_empty() => None,
            None => Some((self.push_at, "push")),
        };
        let silent = self.last_seen.filter(|_| self.healthy).map(|seen| (seen + silence, "peer silent"));
        let page = self.page.as_ref().map(|call| lost(call.sent_at));
        [Some(heartbeat), push, page, silent].into_iter().flatten().min()
    }
}
