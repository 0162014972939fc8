//! DHCPv4 messages (RFC 2131 §2, RFC 2132), as far as a client that wants an address and nothing else needs them.

use std::net::Ipv4Addr;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const MAC_BYTES: u8 = 6;
const MAC_AT: usize = 28;
const COOKIE_AT: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Some servers and relays drop shorter ones (RFC 1542 §2.1).
const MESSAGE_MIN_BYTES: usize = 300;
const OPTION_PAD: u8 = 0;
const OPTION_MASK: u8 = 1;
const OPTION_REQUESTED: u8 = 50;
const OPTION_LEASE: u8 = 51;
const OPTION_KIND: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_PARAMETERS: u8 = 55;
const OPTION_RENEWAL: u8 = 58;
const OPTION_REBINDING: u8 = 59;
const OPTION_CLIENT: u8 = 61;
const OPTION_END: u8 = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    Discover,
    Request,
    Decline,
    Release,
}

impl Asking {
    const fn code(self) -> u8 {
        match self {
            Asking::Discover => 1,
            Asking::Request => 3,
            Asking::Decline => 4,
            Asking::Release => 7,
        }
    }
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub kind: Asking,
    pub transaction: u32,
    /// Since the client began to ask.
    pub seconds: u16,
    pub mac: [u8; 6],
    /// The address that it has and answers for; unspecified if none.
    pub from: Ipv4Addr,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
}

impl Question {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![REQUEST, ETHERNET, MAC_BYTES, 0];
        out.extend(self.transaction.to_be_bytes());
        out.extend(self.seconds.to_be_bytes());
        out.extend([0, 0]);
        out.extend(self.from.octets());
        out.resize(MAC_AT, 0);
        out.extend(self.mac);
        out.resize(COOKIE_AT, 0);
        out.extend(COOKIE);
        out.extend([OPTION_KIND, 1, self.kind.code()]);
        out.extend([OPTION_CLIENT, MAC_BYTES + 1, ETHERNET]);
        out.extend(self.mac);
        let addresses = [(OPTION_REQUESTED, self.requested), (OPTION_SERVER, self.server)];
        for (option, address) in addresses {
            if let Some(address) = address {
                out.extend([option, 4]);
                out.extend(address.octets());
            }
        }
        if matches!(self.kind, Asking::Discover | Asking::Request) {
            out.extend([OPTION_PARAMETERS, 4, OPTION_MASK, OPTION_LEASE, OPTION_RENEWAL, OPTION_REBINDING]);
        }
        out.push(OPTION_END);
        out.resize(out.len().max(MESSAGE_MIN_BYTES), OPTION_PAD);
        out
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answering {
    Offer,
    Ack,
    Nak,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub kind: Answering,
    pub transaction: u32,
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub server: Ipv4Addr,
    pub prefix: Option<u8>,
    pub lease_s: Option<u32>,
    pub renewal_s: Option<u32>,
    pub rebinding_s: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the message is too short or is no answer of a DHCP server to an Ethernet host")]
    Head,
    #[error("an option is cut short or has the wrong length")]
    Option,
    #[error("the type of the message is missing or is none of a server")]
    Kind,
    #[error("the message does not name its server")]
    Server,
    #[error("the subnet mask has holes")]
    Mask,
}

impl Answer {
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let head = bytes.get(..COOKIE_AT).ok_or(Malformed::Head)?;
        let options = bytes.get(COOKIE_AT..).and_then(|rest| rest.strip_prefix(&COOKIE)).ok_or(Malformed::Head)?;
        if head[..3] != [REPLY, ETHERNET, MAC_BYTES] {
            return Err(Malformed::Head);
        }
        let found = Options::read(options)?;
        let mut mac = [0; 6];
        mac.copy_from_slice(&head[MAC_AT..MAC_AT + 6]);
        Ok(Self {
            kind: found.kind.ok_or(Malformed::Kind)?,
            transaction: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            mac,
            address: Ipv4Addr::new(head[16], head[17], head[18], head[19]),
            server: found.server.ok_or(Malformed::Server)?,
            prefix: found.mask.map(prefix).transpose()?,
            lease_s: found.lease,
            renewal_s: found.renewal,
            rebinding_s: found.rebinding,
        })
    }
}

fn prefix(mask: u32) -> Result<u8, Malformed> {
    let ones = mask.leading_ones();
    if mask.count_ones() == ones { u8::try_from(ones).map_err(|_| Malformed::Mask) } else { Err(Malformed::Mask) }
}

#[derive(Default)]
struct Options {
    kind: Option<Answering>,
    server: Option<Ipv4Addr>,
    mask: Option<u32>,
    lease: Option<u32>,
    renewal: Option<u32>,
    rebinding: Option<u32>,
}

impl Options {
    fn read(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut found = Self::default();
        while let Some((&option, rest)) = bytes.split_first() {
            match option {
                OPTION_PAD => bytes = rest,
                OPTION_END => break,
                _ => {
                    let (&length, rest) = rest.split_first().ok_or(Malformed::Option)?;
                    let value = rest.get(..usize::from(length)).ok_or(Malformed::Option)?;
                    found.note(option, value)?;
                    bytes = &rest[usize::from(length)..];
                }
            }
        }
        Ok(found)
    }

    fn note(&mut self, option: u8, value: &[u8]) -> Result<(), Malformed> {
        let number = || value.try_into().map(u32::from_be_bytes).map_err(|_| Malformed::Option);
        match option {
            OPTION_KIND => {
                self.kind = match value {
                    [2] => Some(Answering::Offer),
                    [5] => Some(Answering::Ack),
                    [6] => Some(Answering::Nak),
                    _ => return Err(Malformed::Kind),
                }
            }
            OPTION_SERVER => self.server = Some(Ipv4Addr::from(number()?)),
            OPTION_MASK => self.mask = Some(number()?),
            OPTION_LEASE => self.lease = Some(number()?),
            OPTION_RENEWAL => self.renewal = Some(number()?),
            OPTION_REBINDING => self.rebinding = Some(number()?),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) fn encoded(answer: &Answer) -> Vec<u8> {
    let mut out = vec![REPLY, ETHERNET, MAC_BYTES, 0];
    out.extend(answer.transaction.to_be_bytes());
    out.resize(16, 0);
    out.extend(answer.address.octets());
    out.resize(MAC_AT, 0);
    out.extend(answer.mac);
    out.resize(COOKIE_AT, 0);
    out.extend(COOKIE);
    let kind = match answer.kind {
        Answering::Offer => 2,
        Answering::Ack => 5,
        Answering::Nak => 6,
    };
    out.extend([OPTION_KIND, 1, kind, OPTION_PAD]);
    let mask = answer.prefix.map(|p| u32::MAX.checked_shl(32 - u32::from(p)).unwrap_or(0));
    let numbers = [
        (OPTION_SERVER, Some(u32::from(answer.server))),
        (OPTION_MASK, mask),
        (OPTION_LEASE, answer.lease_s),
        (OPTION_RENEWAL, answer.renewal_s),
        (OPTION_REBINDING, answer.rebinding_s),
    ];
    for (option, number) in numbers {
        if let Some(number) = number {
            out.extend([option, 4]);
            out.extend(number.to_be_bytes());
        }
    }
    out.push(OPTION_END);
    out
}
