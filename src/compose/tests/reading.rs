//! What is wrong with a file is named with its place; everything at once.

use crate::compose::{ClusterFile, Diagnostic, Rules, parse, read, schema};

const GOOD: &str = r#"version: v1
license: license.json
peers:
  - { name: syd, endpoints: ["203.0.113.10:8080"] }
  - { name: fra, endpoints: ["198.51.100.7:8080"] }
services:
  - name: syd-to-fra
    source_peer: syd
    target_peer: fra
    qos: { bandwidth_limit_mbps: 1000 }
    routes:
      - { source_cidr: 10.0.0.0/8, dest_cidr: 192.168.100.0/24, priority: 100 }
"#;

fn read_text(text: &str) -> Result<(ClusterFile, Vec<Diagnostic>), Vec<Diagnostic>> {
    let document = parse(text).map_err(|e| vec![e])?;
    read(&document, Rules::Full, &|name| (name == "HOST").then(|| "fra.example".to_owned()))
}

/// `line:column message` of every error.
fn errors(text: &str) -> Vec<String> {
    let found = read_text(text).err().unwrap_or_default();
    found
        .iter()
        .filter(|d| d.is_error())
        .map(|d| format!("{}:{} {}", d.place.line, d.place.column, d.message))
        .collect()
}

fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn the_example_of_the_specification_is_valid() {
    let (file, warnings) = read_text(GOOD).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((file.license.as_deref(), file.peers.len()), (Some("license.json"), 2));
    let service = &file.services[0];
    assert_eq!((service.bandwidth_limit_mbps, service.routes[0].priority), (1000, 100));
    assert!(file.peers[0].qos_enabled && service.interface.is_none() && !service.fully_transparent);
}

