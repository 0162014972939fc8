//! Bytes both ways between a session and an edge socket: half-close kept, resets told from ends.

use super::{
    carrier::Carrier,
    counters::ServiceCounters,
    session::{READ_BYTES, Received, with_scratch},
    shaper::Turns,
};
use crate::os::sockets;
use std::{
    future::poll_fn,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};

/// Reads of one direction in one poll; then other tasks have their turn.
const ROUNDS: usize = 8;
/// How often it is asked whether all has arrived.
const DELIVERY_LOOK: Duration = Duration::from_millis(10);

/// How a relayed stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both directions closed in order and all bytes are with the kernel.
    Closed,
    EdgeReset,
    SessionReset,
    Idle,
}

/// Which end of the relay is the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// The reader is at its end; what is held still has to leave.
    Ending,
    Closed,
}

/// Bytes that were read and not yet taken by the other side.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    from: usize,
}

impl Held {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, from: 0 }
    }
    fn rest(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
    fn advance(&mut self, n: usize) {
        self.from += n;
        if self.rest().is_empty() {
            // Gives the memory back: an idle stream holds none.
            *self = Self::default();
        }
    }
}

/// A flow in the lanes of its service.
pub(super) struct Shape {
    /// For what is read of the edge.
    pub outward: Turns,
    /// For what is read of the session.
    pub inward: Option<Turns>,
}

pub(super) struct Relay<'a, S> {
    session: &'a mut S,
    edge: &'a TcpStream,
    role: Role,
    counters: &'a ServiceCounters,
    shape: Option<Shape>,
    /// The rate that the session was told.
    expected_rate: u64,
    to_session: Held,
    to_edge: Held,
    outward: Way,
    inward: Way,
    last_byte: Instant,
}

impl<'a, S: Carrier> Relay<'a, S> {
    /// `to_session` and `to_edge` are bytes already read, to be sent first; the former are counted already.
    pub fn new(
        session: &'a mut S,
        edge: &'a TcpStream,
        role: Role,
        counters: &'a ServiceCounters,
        to_session: Vec<u8>,
        to_edge: Vec<u8>,
    ) -> Self {
        let counter = match role {
            Role::Source => &counters.bytes_to_source,
            Role::Exit => &counters.bytes_to_target,
        };
        counter.fetch_add(to_edge.len() as u64, Relaxed);
        Self {
            session,
            edge,
            role,
            counters,
            shape: None,
            expected_rate: 0,
            to_session: Held::new(to_session),
            to_edge: Held::new(to_edge),
            outward: Way::Open,
            inward: Way::Open,
            last_byte: Instant::now(),
        }
    }

    /// What is read waits for its turn.
    pub fn shaped(self, shape: Option<Shape>) -> Self {
        let rate = shape.as_ref().and_then(|shape| shape.inward.as_ref()).map_or(0, Turns::rate);
        if rate > 0 {
            self.session.expect_reads_at(rate);
        }
        Self { shape, expected_rate: rate, ..self }
    }

