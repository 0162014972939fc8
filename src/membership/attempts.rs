//! Handshakes of the agent's own accord: with whom one is due, and when a failed one is worth another (cluster.md §4).

use super::PeerRow;
use crate::{
    model::{Endpoint, Mono, PeerId, PeerStatus},
    wire::handshake::bounded_endpoints,
};
use std::{collections::BTreeMap, time::Duration};

/// After a handshake of its own accord the agent lets so long pass before it begins another one because that one failed
/// or because of what that peer does, twice as long after each, up to [`RENEWAL_PAUSE_MAX`]: a 401 may have other reasons than a lost database,
/// and two that refuse each other must not go on for ever.
pub const RENEWAL_PAUSE: Duration = Duration::from_secs(10);
pub const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Course {
    attempt: Attempt,
    /// From the end of the attempt until another one is worth it, if it failed or that peer shows itself.
    pause: Duration,
    /// Nothing has changed since the last one failed.
    is_repetition: bool,
}

impl Course {
    fn new(attempt: Attempt) -> Self {
        Self { attempt, pause: RENEWAL_PAUSE, is_repetition: false }
    }

    /// Makes another attempt due if the pause since the last one is over.
    fn renew(&mut self, endpoints: Vec<Endpoint>, now: Mono) -> bool {
        let Attempt::Ended { at, .. } = &self.attempt else { return false };
        let rested = now - *at;
        if rested < self.pause {
            return false;
        }
        self.pause =
            if rested >= 2 * RENEWAL_PAUSE_MAX { RENEWAL_PAUSE } else { (2 * self.pause).min(RENEWAL_PAUSE_MAX) };
        self.attempt = Attempt::Due(endpoints);
        self.is_repetition = false;
        true
    }

    /// A fault that outlasted the attempt, or news that came later there than here, must not keep two members strangers.
    fn try_again(&mut self, now: Mono) {
        if let Attempt::Ended { failed: true, called, .. } = &self.attempt {
            let called = called.clone();
            self.is_repetition = self.renew(called, now);
        }
    }
}

impl Attempt {
    fn has_failed(&self) -> bool {
        matches!(self, Attempt::Ended { failed: true, .. })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Attempt {
    Due(Vec<Endpoint>),
    /// One at a time; `then` are endpoints that became known meanwhile, tried if these fail.
    Running {
        called: Vec<Endpoint>,
        then: Option<Vec<Endpoint>>,
    },
    /// Done, or of no avail until something changes or the pause is over.
    Ended {
        called: Vec<Endpoint>,
        failed: bool,
        at: Mono,
    },
}

/// At most one attempt a peer: as many as there are known peers.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    by_peer: BTreeMap<PeerId, Course>,
}

impl Attempts {
    /// After a start every handshake that has not succeeded is made anew.
    pub fn resume(&mut self, peers: &[PeerRow]) {
        for row in peers.iter().filter(|p| !p.trusted) {
            self.begin(row.peer_id, row.all_endpoints());
        }
    }

    /// A trusted peer vouches for this one, which is not trusted here.
    pub fn handle_voucher(&mut self, peer: PeerId, endpoints: Vec<Endpoint>) {
        match self.by_peer.get_mut(&peer).map(|course| &mut course.attempt) {
            Some(Attempt::Running { called, then }) => {
                let more = endpoints.iter().any(|e| !called.contains(e));
                *then = more.then_some(endpoints).or(then.take());
            }
            _ => self.begin(peer, endpoints),
        }
    }

    /// A peer that is known and not trusted tells of endpoints, by gossip: its word only, so they come before those known
    /// so far and take none away. Says whether a handshake is due now because of them.
    pub fn handle_endpoints(&mut self, row: &PeerRow, told: &[Endpoint]) -> bool {
        let Some(course) = self.by_peer.get_mut(&row.peer_id).filter(|_| !row.trusted) else { return false };
        let (Attempt::Due(called) | Attempt::Running { called, .. } | Attempt::Ended { called, .. }) = &course.attempt;
        if told.iter().all(|endpoint| called.contains(endpoint)) {
            return false;
        }
        let mut endpoints = told.to_vec();
        endpoints.extend(row.all_endpoints());
        let endpoints = bounded_endpoints(&endpoints);
        match &mut course.attempt {
            Attempt::Due(called) => *called = endpoints,
            Attempt::Running { then, .. } => *then = Some(endpoints),
            Attempt::Ended { failed: true, .. } => *course = Course::new(Attempt::Due(endpoints)),
            Attempt::Ended { failed: false, .. } => return false,
        }
        true
    }

