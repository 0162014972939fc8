//! Services of the far end that are not TCP, on plain threads, and clients that ask them.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Host;

/// The largest UDP payload over IPv4.
const DATAGRAM_MAX_BYTES: usize = 65_507;
/// How soon a service notices that it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const V4_HEADER_BYTES: usize = 20;

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

    /// The same for a protocol of IPv4 that has no ports.
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

/// The same of a raw mirror.
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
