//! The socket and the clock under an [`Endpoint`], and the tasks around it.

use super::{
    MTU_BYTES,
    endpoint::{Endpoint, Event, Handle, Reject},
    frame::FlowId,
    held::Transmit,
    noise::StaticKey,
    session::Notice,
    stream::{KcpStream, Wakers},
};
use crate::{
    dataplane::{Core, Refusal, exit, pool, tls},
    model::{Mono, PeerId, Rng, SigningKey, Transport},
    os::sockets,
    routing::{Forwarding, PeerPath},
};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit as Bundle, UdpSockRef, UdpSocketState};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout_at},
};

/// Datagrams that leave in one call, and before arrivals are looked at again.
const BUNDLE_MAX: usize = 44;
const SENT_IN_A_ROW: usize = 4 * BUNDLE_MAX;
/// Batches taken from the socket in a row.
const RECEIVED_IN_A_ROW: usize = 4;
/// Names of endpoints are looked up again so often.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);

/// The kcp side of an engine.
pub(in crate::dataplane) struct Kcp {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// There may be something to send.
    wake: Notify,
    /// A session was established or lost.
    changed: Notify,
    start: Instant,
}

pub(super) struct State {
    pub endpoint: Endpoint,
    pub wakers: BTreeMap<(Handle, FlowId), Wakers>,
    opened: Vec<(Handle, FlowId)>,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::dataplane) enum OpenError {
    #[error("no session with the peer: it does not answer on its kcp port, or does not trust this peer")]
    Unreachable,
    #[error("as many flows are open in the session with the peer as may be")]
    Busy,
}

impl Shared {
    pub fn now(&self) -> Mono {
        Mono::from_duration(self.start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the state, then wakes whom it concerns, and the driver.
    pub fn run<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let result = self.run_as_driver(work);
        self.wake.notify_one();
        result
    }

    fn run_as_driver<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = work(&mut state);
        let (wakers, changed) = state.settle();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if changed {
            self.changed.notify_waiters();
        }
        result
    }
}

impl State {
    fn settle(&mut self) -> (Vec<Waker>, bool) {
        let (mut woken, mut changed) = (vec![], false);
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::Established(_) | Event::Lost(_) => changed = true,
                Event::Flow(handle, Notice::Opened(flow)) => self.opened.push((handle, flow)),
                Event::Flow(handle, Notice::Readable(flow)) => {
                    if let Some(wakers) = self.wakers.get_mut(&(handle, flow)) {
                        woken.extend([wakers.reader.take(), wakers.failure.take()].into_iter().flatten());
                    }
                }
                Event::Flow(handle, Notice::Writable(flow)) => {
                    woken.extend(self.wakers.get_mut(&(handle, flow)).and_then(|wakers| wakers.writer.take()));
                }
            }
        }
        (woken, changed)
    }
}

impl Kcp {
    /// `seed` has to be from a good source: keys come of it.
    pub fn new(key: &SigningKey, seed: [u8; 32]) -> Self {
        let endpoint = Endpoint::new(key.x25519_secret(), tls::has_aes(), Rng::from_seed(seed));
        let state = State { endpoint, wakers: BTreeMap::new(), opened: vec![] };
        let shared =
            Shared { state: Mutex::new(state), wake: Notify::new(), changed: Notify::new(), start: Instant::now() };
        Self { shared: Arc::new(shared) }
    }

    /// Starts the tasks of the socket.
    pub fn start(&self, core: &Arc<Core>, socket: UdpSocket) -> io::Result<()> {
        let socket = Socket::new(socket)?;
        core.tasks.spawn(drive(core.clone(), self.shared.clone(), socket));
        core.tasks.spawn(follow(core.clone(), self.shared.clone()));
        Ok(())
    }

    /// A new flow to the peer, over the session that stands; waits for it until `limit`.
    pub async fn open(&self, key: StaticKey, limit: Duration) -> Result<KcpStream, OpenError> {
        let deadline = Instant::now() + limit;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Registered before the look: no change in between is missed.
            changed.as_mut().enable();
            let now = self.shared.now();
            let opened = self.shared.run(|state| {
                let handle = state.endpoint.handle(&key).filter(|handle| state.endpoint.is_established(*handle))?;
                Some((handle, state.endpoint.session(handle).and_then(|session| session.open(now))))
            });
            match opened {
                Some((handle, Some(flow))) => return Ok(KcpStream::new(self.shared.clone(), handle, flow)),
                Some((_, None)) => return Err(OpenError::Busy),
                None => {}
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(OpenError::Unreachable);
            }
        }
    }
}

