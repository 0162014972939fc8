//! Endpoint lists (cluster.md §6): failover, return to the first, and endpoints where somebody else answers.

use serde_json::{Value, json};
use sim::{Answer, Cluster, Operator, Options, twin_run};
use std::time::Duration;

/// Ten simulated minutes each.
const SEEDS: std::ops::Range<u64> = 31..33;
const CONVERGENCE: Duration = Duration::from_secs(60);
/// Five minutes after the failover the next heartbeat, 12 s at most, tries the first endpoint again.
const RETURN: Duration = Duration::from_secs(315);

async fn id(op: &Operator, host: &str) -> String {
    op.get(host, "/v1/cluster/identity").await.expect(200)["peer_id"].as_str().expect("an id").to_owned()
}

/// Three agents; n2 has these endpoints, in this order.
fn three_with(cluster: &mut Cluster, endpoints: &'static [&'static str]) {
    let license = cluster.license(1, 10);
    cluster.act(move |op| async move {
        for host in ["n1", "n3"] {
            op.bootstrap(host, &license).await;
        }
        op.bootstrap_at("n2", &license, endpoints).await;
        op.post("n1", "/v1/peers", json!({ "endpoints": endpoints })).await.expect(201);
        op.post("n1", "/v1/peers", json!({ "endpoints": ["n3:8080"] })).await.expect(201);
        for host in ["n1", "n2", "n3"] {
            op.eventually(host, "/v1/peers", CONVERGENCE, |a| healthy_peers(a) == 3).await;
        }
    });
}

fn healthy_peers(answer: &Answer) -> usize {
    let peers = answer.body["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().filter(|p| p["status"] == "healthy").count()
}

/// Where `peer` answered last, as `cluster status` says it.
fn answered_at(answer: &Answer, peer: &str) -> Value {
    let peers = answer.body["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|p| p["id"] == peer).map_or(Value::Null, |p| p["endpoint"].clone())
}

// accepts: 001-85
#[test]
fn a_dead_first_endpoint_is_passed_over_and_taken_up_again() {
    twin_run("a_dead_first_endpoint_is_passed_over_and_taken_up_again", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        cluster.gateway("g2", "n2");
        three_with(&mut cluster, &["g2:8080", "n2:8080"]);
        cluster.act(|op| async move {
            let n2 = id(&op, "n2").await;
            for host in ["n1", "n3"] {
                let listed = op.get(host, &format!("/v1/peers/{n2}")).await.expect(200);
                assert_eq!(listed["endpoints"], json!(["g2:8080", "n2:8080"]), "all members know the whole list");
                let used = |a: &Answer| answered_at(a, &n2) == "g2:8080";
                op.eventually(host, "/v1/cluster/status", CONVERGENCE, used).await;
            }
        });
        cluster.partition(&["g2"], &["n1", "n3"]);
        cluster.act(|op| async move {
            let n2 = id(&op, "n2").await;
            for host in ["n1", "n3"] {
                let used = |a: &Answer| answered_at(a, &n2) == "n2:8080";
                op.eventually(host, "/v1/cluster/status", CONVERGENCE, used).await;
            }
        });
        cluster.heal(&["g2"], &["n1", "n3"]);
        cluster.act(|op| async move {
            let n2 = id(&op, "n2").await;
            let start = turmoil::elapsed();
            for host in ["n1", "n3"] {
                let used = |a: &Answer| {
                    let peers = a.body["peers"].as_array().cloned().unwrap_or_default();
                    assert!(peers.iter().all(|p| p["status"] == "healthy"), "nobody was out of reach: {}", a.body);
                    answered_at(a, &n2) == "g2:8080"
                };
                op.eventually(host, "/v1/cluster/status", RETURN, used).await;
            }
            sim::record(format_args!("returned within {:?}", turmoil::elapsed() - start));
        });
    });
}

#[test]
fn an_endpoint_where_another_peer_answers_is_passed_over() {
    twin_run("an_endpoint_where_another_peer_answers_is_passed_over", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        cluster.gateway("g2", "n2");
        three_with(&mut cluster, &["g2:8080", "n2:8080"]);
        // The address of the gateway comes to lead to another member.
        cluster.redirect("g2", "n3");
        cluster.act(|op| async move {
            let [n1, n2] = [id(&op, "n1").await, id(&op, "n2").await];
            let used = |a: &Answer| answered_at(a, &n2) == "n2:8080";
            op.eventually("n1", "/v1/cluster/status", CONVERGENCE, used).await;
            let made = op.post("n1", "/v1/services", json!({"source_peer_id": n2, "target_peer_id": n1})).await;
            assert_eq!(made.expect(201)["source_peer_id"], n2.as_str(), "a write reaches its owner");
            op.eventually("n1", "/v1/peers", CONVERGENCE, |a| healthy_peers(a) == 3).await;
            op.eventually("n1", "/v1/cluster/status", CONVERGENCE, used).await;
        });
    });
}
