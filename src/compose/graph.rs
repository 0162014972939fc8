//! The topology of a file, for Graphviz and Mermaid.

use super::model::{ClusterFile, Service};
use std::fmt::Write;

pub fn dot(file: &ClusterFile) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out = String::from("digraph cluster {\n  rankdir=LR;\n  node [shape=box];\n");
    for peer in &file.peers {
        let _ = writeln!(out, "  {};", quoted(&peer.name));
    }
    for service in &file.services {
        let label = label(service, "\\n");
        let ends = format!("{} -> {}", quoted(&service.source_peer), quoted(&service.target_peer));
        let _ = writeln!(out, "  {ends} [label=\"{}\"];", label.replace('"', "\\\""));
    }
    out.push_str("}\n");
    out
}

pub fn mermaid(file: &ClusterFile) -> String {
    let node = |name: &str| file.peers.iter().position(|p| p.name == name).map_or("p".to_owned(), |i| format!("p{i}"));
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "#quot;"));
    let mut out = String::from("graph LR\n");
    for (i, peer) in file.peers.iter().enumerate() {
        let _ = writeln!(out, "  p{i}[{}]", quoted(&peer.name));
    }
    for service in &file.services {
        let (from, to) = (node(&service.source_peer), node(&service.target_peer));
        let _ = writeln!(out, "  {from} -->|{}| {to}", quoted(&label(service, "<br>")));
    }
    out
}

/// Name, transport, limit, then one line for each route, the first few of them.
fn label(service: &Service, line_break: &str) -> String {
    const ROUTES_SHOWN: usize = 4;
    let mut lines = vec![service.name.clone(), service.transport.to_string()];
    if service.bandwidth_limit_mbps > 0 {
        lines.push(format!("{} Mbit/s", service.bandwidth_limit_mbps));
    }
    lines.extend(service.routes.iter().take(ROUTES_SHOWN).map(|r| r.words()));
    if service.routes.len() > ROUTES_SHOWN {
        lines.push(format!("and {} more routes", service.routes.len() - ROUTES_SHOWN));
    }
    lines.join(line_break)
}
