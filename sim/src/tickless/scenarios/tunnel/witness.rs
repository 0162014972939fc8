//! What must hold of sealed datagrams (simulation.md T1-T4), seen from outside: by what was sent, what came, and what
//! was made of it.

use super::peer::{PEERS, PORT};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// Counters behind the highest one that are told apart at least (T1).
const WINDOW_MIN: u64 = 2048;

/// What a datagram says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Initiation,
    Response,
    Cookie,
    /// The number of the receiver's session, and the counter.
    Data(u32, u64),
    Other,
}

impl Kind {
    pub fn of(datagram: &[u8]) -> Self {
        let number = |at: usize| datagram.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let counter = datagram.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        match (datagram.first(), datagram.len(), number(4), counter) {
            (Some(1), 148, ..) => Self::Initiation,
            (Some(2), 92, ..) => Self::Response,
            (Some(3), 64, ..) => Self::Cookie,
            (Some(4), 32.., Some(number), Some(counter)) => Self::Data(number, counter),
            _ => Self::Other,
        }
    }

    fn ephemeral(self, datagram: &[u8]) -> Option<[u8; 32]> {
        let at = match self {
            Self::Initiation => 8,
            Self::Response => 12,
            _ => return None,
        };
        datagram.get(at..at + 32)?.try_into().ok()
    }

    /// The word of a trace.
    pub fn word(self) -> &'static str {
        match self {
            Self::Initiation => "initiation",
            Self::Response => "response",
            Self::Cookie => "cookie",
            Self::Data(..) => "data",
            Self::Other => "noise",
        }
    }
}

/// A datagram that came, and what the peer made of it.
#[derive(Debug, Clone, Copy)]
pub struct Came {
    pub at: usize,
    pub from: SocketAddr,
    /// Which of all datagrams that were ever sent.
    pub record: usize,
    /// Who sent it first.
    pub sender: usize,
    pub kind: Kind,
    pub bytes: usize,
    /// Whether it is not as it was sent.
    pub is_changed: bool,
    pub was_refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub to: SocketAddr,
    pub kind: Kind,
    pub bytes: usize,
}

