//! Whether a database is what was written: damage is found at the start, and a damaged file is put aside, never served.

use super::{
    StoreError, View,
    files::{remove_if_present, with_suffix},
    records,
    services::ParsedServices,
};
use rusqlite::{Connection, ErrorCode};
use std::{io::ErrorKind, path::Path};

/// Damaged databases that are kept; one more takes the place of the last.
const KEPT_MAX: usize = 5;

/// Whether SQLite says that the file itself is not in order, as opposed to: cannot be reached now.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Reads all of it once: structure, indices, and every row as the agent would. The reason when something is wrong.
pub(super) fn check(connection: &Connection) -> Result<(), String> {
    let found: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|e| format!("its structure cannot be read: {e}"))?;
    if found != "ok" {
        return Err(found.replace('\n', " "));
    }
    let view = View { connection, parsed: &ParsedServices::default() };
    let readable = || -> Result<(), StoreError> {
        view.check_facts()?;
        view.peers()?;
        records::check_hashes(&view)
    };
    readable().map_err(|e| crate::model::with_causes(&e))
}

/// Moves the database and its log aside, for whoever wants to look at them; the error to report.
pub(super) fn put_aside(path: &Path, reason: String) -> StoreError {
    let aside = |n: usize| with_suffix(path, &format!(".damaged-{n}"));
    let kept = (1..KEPT_MAX).map(aside).find(|p| !p.exists()).unwrap_or_else(|| aside(KEPT_MAX));
    match moved(path, &kept) {
        Ok(()) => StoreError::Damaged { path: path.to_owned(), kept, reason },
        Err(e) => e,
    }
}

fn moved(path: &Path, kept: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal"] {
        let from = with_suffix(path, suffix);
        match std::fs::rename(&from, with_suffix(kept, suffix)) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(StoreError::Files { path: from, source });
            }
            _ => {}
        }
    }
    remove_if_present(&with_suffix(path, "-shm"))
}

#[cfg(test)]
mod tests {
    use super::super::{Author, Store, StoreError};
    use crate::model::{PeerId, Rng, SigningKey, UnixTime};
    use std::{fs, path::Path};

    const RECORDS: u64 = 300;

    async fn fill(path: &Path) {
        let store = Store::open(path).unwrap();
        let author = Author {
            peer_id: PeerId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([1; 32])),
            key: SigningKey::from_seed([1; 32]),
        };
        let write = store.write(move |tx| -> Result<(), StoreError> {
            for n in 0..RECORDS {
                tx.put_own(&author, "service", &format!("svc_{n}"), &serde_json::json!({"name": format!("s{n}")}))?;
            }
            Ok(())
        });
        write.await.unwrap();
    }

    fn content(path: &Path) -> Result<String, StoreError> {
        let store = Store::open(path)?;
        let records = store.read::<_, StoreError>(|v| v.all_records())?;
        Ok(format!("{records:?}"))
    }

    #[tokio::test]
    async fn of_100_damaged_databases_none_is_served_and_each_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arctic.db");
        fill(&path).await;
        let (sound, sound_content) = (fs::read(&path).unwrap(), content(&path).unwrap());
        let mut rng = Rng::from_seed([5; 32]);
        let (mut detected, mut harmless) = (0, 0);
        for n in 0..100 {
            let mut bytes = sound.clone();
            let page = 4096 * rng.below(bytes.len() as u64 / 4096) as usize;
            match n % 4 {
                0 => bytes[page..page + 4096].fill(0),
                1 => bytes[page..page + 4096].copy_from_slice(&rng.bytes::<4096>()),
                2 => bytes.truncate(page),
                _ => (0..8).for_each(|_| bytes[page + rng.below(4096) as usize] ^= 1 << rng.below(8)),
            }
            fs::write(&path, &bytes).unwrap();
            match content(&path) {
                Err(StoreError::Damaged { kept, .. }) => {
                    assert_eq!(fs::read(&kept).unwrap(), bytes, "what was found is kept as it was");
                    assert!(!path.exists(), "and not served by a later start");
                    fs::remove_file(kept).unwrap();
                    detected += 1;
                }
                Err(e @ (StoreError::Open { .. } | StoreError::NewerSchema { .. })) => {
                    assert!(path.exists(), "{e}");
                    detected += 1;
                }
                Err(e) => panic!("{e}"),
                // An empty file is a new database; bytes that mean nothing may flip.
                Ok(found) if bytes.is_empty() => assert_eq!(found, "[]"),
                Ok(found) => {
                    assert_eq!(found, sound_content, "damage {n} was served");
                    harmless += 1;
                }
            }
            for suffix in ["-wal", "-shm"] {
                drop(fs::remove_file(dir.path().join(format!("arctic.db{suffix}"))));
            }
        }
        assert!(detected >= 80, "{detected} detected, {harmless} harmless");
    }

    #[tokio::test]
    async fn the_message_says_where_it_was_put_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arctic.db");
        fs::write(&path, vec![7; 8192]).unwrap();
        let error = Store::open(&path).err().unwrap();
        let text = error.to_string();
        for part in ["arctic.db is damaged", "arctic.db.damaged-1", "bootstrap", "peer.key"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(Store::open(&path).is_ok(), "the next start begins anew");
    }
}
