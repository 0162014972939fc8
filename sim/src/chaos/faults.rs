//! The faults of a run: drawn per seed as a list, each with a begin and an end.

use super::errands::Errand;
use crate::{BadNames, StreamFault};
use arctic::{kernel::Fault as KernelFault, model::Rng};
use std::{fmt, iter, time::Duration};

const MINUTE_MS: i64 = 60_000;
/// A write over the slowest healthy links has ended by then.
const WRITE_MAX_MS: u64 = 250;
/// As bad as quartz gets.
const DRIFT_PPM: i64 = 500;
const YEAR_MS: i64 = 365 * 24 * 60 * MINUTE_MS;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Partition {
        one: Vec<String>,
        other: Vec<String>,
    },
    OneWay {
        from: String,
        to: String,
    },
    /// A partition with one host that is on both sides.
    Bridge {
        over: String,
        one: Vec<String>,
        other: Vec<String>,
    },
    /// The links of one host after the other are clogged, and freed in another order.
    Swizzle(Vec<String>),
    Isolate(String),
    Slow {
        one: String,
        other: String,
        latency: Duration,
    },
    /// What is sent waits, and comes all at once.
    Clog {
        one: String,
        other: String,
    },
    Crash(String),
    /// So long after the operator began a write at the host.
    CrashInWrite {
        host: String,
        after: Duration,
    },
    /// The data directory as it was at the begin comes back at the end.
    OldCopy(String),
    /// The database is gone; `peer.key` stays.
    Wipe(String),
    /// Not zero.
    Clock {
        host: String,
        ahead_ms: i64,
    },
    /// A wall clock that goes wrong by so many millionths.
    Drift {
        host: String,
        ppm: i64,
    },
    Names {
        host: String,
        bad: BadNames,
    },
    /// What somebody does at a host, who is no good operator.
    Errand {
        host: String,
        errand: Errand,
    },
    Streams {
        host: String,
        fault: StreamFault,
        count: usize,
    },
    Kernel {
        host: String,
        fault: KernelFault,
    },
    ForeignEdit(String),
    ForeignFlush(String),
    ForeignPolicyFlush(String),
}

/// Every knob by name; a sweep shows that each has turned.
pub const KNOBS: [&str; 36] = [
    "partition",
    "one-way partition",
    "bridge",
    "isolate",
    "slow link",
    "clog",
    "swizzle-clog",
    "crash",
    "crash during write",
    "old copy",
    "wiped database",
    "clock skew",
    "clock back",
    "clock +10 years",
    "clock 1970",
    "clock drift",
    "names unknown",
    "names mislead",
    "bit flip",
    "abandoned lock",
    "wrong license",
    "renewed license",
    "forged token",
    "dead credential",
    "reset mid-body",
    "truncated body",
    "byte drip",
    "half-open",
    "kernel EEXIST",
    "kernel EBUSY",
    "kernel ENOBUFS",
    "kernel EINTR",
    "kernel lost notification",
    "kernel foreign edit",
    "kernel vanished",
    "kernel policy flush",
];

impl Fault {
    fn loses_data(&self) -> bool {
        matches!(self, Self::OldCopy(_) | Self::Wipe(_))
    }

    /// Its knob.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Partition { .. } => "partition",
            Self::OneWay { .. } => "one-way partition",
            Self::Bridge { .. } => "bridge",
            Self::Swizzle(_) => "swizzle-clog",
            Self::Drift { .. } => "clock drift",
            Self::Names { bad: BadNames::Unknown, .. } => "names unknown",
            Self::Names { bad: BadNames::LeadTo(_), .. } => "names mislead",
            Self::Errand { errand, .. } => errand.name(),
            Self::Isolate(_) => "isolate",
            Self::Slow { .. } => "slow link",
            Self::Clog { .. } => "clog",
            Self::Crash(_) => "crash",
            Self::CrashInWrite { .. } => "crash during write",
            Self::OldCopy(_) => "old copy",
            Self::Wipe(_) => "wiped database",
            Self::Clock { ahead_ms, .. } => match *ahead_ms {
                ms if ms > YEAR_MS => "clock +10 years",
                ms if ms < -YEAR_MS => "clock 1970",
                ms if ms < -10 * MINUTE_MS => "clock back",
                _ => "clock skew",
            },
            Self::Streams { fault, .. } => fault.name(),
            Self::Kernel { fault, .. } => match fault {
                KernelFault::Exists => "kernel EEXIST",
                KernelFault::Busy => "kernel EBUSY",
                KernelFault::NoBuffers => "kernel ENOBUFS",
                KernelFault::Interrupted => "kernel EINTR",
                KernelFault::LostNotification => "kernel lost notification",
                KernelFault::ForeignEdit => "kernel foreign edit",
                KernelFault::Vanished => "kernel vanished",
            },
            Self::ForeignEdit(_) => "kernel foreign edit",
            Self::ForeignFlush(_) => "kernel vanished",
            Self::ForeignPolicyFlush(_) => "kernel policy flush",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// After the begin of the chaos phase.
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}s+{:.1}s {:?}", self.at.as_secs_f64(), self.lasts.as_secs_f64(), self.fault)
    }
}

