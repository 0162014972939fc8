//! Moves packets between the device and the socket, in batches, in one task.

use super::{
    INNER_MTU, TunnelError, TunnelRefusal,
    gate::{Gate, Passed, Stop},
    packet::{End, Header, Role, too_big},
    sessions::{Outgoing, Received, Sessions},
    train::{FRAME_MAX_BYTES, Pieces, Trains},
};
use crate::{
    dataplane::{Core, Refusal, ServiceCounters, shaper::FlowId},
    model::{Endpoint, Mono, PeerId, Rng, ServiceId, SigningKey},
    os::{
        datagram::{Buffers, Datagrams, path_mtu},
        sockets,
        tun::Tun,
    },
    routing::Forwarding,
};
use bytes::BytesMut;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

const TICK: Duration = Duration::from_millis(250);
/// How often the device and the paths to the peers are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Host names in endpoints are looked up again so often.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ADDRESSES_PER_PEER: usize = 16;
/// Packets read from the device before the socket has its turn; the last frame may hold more.
const DEVICE_BATCH_PACKETS: usize = 128;
/// Bytes of one train of datagrams.
const TRAIN_MAX_BYTES: usize = 65_000;
/// The largest packet that the device gives.
const PACKET_MAX_BYTES: usize = 65_535;

type Addresses = BTreeMap<PeerId, Vec<IpAddr>>;

/// What the tunnel knows, beyond the life of one device.
pub(super) struct Carrier {
    start: Instant,
    gate: Gate,
    sessions: Sessions,
    out: Vec<Outgoing>,
    buffers: Buffers,
    frame: Box<[u8]>,
    packet: Box<[u8]>,
    /// What the device gets at the end of this turn.
    trains: Trains,
    /// Packets and bytes since they were last counted, to the target and to the source.
    counted: BTreeMap<(ServiceId, bool), (u64, u64)>,
    services: BTreeMap<ServiceId, Arc<ServiceCounters>>,
    /// Packets whose turn has come, under the limits of their services. What waits is bounded by the lanes.
    released: mpsc::UnboundedReceiver<Waited>,
    release: mpsc::UnboundedSender<Waited>,
}

/// A packet that waited for its turn (dataplane.md §9).
struct Waited {
    packet: Vec<u8>,
    passed: Passed,
}

impl Carrier {
    pub fn new(core: &Arc<Core>, key: &SigningKey, rng: Rng) -> Self {
        let weak = Arc::downgrade(core);
        let (release, released) = mpsc::unbounded_channel();
        let forbids = move |dest| weak.upgrade().is_none_or(|core| core.forbids(dest));
        Self {
            start: Instant::now(),
            gate: Gate::new(core.local, Box::new(forbids)),
            sessions: Sessions::new(key, INNER_MTU, rng),
            out: vec![],
            buffers: Buffers::default(),
            frame: vec![0; FRAME_MAX_BYTES].into(),
            packet: vec![0; PACKET_MAX_BYTES].into(),
            trains: Trains::default(),
            counted: BTreeMap::new(),
            services: BTreeMap::new(),
            released,
            release,
        }
    }

    fn now(&self) -> Mono {
        Mono::from_duration(self.start.elapsed())
    }

