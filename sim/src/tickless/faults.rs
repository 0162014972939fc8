//! The fault kinds of simulation.md §3, and the list of timed faults that a seed draws: a list, so that it can be cut.

use arctic::model::{Mono, Rng};
use std::{fmt, time::Duration};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $name:literal;)*) => {
        /// A kind of fault, with its number in simulation.md §3.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind = $number,)*
        }

        impl Kind {
            /// Those that mean something without sockets, tasks and pages. A torn write, 38, is a lost tail to whoever reads
            /// a log by its checksums: it is left to a real disk.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// `amount` per cent of messages vanish.
    Loss = 1, "loss";
    /// Up to `amount` ms, with a heavy tail.
    Latency = 2, "latency";
    Reorder = 3, "reorder";
    /// `amount` per cent of messages come twice.
    Duplicate = 4, "duplicate";
    /// The nodes of the mask `amount` are cut off from the others.
    Partition = 5, "partition";
    /// Nothing travels from the nodes of the mask to the others.
    OneWay = 6, "one-way";
    Isolate = 7, "isolate";
    /// Two halves of which only `node` sees both.
    Bridge = 8, "bridge";
    /// What goes to `node` waits and then comes at once.
    Clog = 9, "clog";
    /// One node after the other is clogged, and freed in another order.
    Swizzle = 10, "swizzle-clog";
    /// The connection is reset after the request was read.
    Reset = 11, "reset";
    /// Requests are read, answers never come.
    HalfOpen = 12, "half-open";
    /// Answers come byte by byte, too late.
    Drip = 13, "byte-drip";
    Truncate = 14, "truncate";
    BitFlip = 15, "bit-flip";
    /// Messages above `amount` bytes vanish.
    Mtu = 16, "mtu";
    /// The first address of `node` is nobody's.
    AddressChange = 17, "address-change";
    /// `node` is seen at an address that leads nowhere.
    NatRebind = 18, "nat-rebind";
    /// Names resolve to nothing, or to another node.
    BadDns = 19, "bad-dns";
    Crash = 20, "crash";
    CrashInWrite = 21, "crash-in-write";
    OldSnapshot = 22, "old-snapshot";
    WipedDatabase = 23, "wiped-database";
    ClonedDisk = 24, "cloned-disk";
    Pause = 25, "pause";
    /// Everything takes `amount` times as long.
    SlowCpu = 26, "slow-cpu";
    /// `node` says that it is another version.
    Minor = 27, "minor";
    /// The task of one call dies.
    Panic = 28, "panic";
    /// Requests are refused because too many wait.
    FullQueue = 29, "full-queue";
    Skew = 30, "skew";
    Back = 31, "clock-back";
    Forward = 32, "clock-forward";
    Boot1970 = 33, "boot-1970";
    Drift = 34, "drift";
    /// Every write fails while it lasts.
    NoSpace = 35, "enospc";
    /// `amount` per cent of writes fail; half of these may be on the disk all the same, and come back with a power cut.
    Eio = 36, "eio";
    /// Power goes before a write is synced: what was acknowledged stays.
    LostTail = 37, "lost-tail";
    /// The next start finds the database damaged and sets it aside.
    FlippedPage = 39, "flipped-page";
    Hostile = 40, "hostile";
}

/// One fault: from `at` on, for as long as `lasts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub at: Mono,
    pub lasts: Duration,
    pub kind: Kind,
    pub node: usize,
    /// A percentage, milliseconds, bytes, a factor or a mask of nodes, by kind.
    pub amount: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.since_start().as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:.1}s+{lasts:.1}s {} n{}", self.kind.name(), self.node + 1)?;
        match self.kind {
            Kind::Partition | Kind::OneWay | Kind::Bridge => write!(f, " {{{}}}", names(self.amount)),
            _ => write!(f, " {}", self.amount),
        }
    }
}

/// `n1,n3` of a mask.
pub fn names(mask: u64) -> String {
    let of = (0..64).filter(|n| mask & (1 << n) != 0).map(|n| format!("n{}", n + 1));
    of.collect::<Vec<_>>().join(",")
}

/// The weight of each kind in one seed: most are absent, some are frequent.
pub fn draw_weights(rng: &mut Rng) -> Vec<(Kind, u64)> {
    let weight = |rng: &mut Rng| match rng.below(10) {
        0..5 => 0,
        5..8 => 1,
        8 => 3,
        _ => 8,
    };
    Kind::ALL.iter().map(|kind| (*kind, weight(rng))).collect()
}

/// Draws the faults of one seed, in order of time: `count` of them between `from` and `until`.
pub fn draw(rng: &mut Rng, nodes: usize, count: usize, from: Mono, until: Mono) -> Vec<Fault> {
    let weights = draw_weights(rng);
    let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let span_ms = (until - from).as_millis() as u64;
    let mut faults = Vec::new();
    for _ in 0..count {
        let mut ticket = rng.below(total);
        let chosen = weights.iter().find(|(_, weight)| {
            let hit = ticket < *weight;
            ticket = ticket.saturating_sub(*weight);
            hit
        });
        let Some((kind, _)) = chosen else { continue };
        let at = from + Duration::from_millis(rng.below(span_ms));
        let lasts = Duration::from_millis(500 + rng.below(30_000)).min(until - at);
        let node = rng.below(nodes as u64) as usize;
        faults.push(Fault { at, lasts, kind: *kind, node, amount: draw_amount(rng, *kind, nodes) });
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn draw_amount(rng: &mut Rng, kind: Kind, nodes: usize) -> u64 {
    match kind {
        Kind::Loss => 1 + rng.below(30),
        Kind::Latency => 50 + rng.below(1950),
        Kind::Duplicate => 1 + rng.below(50),
        Kind::Partition | Kind::OneWay | Kind::Bridge => 1 + rng.below((1 << nodes.min(63)) - 1),
        Kind::Mtu => 600 + rng.below(3000),
        Kind::SlowCpu => 10 + rng.below(91),
        Kind::Truncate | Kind::BitFlip | Kind::Reset | Kind::Panic => 5 + rng.below(30),
        Kind::Eio | Kind::LostTail => 10 + rng.below(91),
        // Seconds, either way.
        Kind::Skew => 1 + rng.below(1200),
        Kind::Back => 60 + rng.below(30 * 24 * 3600),
        Kind::Drift => 500,
        Kind::Hostile => rng.below(6),
        _ => rng.below(1000),
    }
}
