//! Services of the far end that are not TCP, on plain threads, and clients that ask them.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::lab::Host;

/// The largest UDP payload over IPv4.
const DATAGRAM_MAX_BYTES: usize = 65_507;
/// How soon a service notices that it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const V4_HEADER_BYTES: usize = 20;
const SINK_BUFFER_BYTES: usize = 4 << 20;
/// Datagrams between two words of a sink.
const ACKNOWLEDGED_EVERY: u64 = 32;
/// Datagrams of which a sender has not heard.
const UNACKNOWLEDGED_MAX: u64 = 768;
/// After so much silence what is unacknowledged counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(20);

/// A service that answers datagrams, on a thread of its own; ends on drop.
pub struct DatagramService {
    stopping: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl DatagramService {
    /// Sends back each datagram that comes to one address, behind the address that it was seen from.
    pub fn udp_mirror(host: &Host, address: SocketAddr) -> Result<DatagramService> {
        Self::answering(host, address, |datagram, from| {
            let mut answer = format!("{from} ").into_bytes();
            answer.extend_from_slice(datagram);
            Some(answer)
        })
    }

    /// Answers each UDP datagram, which was seen from the address, as `answer` says.
    pub fn answering(
        host: &Host,
        address: SocketAddr,
        answer: impl Fn(&[u8], IpAddr) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<DatagramService> {
        let socket = host.run(|| UdpSocket::bind(address)).with_context(|| format!("binding {address} in {host}"))?;
        socket.set_read_timeout(Some(LOOK_INTERVAL))?;
        Self::start(host, move |stopping, asked| {
            let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
            while !stopping.load(Ordering::Acquire) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                asked.fetch_add(1, Ordering::AcqRel);
                if let Some(answer) = answer(&buffer[..n], from.ip().to_canonical()) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        })
    }

    /// Takes datagrams and says now and then how many came, by 8 bytes (big-endian) to whoever sent the latest.
    pub fn udp_sink(host: &Host, address: SocketAddr) -> Result<DatagramService> {
        let socket = host.run(|| UdpSocket::bind(address)).with_context(|| format!("binding {address} in {host}"))?;
        socket.set_read_timeout(Some(LOOK_INTERVAL))?;
        SockRef::from(&socket).set_recv_buffer_size(SINK_BUFFER_BYTES)?;
        Self::start(host, move |stopping, asked| {
            let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
            while !stopping.load(Ordering::Acquire) {
                let Ok((_, from)) = socket.recv_from(&mut buffer) else { continue };
                let count = asked.fetch_add(1, Ordering::AcqRel) + 1;
                if count.is_multiple_of(ACKNOWLEDGED_EVERY) {
                    let _ = socket.send_to(&count.to_be_bytes(), from);
                }
            }
        })
    }

    /// The same as `udp_mirror` for a protocol of IPv4 that has no ports.
    pub fn raw_mirror(host: &Host, protocol: u8) -> Result<DatagramService> {
        let socket = host.run(|| raw(protocol)).with_context(|| format!("a raw socket in {host}"))?;
        Self::start(host, move |stopping, asked| {
            while !stopping.load(Ordering::Acquire) {
                let Ok((packet, from)) = receive(&socket) else { continue };
                asked.fetch_add(1, Ordering::AcqRel);
                let mut answer = format!("{} ", from.ip()).into_bytes();
                answer.extend_from_slice(packet.get(V4_HEADER_BYTES..).unwrap_or_default());
                let _ = socket.send_to(&answer, &from.into());
            }
        })
    }

    fn start(host: &Host, serve: impl FnOnce(&AtomicBool, &AtomicU64) + Send + 'static) -> Result<DatagramService> {
        let (stopping, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, counted) = (stopping.clone(), asked.clone());
        let thread = host.thread(move || serve(&told, &counted))?;
        Ok(DatagramService { stopping, asked, thread: Some(thread) })
    }

    /// Datagrams that came.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }
}

impl Drop for DatagramService {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("a datagram service panicked");
        }
    }
}

/// Asks a UDP mirror and checks that the payload comes back; from where it was seen.
pub fn ask_udp(host: &Host, mirror: SocketAddr, payload: &[u8], within: Duration) -> Result<IpAddr> {
    host.run(|| {
        let any = if mirror.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(mirror)?;
        socket.set_read_timeout(Some(within))?;
        socket.send(payload).context("sending")?;
        let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
        let n = socket.recv(&mut buffer).context("receiving")?;
        seen_from(&buffer[..n], payload)
    })
    .with_context(|| format!("asking {mirror} from {host}"))
}

/// Datagrams sent for a while, as many as the way to the sink takes.
#[derive(Debug, Clone, Copy)]
pub struct Streamed {
    /// Of payload that arrived.
    pub mbps: f64,
    pub lost_percent: f64,
}

/// Keeps datagrams of `size` bytes on their way to a sink, `train` of them with each call of the kernel (`UDP_SEGMENT`
/// where there are several). No other sender may use the sink.
pub fn stream(
    host: &Host,
    sink: &DatagramService,
    to: SocketAddr,
    size: u16,
    train: u16,
    lasts: Duration,
) -> Result<Streamed> {
    host.run(|| {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(LOST_AFTER))?;
        if train > 1 {
            set_segment_bytes(&socket, size)?;
        }
        let data = vec![7; usize::from(size) * usize::from(train)];
        let (before, began) = (sink.asked(), Instant::now());
        let (mut sent, mut heard, mut word) = (0, 0, [0; 8]);
        while began.elapsed() < lasts {
            if sent - heard < UNACKNOWLEDGED_MAX {
                socket.send(&data).context("sending")?;
                sent += u64::from(train);
                continue;
            }
            match socket.recv(&mut word) {
                Ok(_) => heard = (u64::from_be_bytes(word) - before).clamp(heard, sent),
                // What is lost is never heard of; the count goes on from what came.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => heard = sent,
                Err(e) => return Err(e).context("receiving"),
            }
        }
        let took = began.elapsed().as_secs_f64();
        let arrived = sink.asked() - before;
        let mbps = arrived as f64 * f64::from(size) * 8.0 / took / 1e6;
        Ok(Streamed { mbps, lost_percent: 100.0 * (1.0 - arrived as f64 / sent as f64) })
    })
    .with_context(|| format!("streaming to {to} from {host}"))
}

