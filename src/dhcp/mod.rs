//! A DHCPv4 client (RFC 2131) that leases one address for one interface and wants nothing else of the server.
//!
//! Sans-IO: `handle_*` takes what happened, `poll_*` gives what to do. A message that is not the answer to what was asked
//! changes nothing.

mod frame;
mod message;
#[cfg(test)]
mod tests;

pub use frame::To;
pub use message::{Answer, Answering, Asking, Malformed, Question};

use crate::model::{Mono, Rng};
use ipnet::Ipv4Net;
use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

/// Pauses between questions that nobody answers; each ± 1 s (RFC 2131 §4.1).
const PAUSE_FIRST: Duration = Duration::from_secs(4);
const PAUSE_LONGEST: Duration = Duration::from_secs(64);
const JITTER: Duration = Duration::from_secs(1);
/// Questions for an offered address before another offer is looked for.
const REQUESTS_MAX: u32 = 4;
/// Before a client whose address was refused begins anew.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Before what was not sent is sent again.
const UNSENT_PAUSE: Duration = Duration::from_secs(1);
/// A server that gives less is taken to give this much: nobody makes the client ask all the time.
const LEASE_MIN: Duration = Duration::from_secs(20);
const RENEWAL_MIN: Duration = Duration::from_secs(5);
/// The longest that is waited for anything; also what "for ever" is taken for.
const LEASE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Between two questions for the renewal of a lease.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(60);

/// An address, for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// With the length of its network.
    pub address: Ipv4Net,
    pub server: Ipv4Addr,
    /// By whom it was brought; questions for renewal go there.
    server_mac: [u8; 6],
    renew_at: Mono,
    rebind_at: Mono,
    pub until: Mono,
}

/// Why a message was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("the frame holds no message of a DHCP server")]
    Frame,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the message answers another question")]
    Transaction,
    #[error("the message is for another host")]
    Mac,
    #[error("the message is of another server than the one that was asked")]
    Server,
    #[error("nothing was asked that this would answer")]
    Unexpected,
    #[error("{0} is no address for a host")]
    Address(Ipv4Addr),
    #[error("the answer lacks the subnet mask or the time of the lease")]
    Incomplete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Whoever has an address may offer it.
    Selecting,
    Requesting {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    Bound(Lease),
    /// Asks the server of the lease.
    Renewing(Lease),
    /// Asks any server.
    Rebinding(Lease),
    /// It wants nothing any more.
    Released,
}

/// The client of one interface.
#[derive(Debug)]
pub struct Client {
    mac: [u8; 6],
    state: State,
    transaction: u32,
    /// When the present search or renewal began.
    began: Mono,
    /// Questions since then that nobody answered.
    asked: u32,
    due: Mono,
    frames: VecDeque<Vec<u8>>,
}

impl Client {
    /// Begins to look for a server at its first time-out, which is at once.
    pub fn new(mac: [u8; 6], now: Mono) -> Self {
        Self { mac, state: State::Selecting, transaction: 0, began: now, asked: 0, due: now, frames: VecDeque::new() }
    }