    /// Runs to the end. `drain` bounds what happens after a reset was seen behind bytes that cannot leave.
    pub async fn run(mut self, idle: Duration, drain: Duration) -> End {
        let edge = self.edge;
        let mut wan_error = std::pin::pin!(self.session.failed());
        let mut edge_error = std::pin::pin!(edge.ready(Interest::ERROR));
        let (mut wan_failed, mut edge_failed) = (false, false);
        let mut deadline = self.last_byte + idle;
        loop {
            tokio::select! {
                biased;
                end = poll_fn(|cx| self.poll(cx)) => return end,
                () = &mut wan_error, if !wan_failed => {
                    wan_failed = true;
                    deadline = deadline.min(Instant::now() + drain);
                }
                _ = &mut edge_error, if !edge_failed => {
                    edge_failed = true;
                    // Nothing more to read there, so nothing will tell; with bytes to read the relay meets the error itself.
                    if self.outward != Way::Open {
                        return End::EdgeReset;
                    }
                    deadline = deadline.min(Instant::now() + drain);
                }
                () = sleep_until(deadline) => {
                    if wan_failed {
                        return End::SessionReset;
                    }
                    if edge_failed {
                        return End::EdgeReset;
                    }
                    deadline = self.last_byte + idle;
                    if deadline <= Instant::now() {
                        return End::Idle;
                    }
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut more = false;
        // What has come is handed on before a reset is met by writing.
        for step in [Self::poll_inward, Self::poll_outward] {
            match step(self, cx) {
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Ready(Ok(closed)) => more |= !closed,
                Poll::Pending => {}
            }
        }
        if self.outward == Way::Closed && self.inward == Way::Closed {
            return Poll::Ready(End::Closed);
        }
        // Answers of the TLS layer itself, and bytes it holds.
        if let Poll::Ready(Err(e)) = self.session.poll_flush(cx) {
            return Poll::Ready(session_end(e));
        }
        if more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Edge to session. Ready with whether the way is closed; `false` = ran out of rounds.
    fn poll_outward(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, End>> {
        for _ in 0..ROUNDS {
            while !self.to_session.rest().is_empty() {
                let sent = ready!(self.session.poll_send(cx, self.to_session.rest())).map_err(session_end)?;
                self.to_session.advance(sent);
            }
            match self.outward {
                Way::Closed => return Poll::Ready(Ok(true)),
                Way::Ending => {
                    ready!(self.session.poll_close(cx)).map_err(session_end)?;
                    self.outward = Way::Closed;
                }
                Way::Open => ready!(self.poll_edge_read(cx))?,
            }
        }
        Poll::Ready(Ok(false))
    }

    fn poll_edge_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        // No reading ahead of the link.
        ready!(self.session.poll_flush(cx)).map_err(session_end)?;
        let room = match &mut self.shape {
            Some(shape) => ready!(shape.outward.poll_room(cx)),
            None => usize::MAX,
        };
        ready!(self.edge.poll_read_ready(cx)).map_err(|_| End::EdgeReset)?;
        with_scratch(|scratch| {
            let room = room.min(scratch.raw.len());
            let n = match self.edge.try_read(&mut scratch.raw[..room]) {
                Ok(0) => {
                    self.outward = Way::Ending;
                    return Poll::Ready(Ok(()));
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Ready(Ok(())),
                Err(_) => return Poll::Ready(Err(End::EdgeReset)),
            };
            self.last_byte = Instant::now();
            match self.role {
                Role::Source => &self.counters.bytes_to_target,
                Role::Exit => &self.counters.bytes_to_source,
            }
            .fetch_add(n as u64, Relaxed);
            if let Some(shape) = &mut self.shape {
                shape.outward.went(n);
            }
            let mut rest = &scratch.raw[..n];
            while !rest.is_empty() {
                match self.session.poll_send(cx, rest) {
                    Poll::Ready(Ok(sent)) => rest = &rest[sent..],
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(session_end(e))),
                    Poll::Pending => {
                        self.to_session = Held::new(rest.to_vec());
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Session to edge.
    fn poll_inward(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, End>> {
        for _ in 0..ROUNDS {
            while !self.to_edge.rest().is_empty() {
                let sent = ready!(poll_edge_write(self.edge, cx, self.to_edge.rest()))?;
                self.to_edge.advance(sent);
            }
            match self.inward {
                Way::Closed => return Poll::Ready(Ok(true)),
                Way::Ending => {
                    sockets::finish_sending(self.edge).map_err(|_| End::EdgeReset)?;
                    self.inward = Way::Closed;
                }
                Way::Open => ready!(self.poll_session_read(cx))?,
            }
        }
        Poll::Ready(Ok(false))
    }

    fn inward_turns(&mut self) -> Option<&mut Turns> {
        self.shape.as_mut()?.inward.as_mut()
    }

    /// A session that expects slow reads hears of a larger limit. Less room than was promised would lose what comes.
    fn follow_rate(&mut self) {
        let Some(rate) = self.inward_turns().map(|turns| turns.rate()) else { return };
        if self.expected_rate > 0 && (rate == 0 || rate > self.expected_rate) {
            self.session.expect_reads_at(rate);
            self.expected_rate = rate;
        }
    }

    fn poll_session_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.follow_rate();
        let room = match self.inward_turns() {
            Some(turns) => ready!(turns.poll_room(cx)),
            None => usize::MAX,
        };
        with_scratch(|scratch| {
            scratch.plain.clear();
            let room = room.min(scratch.raw.len());
            let received = self.session.poll_receive(cx, &mut scratch.raw[..room], &mut scratch.plain);
            match ready!(received).map_err(session_end)? {
                Received::Closed => {
                    self.inward = Way::Ending;
                    return Poll::Ready(Ok(()));
                }
                Received::Bytes => {}
            }
            self.last_byte = Instant::now();
            match self.role {
                Role::Source => &self.counters.bytes_to_source,
                Role::Exit => &self.counters.bytes_to_target,
            }
            .fetch_add(scratch.plain.len() as u64, Relaxed);
            if let Some(turns) = self.inward_turns() {
                turns.went(scratch.plain.len());
            }
            let mut rest = &scratch.plain[..];
            while !rest.is_empty() {
                match poll_edge_write(self.edge, cx, rest) {
                    Poll::Ready(Ok(sent)) => rest = &rest[sent..],
                    Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                    Poll::Pending => {
                        self.to_edge = Held::new(rest.to_vec());
                        return Poll::Pending;
                    }
                }
            }
            debug_assert!(scratch.plain.len() <= 2 * READ_BYTES);
            Poll::Ready(Ok(()))
        })
    }
}

fn session_end(_: io::Error) -> End {
    End::SessionReset
}

fn poll_edge_write(edge: &TcpStream, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, End>> {
    loop {
        ready!(edge.poll_write_ready(cx)).map_err(|_| End::EdgeReset)?;
        match edge.try_write(data) {
            Ok(n) => return Poll::Ready(Ok(n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Poll::Ready(Err(End::EdgeReset)),
        }
    }
}

/// Lets both sockets go as the stream ended. They reset on drop unless told otherwise here.
pub(super) async fn conclude<S: Carrier>(end: End, mut session: S, edge: Arc<TcpStream>, drain: Duration) {
    match end {
        End::Closed => {
            session.let_go();
            // A failure here means the connection is gone already.
            let _ = sockets::set_reset_on_drop(&edge, false);
        }
        End::EdgeReset => {
            drop(edge);
            // Bytes sent before the reset arrive before its news: an end without close_notify, or a reset of the session
            // where the own direction has ended in order already.
            let told = async {
                poll_fn(|cx| session.poll_cut(cx)).await?;
                loop {
                    tokio::select! {
                        biased;
                        () = poll_fn(|cx| session.poll_discard(cx)) => break,
                        () = sleep(DELIVERY_LOOK) => {}
                    }
                    if session.is_delivered() {
                        break;
                    }
                }
                Ok::<_, io::Error>(())
            };
            let _ = tokio::time::timeout(drain, told).await;
        }
        End::SessionReset | End::Idle => {}
    }
}
