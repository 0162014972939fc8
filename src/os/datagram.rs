//! The UDP socket of a data plane: both families, marked, in batches.

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};
use tokio::{io::Interest, net::UdpSocket};

/// Each direction; the kernel doubles it for its own overhead.
const BUFFER_BYTES: usize = 4 << 20;
/// The largest datagram, or train of datagrams.
const TRAIN_MAX_BYTES: usize = 65_535;

/// The way a datagram came, and the way its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub remote: SocketAddr,
    /// The address of this host that was contacted; the kernel chooses where there is none.
    pub local: Option<IpAddr>,
}

impl Way {
    pub fn to(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// A bound UDP socket.
pub struct Datagrams {
    socket: UdpSocket,
    state: UdpSocketState,
    v6: bool,
}

impl Datagrams {
    /// Every address of both families, or of IPv4 alone where IPv6 is off. `mark` 0 = none.
    pub fn bind(port: u16, mark: u32) -> io::Result<Self> {
        match Self::bind_at((Ipv6Addr::UNSPECIFIED, port).into(), mark) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                Self::bind_at((Ipv4Addr::UNSPECIFIED, port).into(), mark)
            }
            other => other,
        }
    }

    fn bind_at(addr: SocketAddr, mark: u32) -> io::Result<Self> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::UDP))?;
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&addr.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // The library forbids fragments; a tunnel prefers them to a black hole where the path's errors are dropped.
        let fd = socket.as_raw_fd();
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        if addr.is_ipv6() {
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)?;
        }
        // The forced forms pass net.core.{w,r}mem_max and need CAP_NET_ADMIN; the plain ones are clipped by it.
        let bytes = libc::c_int::try_from(BUFFER_BYTES).unwrap_or(libc::c_int::MAX);
        if set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes).is_err() {
            socket.set_send_buffer_size(BUFFER_BYTES)?;
        }
        if set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
            socket.set_recv_buffer_size(BUFFER_BYTES)?;
        }
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, state, v6: addr.is_ipv6() })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Ready when there may be something to receive.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Receives what there is, at most one batch, and gives each datagram to `take`; how many batches' buffers were
    /// filled. `WouldBlock` when there is nothing.
    pub fn try_receive(&self, buffers: &mut Buffers, mut take: impl FnMut(Way, &[u8])) -> io::Result<usize> {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let received = self.socket.try_io(Interest::READABLE, || {
            let mut slices = buffers.0.chunks_exact_mut(TRAIN_MAX_BYTES).map(IoSliceMut::new);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut meta)
        })?;
        for (meta, buffer) in meta[..received].iter().zip(buffers.0.chunks_exact(TRAIN_MAX_BYTES)) {
            let remote = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let way = Way { remote, local: meta.dst_ip.map(|ip| ip.to_canonical()) };
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                take(way, datagram);
            }
        }
        Ok(received)
    }

    /// How many datagrams of one size `send` takes at once.
    pub fn train_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends datagrams of `size` bytes each, the last of which may be shorter, waiting for room.
    pub async fn send(&self, way: Way, datagrams: &[u8], size: usize) -> io::Result<()> {
        let remote = match way.remote {
            SocketAddr::V4(v4) if self.v6 => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            other => other,
        };
        let transmit = Transmit {
            destination: remote,
            ecn: None,
            contents: datagrams,
            segment_size: (datagrams.len() > size).then_some(size),
            src_ip: way.local,
        };
        self.socket
            .async_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.socket), &transmit))
            .await
    }
}

/// The largest packet on the way to an address, as far as the kernel knows it. `mark` 0 = none.
pub fn path_mtu(remote: SocketAddr, mark: u32) -> io::Result<u32> {
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect(&remote.into())?;
    let (level, option) =
        if remote.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let (mut value, mut size): (libc::c_int, libc::socklen_t) = (0, size_of::<libc::c_int>() as u32);
    // SAFETY: `value` and `size` outlive the call, and `size` says how large `value` is; the descriptor is open.
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut size) };
    if rc == 0 { Ok(u32::try_from(value).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// Space for one batch.
pub struct Buffers(Box<[u8]>);

impl Default for Buffers {
    fn default() -> Self {
        Self(vec![0; BATCH_SIZE * TRAIN_MAX_BYTES].into())
    }
}

fn set(fd: std::os::fd::RawFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open; `value` outlives the call and its size is given.
    let rc = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size_of::<libc::c_int>() as u32) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
