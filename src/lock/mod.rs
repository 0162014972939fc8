//! The cluster lock (cluster.md §9): who holds it, and how one agent comes to hold it. Sans-IO: the driver carries
//! questions to the peers and records from the store, and asks again at [`Lock::poll_timeout`].
//!
//! A room of its own, beside `gossip`: gossip spreads what is decided, in any order and to whoever listens; a lock is
//! decided by asking each healthy peer and waiting for its answer.
//!
//! What holds: a peer that has granted one lease grants no other until that one is withdrawn, has expired or was cleared;
//! a claimant grants its own first. So of two agents that ask each other, or a common third, at most one wins. Leases that
//! were won on both sides of a split meet later: the smaller rank stands. Only this agent's monotonic clock ends a lease.

#[cfg(test)]
mod tests;

use crate::{
    model::{Mono, PeerId},
    wire::{
        gossip::Digest,
        lock::{CLEARING_ID, LEASE_ID, Lease, LockBody, LockReply, LockRequest},
        record::Record,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long a claim may wait for its last grant.
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions to a peer that did not grant.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How long a grant waits for the record of its lease: gossip repairs a lost push within one heartbeat, 12 s at most.
pub const GRANT_LIFETIME: Duration = Duration::from_secs(20);
/// A clearing is kept at least so long, and for as long as the record of its lease is about.
pub const CLEARING_MEMORY: Duration = Duration::from_secs(60);
/// Leases known at once. Each peer has one; a claim beyond them is refused.
const LEASES_MAX: usize = 1024;

/// A lease that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub lease: Lease,
    /// Until then, if nothing renews it.
    pub until: Mono,
}

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everyone asked has granted it. The driver publishes the record of the lease before it says so.
    Won(Lease),
    Lost(Standing),
    /// The claim was cleared while it waited.
    Ended,
    /// These did not answer in time.
    Unanswered(Vec<PeerId>),
}

/// Why a lease is not renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRenewed {
    /// Another lease stands.
    Lost(Box<Standing>),
    /// It expired, was released or cleared, or never was.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("a peer claims the lock for itself only")]
    NotTheHolder,
    #[error("the lease breaks a bound")]
    Malformed,
    #[error("too many leases are known")]
    Full,
}

#[derive(Debug, Clone)]
struct Known {
    lease: Lease,
    until: Mono,
    /// The version of its record; None while it is only a claim.
    version: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voter {
    Due(Mono),
    Asked,
    Granted,
}

#[derive(Debug, Clone)]
struct Claim {
    lease: Lease,
    voters: BTreeMap<PeerId, Voter>,
    deadline: Mono,
    /// The last lease that a voter has put in the way.
    refused_for: Option<Lease>,
}

/// The lock as one agent knows it.
#[derive(Debug, Clone)]
pub struct Lock {
    local: PeerId,
    leases: BTreeMap<Digest, Known>,
    /// Newest version of each owner's lease record, tombstones included: an older one is never news.
    versions: BTreeMap<PeerId, u64>,
    /// Since when each lease is known to be cleared.
    cleared: BTreeMap<Digest, Mono>,
    claim: Option<Claim>,
    /// What this agent itself has published.
    own_lease: Option<Digest>,
    own_clearing: Option<Digest>,
}

impl Lock {
    pub fn new(local: PeerId) -> Self {
        Self {
            local,
            leases: BTreeMap::new(),
            versions: BTreeMap::new(),
            cleared: BTreeMap::new(),
            claim: None,
            own_lease: None,
            own_clearing: None,
        }
    }

    /// Takes every `lock` record that the store holds, tombstones included. A version that is new here starts the life of
    /// its lease anew.
    pub fn handle_records(&mut self, records: &[Record], now: Mono) {
        let bodies = || records.iter().map(|r| (r, r.body_as::<LockBody>().ok().filter(|_| !r.deleted)));
        let mut clearings = BTreeSet::new();
        self.own_clearing = None;
        for (record, body) in bodies().filter(|(r, _)| r.key.id == CLEARING_ID) {
            let Some(LockBody::Clearing { cleared }) = body else { continue };
            clearings.insert(cleared);
            if record.key.owner == self.local {
                self.own_clearing = Some(cleared);
            }
        }
        self.cleared.retain(|token, _| clearings.contains(token));
        clearings.into_iter().for_each(|token| {
            self.cleared.entry(token).or_insert(now);
        });

        let mut published = BTreeSet::new();
        self.own_lease = None;
        for (record, body) in bodies().filter(|(r, _)| r.key.id == LEASE_ID) {
            let lease = match body {
                Some(LockBody::Lease(lease)) if lease.holder_peer == record.key.owner && lease.is_sound() => {
                    Some(lease)
                }
                _ => None,
            };
            if let Some(lease) = &lease {
                published.insert(lease.token);
                if record.key.owner == self.local {
                    self.own_lease = Some(lease.token);
                }
            }
            self.take_lease(record, lease, now);
        }
        let owners: BTreeSet<PeerId> = records.iter().map(|r| r.key.owner).collect();
        self.versions.retain(|owner, _| owners.contains(owner));
        self.leases.retain(|token, known| known.version.is_none() || published.contains(token));
        let cleared = &self.cleared;
        self.leases.retain(|token, _| !cleared.contains_key(token));
    }