/// What the faults of one seed may touch.
pub(super) struct Ground<'a> {
    pub hosts: &'a [String],
    /// May lose data, once: not the one that leaves, and one at most, so that somebody still has what it lost.
    pub loser: &'a str,
    pub lasts: Duration,
}

/// Each seed draws how likely each kind is, some not at all; then the list, in order of time. One fault more is of the
/// knob whose turn it is, so that few seeds in a row turn every knob.
pub(super) fn draw(seed: u64, ground: &Ground<'_>, rng: &mut Rng) -> Vec<Planned> {
    let kinds: Vec<(u64, Kind)> = Kind::ALL.iter().map(|&kind| (weight(rng), kind)).collect();
    let total = kinds.iter().map(|(weight, _)| weight).sum::<u64>().max(1);
    let count = 4 + rng.below(12);
    let mut list: Vec<Planned> = (0..count)
        .filter_map(|_| {
            let mut ticket = rng.below(total);
            let drawn = kinds.iter().find(|(weight, _)| {
                let found = ticket < *weight;
                ticket = ticket.saturating_sub(*weight);
                found
            });
            drawn.map(|(_, kind)| plan(*kind, ground, rng))
        })
        .collect();
    let in_turn = KNOBS[(seed % KNOBS.len() as u64) as usize];
    list.extend(iter::repeat_with(|| any(ground, rng)).find(|p| p.fault.name() == in_turn));
    if !list.iter().any(|p| p.fault.loses_data()) && rng.below(3) == 0 {
        list.push(data_loss(ground, rng));
    }
    list.sort_by_key(|p| p.at);
    list
}

/// A third of the kinds is off.
fn weight(rng: &mut Rng) -> u64 {
    if rng.below(3) == 0 { 0 } else { 1 + rng.below(9) }
}

#[derive(Clone, Copy)]
enum Kind {
    Partition,
    OneWay,
    Bridge,
    Isolate,
    Slow,
    Clog,
    Swizzle,
    Crash,
    CrashInWrite,
    Clock,
    Drift,
    Names,
    Errand,
    Streams,
    Kernel,
    ForeignHand,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Partition,
        Self::OneWay,
        Self::Bridge,
        Self::Isolate,
        Self::Slow,
        Self::Clog,
        Self::Swizzle,
        Self::Crash,
        Self::CrashInWrite,
        Self::Clock,
        Self::Drift,
        Self::Names,
        Self::Errand,
        Self::Streams,
        Self::Kernel,
        Self::ForeignHand,
    ];
}

fn plan(kind: Kind, ground: &Ground<'_>, rng: &mut Rng) -> Planned {
    let at = Duration::from_millis(rng.below(ground.lasts.as_millis() as u64));
    let lasts = Duration::from_millis(500 + rng.below(45_000));
    let (one, other) = pair(ground.hosts, rng);
    let fault = match kind {
        Kind::Partition => {
            // Neither side is empty.
            let (apart, beyond) = (one, other);
            let (one, other) = ground.hosts.iter().cloned().partition(|host| {
                let is_drawn = rng.below(2) == 0;
                *host == apart || *host != beyond && is_drawn
            });
            Fault::Partition { one, other }
        }
        Kind::OneWay => Fault::OneWay { from: one, to: other },
        Kind::Bridge => {
            // There are three hosts at least, so that neither side is empty.
            let sides = ground.hosts.iter().filter(|host| **host != one).cloned().enumerate();
            let first = rng.below(2) as usize;
            let (left, right): (Vec<_>, Vec<_>) = sides.partition(|(n, _)| n % 2 == first);
            let names = |side: Vec<(usize, String)>| side.into_iter().map(|(_, host)| host).collect();
            Fault::Bridge { over: one, one: names(left), other: names(right) }
        }
        Kind::Swizzle => {
            let mut order = ground.hosts.to_vec();
            (1..order.len()).for_each(|n| order.swap(n, rng.below(n as u64 + 1) as usize));
            order.truncate(2 + rng.below(order.len() as u64 - 1) as usize);
            Fault::Swizzle(order)
        }
        Kind::Drift => Fault::Drift { host: one, ppm: if rng.below(2) == 0 { DRIFT_PPM } else { -DRIFT_PPM } },
        Kind::Names => {
            let bad = if rng.below(2) == 0 { BadNames::Unknown } else { BadNames::LeadTo(other) };
            Fault::Names { host: one, bad }
        }
        Kind::Errand => {
            // Whoever may lose data may lose that somebody was refused.
            let host = if one == ground.loser { other } else { one };
            Fault::Errand { host, errand: Errand::draw(rng) }
        }
        Kind::Isolate => Fault::Isolate(one),
        Kind::Slow => Fault::Slow { one, other, latency: Duration::from_millis(100 + rng.below(1_900)) },
        Kind::Clog => Fault::Clog { one, other },
        Kind::Crash => Fault::Crash(one),
        Kind::CrashInWrite => Fault::CrashInWrite { host: one, after: Duration::from_millis(rng.below(WRITE_MAX_MS)) },
        Kind::Clock => Fault::Clock { host: one, ahead_ms: clock(rng) },
        Kind::Streams => Fault::Streams { host: one, fault: stream_fault(rng), count: 1 + rng.below(20) as usize },
        Kind::Kernel => Fault::Kernel { host: one, fault: kernel_fault(rng) },
        Kind::ForeignHand => match rng.below(3) {
            0 => Fault::ForeignEdit(one),
            1 => Fault::ForeignFlush(one),
            _ => Fault::ForeignPolicyFlush(one),
        },
    };
    Planned { at, lasts, fault }
}