/// Keeps trust and sessions to what the snapshots name. Sessions of peers not trusted any more end at once.
async fn follow(core: Arc<Core>, shared: Arc<Shared>) {
    let mut forwarding = core.forwarding.clone();
    let mut held = BTreeSet::new();
    loop {
        let snapshot = forwarding.borrow_and_update().clone();
        let trusted = snapshot.peers.iter().map(|(id, path)| (path.x25519_key.0, *id)).collect();
        shared.run(|state| state.endpoint.trust(trusted));
        let work = async {
            loop {
                connect_all(&core, &shared, &snapshot, &mut held).await;
                sleep(RESOLVE_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            changed = forwarding.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = work => {}
        }
    }
}

/// Begins or keeps a session to each target of an active service with this transport, and ends those to others.
async fn connect_all(core: &Core, shared: &Shared, snapshot: &Forwarding, held: &mut BTreeSet<StaticKey>) {
    let mine = snapshot.services.values().filter(|s| s.source == core.local && s.transport == Transport::Kcp);
    let targets: BTreeSet<PeerId> = mine.map(|s| s.target).collect();
    let paths: Vec<&PeerPath> = targets.iter().filter_map(|id| snapshot.peers.get(id)).collect();
    let wanted: BTreeSet<StaticKey> = paths.iter().map(|path| path.x25519_key.0).collect();
    for gone in held.difference(&wanted) {
        shared.run(|state| state.endpoint.disconnect(gone));
    }
    *held = wanted;
    for path in paths {
        let addresses = pool::resolve(&path.endpoints, path.data_ports.kcp, core.timing.peer_connect).await;
        let now = shared.now();
        shared.run(|state| state.endpoint.connect(now, path.x25519_key.0, &addresses));
    }
}

/// Moves datagrams until the engine stops; then says goodbye.
async fn drive(core: Arc<Core>, shared: Arc<Shared>, mut socket: Socket) {
    loop {
        let due = turn(&core, &shared, &mut socket).await;
        let timer = async {
            match due {
                Some(at) => sleep_until(shared.start + at.since_start()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = core.stop.cancelled() => break,
            _ = socket.udp.readable() => {}
            () = shared.wake.notified() => {}
            () = timer => {}
        }
    }
    shared.run_as_driver(|state| state.endpoint.close());
    while socket.fill(&shared) {
        socket.flush().await;
    }
}

/// Takes what arrived, does what is due, sends what there is; when to come back at the latest.
async fn turn(core: &Arc<Core>, shared: &Arc<Shared>, socket: &mut Socket) -> Option<Mono> {
    for _ in 0..RECEIVED_IN_A_ROW {
        if !receive(core, shared, socket) {
            break;
        }
    }
    let now = shared.now();
    shared.run_as_driver(|state| state.endpoint.handle_timeout(now));
    let mut sent = 0;
    while sent < SENT_IN_A_ROW && socket.fill(shared) {
        sent += socket.parts.len();
        socket.flush().await;
    }
    serve_opened(core, shared);
    if sent >= SENT_IN_A_ROW {
        return Some(shared.now());
    }
    shared.lock().endpoint.poll_timeout()
}

fn receive(core: &Core, shared: &Shared, socket: &mut Socket) -> bool {
    let Some(count) = socket.receive() else { return false };
    let now = shared.now();
    let mut rejected = vec![];
    shared.run_as_driver(|state| {
        for (meta, buffer) in socket.metas[..count].iter().zip(socket.buffers.chunks(socket.buffer_bytes)) {
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                if let Err(reject) = state.endpoint.handle_datagram(now, meta.addr, meta.dst_ip, datagram) {
                    rejected.push((meta.addr, reject));
                }
            }
        }
    });
    for (from, reject) in rejected {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        match reject {
            Reject::Handshake => core.counters.refuse(Refusal::Handshake, format_args!("{from}: {reject}")),
            Reject::Busy => core.counters.refuse(Refusal::Busy, format_args!("{from}: {reject}")),
            Reject::Violation(_) => core.counters.refuse(Refusal::Protocol, format_args!("{from}: {reject}")),
            _ => tracing::trace!("datagram of {from} dropped: {reject}"),
        }
    }
    true
}

fn serve_opened(core: &Arc<Core>, shared: &Arc<Shared>) {
    let opened: Vec<_> = {
        let mut state = shared.lock();
        let opened = std::mem::take(&mut state.opened);
        opened.into_iter().map(|(handle, flow)| (handle, flow, state.endpoint.peer(handle))).collect()
    };
    for (handle, flow, peer) in opened {
        let stream = KcpStream::new(shared.clone(), handle, flow);
        // Without a peer the session is over already, and dropping the stream is all there is to do.
        let Some(peer) = peer else { continue };
        let (core, stop) = (core.clone(), core.stop.clone());
        core.tasks.clone().spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = exit::serve_stream(&core, stream, peer, None) => {}
            }
        });
    }
}

