//! The device of the IP tunnel: one TUN device, gone when dropped. Each packet has a `virtio_net_hdr` before it.

use super::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Netlink, Writer};
use crate::kernel::{Family, alias_network};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::{
    fs, io,
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};
use tokio::io::unix::AsyncFd;

const CLONE_DEVICE: &std::ffi::CStr = c"/dev/net/tun";
/// The kernel puts the first free number for `%d`.
const NAME_PATTERN: &[u8] = b"arctic-tun%d";
/// Packets that wait to be read; the default of 500 is one burst.
const QUEUE_PACKETS: libc::c_int = 4096;
const RTM_NEWADDR: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Not chosen as source of what leaves by the device.
const SCOPE_HOST: u8 = 254;

/// A TUN device of the network namespace of the thread that made it.
pub struct Tun {
    file: AsyncFd<OwnedFd>,
    /// To ask about the device.
    control: OwnedFd,
    name: String,
    index: u32,
    joins_datagrams: bool,
}

impl Tun {
    /// Makes the device and sets it up. Needs CAP_NET_ADMIN.
    pub fn create(mtu: u16) -> io::Result<Self> {
        // SAFETY: the path is a C string; the result is checked.
        let fd = unsafe { libc::open(CLONE_DEVICE.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut request = named(NAME_PATTERN);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        control(file.as_raw_fd(), libc::TUNSETIFF, &mut request)?;
        let name: Vec<u8> = request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
        let text = String::from_utf8(name.clone()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let control = datagram_socket()?;
        set_up(&control, &name, &text, mtu)?;
        let index = index_of(&name)?;
        give_address(index)?;
        let joins_datagrams = leave_checksums_and_cuts(&file)?;
        // SAFETY: the descriptor stays open for as long as the `OwnedFd` in it lives, and it always returns it.
        let file = unsafe { AsyncFd::register(file) }?;
        Ok(Self { file, control, name: text, index, joins_datagrams })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether a frame may be several UDP datagrams of one flow, in either direction; kernels before 6.2 cannot.
    pub fn joins_datagrams(&self) -> bool {
        self.joins_datagrams
    }

    /// Fails when someone has removed the device, or set it down, or taken its address, so that the routes into it are gone.
    pub fn check(&self) -> io::Result<()> {
        let mut request = named(self.name.as_bytes());
        control(self.control.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has written this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        if flags & libc::IFF_UP as libc::c_short == 0 {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        control(self.control.as_raw_fd(), libc::SIOCGIFADDR, &mut request)
    }

    /// Ready when there may be a frame to read.
    pub async fn readable(&self) -> io::Result<()> {
        self.file.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Reads one frame; `WouldBlock` when there is none, and then `readable` waits for the next.
    pub fn try_read(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.file.try_io(tokio::io::Interest::READABLE, |fd| {
            // SAFETY: reads at most `frame.len()` bytes into `frame`; the descriptor is open.
            let n = unsafe { libc::read(fd.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len()) };
            usize::try_from(n).map_err(|_| io::Error::last_os_error())
        })
    }

    /// Gives one frame to the kernel, which takes or drops it at once.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: `frame` is readable for its length; the descriptor is open.
        let n = unsafe { libc::write(self.file.get_ref().as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// What the kernel gives may lack its checksum, and may be a train of datagrams where that is possible.
fn leave_checksums_and_cuts(file: &OwnedFd) -> io::Result<bool> {
    let offer = |features: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer; the descriptor is open.
        let rc = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(features)) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    match offer(libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => offer(libc::TUN_F_CSUM).map(|()| false),
        Err(e) => Err(e),
    }
}

fn datagram_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn set_up(socket: &OwnedFd, name: &[u8], text: &str, mtu: u16) -> io::Result<()> {
    // No IPv6 addresses, and nobody to ask for any.
    setting("ipv6", text, "addr_gen_mode", "1")?;
    setting("ipv6", text, "accept_ra", "0")?;
    setting("ipv6", text, "router_solicitations", "0")?;
    setting("ipv4", text, "forwarding", "1")?;
    // Replies come out of it for which the plain route goes elsewhere. The stricter of this and of `all` counts, so
    // that a strict host needs the loose value here.
    let all = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter")?;
    setting("ipv4", text, "rp_filter", if all.trim() == "0" { "0" } else { "2" })?;
    let mut request = named(name);
    request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
    control(socket.as_raw_fd(), libc::SIOCSIFMTU, &mut request)?;
    request.ifr_ifru.ifru_metric = QUEUE_PACKETS;
    control(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &mut request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as libc::c_short;
    control(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)
}

/// Wherever `rp_filter` is on, for any link, packets out of a device without an IPv4 address have to come by the device
/// that leads back to their source (`fib_validate_source`), which replies out of the tunnel do not. The first address of
/// the alias network is no client's.
fn give_address(index: u32) -> io::Result<()> {
    let IpAddr::V4(address) = alias_network(Family::V4).network() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut w = Writer::default();
    w.message(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 0, |w| {
        w.raw(&[libc::AF_INET as u8, 32, 0, SCOPE_HOST]);
        w.raw(&index.to_ne_bytes());
        w.bytes(IFA_LOCAL, &address.octets());
        w.bytes(IFA_ADDRESS, &address.octets());
    });
    let refused = Netlink::open(NETLINK_ROUTE)?.request(&w.bytes)?;
    refused.map_err(|refusal| io::Error::from_raw_os_error(refusal.errno))
}

/// One that a family which is off does not have is passed over.
fn setting(family: &str, device: &str, key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{family}/conf/{device}/{key}");
    if Path::new(&path).exists() { fs::write(path, value) } else { Ok(()) }
}

fn named(name: &[u8]) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request
}

fn control(fd: RawFd, verb: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every verb used here reads and writes one ifreq, which outlives the call; the descriptor is open.
    if unsafe { libc::ioctl(fd, verb, request) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn index_of(name: &[u8]) -> io::Result<u32> {
    let request = named(name);
    // SAFETY: `ifr_name` ends with 0.
    match unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}
