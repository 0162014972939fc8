//! The source side of a flow: from the captured connection to the reply of the exit.

use super::{
    Core,
    carrier::Carrier,
    counters::{Refusal, ServiceCounters},
    kcp::{self, KcpStream},
    limits::HELD_MAX_BYTES,
    pool::Target,
    relay::{End, Relay, Role, Shape, conclude},
    session::{Received, Session, with_scratch},
    shaper::Turns,
};
use crate::{
    model::{PeerId, PublicKey, ServiceId, Transport, X25519Public},
    os::sockets,
    routing::Forwarding,
    wire::stream::{REPLY_BYTES, StreamHeader, StreamReply, decode_reply},
};
use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::{net::TcpStream, time::timeout};

/// Why a flow was not opened.
enum NotOpened {
    Refused {
        refusal: Refusal,
        detail: String,
    },
    /// Nobody is left to be refused.
    ClientLeft,
}

fn refused(refusal: Refusal, detail: impl fmt::Display) -> NotOpened {
    NotOpened::Refused { refusal, detail: detail.to_string() }
}

/// Carries one captured connection to its end. The client is reset unless the stream ends in order.
pub(super) async fn carry(core: Arc<Core>, client: TcpStream, source: SocketAddr, dest: SocketAddr) {
    let stop = core.stop.clone();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = carry_to_end(core, client, source, dest) => {}
    }
}

async fn carry_to_end(core: Arc<Core>, client: TcpStream, source: SocketAddr, dest: SocketAddr) {
    let whence = format!("{source} to {dest}");
    if let Err(e) = sockets::set_reset_on_drop(&client, true).and_then(|()| sockets::tune_edge(&client)) {
        // The connection is gone already: nothing to refuse.
        return tracing::debug!("captured connection {whence} ended before it was carried: {e}");
    }
    let Ok(_permit) = core.flows.clone().try_acquire_owned() else {
        return core.counters.refuse(Refusal::Busy, format_args!("{whence}"));
    };
    let forwarding = core.forwarding.borrow().clone();
    let interface = entered_by(&forwarding, &client);
    let Some(route) = forwarding.select(source.ip(), dest.ip(), interface.as_deref()) else {
        return core.counters.refuse(Refusal::NoRoute, format_args!("{whence}"));
    };
    let (service, target) = (route.service, route.target);
    let opened = match choose(&core, &forwarding, service, target) {
        Ok(way) => {
            let counters = core.counters.service(service);
            let flow = Flow { core: &core, service, target, way, counters, client: Arc::new(client) };
            let known = forwarding.services.get(&service);
            let (transparent, limited) = known.map_or((false, false), |s| (s.transparent, s.limit_mbps > 0));
            flow.run(StreamHeader { service, source, dest, transparent, limited }).await
        }
        Err(not_opened) => Err(not_opened),
    };
    if let Err(NotOpened::Refused { refusal, detail }) = opened {
        core.counters.refuse_service(service, target, refusal, format_args!("{whence}: {detail}"));
    }
}

/// The interface by which the client's packets enter, where it matters.
fn entered_by(forwarding: &Forwarding, client: &TcpStream) -> Option<String> {
    if !forwarding.has_interfaces() {
        return None;
    }
    sockets::entered_by(client).unwrap_or_else(|e| {
        tracing::debug!("cannot tell by which interface a captured connection entered: {e}");
        None
    })
}

/// What carries the flows of a service to its target.
enum Way {
    Tcp(Arc<Target>),
    /// The session with the peer of these keys.
    Kcp {
        public_key: PublicKey,
        x25519_key: X25519Public,
    },
}

fn choose(core: &Arc<Core>, forwarding: &Forwarding, service: ServiceId, target: PeerId) -> Result<Way, NotOpened> {
    let known = forwarding.services.get(&service).ok_or_else(|| refused(Refusal::NoRoute, "service is gone"))?;
    if known.transparent && known.transport == Transport::Kcp {
        return Err(refused(Refusal::TransportUnavailable, "kcp does not keep the client's address"));
    }
    let path = forwarding.peers.get(&target).ok_or_else(|| refused(Refusal::UnknownTarget, target))?;
    match known.transport {
        Transport::Tcp => {
            core.pools.target(core, target, path).map(Way::Tcp).ok_or_else(|| refused(Refusal::UnknownTarget, target))
        }
        Transport::Kcp => Ok(Way::Kcp { public_key: path.public_key, x25519_key: path.x25519_key }),
    }
}

struct Flow<'a> {
    core: &'a Arc<Core>,
    service: ServiceId,
    target: PeerId,
    way: Way,
    counters: Arc<ServiceCounters>,
    client: Arc<TcpStream>,
}

