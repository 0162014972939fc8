//! Netlink sockets and the bytes of netlink messages.

use netlink_sys::{Socket, SocketAddr};
use std::{io, os::fd::AsRawFd};

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 16;

/// A whole ruleset goes into one datagram.
const SEND_BUFFER_BYTES: libc::c_int = 64 << 20;
/// Notifications of a large commit fit: one of 10,000 routes has some 60,000 of them.
const RECEIVE_BUFFER_BYTES: libc::c_int = 64 << 20;
/// The kernel splits dumps at 32 KiB.
const DATAGRAM_BYTES: usize = 64 << 10;
/// How often a dump that raced with a change is read again.
const DUMP_TRIES: u32 = 8;

/// A received message.
#[derive(Debug, Clone)]
pub struct Message {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Port of the socket that caused it.
    pub port: u32,
    pub payload: Vec<u8>,
}

/// What the kernel said no to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the refused message in its batch, from 0.
    pub message: u32,
    pub errno: i32,
    /// The kernel's own words, if any.
    pub detail: Option<String>,
}

/// Messages to be sent, and their attributes.
#[derive(Debug, Default)]
pub struct Writer {
    pub bytes: Vec<u8>,
}

impl Writer {
    /// Appends one message; `sequence` comes back in its answer.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let len = u32::try_from(self.bytes.len() - start).expect("a batch is far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |w| w.bytes.extend_from_slice(value));
    }

    /// NUL-terminated.
    pub fn string(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |w| {
            w.bytes.extend_from_slice(value.as_bytes());
            w.bytes.push(0);
        });
    }

    /// Big-endian, as nf_tables wants its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NLA_F_NESTED, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        let len = u16::try_from(self.bytes.len() - start).expect("an attribute is split before it reaches 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in `bytes`, without their flags; ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A string attribute up to its NUL.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// Splits a datagram into messages; ends at the first malformed one.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let len = usize::try_from(u32_at(0)?).ok()?;
        let message = Message {
            kind: u16_at(4)?,
            flags: u16_at(6)?,
            sequence: u32_at(8)?,
            port: u32_at(12)?,
            payload: bytes.get(HEADER_BYTES..len)?.to_vec(),
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A netlink socket. It belongs to the network namespace of the thread that opens it, whoever uses it later.
///
/// The kernel handles a request inside `sendmsg`, so its answers wait in the socket when `send` returns: no call blocks.
pub struct Netlink {
    socket: Socket,
    port: u32,
}

impl Netlink {
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_non_blocking(true)?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        grow_buffer(&socket, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)?;
        grow_buffer(&socket, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
        Ok(Self { socket, port })
    }

    /// Also receives the notifications of these multicast groups.
    pub fn open_listening(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let netlink = Self::open(protocol)?;
        for group in groups {
            netlink.socket.add_membership(*group)?;
        }
        Ok(netlink)
    }

    /// Filter dumps in the kernel by the header and attributes of the request.
    pub fn set_strict(&self) -> io::Result<()> {
        self.socket.set_netlink_get_strict_chk(true)
    }

    /// The port number that marks notifications caused by this socket.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The next datagram, if there is one. `ENOBUFS` says that notifications were lost.
    pub fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(DATAGRAM_BYTES);
        match self.socket.recv_from(&mut bytes, libc::MSG_TRUNC) {
            Ok((len, _)) if len > bytes.len() => Err(io::Error::other("netlink sent more than 64 KiB at once")),
            Ok(_) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // A refused batch leaves answers that were not all read; they must not be taken for those of the next request.
        while self.receive()?.is_some() {}
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("netlink took only part of a request")) }
    }

    /// Sends messages of which at least the last asks for an acknowledgement. `Ok(Err(_))` is the first refusal.
    pub fn request(&self, bytes: &[u8]) -> io::Result<Result<(), Refusal>> {
        self.send(bytes)?;
        let mut acknowledged = false;
        let mut refusal = None;
        while let Some(datagram) = self.receive()? {
            for message in messages(&datagram).filter(|m| m.kind == NLMSG_ERROR) {
                match parse_error(&message) {
                    Some(found) if refusal.is_none() => refusal = Some(found),
                    Some(_) => {}
                    None => acknowledged = true,
                }
            }
        }
        match refusal {
            Some(refusal) => Ok(Err(refusal)),
            None if acknowledged => Ok(Ok(())),
            None => Err(io::Error::other("netlink did not answer a request")),
        }
    }

    /// All messages that answer a dump request. Reads again when the state changed meanwhile.
    pub fn dump(&self, bytes: &[u8]) -> io::Result<Result<Vec<Message>, Refusal>> {
        for _ in 0..DUMP_TRIES {
            self.send(bytes)?;
            let mut found = vec![];
            let mut done = None;
            let mut interrupted = false;
            while let (None, Some(datagram)) = (&done, self.receive()?) {
                for message in messages(&datagram) {
                    interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_ERROR => done = Some(parse_error(&message)),
                        NLMSG_DONE => done = Some(parse_error(&message)),
                        _ => found.push(message),
                    }
                }
            }
            match done {
                Some(Some(refusal)) if refusal.errno == libc::EINTR => {}
                Some(Some(refusal)) => return Ok(Err(refusal)),
                Some(None) if !interrupted => return Ok(Ok(found)),
                Some(None) => {}
                None => return Err(io::Error::other("netlink ended a dump early")),
            }
        }
        Err(io::Error::other("the state changed during every try to read it"))
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

fn grow_buffer(socket: &Socket, option: libc::c_int, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; the pointer and length describe `bytes`,
    // which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The refusal in an error or done message; none when it says 0.
fn parse_error(message: &Message) -> Option<Refusal> {
    let code = message.payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 {
        return None;
    }
    let header = 4 + HEADER_BYTES;
    let has_words = message.flags & NLM_F_ACK_TLVS != 0 && message.flags & NLM_F_CAPPED != 0;
    let words = has_words.then(|| attribute(message.payload.get(header..)?, NLMSGERR_ATTR_MSG)).flatten();
    Some(Refusal { message: message.sequence, errno: code.saturating_neg(), detail: words.map(text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn written_attributes_are_read_back() {
        let mut w = Writer::default();
        w.message(7, 5, 9, |w| {
            w.string(1, "abc");
            w.nested(2, |w| w.be32(3, 4));
        });
        let message = messages(&w.bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (7, 5, 9));
        assert_eq!(attribute(&message.payload, 1).map(text).as_deref(), Some("abc"));
        assert_eq!(attribute(attribute(&message.payload, 2).unwrap(), 3), Some(&[0, 0, 0, 4][..]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = parse_error(&message);
                let _ = attributes(&message.payload).count();
            }
        }
    }
}