struct Socket {
    udp: UdpSocket,
    state: UdpSocketState,
    is_v6: bool,
    buffers: Vec<u8>,
    buffer_bytes: usize,
    metas: Vec<RecvMeta>,
    out: Vec<u8>,
    parts: Vec<(Transmit, usize)>,
}

impl Socket {
    fn new(udp: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&udp))?;
        // After quinn-udp, which forbids fragments: a path too narrow for the fixed size carries them.
        sockets::allow_fragments(&udp)?;
        let is_v6 = udp.local_addr()?.is_ipv6();
        let buffer_bytes = if state.gro_segments() > 1 { 65_536 } else { 2048 };
        Ok(Self {
            udp,
            state,
            is_v6,
            buffers: vec![0; buffer_bytes * BATCH_SIZE],
            buffer_bytes,
            metas: vec![RecvMeta::default(); BATCH_SIZE],
            out: Vec::with_capacity(BUNDLE_MAX * MTU_BYTES),
            parts: Vec::with_capacity(BUNDLE_MAX),
        })
    }

    /// How many buffers were filled; `None` if nothing is there.
    fn receive(&mut self) -> Option<usize> {
        let Self { udp, state, buffers, buffer_bytes, metas, .. } = self;
        let received = udp.try_io(Interest::READABLE, || {
            let mut slices: Vec<IoSliceMut<'_>> = buffers.chunks_mut(*buffer_bytes).map(IoSliceMut::new).collect();
            state.recv(UdpSockRef::from(&*udp), &mut slices, metas)
        });
        match received {
            Ok(count) => Some(count),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) => {
                // News of an earlier datagram, for example that its port is closed.
                tracing::trace!("receiving datagrams: {e}");
                None
            }
        }
    }

    /// Takes the next datagrams from the machine; whether there are any.
    fn fill(&mut self, shared: &Shared) -> bool {
        self.out.clear();
        self.parts.clear();
        let now = shared.now();
        shared.run_as_driver(|state| {
            while self.parts.len() < BUNDLE_MAX {
                let before = self.out.len();
                let Some(way) = state.endpoint.poll_transmit(now, &mut self.out) else { break };
                self.parts.push((way, self.out.len() - before));
            }
        });
        !self.parts.is_empty()
    }

    /// Sends them, datagrams of one size to one place in one call. What the kernel refuses is lost like on the way.
    async fn flush(&self) {
        let (mut at, mut parts) = (0, self.parts.as_slice());
        while let Some(&(way, size)) = parts.first() {
            let mut count =
                parts.iter().take_while(|part| **part == (way, size)).count().min(self.state.max_gso_segments());
            let mut bytes = count * size;
            // The last of a bundle may be shorter.
            if let Some(&(other, shorter)) = parts.get(count)
                && other == way
                && shorter < size
                && count < self.state.max_gso_segments()
            {
                count += 1;
                bytes += shorter;
            }
            self.send(way, size, &self.out[at..at + bytes]).await;
            at += bytes;
            parts = &parts[count..];
        }
    }

    async fn send(&self, way: Transmit, size: usize, contents: &[u8]) {
        let single = contents.len() <= size;
        match self.try_send(way, (!single).then_some(size), contents).await {
            Ok(()) => {}
            Err(e) if single => tracing::trace!("datagram to {} not sent: {e}", way.to),
            // The device does not take bundles, or not of this size.
            Err(_) => {
                for datagram in contents.chunks(size) {
                    if let Err(e) = self.try_send(way, None, datagram).await {
                        tracing::trace!("datagram to {} not sent: {e}", way.to);
                    }
                }
            }
        }
    }

    async fn try_send(&self, way: Transmit, segment_size: Option<usize>, contents: &[u8]) -> io::Result<()> {
        let destination = match way.to.ip() {
            IpAddr::V4(v4) if self.is_v6 => SocketAddr::new(v4.to_ipv6_mapped().into(), way.to.port()),
            _ => way.to,
        };
        let bundle = Bundle { destination, ecn: None, contents, segment_size, src_ip: way.from };
        self.udp.async_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.udp), &bundle)).await
    }
}
