use crate::StreamFaults;
use arctic::{
    env::{BoxFuture, BoxListener, BoxStream, Listener, Net},
    model::Endpoint,
};
use std::{
    borrow::Cow,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use turmoil::net::{TcpListener, TcpStream};

/// The simulated network, as the host that asks sees it; `faults` meet the connections that it opens, `names` what it asks
/// for by name.
#[derive(Default)]
pub struct SimNet {
    pub faults: Arc<StreamFaults>,
    pub names: Arc<Names>,
}

/// What a host's name server says of every name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadNames {
    Unknown,
    /// All lead to this host.
    LeadTo(String),
}

/// The name server of one host, which may go wrong.
#[derive(Default)]
pub struct Names {
    bad: Mutex<Option<BadNames>>,
    asked: AtomicU64,
}

impl Names {
    /// `None`: it says the truth again.
    pub fn set(&self, bad: Option<BadNames>) {
        *self.bad.lock().unwrap_or_else(PoisonError::into_inner) = bad;
    }

    /// How often it was asked while it was wrong.
    pub fn misled(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn resolve<'a>(&self, host: &'a str) -> io::Result<Cow<'a, str>> {
        let bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if bad.is_some() {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        match bad {
            None => Ok(host.into()),
            Some(BadNames::LeadTo(other)) => Ok(other.into()),
            Some(BadNames::Unknown) => Err(io::Error::new(io::ErrorKind::NotFound, format!("no such host: {host}"))),
        }
    }
}

impl Net for SimNet {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<BoxListener>> {
        Box::pin(async move {
            let addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port());
            Ok(Box::new(SimListener(TcpListener::bind(addr).await?)) as BoxListener)
        })
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(vec![turmoil::lookup(&*self.names.resolve(host)?)]) })
    }

    fn connect<'a>(&'a self, to: &'a Endpoint) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let host = if to.ip().is_some() { to.host().into() } else { self.names.resolve(to.host())? };
            let stream = TcpStream::connect((&*host, to.port())).await?;
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
