//! The named scenarios of the simulator that need real HTTP and a real store.

use arctic::{
    model::{ClusterId, LicenseId, PeerId, Rng, SigningKey, X25519Public},
    wire::handshake::{Challenge, Init, PROTOCOL, default_api_port},
};
use serde_json::{Value, json};
use sim::{Answer, Cluster, EPOCH, Operator, Options, twin_run};
use std::{cell::Cell, rc::Rc, time::Duration};

/// 6 heartbeat rounds and twice 30 s.
const CONVERGENCE: Duration = sim::chaos::CONVERGENCE_BOUND;

fn joined(options: &Options) -> Cluster {
    let mut cluster = Cluster::new(options);
    let license = cluster.license(1, 100);
    let hosts = cluster.names();
    cluster.act(|op| async move {
        for host in &hosts {
            op.bootstrap(host, &license).await;
        }
        for host in &hosts[1..] {
            add(&op, &hosts[0], host).await.expect(201);
        }
        all_healthy(&op, &hosts).await;
    });
    cluster
}

async fn add(op: &Operator, host: &str, other: &str) -> Answer {
    op.post(host, "/v1/peers", json!({"endpoints": [format!("{other}:8080")]})).await
}

/// Of a handshake that a stranger begins and never ends.
fn first_words(rng: &mut Rng) -> Value {
    let init = Init {
        protocol: PROTOCOL,
        peer_id: PeerId::mint(EPOCH, rng),
        public_key: SigningKey::from_seed(rng.bytes()).public(),
        challenge: Challenge(rng.bytes()),
        ephemeral: X25519Public(rng.bytes()),
        license_id: LicenseId::mint(EPOCH, rng),
        cluster_id: ClusterId::mint(EPOCH, rng),
        endpoints: Vec::new(),
        target_endpoints: Vec::new(),
        api_port: default_api_port(),
    };
    serde_json::to_value(init).expect("plain JSON")
}

async fn all_healthy(op: &Operator, hosts: &[String]) {
    let count = hosts.len();
    let healthy = move |answer: &Answer| {
        let peers = answer.body["peers"].as_array().cloned().unwrap_or_default();
        peers.len() == count && peers.iter().all(|p| p["status"] == "healthy")
    };
    for host in hosts {
        op.eventually(host, "/v1/peers", CONVERGENCE, healthy).await;
    }
}

async fn identity(op: &Operator, host: &str) -> Value {
    op.get(host, "/v1/cluster/identity").await.expect(200)
}

async fn id_of(op: &Operator, host: &str) -> String {
    identity(op, host).await["peer_id"].as_str().expect("an id").to_owned()
}

/// More than one message of gossip holds, in records as large as the API makes them.
#[test]
fn oversize_state_never_wedges_the_queue() {
    const SERVICES: usize = 24;
    const ROUTES: usize = 1000;
    twin_run("oversize_state_never_wedges_the_queue", 1..2, |seed| {
        let mut cluster = joined(&Options::new(seed, 3));
        cluster.partition(&["n3"], &["n1", "n2"]);
        cluster.act(|op| async move {
            let target = id_of(&op, "n2").await;
            for n in 0..SERVICES {
                let service = op.post("n1", "/v1/services", json!({"target_peer_id": target})).await.expect(201);
                let path = format!("/v1/services/{}/routes", service["id"].as_str().expect("an id"));
                let route = |r: usize| {
                    let host = |kind: &str| format!("2001:db8:{kind}:{n:x}:1111:2222:3333:{r:x}/128");
                    json!({"source_cidr": host("aaaa"), "dest_cidr": host("bbbb")})
                };
                let routes: Vec<Value> = (0..ROUTES).map(route).collect();
                op.post("n1", &path, json!({ "routes": routes })).await.expect(201);
                let refused = op.post("n1", &path, json!({"routes": [route(ROUTES)]})).await;
                assert!((400..500).contains(&refused.status), "refused at its source: {refused:?}");
            }
            let huge = "x".repeat(1000 << 10);
            op.post("n1", "/v1/services", json!({"target_peer_id": target, "name": huge})).await.expect(400);
        });
        cluster.heal(&["n3"], &["n1", "n2"]);
        cluster.act(|op| async move {
            let [source, target] = [id_of(&op, "n3").await, id_of(&op, "n2").await];
            let small = json!({"source_peer_id": source, "target_peer_id": target, "name": "small"});
            op.post("n3", "/v1/services", small).await.expect(201);
            for host in ["n1", "n2", "n3"] {
                let all = |a: &Answer| a.body["services"].as_array().map_or(0, Vec::len) == SERVICES + 1;
                op.eventually(host, "/v1/services", CONVERGENCE, all).await;
                op.eventually(host, "/v1/cluster/status", CONVERGENCE, |a| a.body["converged"] == true).await;
            }
        });
    });
}

