//! Production nodes in the simulator: joining, spreading state, partitions, crashes.

use serde_json::{Value, json};
use sim::{Answer, Cluster, Operator, Options, twin_run};
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 1..11;
/// One heartbeat round and the push before it, generously.
const CONVERGENCE: Duration = Duration::from_secs(60);

fn three_joined(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(&Options::new(seed, 3));
    let license = cluster.license(1, 10);
    cluster.act(|op| async move {
        for host in ["n1", "n2", "n3"] {
            op.bootstrap(host, &license).await;
        }
        for host in ["n2", "n3"] {
            let endpoint = format!("{host}:8080");
            let peer = op.post("n1", "/v1/peers", json!({"endpoints": [endpoint], "name": host})).await.expect(201);
            assert_eq!(peer["is_local"], false);
        }
        for host in ["n1", "n2", "n3"] {
            op.eventually(host, "/v1/peers", CONVERGENCE, everyone_is_healthy).await;
        }
    });
    cluster
}

fn everyone_is_healthy(answer: &Answer) -> bool {
    let peers = answer.body["peers"].as_array().cloned().unwrap_or_default();
    peers.len() == 3 && peers.iter().all(|p| p["status"] == "healthy")
}

async fn peer_id(op: &Operator, host: &str) -> String {
    op.get(host, "/v1/cluster/identity").await.expect(200)["peer_id"].as_str().expect("an id").to_owned()
}

async fn create_service(op: &Operator, host: &str, target: &str, dest: &str) -> String {
    let target = peer_id(op, target).await;
    let service = op.post(host, "/v1/services", json!({"target_peer_id": target})).await.expect(201);
    let id = service["id"].as_str().expect("an id").to_owned();
    let routes = json!({"routes": [{"dest_cidr": dest}]});
    op.post(host, &format!("/v1/services/{id}/routes"), routes).await.expect(201);
    id
}

fn peer_count(answer: &Value) -> usize {
    answer["peers"].as_array().map_or(0, Vec::len)
}

fn service_count(answer: &Value) -> usize {
    answer["services"].as_array().map_or(0, Vec::len)
}

// accepts: 000-29
#[test]
fn a_service_written_on_one_agent_acts_on_another() {
    twin_run("a_service_written_on_one_agent_acts_on_another", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            let id = create_service(&op, "n1", "n2", "10.9.0.0/16").await;
            for host in ["n2", "n3"] {
                let path = format!("/v1/services/{id}");
                op.eventually(host, &path, CONVERGENCE, |a| a.status == 200 && a.body["routes"][0]["id"] == 1).await;
            }
        });
        let captures = ["n1", "n2", "n3"].map(|host| cluster.captures(host, "10.9.1.1"));
        assert_eq!(captures, [true, false, false], "only the source peer captures");
    });
}

// accepts: 000-35
// accepts: 002-15
#[test]
fn a_service_of_another_peer_can_be_read_where_it_was_written() {
    twin_run("a_service_of_another_peer_can_be_read_where_it_was_written", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            let [source, target] = [peer_id(&op, "n2").await, peer_id(&op, "n3").await];
            let wish = json!({"source_peer_id": source, "target_peer_id": target});
            let service = op.post("n1", "/v1/services", wish).await.expect(201);
            assert_eq!(service["source_peer_id"], source.as_str());
            let path = format!("/v1/services/{}/routes", service["id"].as_str().expect("an id"));
            op.post("n1", &path, json!({"routes": [{"dest_cidr": "10.7.0.0/16"}]})).await.expect(201);
            let routes = op.get("n1", &path).await.expect(200);
            assert_eq!(routes["routes"][0]["dest_cidr"], "10.7.0.0/16");
        });
        assert!(cluster.captures("n2", "10.7.1.1") && !cluster.captures("n1", "10.7.1.1"));
    });
}

