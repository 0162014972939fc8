//! Whole Ethernet frames on one link.

use crate::kernel::{BoxFuture, FramePort};
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};
use tokio::io::{Interest, unix::AsyncFd};

const ETHERTYPE_IPV4: u16 = 0x0800;
/// The longest frame of a link with an MTU of 1,500.
const FRAME_MAX_BYTES: usize = 1514;

/// Of IPv4 packets, whole datagrams of UDP to the port of DHCP clients: all else is dropped before it is copied.
const TO_DHCP_CLIENT: [libc::sock_filter; 9] = [
    step(0x30, 0, 0, 23),     // the protocol
    step(0x15, 0, 6, 17),     // is UDP
    step(0x28, 0, 0, 20),     // the place of the fragment
    step(0x45, 4, 0, 0x3fff), // is that of a whole
    step(0xb1, 0, 0, 14),     // the length of the IP header
    step(0x48, 0, 0, 16),     // the destination port behind it
    step(0x15, 0, 1, 68),     // is the client's
    step(0x06, 0, 0, u32::MAX),
    step(0x06, 0, 0, 0),
];

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// A raw socket bound to one link.
pub struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// One that only sends: no frame is queued for it. Needs CAP_NET_RAW.
    pub fn sending(index: u32) -> io::Result<Self> {
        Self::open(index, 0)
    }

    fn open(index: u32, protocol: u16) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened, and nobody else has it.
        let socket = Self { socket: unsafe { OwnedFd::from_raw_fd(fd) } };
        socket.bind(index, protocol)?;
        Ok(socket)
    }

    fn bind(&self, index: u32, protocol: u16) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol.to_be(),
            sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the pointer and length describe `address`, which outlives the call.
        let bound = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// From now on only what passes the filter is queued.
    fn filter(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(io::Error::other)?,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: `filter` names `program`, which the kernel copies within the call and does not write to.
        let rc = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; FRAME_MAX_BYTES];
        // SAFETY: the pointer and length describe `frame`, which outlives the call.
        let read = unsafe { libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        frame.truncate(read);
        Ok(frame)
    }

    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length describe `frame`, which outlives the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// `kernel::FramePort` on a link.
pub struct DhcpPort {
    socket: AsyncFd<PacketSocket>,
}

impl DhcpPort {
    pub fn open(index: u32) -> io::Result<Self> {
        // Bound to no protocol until the filter is there, so that nothing else is queued.
        let filtering = PacketSocket::open(index, 0)?;
        filtering.filter(&TO_DHCP_CLIENT)?;
        filtering.bind(index, ETHERTYPE_IPV4)?;
        // SAFETY: a `PacketSocket` keeps one descriptor open from its opening until it is dropped, and always returns it.
        Ok(Self { socket: unsafe { AsyncFd::register(filtering) }? })
    }
}

impl FramePort for DhcpPort {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(frame)
    }

    fn receive(&mut self) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        Box::pin(async move {
            loop {
                // A link that goes away is an error, and no byte to read.
                let mut ready = self.socket.ready(Interest::READABLE | Interest::ERROR).await?;
                match self.socket.get_ref().receive() {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    received => return received,
                }
            }
        })
    }
}
