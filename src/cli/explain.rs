//! `arctic explain FIELD`: what a field of the API, the cluster file or the config file means.

use super::{
    args::Globals,
    config::Preferences,
    errors::{CliError, nearest},
    output::{Column, Noun, cell_plain, render_list},
    session::{self, print},
};
use crate::compose::Table;
use serde_json::{Value, json};

const FIELD: Noun = Noun {
    keys: &["field", "of", "meaning"],
    columns: &[
        Column::new("FIELD", "field", cell_plain),
        Column::new("OF", "of", cell_plain),
        Column::new("MEANING", "meaning", cell_plain),
    ],
};

const PEER: &[(&str, &str)] = &[
    ("id", "Unique id; its name or a beginning will do as an argument"),
    ("name", "Name that the called agent gives the peer; other members may use another"),
    ("self_name", "Name that the peer gives itself"),
    ("public_key", "Ed25519 key of the peer, base64"),
    ("is_local", "Whether it is the peer of the called agent"),
    ("endpoints", "Addresses of its API, in the order they are tried"),
    ("address", "The first of its endpoints"),
    ("qos_enabled", "Whether traffic to this peer is shaped, as the called agent does it"),
    ("api_access", "Who may call it: public or internal; decided on its own host"),
    ("status", "discovered, handshaking, healthy, unhealthy or unreachable"),
    ("last_seen", "Time of its last heartbeat"),
    ("rtt_ms", "Round trip of heartbeats in milliseconds"),
    ("version", "Version of its agent"),
    ("license_id", "Id of its license"),
    ("license_state", "State of its license"),
    ("created_at", "When it became known"),
];

const SERVICE: &[(&str, &str)] = &[
    ("id", "Unique id; its first 15 characters name its interface"),
    ("name", "Unique name, 1 to 63 of A-Z a-z 0-9 . _ -"),
    ("source_peer_id", "Peer where the traffic enters; it owns the service"),
    ("target_peer_id", "Peer where the traffic leaves"),
    ("transport_type", "What carries TCP flows: tcp, or kcp over UDP for paths with loss"),
    ("effective_transport", "What carries them now; differs only with a failed condition"),
    ("requires_interface", "Whether it has an interface of its own (MACVLAN)"),
    ("desired_ipv4_cidr", "IPv4 address of that interface with its prefix"),
    ("desired_ipv6_cidr", "IPv6 address of that interface with its prefix"),
    ("bandwidth_limit_mbps", "Limit in Mbit/s, 0 is unlimited"),
    ("fully_transparent", "Whether the destination sees the client's own address; TCP only"),
    ("state", "active: it carries what its routes take; inactive: a condition says why not"),
    ("interface_name", "Its interface"),
    ("interface_mac", "Hardware address of its interface"),
    ("fwmark", "Mark that its packets carry inside of the host"),
    ("route_count", "How many routes it has"),
    ("conditions", "What each reconciler made of it: applied, pending or failed, and why"),
    ("version", "Counts its changes; If-Match refuses a change of another version"),
    ("created_at", "When it was created"),
    ("updated_at", "When it was last changed"),
];

const ROUTE: &[(&str, &str)] = &[
    ("id", "Number in its service, never used again"),
    ("source_cidr", "Traffic from this network; none means any source"),
    ("dest_cidr", "Traffic to this network; none means any destination"),
    ("priority", "0 to 65535; among equally specific routes the higher value wins"),
    ("version", "Version of the service when it was last changed"),
];

const LICENSE: &[(&str, &str)] = &[
    ("state", "active, warning, grace_period, read_only or suspended"),
    ("expires_at", "When the license ends; warnings begin before, restrictions after"),
    ("grace_ends_at", "From then on changes are refused"),
    ("read_only_ends_at", "From then on services stop"),
    ("days_left", "Whole days until it ends"),
    ("clock_suspect", "Whether the host's clock jumped ahead, so that time is counted otherwise"),
    ("nodes", "Peers in use and allowed"),
    ("services", "Services in use and allowed"),
    ("features", "What the license includes"),
];

const CONFIG: &[(&str, &str)] = &[
    ("current_cluster", "Cluster that commands go to"),
    ("default_peer", "Peer that is asked first; empty: the first one listed"),
    ("output_format", "table, json or yaml"),
    ("timeout", "Longest wait for an answer in seconds"),
    ("cache_ttl", "Seconds until completions are called stale"),
    ("backup_retention", "Backups of compose that are kept"),
    ("color", "Whether errors have colour on a terminal"),
];

/// Every field that is known: name, what it belongs to, meaning.
fn all() -> Vec<(String, &'static str, String)> {
    let api = [("peer", PEER), ("service", SERVICE), ("route", ROUTE), ("license", LICENSE), ("config", CONFIG)];
    let mut all: Vec<(String, &'static str, String)> = Vec::new();
    for (of, fields) in api {
        all.extend(fields.iter().map(|(name, about)| ((*name).to_owned(), of, (*about).to_owned())));
    }
    for table in Table::ALL {
        let of = match table {
            Table::Root => "compose file",
            Table::Peer => "compose peer",
            Table::Service => "compose service",
            Table::Interface => "compose interface",
            Table::Qos => "compose qos",
            Table::Route => "compose route",
        };
        all.extend(table.fields().iter().map(|f| (f.name.to_owned(), of, f.about.to_owned())));
    }
    all
}

/// `FIELD`, `OBJECT.FIELD`, or an object for all of its fields.
pub fn run(globals: &Globals, wanted: &str) -> Result<(), CliError> {
    let wanted = wanted.to_lowercase();
    let all = all();
    let fits = |(name, of, _): &&(String, &'static str, String)| match wanted.rsplit_once('.') {
        Some((object, field)) => name == field && of.ends_with(object.trim_end_matches('s')),
        None => *name == wanted || *of == wanted || format!("{of}s") == wanted,
    };
    let found: Vec<Value> =
        all.iter().filter(fits).map(|(name, of, about)| json!({"field": name, "of": of, "meaning": about})).collect();
    if found.is_empty() {
        let error = CliError::not_found(format!("no field is called `{wanted}`"));
        let names = all.iter().map(|(name, _, _)| name.as_str());
        return Err(match nearest(&wanted, names) {
            Some(near) => error.with_hint(format!("did you mean {near}?")),
            None => error.with_hint("arctic explain peer, service, route, license or config"),
        });
    }
    let (view, _) = session::output_of(globals, &Preferences::default())?;
    print(&render_list(&FIELD, found, &view)?);
    Ok(())
}
