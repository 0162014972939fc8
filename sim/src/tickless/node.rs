//! One simulated agent: what survives it, and what a running process holds.

use super::{
    ledger::{Disk, Fate, State},
    message::Message,
    world::Work,
};
use arctic::{
    gossip::{Event, Gossip},
    handshake::{Initiator, PendingReverse, Responder, ReverseAnswer},
    kernel::{FakeKernel, Intercept, MarkMask, Ruleset},
    license::{EffectiveClock, Entitlement, LicenseDocument},
    membership::{Attempts, Author},
    model::{Endpoint, Mono, PeerId, Rng, UnixTime},
    reconcile::Marks,
    wire::{gossip::Op, nonces::NonceMemory},
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

const PPM: u128 = 1_000_000;
const EIO: &str = "input/output error";
/// The wall clock of a world at its start.
pub const EPOCH: UnixTime = UnixTime::from_secs(1_900_000_000);

/// The clocks of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostClock {
    /// Added to the true wall time, in ms.
    pub skew_ms: i64,
    /// The monotonic clock gains so many millionths.
    pub drift_ppm: u32,
    /// World time of the start of the process.
    pub booted: Mono,
}

impl HostClock {
    /// The monotonic clock of the process.
    pub fn mono(&self, now: Mono) -> Mono {
        let elapsed = (now - self.booted).as_nanos();
        let local = elapsed * (PPM + u128::from(self.drift_ppm)) / PPM;
        Mono::from_duration(Duration::from_nanos(u64::try_from(local).unwrap_or(u64::MAX)))
    }

    /// The first world time at which the process reads `local` or later.
    pub fn world(&self, local: Mono) -> Mono {
        let nanos = local.since_start().as_nanos() * PPM;
        let elapsed = nanos.div_ceil(PPM + u128::from(self.drift_ppm));
        self.booted + Duration::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    pub fn unix(&self, now: Mono) -> UnixTime {
        let true_ms = EPOCH.as_ms() + now.since_start().as_millis() as u64;
        UnixTime::from_ms(true_ms.saturating_add_signed(self.skew_ms))
    }
}

/// How the disk of a node misbehaves while a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskFault {
    pub no_space_percent: u64,
    pub eio_percent: u64,
    pub tail_percent: u64,
    pub die_at_next_write: bool,
}

/// What a hostile member does; each bit of [`super::faults::Fault::amount`] by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hostility {
    Equivocates,
    Withholds,
    Replays,
    Oversizes,
    Forges,
    ForeignCustomer,
}

impl Hostility {
    pub const ALL: [Hostility; 6] = [
        Hostility::Equivocates,
        Hostility::Withholds,
        Hostility::Replays,
        Hostility::Oversizes,
        Hostility::Forges,
        Hostility::ForeignCustomer,
    ];
}

pub struct Node {
    pub index: usize,
    /// `peer.key`.
    pub author: Author,
    pub customer: u8,
    pub endpoints: Vec<Endpoint>,
    pub address: IpAddr,
    pub license: Arc<LicenseDocument>,
    pub disk: Disk,
    pub disk_fault: DiskFault,
    pub clock: HostClock,
    pub process: Option<Process>,
    /// Counts starts of a process, of whatever disk.
    pub boots: u64,
    pub paused_until: Mono,
    /// Restarts planned for a node that is down.
    pub restart_at: Option<Mono>,
    pub slow_factor: u64,
    pub queue_full_percent: u64,
    pub panic_percent: u64,
    pub other_version: Option<String>,
    pub hidden_source: Option<IpAddr>,
    pub snapshot: Option<State>,
    /// What a peer last said when it refused a request.
    pub last_refusal: Option<String>,
    pub hostile: Option<Hostility>,
    /// The node runs on a copy of the disk of another one.
    pub is_clone_of: Option<usize>,
    pub kernel: FakeKernel,
    pub applied: Option<Ruleset>,
    pub marks: Marks,
    pub rng: Rng,
}