#[test]
fn each_finding_has_the_place_of_what_is_wrong() {
    let cases = [
        (with("version: v1\n", ""), "1:1 `version` of the file is missing"),
        (with("v1", "v2"), "1:10 version `v2` is not known here"),
        (with("license: license.json", "license: 5"), "2:10 license is a text"),
        (with("name: syd,", "nmae: syd, name: syd,"), "4:7 unknown key `nmae` of a peer"),
        (with("name: fra", "name: SYD"), "5:13 a second peer is named `SYD`"),
        (
            with("name: fra", "name: peer_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            "5:13 name `peer_01ARZ3NDEKTSV4RRFFQ69G5FAV` looks like an id",
        ),
        (with(", endpoints: [\"203.0.113.10:8080\"]", ""), "4:7 a peer needs endpoints, or address"),
        (with("[\"203.0.113.10:8080\"]", "[]"), "4:29 endpoints has 1 to 16 entries"),
        (with("[\"203.0.113.10:8080\"]", "x:y"), "4:29 endpoints is a list: [\"HOST:PORT\"]"),
        (with("203.0.113.10:8080", "a:0"), "4:30 invalid endpoint `a`: port 0 cannot be dialled"),
        (with("198.51.100.7:8080", "203.0.113.10"), "5:13 endpoint 203.0.113.10:8080 is listed for syd too"),
        (with("source_peer: syd", "source_peer: sid"), "8:18 no peer is named `sid`"),
        (with("target_peer: fra", "target_peer: syd"), "9:18 source_peer and target_peer are the same"),
        (with("name: syd-to-fra", "name: a b"), "7:11 a service name is 1 to 63 of A-Z a-z 0-9 . _ -"),
        (with("    qos:", "    transport_type: udp\n    qos:"), "10:21 transport_type is tcp or kcp, not `udp`"),
        (with("    qos:", "    fully_transparent: true\n    qos:"), "10:5 fully_transparent needs an interface"),
        (with("    qos:", "    fully_transparent: yes\n    qos:"), "10:24 fully_transparent is true or false"),
        (
            with("    qos:", "    interface: {ipv4: 10.0.0.1/24}\n    qos:"),
            "10:17 `enabled` of an interface is missing",
        ),
        (
            with("    qos:", "    interface: {enabled: true, ipv4: \"fd00::1/64\"}\n    qos:"),
            "10:38 fd00::1/64 is not of IPv4",
        ),
        (with("1000", "-1"), "10:34 bandwidth_limit_mbps is a whole number from 0 to 400000"),
        (with("1000", "'5'"), "10:34 bandwidth_limit_mbps is a whole number from 0 to 400000"),
        (with("priority: 100", "priority: 65536"), "12:75 priority is a whole number from 0 to 65535"),
        (
            with("10.0.0.0/8", "10.1.2.3/8"),
            "12:24 invalid CIDR notation: `10.1.2.3/8` has host bits set (did you mean 10.0.0.0/8?)",
        ),
        (with("192.168.100.0/24", "\"fd00::/8\""), "12:36 10.0.0.0/8 and fd00::/8 are of different families"),
        (
            with("source_cidr: 10.0.0.0/8, dest_cidr: 192.168.100.0/24, ", ""),
            "12:11 a route needs source_cidr or dest_cidr",
        ),
        (with("203.0.113.10:8080", "${NOBODY}"), "4:30 ${NOBODY} is not set"),
        (with("203.0.113.10:8080", "${HOST"), "4:30 `${` without its `}`"),
        (with("peers:", "peers: {}\nx:"), "3:8 peers is a list"),
    ];
    for (text, expected) in cases {
        assert!(errors(&text).iter().any(|e| e == expected), "{expected}: {:#?}\n{text}", errors(&text));
    }
    let no_route = GOOD.split("    routes:").next().unwrap();
    assert_eq!(errors(no_route), ["7:5 a service needs interface.enabled: true or a route"]);
}

#[test]
fn suggestions_name_the_key_or_peer_that_was_meant() {
    let suggestion =
        |text: &str| read_text(text).unwrap_err().into_iter().find(Diagnostic::is_error).unwrap().suggestion.unwrap();
    assert_eq!(suggestion(&with("name: syd,", "nmae: x, name: syd,")), "did you mean name?");
    assert_eq!(suggestion(&with("target_peer: fra", "target_peer: fraa")), "did you mean fra?");
    assert_eq!(suggestion(&with("target_peer: fra", "target_peer: tokyo")), "listed: syd, fra");
    assert_eq!(suggestion(&with("source_cidr:", "src:")), "known: source_cidr, dest_cidr, priority");
    assert_eq!(suggestion(&with("name: syd,", "name: 12,")), "write it in quotes: \"12\"");
}

#[test]
fn all_findings_come_at_once_in_the_order_of_the_text() {
    let text = with("v1", "v9").replace("source_peer: syd", "source_peer: x").replace("10.0.0.0/8", "nonsense");
    let found = read_text(&text).unwrap_err();
    assert_eq!(found.iter().map(|d| d.place.line).collect::<Vec<_>>(), [1, 4, 8, 12], "{found:#?}");
}

#[test]
fn variables_stand_in_texts() {
    let (file, _) = read_text(&with("198.51.100.7:8080", "${HOST}:81")).unwrap();
    assert_eq!(file.peers[1].endpoints, ["fra.example:81".parse().unwrap()]);
}

#[test]
fn anchors_and_merged_maps_are_read_through() {
    let text = "version: v1\npeers: [{name: a, endpoints: [a]}, {name: b, endpoints: [b]}]\nservices:\n  - &base\n    name: one\n    \
                source_peer: a\n    target_peer: b\n    routes: &r [{dest_cidr: 10.0.0.0/8}]\n  - <<: *base\n    name: two\n    routes: *r\n    transport_type: kcp\n";
    let (file, _) = read_text(text).unwrap();
    assert_eq!((file.services[1].name.as_str(), &file.services[1].routes), ("two", &file.services[0].routes));
    assert_eq!(errors(&text.replace("<<: *base", "<<: 5")).len(), 3, "and what it would have given is missing");
}

#[test]
fn an_address_is_the_old_form_and_warned_of_beside_endpoints() {
    let alone = with("endpoints: [\"203.0.113.10:8080\"]", "address: 203.0.113.10");
    assert_eq!(read_text(&alone).unwrap().0.peers[0].endpoints, ["203.0.113.10:8080".parse().unwrap()]);
    let both = with("endpoints: [\"203", "address: x, endpoints: [\"203");
    let (_, warnings) = read_text(&both).unwrap();
    assert_eq!(warnings[0].message, "address is ignored beside endpoints");
}

#[test]
fn the_schema_has_every_field_and_no_other() {
    let schema = schema();
    let mut found = 0;
    for table in crate::compose::Table::ALL {
        let of = |value: &serde_json::Value| value["properties"].as_object().map(|p| p.len());
        let definitions = schema["$defs"].as_object().unwrap().values().chain([&schema]);
        found += usize::from(definitions.filter_map(of).any(|n| n == table.fields().len()));
    }
    assert_eq!(found, crate::compose::Table::ALL.len());
    assert_eq!(schema["properties"]["peers"]["items"]["$ref"], "#/$defs/peer");
}
