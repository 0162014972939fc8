//! Who is revoked (cluster.md §8), as a function of the records held and of nothing else, so that all peers agree, and
//! within one peer the machine and the store.

use super::index::Entry;
use crate::{
    model::{PeerId, PublicKey},
    planted::{Bug, planted},
    wire::record::{AnsweredRevocation, ReadmissionBody, Record, RecordKey, RevocationBody, RevocationReason, kind},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Revocation {
    this: AnsweredRevocation,
    subject: PeerId,
    key: PublicKey,
    reason: RevocationReason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Readmission {
    body: ReadmissionBody,
    /// False while its own issuer is revoked: a removed peer readmits nobody.
    valid: bool,
}

/// By subject, then by issuer.
type BySubject<T> = BTreeMap<PeerId, BTreeMap<PeerId, T>>;

/// The revocations of peers, and the readmissions that answer them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    revocations: BySubject<Revocation>,
    /// With subject and issuer.
    by_key: BTreeSet<(PublicKey, PeerId, PeerId)>,
    readmissions: BySubject<Readmission>,
}

/// What stands against a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Clear,
    /// It left by itself and nobody removed it: its services stay listed until they are deleted by hand.
    Left,
    Revoked,
}

impl Standing {
    /// Whether records of this kind stay valid. Revocations outlive their issuer: two peers revoking each other both stand.
    pub fn keeps(self, record_kind: &str) -> bool {
        match self {
            Standing::Clear => true,
            Standing::Left => matches!(record_kind, kind::REVOCATION | kind::SERVICE | kind::FLOOR),
            Standing::Revoked => record_kind == kind::REVOCATION,
        }
    }
}

