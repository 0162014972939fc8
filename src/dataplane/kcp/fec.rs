//! Parity over the payloads of consecutive packets (Reed-Solomon), and how much of it.
//!
//! A shard is a payload's length (two bytes) and the payload, filled with zeros to the longest of its group.

use super::{GROUP_DELAY, SOURCE_MAX_BYTES};
use crate::model::Mono;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use std::collections::BTreeMap;

/// Packets of a group, and parity of a group, at most.
const GROUP_MAX: usize = 20;
const PARITY_MAX: usize = 6;
/// Until this many packets have met their fate the loss is unknown, and parity is the 10+3 of the spec.
const LOSS_KNOWN_AFTER: u64 = 256;
const LOSS_WINDOW: u64 = 128;
/// Below this loss packets go without parity.
const CLEAN: f64 = 0.0005;
/// Where a group loses no more packets than this on average, a single shard rebuilds them all but once in a hundred groups.
const MADE_UP_BY_ONE: f64 = 0.15;
/// Packets behind the newest that may still be rebuilt, and groups that wait for packets.
const KEPT_PACKETS: u64 = 512;
const KEPT_GROUPS: usize = 64;
/// After as many packets without parity the peer sends none, and nothing is kept for it.
const SILENT_AFTER: u64 = 4096;
/// A sender that never used parity is not waited for any longer than this.
const FIRST_KEPT: u64 = 4096;

/// The part of packets that get lost, as the sender learns it from acknowledgements.
pub(super) struct Loss {
    fates: u64,
    window: u64,
    lost: u64,
    part: f64,
}

impl Loss {
    pub fn new() -> Self {
        Self { fates: 0, window: 0, lost: 0, part: 0.03 }
    }

    pub fn record(&mut self, arrived: u64, lost: u64) {
        self.fates += arrived + lost;
        self.window += arrived + lost;
        self.lost += lost;
        if self.window >= LOSS_WINDOW {
            let measured = self.lost as f64 / self.window as f64;
            let first = self.fates < 2 * LOSS_KNOWN_AFTER;
            self.part += (measured - self.part) * if first { 0.5 } else { 0.25 };
            (self.window, self.lost) = (0, 0);
        }
    }

    /// Rebuilt packets arrived, and yet the path lost them.
    pub fn record_recovered(&mut self, count: u64) {
        self.lost += count.min(self.window);
    }

    /// The part that gets lost, as far as known.
    pub fn part(&self) -> f64 {
        if self.fates < LOSS_KNOWN_AFTER { 0.0 } else { self.part }
    }

    fn parity_for(&self, packets: usize) -> usize {
        if self.fates < LOSS_KNOWN_AFTER {
            return (3 * packets).div_ceil(10);
        }
        if self.part < CLEAN {
            return 0;
        }
        let lost = packets as f64 * self.part;
        (1 + (lost - MADE_UP_BY_ONE).ceil().max(0.0) as usize).min(packets).min(PARITY_MAX)
    }
}

/// A shard ready to be sent.
#[derive(Debug)]
pub(super) struct Parity {
    pub base: u64,
    pub data: u8,
    pub count: u8,
    pub index: u8,
    pub shard: Vec<u8>,
}

/// The group being sent.
pub(super) struct Grouping {
    base: u64,
    since: Mono,
    payloads: Vec<Vec<u8>>,
    encoder: Option<ReedSolomonEncoder>,
}

impl Grouping {
    pub fn new() -> Self {
        Self { base: 0, since: Mono::default(), payloads: vec![], encoder: None }
    }

    pub fn is_open(&self) -> bool {
        !self.payloads.is_empty()
    }

    pub fn deadline(&self) -> Option<Mono> {
        self.is_open().then(|| self.since + GROUP_DELAY)
    }

    /// Whether a packet sent now begins or continues a group.
    pub fn wants(&self, loss: &Loss, carries_data: bool) -> bool {
        self.is_open() || (carries_data && loss.parity_for(1) > 0)
    }

