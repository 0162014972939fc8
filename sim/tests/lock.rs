//! The cluster lock (cluster.md §9) among production nodes: competitors, a holder that dies, splits, clocks apart.

use serde_json::{Value, json};
use sim::{Answer, Cluster, Operator, Options, twin_run};
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 41..44;
const CONVERGENCE: Duration = Duration::from_secs(60);
const PATH: &str = "/v1/cluster/lock";
/// Life of a lease, and the time that the last news of it may have been under way.
const GONE: Duration = Duration::from_secs(60 + 5);

/// Three agents whose clocks are up to 50 s apart: as far as signed requests allow.
fn three_joined(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(&Options::new(seed, 3));
    cluster.host("n2").skew.set_ms(i64::try_from(seed % 50 * 1000).expect("a small number"));
    cluster.host("n3").skew.set_ms(50_000);
    let license = cluster.license(1, 10);
    cluster.act(|op| async move {
        for host in ["n1", "n2", "n3"] {
            op.bootstrap(host, &license).await;
        }
        for host in ["n2", "n3"] {
            op.post("n1", "/v1/peers", json!({"endpoints": [format!("{host}:8080")], "name": host})).await.expect(201);
        }
        for host in ["n1", "n2", "n3"] {
            op.eventually(host, "/v1/peers", CONVERGENCE, |a| healthy(a) == 3).await;
        }
    });
    cluster
}

fn healthy(answer: &Answer) -> usize {
    let peers = answer.body["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().filter(|p| p["status"] == "healthy").count()
}

async fn take(op: &Operator, host: &str) -> Answer {
    op.post(host, PATH, json!({ "purpose": format!("apply from {host}") })).await
}

fn token(taken: &Value) -> String {
    taken["lock"]["token"].as_str().expect("the holder gets the token").to_owned()
}

/// A write that changes nothing: only whether the lock lets it through.
async fn write(op: &Operator, host: &str) -> Answer {
    op.post(host, "/v1/services", json!({})).await
}

fn is_free(answer: &Answer) -> bool {
    answer.status == 200 && answer.body["lock"].is_null()
}

#[test]
fn of_competitors_one_takes_the_lock_and_everyone_else_waits() {
    twin_run("of_competitors_one_takes_the_lock_and_everyone_else_waits", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            for _ in 0..5 {
                let (a, b, c) = tokio::join!(take(&op, "n1"), take(&op, "n2"), take(&op, "n3"));
                let (won, lost): (Vec<_>, Vec<_>) = [a, b, c].into_iter().partition(|x| x.status == 201);
                assert_eq!(won.len(), 1, "one of three at once: {lost:?}");
                for answer in &lost {
                    assert_eq!((answer.status, &answer.body["code"]), (409, &json!("CLUSTER_LOCKED")), "{answer:?}");
                }
                let lock = won[0].body["lock"].clone();
                let holder = lock["holder_name"].as_str().expect("a name").to_owned();
                let holding = op.holding(&token(&won[0].body));
                for host in ["n1", "n2", "n3"] {
                    // The answer came when everyone had acknowledged: it holds at once, everywhere.
                    let refused = write(&op, host).await.expect(409);
                    assert_eq!(refused["code"], "CLUSTER_LOCKED");
                    assert_eq!(refused["details"]["holder_peer"], lock["holder_peer"]);
                    assert!(refused["error"].as_str().expect("a text").contains("apply from"), "{refused}");
                    assert_eq!(write(&holding, host).await.expect(400)["code"], "MISSING_FIELD");
                }
                let released = op.delete(&holder, PATH).await.expect(200);
                assert_eq!(released["cleared"]["holder_peer"], lock["holder_peer"]);
                for host in ["n1", "n2", "n3"] {
                    op.eventually(host, PATH, Duration::from_secs(15), is_free).await;
                    assert_eq!(write(&op, host).await.expect(400)["code"], "MISSING_FIELD");
                }
            }
        });
    });
}

