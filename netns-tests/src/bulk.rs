//! Bulk TCP with a chosen congestion control, measured where the bytes arrive and counted from the first `connect()`.
//!
//! Protocol of [`server`], one line from the client, for a human with `nc` too:
//! `send <congestion> <seed> <bytes>` answers with that much of [`Content`] (0 bytes: until the client hangs up);
//! `take` reads to end of file and answers `<bytes> <sha256>`; `drain <ms>` counts what arrives within that time of
//! the line and answers `<bytes> <its time in µs> <bytes in the second half> <its time in µs>`.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::SockRef;

use crate::content::{Content, digest};
use crate::lab::Host;
use crate::service::TcpService;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence of an exact transfer.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const COMPANY: Duration = Duration::from_millis(500);
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

/// What was read, and when. Each time is that of a read, which on a busy machine comes later than it should.
#[derive(Debug, Clone, Copy)]
struct Counted {
    bytes: u64,
    time: Duration,
    second_half_bytes: u64,
    second_half: Duration,
}

impl Counted {
    fn throughput(self) -> Throughput {
        let mbps = |bytes: u64, time: Duration| bytes as f64 * 8.0 / 1e6 / time.as_secs_f64();
        Throughput {
            bytes: self.bytes,
            seconds: self.time.as_secs_f64(),
            mbps: mbps(self.bytes, self.time),
            second_half_mbps: mbps(self.second_half_bytes, self.second_half),
        }
    }

    fn to_line(self) -> String {
        let (time, second_half) = (self.time.as_micros(), self.second_half.as_micros());
        format!("{} {time} {} {second_half}", self.bytes, self.second_half_bytes)
    }

    fn of_line(line: &str) -> Option<Counted> {
        let numbers = line.split_whitespace().map(str::parse::<u64>).collect::<Result<Vec<_>, _>>().ok()?;
        let [bytes, time, second_half_bytes, second_half] = numbers[..] else { return None };
        let (time, second_half) = (Duration::from_micros(time), Duration::from_micros(second_half));
        Some(Counted { bytes, time, second_half_bytes, second_half })
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
        let counted = count(&stream, start, window).context("reading the download")?;
        ensure!(counted.bytes > 0, "nothing arrived from {server} within {window:?}");
        Ok(counted.throughput())
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
        let counted = Counted::of_line(&answer).with_context(|| format!("the server answered {answer:?}"))?;
        Ok(counted.throughput())
    })
}

/// Mbit/s of a download between two times, for several at once: it goes on for a while after the second one, so that
/// each has the company of all the others until then.
pub fn download_between(
    client: &Host,
    server: SocketAddr,
    congestion: &str,
    from: Instant,
    until: Instant,
) -> Result<f64> {
    client.run(|| {
        let mut stream = open(server, congestion)?;
        writeln!(&stream, "send {congestion} 1 0")?;
        let (mut buffer, mut bytes, mut reads) = (vec![0; BLOCK_BYTES], 0, [None; 2]);
        while Instant::now() < until + COMPANY {
            let read = stream.read(&mut buffer).context("reading the download")?;
            ensure!(read > 0, "{server} hung up");
            let now = Instant::now();
            bytes += read as u64;
            for (last, end) in reads.iter_mut().zip([from, until]) {
                if now <= end {
                    *last = Some((bytes, now));
                }
            }
        }
        let [Some((before, began)), Some((after, ended))] = reads else { bail!("nothing arrived before {from:?}") };
        Ok((after - before) as f64 * 8.0 / 1e6 / (ended - began).as_secs_f64())
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
fn count(mut stream: &TcpStream, start: Instant, window: Duration) -> io::Result<Counted> {
    let mut buffer = vec![0; BLOCK_BYTES];
    let (mut bytes, mut first_half_bytes, mut first_half) = (0, 0, window / 2);
    loop {
        let time = start.elapsed();
        if time >= window {
            let second_half_bytes = bytes - first_half_bytes;
            return Ok(Counted { bytes, time, second_half_bytes, second_half: time - first_half });
        }
        stream.set_read_timeout(Some(window - time))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes += read as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        let time = start.elapsed();
        if time < window / 2 {
            (first_half_bytes, first_half) = (bytes, time);
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
            let counted = count(stream, Instant::now(), Duration::from_millis(number(ms)?))?;
            writeln!(stream, "{}", counted.to_line())?;
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
