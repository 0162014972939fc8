//! Bulk TCP with a chosen congestion control, measured where the bytes arrive and counted from the first `connect()`.
//!
//! Protocol of [`server`], one line from the client, for a human with `nc` too:
//! `send <congestion> <seed> <bytes>` answers with that much of [`Content`] (0 bytes: until the client hangs up);
//! `take` reads to end of file and answers `<bytes> <sha256>`; `drain <ms>` counts what arrives within that time of
//! the line and answers `<bytes> <bytes in the second half>`.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;

use crate::content::{Content, digest};
use crate::lab::Host;
use crate::service::TcpService;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence of an exact transfer.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const BLOCK_BYTES: usize = 256 * 1024;
const MAX_LINE_BYTES: u64 = 200;

/// What arrived in a window of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    pub bytes: u64,
    pub seconds: f64,
    /// Mean over the whole window, connection and slow start included.
    pub mbps: f64,
    pub second_half_mbps: f64,
}

impl Throughput {
    fn new(bytes: u64, second_half_bytes: u64, window: Duration) -> Throughput {
        let seconds = window.as_secs_f64();
        let mbps = |bytes: u64, seconds: f64| bytes as f64 * 8.0 / 1e6 / seconds;
        Throughput {
            bytes,
            seconds,
            mbps: mbps(bytes, seconds),
            second_half_mbps: mbps(second_half_bytes, seconds / 2.0),
        }
    }
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} Mbit/s (second half {:.1}) in {:.1} s", self.mbps, self.second_half_mbps, self.seconds)
    }
}

/// The far end of every function here.
pub fn server(host: &Host, address: SocketAddr) -> Result<TcpService> {
    TcpService::start(host, address, serve)
}

/// Download for `window`: the server sends as fast as `congestion` (`cubic`, `bbr`, `reno`) lets it.
pub fn download(client: &Host, server: SocketAddr, congestion: &str, window: Duration) -> Result<Throughput> {
    client.run(|| {
        let start = Instant::now();
        let stream = open(server, congestion)?;
        writeln!(&stream, "send {congestion} 1 0")?;
        let (bytes, second_half_bytes) = count(&stream, start, window).context("reading the download")?;
        ensure!(bytes > 0, "nothing arrived from {server} within {window:?}");
        Ok(Throughput::new(bytes, second_half_bytes, window))
    })
}

/// Upload for `window`: we send with `congestion`, the server counts from the arrival of the first line.
pub fn upload(client: &Host, server: SocketAddr, congestion: &str, window: Duration) -> Result<Throughput> {
    client.run(|| {
        let start = Instant::now();
        let stream = open(server, congestion)?;
        writeln!(&stream, "drain {}", window.as_millis())?;
        let sender = stream.try_clone()?;
        sender.set_write_timeout(Some(Duration::from_millis(100)))?;
        let block = vec![0x5a; BLOCK_BYTES];
        while start.elapsed() < window {
            match (&sender).write(&block) {
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {}
                // The server answers and hangs up when its window ends, perhaps before ours does.
                Err(error)
                    if error.kind() == io::ErrorKind::BrokenPipe || error.kind() == io::ErrorKind::ConnectionReset =>
                {
                    break;
                }
                Err(error) => return Err(error).context("sending the upload"),
            }
        }
        let answer = read_line(&stream).context("reading the count of the upload")?;
        let mut numbers = answer.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(bytes)), Some(Ok(second_half_bytes))) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("the server answered {answer:?}");
        };
        Ok(Throughput::new(bytes, second_half_bytes, window))
    })
}

/// Fetches `bytes` of the content of `seed` and checks every one of them.
pub fn fetch_exactly(client: &Host, server: SocketAddr, seed: u64, bytes: u64) -> Result<()> {
    client.run(|| {
        let stream = open(server, "cubic")?;
        writeln!(&stream, "send cubic {seed} {bytes}")?;
        let found = digest(&stream).context("reading the answer")?;
        let expected = digest(Content::new(seed).take(bytes))?;
        ensure!(found == expected, "sent {expected:?}, arrived {found:?}");
        Ok(())
    })
}

/// Sends `bytes` of the content of `seed`, ends the sending half, and checks what the server got.
pub fn push_exactly(client: &Host, server: SocketAddr, seed: u64, bytes: u64) -> Result<()> {
    client.run(|| {
        let stream = open(server, "cubic")?;
        writeln!(&stream, "take")?;
        io::copy(&mut Content::new(seed).take(bytes), &mut &stream).context("sending")?;
        stream.shutdown(Shutdown::Write)?;
        let found = read_line(&stream).context("reading the digest")?;
        let (hex, bytes) = digest(Content::new(seed).take(bytes))?;
        ensure!(found == format!("{bytes} {hex}"), "sent {bytes} {hex}, arrived {found}");
        Ok(())
    })
}

/// Sets the congestion control of a socket by name.
pub fn set_congestion(stream: &TcpStream, congestion: &str) -> io::Result<()> {
    SockRef::from(stream).set_tcp_congestion(congestion.as_bytes())
}

fn open(server: SocketAddr, congestion: &str) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&server, CONNECT_TIMEOUT).with_context(|| format!("connecting to {server}"))?;
    set_congestion(&stream, congestion).with_context(|| format!("setting congestion control {congestion}"))?;
    stream.set_read_timeout(Some(STALL_TIMEOUT))?;
    stream.set_write_timeout(Some(STALL_TIMEOUT))?;
    Ok(stream)
}

/// Counts bytes until `window` after `start`, and those of its second half.
fn count(mut stream: &TcpStream, start: Instant, window: Duration) -> io::Result<(u64, u64)> {
    let mut buffer = vec![0; BLOCK_BYTES];
    let (mut bytes, mut first_half_bytes) = (0, 0);
    loop {
        let left = window.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok((bytes, bytes - first_half_bytes));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes += read as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        if start.elapsed() < window / 2 {
            first_half_bytes = bytes;
        }
    }
}

fn serve(mut stream: &TcpStream) -> io::Result<()> {
    let line = read_line(stream)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["send", congestion, seed, bytes] => {
            set_congestion(stream, congestion)?;
            let (seed, bytes) = (number(seed)?, number(bytes)?);
            send(stream, Content::new(seed), if bytes == 0 { u64::MAX } else { bytes })
        }
        ["take"] => {
            let (hex, bytes) = digest(stream)?;
            writeln!(stream, "{bytes} {hex}")
        }
        ["drain", ms] => {
            let (bytes, second_half_bytes) = count(stream, Instant::now(), Duration::from_millis(number(ms)?))?;
            writeln!(stream, "{bytes} {second_half_bytes}")?;
            // Closing with unread bytes would reset the connection and lose the answer.
            stream.shutdown(Shutdown::Write)?;
            stream.set_read_timeout(Some(STALL_TIMEOUT))?;
            io::copy(&mut stream, &mut io::sink()).map(drop)
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, line)),
    }
}

fn send(mut stream: &TcpStream, mut content: Content, mut bytes: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    while bytes > 0 {
        let len = bytes.min(BLOCK_BYTES as u64) as usize;
        content.fill(&mut block[..len]);
        stream.write_all(&block[..len])?;
        bytes -= len as u64;
    }
    Ok(())
}

/// One line, byte by byte, because what follows it belongs to someone else.
fn read_line(stream: &TcpStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::with_capacity(1, stream.take(MAX_LINE_BYTES)).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, word))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