    fn begin(&mut self, peer: PeerId, endpoints: Vec<Endpoint>) {
        self.by_peer.insert(peer, Course::new(Attempt::Due(endpoints)));
    }

    /// A trusted peer answers that it does not know this agent: it has lost its database. Says whether a handshake is
    /// due now.
    pub fn handle_unknown_there(&mut self, row: &PeerRow, now: Mono) -> bool {
        row.trusted && self.renew(row, now)
    }

    /// A peer whose handshake failed shows itself. Says whether another one is due now.
    pub fn handle_contact(&mut self, row: &PeerRow, now: Mono) -> bool {
        let attempt = self.by_peer.get(&row.peer_id).map(|course| &course.attempt);
        let has_failed = attempt.is_some_and(Attempt::has_failed);
        !row.trusted && has_failed && self.renew(row, now)
    }

    fn renew(&mut self, row: &PeerRow, now: Mono) -> bool {
        let Some(course) = self.by_peer.get_mut(&row.peer_id) else {
            self.begin(row.peer_id, row.all_endpoints());
            return true;
        };
        course.renew(row.all_endpoints(), now)
    }

    /// A handshake with the peer succeeded, whoever began it: none is due any more.
    pub fn handle_trusted(&mut self, peer: PeerId, now: Mono) {
        let attempt = self.by_peer.get_mut(&peer).map(|course| &mut course.attempt);
        if let Some(attempt) = attempt.filter(|a| !matches!(a, Attempt::Running { .. })) {
            *attempt = Attempt::Ended { called: Vec::new(), failed: false, at: now };
        }
    }

    /// The own license changed: what it refused may succeed now. Says whether a handshake is due.
    pub fn handle_license_change(&mut self) -> bool {
        let failed = self.by_peer.values_mut().filter(|course| course.attempt.has_failed());
        failed.fold(false, |_, course| {
            if let Attempt::Ended { called, .. } = &mut course.attempt {
                *course = Course::new(Attempt::Due(std::mem::take(called)));
            }
            true
        })
    }

    /// At most `room` peers whose handshake is due; it is taken to begin now.
    pub fn take_due(&mut self, room: usize, now: Mono) -> Vec<(PeerId, Vec<Endpoint>)> {
        let mut due = Vec::new();
        for (peer, course) in &mut self.by_peer {
            if due.len() == room {
                break;
            }
            course.try_again(now);
            let attempt = &mut course.attempt;
            if let Attempt::Due(endpoints) = attempt {
                let called = std::mem::take(endpoints);
                due.push((*peer, called.clone()));
                *attempt = Attempt::Running { called, then: None };
            }
        }
        due
    }

    /// When [`Attempts::take_due`] gives more by time alone: a failed handshake is tried again. What is due and was not
    /// given has to wait for room.
    pub fn poll_timeout(&self) -> Option<Mono> {
        let retry = |course: &Course| match &course.attempt {
            Attempt::Ended { failed: true, at, .. } => Some(*at + course.pause),
            _ => None,
        };
        self.by_peer.values().filter_map(retry).min()
    }

    /// The handshake that [`Attempts::take_due`] gave has ended.
    pub fn handle_end(&mut self, peer: PeerId, failed: bool, now: Mono) {
        // Without a running one the peer was forgotten meanwhile.
        let Some(Course { attempt, .. }) = self.by_peer.get_mut(&peer) else { return };
        let Attempt::Running { called, then } = attempt else { return };
        let called = std::mem::take(called);
        *attempt = match then.take() {
            Some(endpoints) if failed => Attempt::Due(endpoints),
            _ => Attempt::Ended { called, failed, at: now },
        };
    }

    /// Forgets peers that are gone.
    pub fn retain(&mut self, is_known: impl Fn(PeerId) -> bool) {
        self.by_peer.retain(|peer, _| is_known(*peer));
    }

