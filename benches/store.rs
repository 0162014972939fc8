//! How many small writes a second the store acknowledges, each on the disk when it is acknowledged, beside the same
//! disk taking one commit at a time. The goal is 5,000/s with p99 at most 25 ms (A3).
//!
//! `cargo bench --bench store`. `STORE_BENCH_DIR` names a directory on the disk to measure; the default is `target/`.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use arctic::{
    model::{PeerId, Rng, SigningKey, UnixTime},
    store::{Author, Store, StoreError},
};
use serde_json::json;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

const LASTS: Duration = Duration::from_secs(5);
const WRITERS: [usize; 4] = [1, 16, 64, 256];
/// Records that writers take turns to rewrite, so that the database keeps its size.
const RECORDS_EACH: u64 = 8;

struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

impl Figures {
    fn of(mut took: Vec<Duration>, lasted: Duration) -> Self {
        took.sort_unstable();
        let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
        Self { per_second: took.len() as f64 / lasted.as_secs_f64(), p50: at(50), p99: at(99) }
    }

    fn print(&self, what: &str) {
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        println!("{what:<34} {:>9.0}/s   p50 {:>7.2} ms   p99 {:>7.2} ms", self.per_second, ms(self.p50), ms(self.p99));
    }
}

fn directory() -> tempfile::TempDir {
    let on = std::env::var_os("STORE_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    tempfile::tempdir_in(on).expect("a scratch directory")
}

/// The bare disk: one small row, one commit, one sync, again.
fn bare() -> Figures {
    let dir = directory();
    let connection = rusqlite::Connection::open(dir.path().join("bare.db")).expect("a database");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT);",
        )
        .expect("a table");
    let (started, mut took, mut n) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < LASTS {
        let at = Instant::now();
        n = (n + 1) % 64;
        connection.execute("INSERT OR REPLACE INTO t VALUES (?1, ?2)", (n, "x".repeat(300))).expect("a row");
        took.push(at.elapsed());
    }
    Figures::of(took, started.elapsed())
}

/// The store: signed records of one peer, as the API writes them, from so many tasks at once.
async fn store(writers: usize) -> Figures {
    let dir = directory();
    let store = Store::open(&dir.path().join("arctic.db")).expect("a store");
    let author = Author {
        peer_id: PeerId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([1; 32])),
        key: SigningKey::from_seed([1; 32]),
    };
    let started = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (store, author) = (store.clone(), author.clone());
            tokio::spawn(async move {
                let (mut took, mut n) = (Vec::new(), 0);
                while started.elapsed() < LASTS {
                    let at = Instant::now();
                    let (author, id) = (author.clone(), format!("svc_{writer}_{}", n % RECORDS_EACH));
                    let body = json!({"name": id, "bandwidth_limit_mbps": n, "routes": []});
                    let write = store.write(move |tx| -> Result<(), StoreError> {
                        tx.put_own(&author, "service", &id, &body).map(drop)
                    });
                    write.await.expect("a write");
                    took.push(at.elapsed());
                    n += 1;
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("a writer"));
    }
    Figures::of(took, started.elapsed())
}

fn main() {
    bare().print("one commit at a time, bare");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    for writers in WRITERS {
        let figures = runtime.block_on(store(writers));
        figures.print(&format!("the store, {writers} at once"));
    }
}
