//! The control plane's TCP on tokio sockets.

use crate::{
    env::{BoxFuture, BoxListener, BoxStream, Listener, Net},
    model::Endpoint,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
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
    /// `own_mark`: the fwmark of the agent's own sockets; None where no rules read it, and no privilege is needed.
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
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    async fn dial(&self, to: &Endpoint) -> io::Result<BoxStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", to.host()));
        for addr in look_up(to.host(), to.port()).await? {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            self.mark(&socket)?;
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
}
