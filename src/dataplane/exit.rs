//! The exit side: connections of other engines, their stream headers, the dial of the destination.

use super::{
    Core,
    carrier::Carrier,
    counters::Refusal,
    limits::{ACCEPT_RETRY, MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS, MAX_IDLE_PER_PEER},
    relay::{Relay, Role, Shape, conclude},
    session::{Received, Session, with_scratch},
    shaper::Turns,
    tls::presented_key,
};
use crate::{
    model::{PeerId, PublicKey},
    os::sockets,
    routing::{ExitRefusal, Forwarding},
    wire::stream::{HEADER_MAX_BYTES, StreamError, StreamHeader, StreamRefusal, encode_reply},
};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// Counts under a key, each with a limit; a place is given back when dropped.
pub(super) struct Places<K: Ord + Copy> {
    /// All, and those of each key.
    taken: Mutex<(usize, BTreeMap<K, usize>)>,
    limit_each: usize,
    limit_all: usize,
}

pub(super) struct Place<K: Ord + Copy> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Ord + Copy> Places<K> {
    pub fn new(limit_each: usize, limit_all: usize) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::new((0, BTreeMap::new())), limit_each, limit_all })
    }

    pub fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_key) = &mut *taken;
        let each = by_key.get(&key).copied().unwrap_or(0);
        if *all >= self.limit_all || each >= self.limit_each {
            return None;
        }
        *all += 1;
        by_key.insert(key, each + 1);
        Some(Place { places: self.clone(), key })
    }

    pub fn holds(&self, key: &K) -> bool {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).1.contains_key(key)
    }
}

impl<K: Ord + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_key) = &mut *taken;
        *all -= 1;
        match by_key.get_mut(&self.key) {
            Some(n) if *n > 1 => *n -= 1,
            _ => {
                by_key.remove(&self.key);
            }
        }
    }
}

/// Accepts connections of other engines until the engine stops.
pub(super) async fn serve(core: Arc<Core>, listener: TcpListener) {
    let handshakes = Places::new(MAX_HANDSHAKES_PER_ADDRESS, MAX_HANDSHAKES);
    let idle = Places::new(MAX_IDLE_PER_PEER, usize::MAX);
    let acceptor = TlsAcceptor::from(core.identity.server.clone());
    loop {
        let accepted = tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                core.counters.refuse(Refusal::Busy, format_args!("cannot accept a connection of another engine: {e}"));
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(place) = handshakes.take(prefix(from.ip().to_canonical())) else {
            core.counters.refuse(Refusal::Busy, format_args!("{from}: too many handshakes in progress"));
            continue;
        };
        let (core, acceptor, idle, stop) = (core.clone(), acceptor.clone(), idle.clone(), core.stop.clone());
        core.tasks.clone().spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = admit(core, acceptor, idle, place, tcp, from) => {}
            }
        });
    }
}

/// What a source is counted by: an IPv4 address, an IPv6 /64.
fn prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
    }
}

async fn admit(
    core: Arc<Core>,
    acceptor: TlsAcceptor,
    idle: Arc<Places<PeerId>>,
    place: Place<IpAddr>,
    tcp: TcpStream,
    from: SocketAddr,
) {
    let (session, peer, key) = match timeout(core.timing.handshake, handshake(&core, acceptor, tcp)).await {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(e)) => return core.counters.refuse(Refusal::Handshake, format_args!("{from}: {e}")),
        Err(_) => return core.counters.refuse(Refusal::Handshake, format_args!("{from}: no handshake in time")),
    };
    drop(place);
    let Some(idle) = idle.take(peer) else {
        return core.counters.refuse(Refusal::Busy, format_args!("{peer} keeps too many connections without a stream"));
    };
    core.counters.handshakes.fetch_add(1, Relaxed);
    let revoked = core.until(move |f| f.peers.get(&peer).is_none_or(|p| p.public_key != key));
    tokio::select! {
        biased;
        () = revoked => tracing::debug!(%peer, "connection cut: the peer or its key is not trusted any more"),
        () = serve_stream(&core, session, peer, Some(idle)) => {}
    }
}

async fn handshake(core: &Core, acceptor: TlsAcceptor, tcp: TcpStream) -> io::Result<(Session, PeerId, PublicKey)> {
    let (tcp, tls) = acceptor.accept(tcp).await?.into_inner();
    let unknown = || io::Error::new(io::ErrorKind::PermissionDenied, "the key belongs to no trusted peer");
    let certificate = tls.peer_certificates().and_then(|c| c.first()).ok_or_else(unknown)?;
    let key = presented_key(certificate).ok_or_else(unknown)?;
    let forwarding = core.forwarding.borrow().clone();
    let (peer, _) = forwarding.peers.iter().find(|(_, path)| path.public_key == key).ok_or_else(unknown)?;
    sockets::set_reset_on_drop(&tcp, true)?;
    Ok((Session::new(tcp, tls.into()), *peer, key))
}