#[test]
fn restart_never_changes_membership() {
    const RESTARTS: usize = 100;
    twin_run("restart_never_changes_membership", 1..2, |seed| {
        let mut cluster = joined(&Options::new(seed, 4));
        let hosts = cluster.names();
        let mut rng = arctic::model::Rng::from_seed([u8::try_from(seed).unwrap_or(0); 32]);
        let (told, names) = (std::rc::Rc::new(std::cell::RefCell::new(Vec::new())), hosts.clone());
        let ids = told.clone();
        cluster.act(|op| async move {
            for host in &names {
                let id = identity(&op, host).await;
                ids.borrow_mut().push(id);
            }
        });
        let before = told.take();
        let (mut left, mut down): (usize, Option<(String, Duration)>) = (RESTARTS, None);
        let mut next = cluster.elapsed();
        let idle = Duration::from_secs(3) * u32::try_from(RESTARTS).unwrap_or(u32::MAX);
        cluster.act_while(
            |_| async move { tokio::time::sleep(idle).await },
            |cluster| {
                let now = cluster.elapsed();
                if now < next {
                    return;
                }
                match down.take() {
                    Some((host, _)) => cluster.restart(&host),
                    None if left > 0 => {
                        left -= 1;
                        let host = hosts[rng.below(hosts.len() as u64) as usize].clone();
                        cluster.crash(&host);
                        down = Some((host, now));
                    }
                    None => {}
                }
                next = now + Duration::from_millis(100 + rng.below(2_400));
            },
        );
        assert_eq!((left, down), (0, None), "all restarts were made");
        cluster.act(|op| async move {
            all_healthy(&op, &hosts).await;
            for (host, before) in hosts.iter().zip(before) {
                assert_eq!(identity(&op, host).await, before, "{host} is who it was, in the cluster where it was");
            }
        });
    });
}

#[test]
fn bootstrap_and_join_stampede() {
    const CALLS: usize = 100;
    const NODES: usize = 10;
    const FLOODERS: usize = 8;
    const JOINED_WITHIN: Duration = Duration::from_secs(60);
    twin_run("bootstrap_and_join_stampede", 1..2, |seed| {
        let mut cluster = Cluster::new(&Options::new(seed, NODES));
        let license = cluster.license(1, 100);
        let hosts = cluster.names();
        cluster.act(|op| async move {
            let calls: Vec<_> = (0..CALLS)
                .map(|_| {
                    let (op, license) = (op.clone(), license.clone());
                    tokio::task::spawn_local(async move { op.try_bootstrap("n1", &license).await })
                })
                .collect();
            let mut won = 0;
            for call in calls {
                won += usize::from(call.await.expect("no call panics"));
            }
            assert_eq!(won, 1, "one of {CALLS} bootstraps wins");
            for host in &hosts[1..] {
                op.bootstrap(host, &license).await;
            }
            let opened = Rc::new(Cell::new(0));
            let flood: Vec<_> = (0..FLOODERS)
                .map(|flooder| {
                    let (op, opened) = (op.clone(), opened.clone());
                    let mut rng = Rng::from_seed([flooder as u8; 32]);
                    tokio::task::spawn_local(async move {
                        loop {
                            let answer = op.post("n1", "/v1/handshake/init", first_words(&mut rng)).await;
                            opened.set(opened.get() + u32::from(answer.status == 200));
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    })
                })
                .collect();
            let began = turmoil::elapsed();
            let joins: Vec<_> = hosts[1..]
                .iter()
                .map(|host| {
                    let (op, host) = (op.clone(), host.clone());
                    tokio::task::spawn_local(async move {
                        while ![201, 409].contains(&add(&op, &host, "n1").await.status) {
                            assert!(turmoil::elapsed() - began < JOINED_WITHIN, "{host} has not joined");
                        }
                    })
                })
                .collect();
            for join in joins {
                join.await.expect("each joins");
            }
            all_healthy(&op, &hosts).await;
            let took = turmoil::elapsed() - began;
            assert!(took < JOINED_WITHIN, "all of {NODES} know each other after {took:?}");
            flood.iter().for_each(tokio::task::JoinHandle::abort);
            assert!(opened.get() > 0, "strangers hold sessions open");
        });
    });
}
