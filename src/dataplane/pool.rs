//! Connections to targets: a few handshaken ones stand ready for each, so that a flow's header and first bytes leave in
//! one flight. One flow takes one connection and ends it.

use super::{
    Core,
    limits::{
        BACKOFF_MAX, BACKOFF_MIN, MAX_DIAL_ADDRESSES, MAX_DIALS_PER_TARGET, UNANSWERED_TIMEOUT, WARM_MAX, WARM_MIN,
        WARM_PROVEN,
    },
    session::Session,
};
use crate::{
    model::{Endpoint, PeerId, PublicKey, Rng, Transport},
    os::sockets,
    routing::{Forwarding, PeerPath},
};
use rustls::pki_types::ServerName;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no address of the peer is known")]
    NoAddress,
    #[error("connect to {addr}")]
    Connect { addr: SocketAddr, source: io::Error },
    #[error("TLS handshake with {addr}")]
    Handshake { addr: SocketAddr, source: io::Error },
    #[error("as many flows are dialling this peer as may at once")]
    Busy,
}

impl DialError {
    /// The error with its cause, for a log line.
    pub fn detail(&self) -> String {
        match self {
            Self::Connect { source, .. } | Self::Handshake { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

/// A peer that flows go to, under one key and one set of addresses.
pub(super) struct Target {
    pub peer: PeerId,
    path: PeerPath,
    connector: TlsConnector,
    mark: u32,
    connect_timeout: Duration,
    handshake_timeout: Duration,
    renew_after: Duration,
    ready: Mutex<Ready>,
    /// How many are ready, for those who wait for it.
    level: watch::Sender<usize>,
    taken: Notify,
    /// A flow's own dial succeeded: no reason to wait any longer.
    answered: AtomicBool,
    last_good: Mutex<Option<SocketAddr>>,
    dials: Semaphore,
}

struct Ready {
    sessions: VecDeque<(Session, Instant)>,
    wanted: usize,
}

#[derive(Default)]
pub(super) struct Pools(Mutex<BTreeMap<PeerId, (Arc<Target>, DropGuard)>>);

impl Pools {
    /// Keeps pools for exactly the targets of active outgoing services.
    pub fn follow(&self, core: &Arc<Core>, forwarding: &Forwarding) {
        let wanted: BTreeSet<PeerId> = forwarding
            .services
            .values()
            .filter(|s| s.source == core.local && s.transport == Transport::Tcp && !s.transparent)
            .map(|s| s.target)
            .collect();
        lock(&self.0).retain(|peer, _| wanted.contains(peer));
        for peer in wanted {
            if let Some(path) = forwarding.peers.get(&peer) {
                self.target(core, peer, path);
            } else {
                lock(&self.0).remove(&peer);
            }
        }
    }

    /// The target of this path; begun now if it is new, begun anew if its key or addresses changed.
    pub fn target(&self, core: &Arc<Core>, peer: PeerId, path: &PeerPath) -> Option<Arc<Target>> {
        let mut targets = lock(&self.0);
        if let Some((target, _)) = targets.get(&peer)
            && target.path == *path
        {
            return Some(target.clone());
        }
        let target = match Target::new(core, peer, path) {
            Ok(target) => Arc::new(target),
            Err(e) => {
                tracing::error!(%peer, "cannot make a TLS configuration for the peer: {e}");
                return None;
            }
        };
        let stop = core.stop.child_token();
        core.tasks.spawn(keep_ready(target.clone(), stop.clone(), jitter(core.public_key, path.public_key)));
        targets.insert(peer, (target.clone(), stop.drop_guard()));
        Some(target)
    }

    pub fn existing(&self, peer: PeerId) -> Option<Arc<Target>> {
        lock(&self.0).get(&peer).map(|(target, _)| target.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Differs between pairs of peers, which is all that spreading retries needs.
fn jitter(own: PublicKey, other: PublicKey) -> Rng {
    let mut seed = *own.as_bytes();
    seed.iter_mut().zip(other.as_bytes()).for_each(|(a, b)| *a ^= b.rotate_left(1));
    Rng::from_seed(seed)
}

impl Target {
    fn new(core: &Core, peer: PeerId, path: &PeerPath) -> Result<Self, rustls::Error> {
        Ok(Self {
            peer,
            path: path.clone(),
            connector: TlsConnector::from(Arc::new(core.identity.client(path.public_key)?)),
            mark: core.own_mark,
            connect_timeout: core.timing.peer_connect,
            handshake_timeout: core.timing.handshake,
            renew_after: core.timing.warm,
            ready: Mutex::new(Ready { sessions: VecDeque::new(), wanted: WARM_MIN }),
            level: watch::Sender::new(0),
            taken: Notify::new(),
            answered: AtomicBool::new(false),
            last_good: Mutex::new(None),
            dials: Semaphore::new(MAX_DIALS_PER_TARGET),
        })
    }

    pub fn public_key(&self) -> PublicKey {
        self.path.public_key
    }

    pub fn level(&self) -> watch::Receiver<usize> {
        self.level.subscribe()
    }

    /// The connection that became ready last, as the likeliest to be alive. None ready makes the pool larger.
    pub fn take(&self) -> Option<Session> {
        let mut ready = lock(&self.ready);
        let taken = ready.sessions.pop_back().map(|(session, _)| session);
        if taken.is_none() {
            ready.wanted = (ready.wanted * 2).min(WARM_MAX);
        }
        self.level.send_replace(ready.sessions.len());
        drop(ready);
        self.taken.notify_one();
        taken
    }

    /// A connection for a flow that found none ready.
    pub async fn dial_for_flow(&self) -> Result<Session, DialError> {
        let _permit = self.dials.try_acquire().map_err(|_| DialError::Busy)?;
        let session = self.dial().await?;
        self.answered.store(true, Relaxed);
        self.taken.notify_one();
        Ok(session)
    }

    async fn dial(&self) -> Result<Session, DialError> {
        let mut last = DialError::NoAddress;
        for addr in self.addresses().await {
            match self.dial_address(addr).await {
                Ok(session) => {
                    *lock(&self.last_good) = Some(addr);
                    return Ok(session);
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// The address that worked last, then those of the endpoints in order.
    async fn addresses(&self) -> Vec<SocketAddr> {
        let port = self.path.data_ports.tproxy;
        let mut addresses: Vec<SocketAddr> = lock(&self.last_good).into_iter().collect();
        for addr in resolve(&self.path.endpoints, port, self.connect_timeout).await {
            if !addresses.contains(&addr) && addresses.len() < MAX_DIAL_ADDRESSES {
                addresses.push(addr);
            }
        }
        addresses
    }

    async fn dial_address(&self, addr: SocketAddr) -> Result<Session, DialError> {
        let connect = async { sockets::wan_socket(addr, self.mark)?.connect(addr).await };
        let tcp = within(self.connect_timeout, connect).await.map_err(|source| DialError::Connect { addr, source })?;
        let handshake = async {
            sockets::set_user_timeout(&tcp, Some(UNANSWERED_TIMEOUT))?;
            self.connector.connect(ServerName::IpAddress(addr.ip().into()), tcp).await
        };
        let stream =
            within(self.handshake_timeout, handshake).await.map_err(|source| DialError::Handshake { addr, source })?;
        let (tcp, tls) = stream.into_inner();
        // From here a drop is a reset unless the stream ends in order.
        sockets::set_reset_on_drop(&tcp, true).map_err(|source| DialError::Connect { addr, source })?;
        Ok(Session::new(tcp, tls.into()))
    }

    fn missing(&self) -> usize {
        let ready = lock(&self.ready);
        ready.wanted.saturating_sub(ready.sessions.len())
    }

    fn add(&self, session: Session) {
        let mut ready = lock(&self.ready);
        ready.sessions.push_back((session, Instant::now()));
        self.level.send_replace(ready.sessions.len());
    }

    /// When the oldest is due for renewal.
    fn renewal(&self) -> Option<Instant> {
        lock(&self.ready).sessions.front().map(|(_, since)| *since + self.renew_after)
    }

    /// Lets those go that nobody wanted for long; the pool becomes smaller by as many.
    fn drop_old(&self, now: Instant) {
        let mut ready = lock(&self.ready);
        while ready.sessions.front().is_some_and(|(_, since)| *since + self.renew_after <= now) {
            if let Some((session, _)) = ready.sessions.pop_front() {
                let _ = sockets::set_reset_on_drop(session.tcp(), false);
            }
            ready.wanted = (ready.wanted - 1).max(WARM_MIN);
        }
        self.level.send_replace(ready.sessions.len());
    }

    /// Ready when some have died; whether one of them was too young for that.
    fn poll_dead(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let now = Instant::now();
        let mut ready = lock(&self.ready);
        let before = ready.sessions.len();
        let mut young = false;
        ready.sessions.retain_mut(|(session, since)| {
            let dead = session.poll_ended(cx).is_ready();
            young |= dead && now - *since < WARM_PROVEN;
            !dead
        });
        if ready.sessions.len() == before {
            return Poll::Pending;
        }
        self.level.send_replace(ready.sessions.len());
        Poll::Ready(young)
    }

    fn clear(&self) {
        lock(&self.ready).sessions.clear();
        self.level.send_replace(0);
    }
}

/// The addresses of endpoints with a data port, in order.
pub(super) async fn resolve(endpoints: &[Endpoint], port: u16, limit: Duration) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for endpoint in endpoints {
        let resolved = match endpoint.ip() {
            Some(ip) => vec![SocketAddr::new(ip, port)],
            None => match timeout(limit, tokio::net::lookup_host((endpoint.host(), port))).await {
                Ok(Ok(found)) => found.collect(),
                // A name that does not resolve is an address that does not answer: the next one is tried.
                _ => vec![],
            },
        };
        for addr in resolved {
            if !addresses.contains(&addr) && addresses.len() < MAX_DIAL_ADDRESSES {
                addresses.push(addr);
            }
        }
    }
    addresses
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits between attempts that fail: doubled each time, spread by half.
struct Backoff {
    wait: Duration,
    until: Option<Instant>,
    failed: Option<Instant>,
    rng: Rng,
}

impl Backoff {
    fn fail(&mut self, now: Instant) {
        if self.failed.replace(now).is_some_and(|last| now - last > 2 * BACKOFF_MAX) {
            self.wait = BACKOFF_MIN;
        }
        let spread = self.rng.below(self.wait.as_millis() as u64);
        self.until = Some(now + self.wait / 2 + Duration::from_millis(spread));
        self.wait = (self.wait * 2).min(BACKOFF_MAX);
    }
    fn reset(&mut self) {
        self.wait = BACKOFF_MIN;
        self.until = None;
    }
}

/// Fills the pool until told to stop.
async fn keep_ready(target: Arc<Target>, stop: CancellationToken, rng: Rng) {
    let mut dials = JoinSet::new();
    let mut backoff = Backoff { wait: BACKOFF_MIN, until: None, failed: None, rng };
    let mut down = false;
    loop {
        // After a failure one attempt at a time asks whether the target is back.
        let waiting = backoff.until.is_some_and(|until| until > Instant::now());
        let room = if backoff.until.is_some() { 1 } else { target.missing() };
        while !waiting && dials.len() < room.min(target.missing()) {
            let target = target.clone();
            dials.spawn(async move { target.dial().await });
        }
        let wake_at = match (waiting, backoff.until, target.renewal()) {
            (true, Some(retry), Some(renewal)) => Some(retry.min(renewal)),
            (true, Some(retry), None) => Some(retry),
            (_, _, renewal) => renewal,
        };
        let timer = async {
            match wake_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(dialled) = dials.join_next() => match dialled {
                Ok(Ok(session)) => {
                    if down {
                        tracing::info!(peer = %target.peer, "target peer answers again");
                    }
                    (down, backoff.until) = (false, None);
                    target.add(session);
                }
                Ok(Err(e)) => {
                    if !down {
                        tracing::warn!(peer = %target.peer, "target peer cannot be connected: {}", e.detail());
                    }
                    down = true;
                    backoff.fail(Instant::now());
                }
                Err(e) => tracing::error!(peer = %target.peer, "a dial broke off: {e}"),
            },
            young = poll_fn(|cx| target.poll_dead(cx)) => {
                if young { backoff.fail(Instant::now()) } else { backoff.reset() }
            }
            () = target.taken.notified() => {
                if target.answered.swap(false, Relaxed) {
                    backoff.reset();
                }
            }
            () = timer => target.drop_old(Instant::now()),
        }
    }
    dials.shutdown().await;
    target.clear();
}