    /// The address that the interface may have now.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => Some(lease),
            State::Selecting | State::Requesting { .. } | State::Released => None,
        }
    }

    /// The next Ethernet frame to send.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self) -> Mono {
        self.due
    }

    pub fn handle_timeout(&mut self, now: Mono, rng: &mut Rng) {
        if now < self.due {
            return;
        }
        match self.state {
            State::Released => self.due = now + LEASE_MAX,
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) if now >= lease.until => {
                self.begin(now);
                self.ask(now, rng);
            }
            State::Bound(lease) if now < lease.rebind_at => {
                self.begin(now);
                self.state = State::Renewing(lease);
                self.ask(now, rng);
            }
            State::Bound(lease) | State::Renewing(lease) if now >= lease.rebind_at => {
                self.state = State::Rebinding(lease);
                self.ask(now, rng);
            }
            State::Requesting { .. } if self.asked >= REQUESTS_MAX => {
                self.begin(now);
                self.ask(now, rng);
            }
            _ => self.ask(now, rng),
        }
    }

    /// A frame was not sent: the link was away. What it asked is asked again soon.
    pub fn handle_unsent(&mut self, now: Mono) {
        if self.asked > 0 {
            self.due = self.due.min(now + UNSENT_PAUSE);
        }
    }

    /// One received Ethernet frame. A rejected one has changed nothing.
    pub fn handle_frame(&mut self, now: Mono, frame: &[u8], rng: &mut Rng) -> Result<(), Reject> {
        let (from, bytes) = frame::unwrap(frame).ok_or(Reject::Frame)?;
        let answer = Answer::decode(bytes)?;
        if answer.transaction != self.transaction || self.asked == 0 {
            return Err(Reject::Transaction);
        }
        if answer.mac != self.mac {
            return Err(Reject::Mac);
        }
        match (self.state, answer.kind) {
            (State::Selecting, Answering::Offer) => {
                lease_of(&answer, from, now)?;
                self.state = State::Requesting { address: answer.address, server: answer.server };
                self.asked = 0;
                self.ask(now, rng);
                Ok(())
            }
            (State::Requesting { address, server }, Answering::Ack) => {
                self.of_server(&answer, server)?;
                if answer.address != address {
                    return Err(Reject::Address(answer.address));
                }
                self.bind(lease_of(&answer, from, now)?);
                Ok(())
            }
            (State::Renewing(lease), Answering::Ack) => {
                self.of_server(&answer, lease.server)?;
                self.renewed(lease, lease_of(&answer, from, now)?)
            }
            (State::Rebinding(lease), Answering::Ack) => self.renewed(lease, lease_of(&answer, from, now)?),
            (State::Requesting { server, .. }, Answering::Nak) => self.refused(&answer, server, now),
            (State::Renewing(lease), Answering::Nak) => self.refused(&answer, lease.server, now),
            (State::Rebinding(_), Answering::Nak) => self.refused(&answer, answer.server, now),
            _ => Err(Reject::Unexpected),
        }
    }

    /// The address is given back; the last frames say so.
    pub fn handle_release(&mut self, now: Mono, rng: &mut Rng) {
        if let Some(lease) = self.lease().copied() {
            self.transaction = new_transaction(rng);
            let question = Question {
                server: Some(lease.server),
                from: lease.address.addr(),
                ..self.question(Asking::Release, now)
            };
            let to = To { mac: lease.server_mac, address: lease.server };
            self.send(to, &question);
        }
        self.state = State::Released;
        self.due = now + LEASE_MAX;
    }

    /// Starts to look for an address, as if there had never been one.
    fn begin(&mut self, now: Mono) {
        (self.state, self.began, self.asked, self.due) = (State::Selecting, now, 0, now);
    }

    fn ask(&mut self, now: Mono, rng: &mut Rng) {
        if self.asked == 0 {
            // A request repeats the transaction of the offer that it takes (RFC 2131 §4.4.1).
            if !matches!(self.state, State::Requesting { .. }) {
                self.transaction = new_transaction(rng);
            }
        }
        let (question, to) = match self.state {
            State::Selecting => (self.question(Asking::Discover, now), To::ALL),
            State::Requesting { address, server } => {
                let (requested, server) = (Some(address), Some(server));
                (Question { requested, server, ..self.question(Asking::Request, now) }, To::ALL)
            }
            State::Renewing(lease) => {
                let from = lease.address.addr();
                let to = To { mac: lease.server_mac, address: lease.server };
                (Question { from, ..self.question(Asking::Request, now) }, to)
            }
            State::Rebinding(lease) => {
                let from = lease.address.addr();
                (Question { from, ..self.question(Asking::Request, now) }, To::ALL)
            }
            State::Bound(_) | State::Released => return,
        };
        self.send(to, &question);
        self.due = match self.state {
            State::Renewing(lease) => now + half_of_the_rest(now, lease.rebind_at),
            State::Rebinding(lease) => now + half_of_the_rest(now, lease.until),
            _ => now + pause(self.asked, rng),
        };
        self.asked = self.asked.saturating_add(1);
    }

    fn question(&self, kind: Asking, now: Mono) -> Question {
        let seconds = now.saturating_since(self.began).as_secs();
        Question {
            kind,
            transaction: self.transaction,
            seconds: u16::try_from(seconds).unwrap_or(u16::MAX),
            mac: self.mac,
            from: Ipv4Addr::UNSPECIFIED,
            requested: None,
            server: None,
        }
    }

    fn send(&mut self, to: To, question: &Question) {
        self.frames.push_back(frame::wrap(to, self.mac, question.from, &question.encode()));
    }

    fn of_server(&self, answer: &Answer, server: Ipv4Addr) -> Result<(), Reject> {
        if answer.server == server { Ok(()) } else { Err(Reject::Server) }
    }

    fn renewed(&mut self, old: Lease, new: Lease) -> Result<(), Reject> {
        if new.address.addr() != old.address.addr() {
            return Err(Reject::Address(new.address.addr()));
        }
        self.bind(new);
        Ok(())
    }

    fn bind(&mut self, lease: Lease) {
        (self.state, self.asked, self.due) = (State::Bound(lease), 0, lease.renew_at);
    }

    fn refused(&mut self, answer: &Answer, server: Ipv4Addr, now: Mono) -> Result<(), Reject> {
        self.of_server(answer, server)?;
        self.begin(now);
        self.due = now + REFUSED_PAUSE;
        Ok(())
    }
}

