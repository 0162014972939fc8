//! Facts of this host: cluster, license, counters.

use super::{StoreError, Tx, View};
use crate::{
    membership::{ClusterFacts, PendingConfirm},
    model::PeerId,
};
use rusqlite::OptionalExtension;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeMap;

const CLUSTER: &str = "cluster";
const LICENSE: &str = "license";
const LICENSE_CLOCK: &str = "license_clock";
const OWN_VERSION: &str = "own_version";
const START_COUNTER: &str = "start_counter";
const LEAVING: &str = "leaving";
const LINEAGE: &str = "lineage";
const CATCHING_UP: &str = "catching_up";
const CONTESTED: &str = "contested";
const PENDING_CONFIRM: &str = "pending_confirm";

impl View<'_> {
    fn meta<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, StoreError> {
        let text: Option<String> = self
            .connection
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()?;
        text.map(|t| serde_json::from_str(&t).map_err(|e| StoreError::corrupt(key, e))).transpose()
    }

    /// Whether every fact can be read.
    pub(super) fn check_facts(&self) -> Result<(), StoreError> {
        self.cluster()?;
        self.license()?;
        self.license_clock::<Value>()?;
        self.starts()?;
        self.own_version().map(drop)
    }

    /// None before bootstrap.
    pub fn cluster(&self) -> Result<Option<ClusterFacts>, StoreError> {
        self.meta(CLUSTER)
    }

    /// The license document as it was given.
    pub fn license(&self) -> Result<Option<Value>, StoreError> {
        self.meta(LICENSE)
    }

    /// The persisted state of the license clock.
    pub fn license_clock<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        self.meta(LICENSE_CLOCK)
    }

    /// Whether this peer has said that it leaves the cluster, and has yet to forget it.
    pub fn is_leaving(&self) -> Result<bool, StoreError> {
        Ok(self.meta(LEAVING)?.unwrap_or(false))
    }

    /// How often the agent was started on this database.
    pub fn starts(&self) -> Result<u64, StoreError> {
        Ok(self.meta(START_COUNTER)?.unwrap_or(0))
    }

    /// Random, the same for the whole life of this database.
    pub fn lineage(&self) -> Result<String, StoreError> {
        Ok(self.meta(LINEAGE)?.unwrap_or_default())
    }

    /// Owners whose records this peer is catching up with, and up to which version it is complete (cluster.md §7).
    pub fn catching_up(&self) -> Result<BTreeMap<PeerId, u64>, StoreError> {
        Ok(self.meta(CATCHING_UP)?.unwrap_or_default())
    }

    /// Peers refuse this copy of the identity because another one lives (cluster.md §7): it writes no record.
    pub fn is_contested(&self) -> Result<bool, StoreError> {
        Ok(self.meta(CONTESTED)?.unwrap_or(false))
    }

    /// What is undone unless it is confirmed (compose.md §5).
    pub fn pending_confirm(&self) -> Result<Option<PendingConfirm>, StoreError> {
        Ok(self.meta::<Option<PendingConfirm>>(PENDING_CONFIRM)?.flatten())
    }

    /// The highest version this peer has given to a record of its own.
    pub fn own_version(&self) -> Result<u64, StoreError> {
        Ok(self.meta(OWN_VERSION)?.unwrap_or(0))
    }
}

impl Tx<'_> {
    fn set_meta(&self, key: &'static str, value: &impl Serialize) -> Result<(), StoreError> {
        let text = serde_json::to_string(value).map_err(|e| StoreError::corrupt(key, e))?;
        self.connection
            .prepare_cached(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
            )?
            .execute([key, text.as_str()])?;
        Ok(())
    }

    pub fn set_cluster(&self, facts: &ClusterFacts) -> Result<(), StoreError> {
        self.set_meta(CLUSTER, facts)
    }

    pub fn set_license(&self, document: &Value) -> Result<(), StoreError> {
        self.set_meta(LICENSE, document)
    }

    pub fn set_license_clock(&self, snapshot: &impl Serialize) -> Result<(), StoreError> {
        self.set_meta(LICENSE_CLOCK, snapshot)
    }

    pub fn set_own_version(&self, version: u64) -> Result<(), StoreError> {
        self.set_meta(OWN_VERSION, &version)
    }

    /// Counts starts of the agent on this database (cluster.md §7); returns the new count. Whether another copy lives,
    /// each start finds out anew.
    pub fn count_start(&self) -> Result<u64, StoreError> {
        let count = self.starts()? + 1;
        self.set_meta(START_COUNTER, &count)?;
        if self.is_contested()? {
            self.set_contested(false)?;
        }
        Ok(count)
    }

    /// From here on this peer is no member any more, whatever happens to the process.
    pub fn set_leaving(&self) -> Result<(), StoreError> {
        self.set_meta(LEAVING, &true)
    }

    /// Empties the database, so that the peer is not bootstrapped. What it counts goes on: a record that it writes as a
    /// member again is newer than all before.
    pub fn clear_membership(&self) -> Result<(), StoreError> {
        let tables: Vec<String> = self
            .connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for table in tables.iter().filter(|name| *name != "meta") {
            self.connection.execute(&format!("DELETE FROM \"{table}\""), [])?;
        }
        self.connection.execute("DELETE FROM meta WHERE key NOT IN (?1, ?2)", [OWN_VERSION, START_COUNTER])?;
        Ok(())
    }

    pub fn set_pending_confirm(&self, pending: Option<&PendingConfirm>) -> Result<(), StoreError> {
        self.set_meta(PENDING_CONFIRM, &pending)
    }

    pub fn set_contested(&self, contested: bool) -> Result<(), StoreError> {
        self.set_meta(CONTESTED, &contested)
    }

    /// Names this database, once.
    pub fn set_lineage(&self, lineage: &str) -> Result<(), StoreError> {
        if self.lineage()?.is_empty() { self.set_meta(LINEAGE, &lineage) } else { Ok(()) }
    }

    /// `complete`: up to which version, or None once the peer has caught up.
    pub fn set_catching_up(&self, owner: PeerId, complete: Option<u64>) -> Result<(), StoreError> {
        let mut owners = self.catching_up()?;
        match complete {
            Some(complete) => owners.insert(owner, complete),
            None => owners.remove(&owner),
        };
        self.set_meta(CATCHING_UP, &owners)
    }
}
