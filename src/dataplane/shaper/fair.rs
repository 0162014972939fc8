//! Who may send next, and when: a token bucket, and behind it fair queueing by start time (Goyal, Vin, Cheng, "Start-time
//! fair queueing", SIGCOMM 1996). Sans-IO.
//!
//! What a flow asks for starts, in virtual time, where its previous wish ended, or one turn ago if it asked for nothing
//! meanwhile; the earliest start is served. So flows that ask without pause get equal shares, whatever the sizes of their
//! wishes, and a flow that asks seldom is served next.

use crate::model::Mono;
use std::{collections::BTreeMap, time::Duration};

/// Bytes that an idle bucket gathers (dataplane.md §9).
const BURST: Duration = Duration::from_millis(50);
const BURST_MIN_BYTES: u64 = 64 << 10;
/// One turn of a flow.
const TURN: Duration = Duration::from_millis(2);
const TURN_MIN_BYTES: u64 = 1500;
const TURN_MAX_BYTES: u64 = 64 << 10;
const NS_PER_S: u128 = 1_000_000_000;
/// Flows that are remembered before those are forgotten that have nothing to wait for.
const FLOWS_KEPT: usize = 4096;

/// Names a flow among those of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// Names a wish that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    start: u64,
    /// First come, first served where starts are equal.
    number: u64,
}

struct Wish<T> {
    flow: FlowId,
    bytes: u64,
    /// Counts among what waits, and may be dropped.
    is_queued: bool,
    what: T,
}

#[derive(Default)]
struct Account {
    /// Virtual time at which its last wish ends.
    end: u64,
    queued_bytes: u64,
}

pub struct Fair<T> {
    bytes_per_s: u64,
    /// Credit in bytes × ns/s, so that no time is lost by rounding; below zero after a charge.
    credit: i128,
    filled_at: Mono,
    /// The latest start of what was served.
    time: u64,
    waiting: BTreeMap<Place, Wish<T>>,
    flows: BTreeMap<FlowId, Account>,
    queued_bytes: u64,
    number: u64,
}

impl<T> Fair<T> {
    /// With a full bucket.
    pub fn new(bytes_per_s: u64, now: Mono) -> Self {
        let mut fair = Self {
            bytes_per_s,
            credit: 0,
            filled_at: now,
            time: 0,
            waiting: BTreeMap::new(),
            flows: BTreeMap::new(),
            queued_bytes: 0,
            number: 0,
        };
        fair.credit = fair.burst();
        fair
    }

    /// Another rate from now on; what has been gathered or owed stays, up to the new burst.
    pub fn set_rate(&mut self, bytes_per_s: u64, now: Mono) {
        self.fill(now);
        self.bytes_per_s = bytes_per_s;
        self.credit = self.credit.min(self.burst());
    }

    /// Bytes that a flow should ask for at once: about 2 ms at the rate.
    pub fn turn_bytes(&self) -> u64 {
        per(self.bytes_per_s, TURN).clamp(TURN_MIN_BYTES, TURN_MAX_BYTES)
    }

    /// Bytes that were queued and wait.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// A wish that is kept until it is fulfilled or withdrawn. A flow has one at a time.
    pub fn ask(&mut self, flow: FlowId, bytes: u64, what: T) -> Place {
        self.wish(Wish { flow, bytes, is_queued: false, what })
    }

    /// A wish of many, which may be dropped.
    pub fn queue(&mut self, flow: FlowId, bytes: u64, what: T) {
        self.wish(Wish { flow, bytes, is_queued: true, what });
    }

    fn wish(&mut self, wish: Wish<T>) -> Place {
        if self.flows.len() >= FLOWS_KEPT {
            let time = self.time;
            self.flows.retain(|_, account| account.end > time || account.queued_bytes > 0);
        }
        let earliest = self.time.saturating_sub(self.turn_bytes());
        let account = self.flows.entry(wish.flow).or_default();
        let place = Place { start: account.end.max(earliest), number: self.number };
        account.end = place.start + wish.bytes;
        if wish.is_queued {
            account.queued_bytes += wish.bytes;
            self.queued_bytes += wish.bytes;
        }
        self.number += 1;
        self.waiting.insert(place, wish);
        place
    }

