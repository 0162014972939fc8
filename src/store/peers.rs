//! The local view of peers: held keys, trust, local names; and what revocations say.

use super::{StoreError, Tx, View};
use crate::{
    model::{Endpoint, LicenseId, PeerId, PublicKey, UnixTime},
    wire::record::{AnsweredRevocation, PeerBody, ReadmissionBody, RecordKey, RevocationBody, kind},
};
use rusqlite::{OptionalExtension, Row, params};
use std::collections::BTreeSet;

/// One known peer, the local one included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRow {
    pub peer_id: PeerId,
    /// From a handshake or a voucher.
    pub public_key: PublicKey,
    /// A handshake with it has succeeded and no revocation stands.
    pub trusted: bool,
    /// Where it was reached or is said to be, in order; its own record has the final word.
    pub endpoints: Vec<Endpoint>,
    pub license_id: Option<LicenseId>,
    /// Set by the operator on this peer; never gossiped.
    pub local_name: Option<String>,
    pub qos_enabled: bool,
    pub created_at: UnixTime,
    /// Its own signed record, where one is held.
    pub body: Option<PeerBody>,
}

impl PeerRow {
    /// A peer as a handshake leaves it.
    pub fn trusted(peer_id: PeerId, public_key: PublicKey, endpoints: Vec<Endpoint>, created_at: UnixTime) -> Self {
        Self {
            peer_id,
            public_key,
            trusted: true,
            endpoints,
            license_id: None,
            local_name: None,
            qos_enabled: true,
            created_at,
            body: None,
        }
    }

    /// The local name, else the self-given one, else the id.
    pub fn display_name(&self) -> String {
        let own = self.body.as_ref().map(|b| b.name.clone()).filter(|n| !n.is_empty());
        self.local_name.clone().or(own).unwrap_or_else(|| self.peer_id.to_string())
    }

    /// Where to reach it, in order: its own record's list, then others that are known.
    pub fn all_endpoints(&self) -> Vec<Endpoint> {
        let mut all = self.body.as_ref().map(|b| b.endpoints.clone()).unwrap_or_default();
        for endpoint in &self.endpoints {
            if !all.contains(endpoint) {
                all.push(endpoint.clone());
            }
        }
        all
    }
}

const COLUMNS: &str = "peer_id, public_key, trusted, endpoints, license_id, local_name, qos_enabled, created_at";

impl View<'_> {
    /// Every known peer, ordered by id, the local one included.
    pub fn peers(&self) -> Result<Vec<PeerRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM peers ORDER BY peer_id"))?;
        let rows: Vec<_> = statement.query_map([], |row| Ok(read_peer(row)))?.collect::<Result<_, _>>()?;
        rows.into_iter().map(|row| self.with_body(row?)).collect()
    }

    pub fn peer(&self, id: PeerId) -> Result<Option<PeerRow>, StoreError> {
        let row = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM peers WHERE peer_id = ?1"))?
            .query_row([id.to_string()], |row| Ok(read_peer(row)))
            .optional()?
            .transpose()?;
        row.map(|row| self.with_body(row)).transpose()
    }

    /// Trusted peers, ordered by id, the local one included: the nodes that count.
    pub fn trusted_peers(&self) -> Result<Vec<PeerRow>, StoreError> {
        Ok(self.peers()?.into_iter().filter(|p| p.trusted).collect())
    }

    fn with_body(&self, mut row: PeerRow) -> Result<PeerRow, StoreError> {
        let key = RecordKey { kind: kind::PEER.into(), id: row.peer_id.to_string(), owner: row.peer_id };
        row.body = self.record(&key)?.filter(|r| !r.deleted).and_then(|r| r.body_as().ok());
        Ok(row)
    }

    /// Identities with a standing revocation.
    pub fn revoked_identities(&self) -> Result<BTreeSet<(PeerId, PublicKey)>, StoreError> {
        let mut revoked = BTreeSet::new();
        for record in self.records_of(kind::REVOCATION)? {
            let Ok(RevocationBody { peer_id: Some(id), public_key: Some(key), .. }) = record.body_as() else {
                continue;
            };
            if !self.standing_revocations(id, &key)?.is_empty() {
                revoked.insert((id, key));
            }
        }
        Ok(revoked)
    }

    /// Revocations of a peer that no readmission answers. Either the id or the key is enough (cluster.md §8).
    pub fn standing_revocations(&self, id: PeerId, key: &PublicKey) -> Result<Vec<AnsweredRevocation>, StoreError> {
        let mut answered = BTreeSet::new();
        for record in self.records_of(kind::READMISSION)? {
            if let Ok(body) = record.body_as::<ReadmissionBody>()
                && body.peer_id == id
                && body.public_key == *key
            {
                answered.extend(body.answers);
            }
        }
        let mut standing = Vec::new();
        for record in self.records_of(kind::REVOCATION)? {
            let Ok(body) = record.body_as::<RevocationBody>() else { continue };
            let about = body.peer_id == Some(id) || body.public_key.as_ref() == Some(key);
            let this = AnsweredRevocation { issuer: record.key.owner, version: record.version };
            if about && !answered.contains(&this) {
                standing.push(this);
            }
        }
        Ok(standing)
    }
}

