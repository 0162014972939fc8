//! Who is revoked (cluster.md §8), as a function of the records held and of nothing else, so that all peers agree, and
//! within one peer the machine and the store.

use super::index::Entry;
use crate::{
    model::{PeerId, PublicKey},
    planted::{Bug, planted},
    wire::record::{AnsweredRevocation, ReadmissionBody, Record, RecordKey, RevocationBody, RevocationReason, kind},
};

#[derive(Debug, Clone)]
struct Revocation {
    this: AnsweredRevocation,
    subject: PeerId,
    key: PublicKey,
    reason: RevocationReason,
}

#[derive(Debug, Clone)]
struct Readmission {
    issuer: PeerId,
    body: ReadmissionBody,
    /// False while its own issuer is revoked: a removed peer readmits nobody.
    valid: bool,
}

/// The revocations of peers, and the readmissions that answer them.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    revocations: Vec<Revocation>,
    readmissions: Vec<Readmission>,
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
        for record in records {
            if let Ok(RevocationBody { peer_id: Some(subject), public_key: Some(key), reason, .. }) = record.body_as()
                && record.key.kind == kind::REVOCATION
            {
                let this = AnsweredRevocation { issuer: record.key.owner, version: record.version };
                all.revocations.push(Revocation { this, subject, key, reason });
            } else if let Ok(body) = record.body_as::<ReadmissionBody>()
                && record.key.kind == kind::READMISSION
            {
                all.readmissions.push(Readmission { issuer: record.key.owner, body, valid: false });
            }
        }
        all.validate();
        all
    }

    /// The least fixpoint: each round the readmissions by peers that are clear so far take effect, until none is left.
    fn validate(&mut self) {
        let is_ready = |all: &Self, r: &Readmission| !r.valid && all.standing(r.issuer, None) == Standing::Clear;
        while let Some(next) = self.readmissions.iter().position(|r| is_ready(self, r)) {
            self.readmissions[next].valid = true;
        }
    }

    /// What stands against the peer `id`, or against its key where that is known.
    pub fn standing(&self, id: PeerId, key: Option<&PublicKey>) -> Standing {
        let mut standing = Standing::Clear;
        for revocation in &self.revocations {
            let about = match planted(Bug::RevocationByBlobHash) {
                true => revocation.subject == id && key == Some(&revocation.key),
                false => revocation.subject == id || key.is_some_and(|key| revocation.key == *key),
            };
            if !about || self.is_answered(revocation, id, key) {
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
        let about = self.revocations.iter().filter(|r| r.subject == id || r.key == *key);
        about.map(|r| r.this.clone()).collect()
    }

    /// The identities that revocations name, answered or not.
    pub fn subjects(&self) -> impl Iterator<Item = (PeerId, PublicKey)> {
        self.revocations.iter().map(|r| (r.subject, r.key))
    }

    fn is_answered(&self, revocation: &Revocation, id: PeerId, key: Option<&PublicKey>) -> bool {
        self.readmissions.iter().any(|r| {
            r.valid
                && r.issuer != id
                && r.body.peer_id == id
                && r.body.public_key == *key.unwrap_or(&revocation.key)
                && r.body.answers.contains(&revocation.this)
        })
    }

    /// The version of the word by which `id` itself left the cluster, whether it was readmitted since or not. What it
    /// wrote before has lower versions.
    pub fn left_at(&self, id: PeerId) -> Option<u64> {
        let own = self.revocations.iter().filter(|r| r.subject == id && r.this.issuer == id);
        own.filter(|r| r.reason == RevocationReason::Deactivated).map(|r| r.this.version).max()
    }

    /// Keys that revocations name for `id`: what a revoked owner's remaining records are verified with.
    pub fn keys_of(&self, id: PeerId) -> impl Iterator<Item = &PublicKey> {
        self.revocations.iter().filter(move |r| r.subject == id).map(|r| &r.key)
    }
}

/// Whether a revocation or readmission is about what its id says. One that is not could be raised to lift itself.
pub(super) fn is_about_its_id(key: &RecordKey, entry: &Entry) -> bool {
    if key.kind == kind::READMISSION {
        return entry.record.body_as::<ReadmissionBody>().is_ok_and(|body| body.peer_id.to_string() == key.id);
    }
    entry.record.body_as::<RevocationBody>().is_ok_and(|body| match (body.peer_id, body.public_key, body.client_id) {
        (Some(peer), Some(_), None) => peer.to_string() == key.id,
        (None, None, Some(client)) => client.to_string() == key.id,
        _ => false,
    })
}