impl Flow<'_> {
    async fn run(self, header: StreamHeader) -> Result<(), NotOpened> {
        let (local, service, target) = (self.core.local, self.service, self.target);
        let key = match &self.way {
            Way::Tcp(target) => target.public_key(),
            Way::Kcp { public_key, .. } => *public_key,
        };
        let still_valid = move |f: &Forwarding| {
            f.services.get(&service).is_some_and(|s| s.source == local && s.target == target)
                && f.peers.get(&target).is_some_and(|p| p.public_key == key)
        };
        tokio::select! {
            biased;
            () = self.core.until(|f| !still_valid(f)) => {
                tracing::debug!(service = %self.service, "flow cut: its service or its target is gone");
                Ok(())
            }
            done = self.carry(header) => done,
        }
    }

    async fn carry(&self, header: StreamHeader) -> Result<(), NotOpened> {
        match &self.way {
            Way::Tcp(target) => {
                let (session, opening) = self.open(target, self.opening(header.encode())).await?;
                // From here the reader at the other end may pause as long as it likes.
                let _ = sockets::set_user_timeout(session.tcp(), None);
                self.relay(session, opening).await;
            }
            Way::Kcp { x25519_key, .. } => {
                let (stream, opening) = self.open_kcp(*x25519_key, self.opening(header.encode())).await?;
                self.relay(stream, opening).await;
            }
        }
        Ok(())
    }

    fn opening(&self, header: Vec<u8>) -> Opening<'_> {
        let lanes = self.core.shaper.lanes(self.core, self.service);
        Opening::new(header, Turns::new(lanes.to_target), &self.counters)
    }

    async fn relay<S: Carrier>(&self, mut session: S, opening: Opening<'_>) {
        let _open = self.counters.open();
        let timing = &self.core.timing;
        let mut inward = Turns::new(self.core.shaper.lanes(self.core, self.service).to_source);
        // What came with the reply did not wait.
        inward.went(opening.arrived.len());
        let unsent = opening.held[opening.sent..].to_vec();
        let relay = Relay::new(&mut session, &self.client, Role::Source, &self.counters, unsent, opening.arrived);
        let shape = Shape { outward: opening.turns, inward: Some(inward) };
        let end = relay.shaped(Some(shape)).run(timing.idle, timing.drain).await;
        if end == End::Idle {
            tracing::info!(service = %self.service, "flow closed: idle for {} s", timing.idle.as_secs());
        }
        conclude(end, session, self.client.clone(), timing.drain).await;
    }

    /// Opens the stream in the session with the target, and once more in the next one if that had forgotten it.
    async fn open_kcp<'a>(
        &self,
        key: X25519Public,
        mut opening: Opening<'a>,
    ) -> Result<(KcpStream, Opening<'a>), NotOpened> {
        let mut again = false;
        loop {
            let opened = self.core.kcp.open(key.0, self.core.timing.peer_connect).await;
            let mut stream = opened.map_err(|e| match e {
                kcp::OpenError::Busy => refused(Refusal::Busy, e),
                kcp::OpenError::Unreachable => refused(Refusal::TargetUnreachable, e),
            })?;
            match self.await_reply(&mut stream, &mut opening).await? {
                Ok(()) => return Ok((stream, opening)),
                // Nothing of it ever reached the exit.
                Err(e) if e.kind() == io::ErrorKind::NotConnected && !again => {
                    self.core.counters.retried.fetch_add(1, Relaxed);
                    (opening, again) = (opening.anew(), true);
                }
                Err(e) => return Err(refused(Refusal::NoReply, e)),
            }
        }
    }

    /// Opens the stream: on a ready connection if there is one, and once more on a fresh one if that was dead.
    async fn open<'a>(&self, target: &Target, mut opening: Opening<'a>) -> Result<(Session, Opening<'a>), NotOpened> {
        let counters = &self.core.counters;
        if let Some(mut session) = target.take() {
            counters.warm_taken.fetch_add(1, Relaxed);
            match self.await_reply(&mut session, &mut opening).await? {
                Ok(()) => return Ok((session, opening)),
                Err(e) if !says_dead(&e) => return Err(refused(Refusal::NoReply, e)),
                Err(_) => counters.retried.fetch_add(1, Relaxed),
            };
            opening = opening.anew();
        }
        counters.dialled_for_flow.fetch_add(1, Relaxed);
        let mut session = target.dial_for_flow().await.map_err(|e| refused(Refusal::TargetUnreachable, e.detail()))?;
        match self.await_reply(&mut session, &mut opening).await? {
            Ok(()) => Ok((session, opening)),
            Err(e) => Err(refused(Refusal::NoReply, e)),
        }
    }

    /// The outer error is final; the inner one says that the connection ended without an answer.
    async fn await_reply<S: Carrier>(
        &self,
        session: &mut S,
        opening: &mut Opening<'_>,
    ) -> Result<io::Result<()>, NotOpened> {
        let answered = timeout(self.core.timing.reply, poll_fn(|cx| opening.poll(cx, session, &self.client)));
        match answered.await {
            Ok(Ok(Ok(()))) => Ok(Ok(())),
            Ok(Ok(Err(refusal))) => Err(refused(Refusal::Exit(refusal), self.target)),
            Ok(Err(OpenError::ClientLeft)) => Err(NotOpened::ClientLeft),
            Ok(Err(OpenError::Protocol(e))) => Err(refused(Refusal::Protocol, e)),
            Ok(Err(OpenError::Session(e))) => Ok(Err(e)),
            Err(_) => Err(refused(Refusal::NoReply, "the exit did not answer in time")),
        }
    }
}

