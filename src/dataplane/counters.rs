//! What the engine carried and what it refused, and why; read by metrics and status.

use super::{iptun::TunnelRefusal, limits::REFUSAL_LOG_INTERVAL};
use crate::{
    env::ServiceTraffic,
    model::{PeerId, ServiceId},
    routing::Forwarding,
    wire::stream::StreamRefusal,
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::time::Instant;

/// Why a captured flow, a connection of another engine, or a stream was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The intercept listener was dialled directly.
    NotCaptured,
    /// No route covers the captured flow any more.
    NoRoute,
    /// The target is not a trusted peer.
    UnknownTarget,
    /// The service asks for a transport that this engine does not have; it is not carried over another one.
    TransportUnavailable,
    /// This engine is at its limit of flows, handshakes or idle connections.
    Busy,
    /// The target could not be connected, or proved another key.
    TargetUnreachable,
    /// The connection to the target ended before the exit answered.
    NoReply,
    /// A peer broke the protocol of streams.
    Protocol,
    /// A handshake of TLS or Noise failed: unknown key, or another protocol.
    Handshake,
    /// The exit said no: counted at the source and at the exit.
    Exit(StreamRefusal),
    /// A packet of the IP tunnel.
    Tunnel(TunnelRefusal),
}

const OWN: [Refusal; 9] = [
    Refusal::NotCaptured,
    Refusal::NoRoute,
    Refusal::UnknownTarget,
    Refusal::TransportUnavailable,
    Refusal::Busy,
    Refusal::TargetUnreachable,
    Refusal::NoReply,
    Refusal::Protocol,
    Refusal::Handshake,
];
const OF_STREAMS: usize = OWN.len() + StreamRefusal::ALL.len();
const REFUSALS: usize = OF_STREAMS + TunnelRefusal::ALL.len();

impl Refusal {
    fn all() -> impl Iterator<Item = Self> {
        let of_streams = OWN.into_iter().chain(StreamRefusal::ALL.into_iter().map(Self::Exit));
        of_streams.chain(TunnelRefusal::ALL.into_iter().map(Self::Tunnel))
    }

    fn index(self) -> usize {
        match self {
            Self::Exit(refusal) => OWN.len() + refusal as usize - 1,
            Self::Tunnel(refusal) => OF_STREAMS + refusal as usize,
            own => OWN.iter().position(|o| *o == own).unwrap_or(0),
        }
    }

    /// The word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotCaptured => "not_captured",
            Self::NoRoute => "no_route",
            Self::UnknownTarget => "unknown_target",
            Self::TransportUnavailable => "transport_unavailable",
            Self::Busy => "busy",
            Self::TargetUnreachable => "target_unreachable",
            Self::NoReply => "no_reply",
            Self::Protocol => "protocol",
            Self::Handshake => "handshake",
            Self::Tunnel(refusal) => refusal.label(),
            Self::Exit(StreamRefusal::UnknownService) => "exit_unknown_service",
            Self::Exit(StreamRefusal::NotTheSource) => "exit_not_the_source",
            Self::Exit(StreamRefusal::OutsideRoutes) => "exit_outside_routes",
            Self::Exit(StreamRefusal::ForbiddenDestination) => "exit_forbidden_destination",
            Self::Exit(StreamRefusal::ConnectionRefused) => "exit_connection_refused",
            Self::Exit(StreamRefusal::ConnectionTimedOut) => "exit_connection_timed_out",
            Self::Exit(StreamRefusal::Unreachable) => "exit_unreachable",
            Self::Exit(StreamRefusal::TransparentUnavailable) => "exit_transparent_unavailable",
            Self::Exit(StreamRefusal::Busy) => "exit_busy",
            Self::Exit(StreamRefusal::BadHeader) => "exit_bad_header",
            Self::Exit(StreamRefusal::ForbiddenSource) => "exit_forbidden_source",
            Self::Exit(StreamRefusal::Loop) => "exit_loop",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotCaptured => "connection was not captured but dialled directly",
            Self::NoRoute => "no route covers the flow",
            Self::UnknownTarget => "target is not a trusted peer",
            Self::TransportUnavailable => "transport not available",
            Self::Busy => "limit of concurrent connections reached",
            Self::TargetUnreachable => "target peer could not be connected",
            Self::NoReply => "connection to the target ended before it answered",
            Self::Protocol => "peer broke the stream protocol",
            Self::Handshake => "handshake failed",
            Self::Exit(refusal) => return refusal.fmt(f),
            Self::Tunnel(refusal) => refusal.text(),
        })
    }
}

/// Counts of refusals, and when each reason was logged last: a flood writes one line of a reason a minute.
struct Refusals {
    counts: [AtomicU64; REFUSALS],
    logged: Mutex<BTreeMap<Refusal, Instant>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), logged: Mutex::default() }
    }
}

impl Refusals {
    /// Counts one; whether it is to be logged.
    fn add(&self, refusal: Refusal, now: Instant) -> bool {
        self.counts[refusal.index()].fetch_add(1, Relaxed);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let due = logged.get(&refusal).is_none_or(|last| now - *last >= REFUSAL_LOG_INTERVAL);
        if due {
            logged.insert(refusal, now);
        }
        due
    }

    fn snapshot(&self) -> BTreeMap<Refusal, u64> {
        Refusal::all().map(|r| (r, self.counts[r.index()].load(Relaxed))).filter(|(_, n)| *n > 0).collect()
    }
}

/// Of one service, as seen by this peer as its source or its target. Bytes are payload.
#[derive(Default)]
pub struct ServiceCounters {
    pub(super) bytes_to_target: AtomicU64,
    pub(super) bytes_to_source: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) active: AtomicU64,
    pub(super) tunnel_packets: AtomicU64,
    refused: Refusals,
}

