//! Who becomes a member, who does not, and who comes back only by an operator's word.

use serde_json::{Value, json};
use sim::{Answer, Cluster, Operator, Options, twin_run};
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 11..21;
/// For scenarios of minutes.
const FEW_SEEDS: std::ops::Range<u64> = 11..14;
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

async fn id_of(op: &Operator, host: &str) -> String {
    op.get(host, "/v1/cluster/identity").await.expect(200)["peer_id"].as_str().expect("an id").to_owned()
}

async fn service(op: &Operator, host: &str, target: &str, name: &str) -> Answer {
    let target = id_of(op, target).await;
    op.post(host, "/v1/services", json!({"target_peer_id": target, "name": name})).await
}

fn services(answer: &Answer) -> Vec<Value> {
    answer.body["services"].as_array().cloned().unwrap_or_default()
}

/// Bootstraps n1 to n4 and makes n1 and n2 a cluster, and n3 and n4 another.
async fn two_pairs(op: &Operator, license: &Value) {
    for host in ["n1", "n2", "n3", "n4"] {
        op.bootstrap(host, license).await;
    }
    add(op, "n1", "n2").await.expect(201);
    add(op, "n3", "n4").await.expect(201);
}

async fn ids(op: &Operator, host: &str) -> (String, Vec<String>) {
    let status = op.get(host, "/v1/cluster/status").await.expect(200);
    let text = |v: &Value| v.as_str().expect("an id").to_owned();
    let mut aliases: Vec<String> = status["aliases"].as_array().expect("a list").iter().map(text).collect();
    aliases.sort();
    (text(&status["cluster_id"]), aliases)
}

#[test]
fn two_clusters_of_two_become_one_by_one_add() {
    twin_run("two_clusters_of_two_become_one_by_one_add", FEW_SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 4));
        let license = cluster.license(1, 4);
        cluster.act(|op| async move {
            two_pairs(&op, &license).await;
            let mut before = Vec::new();
            for host in ["n1", "n2", "n3", "n4"] {
                let (id, aliases) = ids(&op, host).await;
                before.extend(aliases.into_iter().chain([id]));
            }
            before.sort();
            before.dedup();
            assert_eq!(before.len(), 4, "each bootstrap made a cluster");
            service(&op, "n1", "n2", "db").await.expect(201);
            service(&op, "n4", "n3", "db").await.expect(201);
            let token = op.token("n4", "n4").await.expect("a token under the id that will lose or win");

            add(&op, "n2", "n3").await.expect(201);
            for host in ["n1", "n2", "n3", "n4"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, healthy(4)).await;
                let equal = |a: &Answer| a.body["converged"] == true;
                op.eventually(host, "/v1/cluster/status", CONVERGENCE, equal).await;
                assert_eq!(ids(&op, host).await, (before[0].clone(), before[1..].to_vec()), "{host}");
                op.eventually(host, "/v1/services", CONVERGENCE, |a| services(a).len() == 2).await;
                op.get_with("n1", "/v1/peers", &token).await.expect(200);
            }
            let taken = service(&op, "n2", "n4", "DB").await.expect(409);
            assert_eq!(taken["code"], "ALREADY_EXISTS");
        });
    });
}

#[test]
fn a_merge_over_the_limit_of_either_side_changes_nothing() {
    twin_run("a_merge_over_the_limit_of_either_side_changes_nothing", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 4));
        let (license, small) = (cluster.license(1, 4), cluster.license(1, 3));
        cluster.act(|op| async move {
            for (host, license) in [("n1", &license), ("n2", &license), ("n3", &small), ("n4", &license)] {
                op.bootstrap(host, license).await;
            }
            add(&op, "n1", "n2").await.expect(201);
            let added = add(&op, "n3", "n4").await.expect(201);
            let warnings = added["warnings"].as_array().expect("a list");
            assert!(warnings.len() == 1 && warnings[0].to_string().contains("licenses differ"), "{added}");
            let before = [ids(&op, "n1").await, ids(&op, "n3").await];
            for (from, to) in [("n1", "n3"), ("n3", "n1")] {
                assert_eq!(add(&op, from, to).await.expect(422)["code"], "NODE_LIMIT_EXCEEDED");
            }
            assert_eq!([ids(&op, "n1").await, ids(&op, "n3").await], before);
            for host in ["n1", "n2", "n3", "n4"] {
                assert_eq!(peers(&op.get(host, "/v1/peers").await).len(), 2);
            }
        });
    });
}

