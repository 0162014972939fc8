//! What a stream between two engines can do, whatever carries it.

use super::session::{Received, Session};
use crate::os::sockets;
use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::Interest;

/// Sent ahead of a reader that reads at a rate: two round trips of it, so that it never waits, and some turns.
const AHEAD_ROUND_TRIPS: u32 = 2;
const AHEAD_MIN_BYTES: usize = 64 << 10;
/// Where the kernel has not seen a round trip yet.
const AHEAD_UNKNOWN: Duration = Duration::from_millis(100);

fn ahead_bytes(bytes_per_s: u64, round_trip: Duration) -> usize {
    let bytes = bytes_per_s as f64 * (round_trip * AHEAD_ROUND_TRIPS).as_secs_f64();
    (AHEAD_MIN_BYTES + bytes as usize).min(sockets::WAN_BUFFER_BYTES)
}

/// One stream to another engine, driven by polls from one task. Dropped before its end, it is reset.
pub(super) trait Carrier: Send {
    /// Appends what arrived to `out`, reading by way of `raw`. Ready with `Bytes` only if some came.
    fn poll_receive(&mut self, cx: &mut Context<'_>, raw: &mut [u8], out: &mut Vec<u8>) -> Poll<io::Result<Received>>;
    /// Takes some of `data`; what does not leave at once leaves later.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    /// Ready when more would be taken.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the own direction in order, behind everything sent.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the own direction as cut, behind everything sent.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Whether the other end has all that was sent, the end included.
    fn is_delivered(&self) -> bool;
    /// Reads and forgets until the peer ends or resets.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Ready once the stream is known to be lost, also while nobody reads or writes.
    fn failed(&self) -> impl Future<Output = ()> + Send + 'static;
    /// The stream ended in order: dropping it is no reset.
    fn let_go(&self);
    /// What arrives is read at this rate and no faster (bytes a second, 0 = any): the other end need not send further
    /// ahead than that takes.
    fn expect_reads_at(&self, bytes_per_s: u64);
}

impl Carrier for Session {
    fn poll_receive(&mut self, cx: &mut Context<'_>, raw: &mut [u8], out: &mut Vec<u8>) -> Poll<io::Result<Received>> {
        self.poll_receive(cx, raw, out)
    }
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, data)
    }
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_close(cx)
    }
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)
    }
    fn is_delivered(&self) -> bool {
        // A connection that cannot tell is gone.
        sockets::unacknowledged_bytes(self.tcp()).map_or(true, |bytes| bytes == 0)
    }
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_discard(cx)
    }
    fn failed(&self) -> impl Future<Output = ()> + Send + 'static {
        let tcp = self.tcp().clone();
        async move {
            let _ = tcp.ready(Interest::ERROR).await;
        }
    }
    fn let_go(&self) {
        // A failure here means the connection is gone already.
        let _ = sockets::set_reset_on_drop(self.tcp(), false);
    }
    fn expect_reads_at(&self, bytes_per_s: u64) {
        let room = match bytes_per_s {
            0 => sockets::WAN_BUFFER_BYTES,
            rate => {
                let round_trip = sockets::shortest_round_trip(self.tcp()).ok().flatten().unwrap_or(AHEAD_UNKNOWN);
                ahead_bytes(rate, round_trip)
            }
        };
        // Without it the stream is as exact, with more on its way.
        let _ = sockets::set_receive_buffer(&**self.tcp(), room);
    }
}
