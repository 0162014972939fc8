use crate::StreamFaults;
use arctic::{
    env::{BoxFuture, BoxListener, BoxStream, Listener, Net},
    model::Endpoint,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};
use turmoil::net::{TcpListener, TcpStream};

/// The simulated network, as the host that asks sees it; `faults` meet the connections that it opens.
#[derive(Default)]
pub struct SimNet {
    pub faults: Arc<StreamFaults>,
}

impl Net for SimNet {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<BoxListener>> {
        Box::pin(async move {
            let addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port());
            Ok(Box::new(SimListener(TcpListener::bind(addr).await?)) as BoxListener)
        })
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(vec![turmoil::lookup(host)]) })
    }

    fn connect<'a>(&'a self, to: &'a Endpoint) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect((to.host(), to.port())).await?;
            Ok(StreamFaults::meet(&self.faults, stream))
        })
    }
}

struct SimListener(TcpListener);

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as BoxStream, from))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
