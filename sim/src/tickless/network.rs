//! Links between nodes: who reaches whom, how late, how damaged.

use super::faults::Kind;
use arctic::model::{Endpoint, Mono, Rng};
use std::{collections::BTreeMap, time::Duration};

/// Of a message over a link without faults.
const BASE_LATENCY_MAX_MS: u64 = 40;
/// One in so many delayed messages takes ten times as long.
const HEAVY_TAIL_ONE_IN: u64 = 16;
/// Each layer of IP, TCP and HTTP headers around a body.
pub const HEADERS_BYTES: usize = 400;

/// A set of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    All,
    /// One bit a node; nodes from 64 on are not in it.
    Mask(u64),
    Not(u64),
    Below(usize),
    From(usize),
}

impl Nodes {
    pub fn one(node: usize) -> Self {
        if node < 64 { Nodes::Mask(1 << node) } else { Nodes::Mask(0) }
    }

    pub fn contains(self, node: usize) -> bool {
        let bit = |mask: u64| node < 64 && mask & (1 << node) != 0;
        match self {
            Nodes::All => true,
            Nodes::Mask(mask) => bit(mask),
            Nodes::Not(mask) => !bit(mask),
            Nodes::Below(end) => node < end,
            Nodes::From(start) => node >= start,
        }
    }
}

/// What one active fault does to messages from some nodes to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Of the fault that made it.
    pub id: u64,
    pub kind: Kind,
    pub from: Nodes,
    pub to: Nodes,
    pub amount: u64,
    /// When a clogged link is freed.
    pub until: Mono,
}

/// What becomes of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    pub delay: Duration,
    pub damage: Option<Damage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    Truncated(u64),
    Flipped(u64),
    /// The other side hears of it, the sender only that the connection is gone.
    Reset,
}

impl Damage {
    /// The bytes as they arrive.
    pub fn apply(self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Damage::Truncated(at) => bytes.truncate((at % bytes.len() as u64) as usize),
            Damage::Flipped(bit) => {
                let bit = bit % (bytes.len() as u64 * 8);
                bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
            Damage::Reset => {}
        }
    }
}

/// A request or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    Request,
    Answer,
}

#[derive(Debug, Default)]
pub struct Network {
    pub rules: Vec<Rule>,
    hosts: BTreeMap<String, usize>,
    /// Hosts that lead nowhere, or elsewhere, with the fault that did it.
    astray: BTreeMap<String, (u64, Kind, Option<usize>)>,
    /// How often each kind had an effect.
    pub fired: BTreeMap<Kind, u64>,
    pub carried_bytes: u64,
    pub carried: u64,
}

impl Network {
    pub fn name_host(&mut self, host: &str, node: usize) {
        self.hosts.insert(host.to_owned(), node);
    }

    pub fn lead_astray(&mut self, host: &str, fault: u64, kind: Kind, to: Option<usize>) {
        self.astray.insert(host.to_owned(), (fault, kind, to));
    }

    pub fn end(&mut self, fault: u64) {
        self.rules.retain(|rule| rule.id != fault);
        self.astray.retain(|_, (by, ..)| *by != fault);
    }

    pub fn fire(&mut self, kind: Kind) {
        *self.fired.entry(kind).or_default() += 1;
    }

    /// The node that an endpoint leads to while no fault lasts.
    pub fn leads_to(&self, endpoint: &Endpoint) -> Option<usize> {
        self.hosts.get(endpoint.host()).copied()
    }

    /// The node that an endpoint leads to now.
    pub fn resolve(&mut self, endpoint: &Endpoint) -> Option<usize> {
        if let Some((_, kind, to)) = self.astray.get(endpoint.host()).copied() {
            self.fire(kind);
            return to;
        }
        self.hosts.get(endpoint.host()).copied()
    }

    /// Whether nothing at all passes from one node to the other.
    pub fn is_cut(&mut self, from: usize, to: usize) -> bool {
        let is_wall = |kind| matches!(kind, Kind::Partition | Kind::OneWay | Kind::Isolate | Kind::Bridge);
        let wall = self.rules.iter().find(|r| is_wall(r.kind) && r.from.contains(from) && r.to.contains(to));
        let Some(kind) = wall.map(|rule| rule.kind) else { return false };
        self.fire(kind);
        true
    }

    /// The copies of a message that arrive, if any.
    pub fn carry(
        &mut self,
        rng: &mut Rng,
        now: Mono,
        (from, to): (usize, usize),
        leg: Leg,
        bytes: usize,
    ) -> [Option<Copy>; 2] {
        self.carried += 1;
        self.carried_bytes += (bytes + HEADERS_BYTES) as u64;
        let mut copy = Copy { delay: Duration::from_micros(200 + rng.below(BASE_LATENCY_MAX_MS * 1000)), damage: None };
        if self.rules.is_empty() {
            return [Some(copy), None];
        }
        if self.is_cut(from, to) {
            return [None, None];
        }
        let mut twice = false;
        let mut fired: [Option<Kind>; 4] = [None; 4];
        let mut count = 0;
        for rule in self.rules.iter().filter(|r| r.from.contains(from) && r.to.contains(to)) {
            let by_chance = |rng: &mut Rng| rng.below(100) < rule.amount;
            let hit = match rule.kind {
                Kind::Loss if by_chance(rng) => return self.lost(Kind::Loss),
                Kind::Mtu if bytes as u64 > rule.amount => return self.lost(Kind::Mtu),
                Kind::HalfOpen if leg == Leg::Answer => return self.lost(Kind::HalfOpen),
                Kind::Latency => {
                    let tail = if rng.below(HEAVY_TAIL_ONE_IN) == 0 { 10 } else { 1 };
                    copy.delay += Duration::from_millis(rng.below(rule.amount + 1) * tail);
                    true
                }
                Kind::Reorder => {
                    copy.delay += Duration::from_millis(if rng.below(2) == 0 { 0 } else { rng.below(3000) });
                    true
                }
                Kind::Duplicate if leg == Leg::Request && by_chance(rng) => {
                    twice = true;
                    true
                }
                Kind::Clog | Kind::Swizzle => {
                    copy.delay += rule.until - now;
                    true
                }
                Kind::Drip if leg == Leg::Answer => {
                    copy.delay += Duration::from_secs(8);
                    true
                }
                Kind::Truncate if by_chance(rng) => {
                    copy.damage = Some(Damage::Truncated(rng.u64()));
                    true
                }
                Kind::BitFlip if by_chance(rng) => {
                    copy.damage = Some(Damage::Flipped(rng.u64()));
                    true
                }
                Kind::Reset if leg == Leg::Answer && by_chance(rng) => {
                    copy.damage = Some(Damage::Reset);
                    true
                }
                _ => false,
            };
            if hit && count < fired.len() {
                fired[count] = Some(rule.kind);
                count += 1;
            }
        }
        fired.into_iter().flatten().for_each(|kind| self.fire(kind));
        let again = twice.then(|| Copy { delay: copy.delay + Duration::from_millis(rng.below(5000)), ..copy });
        [Some(copy), again]
    }

    fn lost(&mut self, kind: Kind) -> [Option<Copy>; 2] {
        self.fire(kind);
        [None, None]
    }
}
