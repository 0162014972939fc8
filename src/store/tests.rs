use super::*;
use crate::model::{ClusterId, Rng, UnixTime};
use std::time::Duration;

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("arctic.db")).unwrap();
    (dir, store)
}

fn facts(n: u64) -> ClusterFacts {
    let cluster_id = ClusterId::mint(UnixTime::from_ms(n), &mut Rng::from_seed([7; 32]));
    ClusterFacts { cluster_id, created_at: UnixTime::from_ms(n), aliases: Vec::new() }
}

fn counted(store: &Store) -> u64 {
    store.read::<_, StoreError>(|v| v.own_version()).unwrap()
}

async fn count_up(store: &Store) -> Result<(), StoreError> {
    store.write(|tx| tx.set_own_version(tx.own_version()? + 1)).await
}

#[tokio::test]
async fn a_failed_write_leaves_no_trace_and_no_revision() {
    let (_dir, store) = open();
    let revision = store.revision();
    let failed: Result<(), StoreError> = store
        .write(|tx| {
            tx.set_cluster(&facts(1))?;
            Err(StoreError::corrupt("test", "refused"))
        })
        .await;
    assert!(failed.is_err());
    assert_eq!(store.read::<_, StoreError>(|v| v.cluster()).unwrap(), None);
    assert!(!revision.has_changed().unwrap());
    store.write::<_, StoreError, _>(|tx| tx.set_cluster(&facts(2))).await.unwrap();
    assert!(revision.has_changed().unwrap());
    assert_eq!(store.read::<_, StoreError>(|v| v.cluster()).unwrap(), Some(facts(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_at_once_all_stay_and_those_that_fail_undo_only_themselves() {
    const WRITES: u64 = 400;
    let (_dir, store) = open();
    let tasks: Vec<_> = (0..WRITES)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                if n % 4 == 0 {
                    let undone = store.write::<(), StoreError, _>(|tx| {
                        tx.set_own_version(1_000_000)?;
                        Err(StoreError::corrupt("test", "refused"))
                    });
                    undone.await.unwrap_err();
                } else {
                    count_up(&store).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("no write is left behind").unwrap();
    }
    assert_eq!(counted(&store), WRITES / 4 * 3);
}

#[tokio::test]
async fn a_panicking_write_harms_no_other() {
    let (_dir, store) = open();
    let other = store.clone();
    let panicked = tokio::spawn(async move {
        let write = other.write::<(), StoreError, _>(|tx| {
            tx.set_own_version(9)?;
            panic!("in a write");
        });
        write.await
    });
    assert!(panicked.await.is_err());
    count_up(&store).await.unwrap();
    assert_eq!(counted(&store), 1);
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_reopen() {
    let (dir, store) = open();
    store.write::<_, StoreError, _>(|tx| tx.set_cluster(&facts(3))).await.unwrap();
    drop(store);
    let again = Store::open(&dir.path().join("arctic.db")).unwrap();
    assert_eq!(again.read::<_, StoreError>(|v| v.cluster()).unwrap(), Some(facts(3)));
}
