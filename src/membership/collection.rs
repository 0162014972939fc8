//! What the gossip machine decides about own records: new versions after a loss, floors once all is acknowledged
//! (cluster.md §7). A contested copy writes nothing; what was wanted waits for the next occasion, or until it is heard
//! again.

use super::{
    Author, Ledger,
    cluster::publish_id,
    credentials::retire_revoked_credentials,
    removal::{end_what_is_for_removed, withdraw_idle_vouchers},
};
use crate::wire::record::{FloorBody, Record, RecordKey, kind};

/// What a copy of an identity had to leave while it was contested: whatever gossip brought then, its consequences for own
/// records are drawn now.
pub fn resume_writing<L: Ledger>(ledger: &L, author: &Author) -> Result<(), L::Error> {
    publish_id(ledger, author)?;
    retire_revoked_credentials(ledger, author)?;
    withdraw_idle_vouchers(ledger, author)?;
    let mut own = ledger.records_of(kind::SERVICE)?;
    own.extend(ledger.records_of(kind::VOUCHER)?);
    end_what_is_for_removed(ledger, author, &own)
}

/// Own records under new versions, as far as they are still what the ledger holds.
pub fn republish<L: Ledger>(ledger: &L, author: &Author, records: &[Record]) -> Result<(), L::Error> {
    if ledger.is_contested()? {
        return Ok(());
    }
    for record in records {
        let (kind, id) = (&record.key.kind, &record.key.id);
        match ledger.record(&record.key)? {
            Some(held) if held.version > record.version => {}
            _ if record.deleted => drop(ledger.delete_own(author, kind, id)?),
            _ => drop(ledger.put_own(author, kind, id, &record.body)?),
        }
    }
    end_what_is_for_removed(ledger, author, records)
}

/// Own records came back newer than this ledger (a lost database): versions go on from there. Of those that are held,
/// what is `later` than all that comes back is written anew above it.
pub fn adopt_own_version<L: Ledger>(
    ledger: &L,
    author: &Author,
    version: u64,
    later: impl Fn(&Record) -> bool,
) -> Result<(), L::Error> {
    ledger.set_own_version(version.max(ledger.own_version()?))?;
    let mut outbid = ledger.records_since(author.peer_id, 0)?;
    outbid.retain(|record| record.version <= version && later(record));
    republish(ledger, author, &outbid)
}

/// Drops records without a trace, each up to a version: what was written meanwhile under the key of one stays.
pub fn forget<L: Ledger>(ledger: &L, gone: &[(RecordKey, u64)]) -> Result<(), L::Error> {
    for (key, version) in gone {
        if ledger.record(key)?.is_some_and(|held| held.version <= *version) {
            ledger.forget_record(key)?;
        }
    }
    Ok(())
}

/// Says that every peer holds all records of this one up to the floor; its tombstones up to there go everywhere.
pub fn publish_floor<L: Ledger>(ledger: &L, author: &Author, floor: &FloorBody) -> Result<(), L::Error> {
    if ledger.is_contested()? {
        return Ok(());
    }
    ledger.put_own(author, kind::FLOOR, &author.peer_id.to_string(), floor).map(drop)
}
