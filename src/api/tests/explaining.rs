//! `routes explain` at a running agent: the routes that were applied, in their order.

use super::agent::LiveAgent;
use serde_json::{Value, json};

const PATH: &str = "/v1/routes/explain";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_is_told_its_service_and_every_other_route_why_not() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()], "name": "tokyo"})).await.expect(201);
    let made = a.caller.post("/v1/services", json!({"target_peer_id": b.id(), "name": "wide"})).await.expect(201);
    let routes = json!([
        {"source_cidr": "10.0.0.0/8", "dest_cidr": "192.168.0.0/16"},
        {"source_cidr": "10.1.0.0/16", "dest_cidr": "192.168.100.0/24", "priority": 200},
        {"dest_cidr": "fd00::/8"},
    ]);
    let path = format!("/v1/services/{}/routes?wait=applied&timeout_s=2", made["id"].as_str().unwrap());
    let added = a.caller.post(&path, json!({ "routes": routes })).await.expect(201);
    assert_eq!(added["applied"], false, "the fake engine has no listener for IPv6: {added}");
    let listener = added["waiting_for"].as_array().unwrap().iter().find(|w| w["reason"] == "ENGINE_UNAVAILABLE");
    assert_eq!(listener.unwrap()["peer_name"], "host-1");

    let ask = async |src: &str, dst: &str, proto: &str| {
        let body = json!({"src": src, "dst": dst, "proto": proto, "dport": 443});
        a.caller.post(PATH, body).await.expect(200)
    };
    let told = ask("10.1.2.3", "192.168.100.9", "tcp").await;
    for (field, value) in [
        ("result", json!("captured")),
        ("plane", json!("tproxy")),
        ("service_id", made["id"].clone()),
        ("service_name", json!("wide")),
        ("route_id", json!(2)),
        ("target_peer_id", json!(b.id())),
        ("target_peer_name", json!("tokyo")),
        ("transport", json!("tcp")),
        ("limit_mbps", json!(0)),
        ("candidates_total", json!(3)),
    ] {
        assert_eq!(told[field], value, "{field}: {told}");
    }
    let service = a.caller.get(&format!("/v1/services/{}", made["id"].as_str().unwrap())).await.expect(200);
    assert_eq!(told["mark"], service["fwmark"]);
    let reasons = |told: &Value| -> Vec<(u64, String)> {
        let candidates = told["candidates"].as_array().unwrap();
        candidates.iter().map(|c| (c["route_id"].as_u64().unwrap(), c["reason"].as_str().unwrap().to_owned())).collect()
    };
    let expected = |list: [(u64, &str); 3]| list.map(|(id, reason)| (id, reason.to_owned())).to_vec();
    assert_eq!(reasons(&told), expected([(2, "WINS"), (1, "LESS_PREFERRED"), (3, "OTHER_FAMILY")]));
    let beaten = told["candidates"][1]["message"].as_str().unwrap();
    assert_eq!(beaten, "route 2 of wide comes first: its source prefix is longer (rule 3)");

    let wide = ask("10.2.0.1", "192.168.100.9", "tcp").await;
    assert_eq!(
        reasons(&wide),
        expected([(1, "WINS"), (2, "SOURCE_OUTSIDE"), (3, "OTHER_FAMILY")]),
        "matches come first"
    );
    let outside = ask("10.1.0.1", "172.16.0.1", "tcp").await;
    assert_eq!((&outside["result"], &outside["service_id"]), (&json!("not_captured"), &Value::Null));
    assert_eq!(reasons(&outside)[0], (2, "DEST_OUTSIDE".into()));
    let udp = ask("10.1.2.3", "192.168.100.9", "udp").await;
    assert_eq!((&udp["result"], &udp["plane"]), (&json!("not_captured"), &Value::Null));
    assert_eq!(reasons(&udp)[0], (2, "NOT_CARRIED".into()));
    let local = ask("10.1.2.3", "169.254.0.1", "tcp").await;
    assert_eq!(local["result"], "excluded");
    assert!(local["message"].as_str().unwrap().contains("link-local"), "{local}");
    // The other end captures nothing for it.
    let elsewhere = json!({"src": "10.1.2.3", "dst": "192.168.100.9", "proto": "tcp"});
    assert_eq!(b.caller.post(PATH, elsewhere).await.expect(200)["candidates"], json!([]));
}