/// What a crash ends.
pub struct Process {
    pub boot: u64,
    pub rng: Rng,
    pub instance: String,
    pub responder: Responder,
    pub nonces: NonceMemory,
    pub calls: BTreeMap<u64, Pending>,
    pub handshakes: BTreeMap<u64, Handshake>,
    pub reverses: BTreeMap<u64, Reverse>,
    pub member: Option<Member>,
    pub wake_at: Option<Mono>,
    pub reached: BTreeMap<PeerId, (Endpoint, Mono)>,
    /// Endpoints of peers as of one revision of the disk.
    pub known: BTreeMap<PeerId, Vec<Endpoint>>,
    pub known_at: u64,
}

/// What there is from bootstrap on.
pub struct Member {
    pub gossip: Gossip,
    pub attempts: Attempts,
    pub license: Arc<LicenseDocument>,
    pub license_clock: EffectiveClock,
    pub entitlement: Entitlement,
    /// What the machine decided and the disk does not have yet.
    pub uncommitted: Option<Event>,
    pub retry_at: Option<Mono>,
    /// When own vouchers are looked at again.
    pub vouchers_due: Mono,
    pub revision: u64,
    pub reconciled_revision: Option<(u64, bool)>,
}

/// A call that is out.
pub struct Pending {
    pub purpose: Purpose,
    pub current: Endpoint,
    pub rest: VecDeque<Endpoint>,
    pub message: Arc<Message>,
    pub answer_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Gossip {
        to: PeerId,
        op: Op,
    },
    Handshake {
        id: u64,
    },
    Reverse {
        id: u64,
    },
    /// Nobody waits for the answer.
    Farewell,
}

pub struct Handshake {
    pub machine: Initiator,
    pub rng: Rng,
    pub why: Why,
    pub request: Option<arctic::handshake::Request>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Of the agent's own accord.
    Join(PeerId),
    /// The operator asked, by this piece of work.
    Add(Work),
}

/// A call back that a responder makes before it answers step 2.
pub struct Reverse {
    pub pending: PendingReverse,
    pub next: usize,
    pub answer: ReverseAnswer,
    pub reply_to: ReplyTo,
    pub ends: Mono,
}

/// Whoever waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    pub call: u64,
    pub node: usize,
    pub boot: u64,
}

impl Node {
    pub fn name(&self) -> String {
        format!("n{}", self.index + 1)
    }

    pub fn id(&self) -> PeerId {
        self.author.peer_id
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Of the running process; empty while there is none.
    pub fn instance(&self) -> String {
        self.process.as_ref().map(|p| p.instance.clone()).unwrap_or_default()
    }

    pub fn member(&self) -> Option<&Member> {
        self.process.as_ref()?.member.as_ref()
    }

    pub fn member_mut(&mut self) -> Option<&mut Member> {
        self.process.as_mut()?.member.as_mut()
    }

    /// What the disk does with the next transaction.
    pub fn next_fate(&mut self) -> Fate {
        let fault = self.disk_fault;
        if fault == DiskFault::default() {
            return Fate::Synced;
        }
        if fault.die_at_next_write {
            self.disk_fault.die_at_next_write = false;
            return if self.rng.below(2) == 0 { Fate::DiesBefore } else { Fate::DiesAfter };
        }
        let ticket = self.rng.below(100);
        let mut bound = 0;
        let mut within = |percent: u64| {
            bound += percent;
            ticket < bound
        };
        if within(fault.no_space_percent) {
            Fate::Fails("no space left on device")
        } else if within(fault.eio_percent) {
            if self.rng.below(2) == 0 { Fate::Fails(EIO) } else { Fate::FailsUnsurely(EIO) }
        } else if within(fault.tail_percent) {
            Fate::DiesBefore
        } else {
            Fate::Synced
        }
    }

    /// Where captured connections go on every simulated host.
    pub fn intercept() -> Intercept {
        Intercept {
            v4: Some(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 40001)),
            v6: Some(std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, 40001, 0, 0)),
        }
    }

    pub fn mask() -> MarkMask {
        MarkMask::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_met_too_early_whatever_the_clock_drifts() {
        for drift_ppm in [0, 1, 500, 333_333] {
            let clock = HostClock { skew_ms: 0, drift_ppm, booted: Mono::from_ms(1234) };
            for ns in [0, 1, 7, 999_999_999, 10_000_000_001_u64] {
                let due = Mono::from_duration(Duration::from_nanos(ns));
                let at = clock.world(due);
                assert!(clock.mono(at) >= due, "{drift_ppm} {ns}");
            }
        }
    }
}