fn new_transaction(rng: &mut Rng) -> u32 {
    u32::from_be_bytes(rng.bytes())
}

fn pause(asked: u32, rng: &mut Rng) -> Duration {
    let doubled = PAUSE_FIRST.saturating_mul(2u32.saturating_pow(asked)).min(PAUSE_LONGEST);
    let jitter = u64::try_from(2 * JITTER.as_millis()).unwrap_or(0);
    doubled - JITTER + Duration::from_millis(rng.below(jitter))
}

/// The wait before a question for renewal is repeated (RFC 2131 §4.4.5), at most until `end`.
fn half_of_the_rest(now: Mono, end: Mono) -> Duration {
    let rest = end.saturating_since(now);
    (rest / 2).max(RENEWAL_PAUSE_MIN).min(rest.max(JITTER))
}

fn lease_of(answer: &Answer, server_mac: [u8; 6], now: Mono) -> Result<Lease, Reject> {
    let address = answer.address;
    let host = !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local()
        || address.octets()[0] == 0);
    if !host {
        return Err(Reject::Address(address));
    }
    let (Some(prefix), Some(lease_s)) = (answer.prefix, answer.lease_s) else { return Err(Reject::Incomplete) };
    let net = Ipv4Net::new(address, prefix).map_err(|_| Reject::Incomplete)?;
    let alone = prefix >= 31;
    if prefix == 0 || !alone && (address == net.network() || address == net.broadcast()) {
        return Err(Reject::Address(address));
    }
    let whole = Duration::from_secs(lease_s.into()).clamp(LEASE_MIN, LEASE_MAX);
    let told = |seconds: Option<u32>| seconds.map(|s| Duration::from_secs(s.into()));
    let renew = told(answer.renewal_s).filter(|t| *t < whole).unwrap_or(whole / 2).max(RENEWAL_MIN);
    let rebind = told(answer.rebinding_s).filter(|t| (renew..whole).contains(t)).unwrap_or(whole / 8 * 7).max(renew);
    Ok(Lease {
        address: net,
        server: answer.server,
        server_mac,
        renew_at: now + renew,
        rebind_at: now + rebind,
        until: now + whole,
    })
}