    fn take_lease(&mut self, record: &Record, lease: Option<Lease>, now: Mono) {
        let newest = self.versions.entry(record.key.owner).or_default();
        if record.version <= *newest {
            return;
        }
        *newest = record.version;
        // An own lease that this process did not take is from before a restart: how long that was ago, no clock here knows.
        let from_before = |lease: &Lease| record.key.owner == self.local && !self.leases.contains_key(&lease.token);
        let Some(lease) = lease.filter(|lease| !from_before(lease)) else { return };
        let until = now + Duration::from_secs(lease.ttl_s.into());
        self.leases.insert(lease.token, Known { lease, until, version: Some(record.version) });
    }

    /// The lease that stands now.
    pub fn standing(&self, now: Mono) -> Option<Standing> {
        let live = self.leases.values().filter(|known| known.until > now);
        let known = live.min_by_key(|known| known.lease.rank())?;
        Some(Standing { lease: known.lease.clone(), until: known.until })
    }

    /// Whether a single write may be made: nobody holds the lock, or `token` is the holder's.
    pub fn check_write(&self, token: Option<Digest>, now: Mono) -> Result<(), Box<Standing>> {
        match self.standing(now) {
            Some(standing) if Some(standing.lease.token) != token => Err(standing.into()),
            _ => Ok(()),
        }
    }

    /// Answers a peer whose signature on the question has been checked.
    pub fn handle_request(&mut self, from: PeerId, request: &LockRequest, now: Mono) -> Result<LockReply, Reject> {
        self.handle_timeout(now);
        match request {
            LockRequest::Withdraw(token) => {
                let is_claim = |known: &Known| known.lease.holder_peer == from && known.version.is_none();
                if self.leases.get(token).is_some_and(is_claim) {
                    self.leases.remove(token);
                }
                Ok(LockReply::Granted)
            }
            LockRequest::Claim(lease) if lease.holder_peer != from => Err(Reject::NotTheHolder),
            LockRequest::Claim(lease) if !lease.is_sound() || self.cleared.contains_key(&lease.token) => {
                Err(Reject::Malformed)
            }
            LockRequest::Claim(lease) => self.vote(from, lease, now),
        }
    }

    fn vote(&mut self, from: PeerId, lease: &Lease, now: Mono) -> Result<LockReply, Reject> {
        // A peer has one claim at a time: an earlier one of its own has failed, and its withdrawal was lost.
        self.leases
            .retain(|token, known| known.lease.holder_peer != from || known.version.is_some() || *token == lease.token);
        let others = self.leases.values().filter(|known| known.lease.token != lease.token);
        if let Some(other) = others.min_by_key(|known| known.lease.rank()) {
            return Ok(LockReply::Refused { lease: other.lease.clone(), held: other.version.is_some() });
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(Reject::Full);
        }
        let granted = Known { lease: lease.clone(), until: now + GRANT_LIFETIME, version: None };
        self.leases.entry(lease.token).or_insert(granted);
        Ok(LockReply::Granted)
    }

    /// Begins to claim the lock with the grants of `voters`, the healthy peers; [`Lock::handle_healthy`] keeps them so.
    pub fn claim(&mut self, lease: Lease, voters: &BTreeSet<PeerId>, now: Mono) -> Result<(), Box<Standing>> {
        self.handle_timeout(now);
        if let Some(standing) = self.standing(now) {
            return Err(standing.into());
        }
        let deadline = now + CLAIM_TIMEOUT;
        let voters = voters.iter().filter(|peer| **peer != self.local).map(|peer| (*peer, Voter::Due(now))).collect();
        let own = Known { lease: lease.clone(), until: now + GRANT_LIFETIME, version: None };
        self.leases.insert(lease.token, own);
        self.claim = Some(Claim { lease, voters, deadline, refused_for: None });
        Ok(())
    }

    /// A question to be carried now. Each comes back once through [`Lock::handle_reply`].
    pub fn poll_request(&mut self, now: Mono) -> Option<(PeerId, LockRequest)> {
        let claim = self.claim.as_mut()?;
        let is_due = |voter: &Voter| matches!(voter, Voter::Due(at) if *at <= now);
        let (peer, voter) = claim.voters.iter_mut().find(|(_, voter)| is_due(voter))?;
        *voter = Voter::Asked;
        Some((*peer, LockRequest::Claim(claim.lease.clone())))
    }