impl Revocations {
    /// Reads revocations of peers and readmissions; records of other kinds say nothing.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut all = Self::default();
        records.into_iter().for_each(|record| all.take(record));
        all.validate();
        all
    }

    /// Takes one record more, in the place of what its issuer said before. [`Self::validate`] draws the conclusion.
    pub(super) fn take(&mut self, record: &Record) {
        let issuer = record.key.owner;
        if let Ok(RevocationBody { peer_id: Some(subject), public_key: Some(key), reason, .. }) = record.body_as()
            && record.key.kind == kind::REVOCATION
        {
            let this = AnsweredRevocation { issuer, version: record.version };
            let taken = Revocation { this, subject, key, reason };
            let before = self.revocations.entry(subject).or_default().insert(issuer, taken);
            if let Some(before) = before {
                self.by_key.remove(&(before.key, subject, issuer));
            }
            self.by_key.insert((key, subject, issuer));
        } else if let Ok(body) = record.body_as::<ReadmissionBody>()
            && record.key.kind == kind::READMISSION
        {
            self.readmissions.entry(body.peer_id).or_default().insert(issuer, Readmission { body, valid: false });
        }
    }

    /// The readmissions of this issuer are void.
    pub(super) fn void_readmissions(&mut self, issuer: PeerId) {
        self.readmissions.retain(|_, by| {
            by.remove(&issuer);
            !by.is_empty()
        });
    }

    /// The least fixpoint: each round the readmissions by peers that are clear so far take effect, until none is left.
    pub(super) fn validate(&mut self) {
        let mut open = BTreeMap::<PeerId, Vec<PeerId>>::new();
        for (subject, by) in &mut self.readmissions {
            for (issuer, readmission) in by {
                readmission.valid = false;
                open.entry(*issuer).or_default().push(*subject);
            }
        }
        let mut next: Vec<_> = open.keys().copied().collect();
        while let Some(issuer) = next.pop() {
            if !open.contains_key(&issuer) || self.standing(issuer, None) != Standing::Clear {
                continue;
            }
            for subject in open.remove(&issuer).into_iter().flatten() {
                if let Some(readmission) = self.readmissions.get_mut(&subject).and_then(|by| by.get_mut(&issuer)) {
                    readmission.valid = true;
                }
                next.push(subject);
            }
        }
    }

    fn about_id(&self, id: PeerId) -> impl Iterator<Item = &Revocation> {
        self.revocations.get(&id).into_iter().flat_map(BTreeMap::values)
    }

    fn about_key(&self, key: &PublicKey) -> impl Iterator<Item = &Revocation> {
        let first = PeerId::from_bytes([0; 16]);
        let named = self.by_key.range((*key, first, first)..).take_while(|(named, ..)| *named == *key);
        named.filter_map(|(_, subject, issuer)| self.revocations.get(subject)?.get(issuer))
    }

    /// What stands against the peer `id`, or against its key where that is known.
    pub fn standing(&self, id: PeerId, key: Option<&PublicKey>) -> Standing {
        let by_key = key.into_iter().flat_map(|key| self.about_key(key));
        let is_by_blob = planted(Bug::RevocationByBlobHash);
        let is_about = |r: &&Revocation| !is_by_blob || (r.subject == id && key == Some(&r.key));
        let mut standing = Standing::Clear;
        for revocation in self.about_id(id).chain(by_key).filter(is_about) {
            if self.is_answered(revocation, id, key) {
                continue;
            }
            if revocation.reason != RevocationReason::Deactivated || revocation.this.issuer != id {
                return Standing::Revoked;
            }
            standing = Standing::Left;
        }
        standing
    }

    /// Every revocation that names the id or the key, answered or not: what a readmission has to answer, because it
    /// takes the place of its issuer's earlier one.
    pub fn against(&self, id: PeerId, key: &PublicKey) -> Vec<AnsweredRevocation> {
        let others = self.about_key(key).filter(|r| r.subject != id);
        self.about_id(id).chain(others).map(|r| r.this.clone()).collect()
    }

    /// The identities that revocations name, answered or not.
    pub fn subjects(&self) -> impl Iterator<Item = (PeerId, PublicKey)> {
        self.revocations.values().flat_map(BTreeMap::values).map(|r| (r.subject, r.key))
    }

    fn is_answered(&self, revocation: &Revocation, id: PeerId, key: Option<&PublicKey>) -> bool {
        self.readmissions.get(&id).into_iter().flatten().any(|(issuer, r)| {
            r.valid
                && *issuer != id
                && r.body.public_key == *key.unwrap_or(&revocation.key)
                && r.body.answers.contains(&revocation.this)
        })
    }

    /// The version of the word by which `id` itself left the cluster, whether it was readmitted since or not. What it
    /// wrote before has lower versions.
    pub fn left_at(&self, id: PeerId) -> Option<u64> {
        let own = self.revocations.get(&id).and_then(|by| by.get(&id));
        own.filter(|r| r.reason == RevocationReason::Deactivated).map(|r| r.this.version)
    }

    /// Keys that revocations name for `id`: what a revoked owner's remaining records are verified with.
    pub fn keys_of(&self, id: PeerId) -> impl Iterator<Item = &PublicKey> {
        self.about_id(id).map(|r| &r.key)
    }
}

/// Whether a revocation or readmission is about what its id says. One that is not could be raised to lift itself.
pub(super) fn is_about_its_id(key: &RecordKey, entry: &Entry) -> bool {
    if key.kind == kind::READMISSION {
        return entry.record.body_as::<ReadmissionBody>().is_ok_and(|body| body.peer_id.to_string() == key.id);
    }
    entry.record.body_as::<RevocationBody>().is_ok_and(|body| match (body.peer_id, body.public_key, body.client_id) {
        // Nobody removes itself but by leaving: else what is kept would depend on the order.
        (Some(peer), Some(_), None) if peer == key.owner && body.reason != RevocationReason::Deactivated => false,
        (Some(peer), Some(_), None) => peer.to_string() == key.id,
        (None, None, Some(client)) => client.to_string() == key.id,
        _ => false,
    })
}
