//! Sockets of the data plane: transparent, marked, tuned for long links; and the addresses of this host.
//!
//! "WAN" sockets run between two engines; "edge" sockets face clients and servers and keep the kernel's own tuning.

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Each direction of a WAN socket; the kernel doubles it for its own overhead. The default ceilings (4 MiB sending, 6 MiB
/// receiving, overhead included) are below two bandwidth-delay products of 200 Mbit/s x 150 ms, which loss recovery
/// needs; a fixed size ends autotuning but also its ceiling. Memory is taken only by bytes that are there.
pub const WAN_BUFFER_BYTES: usize = 16 << 20;
/// Bytes a WAN socket takes beyond what the window lets out at once: bounds the queue in front of the link.
pub const WAN_UNSENT_BYTES: u32 = 512 << 10;
/// Of a segment between agents, so that its packet fits every path: IPv6 knows no narrower one than 1280 bytes (RFC 8200
/// §5), of which 60 are headers. A path that swallows larger ones without a word would stall each connection for seconds,
/// and the kernel's remedy (`tcp_mtu_probing`) is a setting of the whole host. Costs 1 % of a path of 1500 bytes.
pub const WAN_SEGMENT_BYTES: u32 = 1280 - 60;
/// Each direction of the datagram socket: what arrives while the engine is busy with something else.
const DATAGRAM_BUFFER_BYTES: usize = 4 << 20;
/// dataplane.md §1.
pub const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;
pub const LISTEN_BACKLOG: i32 = 4096;
/// `linux/in.h` and `linux/in6.h`; not in libc.
const IP_PKTOPTIONS: i32 = 9;
const IPV6_2292PKTOPTIONS: i32 = 6;
/// Room for the control messages of one connection.
const CONTROL_WORDS: usize = 64;
const CONGESTION: &[u8] = b"bbr";

fn tcp_socket(addr: SocketAddr, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // Without the mark the agent would capture its own connections, so its failure is not passed over.
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

fn listen(socket: Socket, addr: SocketAddr) -> io::Result<TcpListener> {
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(LISTEN_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A listener that accepts captured connections: `local_addr()` of an accepted socket is the original destination.
/// Needs CAP_NET_ADMIN. Accepted sockets inherit the mark.
pub fn transparent_listener(addr: SocketAddr, mark: u32) -> io::Result<TcpListener> {
    let socket = tcp_socket(addr, mark)?;
    match addr {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_ip_transparent_v6(true)?;
        }
    }
    listen(socket, addr)
}

/// The listener for other engines: every address of both families, or IPv4 alone where IPv6 is off. Accepted sockets
/// inherit mark and tuning.
pub fn wan_listener(port: u16, mark: u32) -> io::Result<TcpListener> {
    match wan_listener_at((Ipv6Addr::UNSPECIFIED, port).into(), mark) {
        Err(e) if no_such_family(&e) => wan_listener_at((Ipv4Addr::UNSPECIFIED, port).into(), mark),
        other => other,
    }
}

fn wan_listener_at(addr: SocketAddr, mark: u32) -> io::Result<TcpListener> {
    let socket = tcp_socket(addr, mark)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    tune_wan(&socket)?;
    listen(socket, addr)
}

/// Whether an error says that the host has no such address family, or none of its addresses.
fn no_such_family(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// The socket for datagrams of other engines: every address of both families, or IPv4 alone where IPv6 is off.
pub fn wan_datagrams(port: u16, mark: u32) -> io::Result<UdpSocket> {
    match wan_datagrams_at((Ipv6Addr::UNSPECIFIED, port).into(), mark) {
        Err(e) if no_such_family(&e) => wan_datagrams_at((Ipv4Addr::UNSPECIFIED, port).into(), mark),
        other => other,
    }
}

fn wan_datagrams_at(addr: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    set_send_buffer(&socket, DATAGRAM_BUFFER_BYTES)?;
    set_receive_buffer(&socket, DATAGRAM_BUFFER_BYTES)?;
    socket.bind(&SockAddr::from(addr))?;
    UdpSocket::from_std(socket.into())
}

/// Lets datagrams that are larger than the path be cut on the way (IPv4) or here (IPv6) instead of being lost.
pub fn allow_fragments(socket: &UdpSocket) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    if socket.local_addr()?.is_ipv6() {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    }
    Ok(())
}

/// A tuned socket to another engine; connect it.
pub fn wan_socket(dest: SocketAddr, mark: u32) -> io::Result<TcpSocket> {
    let socket = tcp_socket(dest, mark)?;
    tune_wan(&socket)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// A socket from the exit to a server; connect it.
pub fn edge_socket(dest: SocketAddr, mark: u32) -> io::Result<TcpSocket> {
    let socket = tcp_socket(dest, mark)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// The same, from an address that need not be of this host: the client's own port if that is free, else any. Answers
/// come to it only where a rule gives them to it. Needs CAP_NET_ADMIN.
pub fn transparent_edge_socket(source: SocketAddr, mark: u32) -> io::Result<TcpSocket> {
    match transparently_bound(source, mark) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => transparently_bound(SocketAddr::new(source.ip(), 0), mark),
        bound => bound,
    }
}

fn transparently_bound(source: SocketAddr, mark: u32) -> io::Result<TcpSocket> {
    let socket = tcp_socket(source, mark)?;
    match source {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_reuse_address(true)?;
    if source.port() == 0 {
        // The port is chosen when the destination is known, so that many destinations share it.
        set_int(&socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    }
    socket.bind(&SockAddr::from(source))?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// No delay, and probes that find a dead neighbour.
pub fn tune_edge(stream: &TcpStream) -> io::Result<()> {
    tune_common(&SockRef::from(stream))
}

fn tune_common(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES),
    )
}

/// Must come before connect or listen: the handshake fixes window scale and segment size.
fn tune_wan(socket: &Socket) -> io::Result<()> {
    tune_common(socket)?;
    set_send_buffer(socket, WAN_BUFFER_BYTES)?;
    set_receive_buffer(socket, WAN_BUFFER_BYTES)?;
    socket.set_tcp_mss(WAN_SEGMENT_BYTES)?;
    socket.set_tcp_notsent_lowat(WAN_UNSENT_BYTES)?;
    // Absent from some kernels, and then the system's default serves; `congestion` tells the caller which it is.
    let _ = socket.set_tcp_congestion(CONGESTION);
    Ok(())
}

/// The forced form passes net.core.wmem_max and needs CAP_NET_ADMIN; the plain one is clipped by it.
fn set_send_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    if set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes as i32).is_err() {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

/// The same with net.core.rmem_max. Of a connection it bounds what the other end may send ahead of the reader; what
/// that was told before stays promised.
pub fn set_receive_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    if set_int(&socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes as i32).is_err() {
        SockRef::from(socket).set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

/// The shortest round trip that the kernel has seen on a connection; `None` before the first.
pub fn shortest_round_trip(stream: &TcpStream) -> io::Result<Option<Duration>> {
    // `linux/tcp.h`, struct tcp_info: microseconds, all ones before the first.
    const MIN_RTT: usize = 148 / size_of::<u32>();
    let mut info = [0u32; MIN_RTT + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the array is writable for the length that is given; the kernel writes no more.
    let rc = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Some(info[MIN_RTT]).filter(|us| ![0, u32::MAX].contains(us)).map(|us| Duration::from_micros(us.into())))
}

/// Bytes, and the FIN as one, that the other end has not acknowledged.
pub fn unacknowledged_bytes(stream: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one integer, to a place that outlives the call.
    let rc = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if rc == 0 { Ok(usize::try_from(bytes).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// The congestion control in use.
pub fn congestion(socket: &impl AsFd) -> io::Result<String> {
    let name = SockRef::from(socket).tcp_congestion()?;
    Ok(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
}

/// How long sent bytes may stay unacknowledged; `None` = the kernel's own limit. Not for a connection whose reader may
/// pause: since Linux 5.11 a window that stays closed this long counts too.
pub fn set_user_timeout(stream: &TcpStream, timeout: Option<Duration>) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(timeout)
}

/// Whether dropping the socket resets the connection (true), or closes it in order behind all bytes sent (false).
pub fn set_reset_on_drop(stream: &TcpStream, reset: bool) -> io::Result<()> {
    SockRef::from(stream).set_linger(reset.then_some(Duration::ZERO))
}

/// Ends the sending direction: FIN behind all bytes sent.
pub fn finish_sending(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// The interface by which the opening packets of an accepted connection entered; none if it has gone since.
pub fn entered_by(stream: &TcpStream) -> io::Result<Option<String>> {
    let v4 = stream.local_addr()?.is_ipv4();
    let (level, wanted, option) = if v4 {
        (libc::SOL_IP, libc::IP_PKTINFO, IP_PKTOPTIONS)
    } else {
        (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, IPV6_2292PKTOPTIONS)
    };
    set_int(stream, level, wanted, 1)?;
    let index = packet_index(stream, level, option);
    set_int(stream, level, wanted, 0)?;
    let Some(index) = index? else { return Ok(None) };
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the call may write.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr()) }.is_null() {
        return Ok(None);
    }
    let bytes: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect();
    Ok(String::from_utf8(bytes).ok())
}

/// The interface index in the control messages that the kernel keeps of a connection.
fn packet_index(stream: &TcpStream, level: i32, option: i32) -> io::Result<Option<u32>> {
    let mut buffer = [0u64; CONTROL_WORDS];
    let mut length = size_of_val(&buffer) as libc::socklen_t;
    // SAFETY: the buffer is writable for the length that is given; the kernel writes no more, and says how much.
    let rc =
        unsafe { libc::getsockopt(stream.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).take(length as usize).collect();
    Ok(control_index(&bytes))
}

/// Control messages are `length: usize, level: i32, kind: i32, data`, each padded to the size of a word.
fn control_index(mut bytes: &[u8]) -> Option<u32> {
    const WORD: usize = size_of::<usize>();
    const HEADER: usize = WORD + 8;
    let int = |bytes: &[u8], at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    loop {
        let length = usize::from_ne_bytes(bytes.get(..WORD)?.try_into().ok()?);
        let data = bytes.get(HEADER..length)?;
        let index = match (int(bytes, WORD)?, int(bytes, WORD + 4)?) {
            (libc::SOL_IP, libc::IP_PKTINFO) => int(data, 0),
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => int(data, 16),
            _ => None,
        };
        if let Some(index) = index {
            return u32::try_from(index).ok().filter(|index| *index > 0);
        }
        bytes = bytes.get(length.next_multiple_of(WORD)..)?;
    }
}

fn set_int(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; `value` outlives the call and its size is given.
    let rc = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<i32>() as u32)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Every address of every interface of this network namespace.
pub fn local_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut head: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `head` is a valid place for the list's head; the list is freed below, once.
    if unsafe { libc::getifaddrs(&mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = BTreeSet::new();
    let mut entry = head;
    while !entry.is_null() {
        // SAFETY: `entry` is a non-null node of the list, which lives until freeifaddrs.
        let node = unsafe { &*entry };
        // SAFETY: `ifa_addr` is null or points to an address of the family it names, alive as long as the list.
        found.extend(unsafe { read_ip(node.ifa_addr) });
        entry = node.ifa_next;
    }
    // SAFETY: `head` came from getifaddrs and nothing borrowed from the list is left.
    unsafe { libc::freeifaddrs(head) };
    Ok(found)
}

/// # Safety
/// `addr` is null or points to a socket address that is complete for the family it names.
unsafe fn read_ip(addr: *const libc::sockaddr) -> Option<IpAddr> {
    if addr.is_null() {
        return None;
    }
    // SAFETY: not null, and every socket address begins with its family; by the contract the rest fits that family.
    unsafe {
        match i32::from((*addr).sa_family) {
            libc::AF_INET => {
                let v4 = std::ptr::read_unaligned(addr.cast::<libc::sockaddr_in>());
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = std::ptr::read_unaligned(addr.cast::<libc::sockaddr_in6>());
                Some(IpAddr::from(v6.sin6_addr.s6_addr).to_canonical())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_local_addresses() {
        let found = local_addresses().unwrap();
        assert!(found.contains(&Ipv4Addr::LOCALHOST.into()), "{found:?}");
        assert!(!found.contains(&"192.0.2.77".parse().unwrap()));
    }

    #[tokio::test]
    async fn both_families_reach_the_wan_listener_and_inherit_its_tuning() {
        let listener = wan_listener(0, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let wanted = congestion(&listener).unwrap();
        for host in ["127.0.0.1", "::1"] {
            let dest = SocketAddr::new(host.parse().unwrap(), port);
            let Ok(socket) = wan_socket(dest, 0) else { continue };
            let (connected, accepted) = tokio::join!(socket.connect(dest), listener.accept());
            let (Ok(_), Ok((accepted, from))) = (connected, accepted) else { panic!("{host}") };
            assert_eq!(from.ip().to_canonical(), dest.ip());
            assert_eq!(congestion(&accepted).unwrap(), wanted);
            assert!(SockRef::from(&accepted).tcp_mss().unwrap() <= WAN_SEGMENT_BYTES);
            assert!(SockRef::from(&accepted).tcp_nodelay().unwrap());
            assert!(SockRef::from(&accepted).keepalive().unwrap());
        }
    }
}
