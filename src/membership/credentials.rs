//! API credentials as the cluster shares them (cluster.md §3, api.md §7): each is a record of the peer that issued it.

use super::{Author, Ledger, LedgerView};
use crate::{
    model::{ClientId, LicenseId, PeerId, ScopeSet, Secret, UnixTime},
    wire::record::{ClusterBody, CredentialBody, RecordKey, RevocationBody, RevocationReason, SecretDigest, kind},
};
use std::{collections::BTreeSet, time::Duration};

/// How long the secret before the last rotation stays valid.
pub const ROTATION_OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// Secrets of one credential that are valid at one time; of more the oldest go.
const SECRETS_MAX: usize = 8;

/// A credential of this peer, to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCredential {
    pub client_id: ClientId,
    pub scopes: ScopeSet,
    pub description: String,
    pub license_id: LicenseId,
}

/// A live credential with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub issuer: PeerId,
    pub version: u64,
    pub body: CredentialBody,
}

/// Issues a credential with this secret.
pub fn issue_credential<L: Ledger>(
    ledger: &L,
    author: &Author,
    new: NewCredential,
    secret: &Secret,
    now: UnixTime,
) -> Result<(), L::Error> {
    let body = CredentialBody {
        client_id: new.client_id,
        secrets: vec![SecretDigest { sha256: secret.digest_hex(), not_after: None }],
        scopes: new.scopes,
        description: new.description,
        license_id: new.license_id,
        created_at: now,
        rotated_by: None,
        rotated_at: None,
    };
    ledger.put_own(author, kind::CREDENTIAL, &new.client_id.to_string(), &body).map(drop)
}

/// Revokes a credential: an own one by its tombstone, that of another issuer by a revocation, which counts everywhere
/// until the issuer writes the tombstone.
pub fn revoke_credential<L: Ledger>(
    ledger: &L,
    author: &Author,
    issuer: PeerId,
    client_id: ClientId,
    now: UnixTime,
) -> Result<(), L::Error> {
    let id = client_id.to_string();
    if issuer == author.peer_id {
        return ledger.delete_own(author, kind::CREDENTIAL, &id).map(drop);
    }
    let body = RevocationBody {
        peer_id: None,
        public_key: None,
        client_id: Some(client_id),
        reason: RevocationReason::Revoked,
        revoked_at: now,
    };
    ledger.put_own(author, kind::REVOCATION, &id, &body).map(drop)
}

/// Client ids that are revoked by whichever peer.
pub fn revoked_clients<L: LedgerView>(ledger: &L) -> Result<BTreeSet<ClientId>, L::Error> {
    let records = ledger.records_of(kind::REVOCATION)?;
    Ok(records.iter().filter_map(|r| r.body_as::<RevocationBody>().ok()?.client_id).collect())
}

/// Writes the tombstones of own credentials that other peers have revoked. A contested copy of an identity leaves them for
/// later: the revocations count without them.
pub fn retire_revoked_credentials<L: Ledger>(ledger: &L, author: &Author) -> Result<(), L::Error> {
    if ledger.is_contested()? {
        return Ok(());
    }
    let revoked = revoked_clients(ledger)?;
    if revoked.is_empty() {
        return Ok(());
    }
    let own = ledger.records_of(kind::CREDENTIAL)?;
    let own = own.iter().filter(|r| r.key.owner == author.peer_id && !r.deleted);
    for record in own.filter(|r| r.key.id.parse().is_ok_and(|id| revoked.contains(&id))) {
        ledger.delete_own(author, kind::CREDENTIAL, &record.key.id)?;
    }
    Ok(())
}

/// The credential that the members share: the live one that the `cluster` record of the smallest id names.
pub fn shared_credential<L: LedgerView>(ledger: &L) -> Result<Option<Credential>, L::Error> {
    let trusted: BTreeSet<PeerId> = ledger.trusted_peers()?.into_iter().map(|p| p.peer_id).collect();
    let revoked = revoked_clients(ledger)?;
    let records = ledger.records_of(kind::CLUSTER)?;
    let mut births: Vec<(ClusterBody, PeerId)> = records
        .iter()
        .filter(|r| !r.deleted && trusted.contains(&r.key.owner))
        .filter_map(|r| Some((r.body_as::<ClusterBody>().ok()?, r.key.owner)))
        .collect();
    births.sort_by_key(|(body, owner)| (body.cluster_id, *owner));
    for (birth, issuer) in births.into_iter().filter(|(body, _)| !revoked.contains(&body.client_id)) {
        let key = RecordKey { kind: kind::CREDENTIAL.into(), id: birth.client_id.to_string(), owner: issuer };
        let record = ledger.record(&key)?.filter(|r| !r.deleted);
        if let Some((version, body)) = record.and_then(|r| Some((r.version, r.body_as::<CredentialBody>().ok()?))) {
            return Ok(Some(Credential { issuer, version, body }));
        }
    }
    Ok(None)
}

/// Gives an own credential a new secret. The one before stays valid for [`ROTATION_OVERLAP`].
pub fn rotate_credential<L: Ledger>(
    ledger: &L,
    author: &Author,
    current: &CredentialBody,
    secret: &Secret,
    by: Option<ClientId>,
    now: UnixTime,
) -> Result<Credential, L::Error> {
    let until = now.plus(ROTATION_OVERLAP);
    let ended = |digest: &SecretDigest| digest.not_after.is_some_and(|end| end < now);
    let mut secrets: Vec<SecretDigest> = current.secrets.iter().filter(|d| !ended(d)).cloned().collect();
    for digest in &mut secrets {
        digest.not_after = Some(digest.not_after.map_or(until, |end| end.min(until)));
    }
    secrets.push(SecretDigest { sha256: secret.digest_hex(), not_after: None });
    let surplus = secrets.len().saturating_sub(SECRETS_MAX);
    secrets.drain(..surplus);
    let body = CredentialBody { secrets, rotated_by: by, rotated_at: Some(now), ..current.clone() };
    let record = ledger.put_own(author, kind::CREDENTIAL, &body.client_id.to_string(), &body)?;
    Ok(Credential { issuer: author.peer_id, version: record.version, body })
}