#[test]
fn a_merge_cut_short_by_a_crash_is_finished_or_has_changed_nothing() {
    twin_run("a_merge_cut_short_by_a_crash_is_finished_or_has_changed_nothing", SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        let license = cluster.license(1, 10);
        cluster.act(|op| async move {
            for host in ["n1", "n2", "n3"] {
                op.bootstrap(host, &license).await;
            }
            add(&op, "n1", "n2").await.expect(201);
            // The call goes on while its agent dies a moment later, at another step of the merge with each seed.
            tokio::task::spawn_local(async move { add(&op, "n1", "n3").await });
            tokio::time::sleep(Duration::from_millis(20 * (seed % 16))).await;
        });
        cluster.crash("n1");
        cluster.act(|_| async { tokio::time::sleep(Duration::from_secs(15)).await });
        cluster.restart("n1");
        cluster.act(|op| async move {
            tokio::time::sleep(CONVERGENCE).await;
            let third = id_of(&op, "n3").await;
            let count = peers(&op.get("n1", "/v1/peers").await).iter().filter(|p| p["id"] == third.as_str()).count();
            let members = if count == 1 { 3 } else { 2 };
            for host in ["n1", "n2"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, healthy(members)).await;
            }
            let at_third = if members == 3 { 3 } else { 1 };
            op.eventually("n3", "/v1/peers", CONVERGENCE, healthy(at_third)).await;
            assert_eq!(ids(&op, "n1").await.0, ids(&op, "n2").await.0);
            assert_eq!(ids(&op, "n1").await.0 == ids(&op, "n3").await.0, members == 3);
        });
    });
}

// accepts: 000-59, 000-60, 000-61, 000-62, 000-63, 000-64
#[test]
fn a_peer_that_leaves_is_gone_everywhere_and_returns_only_by_an_operator() {
    twin_run("a_peer_that_leaves_is_gone_everywhere_and_returns_only_by_an_operator", FEW_SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        let license = cluster.license(1, 10);
        let renewed = license.clone();
        cluster.act(|op| async move {
            for host in ["n1", "n2", "n3"] {
                op.bootstrap(host, &license).await;
            }
            for host in ["n2", "n3"] {
                add(&op, "n1", host).await.expect(201);
            }
            op.eventually("n3", "/v1/peers", CONVERGENCE, healthy(3)).await;
            service(&op, "n3", "n1", "from").await.expect(201);
            service(&op, "n2", "n3", "to").await.expect(201);
            op.eventually("n1", "/v1/services", CONVERGENCE, |a| services(a).len() == 2).await;
            let leaver = id_of(&op, "n3").await;

            let said = op.delete("n3", "/v1/peers/self").await.expect(200);
            assert_eq!((&said["action"], said["peer_id"].as_str()), (&json!("deactivated"), Some(leaver.as_str())));
            for host in ["n1", "n2"] {
                let listed = peers(&op.get(host, "/v1/peers").await);
                assert!(listed.iter().all(|p| p["id"] != leaver.as_str()), "{host} heard it before the answer");
                let shown = services(&op.get(host, "/v1/services").await);
                assert_eq!(shown.len(), 2);
                assert!(shown.iter().all(|s| s["state"] == "inactive"), "{shown:?}");
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(op.get("n3", "/livez").await.status, 0, "the agent has ended");

            let shown = services(&op.get("n1", "/v1/services").await);
            for s in &shown {
                op.delete("n1", &format!("/v1/services/{}", s["id"].as_str().expect("an id"))).await.expect(204);
            }
            for host in ["n1", "n2"] {
                op.eventually(host, "/v1/services", CONVERGENCE, |a| services(a).is_empty()).await;
            }
        });
        cluster.restart("n3");
        cluster.act(|op| async move {
            let nobody = op.get("n3", "/v1/cluster/identity").await.expect(200);
            assert_eq!((&nobody["peer_id"], &nobody["cluster_id"]), (&json!(""), &json!("")));
            let before = peers(&op.get("n1", "/v1/peers").await).len();
            op.bootstrap("n3", &renewed).await;
            let refused = op.post("n3", "/v1/peers", json!({"endpoints": ["n1:8080"]})).await.expect(422);
            assert_eq!(refused["error"], "handshake failed: peer has been removed from the cluster");
            add(&op, "n1", "n3").await.expect(201);
            for host in ["n1", "n2", "n3"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, healthy(before + 1)).await;
            }
        });
    });
}

