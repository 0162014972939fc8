//! Connections that go wrong after they were made: cut in the middle, ended early, slow, or answered by nobody.

use arctic::env::BoxStream;
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use turmoil::net::TcpStream;

/// Bytes that a dripping connection lets pass at one time, and the pause after them.
const DRIP_BYTES: usize = 16;
const DRIP_PAUSE: Duration = Duration::from_millis(5);

/// What befalls a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFault {
    /// Reset when this many bytes have come back.
    ResetAfter(usize),
    /// Ends as if complete when this many bytes have come back.
    EndAfter(usize),
    Drip,
    /// What is sent vanishes and nothing ever comes back.
    HalfOpen,
    /// In this byte of what is sent a bit is turned.
    FlipAt(usize),
}

impl StreamFault {
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResetAfter(_) => "reset mid-body",
            Self::EndAfter(_) => "truncated body",
            Self::Drip => "byte drip",
            Self::HalfOpen => "half-open",
            Self::FlipAt(_) => "bit flip",
        }
    }
}

/// Faults in wait for the next connections that one host opens, one each.
#[derive(Default)]
pub struct StreamFaults {
    waiting: Mutex<VecDeque<StreamFault>>,
    fired: Mutex<BTreeMap<&'static str, u64>>,
}

impl StreamFaults {
    pub fn push(&self, fault: StreamFault) {
        locked(&self.waiting).push_back(fault);
    }

    /// Nothing goes wrong with connections from now on, except with those that a fault has met already.
    pub fn clear(&self) {
        locked(&self.waiting).clear();
    }

    /// How often a fault of each name has shown in a connection.
    pub fn fired(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.fired).clone()
    }

    pub(crate) fn meet(self: &Arc<Self>, inner: TcpStream) -> BoxStream {
        let Some(fault) = locked(&self.waiting).pop_front() else { return Box::new(inner) };
        Box::new(FaultyStream {
            inner,
            fault,
            faults: self.clone(),
            shown: false,
            read_bytes: 0,
            sent_bytes: 0,
            pause: None,
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct FaultyStream {
    inner: TcpStream,
    fault: StreamFault,
    faults: Arc<StreamFaults>,
    shown: bool,
    read_bytes: usize,
    sent_bytes: usize,
    pause: Option<Pin<Box<Sleep>>>,
}

impl FaultyStream {
    fn show(&mut self) {
        if !std::mem::replace(&mut self.shown, true) {
            *locked(&self.faults.fired).entry(self.fault.name()).or_default() += 1;
        }
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// Reads at most `limit` bytes.
    fn poll_some(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, limit: usize) -> Poll<io::Result<()>> {
        let mut piece = vec![0; limit.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        self.read_bytes += part.filled().len();
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.fault {
            StreamFault::HalfOpen => {
                self.show();
                Poll::Pending
            }
            StreamFault::Drip => {
                ready!(self.poll_pause(cx));
                ready!(self.poll_some(cx, buf, DRIP_BYTES))?;
                self.show();
                self.pause = Some(Box::pin(sleep(DRIP_PAUSE)));
                Poll::Ready(Ok(()))
            }
            StreamFault::ResetAfter(bytes) | StreamFault::EndAfter(bytes) if self.read_bytes >= bytes => {
                self.show();
                let reset = matches!(self.fault, StreamFault::ResetAfter(_));
                Poll::Ready(if reset { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) })
            }
            StreamFault::ResetAfter(bytes) | StreamFault::EndAfter(bytes) => {
                let left = bytes - self.read_bytes;
                self.poll_some(cx, buf, left)
            }
            StreamFault::FlipAt(_) => Pin::new(&mut self.inner).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.fault {
            StreamFault::HalfOpen => Poll::Ready(Ok(buf.len())),
            StreamFault::Drip => {
                ready!(self.poll_pause(cx));
                let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &buf[..buf.len().min(DRIP_BYTES)]))?;
                self.show();
                self.pause = Some(Box::pin(sleep(DRIP_PAUSE)));
                Poll::Ready(Ok(sent))
            }
            StreamFault::FlipAt(at) => {
                let mut piece = buf.to_vec();
                let met = at.checked_sub(self.sent_bytes).filter(|at| *at < piece.len());
                if let Some(at) = met {
                    piece[at] ^= 1 << (at % 7);
                }
                let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &piece))?;
                self.sent_bytes += sent;
                if met.is_some_and(|at| at < sent) {
                    self.show();
                }
                Poll::Ready(Ok(sent))
            }
            StreamFault::ResetAfter(_) | StreamFault::EndAfter(_) => Pin::new(&mut self.inner).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
