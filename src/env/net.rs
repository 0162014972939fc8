use crate::model::Endpoint;
use std::{
    io,
    net::{IpAddr, SocketAddr},
};
use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::kernel::BoxFuture;

/// A connected control-plane stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}
pub type BoxStream = Box<dyn Stream>;

/// A bound TCP port of the control plane.
pub trait Listener: Send + 'static {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>>;
    fn local_addr(&self) -> io::Result<SocketAddr>;
}
pub type BoxListener = Box<dyn Listener>;

/// TCP of the control plane: API, handshake, gossip. The data planes own their sockets (`dataplane`).
pub trait Net: Send + Sync + 'static {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<BoxListener>>;
    /// Every address of a host name.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    /// Resolves once and connects to the first address that answers. Addresses of this host, and those of no host, are
    /// not called; if there are no others the error is `InvalidInput`. The caller bounds the time.
    fn connect<'a>(&'a self, to: &'a Endpoint) -> BoxFuture<'a, io::Result<BoxStream>>;
}