/// Serves a stream of a peer that proved its key; it keeps its place until the header is there.
pub(super) async fn serve_stream<S: Carrier>(core: &Core, mut session: S, peer: PeerId, idle: Option<Place<PeerId>>) {
    let read = read_header(core, &mut session).await;
    drop(idle);
    match read {
        Ok(Some((header, early))) => carry(core, session, peer, header, early).await,
        Ok(None) => {
            // Never used: renewed, or its client stopped.
            session.let_go();
        }
        Err(e) => {
            core.counters.refuse(Refusal::Protocol, format_args!("stream of {peer}: {e}"));
            refuse(core, session, StreamRefusal::BadHeader).await;
        }
    }
}

/// The header and the client's bytes that came with it; `None` if the connection ended or grew old without a byte.
async fn read_header<S: Carrier>(core: &Core, session: &mut S) -> Result<Option<(StreamHeader, Vec<u8>)>, HeaderError> {
    let mut arrived = Vec::new();
    match timeout(core.timing.unused, receive(session, &mut arrived)).await {
        Ok(Ok(Received::Bytes)) => {}
        _ => return Ok(None),
    }
    let rest = async {
        loop {
            if let Some((header, length)) = StreamHeader::decode(&arrived)? {
                arrived.drain(..length);
                return Ok((header, std::mem::take(&mut arrived)));
            }
            debug_assert!(arrived.len() < HEADER_MAX_BYTES);
            match receive(session, &mut arrived).await {
                Ok(Received::Bytes) => {}
                _ => return Err(HeaderError::Ended),
            }
        }
    };
    timeout(core.timing.header, rest).await.unwrap_or(Err(HeaderError::TooSlow)).map(Some)
}

#[derive(Debug, thiserror::Error)]
enum HeaderError {
    #[error(transparent)]
    Codec(#[from] StreamError),
    #[error("connection ended within the header")]
    Ended,
    #[error("header did not arrive in time")]
    TooSlow,
}

async fn receive<S: Carrier>(session: &mut S, into: &mut Vec<u8>) -> io::Result<Received> {
    poll_fn(|cx| with_scratch(|scratch| session.poll_receive(cx, &mut scratch.raw, into))).await
}

/// Says no, and waits a little so that the answer is not lost to a reset by the client's bytes still arriving.
async fn refuse<S: Carrier>(core: &Core, mut session: S, refusal: StreamRefusal) {
    let answer = async {
        send(&mut session, &encode_reply(Err(refusal))).await?;
        poll_fn(|cx| session.poll_close(cx)).await?;
        poll_fn(|cx| session.poll_discard(cx)).await;
        Ok::<_, io::Error>(())
    };
    let _ = timeout(core.timing.drain, answer).await;
}

async fn send<S: Carrier>(session: &mut S, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| session.poll_send(cx, bytes)).await?;
        bytes = &bytes[sent..];
    }
    poll_fn(|cx| session.poll_flush(cx)).await
}

async fn carry<S: Carrier>(core: &Core, mut session: S, peer: PeerId, header: StreamHeader, early: Vec<u8>) {
    let service = header.service;
    let opened = tokio::select! {
        biased;
        opened = open(core, peer, &header) => opened,
        // The source gave up while the destination was silent.
        () = session.failed() => return,
    };
    let server = match opened {
        Ok(server) => server,
        Err(refusal) => {
            report(core, peer, &header, refusal);
            return refuse(core, session, refusal).await;
        }
    };
    let OpenedServer { server, _dialled, _permit } = server;
    let counters = core.counters.service(service);
    let _open = counters.open();
    let still_valid =
        |f: &Forwarding| f.services.get(&service).is_some_and(|s| s.source == peer && s.target == core.local);
    let lane = header.limited.then(|| core.shaper.lanes(core, service).to_source);
    let shape = lane.map(|lane| Shape { outward: Turns::new(lane), inward: None });
    let relayed = async {
        let relay = Relay::new(&mut session, &server, Role::Exit, &counters, encode_reply(Ok(())).to_vec(), early);
        relay.shaped(shape).run(core.timing.idle, core.timing.drain).await
    };
    let end = tokio::select! {
        biased;
        () = core.until(|f| !still_valid(f)) => {
            return tracing::debug!(%service, "flow cut: its service is gone");
        }
        end = relayed => end,
    };
    conclude(end, session, server, core.timing.drain).await;
}

fn report(core: &Core, peer: PeerId, header: &StreamHeader, refusal: StreamRefusal) {
    let StreamHeader { service, source, dest, .. } = header;
    if core.forwarding.borrow().services.contains_key(service) {
        let detail = format_args!("{source} to {dest}");
        core.counters.refuse_service(*service, peer, Refusal::Exit(refusal), detail);
    } else {
        core.counters.refuse(Refusal::Exit(refusal), format_args!("{source} to {dest} for {service} of {peer}"));
    }
}

/// Own address and destination of connections to servers, but for those under the address of a client.
pub(super) type Dialled = (SocketAddr, SocketAddr);

