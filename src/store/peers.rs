//! The local view of peers: held keys, trust, local names; and what revocations say.

use super::{StoreError, Tx, View};
use crate::{
    gossip::Revocations,
    membership::{LedgerView, PeerRow},
    model::{PeerId, PublicKey, UnixTime},
    wire::record::kind,
};
use rusqlite::{OptionalExtension, Row, params};
use std::collections::BTreeSet;

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
        LedgerView::trusted_peers(self)
    }

    /// Peers that a trusted one vouches for.
    pub fn vouched(&self) -> Result<BTreeSet<PeerId>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT DISTINCT r.id FROM records r JOIN peers p ON p.peer_id = r.owner
             WHERE r.kind = ?1 AND r.deleted = 0 AND p.trusted = 1",
        )?;
        let ids = statement.query_map([kind::VOUCHER], |row| row.get::<_, String>(0))?;
        let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    fn with_body(&self, row: PeerRow) -> Result<PeerRow, StoreError> {
        let record = self.record(&row.record_key())?;
        Ok(row.with_record(record.as_ref()))
    }

    /// What the held records say of who is revoked.
    pub fn revocations(&self) -> Result<Revocations, StoreError> {
        LedgerView::revocations(self)
    }

    /// Identities with a standing revocation.
    pub fn revoked_identities(&self) -> Result<BTreeSet<(PeerId, PublicKey)>, StoreError> {
        LedgerView::revoked_identities(self)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gossip::Standing,
        model::{Rng, SigningKey},
        store::{Author, Store},
        wire::record::{AnsweredRevocation, ReadmissionBody, Record, RevocationBody, RevocationReason, kind},
    };

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn author(seed: u8) -> Author {
        let key = SigningKey::from_seed([seed; 32]);
        Author { peer_id: PeerId::mint(NOW, &mut Rng::from_seed([seed; 32])), key }
    }

    fn revocation(by: &Author, of: &Author, version: u64) -> Record {
        let body = RevocationBody {
            peer_id: Some(of.peer_id),
            public_key: Some(of.key.public()),
            client_id: None,
            reason: RevocationReason::Deleted,
            revoked_at: NOW,
        };
        record(by, kind::REVOCATION, of, version, &body)
    }

    fn readmission(by: &Author, of: &Author, version: u64, answers: &[&Record]) -> Record {
        let answer = |r: &&Record| AnsweredRevocation { issuer: r.key.owner, version: r.version };
        let body = ReadmissionBody {
            peer_id: of.peer_id,
            public_key: of.key.public(),
            answers: answers.iter().map(answer).collect(),
            readmitted_at: NOW,
        };
        record(by, kind::READMISSION, of, version, &body)
    }

    fn record(by: &Author, kind: &str, of: &Author, version: u64, body: &impl serde::Serialize) -> Record {
        let body = serde_json::to_value(body).unwrap();
        Record::sign(&by.key, by.peer_id, kind, &of.peer_id.to_string(), version, body).unwrap()
    }

    async fn revoked(records: Vec<Record>) -> BTreeSet<(PeerId, PublicKey)> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("arctic.db")).unwrap();
        let write = store.write(move |tx| records.iter().try_for_each(|r| tx.put_verified(r).map(drop)));
        write.await.map_err(|e: StoreError| e).unwrap();
        store.read(|v| v.revoked_identities()).unwrap()
    }

    #[tokio::test]
    async fn nobody_readmits_itself_and_no_removed_peer_readmits_another() {
        let (a, b, c) = (author(1), author(2), author(3));
        let identity = |who: &Author| (who.peer_id, who.key.public());
        let of_c = revocation(&a, &c, 1);
        assert_eq!(revoked(vec![of_c.clone()]).await, BTreeSet::from([identity(&c)]));
        let by_itself = readmission(&c, &c, 1, &[&of_c]);
        assert_eq!(revoked(vec![of_c.clone(), by_itself]).await, BTreeSet::from([identity(&c)]));
        let by_b = readmission(&b, &c, 1, &[&of_c]);
        assert_eq!(revoked(vec![of_c.clone(), by_b.clone()]).await, BTreeSet::new());
        let of_b = revocation(&a, &b, 2);
        assert_eq!(revoked(vec![of_c, by_b, of_b]).await, BTreeSet::from([identity(&b), identity(&c)]));
    }

    #[test]
    fn a_readmission_answers_what_an_earlier_one_answered() {
        let (a, b, c) = (author(1), author(2), author(3));
        let of_c = revocation(&b, &c, 3);
        let first = readmission(&a, &c, 5, &[&of_c]);
        let again = revocation(&a, &c, 7);
        let held = Revocations::of([&of_c, &first, &again]);
        let against = held.against(c.peer_id, &c.key.public());
        assert_eq!(against.len(), 2);
        // It takes the place of the first, which has the same kind, id and owner.
        let second = readmission(&a, &c, 8, &[&of_c, &again]);
        assert_eq!(second.key, first.key);
        let answers = second.body_as::<ReadmissionBody>().unwrap().answers;
        assert!(answers.len() == against.len() && against.iter().all(|revocation| answers.contains(revocation)));
        let held = Revocations::of([&of_c, &again, &second]);
        assert_eq!(held.standing(c.peer_id, Some(&c.key.public())), Standing::Clear);
    }
}