    /// Adds a packet; numbers follow each other. Whether the group is full.
    pub fn add(&mut self, now: Mono, number: u64, payload: &[u8]) -> bool {
        if !self.is_open() {
            (self.base, self.since) = (number, now);
        }
        debug_assert!(number == self.base + self.payloads.len() as u64 && payload.len() <= SOURCE_MAX_BYTES);
        self.payloads.push(payload.to_vec());
        self.payloads.len() >= GROUP_MAX
    }

    /// Ends the group: the first number, how many, and their parity.
    pub fn close(&mut self, loss: &Loss) -> (u64, u64, Vec<Parity>) {
        let payloads = std::mem::take(&mut self.payloads);
        let parity = self.encode(&payloads, loss.parity_for(payloads.len())).unwrap_or_default();
        (self.base, payloads.len() as u64, parity)
    }

    fn encode(&mut self, payloads: &[Vec<u8>], count: usize) -> Option<Vec<Parity>> {
        let longest = payloads.iter().map(Vec::len).max()?;
        if count == 0 {
            return None;
        }
        let size = (longest + 2).next_multiple_of(2);
        let encoder = match &mut self.encoder {
            Some(encoder) => {
                encoder.reset(payloads.len(), count, size).ok()?;
                encoder
            }
            none => none.insert(ReedSolomonEncoder::new(payloads.len(), count, size).ok()?),
        };
        for payload in payloads {
            encoder.add_original_shard(shard(payload, size)).ok()?;
        }
        let result = encoder.encode().ok()?;
        let parity = result.recovery_iter().zip(0..).map(|(bytes, index)| Parity {
            base: self.base,
            data: payloads.len() as u8,
            count: count as u8,
            index,
            shard: bytes.to_vec(),
        });
        Some(parity.collect())
    }
}

fn shard(payload: &[u8], size: usize) -> Vec<u8> {
    let mut shard = Vec::with_capacity(size);
    shard.extend((payload.len() as u16).to_be_bytes());
    shard.extend_from_slice(payload);
    shard.resize(size, 0);
    shard
}

fn payload_of(shard: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = shard.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length))).map(<[u8]>::to_vec)
}

struct Group {
    data: u8,
    count: u8,
    shards: BTreeMap<u8, Vec<u8>>,
}

/// The receiver's side: what may still be needed to rebuild a lost packet.
pub(super) struct Rebuilding {
    payloads: BTreeMap<u64, Vec<u8>>,
    groups: BTreeMap<u64, Group>,
    newest: u64,
    newest_parity: u64,
    pub rebuilt: u64,
}

impl Rebuilding {
    pub fn new() -> Self {
        Self { payloads: BTreeMap::new(), groups: BTreeMap::new(), newest: 0, newest_parity: FIRST_KEPT, rebuilt: 0 }
    }

    /// Keeps the payload of a packet that is no parity. Packets it completes a group with: their numbers and payloads.
    pub fn arrived(&mut self, number: u64, payload: &[u8]) -> Vec<(u64, Vec<u8>)> {
        self.newest = self.newest.max(number);
        if self.newest > self.newest_parity + SILENT_AFTER {
            self.payloads.clear();
            self.groups.clear();
            return vec![];
        }
        if number + KEPT_PACKETS > self.newest && payload.len() <= SOURCE_MAX_BYTES {
            self.payloads.insert(number, payload.to_vec());
        }
        while self.payloads.first_key_value().is_some_and(|(n, _)| n + KEPT_PACKETS <= self.newest) {
            self.payloads.pop_first();
        }
        match self.groups.range(..=number).next_back().map(|(base, group)| (*base, group.data)) {
            Some((base, data)) if number < base + u64::from(data) => self.rebuild(base),
            _ => vec![],
        }
    }

    /// Takes a shard of the packet `number`; as above.
    pub fn parity(&mut self, number: u64, parity: Parity) -> Vec<(u64, Vec<u8>)> {
        let Parity { base, data, count, index, shard } = parity;
        let sane = usize::from(data) <= GROUP_MAX && usize::from(count) <= PARITY_MAX && base < number;
        if !sane || base + KEPT_PACKETS <= self.newest || shard.len() > SOURCE_MAX_BYTES + 3 {
            return vec![];
        }
        self.newest_parity = self.newest_parity.max(number);
        let group = self.groups.entry(base).or_insert_with(|| Group { data, count, shards: BTreeMap::new() });
        let fits = group.data == data && group.count == count;
        if fits && group.shards.values().all(|other| other.len() == shard.len()) {
            group.shards.insert(index, shard);
        }
        if self.groups.len() > KEPT_GROUPS {
            self.groups.pop_first();
        }
        self.rebuild(base)
    }

