//! The control plane's TCP on tokio sockets.

use super::sockets::{WAN_SEGMENT_BYTES, local_addresses};
use crate::{
    env::{BoxFuture, BoxListener, BoxStream, Listener, Net},
    model::Endpoint,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// As `ss` shows it for a healthy agent (operations.md §7 row 11).
const BACKLOG: i32 = 4096;

/// Sockets that carry the agent's own mark, so that no route of a service ever captures them (dataplane.md §8).
pub struct TokioNet {
    own_mark: Option<u32>,
}

impl TokioNet {
    /// `own_mark`: the fwmark of the agent's own sockets. None is for agents that share a host, in tests: no privilege is
    /// needed, and they may call each other at its addresses.
    pub fn new(own_mark: Option<u32>) -> Self {
        Self { own_mark }
    }

    fn mark(&self, socket: &impl std::os::fd::AsFd) -> io::Result<()> {
        match self.own_mark {
            Some(mark) => socket2::SockRef::from(socket).set_mark(mark),
            None => Ok(()),
        }
    }

    fn bind(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        socket.set_reuse_address(true)?;
        self.mark(&socket)?;
        socket.set_tcp_mss(WAN_SEGMENT_BYTES)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    async fn dial(&self, to: &Endpoint) -> io::Result<BoxStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", to.host()));
        let local = if self.own_mark.is_some() { local_addresses()? } else { BTreeSet::new() };
        for addr in look_up(to.host(), to.port()).await? {
            if !leads_to_another_host(addr.ip(), &local) {
                last = io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{} leads to the agent's own host or to none", addr.ip()),
                );
                continue;
            }
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            self.mark(&socket)?;
            SockRef::from(&socket).set_tcp_mss(WAN_SEGMENT_BYTES)?;
            match socket.connect(addr).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Box::new(stream));
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

impl Net for TokioNet {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<BoxListener>> {
        Box::pin(async move {
            let bound = match self.bind(addr) {
                // A host without IPv6 has no `[::]`; every address then means every IPv4 address.
                Err(e) if addr.ip().is_unspecified() && addr.is_ipv6() && lacks_ipv6(&e) => {
                    self.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port()))
                }
                other => other,
            };
            Ok(Box::new(TokioListener(bound?)) as BoxListener)
        })
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(look_up(host, 0).await?.map(|addr| addr.ip().to_canonical()).collect()) })
    }

    fn connect<'a>(&'a self, to: &'a Endpoint) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(self.dial(to))
    }
}

/// Endpoints come from operators and from other agents; neither makes this one call what listens on its own host
/// (security.md row 17).
fn leads_to_another_host(ip: IpAddr, local: &BTreeSet<IpAddr>) -> bool {
    let ip = ip.to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let is_no_host = ip.is_unspecified() || ip.is_multicast() || is_broadcast;
    // Loopback is a whole network, of which interfaces name one address.
    let is_own = local.contains(&ip) || (!local.is_empty() && ip.is_loopback());
    !is_no_host && !is_own
}

/// A name that does not resolve is `NotFound`, whatever the resolver calls it.
async fn look_up(host: &str, port: u16) -> io::Result<impl Iterator<Item = SocketAddr>> {
    lookup_host((host, port)).await.map_err(|e| io::Error::new(io::ErrorKind::NotFound, e))
}

fn lacks_ipv6(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

struct TokioListener(TcpListener);

impl Listener for TokioListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async {
            let (stream, from) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as BoxStream, from))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_not_found() {
        let nowhere = Endpoint::new("nowhere.invalid", 8080).unwrap();
        let refused = TokioNet::new(None).connect(&nowhere).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    }

    /// security.md row 17, as a table; whatever way an address is written.
    #[test]
    fn only_addresses_of_another_host_are_called() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let local = BTreeSet::from(["127.0.0.1", "::1", "10.1.0.5", "10.1.0.6", "fd00::5", "fe80::5"].map(ip));
        let refused = [
            "127.0.0.1",
            "127.0.0.2",
            "127.255.255.254",
            "::1",
            "10.1.0.5",
            "10.1.0.6",
            "fd00::5",
            "fe80::5",
            "::ffff:127.0.0.1",
            "::ffff:10.1.0.5",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "255.255.255.255",
            "::ffff:255.255.255.255",
            "224.0.0.1",
            "224.0.0.251",
            "239.255.255.250",
            "::ffff:224.0.0.1",
            "ff02::1",
            "ff02::fb",
            "ff05::2",
            "ff0e::1",
        ];
        for text in refused {
            assert!(!leads_to_another_host(ip(text), &local), "{text}");
        }
        for text in
            ["10.1.0.7", "192.168.0.1", "203.0.113.9", "fd00::6", "2001:db8::1", "::ffff:10.1.0.7", "100.64.0.1"]
        {
            assert!(leads_to_another_host(ip(text), &local), "{text}");
        }
        let shared = BTreeSet::new();
        assert!(leads_to_another_host(ip("127.0.0.1"), &shared) && !leads_to_another_host(ip("0.0.0.0"), &shared));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_no_other_host_is_refused_before_a_packet_leaves() {
        let refused = TokioNet::new(None).connect(&Endpoint::new("0.0.0.0", 8080).unwrap()).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