fn any(ground: &Ground<'_>, rng: &mut Rng) -> Planned {
    match Kind::ALL.get(rng.below(Kind::ALL.len() as u64 + 1) as usize) {
        Some(kind) => plan(*kind, ground, rng),
        None => data_loss(ground, rng),
    }
}

fn data_loss(ground: &Ground<'_>, rng: &mut Rng) -> Planned {
    let host = ground.loser.to_owned();
    let fault = if rng.below(2) == 0 { Fault::OldCopy(host) } else { Fault::Wipe(host) };
    let third = ground.lasts.as_millis() as u64 / 3;
    let at = Duration::from_millis(third / 2 + rng.below(third));
    Planned { at, lasts: Duration::from_millis(2_000 + rng.below(third)), fault }
}

fn pair(hosts: &[String], rng: &mut Rng) -> (String, String) {
    let one = rng.below(hosts.len() as u64) as usize;
    let step = 1 + rng.below(hosts.len() as u64 - 1) as usize;
    (hosts[one].clone(), hosts[(one + step) % hosts.len()].clone())
}

fn clock(rng: &mut Rng) -> i64 {
    match rng.below(4) {
        0 => (rng.below(20 * MINUTE_MS as u64) as i64 - 10 * MINUTE_MS) | 1,
        1 => -(3_600_000 + rng.below(86_400_000) as i64),
        2 => 10 * YEAR_MS,
        _ => -60 * YEAR_MS,
    }
}

fn stream_fault(rng: &mut Rng) -> StreamFault {
    let bytes = 1 + rng.below(600) as usize;
    match rng.below(5) {
        0 => StreamFault::ResetAfter(bytes),
        1 => StreamFault::EndAfter(bytes),
        2 => StreamFault::Drip,
        3 => StreamFault::FlipAt(bytes),
        _ => StreamFault::HalfOpen,
    }
}

fn kernel_fault(rng: &mut Rng) -> KernelFault {
    match rng.below(7) {
        0 => KernelFault::Exists,
        1 => KernelFault::Busy,
        2 => KernelFault::NoBuffers,
        3 => KernelFault::Interrupted,
        4 => KernelFault::ForeignEdit,
        5 => KernelFault::LostNotification,
        _ => KernelFault::Vanished,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn as_many_seeds_as_there_are_knobs_turn_every_knob_and_none_loses_data_twice() {
        let hosts = ["n1", "n2", "n3"].map(str::to_owned);
        let ground = Ground { hosts: &hosts, loser: "n2", lasts: Duration::from_secs(120) };
        let lists: Vec<_> = (7..7 + KNOBS.len() as u64)
            .map(|seed| draw(seed, &ground, &mut Rng::from_seed([seed as u8; 32])))
            .collect();
        let drawn: BTreeSet<&str> = lists.iter().flatten().map(|p| p.fault.name()).collect();
        assert_eq!(drawn, BTreeSet::from(KNOBS));
        assert!(lists.iter().all(|list| list.iter().filter(|p| p.fault.loses_data()).count() <= 1));
        assert!(lists.iter().all(|list| list.is_sorted_by_key(|p| p.at)));
        let empty = |p: &Planned| matches!(&p.fault, Fault::Partition { one, other } | Fault::Bridge { one, other, .. } if one.is_empty() || other.is_empty());
        assert!(!lists.iter().flatten().any(empty));
    }
}