#[test]
fn a_peer_deleted_while_it_is_off_learns_it_when_it_is_back() {
    twin_run("a_peer_deleted_while_it_is_off_learns_it_when_it_is_back", FEW_SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        let license = cluster.license(1, 10);
        cluster.act(|op| async move {
            for host in ["n1", "n2", "n3"] {
                op.bootstrap(host, &license).await;
            }
            for host in ["n2", "n3"] {
                add(&op, "n1", host).await.expect(201);
            }
            op.eventually("n3", "/v1/peers", CONVERGENCE, healthy(3)).await;
            op.eventually("n2", "/v1/peers", CONVERGENCE, healthy(3)).await;
        });
        cluster.crash("n3");
        cluster.act(|op| async move {
            let listed = peers(&op.get("n1", "/v1/peers").await);
            let third = listed.iter().find(|p| p["name"] == "n3").expect("it is a member");
            op.delete("n1", &format!("/v1/peers/{}", third["id"].as_str().expect("an id"))).await.expect(204);
            op.eventually("n2", "/v1/peers", CONVERGENCE, |a| peers(a).len() == 2).await;
        });
        cluster.restart("n3");
        cluster.act(|op| async move {
            tokio::time::sleep(CONVERGENCE).await;
            for host in ["n1", "n2"] {
                assert_eq!(peers(&op.get(host, "/v1/peers").await).len(), 2, "nothing brings it back by itself");
            }
            op.eventually("n3", "/v1/peers", CONVERGENCE, |a| peers(a).len() == 1).await;
        });
    });
}

#[test]
fn two_peers_that_delete_each_other_are_both_out() {
    twin_run("two_peers_that_delete_each_other_are_both_out", FEW_SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        let license = cluster.license(1, 10);
        cluster.act(|op| async move {
            for host in ["n1", "n2", "n3"] {
                op.bootstrap(host, &license).await;
            }
            for host in ["n2", "n3"] {
                add(&op, "n1", host).await.expect(201);
            }
            for host in ["n1", "n2", "n3"] {
                op.eventually(host, "/v1/peers", CONVERGENCE, healthy(3)).await;
            }
            let [one, two] = [id_of(&op, "n1").await, id_of(&op, "n2").await];
            let [by_one, by_two] = [format!("/v1/peers/{two}"), format!("/v1/peers/{one}")];
            let (a, b) = tokio::join!(op.delete("n1", &by_one), op.delete("n2", &by_two));
            for answer in [a, b] {
                assert!([204, 404].contains(&answer.status), "{answer:?}");
            }
        });
        cluster.act(|op| async move {
            tokio::time::sleep(CONVERGENCE).await;
            let alone = |a: &Answer| peers(a).len() == 1;
            op.eventually("n3", "/v1/peers", CONVERGENCE, |a| (1..=2).contains(&peers(a).len())).await;
            let left = peers(&op.get("n3", "/v1/peers").await).len();
            if left == 1 {
                op.eventually("n1", "/v1/peers", CONVERGENCE, alone).await;
                op.eventually("n2", "/v1/peers", CONVERGENCE, alone).await;
            }
        });
    });
}

#[test]
fn trust_that_only_one_side_stored_is_repaired_or_withdrawn() {
    twin_run("trust_that_only_one_side_stored_is_repaired_or_withdrawn", FEW_SEEDS, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, 3));
        let (small, license) = (cluster.license(1, 2), cluster.license(1, 10));
        cluster.act(|op| async move {
            op.bootstrap("n1", &small).await;
            for host in ["n2", "n3"] {
                op.bootstrap(host, &license).await;
            }
            // Both handshakes find room for one; what n1 can store is one, after the other side has stored its own.
            let (second, third) = tokio::join!(add(&op, "n1", "n2"), add(&op, "n1", "n3"));
            let (member, other) = if second.status == 201 { ("n2", "n3") } else { ("n3", "n2") };
            let refused = if member == "n2" { third } else { second };
            assert_eq!(refused.expect(422)["code"], "NODE_LIMIT_EXCEEDED");
            for host in ["n1", member] {
                op.eventually(host, "/v1/peers", CONVERGENCE, healthy(2)).await;
            }
            let trusts_nobody = |a: &Answer| {
                let others = peers(a).into_iter().filter(|p| p["is_local"] == false);
                others.map(|p| p["status"].clone()).all(|status| status == "unreachable" || status == "discovered")
            };
            op.eventually(other, "/v1/peers", CONVERGENCE, trusts_nobody).await;
            assert_eq!(peers(&op.get("n1", "/v1/peers").await).len(), 2);
        });
    });
}
