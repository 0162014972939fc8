//! The responder's open sessions and who loses one when there are too many (cluster.md §4, §6; security.md §2).

use crate::wire::handshake::{Challenge, SessionId};
use crate::{
    model::Mono,
    planted::{Bug, planted},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

pub const SESSION_LIFETIME: Duration = Duration::from_secs(30);
pub const SESSIONS_MAX: usize = 64;
pub const SESSIONS_PER_SOURCE_MAX: usize = 4;
/// Sessions that ids not yet trusted never get.
pub const RESERVED_SESSIONS: usize = 16;
/// Challenges of used sessions that are remembered for a session's lifetime; the oldest goes first.
pub const SPENT_CHALLENGES_MAX: usize = 1024;

/// What counts as one source: an IPv4 address or an IPv6 /64. 4-in-6 addresses are IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourcePrefix(IpAddr);

impl From<IpAddr> for SourcePrefix {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
            v4 => v4,
        })
    }
}

/// One open session with what the responder keeps for it.
pub(super) struct Session<T> {
    opened: Mono,
    source: SourcePrefix,
    /// The initiator claims an id that is trusted. A claim only, hence a reserve and not a privilege over others.
    trusted: bool,
    /// The initiator has proven its key and license; such a session is not given away.
    pub proven: bool,
    pub challenge: Challenge,
    pub content: T,
}

/// At most 64 sessions, one use each.
pub(super) struct Sessions<T> {
    open: BTreeMap<SessionId, Session<T>>,
    spent: BTreeMap<Challenge, Mono>,
}

impl<T> Sessions<T> {
    pub fn new() -> Self {
        Self { open: BTreeMap::new(), spent: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn expire(&mut self, now: Mono) {
        if planted(Bug::KeysOutliveHandshake) {
            return;
        }
        self.open.retain(|_, s| now.saturating_since(s.opened) < SESSION_LIFETIME);
        self.spent.retain(|_, since| now.saturating_since(*since) < SESSION_LIFETIME);
    }

    pub fn next_expiry(&self) -> Option<Mono> {
        self.open.values().map(|s| s.opened + SESSION_LIFETIME).min()
    }

    /// Whether the challenge belongs to a session that is open or was used within the last 30 s.
    pub fn knows(&self, challenge: &Challenge) -> bool {
        self.spent.contains_key(challenge) || self.open.values().any(|s| s.challenge == *challenge)
    }

    /// Makes room for one more session of `source`, or says that there is none. Changes nothing if there is none.
    pub fn make_room(&mut self, source: SourcePrefix, trusted: bool) -> bool {
        if planted(Bug::NoRateLimit) {
            return true;
        }
        let strangers = self.open.values().filter(|s| !s.trusted).count();
        let full = self.open.len() >= SESSIONS_MAX || (!trusted && strangers >= SESSIONS_MAX - RESERVED_SESSIONS);
        let victim = if self.count(source) >= SESSIONS_PER_SOURCE_MAX {
            self.oldest_of(source, trusted)
        } else if full {
            match self.busiest(trusted) {
                Some(busiest) => self.oldest_of(busiest, trusted),
                None => None,
            }
        } else {
            return true;
        };
        victim.is_some_and(|id| self.open.remove(&id).is_some())
    }

    pub fn open(
        &mut self,
        id: SessionId,
        source: SourcePrefix,
        trusted: bool,
        challenge: Challenge,
        content: T,
        now: Mono,
    ) {
        self.open.insert(id, Session { opened: now, source, trusted, proven: false, challenge, content });
    }

    pub fn get(&self, id: &SessionId) -> Option<&Session<T>> {
        self.open.get(id)
    }

    /// Takes a session out: it serves once.
    pub fn take(&mut self, id: &SessionId, now: Mono) -> Option<Session<T>> {
        let session = self.open.remove(id)?;
        if self.spent.len() >= SPENT_CHALLENGES_MAX
            && let Some(oldest) = self.spent.iter().min_by_key(|(_, since)| **since).map(|(c, _)| *c)
        {
            self.spent.remove(&oldest);
        }
        self.spent.insert(session.challenge, now);
        Some(session)
    }

    /// Puts a session back for its next step. It keeps its age.
    pub fn put_back(&mut self, id: SessionId, session: Session<T>) {
        self.open.insert(id, session);
    }

    fn count(&self, source: SourcePrefix) -> usize {
        self.open.values().filter(|s| s.source == source).count()
    }

    /// Sessions that a newcomer may displace: a stranger only strangers.
    fn displaceable(&self, by_trusted: bool) -> impl Iterator<Item = (&SessionId, &Session<T>)> {
        self.open.iter().filter(move |(_, s)| !s.proven && (by_trusted || !s.trusted))
    }

    /// The source with most displaceable sessions; among equals the one that holds the oldest.
    fn busiest(&self, by_trusted: bool) -> Option<SourcePrefix> {
        let mut sources: BTreeMap<SourcePrefix, (usize, Mono)> = BTreeMap::new();
        for (_, session) in self.displaceable(by_trusted) {
            let entry = sources.entry(session.source).or_insert((0, session.opened));
            *entry = (entry.0 + 1, entry.1.min(session.opened));
        }
        let order = |(count, oldest): (usize, Mono)| (count, std::cmp::Reverse(oldest));
        sources.into_iter().max_by_key(|(_, load)| order(*load)).map(|(source, _)| source)
    }

    /// The oldest displaceable session of a source, strangers first.
    fn oldest_of(&self, source: SourcePrefix, by_trusted: bool) -> Option<SessionId> {
        self.displaceable(by_trusted)
            .filter(|(_, s)| s.source == source)
            .min_by_key(|(_, s)| (s.trusted, s.opened))
            .map(|(id, _)| *id)
    }
}