/// A copy of [`ServiceCounters`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    pub bytes_to_target: u64,
    pub bytes_to_source: u64,
    /// Streams opened since the start, and those open now.
    pub opened: u64,
    pub active: u64,
    /// Packets that the IP tunnel carried, both ways.
    pub tunnel_packets: u64,
    pub refused: BTreeMap<Refusal, u64>,
}

impl From<ServiceCounts> for ServiceTraffic {
    fn from(counts: ServiceCounts) -> Self {
        let is_of_tunnel = |refusal: &Refusal| matches!(refusal, Refusal::Tunnel(_));
        let (tunnel_drops, refused): (BTreeMap<_, _>, BTreeMap<_, _>) =
            counts.refused.into_iter().partition(|(refusal, _)| is_of_tunnel(refusal));
        let labelled = |all: BTreeMap<Refusal, u64>| all.into_iter().map(|(r, n)| (r.label(), n)).collect();
        Self {
            bytes_to_target: counts.bytes_to_target,
            bytes_to_source: counts.bytes_to_source,
            opened: counts.opened,
            active: counts.active,
            tunnel_packets: counts.tunnel_packets,
            tunnel_drops: labelled(tunnel_drops),
            refused: labelled(refused),
        }
    }
}

/// Of the engine.
#[derive(Default)]
pub struct Counters {
    services: Mutex<BTreeMap<ServiceId, Arc<ServiceCounters>>>,
    /// Refusals that belong to no known service.
    other: Refusals,
    pub(super) handshakes: AtomicU64,
    pub(super) warm_taken: AtomicU64,
    pub(super) dialled_for_flow: AtomicU64,
    pub(super) retried: AtomicU64,
}

/// A copy of what [`Counters`] holds besides services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// TLS handshakes of other engines completed here.
    pub handshakes: u64,
    /// Flows that found a connection ready, and flows that had to dial one.
    pub warm_taken: u64,
    pub dialled_for_flow: u64,
    /// Flows put on a fresh connection because the ready one was dead.
    pub retried: u64,
    pub refused: BTreeMap<Refusal, u64>,
}

impl Counters {
    pub fn services(&self) -> BTreeMap<ServiceId, ServiceCounts> {
        self.lock().iter().map(|(id, c)| (*id, c.snapshot())).collect()
    }

    pub fn engine(&self) -> EngineCounts {
        EngineCounts {
            handshakes: self.handshakes.load(Relaxed),
            warm_taken: self.warm_taken.load(Relaxed),
            dialled_for_flow: self.dialled_for_flow.load(Relaxed),
            retried: self.retried.load(Relaxed),
            refused: self.other.snapshot(),
        }
    }

    /// Call only with ids of known services: the map is bounded by them.
    pub(super) fn service(&self, id: ServiceId) -> Arc<ServiceCounters> {
        self.lock().entry(id).or_default().clone()
    }

    /// Forgets services that are gone and carry nothing.
    pub(super) fn prune(&self, forwarding: &Forwarding) {
        self.lock().retain(|id, c| forwarding.services.contains_key(id) || Arc::strong_count(c) > 1);
    }

    pub(super) fn refuse(&self, refusal: Refusal, detail: fmt::Arguments<'_>) {
        if self.other.add(refusal, Instant::now()) {
            tracing::warn!(reason = refusal.label(), "refused: {refusal}: {detail}");
        }
    }

    pub(super) fn refuse_service(&self, id: ServiceId, peer: PeerId, refusal: Refusal, detail: fmt::Arguments<'_>) {
        if self.service(id).refused.add(refusal, Instant::now()) {
            tracing::warn!(service = %id, peer = %peer, reason = refusal.label(), "flow refused: {refusal}: {detail}");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceId, Arc<ServiceCounters>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceCounters {
    fn snapshot(&self) -> ServiceCounts {
        ServiceCounts {
            bytes_to_target: self.bytes_to_target.load(Relaxed),
            bytes_to_source: self.bytes_to_source.load(Relaxed),
            opened: self.opened.load(Relaxed),
            active: self.active.load(Relaxed),
            tunnel_packets: self.tunnel_packets.load(Relaxed),
            refused: self.refused.snapshot(),
        }
    }

    /// Counts a stream as open until dropped.
    pub(super) fn open(self: &Arc<Self>) -> OpenStream {
        self.opened.fetch_add(1, Relaxed);
        self.active.fetch_add(1, Relaxed);
        OpenStream(self.clone())
    }
}

pub(super) struct OpenStream(Arc<ServiceCounters>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_refusal_has_its_own_count_and_label() {
        let all: Vec<_> = Refusal::all().collect();
        assert_eq!(all.iter().map(|r| r.index()).collect::<Vec<_>>(), (0..REFUSALS).collect::<Vec<_>>());
        assert_eq!(all.iter().map(|r| r.label()).collect::<BTreeSet<_>>().len(), REFUSALS);
    }

    #[test]
    fn a_repeated_refusal_is_logged_once_a_minute() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert!(refusals.add(Refusal::Busy, start));
        assert!(!refusals.add(Refusal::Busy, start));
        assert!(refusals.add(Refusal::NoRoute, start));
        assert!(!refusals.add(Refusal::NoRoute, start));
        assert!(!refusals.add(Refusal::Busy, start));
        assert!(refusals.add(Refusal::NoRoute, start + REFUSAL_LOG_INTERVAL));
        assert_eq!(refusals.snapshot(), BTreeMap::from([(Refusal::NoRoute, 3), (Refusal::Busy, 3)]));
    }
}