    fn rebuild(&mut self, base: u64) -> Vec<(u64, Vec<u8>)> {
        let Some(group) = self.groups.get(&base) else { return vec![] };
        let numbers = base..base + u64::from(group.data);
        let missing = numbers.clone().filter(|n| !self.payloads.contains_key(n)).count();
        if missing > group.shards.len() {
            return vec![];
        }
        let restored = if missing == 0 { Some(vec![]) } else { restore(group, base, &self.payloads) };
        self.groups.remove(&base);
        let restored = restored.unwrap_or_default();
        self.rebuilt += restored.len() as u64;
        restored
    }
}

fn restore(group: &Group, base: u64, payloads: &BTreeMap<u64, Vec<u8>>) -> Option<Vec<(u64, Vec<u8>)>> {
    let size = group.shards.values().next()?.len();
    let mut decoder = ReedSolomonDecoder::new(group.data.into(), group.count.into(), size).ok()?;
    for (number, payload) in payloads.range(base..base + u64::from(group.data)) {
        if payload.len() + 2 > size {
            return None;
        }
        decoder.add_original_shard((number - base) as usize, shard(payload, size)).ok()?;
    }
    for (index, bytes) in &group.shards {
        decoder.add_recovery_shard((*index).into(), bytes).ok()?;
    }
    let result = decoder.decode().ok()?;
    Some(result.restored_original_iter().filter_map(|(i, bytes)| Some((base + i as u64, payload_of(bytes)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_many_lost_packets_are_rebuilt_as_there_is_parity(
            sizes in proptest::collection::vec(0..SOURCE_MAX_BYTES, 1..GROUP_MAX),
            lost in proptest::collection::btree_set(0..GROUP_MAX, 0..4),
            late: bool,
        ) {
            let payloads: Vec<Vec<u8>> = sizes.iter().zip(1u8..).map(|(n, salt)| vec![salt; *n]).collect();
            let mut grouping = Grouping::new();
            for (number, payload) in (100..).zip(&payloads) {
                grouping.add(Mono::from_ms(1), number, payload);
            }
            let (base, count, parity) = grouping.close(&Loss::new());
            prop_assert_eq!((base, count as usize), (100, payloads.len()));
            let lost: Vec<usize> = lost.into_iter().filter(|i| *i < payloads.len()).take(parity.len()).collect();
            let mut rebuilding = Rebuilding::new();
            let mut restored = vec![];
            let arrivals = (0..payloads.len()).filter(|i| !lost.contains(i));
            let (before, after): (Vec<_>, Vec<_>) = arrivals.partition(|i| !late || i % 2 == 0);
            for i in before {
                restored.extend(rebuilding.arrived(100 + i as u64, &payloads[i]));
            }
            for (shard, number) in parity.into_iter().zip(200..) {
                restored.extend(rebuilding.parity(number, shard));
            }
            for i in after {
                restored.extend(rebuilding.arrived(100 + i as u64, &payloads[i]));
            }
            for i in lost {
                prop_assert!(restored.contains(&(100 + i as u64, payloads[i].clone())), "{} is rebuilt", i);
            }
            prop_assert!(restored.iter().all(|(n, p)| *p == payloads[(n - 100) as usize]), "nothing else comes of it");
        }
    }

    #[test]
    fn parity_follows_the_loss() {
        let mut loss = Loss::new();
        assert_eq!((loss.parity_for(10), loss.parity_for(1)), (3, 1), "10+3 until the loss is known");
        for _ in 0..60 {
            loss.record(128, 0);
        }
        assert_eq!(loss.parity_for(20), 0, "none on a clean path");
        for _ in 0..60 {
            loss.record(125, 3);
        }
        assert_eq!((loss.parity_for(20), loss.parity_for(1)), (2, 1));
        for _ in 0..60 {
            loss.record(64, 64);
        }
        assert_eq!(loss.parity_for(20), PARITY_MAX);
    }
}