    /// The next wish that is fulfilled now.
    pub fn serve(&mut self, now: Mono) -> Option<T> {
        self.fill(now);
        if self.credit <= 0 {
            return None;
        }
        let place = *self.waiting.first_key_value()?.0;
        let wish = self.remove(place)?;
        self.time = self.time.max(place.start);
        self.credit -= i128::from(wish.bytes) * NS_PER_S as i128;
        Some(wish.what)
    }

    /// How long until the next wish can be fulfilled; none waits, none.
    pub fn wait(&self) -> Option<Duration> {
        self.waiting.first_key_value()?;
        // More than nothing is needed.
        let missing = (1 - self.credit).max(0) as u128;
        let ns = missing.div_ceil(u128::from(self.bytes_per_s.max(1)));
        Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    /// A wish that is not kept up: its flow is gone.
    pub fn withdraw(&mut self, place: Place) -> Option<T> {
        self.remove(place).map(|wish| wish.what)
    }

    /// Takes out the last of the flow that has queued most: what is dropped where too much waits.
    pub fn drop_of_greediest(&mut self) -> Option<T> {
        let greediest = *self.flows.iter().max_by_key(|(_, account)| account.queued_bytes)?.0;
        let place = *self.waiting.iter().rev().find(|(_, wish)| wish.is_queued && wish.flow == greediest)?.0;
        let wish = self.remove(place)?;
        if let Some(account) = self.flows.get_mut(&greediest) {
            account.end = account.end.saturating_sub(wish.bytes);
        }
        Some(wish.what)
    }

    /// Bytes that went without asking; the flow, and then all, wait for them afterwards.
    pub fn charge(&mut self, flow: FlowId, bytes: u64) {
        let account = self.flows.entry(flow).or_default();
        account.end = account.end.max(self.time) + bytes;
        self.credit -= i128::from(bytes) * NS_PER_S as i128;
    }

    /// Bytes that were asked for and did not go.
    pub fn give_back(&mut self, bytes: u64) {
        self.credit = (self.credit + i128::from(bytes) * NS_PER_S as i128).min(self.burst());
    }

    /// Everything that waits, in order: there is no limit any more.
    pub fn drain(&mut self) -> Vec<T> {
        self.flows.clear();
        self.queued_bytes = 0;
        std::mem::take(&mut self.waiting).into_values().map(|wish| wish.what).collect()
    }

    pub fn forget(&mut self, flow: FlowId) {
        self.flows.remove(&flow);
    }

    fn remove(&mut self, place: Place) -> Option<Wish<T>> {
        let wish = self.waiting.remove(&place)?;
        if wish.is_queued {
            self.queued_bytes -= wish.bytes;
            if let Some(account) = self.flows.get_mut(&wish.flow) {
                account.queued_bytes -= wish.bytes;
            }
        }
        Some(wish)
    }

    fn fill(&mut self, now: Mono) {
        let elapsed = now.saturating_since(self.filled_at).as_nanos();
        self.filled_at = self.filled_at.max(now);
        let more = i128::try_from(elapsed * u128::from(self.bytes_per_s)).unwrap_or(i128::MAX);
        self.credit = self.credit.saturating_add(more).min(self.burst());
    }

    fn burst(&self) -> i128 {
        i128::from(per(self.bytes_per_s, BURST).max(BURST_MIN_BYTES)) * NS_PER_S as i128
    }
}

fn per(bytes_per_s: u64, span: Duration) -> u64 {
    u64::try_from(u128::from(bytes_per_s) * span.as_nanos() / NS_PER_S).unwrap_or(u64::MAX)
}
