//! A handshaken TLS connection to another engine, driven by polls from one task.
//!
//! The end of the peer's bytes is close_notify and nothing else: a TCP end without it is an error, so a cut connection
//! is never taken for a finished one. Holds no buffers of its own while nothing moves.

use super::limits::REKEY_BYTES;
use std::{
    cell::RefCell,
    io::{self, BufRead, IoSlice, Write},
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::net::TcpStream;

/// What one read takes from a socket.
pub(super) const READ_BYTES: usize = 128 << 10;

/// Working space of a thread, used within one poll and never across.
pub(super) struct Scratch {
    pub raw: Box<[u8]>,
    pub plain: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { raw: vec![0; READ_BYTES].into(), plain: Vec::with_capacity(READ_BYTES) });
}

pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with(|scratch| work(&mut scratch.borrow_mut()))
}

/// What a read of a session gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Bytes,
    /// The peer has ended its direction in order.
    Closed,
}

pub(super) struct Session {
    tcp: Arc<TcpStream>,
    tls: rustls::Connection,
    closed: bool,
    closing: Closing,
    sent_under_key: u64,
    rekey_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    Notified,
    Finished,
}

impl Session {
    pub fn new(tcp: TcpStream, tls: rustls::Connection) -> Self {
        Self {
            tcp: Arc::new(tcp),
            tls,
            closed: false,
            closing: Closing::Open,
            sent_under_key: 0,
            rekey_bytes: REKEY_BYTES,
        }
    }

    pub fn tcp(&self) -> &Arc<TcpStream> {
        &self.tcp
    }

    #[cfg(test)]
    pub fn set_rekey_bytes(&mut self, bytes: u64) {
        self.rekey_bytes = bytes;
    }

    /// Appends what arrived to `out`, reading by way of `raw`. Ready with `Bytes` only if some came.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        raw: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Poll<io::Result<Received>> {
        let before = out.len();
        loop {
            self.take_plaintext(out)?;
            if out.len() > before {
                return Poll::Ready(Ok(Received::Bytes));
            }
            if self.closed {
                return Poll::Ready(Ok(Received::Closed));
            }
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tcp.try_read(raw) {
                Ok(0) => return Poll::Ready(Err(truncated())),
                Ok(n) => self.decrypt(&raw[..n], out)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn decrypt(&mut self, mut raw: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while !raw.is_empty() && !self.closed {
            if self.tls.read_tls(&mut raw)? == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "TLS takes no more bytes"));
            }
            match self.tls.process_new_packets() {
                Ok(state) => self.closed = state.peer_has_closed(),
                Err(e) => {
                    // The alert that says why; whether it leaves does not change the outcome.
                    let _ = self.tls.write_tls(&mut SocketWriter(&self.tcp));
                    return Err(io::Error::new(io::ErrorKind::InvalidData, e));
                }
            }
            self.take_plaintext(out)?;
        }
        Ok(())
    }

    fn take_plaintext(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let mut reader = self.tls.reader();
        loop {
            let taken = match reader.fill_buf() {
                Ok(chunk) => {
                    out.extend_from_slice(chunk);
                    chunk.len()
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                Err(e) => return Err(e),
            };
            if taken == 0 {
                return Ok(());
            }
            reader.consume(taken);
        }
    }

    /// Takes some of `data` and sends it; what the socket does not take at once leaves with later polls.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let taken = self.tls.writer().write(data)?;
        self.sent_under_key += taken as u64;
        if self.sent_under_key >= self.rekey_bytes {
            self.sent_under_key = 0;
            self.tls.refresh_traffic_keys().map_err(io::Error::other)?;
        }
        match self.poll_flush(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    /// Hands everything taken so far to the kernel.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Behind the FIN only an answer to a key update could want to leave, and no key is used any more.
        while self.tls.wants_write() && self.closing != Closing::Finished {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tls.write_tls(&mut SocketWriter(&self.tcp)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the own direction in order: everything sent, close_notify, FIN.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing == Closing::Open {
            self.tls.send_close_notify();
            self.closing = Closing::Notified;
        }
        ready!(self.poll_flush(cx))?;
        self.finish()
    }

    /// Ends the own direction as cut: everything sent, then FIN without close_notify.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        self.finish()
    }

    fn finish(&mut self) -> Poll<io::Result<()>> {
        if self.closing != Closing::Finished {
            self.closing = Closing::Finished;
            crate::os::sockets::finish_sending(&self.tcp)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the TLS and TCP layers are still as after the handshake: for a connection nobody uses yet. Registers for
    /// the next arrival.
    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        with_scratch(|scratch| {
            scratch.plain.clear();
            self.poll_receive(cx, &mut scratch.raw, &mut scratch.plain).map(|_| ())
        })
    }

    /// Reads and forgets until the peer ends or resets.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let read = ready!(self.tcp.poll_read_ready(cx)).and_then(|()| {
                with_scratch(|scratch| match self.tcp.try_read(&mut scratch.raw) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(1),
                    other => other,
                })
            });
            if !matches!(read, Ok(1..)) {
                return Poll::Ready(());
            }
        }
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "connection ended without close_notify")
}

/// Writes of rustls straight to the socket.
struct SocketWriter<'a>(&'a TcpStream);

impl Write for SocketWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