#[test]
fn all_three_come_to_trust_each_other_through_one_introducer() {
    twin_run("all_three_come_to_trust_each_other_through_one_introducer", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            let ids = [op.get("n1", "/v1/cluster/status").await, op.get("n3", "/v1/cluster/status").await];
            let [one, other] = ids.map(|a| a.expect(200)["cluster_id"].clone());
            assert_eq!(one, other, "the smaller cluster id is everyone's");
            for (host, known_through) in [("n1:8080", "a handshake"), ("n3:8080", "gossip")] {
                let again = op.post("n2", "/v1/peers", json!({ "endpoints": [host] })).await.expect(409);
                assert_eq!(again["error"], "peer already exists in cluster", "{known_through}");
            }
        });
    });
}

#[test]
fn a_partition_heals_and_the_cut_off_peer_catches_up() {
    twin_run("a_partition_heals_and_the_cut_off_peer_catches_up", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.partition(&["n3"], &["n1", "n2"]);
        cluster.act(|op| async move {
            create_service(&op, "n1", "n2", "10.9.0.0/16").await;
            op.eventually("n2", "/v1/services", CONVERGENCE, |a| service_count(&a.body) == 1).await;
            let n3 = peer_id(&op, "n3").await;
            let path = format!("/v1/peers/{n3}");
            op.eventually("n1", &path, CONVERGENCE, |a| a.body["status"] == "unhealthy").await;
            assert_eq!(service_count(&op.get("n3", "/v1/services").await.expect(200)), 0);
        });
        cluster.heal(&["n3"], &["n1", "n2"]);
        cluster.act(|op| async move {
            op.eventually("n3", "/v1/services", CONVERGENCE, |a| service_count(&a.body) == 1).await;
        });
    });
}

#[test]
fn a_crashed_agent_keeps_what_it_acknowledged_and_catches_up() {
    twin_run("a_crashed_agent_keeps_what_it_acknowledged_and_catches_up", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            create_service(&op, "n2", "n3", "10.8.0.0/16").await;
        });
        cluster.crash("n2");
        cluster.act(|op| async move {
            create_service(&op, "n1", "n3", "10.9.0.0/16").await;
        });
        cluster.restart("n2");
        cluster.act(|op| async move {
            for host in ["n1", "n2", "n3"] {
                op.eventually(host, "/v1/services", CONVERGENCE, |a| service_count(&a.body) == 2).await;
            }
        });
        assert!(cluster.captures("n2", "10.8.1.1"), "its rules are rebuilt after the restart");
    });
}

#[test]
fn a_peer_of_another_customer_is_refused_and_nothing_changes() {
    twin_run("a_peer_of_another_customer_is_refused_and_nothing_changes", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 2));
        let (ours, theirs) = (cluster.license(1, 10), cluster.license(2, 10));
        cluster.act(|op| async move {
            op.bootstrap("n1", &ours).await;
            op.bootstrap("n2", &theirs).await;
            let refused = op.post("n1", "/v1/peers", json!({"endpoints": ["n2:8080"]})).await.expect(422);
            assert_eq!(refused["code"], "LICENSE_MISMATCH");
            assert_eq!(refused["error"], "handshake failed: license mismatch");
            for host in ["n1", "n2"] {
                let peers = op.get(host, "/v1/peers").await.expect(200);
                assert_eq!(peers["peers"].as_array().map(Vec::len), Some(1));
            }
        });
    });
}

/// n1 has taken in n2 and n3, between which there is no path.
fn three_of_which_two_cannot_meet(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(&Options::new(seed, 3));
    let license = cluster.license(1, 10);
    cluster.partition(&["n2"], &["n3"]);
    cluster.act(|op| async move {
        for host in ["n1", "n2", "n3"] {
            op.bootstrap(host, &license).await;
        }
        for host in ["n2", "n3"] {
            op.post("n1", "/v1/peers", json!({"endpoints": [format!("{host}:8080")]})).await.expect(201);
        }
        for host in ["n2", "n3"] {
            op.eventually(host, "/v1/peers?status=unreachable", CONVERGENCE, |a| peer_count(&a.body) == 1).await;
        }
    });
    cluster
}

