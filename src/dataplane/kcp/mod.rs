//! The `kcp` transport (dataplane.md §2): many flows in one secured session over UDP, made for loss.
//!
//! Sans-IO up to `driver`: `endpoint` is all sessions of one socket (`noise` handshakes, keys, addresses), `session` is
//! one peer's packets (numbers, acknowledgements, loss), `flow` a byte stream in it, `path` how fast and how much,
//! `size` how large a packet, `fec` parity. Time and randomness are arguments, so the same code runs over simulated links.
//!
//! The repetition machine keeps KCP's ideas (selective repeat, an acknowledgement for each packet, resend when later
//! packets are acknowledged, no slow start on loss) but not the `kcp` crate: its arithmetic panics on hostile sequence
//! numbers, a lost window update stalls a flow for 7 s, it sends a whole window at once with no rate of its own, and
//! each conversation pays 24 bytes a segment and an acknowledgement. Here a packet's number is its nonce, one
//! acknowledgement covers all flows, and a flow waits only for its own bytes.

mod driver;
mod endpoint;
mod fec;
mod flow;
mod frame;
mod held;
mod noise;
mod path;
mod ranges;
mod replay;
mod sent;
mod session;
mod size;
mod stream;
#[cfg(test)]
mod tests;

pub(super) use driver::{Kcp, OpenError};
pub(super) use stream::KcpStream;

use std::time::Duration;

/// The largest UDP payload (dataplane.md §2).
const MTU_BYTES: usize = 1350;
/// What every path carries: IPv6 knows no narrower one than 1280 bytes (RFC 8200 §5), of which 48 are headers.
const NARROW_MTU_BYTES: usize = 1280 - 48;
/// Kind, receiver index, packet number; and the tag behind the ciphertext.
const HEADER_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const SEAL_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Frames of one packet, sealed.
const PAYLOAD_MAX_BYTES: usize = MTU_BYTES - SEAL_BYTES;
/// Frames of a packet that parity may cover: a parity frame carries as much, its length and 12 bytes more.
const SOURCE_MAX_BYTES: usize = PAYLOAD_MAX_BYTES - PARITY_OVERHEAD_BYTES;
const PARITY_OVERHEAD_BYTES: usize = 14;
/// Flows open in one session, lingering ones included; and how far ahead of the oldest unopened flow a new one may be.
const MAX_FLOWS_PER_SESSION: usize = 16_384;
const FLOW_AHEAD_MAX: u64 = 65_536;
/// What the peer of a new flow may send before it hears of a window.
const WINDOW_INITIAL_BYTES: u64 = 256 << 10;
const WINDOW_MAX_BYTES: u64 = 16 << 20;
/// Windows of all flows of a session beyond the initial ones.
const WINDOW_EXTRA_MAX_BYTES: u64 = 128 << 20;
/// Pieces of one flow that wait for an earlier one.
const PIECES_MAX: usize = 16_384;
/// Bytes of one flow that are taken without having been sent: of all flows of a session, and at least of each.
const UNSENT_ALL_BYTES: usize = 32 << 20;
const UNSENT_MAX_BYTES: usize = 256 << 10;
const UNSENT_MIN_BYTES: usize = 16 << 10;
/// Numbers that the receiver tells apart from repeated ones.
const REPLAY_WINDOW: u64 = 8192;
/// Ranges of received numbers kept, and told in one acknowledgement.
const ACK_RANGES_MAX: usize = 256;
const ACK_RANGES_TOLD: usize = 32;
/// An acknowledgement waits this long or for this many packets; a gap is told at once.
const ACK_DELAY: Duration = Duration::from_millis(5);
const ACK_EVERY: u32 = 4;
/// Later packets acknowledged before a packet counts as lost; more where the path reorders.
const FAST_RESEND: u64 = 2;
const FAST_RESEND_MAX: u64 = 512;
const RTO_MIN: Duration = Duration::from_millis(30);
const RTO_MAX: Duration = Duration::from_secs(3);
const RTT_INITIAL: Duration = Duration::from_millis(300);
/// Parity of a group that does not fill waits this long.
const GROUP_DELAY: Duration = Duration::from_millis(10);
/// An initiator without an answer repeats its handshake after this, then after twice as long, up to the maximum.
const HANDSHAKE_RETRY: Duration = Duration::from_secs(1);
const HANDSHAKE_RETRY_MAX: Duration = Duration::from_secs(16);
/// Keys are renewed at this age by the initiator, and not used any more at that (dataplane.md §2).
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// An idle session is probed by its initiator.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Silence after a packet that asks for an answer: the initiator then asks by handshake whether the peer still knows it.
const UNANSWERED: Duration = Duration::from_secs(2);
/// Handshakes that wait for the initiator's first packet: of all, and of one peer; and for how long.
const PENDING_MAX: usize = 1024;
const PENDING_MAX_PER_PEER: usize = 8;
const PENDING_AGE: Duration = Duration::from_secs(10);
/// Diffie-Hellman work for strangers that know our key: handshakes a second, and at once.
const HANDSHAKES_PER_SECOND: u32 = 500;
const HANDSHAKE_BURST: u32 = 1000;
/// Ephemeral keys of handshakes that are not answered a second time.
const EPHEMERALS_MAX: usize = 4096;

/// A payload as the path sees it: sealed, in UDP and IPv4.
const fn datagram_bytes(payload: usize) -> u64 {
    (HEADER_BYTES + payload + TAG_BYTES + 28) as u64
}