type Broken = Result<(), (&'static str, String)>;

fn demand(invariant: &'static str, holds: bool, what: impl FnOnce() -> String) -> Broken {
    if holds { Ok(()) } else { Err((invariant, what())) }
}

/// Where a peer believes another one to be.
#[derive(Debug, Clone, Copy, Default)]
struct Belief {
    heard: Option<SocketAddr>,
    unanswered: u32,
}

#[derive(Debug, Default)]
pub struct Witness {
    /// Whose address it is, or was.
    pub owner: BTreeMap<IpAddr, usize>,
    /// Addresses at which a peer was told that another one is.
    pub told: BTreeMap<(usize, usize), Vec<IpAddr>>,
    beliefs: BTreeMap<(usize, usize), Belief>,
    /// Counters that were used, by sender, its life, and the number of the receiver's session.
    sealed: BTreeSet<(usize, u32, u32, u64)>,
    /// Of handshakes. A key that has a new one in it is new.
    ephemerals: BTreeSet<[u8; 32]>,
    opened: BTreeSet<(usize, u32, u64)>,
    highest: BTreeMap<(usize, u32), u64>,
    /// Counters that were refused although nobody had shown them before.
    missed: BTreeMap<(usize, u32), u64>,
    /// Handshake messages that were taken, by receiver and its life.
    shaken: BTreeSet<(usize, u32, usize)>,
    lives: [u32; PEERS],
    /// Datagrams that were taken.
    pub taken: BTreeSet<usize>,
    pub handshakes: u64,
    pub refused: u64,
    pub moves: u64,
}

impl Witness {
    /// A peer lost all that it knew.
    pub fn restarted(&mut self, at: usize) {
        self.lives[at] += 1;
        self.beliefs.retain(|(who, _), _| *who != at);
    }

    /// A datagram came, and `out` is all that the peer sent because of it.
    pub fn came(&mut self, came: Came, out: &[Sent]) -> Broken {
        let Came { at, from, kind, .. } = came;
        let talks = out.iter().any(|sent| matches!(sent.kind, Kind::Data(..)));
        let is_taken = !came.was_refused
            && match kind {
                Kind::Data(..) => true,
                Kind::Response => talks,
                _ => false,
            };
        if came.was_refused {
            self.refused += 1;
            demand("T3", out.is_empty(), || format!("n{} answered a {kind:?} that it refused: {out:?}", at + 1))?;
        }
        if is_taken {
            demand("T3", !came.is_changed, || format!("n{} took a {kind:?} that was changed on the way", at + 1))?;
            self.taken.insert(came.record);
            let belief = self.beliefs.entry((at, came.sender)).or_default();
            self.moves += u64::from(belief.heard.is_some_and(|before| before != from));
            *belief = Belief { heard: Some(from), unanswered: 0 };
        } else {
            let answered: usize = out.iter().map(|sent| sent.bytes).sum();
            let is_small = answered <= came.bytes && out.iter().all(|sent| sent.to == from);
            demand("T4", is_small, || format!("n{} answers {} bytes of a stranger by {out:?}", at + 1, came.bytes))?;
        }
        match kind {
            Kind::Data(number, counter) => self.data_came(&came, number, counter)?,
            Kind::Initiation if out.iter().any(|sent| sent.kind == Kind::Response) => self.shook(&came)?,
            Kind::Response if is_taken => self.shook(&came)?,
            _ => {}
        }
        Ok(())
    }

    fn data_came(&mut self, came: &Came, number: u32, counter: u64) -> Broken {
        let session = (came.at, number);
        if !came.was_refused {
            let is_new = self.opened.insert((came.at, number, counter));
            demand("T1", is_new, || format!("n{} took counter {counter} of a key twice", came.at + 1))?;
            if let Some(missed) = self.missed.get(&session) {
                return Err(("T1", format!("n{} refused counter {missed} of a key that it knows", came.at + 1)));
            }
            let highest = self.highest.entry(session).or_default();
            *highest = counter.max(*highest);
        } else if !came.is_changed
            && !self.opened.contains(&(came.at, number, counter))
            && self.highest.get(&session).is_some_and(|highest| counter + WINDOW_MIN > *highest)
        {
            // Right if the key is gone, that is if nothing is taken under it any more.
            self.missed.insert(session, counter);
        }
        Ok(())
    }

    fn shook(&mut self, came: &Came) -> Broken {
        self.handshakes += 1;
        let is_new = self.shaken.insert((came.at, self.lives[came.at], came.record));
        demand("T1", is_new, || format!("n{} took one {:?} twice", came.at + 1, came.kind))
    }

    /// A peer sent a datagram. `answers`: to whom it answers.
    pub fn sent(&mut self, from: usize, sent: Sent, datagram: &[u8], answers: Option<SocketAddr>) -> Broken {
        let to = sent.to;
        if let Some(ephemeral) = sent.kind.ephemeral(datagram) {
            let is_new = self.ephemerals.insert(ephemeral);
            demand("T2", is_new, || format!("n{} made an ephemeral key that was there before", from + 1))?;
        }
        if matches!(sent.kind, Kind::Response | Kind::Cookie) {
            return demand("T4", answers == Some(to), || format!("n{} answers {answers:?} at {to}", from + 1));
        }
        let Some(other) = self.owner.get(&to.ip()).copied().filter(|other| *other != from) else {
            return Err(("T3", format!("n{} sends a {:?} to {to}, where no peer ever was", from + 1, sent.kind)));
        };
        let told = self.told.get(&(from, other)).is_some_and(|told| told.contains(&to.ip()) && to.port() == PORT);
        let belief = self.beliefs.entry((from, other)).or_default();
        if sent.kind == Kind::Initiation {
            if belief.unanswered > 0 {
                belief.heard = None;
            }
            belief.unanswered += 1;
        }
        let heard = belief.heard;
        demand("T3", heard == Some(to) || heard.is_none() && told, || {
            format!("n{} sends a {:?} to {to}, and heard n{} last at {heard:?}", from + 1, sent.kind, other + 1)
        })?;
        let Kind::Data(number, counter) = sent.kind else { return Ok(()) };
        let is_new = self.sealed.insert((from, self.lives[from], number, counter));
        demand("T2", is_new, || format!("n{} sealed counter {counter} of a key twice", from + 1))
    }
}