    /// Takes a peer's answer to the claim of `token`, or None if there was none.
    pub fn handle_reply(&mut self, from: PeerId, token: Digest, reply: Option<LockReply>, now: Mono) {
        let Some(claim) = self.claim.as_mut().filter(|claim| claim.lease.token == token) else { return };
        let Some(voter) = claim.voters.get_mut(&from) else { return };
        *voter = match reply {
            Some(LockReply::Granted) => Voter::Granted,
            Some(LockReply::Refused { lease, held }) if lease.is_sound() => {
                // Against a claim of larger rank we insist: its claimant meets ours and gives way.
                if held || lease.rank() < claim.lease.rank() {
                    claim.deadline = now;
                }
                claim.refused_for = Some(lease);
                Voter::Due(now + RETRY_INTERVAL)
            }
            Some(LockReply::Refused { .. }) | None => Voter::Due(now + RETRY_INTERVAL),
        };
    }

    /// Waits no more for peers that are not healthy, and asks those that have become so since the claim began: they may
    /// know another lease.
    pub fn handle_healthy(&mut self, healthy: &BTreeSet<PeerId>, now: Mono) {
        let Some(claim) = self.claim.as_mut() else { return };
        claim.voters.retain(|peer, _| healthy.contains(peer));
        for peer in healthy.iter().filter(|peer| **peer != self.local) {
            claim.voters.entry(*peer).or_insert(Voter::Due(now));
        }
    }

    /// How the claim ended, once it has. After anything but a win the claimed lease is forgotten here; the driver tells
    /// the peers that it asked, with [`LockRequest::Withdraw`].
    pub fn poll_outcome(&mut self, now: Mono) -> Option<Outcome> {
        let claim = self.claim.as_ref()?;
        let (lease, token) = (claim.lease.clone(), claim.lease.token);
        let other = self.standing(now).filter(|standing| standing.lease.token != token);
        let waiting = claim.voters.iter().filter(|(_, voter)| **voter != Voter::Granted);
        let waiting: Vec<PeerId> = waiting.map(|(peer, _)| *peer).collect();
        let outcome = match (other, &claim.refused_for) {
            (Some(standing), _) => Outcome::Lost(standing),
            (None, _) if !self.leases.contains_key(&token) => Outcome::Ended,
            (None, _) if waiting.is_empty() => Outcome::Won(lease),
            (None, _) if now < claim.deadline => return None,
            (None, Some(lease)) => {
                let until = now + Duration::from_secs(lease.ttl_s.into());
                Outcome::Lost(Standing { lease: lease.clone(), until })
            }
            (None, None) => Outcome::Unanswered(waiting),
        };
        self.claim = None;
        match &outcome {
            Outcome::Won(lease) => {
                if let Some(known) = self.leases.get_mut(&token) {
                    known.until = now + Duration::from_secs(lease.ttl_s.into());
                }
            }
            Outcome::Lost(_) | Outcome::Ended | Outcome::Unanswered(_) => drop(self.leases.remove(&token)),
        }
        Some(outcome)
    }

    /// Ends a lease or a claim of this agent, whether or not its record was ever written. One that is written later is
    /// stale.
    pub fn end_own(&mut self, token: Digest) {
        self.leases.retain(|known, lease| *known != token || lease.lease.holder_peer != self.local);
    }

    /// The lease of this agent under `token`, which the driver publishes once more: that renews it.
    pub fn renewable(&self, token: Digest, now: Mono) -> Result<Lease, NotRenewed> {
        match self.standing(now) {
            Some(s) if s.lease.token == token && s.lease.holder_peer == self.local => Ok(s.lease),
            Some(s) if s.lease.token != token => Err(NotRenewed::Lost(s.into())),
            _ => Err(NotRenewed::Gone),
        }
    }

    /// The published lease of this agent, if it should be withdrawn: it is not the one that stands.
    pub fn stale_lease(&self, now: Mono) -> Option<Digest> {
        let standing = self.standing(now).map(|s| s.lease.token);
        self.own_lease.filter(|own| standing != Some(*own))
    }

    /// What the published clearing of this agent has cleared, if nothing of it is left.
    pub fn stale_clearing(&self, published: impl Fn(Digest) -> bool, now: Mono) -> Option<Digest> {
        self.own_clearing.filter(|&token| {
            let since = self.cleared.get(&token).copied().unwrap_or(now);
            now.saturating_since(since) >= CLEARING_MEMORY && !published(token)
        })
    }

    /// Forgets what has ended by time alone.
    pub fn handle_timeout(&mut self, now: Mono) {
        self.leases.retain(|_, known| known.until > now);
    }

    /// When something ends by time alone: a lease, a claim's patience, a clearing's use.
    pub fn poll_timeout(&self, now: Mono) -> Option<Mono> {
        let ends = self.leases.values().map(|known| known.until);
        let clearing = self.own_clearing.and_then(|token| self.cleared.get(&token));
        let claim = self.claim.iter().flat_map(|claim| {
            let due = claim.voters.values().filter_map(|voter| match voter {
                Voter::Due(at) => Some(*at),
                Voter::Asked | Voter::Granted => None,
            });
            due.chain([claim.deadline])
        });
        let all = ends.chain(clearing.map(|since| *since + CLEARING_MEMORY)).chain(claim);
        all.filter(|at| *at > now).min()
    }
}