/// Whether the error is the peer's word that it holds no such connection. A time-out is not: bytes may have arrived.
fn says_dead(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(e.kind(), BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof)
}

enum OpenError {
    ClientLeft,
    Session(io::Error),
    Protocol(crate::wire::stream::StreamError),
}

/// A stream until its reply: header and the client's bytes go out without waiting, and all of them are kept.
struct Opening<'a> {
    counters: &'a ServiceCounters,
    turns: Turns,
    held: Vec<u8>,
    sent: usize,
    /// Reply, and behind it the server's first bytes.
    arrived: Vec<u8>,
    client_ended: bool,
}

impl<'a> Opening<'a> {
    fn new(held: Vec<u8>, turns: Turns, counters: &'a ServiceCounters) -> Self {
        Self { counters, turns, held, sent: 0, arrived: vec![], client_ended: false }
    }

    /// The same for another session.
    fn anew(self) -> Self {
        Self::new(self.held, self.turns, self.counters)
    }

    fn poll<S: Carrier>(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut S,
        client: &TcpStream,
    ) -> Poll<Result<StreamReply, OpenError>> {
        // Reading first lets the client's first bytes travel in the header's packet.
        self.read_client(cx, client).map_err(|_| OpenError::ClientLeft)?;
        while self.sent < self.held.len() {
            match session.poll_send(cx, &self.held[self.sent..]) {
                Poll::Ready(Ok(n)) => self.sent += n,
                Poll::Ready(Err(e)) => return self.after_error(cx, session, e),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(e)) = session.poll_flush(cx) {
            return self.after_error(cx, session, e);
        }
        self.poll_reply(cx, session)
    }

    /// A connection that takes no more bytes may still have brought the exit's refusal.
    fn after_error<S: Carrier>(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut S,
        e: io::Error,
    ) -> Poll<Result<StreamReply, OpenError>> {
        match self.poll_reply(cx, session) {
            Poll::Pending => Poll::Ready(Err(OpenError::Session(e))),
            ready => ready,
        }
    }

    fn poll_reply<S: Carrier>(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut S,
    ) -> Poll<Result<StreamReply, OpenError>> {
        while self.arrived.len() < REPLY_BYTES {
            let received = with_scratch(|scratch| session.poll_receive(cx, &mut scratch.raw, &mut self.arrived));
            if let Received::Closed = ready!(received).map_err(OpenError::Session)? {
                return Poll::Ready(Err(OpenError::Session(io::ErrorKind::UnexpectedEof.into())));
            }
        }
        let mut reply = [0; REPLY_BYTES];
        reply.copy_from_slice(&self.arrived[..REPLY_BYTES]);
        self.arrived.drain(..REPLY_BYTES);
        Poll::Ready(decode_reply(reply).map_err(OpenError::Protocol))
    }

    fn read_client(&mut self, cx: &mut Context<'_>, client: &TcpStream) -> io::Result<()> {
        while !self.client_ended && self.held.len() < HELD_MAX_BYTES {
            let Poll::Ready(turn) = self.turns.poll_room(cx) else { return Ok(()) };
            match client.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
            let read = with_scratch(|scratch| {
                let room = turn.min(scratch.raw.len()).min(HELD_MAX_BYTES - self.held.len());
                let read = client.try_read(&mut scratch.raw[..room]);
                if let Ok(n) = read {
                    self.turns.went(n);
                    self.held.extend_from_slice(&scratch.raw[..n]);
                    self.counters.bytes_to_target.fetch_add(n as u64, Relaxed);
                }
                read
            });
            match read {
                // The relay will meet the same end again and pass it on.
                Ok(0) => self.client_ended = true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