    /// Carries packets until device or socket fail.
    pub async fn carry(&mut self, core: &Core, socket: &Datagrams, device: &Tun) -> TunnelError {
        match self.carry_on(core, socket, device).await {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    async fn carry_on(
        &mut self,
        core: &Core,
        socket: &Datagrams,
        device: &Tun,
    ) -> Result<std::convert::Infallible, TunnelError> {
        let mut forwarding = core.forwarding.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looking_up = Box::pin(resolve(forwarding.borrow_and_update().clone(), Duration::ZERO));
        self.follow(&forwarding.borrow().clone());
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = true;
        // Of a device that is gone.
        self.trains.drain(|_| {});
        loop {
            tokio::select! {
                biased;
                changed = forwarding.changed(), if changes => match changed {
                    Ok(()) => {
                        let snapshot = forwarding.borrow_and_update().clone();
                        self.follow(&snapshot);
                        looking_up = Box::pin(resolve(snapshot, Duration::ZERO));
                    }
                    Err(_) => changes = false,
                },
                addresses = &mut looking_up => {
                    for (peer, addresses) in addresses {
                        self.sessions.set_addresses(peer, addresses);
                    }
                    self.greet(core.local);
                    looking_up = Box::pin(resolve(forwarding.borrow().clone(), RESOLVE_INTERVAL));
                }
                _ = tick.tick() => self.sessions.tick(&mut self.out),
                _ = look.tick() => {
                    device.check().map_err(TunnelError::DeviceGone)?;
                    self.sessions.measure(|remote| path_mtu(remote, core.own_mark).ok());
                }
                waited = self.released.recv() => self.take_turns(core, device, waited),
                ready = socket.readable() => ready.map_err(TunnelError::Socket)?,
                ready = device.readable() => ready.map_err(TunnelError::DeviceGone)?,
            }
            // Whichever woke us, both have their turn, so that neither starves the other.
            self.read_socket(core, socket, device)?;
            self.read_device(core, device)?;
            self.write_device(device);
            self.count(core);
            self.send(core, socket).await;
        }
    }

    fn follow(&mut self, snapshot: &Arc<Forwarding>) {
        // Without the tunnel there are no sessions either.
        let peers = if snapshot.ip_tunnel { &snapshot.peers } else { &BTreeMap::new() };
        self.sessions.follow(peers);
        self.gate.follow(snapshot.clone());
        self.services.retain(|id, _| snapshot.services.contains_key(id));
    }

    /// Sessions with all that share a service with this peer.
    fn greet(&mut self, local: PeerId) {
        let snapshot = self.gate.snapshot().clone();
        let others = snapshot.services.values().map(|s| if s.source == local { s.target } else { s.source });
        self.sessions.greet(others, &mut self.out);
    }

    fn read_device(&mut self, core: &Core, device: &Tun) -> Result<(), TunnelError> {
        let now = self.now();
        let mut frame = std::mem::take(&mut self.frame);
        let mut packets = 0;
        let mut end = Ok(());
        while packets < DEVICE_BATCH_PACKETS {
            let len = match device.try_read(&mut frame) {
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    end = Err(TunnelError::DeviceGone(e));
                    break;
                }
            };
            packets += 1;
            let Ok(mut pieces) = Pieces::of(&mut frame[..len]) else {
                refuse(core, TunnelRefusal::Malformed, None);
                continue;
            };
            while let Some(len) = pieces.next_into(&mut self.packet) {
                packets += 1;
                self.take_from_device(core, device, len, now);
            }
        }
        self.frame = frame;
        end
    }

    /// Of the first `len` bytes of `self.packet`.
    fn take_from_device(&mut self, core: &Core, device: &Tun, len: usize, now: Mono) {
        match self.gate.take_from_device(&mut self.packet[..len], now) {
            Ok(passed) if self.must_wait(&passed, passed.to_target) => {
                let packet = self.packet[..passed.len].to_vec();
                self.wait(core, Waited { packet, passed });
            }
            Ok(passed) => self.hand_to_peer(core, device, &passed),
            Err(stop) => stopped(core, stop),
        }
    }

    fn write_device(&mut self, device: &Tun) {
        self.trains.drain(|frame| {
            if let Err(e) = device.write(frame) {
                // The kernel says no to one frame, or the device is gone, which the next read tells.
                tracing::debug!("the device took no frame of {} bytes: {e}", frame.len());
            }
        });
    }

    fn hand_to_peer(&mut self, core: &Core, device: &Tun, passed: &Passed) {
        if let Some(error) = self.error_about(passed) {
            // Its sender will send smaller ones; the kernel knows the way back to it.
            self.trains.push(&error, device.joins_datagrams());
            return refuse(core, TunnelRefusal::TooBig, Some((passed.service, passed.peer)));
        }
        if self.sessions.send(passed.peer, &self.packet[..passed.len], &mut self.out) {
            self.note(passed);
        } else {
            refuse(core, TunnelRefusal::Unreachable, Some((passed.service, passed.peer)));
        }
    }

    /// What the sender of the packet is told if it may not be cut and is too big for the path to the peer.
    fn error_about(&mut self, passed: &Passed) -> Option<Vec<u8>> {
        let mtu = self.sessions.mtu(passed.peer).filter(|mtu| passed.len > usize::from(*mtu))?;
        let packet = &mut self.packet[..passed.len];
        let header = Header::parse(packet).ok().filter(|h| !h.may_be_fragmented)?;
        // As the kernel knows it.
        header.set_address(packet, End::Dest, passed.was_for);
        too_big(packet, &Header { dest: passed.was_for, ..header }, mtu)
    }

    fn read_socket(&mut self, core: &Core, socket: &Datagrams, device: &Tun) -> Result<(), TunnelError> {
        let mut packets: Vec<(PeerId, BytesMut)> = vec![];
        let (sessions, out) = (&mut self.sessions, &mut self.out);
        let received =
            socket.try_receive(&mut self.buffers, |way, datagram| match sessions.receive(way, datagram, out) {
                Received::Handled => {}
                Received::Packet(peer, packet) => packets.push((peer, packet)),
                Received::Refused => refuse(core, TunnelRefusal::NotAuthentic, None),
            });
        match received {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock && !is_passing(&e) => return Err(TunnelError::Socket(e)),
            _ => {}
        }
        let now = self.now();
        for (peer, mut packet) in packets {
            match self.gate.take_from_peer(peer, &mut packet, now) {
                Ok(passed) if self.must_wait(&passed, !passed.to_target) => {
                    let packet = packet[..passed.len].to_vec();
                    self.wait(core, Waited { packet, passed });
                }
                Ok(passed) => self.hand_to_device(device, &packet[..passed.len], &passed),
                Err(stop) => stopped(core, stop),
            }
        }
        Ok(())
    }

    fn hand_to_device(&mut self, device: &Tun, packet: &[u8], passed: &Passed) {
        self.trains.push(packet, device.joins_datagrams());
        self.note(passed);
    }

    /// Whether the packet is of a service with a limit. Only its source peer shapes.
    fn must_wait(&self, passed: &Passed, is_at_source: bool) -> bool {
        is_at_source && self.gate.snapshot().services.get(&passed.service).is_some_and(|s| s.limit_mbps > 0)
    }

    fn wait(&self, core: &Core, waited: Waited) {
        let (passed, bytes, flow) = (waited.passed, waited.packet.len(), flow_of(&waited.packet));
        let lanes = core.shaper.lanes(core, passed.service);
        let lane = if passed.to_target { &lanes.to_target } else { &lanes.to_source };
        let release = self.release.clone();
        if !lane.pass(flow, bytes, move || _ = release.send(waited)) {
            refuse(core, TunnelRefusal::OverLimit, Some((passed.service, passed.peer)));
        }
    }

    fn take_turns(&mut self, core: &Core, device: &Tun, first: Option<Waited>) {
        first.into_iter().for_each(|waited| self.hand_on(core, device, &waited));
        for _ in 1..DEVICE_BATCH_PACKETS {
            let Ok(waited) = self.released.try_recv() else { return };
            self.hand_on(core, device, &waited);
        }
    }

    fn hand_on(&mut self, core: &Core, device: &Tun, Waited { packet, passed }: &Waited) {
        if passed.to_target {
            self.packet[..passed.len].copy_from_slice(packet);
            self.hand_to_peer(core, device, passed);
        } else {
            self.hand_to_device(device, packet, passed);
        }
    }

    fn note(&mut self, passed: &Passed) {
        let (packets, bytes) = self.counted.entry((passed.service, passed.to_target)).or_default();
        *packets += 1;
        *bytes += passed.len as u64;
    }

    fn count(&mut self, core: &Core) {
        while let Some(((service, to_target), (packets, bytes))) = self.counted.pop_first() {
            let counters = self.services.entry(service).or_insert_with(|| core.counters.service(service));
            let count = if to_target { &counters.bytes_to_target } else { &counters.bytes_to_source };
            count.fetch_add(bytes, Relaxed);
            counters.tunnel_packets.fetch_add(packets, Relaxed);
        }
    }

    /// Sends everything, datagrams of one size and way together.
    async fn send(&mut self, core: &Core, socket: &Datagrams) {
        let mut out = std::mem::take(&mut self.out);
        let mut rest = out.as_slice();
        let mut train = vec![];
        while let Some(first) = rest.first() {
            let size = first.datagram.len();
            let room = if first.alone { 1 } else { socket.train_max() };
            let fits = (TRAIN_MAX_BYTES / size.max(1)).min(room).max(1);
            let mut count =
                rest.iter().take(fits).take_while(|o| o.way == first.way && o.datagram.len() == size).count();
            // The last one may be shorter.
            if count < fits && rest.get(count).is_some_and(|o| o.way == first.way && o.datagram.len() < size) {
                count += 1;
            }
            train.clear();
            rest[..count].iter().for_each(|o| train.extend_from_slice(&o.datagram));
            let mut sent = socket.send(first.way, &train, size).await;
            if first.way.local.is_some() && sent.as_ref().is_err_and(is_from_elsewhere) {
                sent = socket.send(self.sessions.leave(first.way), &train, size).await;
            }
            if let Err(e) = sent {
                refuse(core, TunnelRefusal::Unreachable, None);
                tracing::debug!("cannot send to {}: {e}", first.way.remote);
            }
            rest = &rest[count..];
        }
        out.clear();
        self.out = out;
    }
}

/// Packets of one flow have one number. Pieces behind the first have no ports, and a flow of their own.
fn flow_of(packet: &[u8]) -> FlowId {
    let Ok(header) = Header::parse(packet) else { return FlowId(0) };
    let ports = match header.role(packet) {
        Ok(Some(Role::Data { from, to })) => (from, to),
        _ => (0, 0),
    };
    let mut hasher = DefaultHasher::new();
    (header.source, header.dest, header.protocol, ports).hash(&mut hasher);
    FlowId(hasher.finish() >> 32)
}

/// An error of an earlier datagram, reported by the network.
fn is_passing(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(e.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | Interrupted)
}

/// What the kernel says where the host has no longer the address that was to be the source: the last one for IPv4, which
/// may mean other things as well.
fn is_from_elsewhere(e: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, InvalidInput, NetworkUnreachable};
    matches!(e.kind(), InvalidInput | AddrNotAvailable | NetworkUnreachable)
}

