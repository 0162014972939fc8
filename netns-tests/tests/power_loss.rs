//! What was acknowledged is on the disk: power cuts at hundreds of moments of one recorded life, and a disk that fails.

use std::collections::BTreeSet;
use std::path::Path;

use arctic::model::{PeerId, Refused, Rng, SigningKey, UnixTime};
use arctic::store::{Author, Store, StoreError};
use netns_tests::disk::{Disk, Event, Failure, Platter, mark};
use serde_json::json;

const DATABASE: &str = "arctic.db";
const WRITERS: u64 = 8;
const WRITES_EACH: u64 = 120;
const CUTS: usize = 400;
const KIND: &str = "test";

fn author() -> Author {
    let peer_id = PeerId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([1; 32]));
    Author { peer_id, key: SigningKey::from_seed([1; 32]) }
}

/// Two records in one transaction.
async fn write_pair(store: &Store, author: &Author, number: u64) -> Result<(), StoreError> {
    let author = author.clone();
    let write = store.write(move |tx| -> Result<(), StoreError> {
        for half in ["a", "b"] {
            tx.put_own(&author, KIND, &format!("{half}{number}"), &json!({"fill": "x".repeat(700)}))?;
        }
        Ok(())
    });
    write.await
}

/// Numbers of the pairs that are whole; panics when one is not.
fn pairs(store: &Store) -> BTreeSet<u64> {
    let (records, version) = store.read::<_, StoreError>(|v| Ok((v.records_of(KIND)?, v.own_version()?))).unwrap();
    assert_eq!(records.len() as u64, version, "the counter and the records are of one transaction");
    let half = |name: &str| -> BTreeSet<u64> {
        records.iter().filter_map(|r| r.key.id.strip_prefix(name)?.parse().ok()).collect()
    };
    let (one, other) = (half("a"), half("b"));
    assert_eq!(one, other, "a transaction is whole");
    one
}

fn recorded_life(directory: &Path, disk: &Disk) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, author) = (Store::open(&directory.join(DATABASE)).unwrap(), author());
        let writers = (0..WRITERS).map(|writer| {
            let (store, author) = (store.clone(), author.clone());
            tokio::spawn(async move {
                for n in 0..WRITES_EACH {
                    let number = writer * WRITES_EACH + n;
                    write_pair(&store, &author, number).await.unwrap();
                    mark(number);
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
    disk.take_events()
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let (life, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Disk::watch(life.path());
    let events = recorded_life(life.path(), &disk);
    let syncs = events.iter().filter(|e| matches!(e, Event::Sync { .. })).count();
    assert!(syncs > 50, "{syncs} syncs: the record sees what SQLite does");
    let mut rng = Rng::from_seed([3; 32]);
    let cuts: BTreeSet<usize> = (0..CUTS).map(|_| rng.below(events.len() as u64 + 1) as usize).collect();
    let (mut platter, mut acknowledged) = (Platter::default(), BTreeSet::new());
    let (mut checked, mut unacknowledged) = (0, 0);
    for at in 0..=events.len() {
        if cuts.contains(&at) {
            for entry in std::fs::read_dir(after.path()).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
            for (file, bytes) in platter.after_cut(|bound| rng.below(bound)) {
                std::fs::write(after.path().join(file.file_name().unwrap()), bytes).unwrap();
            }
            let store = Store::open(&after.path().join(DATABASE)).unwrap_or_else(|e| panic!("cut at {at}: {e:?}"));
            let found = pairs(&store);
            let lost: Vec<&u64> = acknowledged.difference(&found).collect();
            assert!(lost.is_empty(), "a cut at event {at} loses {lost:?}");
            unacknowledged += found.len() - acknowledged.len();
            checked += 1;
        }
        match events.get(at) {
            Some(Event::Mark(number)) => drop(acknowledged.insert(*number)),
            Some(event) => platter.apply(event),
            None => {}
        }
    }
    assert_eq!(acknowledged.len() as u64, WRITERS * WRITES_EACH);
    println!(
        "{checked} power cuts, {syncs} syncs, {} acknowledged; {unacknowledged} more were found",
        acknowledged.len()
    );
}

#[test]
fn without_its_syncs_the_same_life_would_lose_acknowledged_writes() {
    let (life, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Disk::watch(life.path());
    let events = recorded_life(life.path(), &disk);
    // The log is never forced: what the test would say of an acknowledgement before the commit is on the disk.
    let log = |e: &&Event| !matches!(e, Event::Sync { file } if file.to_string_lossy().ends_with("-wal"));
    let mut platter = Platter::default();
    events.iter().take(events.len() / 2).filter(log).for_each(|event| platter.apply(event));
    let mut rng = Rng::from_seed([4; 32]);
    for (file, bytes) in platter.after_cut(|bound| rng.below(bound)) {
        std::fs::write(after.path().join(file.file_name().unwrap()), bytes).unwrap();
    }
    let acknowledged = events.iter().take(events.len() / 2).filter(|e| matches!(e, Event::Mark(_))).count();
    let found = Store::open(&after.path().join(DATABASE)).map(|store| pairs(&store).len()).unwrap_or_default();
    assert!(found < acknowledged, "{found} of {acknowledged} are there: the cut tears nothing");
}

#[test]
fn a_disk_that_is_full_or_fails_refuses_the_write_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::watch(directory.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (path, author) = (directory.path().join(DATABASE), author());
        let store = Store::open(&path).unwrap();
        let mut expected = BTreeSet::new();
        for round in 0..30 {
            let failure = [Failure::Full, Failure::Write, Failure::Sync][round as usize % 3];
            write_pair(&store, &author, 2 * round).await.unwrap();
            expected.insert(2 * round);
            disk.fail(Some(failure));
            let error = write_pair(&store, &author, 2 * round + 1).await.unwrap_err();
            assert!(matches!(error, StoreError::Disk(_)), "{failure:?}: {error:?}");
            let refused = Refused::from(error);
            assert_eq!(refused.code.http_status(), 500);
            assert!(refused.text.contains("not saved") && refused.hint.is_some(), "{refused:?}");
            assert_eq!(pairs(&store), expected, "reads go on, and show what was acknowledged");
            disk.fail(None);
        }
        write_pair(&store, &author, 1000).await.unwrap();
        expected.insert(1000);
        drop(store);
        assert_eq!(pairs(&Store::open(&path).unwrap()), expected);
    });
}
