//! Signed records.

use super::{StoreError, Tx, View};
use crate::{
    membership::{Author, Ledger, Origin, Put},
    model::PeerId,
    wire::record::{Record, RecordHead, RecordKey},
};
use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use std::collections::BTreeSet;

const COLUMNS: &str = "kind, id, owner, version, deleted, body, signature";

impl View<'_> {
    pub fn record(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE kind = ?1 AND id = ?2 AND owner = ?3"))?
            .query_row(params![key.kind, key.id, key.owner.to_string()], |row| Ok(read_record(row)))
            .optional()?
            .transpose()
    }

    /// Records of one kind, tombstones included, ordered by id and owner.
    pub fn records_of(&self, kind: &str) -> Result<Vec<Record>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE kind = ?1 ORDER BY id, owner"))?;
        let rows = statement.query_map([kind], |row| Ok(read_record(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Records of one kind and id, whoever owns them, tombstones included.
    pub fn records_about(&self, kind: &str, id: &str) -> Result<Vec<Record>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE kind = ?1 AND id = ?2 ORDER BY owner"))?;
        let rows = statement.query_map([kind, id], |row| Ok(read_record(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Heads of the live records of one kind, ordered by id and owner.
    pub(super) fn live_heads(&self, kind: &str) -> Result<Vec<(RecordKey, RecordHead)>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, owner, version, hash FROM records WHERE kind = ?1 AND deleted = 0 ORDER BY id, owner",
        )?;
        let mut rows = statement.query([kind])?;
        let mut heads = Vec::new();
        while let Some(row) = rows.next()? {
            let owner = row.get::<_, String>(1)?;
            let owner = owner.parse().map_err(|e| StoreError::corrupt("record owner", e))?;
            let key = RecordKey { kind: kind.to_owned(), id: row.get(0)?, owner };
            heads.push((key, RecordHead { version: row.get::<_, i64>(2)?.unsigned_abs(), hash: row.get(3)? }));
        }
        Ok(heads)
    }

    /// Every record, tombstones included, ordered by key: what the gossip machine starts from.
    pub fn all_records(&self) -> Result<Vec<Record>, StoreError> {
        let mut statement =
            self.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM records ORDER BY kind, id, owner"))?;
        let rows = statement.query_map([], |row| Ok(read_record(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Records of one owner above a version, tombstones included, oldest first.
    pub fn records_since(&self, owner: PeerId, version: u64) -> Result<Vec<Record>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM records WHERE owner = ?1 AND version > ?2 ORDER BY version"
        ))?;
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![owner.to_string(), version], |row| Ok(read_record(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Records of `owner` that came from peers. Of this peer: what an earlier database wrote.
    pub fn taken_of(&self, owner: PeerId) -> Result<BTreeSet<RecordKey>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT kind, id FROM records WHERE owner = ?1 AND taken = 1")?;
        let keys = statement
            .query_map([owner.to_string()], |row| Ok(RecordKey { kind: row.get(0)?, id: row.get(1)?, owner }))?;
        Ok(keys.collect::<Result<_, _>>()?)
    }

    pub(super) fn record_head(&self, key: &RecordKey) -> Result<Option<RecordHead>, StoreError> {
        let head = self
            .connection
            .prepare_cached("SELECT version, hash FROM records WHERE kind = ?1 AND id = ?2 AND owner = ?3")?
            .query_row(params![key.kind, key.id, key.owner.to_string()], |row| {
                Ok(RecordHead { version: row.get::<_, i64>(0)?.unsigned_abs(), hash: row.get(1)? })
            })
            .optional()?;
        Ok(head)
    }
}

impl Tx<'_> {
    /// Signs `body` with the author's next version and stores it.
    pub fn put_own(&self, author: &Author, kind: &str, id: &str, body: &impl Serialize) -> Result<Record, StoreError> {
        Ledger::put_own(self, author, kind, id, body)
    }

    /// Signs and stores the tombstone of an own record.
    pub fn delete_own(&self, author: &Author, kind: &str, id: &str) -> Result<Record, StoreError> {
        Ledger::delete_own(self, author, kind, id)
    }

    /// Stores a record that someone else signed, if it is newer than what is held. The caller has verified it.
    pub fn put_verified(&self, record: &Record) -> Result<Put, StoreError> {
        Ledger::put_verified(self, record)
    }

    /// Drops a record without a trace: one of a removed owner, a collected tombstone, or one that a reset found deleted.
    pub fn forget_record(&self, key: &RecordKey) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM records WHERE kind = ?1 AND id = ?2 AND owner = ?3")?
            .execute(params![key.kind, key.id, key.owner.to_string()])?;
        Ok(())
    }

    pub(super) fn upsert(&self, record: &Record, origin: Origin) -> Result<(), StoreError> {
        let version =
            i64::try_from(record.version).map_err(|_| StoreError::corrupt("record version", record.version))?;
        self.connection
            .prepare_cached(
                "INSERT INTO records (kind, id, owner, version, deleted, hash, body, signature, taken) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (kind, id, owner) DO UPDATE SET \
                 version = excluded.version, deleted = excluded.deleted, hash = excluded.hash, \
                 body = excluded.body, signature = excluded.signature, taken = excluded.taken",
            )?
            .execute(params![
                record.key.kind,
                record.key.id,
                record.key.owner.to_string(),
                version,
                record.deleted,
                record.head()?.hash,
                record.body.to_string(),
                record.signature.to_string(),
                origin == Origin::Taken,
            ])?;
        Ok(())
    }
}

/// Whether each record is the one that was stored: its content has the hash beside it.
pub(super) fn check_hashes(view: &View<'_>) -> Result<(), StoreError> {
    let mut statement = view.connection.prepare(&format!("SELECT {COLUMNS}, hash FROM records"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let record = read_record(row)?;
        if record.head()?.hash != row.get::<_, [u8; 32]>(7)? {
            return Err(StoreError::corrupt("record", format_args!("{:?} has another hash", record.key)));
        }
    }
    Ok(())
}

fn read_record(row: &Row<'_>) -> Result<Record, StoreError> {
    let text = |i: usize| row.get::<_, String>(i);
    let body = text(5)?;
    Ok(Record {
        key: RecordKey {
            kind: text(0)?,
            id: text(1)?,
            owner: text(2)?.parse().map_err(|e| StoreError::corrupt("record owner", e))?,
        },
        version: row.get::<_, i64>(3)?.unsigned_abs(),
        deleted: row.get(4)?,
        body: serde_json::from_str(&body).map_err(|e| StoreError::corrupt("record body", e))?,
        signature: text(6)?.parse().map_err(|e| StoreError::corrupt("record signature", e))?,
    })
}