fn stopped(core: &Core, stop: Stop) {
    match stop {
        Stop::Ignored => {}
        Stop::Refused { reason, service } => refuse(core, reason, service),
    }
}

fn refuse(core: &Core, reason: TunnelRefusal, service: Option<(ServiceId, PeerId)>) {
    let refusal = Refusal::Tunnel(reason);
    match service {
        Some((service, peer)) => core.counters.refuse_service(service, peer, refusal, format_args!("IP tunnel")),
        None => core.counters.refuse(refusal, format_args!("IP tunnel")),
    }
}

/// The addresses of all peers, in the order of their endpoints, but for those of this host, after a while.
async fn resolve(snapshot: Arc<Forwarding>, after: Duration) -> Addresses {
    tokio::time::sleep(after).await;
    let mut found = Addresses::new();
    for (peer, path) in &snapshot.peers {
        let mut addresses = vec![];
        for endpoint in &path.endpoints {
            addresses.extend(look_up(endpoint, path.data_ports.iptun).await);
        }
        let local = sockets::local_addresses().unwrap_or_default();
        let mut seen = std::collections::BTreeSet::new();
        addresses.retain(|ip| !local.contains(ip) && !ip.is_loopback() && !ip.is_unspecified() && seen.insert(*ip));
        addresses.truncate(MAX_ADDRESSES_PER_PEER);
        found.insert(*peer, addresses);
    }
    found
}

/// A name that does not resolve is an address that does not answer.
async fn look_up(endpoint: &Endpoint, port: u16) -> Vec<IpAddr> {
    if let Some(ip) = endpoint.ip() {
        return vec![ip.to_canonical()];
    }
    match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((endpoint.host(), port))).await {
        Ok(Ok(found)) => found.map(|addr| addr.ip().to_canonical()).collect(),
        _ => vec![],
    }
}