fn set_segment_bytes(socket: &UdpSocket, bytes: u16) -> io::Result<()> {
    let value = libc::c_int::from(bytes);
    // SAFETY: the descriptor is open; `value` outlives the call and its size is given.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives datagrams of `size` bytes, the last of which may be shorter, to the kernel in one call, and checks that a mirror
/// sends back each of them.
pub fn ask_train(host: &Host, mirror: SocketAddr, data: &[u8], size: u16, within: Duration) -> Result<()> {
    host.run(|| {
        let socket = UdpSocket::bind(if mirror.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(mirror)?;
        socket.set_read_timeout(Some(within))?;
        set_segment_bytes(&socket, size)?;
        socket.send(data).context("sending")?;
        let mut expected: BTreeSet<&[u8]> = data.chunks(usize::from(size)).collect();
        let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
        while !expected.is_empty() {
            let n = socket.recv(&mut buffer).with_context(|| format!("{} datagrams are missing", expected.len()))?;
            let space = buffer[..n].iter().position(|b| *b == b' ').context("an answer without an address")?;
            ensure!(expected.remove(&buffer[space + 1..n]), "a datagram that was not sent, or came twice");
        }
        Ok(())
    })
    .with_context(|| format!("asking {mirror} from {host} with a train"))
}

/// `ask_udp` of a raw mirror.
pub fn ask_raw(host: &Host, mirror: IpAddr, protocol: u8, payload: &[u8], within: Duration) -> Result<IpAddr> {
    host.run(|| {
        let socket = raw(protocol)?;
        socket.connect(&SocketAddr::new(mirror, 0).into())?;
        socket.set_read_timeout(Some(within))?;
        socket.send(payload).context("sending")?;
        let (packet, _) = receive(&socket).context("receiving")?;
        seen_from(packet.get(V4_HEADER_BYTES..).unwrap_or_default(), payload)
    })
    .with_context(|| format!("asking {mirror} by protocol {protocol} from {host}"))
}

/// An IPv4 packet with a UDP datagram in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpPacket {
    packet: Vec<u8>,
}

impl UdpPacket {
    const UDP: u8 = 17;
    const UDP_HEADER_BYTES: usize = 8;

    /// None of another protocol, or of a fragment.
    pub fn parse(packet: &[u8]) -> Option<UdpPacket> {
        let len = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        let packet = packet.get(..len)?.to_vec();
        let whole = packet[6] & 0x3f == 0 && packet[7] == 0;
        (packet[9] == Self::UDP && whole && len >= V4_HEADER_BYTES + Self::UDP_HEADER_BYTES)
            .then_some(UdpPacket { packet })
    }

    fn udp(&self) -> &[u8] {
        &self.packet[usize::from(self.packet[0] & 15) * 4..]
    }

    pub fn source(&self) -> SocketAddr {
        let [a, b, c, d] = [12, 13, 14, 15].map(|at: usize| self.packet[at]);
        (std::net::Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([self.udp()[0], self.udp()[1]])).into()
    }

    pub fn dest(&self) -> SocketAddr {
        let [a, b, c, d] = [16, 17, 18, 19].map(|at: usize| self.packet[at]);
        (std::net::Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([self.udp()[2], self.udp()[3]])).into()
    }

    pub fn payload(&self) -> &[u8] {
        &self.udp()[Self::UDP_HEADER_BYTES..]
    }

    /// Sends it once more from a host, whoever its source is.
    pub fn send_again(&self, socket: &Socket) -> io::Result<()> {
        let mut packet = self.packet.clone();
        // A captured checksum may be one that the device had still to finish; none is right as well.
        let checksum = packet.len() - self.udp().len() + 6;
        packet[checksum..checksum + 2].fill(0);
        socket.send_to(&packet, &SocketAddr::new(self.dest().ip(), 0).into()).map(drop)
    }
}

/// A socket that sends whole IPv4 packets from a host.
pub fn packet_sender(host: &Host) -> Result<Socket> {
    const IPPROTO_RAW: u8 = 255;
    host.run(|| raw(IPPROTO_RAW)).with_context(|| format!("a raw socket in {host}"))
}

fn seen_from(answer: &[u8], payload: &[u8]) -> Result<IpAddr> {
    let space = answer.iter().position(|b| *b == b' ').context("an answer without an address")?;
    ensure!(&answer[space + 1..] == payload, "the payload came back changed");
    Ok(std::str::from_utf8(&answer[..space])?.parse()?)
}

fn raw(protocol: u8) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
    socket.set_read_timeout(Some(LOOK_INTERVAL))?;
    Ok(socket)
}

fn receive(socket: &Socket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
    let (n, from) = socket.recv_from(&mut buffer)?;
    // SAFETY: the kernel has written the first `n` bytes.
    let packet = buffer[..n].iter().map(|b| unsafe { b.assume_init() }).collect();
    Ok((packet, from.as_socket().ok_or(io::ErrorKind::InvalidData)?))
}
