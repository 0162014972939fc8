//! The live state as a cluster file: exported and applied again it changes nothing.

use super::{
    layout::{format, text_scalar},
    live::{Live, LivePeer, LiveRoute, LiveService},
    yaml::parse,
};
use crate::model::{ApiAccess, PeerId, Transport};
use std::{collections::BTreeMap, fmt::Write};

/// What an editor needs to check the file while it is written; `arctic compose schema` makes the schema.
pub const SCHEMA_LINE: &str = "# yaml-language-server: $schema=cluster.schema.json";

/// A file and what it could not say.
pub struct Export {
    pub text: String,
    pub warnings: Vec<String>,
}

/// The whole live state. With `whole` also what no file may say: services with neither routes nor interface.
pub fn export(live: &Live, comments: &[String], whole: bool) -> Export {
    let mut warnings = Vec::new();
    let names = unique_names(live, &mut warnings);
    let mut text = String::new();
    for comment in comments {
        let _ = writeln!(text, "{comment}");
    }
    text.push_str("\nversion: v1\n\npeers:");
    text.push_str(if live.peers.is_empty() { " []\n" } else { "\n" });
    for peer in &live.peers {
        write_peer(&mut text, peer, &names, &mut warnings);
    }
    let mut services = String::new();
    let mut taken: Vec<String> = Vec::new();
    for service in &live.services {
        let (Some(source), Some(target)) = (names.get(&service.source), names.get(&service.target)) else {
            warnings.push(format!("service {} is left out: one of its peers has left the cluster", service.name));
            continue;
        };
        if service.routes.is_empty() && !service.requires_interface && !whole {
            warnings.push(format!("service {} is left out: it has neither routes nor an interface", service.name));
            continue;
        }
        let name = free_name(&service.name, &taken);
        if name != service.name {
            warnings.push(format!("two services are named {}: one is called {name} here", service.name));
        }
        taken.push(name.to_lowercase());
        write_service(&mut services, service, [&name, source, target]);
    }
    if !services.is_empty() {
        let _ = write!(text, "\nservices:\n{services}");
    }
    // What was just written is YAML.
    let text = parse(&text).map_or(text, |document| format(&document));
    Export { text, warnings }
}

fn unique_names(live: &Live, warnings: &mut Vec<String>) -> BTreeMap<PeerId, String> {
    let mut taken: Vec<String> = Vec::new();
    let mut names = BTreeMap::new();
    for peer in &live.peers {
        let name = free_name(&peer.name, &taken);
        if name != peer.name {
            let text = format!("two peers are named {}: {} is called {name} here", peer.name, peer.id);
            warnings.push(text);
        }
        taken.push(name.to_lowercase());
        names.insert(peer.id, name);
    }
    names
}

/// The name, with a number where that is taken.
fn free_name(name: &str, taken: &[String]) -> String {
    let numbered = (2..=taken.len() + 2).map(|n| format!("{name}-{n}"));
    let mut all = std::iter::once(name.to_owned()).chain(numbered);
    all.find(|n| !taken.contains(&n.to_lowercase())).unwrap_or_else(|| name.to_owned())
}

fn write_peer(text: &mut String, peer: &LivePeer, names: &BTreeMap<PeerId, String>, warnings: &mut Vec<String>) {
    let name = names.get(&peer.id).unwrap_or(&peer.name);
    let endpoints: Vec<String> =
        peer.endpoints.iter().map(|e| text_scalar(&e.to_string())).map(quoted_for_flow).collect();
    if endpoints.is_empty() {
        warnings.push(format!("no endpoint of peer {name} is known: add it to the file"));
    }
    let _ = writeln!(text, "  - name: {}\n    endpoints: [{}]", text_scalar(name), endpoints.join(", "));
    if !peer.qos_enabled {
        text.push_str("    qos_enabled: false\n");
    }
    if peer.api_access == Some(ApiAccess::Internal) {
        text.push_str("    api_access: internal\n");
    }
    if peer.views.values().any(|v| v.name != peer.name) {
        warnings.push(format!("not all members call peer {} so: applying this file makes them", peer.name));
    }
    let others = peer.views.iter().filter(|(viewer, _)| **viewer != peer.id);
    if others.into_iter().any(|(_, v)| v.qos_enabled != peer.qos_enabled) {
        warnings.push(format!("members differ in the qos of peer {}: applying this file makes them agree", peer.name));
    }
}

/// An IPv6 endpoint has brackets, which a flow list would take for its own.
fn quoted_for_flow(scalar: String) -> String {
    if scalar.starts_with('"') || !scalar.contains(['[', ']', ',', '{', '}']) {
        scalar
    } else {
        format!("\"{scalar}\"")
    }
}

fn write_service(text: &mut String, service: &LiveService, [name, source, target]: [&String; 3]) {
    let scalar = |t: &str| text_scalar(t);
    let _ = writeln!(text, "  - name: {}", scalar(name));
    let _ = writeln!(text, "    source_peer: {}\n    target_peer: {}", scalar(source), scalar(target));
    if service.transport != Transport::default() {
        let _ = writeln!(text, "    transport_type: {}", service.transport);
    }
    if service.fully_transparent {
        text.push_str("    fully_transparent: true\n");
    }
    if service.requires_interface {
        text.push_str("    interface:\n      enabled: true\n");
        for (key, net) in [("ipv4", service.ipv4), ("ipv6", service.ipv6)] {
            if let Some(net) = net {
                let _ = writeln!(text, "      {key}: {}", scalar(&net.to_string()));
            }
        }
    }
    if service.bandwidth_limit_mbps > 0 {
        let _ = writeln!(text, "    qos: {{ bandwidth_limit_mbps: {} }}", service.bandwidth_limit_mbps);
    }
    if !service.routes.is_empty() {
        text.push_str("    routes:\n");
    }
    for route in &service.routes {
        write_route(text, route);
    }
}

fn write_route(text: &mut String, route: &LiveRoute) {
    let mut fields = Vec::new();
    for (key, net) in [("source_cidr", route.source), ("dest_cidr", route.dest)] {
        fields.extend(net.map(|net| format!("{key}: {}", text_scalar(&net.to_string()))));
    }
    fields.push(format!("priority: {}", route.priority));
    let _ = writeln!(text, "      - {{ {} }}", fields.join(", "));
}
