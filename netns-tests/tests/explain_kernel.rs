//! `routes explain` and the real kernel say the same of random rules and flows: a sample, in which an observer behind
//! the agent's chains notes the mark of each opening packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use arctic::model::Rng;
use netns_tests::api::Client;
use netns_tests::observer::{self, Watched};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{LONDON_WAN, TOKYO_WAN};
use serde_json::{Value, json};

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const RULE_SETS: u64 = 20;
const FLOWS_EACH: u64 = 12;

const SOURCES: [&str; 6] = ["", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32"];
const DESTINATIONS: [&str; 7] =
    ["", "0.0.0.0/0", "172.16.0.0/12", "172.16.5.0/24", "172.16.5.9/32", "10.71.0.0/24", "127.0.0.0/8"];
/// Addresses of the client, and of london itself.
const CLIENTS: [&str; 4] = ["10.1.1.1", "10.1.2.1", "10.9.9.9", "10.71.1.2"];
const SERVERS: [&str; 5] = ["172.16.5.9", "172.16.5.10", "172.20.1.1", "8.8.8.8", "10.71.0.2"];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    src: IpAddr,
    dst: IpAddr,
    dport: u16,
    from_london: bool,
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[usize::try_from(rng.below(from.len() as u64)).unwrap()]
}

/// Two to four services with one to four routes each, no pair twice in one of them.
fn random_services(rng: &mut Rng) -> Vec<Vec<Value>> {
    let mut service = || {
        let mut pairs = BTreeSet::new();
        for _ in 0..=rng.below(4) {
            pairs.insert((pick(rng, &SOURCES), pick(rng, &DESTINATIONS)));
        }
        pairs.remove(&("", ""));
        let cidr = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
        let mut route =
            |(s, d)| json!({"source_cidr": cidr(s), "dest_cidr": cidr(d), "priority": 100 * (1 + rng.below(2))});
        pairs.into_iter().map(&mut route).collect()
    };
    [service(), service(), service()].into()
}

fn random_flow(rng: &mut Rng, dport: u16) -> Flow {
    let dst: IpAddr = pick(rng, &SERVERS).parse().unwrap();
    // Some go where the agents themselves talk.
    let dport = if dst == TOKYO_WAN && rng.below(2) == 0 { [8080, 61000][(dport % 2) as usize] } else { dport };
    match rng.below(4) {
        0 => Flow { src: LONDON_WAN, dst, dport, from_london: true },
        _ => Flow { src: pick(rng, &CLIENTS).parse().unwrap(), dst, dport, from_london: false },
    }
}

fn replace_services(api: &mut Client, tokyo: &str, sets: Vec<Vec<Value>>) {
    let listed = api.json("GET", "/v1/services", &Value::Null).unwrap();
    for service in listed["services"].as_array().unwrap() {
        api.json("DELETE", &format!("/v1/services/{}", service["id"].as_str().unwrap()), &Value::Null).unwrap();
    }
    let sets: Vec<Vec<Value>> = sets.into_iter().filter(|routes| !routes.is_empty()).collect();
    let last = sets.len().checked_sub(1).expect("a route in every set of rules");
    for (n, routes) in sets.into_iter().enumerate() {
        let made = api.json("POST", "/v1/services", &json!({"target_peer_id": tokyo})).unwrap();
        // The pass that applies the last change applies those before it.
        let wait = if n == last { "?wait=applied" } else { "" };
        let path = format!("/v1/services/{}/routes{wait}", made["id"].as_str().unwrap());
        let added = api.json("POST", &path, &json!({ "routes": routes })).unwrap();
        assert!(n < last || added["applied"] == true, "{added}");
    }
}

#[test]
fn explain_says_of_each_flow_what_the_kernel_does_with_it() {
    if !require(&PRODUCT) {
        return;
    }
    let of_client: Vec<IpAddr> = CLIENTS[..3].iter().map(|address| address.parse().unwrap()).collect();
    let Watched { sites, cluster: _cluster, mut api, tokyo } = Watched::new("explain", &of_client).unwrap();
    let mut rng = Rng::from_seed([7; 32]);
    let mut kinds = BTreeMap::<String, u32>::new();
    for set in 0..RULE_SETS {
        let services = random_services(&mut rng);
        replace_services(&mut api, &tokyo, services.clone());
        let port = |n: u64| u16::try_from(20_000 + set * FLOWS_EACH + n).unwrap();
        let flows: BTreeSet<Flow> = (0..FLOWS_EACH).map(|n| random_flow(&mut rng, port(n))).collect();
        observer::forget(&sites.london).unwrap();
        let key = |flow: &Flow| (flow.src, flow.dst, flow.dport);
        let host = |flow: &Flow| if flow.from_london { &sites.london } else { &sites.client };
        let sockets: Vec<_> = flows.iter().map(|flow| observer::open(host(flow), key(flow)).unwrap()).collect();
        let marks = observer::wait_for(&sites.london, &flows.iter().map(key).collect::<Vec<_>>()).unwrap();
        for flow in &flows {
            let mut packet = json!({"src": flow.src, "dst": flow.dst, "proto": "tcp", "dport": flow.dport});
            if !flow.from_london {
                packet["iface"] = json!("to-client");
            }
            let told = api.json("POST", "/v1/routes/explain", &packet).unwrap();
            let mark = if told["result"] == "captured" { told["mark"].as_u64().unwrap() } else { 0 };
            assert_eq!(marks[&key(flow)], BTreeSet::from([mark]), "set {set}, {flow:?}: {told}\n{services:?}");
            *kinds.entry(told["result"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        drop(sockets);
    }
    println!("{kinds:?}");
    assert!(["captured", "excluded", "not_captured"].iter().all(|kind| kinds.contains_key(*kind)), "{kinds:?}");
}