impl Tx<'_> {
    /// Inserts or replaces what is known of a peer, except its local name and QoS switch, which stay if it is known.
    pub fn put_peer(&self, row: &PeerRow) -> Result<(), StoreError> {
        let endpoints = serde_json::to_string(&row.endpoints).map_err(|e| StoreError::corrupt("endpoint list", e))?;
        self.connection
            .prepare_cached(
                "INSERT INTO peers (peer_id, public_key, trusted, endpoints, license_id, local_name, qos_enabled, \
                 created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (peer_id) DO UPDATE SET \
                 public_key = excluded.public_key, trusted = excluded.trusted, endpoints = excluded.endpoints, \
                 license_id = excluded.license_id, local_name = coalesce(excluded.local_name, local_name)",
            )?
            .execute(params![
                row.peer_id.to_string(),
                row.public_key.to_string(),
                row.trusted,
                endpoints,
                row.license_id.map(|l| l.to_string()),
                row.local_name,
                row.qos_enabled,
                row.created_at.as_ms() as i64,
            ])?;
        Ok(())
    }

    /// Sets the local view of a peer; false when it is unknown.
    pub fn set_peer_view(&self, id: PeerId, local_name: Option<&str>, qos: Option<bool>) -> Result<bool, StoreError> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE peers SET local_name = coalesce(?2, local_name), qos_enabled = coalesce(?3, qos_enabled) \
                 WHERE peer_id = ?1",
            )?
            .execute(params![id.to_string(), local_name, qos])?;
        Ok(changed > 0)
    }

    /// Drops a peer from the local view: trust, key, name.
    pub fn forget_peer(&self, id: PeerId) -> Result<(), StoreError> {
        self.connection.prepare_cached("DELETE FROM peers WHERE peer_id = ?1")?.execute([id.to_string()])?;
        Ok(())
    }
}

fn read_peer(row: &Row<'_>) -> Result<PeerRow, StoreError> {
    let text = |i: usize| row.get::<_, String>(i);
    let license: Option<String> = row.get(4)?;
    Ok(PeerRow {
        peer_id: text(0)?.parse().map_err(|e| StoreError::corrupt("peer id", e))?,
        public_key: text(1)?.parse().map_err(|e| StoreError::corrupt("public key", e))?,
        trusted: row.get(2)?,
        endpoints: serde_json::from_str(&text(3)?).map_err(|e| StoreError::corrupt("endpoint list", e))?,
        license_id: license.map(|l| l.parse().map_err(|e| StoreError::corrupt("license id", e))).transpose()?,
        local_name: row.get(5)?,
        qos_enabled: row.get(6)?,
        created_at: UnixTime::from_ms(row.get::<_, i64>(7)?.unsigned_abs()),
        body: None,
    })
}
