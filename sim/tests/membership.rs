//! Who becomes a member, who does not, and who comes back only by an operator's word.

use serde_json::{Value, json};
use sim::{Answer, Cluster, Operator, Options, twin_run};
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 11..21;
const CONVERGENCE: Duration = Duration::from_secs(60);

async fn add(op: &Operator, host: &str, other: &str) -> Answer {
    op.post(host, "/v1/peers", json!({"endpoints": [format!("{other}:8080")], "name": other})).await
}

fn peers(answer: &Answer) -> Vec<Value> {
    answer.body["peers"].as_array().cloned().unwrap_or_default()
}

fn healthy(count: usize) -> impl Fn(&Answer) -> bool {
    move |answer| peers(answer).len() == count && peers(answer).iter().all(|p| p["status"] == "healthy")
}

#[test]
fn exactly_one_of_many_bootstraps_wins() {
    twin_run("exactly_one_of_many_bootstraps_wins", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 1));
        let license = cluster.license(1, 10);
        cluster.act(|op| async move {
            let calls: Vec<_> = (0..12)
                .map(|_| {
                    let (op, body) = (op.clone(), json!({"license": license, "name": "n1"}));
                    tokio::task::spawn_local(async move { op.post("n1", "/v1/bootstrap", body).await })
                })
                .collect();
            let mut won = 0;
            for call in calls {
                match call.await.expect("no call panics") {
                    Answer { status: 201, .. } => won += 1,
                    other => assert_eq!(other.expect(409)["code"], "ALREADY_BOOTSTRAPPED"),
                }
            }
            assert_eq!(won, 1);
        });
    });
}

#[test]
fn the_license_bounds_the_number_of_nodes() {
    twin_run("the_license_bounds_the_number_of_nodes", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        let license = cluster.license(1, 2);
        cluster.act(|op| async move {
            for host in ["n1", "n2", "n3"] {
                op.bootstrap(host, &license).await;
            }
            add(&op, "n1", "n2").await.expect(201);
            let refused = add(&op, "n1", "n3").await.expect(422);
            assert_eq!(refused["code"], "NODE_LIMIT_EXCEEDED");
            assert_eq!(refused["error"], "handshake failed: node limit exceeded");
            assert_eq!(peers(&op.get("n3", "/v1/peers").await).len(), 1, "nothing changed at the refused peer");
        });
    });
}

#[test]
fn two_that_add_each_other_at_once_are_one_cluster() {
    twin_run("two_that_add_each_other_at_once_are_one_cluster", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 2));
        let license = cluster.license(1, 10);
        cluster.act(|op| async move {
            op.bootstrap("n1", &license).await;
            op.bootstrap("n2", &license).await;
            let (one, other) = tokio::join!(add(&op, "n1", "n2"), add(&op, "n2", "n1"));
            assert!([one.status, other.status].contains(&201), "{one:?} {other:?}");
            for host in ["n1", "n2"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, healthy(2)).await;
            }
            let id = |a: Answer| a.expect(200)["cluster_id"].clone();
            let [one, other] = [op.get("n1", "/v1/cluster/status").await, op.get("n2", "/v1/cluster/status").await];
            assert_eq!(id(one), id(other));
        });
    });
}

#[test]
fn an_agent_without_a_cluster_is_no_peer() {
    twin_run("an_agent_without_a_cluster_is_no_peer", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 2));
        let license = cluster.license(1, 10);
        cluster.act(|op| async move {
            op.bootstrap("n1", &license).await;
            let refused = add(&op, "n1", "n2").await.expect(422);
            assert_eq!(refused["error"], "handshake failed: peer is not bootstrapped");
            let itself = add(&op, "n1", "n1").await.expect(400);
            assert_eq!(itself["code"], "INVALID_REQUEST");
        });
    });
}
