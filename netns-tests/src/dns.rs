//! A name server whose one name has the address of whoever asks, and askers (RFC 1035).

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::datagram::DatagramService;
use crate::lab::Host;
use crate::service::TcpService;

const NAME: &str = "whoami.test";
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const HEADER_BYTES: usize = 12;
const MESSAGE_MAX_BYTES: usize = 512;
const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;

/// Serves UDP and TCP at one address.
pub struct NameServer {
    _udp: DatagramService,
    _tcp: TcpService,
}

impl NameServer {
    pub fn start(host: &Host, address: SocketAddr) -> Result<NameServer> {
        let tcp = TcpService::start(host, address, |mut stream| {
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            let asker = stream.peer_addr()?.ip().to_canonical();
            let answer = answer(&read_message(stream)?, asker).ok_or(io::ErrorKind::InvalidData)?;
            stream.write_all(&with_length(&answer))
        })?;
        Ok(NameServer { _udp: DatagramService::answering(host, address, answer)?, _tcp: tcp })
    }
}

/// From which address the name server sees a host that asks it for the name, over UDP or TCP.
pub fn seen_from(host: &Host, server: SocketAddr, tcp: bool) -> Result<IpAddr> {
    let question = question(if server.is_ipv4() { A } else { AAAA });
    let ask = || {
        if tcp {
            let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.write_all(&with_length(&question))?;
            return read_message(&stream);
        }
        let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        socket.send(&question)?;
        let mut answer = vec![0; MESSAGE_MAX_BYTES];
        let n = socket.recv(&mut answer)?;
        answer.truncate(n);
        Ok(answer)
    };
    let answer = host.run(ask).with_context(|| format!("asking the name server {server} from {host}"))?;
    ensure!(answer[..2] == question[..2], "the answer is to another question");
    let bytes = match server {
        SocketAddr::V4(_) => answer.last_chunk::<4>().copied().map(IpAddr::from),
        SocketAddr::V6(_) => answer.last_chunk::<16>().copied().map(IpAddr::from),
    };
    bytes.context("an answer without an address")
}

/// The same as `dig` and `nslookup` see it; the address that each of them prints.
pub fn seen_by_programs(host: &Host, server: IpAddr) -> Result<Vec<IpAddr>> {
    let kind = if server.is_ipv4() { "A" } else { "AAAA" };
    let lines = [
        format!("dig +short +tries=1 +time=5 -t {kind} {NAME} @{server}"),
        format!("nslookup -type={kind} {NAME} {server} | sed -n 's/^Address: *//p' | tail -n 1"),
    ];
    lines
        .iter()
        .map(|line| {
            let printed = host.sh(line)?;
            printed.trim().parse().with_context(|| format!("{line} printed {printed}"))
        })
        .collect()
}

fn question(kind: u16) -> Vec<u8> {
    // One question, and recursion is wished for.
    let mut message = vec![0xa5, 0x17, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend([kind, INTERNET].iter().flat_map(|word| word.to_be_bytes()));
    message
}

/// One record, if the question is for the asker's family; whatever follows the question is not looked at.
fn answer(query: &[u8], asker: IpAddr) -> Option<Vec<u8>> {
    let name = query.get(HEADER_BYTES..)?;
    let length = name.iter().position(|byte| *byte == 0)? + 1;
    let (asked, rest) = name.split_at(length + 4).0.split_at(length);
    let (kind, address) = match asker {
        IpAddr::V4(v4) => (A, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
    };
    let matches = rest[..2] == kind.to_be_bytes();
    let mut message = [&query[..2], &[0x85, 0, 0, 1, 0, u8::from(matches), 0, 0, 0, 0], asked, rest].concat();
    if matches {
        // The name of the question, a life of 0 s.
        message.extend([0xc0, HEADER_BYTES as u8]);
        message.extend([kind, INTERNET, 0, 0, address.len() as u16].iter().flat_map(|word| word.to_be_bytes()));
        message.extend(address);
    }
    Some(message)
}

fn with_length(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn read_message(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}