struct OpenedServer {
    server: Arc<TcpStream>,
    _dialled: Option<Place<Dialled>>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

async fn open(core: &Core, peer: PeerId, header: &StreamHeader) -> Result<OpenedServer, StreamRefusal> {
    let permit = core.flows.clone().try_acquire_owned().map_err(|_| StreamRefusal::Busy)?;
    let forwarding = permitting(core, peer, header).await?;
    if core.forbids(header.dest) {
        return Err(StreamRefusal::ForbiddenDestination);
    }
    // Captured by the source on its way to the server, it would be dialled again, and so on.
    if core.dialled.holds(&(header.source, header.dest)) {
        return Err(StreamRefusal::Loop);
    }
    // A header that asks for less than the service promises is no way around it either.
    let transparent = forwarding.services.get(&header.service).is_some_and(|s| s.transparent);
    if transparent && core.is_local(header.source.ip()) {
        return Err(StreamRefusal::ForbiddenSource);
    }
    let server = dial(core, transparent.then_some(header.source), header.dest).await?;
    let own = server.local_addr().map_err(|e| refusal_of(&e))?;
    let _dialled = if transparent { None } else { core.dialled.take((own, header.dest)) };
    Ok(OpenedServer { server: Arc::new(server), _dialled, _permit: permit })
}

/// The snapshot that permits the stream; one that does not know its service or route yet is given time to.
async fn permitting(core: &Core, peer: PeerId, header: &StreamHeader) -> Result<Arc<Forwarding>, StreamRefusal> {
    let check = |f: &Forwarding| {
        f.check_exit(peer, header.service, header.dest)?;
        f.check_source(header.service, header.transparent, header.source.ip(), header.dest.ip())
    };
    let behind = [ExitRefusal::UnknownService, ExitRefusal::OutsideRoutes, ExitRefusal::NotTransparent];
    let may_change = |r: Result<(), ExitRefusal>| r.is_err_and(|refusal| behind.contains(&refusal));
    drop(timeout(core.timing.gossip_lag, core.until(|f| !may_change(check(f)))).await);
    let forwarding = core.forwarding.borrow().clone();
    check(&forwarding).map_err(on_wire)?;
    Ok(forwarding)
}

fn on_wire(refusal: ExitRefusal) -> StreamRefusal {
    match refusal {
        ExitRefusal::UnknownService => StreamRefusal::UnknownService,
        ExitRefusal::NotTheSource => StreamRefusal::NotTheSource,
        ExitRefusal::OutsideRoutes => StreamRefusal::OutsideRoutes,
        ExitRefusal::ForbiddenDestination => StreamRefusal::ForbiddenDestination,
        ExitRefusal::NotTransparent => StreamRefusal::TransparentUnavailable,
        ExitRefusal::ForbiddenSource => StreamRefusal::ForbiddenSource,
    }
}

/// `source`: the client's address, which the server is to see.
async fn dial(core: &Core, source: Option<SocketAddr>, dest: SocketAddr) -> Result<TcpStream, StreamRefusal> {
    let dest = dialled(dest);
    let connect = async {
        let socket = match source {
            Some(source) => sockets::transparent_edge_socket(source, core.own_mark)?,
            None => sockets::edge_socket(dest, core.own_mark)?,
        };
        let server = socket.connect(dest).await?;
        sockets::tune_edge(&server)?;
        sockets::set_reset_on_drop(&server, true)?;
        Ok(server)
    };
    match timeout(core.timing.exit_connect, connect).await {
        Ok(Ok(server)) => Ok(server),
        Err(_) => Err(StreamRefusal::ConnectionTimedOut),
        Ok(Err(e)) => Err(refusal_of(&e)),
    }
}

#[cfg(not(test))]
fn dialled(dest: SocketAddr) -> SocketAddr {
    dest
}

/// Unit tests have servers on loopback only, which no exit dials: the benchmark networks stand for it (RFC 2544, 5180).
#[cfg(test)]
fn dialled(dest: SocketAddr) -> SocketAddr {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match dest.ip() {
        IpAddr::V4(v4) if v4.octets()[..2] == [198, 18] => (Ipv4Addr::LOCALHOST, dest.port()).into(),
        IpAddr::V6(v6) if v6.segments()[..2] == [0x2001, 2] => (Ipv6Addr::LOCALHOST, dest.port()).into(),
        _ => dest,
    }
}

fn refusal_of(e: &io::Error) -> StreamRefusal {
    match e.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => StreamRefusal::ConnectionRefused,
        io::ErrorKind::TimedOut => StreamRefusal::ConnectionTimedOut,
        _ => StreamRefusal::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each_and_for_all_and_given_back() {
        let places = Places::new(2, 3);
        let held: Vec<_> = [1, 1, 2].into_iter().filter_map(|key| places.take(key)).collect();
        assert_eq!(held.len(), 3);
        assert!(places.take(2).is_none(), "all are taken");
        drop(held);
        let _two = [places.take(1), places.take(1)].map(Option::unwrap);
        assert!(places.holds(&1) && !places.holds(&2));
        assert!(places.take(1).is_none(), "its own are taken");
        assert!(places.take(2).is_some());
        assert_eq!(places.taken.lock().unwrap().1.len(), 1, "keys without places are forgotten");
    }

    #[test]
    fn a_stranger_with_a_whole_ipv6_network_counts_once() {
        let of = |ip: &str| prefix(ip.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
