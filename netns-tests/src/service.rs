//! TCP services of the far end, on plain threads: an echo, a mirror, and files over HTTP.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use crate::lab::Host;

/// An HTTP request's first line and headers together.
const MAX_REQUEST_BYTES: u64 = 16 * 1024;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A listener inside a host, one thread a connection; on drop listener and connections are closed and joined.
pub struct TcpService {
    address: SocketAddr,
    listener: TcpListener,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

struct Connection {
    stream: TcpStream,
    thread: JoinHandle<()>,
}

impl TcpService {
    /// Calls `serve` for each connection; its error ends that connection only.
    pub fn start(
        host: &Host,
        address: SocketAddr,
        serve: impl Fn(&TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<TcpService> {
        let listener =
            host.run(|| TcpListener::bind(address)).with_context(|| format!("listening on {address} in {host}"))?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (accepting, told) = (listener.try_clone()?, stopping.clone());
        let acceptor = host.thread(move || accept(&accepting, &told, Arc::new(serve)))?;
        Ok(TcpService { address, listener, stopping, acceptor: Some(acceptor) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends back what it gets, until end of file.
    pub fn echo(host: &Host, address: SocketAddr) -> Result<TcpService> {
        TcpService::start(host, address, |stream| {
            let (mut input, mut output) = (stream, stream);
            io::copy(&mut input, &mut output).map(drop)
        })
    }

    /// Answers each connection with one line, the address it was seen from, and closes.
    pub fn mirror(host: &Host, address: SocketAddr) -> Result<TcpService> {
        TcpService::start(host, address, |mut stream| writeln!(stream, "{}", stream.peer_addr()?.ip().to_canonical()))
    }

    /// Serves `files` (path without the leading slash) by HTTP/1.1 GET. Header `X-Seen-From` tells the client which
    /// address the server saw.
    pub fn files(host: &Host, address: SocketAddr, files: BTreeMap<String, Vec<u8>>) -> Result<TcpService> {
        TcpService::start(host, address, move |stream| serve_file(stream, &files))
    }
}

impl Drop for TcpService {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread in accept(); Linux answers EINVAL there.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if self.acceptor.take().is_some_and(|acceptor| acceptor.join().is_err()) {
            eprintln!("service {}: panicked", self.address);
        }
    }
}

/// From which address a [`TcpService::mirror`] sees `client`.
pub fn seen_from(client: &Host, mirror: SocketAddr) -> Result<IpAddr> {
    seen_from_within(client, mirror, ANSWER_WITHIN)
}

/// The same for those who do not wait long, neither for the connection nor for the answer.
pub fn seen_from_within(client: &Host, mirror: SocketAddr, limit: Duration) -> Result<IpAddr> {
    client.run(|| {
        let mut stream = TcpStream::connect_timeout(&mirror, limit).context("connecting")?;
        stream.set_read_timeout(Some(limit))?;
        let mut line = String::new();
        stream.read_to_string(&mut line).context("reading the answer")?;
        line.trim().parse().with_context(|| format!("the mirror {mirror} answered {line:?}"))
    })
}

type Serve = dyn Fn(&TcpStream) -> io::Result<()> + Send + Sync;

fn accept(listener: &TcpListener, stopping: &AtomicBool, serve: Arc<Serve>) {
    let mut open = Vec::<Connection>::new();
    while !stopping.load(Ordering::Acquire) {
        let Ok((stream, _)) = listener.accept() else { continue };
        let Ok(handle) = stream.try_clone() else { continue };
        let serve = serve.clone();
        let thread = thread::spawn(move || {
            // The peer may hang up whenever it likes; the test looks at the client's side.
            let _ = serve(&stream);
            let _ = stream.shutdown(Shutdown::Both);
        });
        open.retain(|connection| !connection.thread.is_finished());
        open.push(Connection { stream: handle, thread });
    }
    for connection in open {
        let _ = connection.stream.shutdown(Shutdown::Both);
        let _ = connection.thread.join();
    }
}

fn serve_file(stream: &TcpStream, files: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    let seen_from = stream.peer_addr()?.ip();
    let mut lines = BufReader::new(stream.take(MAX_REQUEST_BYTES)).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    for header in lines.by_ref() {
        if header?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let file = match (words.next(), words.next()) {
        (Some("GET"), Some(path)) => files.get(path.trim_start_matches('/')),
        _ => None,
    };
    let (status, body) = match file {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", &b"no such file\n"[..]),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nX-Seen-From: {}\r\nConnection: close\r\n\r\n",
        body.len(),
        seen_from.to_canonical()
    );
    let mut out = stream;
    out.write_all(head.as_bytes())?;
    out.write_all(body)
}