#[test]
fn the_lock_of_a_dead_holder_ends_by_itself() {
    twin_run("the_lock_of_a_dead_holder_ends_by_itself", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            let taken = take(&op, "n2").await.expect(201);
            tokio::time::sleep(Duration::from_secs(20)).await;
            op.post("n2", PATH, json!({ "token": token(&taken) })).await.expect(200);
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
        cluster.crash("n2");
        cluster.act(|op| async move {
            tokio::time::sleep(Duration::from_secs(50)).await;
            for host in ["n1", "n3"] {
                assert_eq!(write(&op, host).await.expect(409)["code"], "CLUSTER_LOCKED", "renewed 51 s ago");
            }
            for host in ["n1", "n3"] {
                let waited = op.eventually(host, PATH, GONE - Duration::from_secs(50), is_free).await;
                sim::record(format_args!("{host} is free after {waited:?}"));
            }
            // The dead one is unhealthy by now and is not asked.
            take(&op, "n3").await.expect(201);
        });
        cluster.restart("n2");
        cluster.act(|op| async move {
            let held_by_n3 = |a: &Answer| a.body["lock"]["holder_name"] == "n3";
            op.eventually("n2", PATH, CONVERGENCE, held_by_n3).await;
        });
    });
}

// accepts: 001-83
#[test]
fn an_operator_clears_the_lock_of_a_dead_holder_from_any_agent() {
    twin_run("an_operator_clears_the_lock_of_a_dead_holder_from_any_agent", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            take(&op, "n2").await.expect(201);
            op.eventually("n1", PATH, CONVERGENCE, |a| a.body["lock"]["holder_name"] == "n2").await;
        });
        cluster.crash("n2");
        cluster.act(|op| async move {
            assert_eq!(op.delete("n1", PATH).await.expect(409)["code"], "CLUSTER_LOCKED", "only with force");
            op.delete("n1", "/v1/cluster/lock?force=true").await.expect(200);
            assert_eq!(write(&op, "n1").await.expect(400)["code"], "MISSING_FIELD");
            op.eventually("n3", PATH, Duration::from_secs(5), is_free).await;
        });
        // Its own record of the lease says nothing any more.
        cluster.restart("n2");
        cluster.act(|op| async move {
            op.eventually("n2", PATH, Duration::from_secs(30), is_free).await;
            take(&op, "n1").await.expect(201);
        });
    });
}

#[test]
fn a_split_is_noticed_before_the_lock_is_given_and_its_two_sides_agree_again() {
    twin_run("a_split_is_noticed_before_the_lock_is_given_and_its_two_sides_agree_again", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.partition(&["n3"], &["n1", "n2"]);
        cluster.act(|op| async move {
            let refused = take(&op, "n1").await.expect(422);
            assert_eq!(refused["code"], "PEER_UNREACHABLE");
            assert!(refused["error"].as_str().expect("a text").ends_with("by n3"), "{refused}");
            let n3 = op.get("n3", "/v1/cluster/identity").await.expect(200)["peer_id"].clone();
            assert_eq!(refused["details"]["peers"], json!([n3]));
            let n3_is_gone = |a: &Answer| healthy(a) == 2;
            op.eventually("n1", "/v1/peers", CONVERGENCE, n3_is_gone).await;
            op.eventually("n3", "/v1/peers", CONVERGENCE, |a| healthy(a) == 1).await;
            // Nobody can do better while they are apart: each side has a lock of its own.
            let ours = take(&op, "n1").await.expect(201);
            let theirs = take(&op, "n3").await.expect(201);
            sim::record(format_args!("{} {}", ours["lock"]["acquired_at"], theirs["lock"]["acquired_at"]));
        });
        cluster.heal(&["n3"], &["n1", "n2"]);
        cluster.act(|op| async move {
            // The clock of n3 is ahead, so that of n1 ranks first.
            for host in ["n3", "n2", "n1"] {
                op.eventually(host, PATH, Duration::from_secs(30), |a| a.body["lock"]["holder_name"] == "n1").await;
            }
            assert_eq!(take(&op, "n3").await.expect(409)["code"], "CLUSTER_LOCKED");
        });
    });
}
