//! Bounds of the engine, each with its unit.

use std::time::Duration;

pub(super) const MAX_FLOWS: usize = 65_536;
/// TLS handshakes in progress, and of them those of one address, so that one stranger cannot hold them all.
pub(super) const MAX_HANDSHAKES: usize = 1024;
pub(super) const MAX_HANDSHAKES_PER_ADDRESS: usize = 512;
/// Connections of one peer that wait for a stream header: its pool, and flows whose header is a packet behind.
pub(super) const MAX_IDLE_PER_PEER: usize = 256;
/// Addresses tried for one connection to a peer.
pub(super) const MAX_DIAL_ADDRESSES: usize = 16;
/// Connections ready per target (dataplane.md §2).
pub(super) const WARM_MIN: usize = 2;
pub(super) const WARM_MAX: usize = 8;
/// Flows of one target that dial a connection of their own at the same time.
pub(super) const MAX_DIALS_PER_TARGET: usize = 256;
/// Bytes of the client that are sent before the exit answers and kept in case the connection was dead. More than a
/// fresh connection's window lets out in one round trip.
pub(super) const HELD_MAX_BYTES: usize = 256 << 10;
/// Bytes under one traffic key (dataplane.md §2).
pub(super) const REKEY_BYTES: u64 = 1 << 36;
/// A death sooner than this counts as a failed dial: in TLS 1.3 a client learns of its refusal only after its handshake.
pub(super) const WARM_PROVEN: Duration = Duration::from_secs(10);
/// Unacknowledged bytes before the exit's reply; it reads at once, so silence means a dead path.
pub(super) const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(250);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Pause of an accept loop without descriptors.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Pauses between starts of the IP tunnel that fail (operations.md §2).
pub(super) const TUNNEL_RETRY_FIRST: Duration = Duration::from_secs(1);
pub(super) const TUNNEL_RETRY_LONGEST: Duration = Duration::from_secs(60);
pub(super) const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The waits; tests shorten them.
#[derive(Debug, Clone)]
pub(super) struct Timing {
    pub handshake: Duration,
    /// From the first byte of a stream header to its last.
    pub header: Duration,
    /// One address of a peer.
    pub peer_connect: Duration,
    /// The exit's wait for the record that a stream rests on, which may be a gossip push behind its first flow.
    pub gossip_lag: Duration,
    /// The exit's dial of the destination.
    pub exit_connect: Duration,
    /// The source's wait for the exit's reply: its dial and the link.
    pub reply: Duration,
    /// A stream without a byte (dataplane.md §1).
    pub idle: Duration,
    /// A ready connection is renewed at this age by its client, and given up by its server a good deal later.
    pub warm: Duration,
    pub unused: Duration,
    /// After a reset: what is on its way may still arrive.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            peer_connect: Duration::from_secs(5),
            gossip_lag: Duration::from_secs(2),
            exit_connect: Duration::from_secs(10),
            reply: Duration::from_secs(20),
            idle: Duration::from_secs(2 * 3600),
            warm: Duration::from_secs(300),
            unused: Duration::from_secs(900),
            drain: Duration::from_secs(5),
        }
    }
}