    /// Where the handshake with a peer that is not trusted stands.
    pub fn status(&self, peer: PeerId) -> PeerStatus {
        let Some(course) = self.by_peer.get(&peer) else { return PeerStatus::Discovered };
        match course.attempt {
            Attempt::Ended { failed: false, .. } => PeerStatus::Discovered,
            Attempt::Due(_) | Attempt::Running { .. } if !course.is_repetition => PeerStatus::Handshaking,
            _ => PeerStatus::Unreachable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, SigningKey, UnixTime};

    const NOW: Mono = Mono::from_ms(1_000_000);

    fn row(trusted: bool) -> PeerRow {
        let wall = UnixTime::from_secs(1_800_000_000);
        let id = PeerId::mint(wall, &mut Rng::from_seed([1; 32]));
        let key = SigningKey::from_seed([2; 32]).public();
        PeerRow { trusted, ..PeerRow::trusted(id, key, endpoints(&["a"]), wall) }
    }

    fn endpoints(names: &[&str]) -> Vec<Endpoint> {
        names.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn failed(row: &PeerRow) -> Attempts {
        let mut attempts = Attempts::default();
        attempts.handle_voucher(row.peer_id, endpoints(&["a"]));
        assert_eq!(attempts.take_due(1, NOW), [(row.peer_id, endpoints(&["a"]))]);
        attempts.handle_end(row.peer_id, true, NOW);
        assert_eq!(attempts.status(row.peer_id), PeerStatus::Unreachable);
        attempts
    }

    #[test]
    fn one_handshake_at_a_time_and_endpoints_that_came_meanwhile_get_the_next() {
        let peer = row(false).peer_id;
        let mut attempts = Attempts::default();
        attempts.handle_voucher(peer, endpoints(&["a"]));
        assert_eq!(attempts.status(peer), PeerStatus::Handshaking);
        assert_eq!(attempts.take_due(0, NOW), []);
        assert_eq!(attempts.take_due(4, NOW).len(), 1);
        attempts.handle_voucher(peer, endpoints(&["a", "b"]));
        attempts.handle_voucher(peer, endpoints(&["a"]));
        assert_eq!(attempts.take_due(4, NOW), [], "one is running");
        attempts.handle_end(peer, true, NOW);
        assert_eq!(attempts.take_due(4, NOW), [(peer, endpoints(&["a", "b"]))]);
        attempts.handle_end(peer, true, NOW);
        assert_eq!((attempts.take_due(4, NOW), attempts.status(peer)), (vec![], PeerStatus::Unreachable));
    }

    #[test]
    fn a_failed_handshake_rests_until_something_changes() {
        let peer = row(false);
        let mut by_license = failed(&peer);
        assert!(by_license.handle_license_change());
        assert_eq!(by_license.take_due(1, NOW), [(peer.peer_id, endpoints(&["a"]))]);
        let mut by_voucher = failed(&peer);
        by_voucher.handle_voucher(peer.peer_id, endpoints(&["b"]));
        assert_eq!(by_voucher.take_due(1, NOW).len(), 1);
        let mut by_contact = failed(&peer);
        assert!(!by_contact.handle_contact(&peer, NOW), "two that refuse each other do not go on for ever");
        assert!(by_contact.handle_contact(&peer, NOW + RENEWAL_PAUSE));
        assert_eq!(by_contact.take_due(1, NOW).len(), 1);
    }

    #[test]
    fn a_handshake_that_failed_is_tried_again_after_a_pause() {
        let peer = row(false).peer_id;
        for failed in [true, false] {
            let mut attempts = Attempts::default();
            attempts.handle_voucher(peer, endpoints(&["a"]));
            attempts.take_due(1, NOW);
            attempts.handle_end(peer, failed, NOW);
            assert_eq!(attempts.take_due(1, NOW), []);
            let status = attempts.status(peer);
            assert_eq!(attempts.take_due(1, NOW + RENEWAL_PAUSE).len(), usize::from(failed));
            assert_eq!(attempts.status(peer), status, "nothing has changed");
        }
    }

    #[test]
    fn endpoints_that_an_unreachable_peer_tells_of_are_called_at_once_before_the_old_ones() {
        let peer = row(false);
        let mut attempts = failed(&peer);
        assert!(!attempts.handle_endpoints(&peer, &endpoints(&["a"])), "nothing new");
        assert!(attempts.handle_endpoints(&peer, &endpoints(&["b"])));
        assert!(attempts.handle_endpoints(&peer, &endpoints(&["c"])), "the last word counts");
        assert_eq!(attempts.take_due(1, NOW), [(peer.peer_id, endpoints(&["c", "a"]))]);
        assert!(attempts.handle_endpoints(&peer, &endpoints(&["d"])));
        attempts.handle_end(peer.peer_id, true, NOW);
        assert_eq!(attempts.take_due(1, NOW), [(peer.peer_id, endpoints(&["d", "a"]))]);
        attempts.handle_end(peer.peer_id, true, NOW);
        let later = NOW + RENEWAL_PAUSE;
        assert_eq!(attempts.take_due(1, later), [(peer.peer_id, endpoints(&["d", "a"]))], "and are called again");
        attempts.handle_end(peer.peer_id, false, later);
        assert!(!attempts.handle_endpoints(&row(true), &endpoints(&["e"])), "it is trusted");
        assert!(!Attempts::default().handle_endpoints(&peer, &endpoints(&["e"])), "nobody wants it");
    }

    #[test]
    fn the_next_try_has_its_time() {
        let peer = row(false);
        let mut attempts = Attempts::default();
        assert_eq!(attempts.poll_timeout(), None);
        attempts.handle_voucher(peer.peer_id, endpoints(&["a"]));
        let (mut now, mut pause) = (NOW, RENEWAL_PAUSE);
        for _ in 0..8 {
            assert_eq!(attempts.take_due(1, now).len(), 1);
            assert_eq!(attempts.poll_timeout(), None, "one is running");
            attempts.handle_end(peer.peer_id, true, now);
            assert_eq!(attempts.poll_timeout(), Some(now + pause));
            now = now + pause;
            pause = (2 * pause).min(RENEWAL_PAUSE_MAX);
        }
        assert_eq!(attempts.take_due(1, now).len(), 1);
        attempts.handle_end(peer.peer_id, false, now);
        assert_eq!(attempts.poll_timeout(), None, "it succeeded");
    }

    #[test]
    fn a_handshake_that_the_peer_began_saves_the_own_one() {
        let peer = row(false).peer_id;
        let mut attempts = Attempts::default();
        attempts.handle_voucher(peer, endpoints(&["a"]));
        attempts.handle_trusted(peer, NOW);
        assert_eq!(attempts.take_due(1, NOW), []);
        let mut running = Attempts::default();
        running.handle_voucher(peer, endpoints(&["a"]));
        running.take_due(1, NOW);
        running.handle_trusted(peer, NOW);
        assert_eq!(running.status(peer), PeerStatus::Handshaking);
    }

    #[test]
    fn trust_is_renewed_at_most_once_in_a_pause() {
        let peer = row(true);
        let mut attempts = Attempts::default();
        assert!(!attempts.handle_unknown_there(&row(false), NOW));
        assert!(attempts.handle_unknown_there(&peer, NOW));
        assert!(!attempts.handle_unknown_there(&peer, NOW), "it is due already");
        attempts.take_due(1, NOW);
        attempts.handle_end(peer.peer_id, false, NOW);
        assert!(
            !attempts.handle_unknown_there(&peer, NOW) && attempts.handle_unknown_there(&peer, NOW + RENEWAL_PAUSE)
        );
    }

    #[test]
    fn the_pause_between_renewals_doubles_up_to_its_bound_and_begins_anew_after_a_rest() {
        let peer = row(true);
        let (mut attempts, mut now) = (Attempts::default(), NOW);
        assert!(attempts.handle_unknown_there(&peer, now));
        let mut pause = RENEWAL_PAUSE;
        for _ in 0..8 {
            attempts.take_due(1, NOW);
            attempts.handle_end(peer.peer_id, true, now);
            let early = now + (pause - Duration::from_millis(1));
            assert!(!attempts.handle_unknown_there(&peer, early), "{pause:?}");
            now = now + pause;
            assert!(attempts.handle_unknown_there(&peer, now), "{pause:?}");
            pause = (2 * pause).min(RENEWAL_PAUSE_MAX);
        }
        assert_eq!(pause, RENEWAL_PAUSE_MAX);
        attempts.take_due(1, NOW);
        attempts.handle_end(peer.peer_id, true, now);
        let rested = now + 2 * RENEWAL_PAUSE_MAX;
        assert!(attempts.handle_unknown_there(&peer, rested));
        attempts.take_due(1, NOW);
        attempts.handle_end(peer.peer_id, true, rested);
        assert!(attempts.handle_unknown_there(&peer, rested + RENEWAL_PAUSE));
    }

    #[test]
    fn a_forgotten_peer_leaves_nothing_behind() {
        let peer = row(false).peer_id;
        let mut attempts = Attempts::default();
        attempts.handle_voucher(peer, endpoints(&["a"]));
        attempts.take_due(1, NOW);
        attempts.retain(|_| false);
        attempts.handle_end(peer, true, NOW);
        assert!(attempts.by_peer.is_empty());
    }
}