// accepts: 001-38, 001-59
#[test]
fn a_restart_lets_failed_handshakes_run_anew() {
    twin_run("a_restart_lets_failed_handshakes_run_anew", SEEDS, |seed| {
        let mut cluster = three_of_which_two_cannot_meet(seed);
        cluster.act(|op| async move {
            for _ in 0..CONVERGENCE.as_secs() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                for host in ["n2", "n3"] {
                    let peers = op.get(host, "/v1/peers?status=unreachable").await.expect(200);
                    assert_eq!(peer_count(&peers), 1, "nothing has changed");
                }
            }
        });
        cluster.heal(&["n2"], &["n3"]);
        for host in ["n2", "n3"] {
            cluster.crash(host);
            cluster.restart(host);
        }
        cluster.act(|op| async move {
            for host in ["n1", "n2", "n3"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, everyone_is_healthy).await;
            }
        });
    });
}

#[test]
fn members_that_could_not_meet_do_so_by_themselves_once_there_is_a_path() {
    twin_run("members_that_could_not_meet_do_so_by_themselves_once_there_is_a_path", SEEDS, |seed| {
        let mut cluster = three_of_which_two_cannot_meet(seed);
        cluster.heal(&["n2"], &["n3"]);
        cluster.act(|op| async move {
            for host in ["n2", "n3"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, everyone_is_healthy).await;
            }
        });
    });
}

// accepts: 000-51, 000-52, 000-54
#[test]
fn a_deleted_peer_is_gone_everywhere_until_an_operator_takes_it_back() {
    twin_run("a_deleted_peer_is_gone_everywhere_until_an_operator_takes_it_back", SEEDS, |seed| {
        let mut cluster = three_joined(seed);
        cluster.act(|op| async move {
            let lost = create_service(&op, "n3", "n1", "10.7.0.0/16").await;
            let targeting = create_service(&op, "n2", "n3", "10.8.0.0/16").await;
            let kept = create_service(&op, "n2", "n1", "10.9.0.0/16").await;
            for host in ["n1", "n2", "n3"] {
                op.eventually(host, "/v1/services", CONVERGENCE, |a| service_count(&a.body) == 3).await;
            }
            let third = format!("/v1/peers/{}", peer_id(&op, "n3").await);
            let deleted = op.delete("n1", &third).await;
            assert_eq!((deleted.status, deleted.body), (204, Value::Null));
            for host in ["n1", "n2"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, |a| peer_count(&a.body) == 2).await;
                op.eventually(host, "/v1/services", CONVERGENCE, |a| service_count(&a.body) == 1).await;
                for id in [&lost, &targeting] {
                    op.get(host, &format!("/v1/services/{id}")).await.expect(404);
                }
                op.get(host, &format!("/v1/services/{kept}")).await.expect(200);
                op.delete(host, &third).await.expect(404);
            }
            op.eventually("n3", "/v1/peers", CONVERGENCE, |a| peer_count(&a.body) == 1).await;
            tokio::time::sleep(CONVERGENCE).await;
            let peers = op.get("n2", "/v1/peers").await.expect(200);
            assert_eq!(peer_count(&peers), 2, "nothing brings it back by itself");

            for _ in 0..2 {
                op.post("n1", "/v1/peers", json!({"endpoints": ["n3:8080"]})).await.expect(201);
                for host in ["n1", "n2", "n3"] {
                    op.eventually(host, "/v1/peers", CONVERGENCE, everyone_is_healthy).await;
                }
                op.delete("n2", &third).await;
                for host in ["n1", "n2"] {
                    op.eventually(host, "/v1/peers", CONVERGENCE, |a| peer_count(&a.body) == 2).await;
                }
            }
        });
    });
}
