//! Opening and schema migration: forward only, one transaction each, a copy of the file kept before each upgrade.

use super::{
    StoreError,
    files::{remove_if_present, with_suffix},
    integrity,
};
use rusqlite::Connection;
use std::{path::Path, time::Duration};

/// In order; the schema version is the number of migrations applied.
pub(super) const MIGRATIONS: &[&str] =
    &[include_str!("../../migrations/0001_init.sql"), include_str!("../../migrations/0002_taken.sql")];
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens it, finds it sound and brings it to the newest schema. A damaged one is put aside.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    if !path.exists() {
        remove_stale_journals(path)?;
    }
    match open_sound(path) {
        Err(StoreError::Open { source, .. }) if integrity::is_damage(&source) => {
            Err(integrity::put_aside(path, source.to_string()))
        }
        opened => opened,
    }
}

fn open_sound(path: &Path) -> Result<Connection, StoreError> {
    let failed = |action| move |source| StoreError::Open { path: path.to_owned(), action, source };
    let mut connection = Connection::open(path).map_err(failed("cannot be opened"))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed("cannot be configured"))?;
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(failed("cannot be switched to write-ahead logging"))?;
    migrate(&mut connection, path)?;
    if let Err(reason) = integrity::check(&connection) {
        drop(connection);
        return Err(integrity::put_aside(path, reason));
    }
    Ok(connection)
}

/// A second connection to an open database, that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |action| move |source| StoreError::Open { path: path.to_owned(), action, source };
    let connection = Connection::open(path).map_err(failed("cannot be opened for reading"))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed("cannot be configured"))?;
    connection.execute_batch("PRAGMA query_only = ON;").map_err(failed("cannot be configured"))?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |action| move |source| StoreError::Open { path: path.to_owned(), action, source };
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed("has no readable schema version"))?;
    let known = u32::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    if found > known {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found, known });
    }
    if 0 < found && found < known {
        keep_copy(connection, path, found)?;
    }
    for (sql, version) in MIGRATIONS.iter().zip(1..).skip(found as usize) {
        let tx = connection.transaction().map_err(failed("cannot be migrated"))?;
        tx.execute_batch(sql).map_err(failed("cannot be migrated"))?;
        tx.pragma_update(None, "user_version", version).map_err(failed("cannot be migrated"))?;
        tx.commit().map_err(failed("cannot be migrated"))?;
    }
    Ok(())
}

fn keep_copy(connection: &Connection, path: &Path, version: u32) -> Result<(), StoreError> {
    let copy = with_suffix(path, &format!(".pre-{version}"));
    remove_if_present(&copy)?;
    connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]).map_err(|source| StoreError::Open {
        path: copy,
        action: "cannot be written before the migration",
        source,
    })?;
    Ok(())
}

/// A write-ahead log without its database would be replayed into the new one (operations.md §1).
fn remove_stale_journals(path: &Path) -> Result<(), StoreError> {
    remove_if_present(&with_suffix(path, "-wal"))?;
    remove_if_present(&with_suffix(path, "-shm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arctic.db");
        let connection = open(&path).unwrap();
        connection.pragma_update(None, "user_version", 999).unwrap();
        drop(connection);
        assert!(matches!(open(&path), Err(StoreError::NewerSchema { found: 999, .. })));
    }

    #[test]
    fn a_log_without_its_database_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arctic.db");
        std::fs::write(with_suffix(&path, "-wal"), b"stale").unwrap();
        open(&path).unwrap();
        assert_ne!(std::fs::read(with_suffix(&path, "-wal")).unwrap_or_default(), b"stale");
    }
}
