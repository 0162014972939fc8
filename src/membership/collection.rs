//! What the gossip machine decides about own records: new versions after a loss, floors once all is acknowledged
//! (cluster.md §7). A contested copy writes nothing; what was wanted waits for the next occasion.

use super::{Author, Ledger, removal::delete_services_to_removed};
use crate::wire::record::{FloorBody, Record, kind};

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
    delete_services_to_removed(ledger, author, records)
}

/// Says that every peer holds all records of this one up to the floor; its tombstones up to there go everywhere.
pub fn publish_floor<L: Ledger>(ledger: &L, author: &Author, floor: &FloorBody) -> Result<(), L::Error> {
    if ledger.is_contested()? {
        return Ok(());
    }
    ledger.put_own(author, kind::FLOOR, &author.peer_id.to_string(), floor).map(drop)
}
