//! From the tree to the model: types, required fields, and the rules of compose.md §1. Finds everything that is wrong.

use super::{
    diagnostic::{Diagnostic, Place},
    fields::{Field, Kind, Table},
    model::{ClusterFile, Interface, Peer, Route, Service},
    yaml::{Content, Document, Entry, Node},
};
use crate::model::{
    ApiAccess, Endpoint, Transport, default_priority, looks_like_id, nearest, parse_host_cidr, parse_route_cidr,
};
use ipnet::IpNet;
use std::collections::BTreeMap;

const NAME_MAX_CHARS: usize = 63;
const BANDWIDTH_MAX_MBPS: u64 = 400_000;
const ROUTES_PER_SERVICE_MAX: usize = 1000;
const ENDPOINTS_MAX: usize = 16;
/// Nodes that are read, those behind aliases counted each time.
const NODES_MAX: usize = 1_000_000;

/// How strictly a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rules {
    #[default]
    Full,
    /// A backup may hold what was live though no file may say it: a service without routes and interface.
    Backup,
}

/// Reads the model. `variable` gives the value of `${NAME}`.
///
/// # Errors
/// All findings in the order of the text, at least one of them an error.
pub fn read(
    document: &Document,
    rules: Rules,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(ClusterFile, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut reader = Reader { found: Vec::new(), variable, nodes: 0, rules };
    let file = reader.file(&document.root);
    let mut found = reader.found;
    found.sort_by_key(|d| d.place);
    match file {
        Some(file) if !found.iter().any(Diagnostic::is_error) => Ok((file, found)),
        _ => Err(found),
    }
}

struct Reader<'a> {
    found: Vec<Diagnostic>,
    variable: &'a dyn Fn(&str) -> Option<String>,
    nodes: usize,
    rules: Rules,
}

/// A value with the place it was written at.
#[derive(Clone)]
struct At<T> {
    value: T,
    place: Place,
}

/// The fields of one map by name.
struct Row<'n> {
    place: Place,
    fields: BTreeMap<&'static str, &'n Entry>,
}

impl Row<'_> {
    fn key_place(&self, name: &str) -> Place {
        self.fields.get(name).and_then(|e| e.key.as_ref()).map_or(self.place, |key| key.place)
    }
}

/// A service with the places that later checks need.
struct ReadService {
    service: Service,
    name: Place,
    source: Place,
    target: Place,
}

impl Reader<'_> {
    fn error(&mut self, place: Place, text: impl Into<String>) {
        self.found.push(Diagnostic::error(place, text));
    }

    fn file(&mut self, root: &Node) -> Option<ClusterFile> {
        let row = self.row(root, Table::Root)?;
        if let Some(version) = self.text(&row, "version")
            && version.value != "v1"
        {
            let text = format!("version `{}` is not known here", version.value);
            self.found.push(Diagnostic::error(version.place, text).suggest(Some("write version: v1")));
        }
        let license = self.text(&row, "license").map(|t| t.value);
        let peers = self.items(&row, "peers");
        if peers.is_empty() && row.fields.contains_key("peers") {
            self.error(row.key_place("peers"), "a file lists at least one peer");
        }
        let mut names: BTreeMap<String, Place> = BTreeMap::new();
        let mut read_peers = Vec::with_capacity(peers.len());
        for node in peers {
            if let Some((peer, place)) = self.peer(node) {
                self.unique(&mut names, "peer", &peer.name, place);
                read_peers.push((peer, place));
            }
        }
        self.check_endpoints(&read_peers);
        let services: Vec<ReadService> =
            self.items(&row, "services").into_iter().filter_map(|node| self.service(node)).collect();
        let mut service_names = BTreeMap::new();
        for read in &services {
            self.unique(&mut service_names, "service", &read.service.name, read.name);
        }
        let peers: Vec<Peer> = read_peers.iter().map(|(peer, _)| peer.clone()).collect();
        let services = services.into_iter().map(|read| self.resolve(read, &peers)).collect();
        self.warn_of_same_routes(&services, row.key_place("services"));
        self.warn_of_idle_peers(&read_peers, &services);
        Some(ClusterFile { license, peers, services })
    }

    fn unique(&mut self, names: &mut BTreeMap<String, Place>, what: &str, name: &str, place: Place) {
        if let Some(first) = names.insert(name.to_lowercase(), place) {
            let text = format!("a second {what} is named `{name}`");
            let first = format!("the first one is in line {}", first.line);
            self.found.push(Diagnostic::error(place, text).suggest(Some(first)));
        }
    }

    fn peer(&mut self, node: &Node) -> Option<(Peer, Place)> {
        let row = self.row(node, Table::Peer)?;
        let name = self.text(&row, "name");
        if let Some(name) = &name {
            self.check_name(name);
        }
        let listed = self.endpoints(&row);
        let address = self.text(&row, "address");
        let endpoints = match (listed, address) {
            (Some(list), Some(address)) => {
                self.found.push(Diagnostic::warning(address.place, "address is ignored beside endpoints"));
                list
            }
            (Some(list), None) => list,
            (None, Some(address)) => self.endpoint(&address).into_iter().collect(),
            (None, None) => {
                if !row.fields.contains_key("endpoints") && !row.fields.contains_key("address") {
                    self.error(row.place, "a peer needs endpoints, or address");
                }
                Vec::new()
            }
        };
        let qos_enabled = self.flag(&row, "qos_enabled").unwrap_or(true);
        let api_access = self.text(&row, "api_access").and_then(|t| self.access(&t));
        let name = name?;
        let peer = Peer { name: name.value, endpoints, qos_enabled, api_access };
        Some((peer, name.place))
    }

    fn access(&mut self, text: &At<String>) -> Option<ApiAccess> {
        match text.value.as_str() {
            "public" => Some(ApiAccess::Public),
            "internal" => Some(ApiAccess::Internal),
            other => {
                self.word(text.place, "api_access", other, &["public", "internal"]);
                None
            }
        }
    }

    fn word(&mut self, place: Place, field: &str, given: &str, known: &[&'static str]) {
        let text = format!("{field} is {}, not `{given}`", known.join(" or "));
        let near = nearest(given, known.iter().copied()).map(|near| format!("did you mean {near}?"));
        self.found.push(Diagnostic::error(place, text).suggest(near));
    }

    fn endpoints(&mut self, row: &Row<'_>) -> Option<Vec<Endpoint>> {
        let entry = row.fields.get("endpoints")?;
        let Content::List(list) = &entry.value.resolved().content else {
            self.error(entry.value.place, "endpoints is a list: [\"HOST:PORT\"]");
            return None;
        };
        if list.entries.is_empty() || list.entries.len() > ENDPOINTS_MAX {
            self.error(entry.value.place, format!("endpoints has 1 to {ENDPOINTS_MAX} entries"));
        }
        let mut endpoints = Vec::new();
        for item in list.entries.iter().take(ENDPOINTS_MAX) {
            let text = self.scalar_text(&item.value, "an endpoint");
            let Some(endpoint) = text.and_then(|t| self.endpoint(&t)) else { continue };
            if endpoints.contains(&endpoint) {
                self.found.push(Diagnostic::warning(item.value.place, format!("{endpoint} is listed twice")));
            } else {
                endpoints.push(endpoint);
            }
        }
        Some(endpoints)
    }

    fn endpoint(&mut self, text: &At<String>) -> Option<Endpoint> {
        match text.value.parse::<Endpoint>() {
            Ok(endpoint) => {
                if endpoint.host() == "localhost" || endpoint.ip().is_some_and(|ip| ip.is_loopback()) {
                    let warning = format!("{endpoint} is reached from this host alone");
                    self.found.push(Diagnostic::warning(text.place, warning));
                }
                Some(endpoint)
            }
            Err(e) => {
                self.error(text.place, e.to_string());
                None
            }
        }
    }

    fn check_endpoints(&mut self, peers: &[(Peer, Place)]) {
        let mut owners: BTreeMap<&Endpoint, &str> = BTreeMap::new();
        for (peer, place) in peers {
            for endpoint in &peer.endpoints {
                if let Some(other) = owners.insert(endpoint, &peer.name)
                    && other != peer.name
                {
                    let text = format!("endpoint {endpoint} is listed for {other} too");
                    self.found.push(Diagnostic::error(*place, text));
                }
            }
        }
    }

    fn check_name(&mut self, name: &At<String>) {
        let (text, length) = (&name.value, name.value.chars().count());
        if length == 0 || length > NAME_MAX_CHARS || text.trim() != text || text.chars().any(char::is_control) {
            self.error(name.place, format!("a name has 1 to {NAME_MAX_CHARS} characters"));
        } else if looks_like_id(text) {
            self.error(name.place, format!("name `{text}` looks like an id"));
        }
    }

    fn service(&mut self, node: &Node) -> Option<ReadService> {
        let row = self.row(node, Table::Service)?;
        let (name, source, target) =
            (self.text(&row, "name"), self.text(&row, "source_peer"), self.text(&row, "target_peer"));
        if let Some(name) = &name {
            self.check_service_name(name);
        }
        let transport = match self.text(&row, "transport_type") {
            None => Transport::default(),
            Some(text) => text.value.parse().unwrap_or_else(|_| {
                self.word(text.place, "transport_type", &text.value, &["tcp", "kcp"]);
                Transport::default()
            }),
        };
        let fully_transparent = self.flag(&row, "fully_transparent").unwrap_or(false);
        let interface = row.fields.get("interface").and_then(|e| self.interface(&e.value));
        let bandwidth_limit_mbps = row.fields.get("qos").and_then(|e| self.limit(&e.value)).unwrap_or(0);
        let routes = self.routes(&row);
        if fully_transparent && interface.is_none() {
            let text = "fully_transparent needs an interface";
            let fix = Some("add interface: { enabled: true }");
            self.found.push(Diagnostic::error(row.key_place("fully_transparent"), text).suggest(fix));
        }
        if fully_transparent && transport == Transport::Kcp {
            self.error(row.key_place("transport_type"), "fully_transparent needs transport_type tcp");
        }
        if interface.is_none() && routes.is_empty() && self.rules == Rules::Full && !row.fields.contains_key("routes") {
            self.error(row.place, "a service needs interface.enabled: true or a route");
        }
        let (name, source, target) = (name?, source?, target?);
        let service = Service {
            name: name.value,
            source_peer: source.value,
            target_peer: target.value,
            transport,
            fully_transparent,
            interface,
            bandwidth_limit_mbps,
            routes,
        };
        Some(ReadService { service, name: name.place, source: source.place, target: target.place })
    }

    fn check_service_name(&mut self, name: &At<String>) {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.value.is_empty() || name.value.len() > NAME_MAX_CHARS || !name.value.bytes().all(allowed) {
            self.error(name.place, format!("a service name is 1 to {NAME_MAX_CHARS} of A-Z a-z 0-9 . _ -"));
        } else {
            self.check_name(name);
        }
    }

    /// The names of peers, in the spelling of the list of peers.
    fn resolve(&mut self, read: ReadService, peers: &[Peer]) -> Service {
        let ReadService { mut service, source, target, .. } = read;
        service.source_peer = self.known_peer(service.source_peer, source, peers);
        service.target_peer = self.known_peer(service.target_peer, target, peers);
        if service.source_peer == service.target_peer {
            self.error(target, "source_peer and target_peer are the same");
        }
        service
    }

    fn known_peer(&mut self, name: String, place: Place, peers: &[Peer]) -> String {
        if let Some(peer) = peers.iter().find(|p| p.name.eq_ignore_ascii_case(&name)) {
            return peer.name.clone();
        }
        let near = nearest(&name, peers.iter().map(|p| p.name.as_str())).map(|near| format!("did you mean {near}?"));
        let listed = near.or_else(|| {
            (!peers.is_empty())
                .then(|| format!("listed: {}", peers.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")))
        });
        self.found.push(Diagnostic::error(place, format!("no peer is named `{name}`")).suggest(listed));
        name
    }

    fn interface(&mut self, node: &Node) -> Option<Interface> {
        let row = self.row(node, Table::Interface)?;
        let enabled = self.flag(&row, "enabled").unwrap_or(false);
        let ipv4 = self.host_cidr(&row, "ipv4", true);
        let ipv6 = self.host_cidr(&row, "ipv6", false);
        if !enabled && (ipv4.is_some() || ipv6.is_some()) && row.fields.contains_key("enabled") {
            self.error(row.key_place("enabled"), "an address needs enabled: true");
        }
        enabled.then_some(Interface { ipv4, ipv6 })
    }

    fn host_cidr(&mut self, row: &Row<'_>, field: &'static str, v4: bool) -> Option<IpNet> {
        let text = self.text(row, field)?;
        match parse_host_cidr(&text.value) {
            Ok(net) if net.addr().is_ipv4() == v4 => Some(net),
            Ok(net) => {
                self.error(text.place, format!("{net} is not of {}", if v4 { "IPv4" } else { "IPv6" }));
                None
            }
            Err(e) => {
                self.error(text.place, e.to_string());
                None
            }
        }
    }

    fn limit(&mut self, node: &Node) -> Option<u32> {
        let row = self.row(node, Table::Qos)?;
        self.integer(&row, "bandwidth_limit_mbps", BANDWIDTH_MAX_MBPS)
    }

    fn routes(&mut self, row: &Row<'_>) -> Vec<Route> {
        let nodes = self.items(row, "routes");
        if nodes.is_empty() && row.fields.contains_key("routes") && self.rules == Rules::Full {
            self.found.push(Diagnostic::warning(row.key_place("routes"), "the service has no route"));
        }
        if nodes.len() > ROUTES_PER_SERVICE_MAX {
            let text = format!("a service has at most {ROUTES_PER_SERVICE_MAX} routes");
            self.error(row.key_place("routes"), text);
            return Vec::new();
        }
        let mut routes: Vec<Route> = Vec::with_capacity(nodes.len());
        for node in nodes {
            let Some(route) = self.route(node) else { continue };
            if routes.iter().any(|r| (r.source, r.dest) == (route.source, route.dest)) {
                self.error(node.place, format!("route {} is listed twice", route.words()));
            } else {
                routes.push(route);
            }
        }
        routes
    }

    fn route(&mut self, node: &Node) -> Option<Route> {
        let row = self.row(node, Table::Route)?;
        let (source, dest) = (self.route_cidr(&row, "source_cidr"), self.route_cidr(&row, "dest_cidr"));
        let priority = self.integer(&row, "priority", u16::MAX.into()).and_then(|p| u16::try_from(p).ok());
        let given = |name: &str| row.fields.contains_key(name);
        match (source, dest) {
            (None, None) if !given("source_cidr") && !given("dest_cidr") => {
                self.error(row.place, "a route needs source_cidr or dest_cidr");
            }
            (Some(s), Some(d)) if s.addr().is_ipv4() != d.addr().is_ipv4() => {
                self.error(row.key_place("dest_cidr"), format!("{s} and {d} are of different families"));
            }
            _ => {}
        }
        Some(Route { source, dest, priority: priority.unwrap_or_else(default_priority) })
    }

    fn route_cidr(&mut self, row: &Row<'_>, field: &'static str) -> Option<IpNet> {
        let text = self.text(row, field)?;
        match parse_route_cidr(&text.value) {
            Ok(net) => Some(net),
            Err(e) => {
                self.error(text.place, e.to_string());
                None
            }
        }
    }

    fn warn_of_same_routes(&mut self, services: &Vec<Service>, place: Place) {
        let mut owners: BTreeMap<(&str, Option<IpNet>, Option<IpNet>), &str> = BTreeMap::new();
        for service in services {
            for route in &service.routes {
                let key = (service.source_peer.as_str(), route.source, route.dest);
                if let Some(other) = owners.insert(key, &service.name) {
                    let text = format!("services {other} and {} both route {}", service.name, route.words());
                    self.found.push(Diagnostic::warning(place, text));
                }
            }
        }
    }

    fn warn_of_idle_peers(&mut self, peers: &[(Peer, Place)], services: &[Service]) {
        if services.is_empty() {
            return;
        }
        for (peer, place) in peers {
            if !services.iter().any(|s| s.source_peer == peer.name || s.target_peer == peer.name) {
                self.found.push(Diagnostic::warning(*place, format!("no service uses peer {}", peer.name)));
            }
        }
    }
}

/// Types: what a node must be.
impl Reader<'_> {
    fn row<'n>(&mut self, node: &'n Node, table: Table) -> Option<Row<'n>> {
        self.count(node)?;
        let Content::Map(map) = &node.resolved().content else {
            self.error(node.place, format!("{} is a map of fields", table.words()));
            return None;
        };
        let mut row = Row { place: node.place, fields: BTreeMap::new() };
        if let Some(first) = map.entries.first().and_then(|e| e.key.as_ref()) {
            row.place = first.place;
        }
        for entry in &map.entries {
            match table.field(entry.key_text()) {
                Some(field) => drop(row.fields.insert(field.name, entry)),
                None if entry.key_text() == "<<" => {}
                None => self.unknown_key(entry, table),
            }
        }
        for entry in map.entries.iter().filter(|e| e.key_text() == "<<") {
            self.merge(&mut row, entry, table);
        }
        for field in table.fields().iter().filter(|f| f.required) {
            self.require(&row, field, table);
        }
        Some(row)
    }

    fn require(&mut self, row: &Row<'_>, field: &Field, table: Table) {
        if !row.fields.contains_key(field.name) {
            self.error(row.place, format!("`{}` of {} is missing", field.name, table.words()));
        }
    }

    /// `<<: *anchor` fills in what the map itself does not say.
    fn merge<'n>(&mut self, row: &mut Row<'n>, entry: &'n Entry, table: Table) {
        let Content::Map(base) = &entry.value.resolved().content else {
            self.error(entry.value.place, "<< takes an alias of a map");
            return;
        };
        for inherited in &base.entries {
            match table.field(inherited.key_text()) {
                Some(field) => drop(row.fields.entry(field.name).or_insert(inherited)),
                None => self.unknown_key(inherited, table),
            }
        }
    }

    fn unknown_key(&mut self, entry: &Entry, table: Table) {
        let Some(key) = &entry.key else { return };
        let known: Vec<&str> = table.fields().iter().map(|f| f.name).collect();
        let near = nearest(&key.scalar.text, known.iter().copied()).map(|near| format!("did you mean {near}?"));
        let suggestion = near.unwrap_or_else(|| format!("known: {}", known.join(", ")));
        let text = format!("unknown key `{}` of {}", key.scalar.text, table.words());
        self.found.push(Diagnostic::error(key.place, text).suggest(Some(suggestion)));
    }

    fn count(&mut self, node: &Node) -> Option<()> {
        self.nodes += 1;
        if self.nodes == NODES_MAX {
            self.error(node.place, format!("with its aliases the file has more than {NODES_MAX} values"));
        }
        (self.nodes < NODES_MAX).then_some(())
    }

    fn items<'n>(&mut self, row: &Row<'n>, field: &'static str) -> Vec<&'n Node> {
        let Some(entry) = row.fields.get(field) else { return Vec::new() };
        match &entry.value.resolved().content {
            Content::List(list) => list.entries.iter().map(|e| &e.value).collect(),
            _ => {
                self.error(entry.value.place, format!("{field} is a list"));
                Vec::new()
            }
        }
    }

    fn text(&mut self, row: &Row<'_>, field: &'static str) -> Option<At<String>> {
        let entry = row.fields.get(field)?;
        self.scalar_text(&entry.value, field)
    }

    /// A text with its `${NAME}` replaced. A plain scalar that reads as something else has to be quoted.
    fn scalar_text(&mut self, node: &Node, what: &str) -> Option<At<String>> {
        self.count(node)?;
        let Content::Scalar(scalar) = &node.resolved().content else {
            self.error(node.place, format!("{what} is a text"));
            return None;
        };
        if scalar.plain && is_no_text(&scalar.text) {
            let fix = match scalar.text.as_str() {
                "" | "~" | "null" => None,
                text => Some(format!("write it in quotes: \"{text}\"")),
            };
            self.found.push(Diagnostic::error(node.place, format!("{what} is a text")).suggest(fix));
            return None;
        }
        let value = self.substituted(&scalar.text, node.place)?;
        Some(At { value, place: node.place })
    }

    fn substituted(&mut self, text: &str, place: Place) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            out.push_str(before);
            let Some((name, behind)) = after.split_once('}') else {
                self.error(place, "`${` without its `}`");
                return None;
            };
            match (is_variable_name(name), (self.variable)(name)) {
                (true, Some(value)) => out.push_str(&value),
                (true, None) => {
                    let fix = Some(format!("set it in the environment, or in a file for --env-file: {name}=…"));
                    self.found.push(Diagnostic::error(place, format!("${{{name}}} is not set")).suggest(fix));
                    return None;
                }
                (false, _) => {
                    self.error(place, format!("`{name}` is not the name of a variable"));
                    return None;
                }
            }
            rest = behind;
        }
        out.push_str(rest);
        Some(out)
    }

    fn flag(&mut self, row: &Row<'_>, field: &'static str) -> Option<bool> {
        let node = &row.fields.get(field)?.value;
        let value = match &node.resolved().content {
            Content::Scalar(s) if s.plain => match s.text.as_str() {
                "true" | "True" | "TRUE" => Some(true),
                "false" | "False" | "FALSE" => Some(false),
                _ => None,
            },
            _ => None,
        };
        if value.is_none() {
            self.error(node.place, format!("{field} is true or false"));
        }
        value
    }

    fn integer(&mut self, row: &Row<'_>, field: &'static str, max: u64) -> Option<u32> {
        let node = &row.fields.get(field)?.value;
        let parsed = match &node.resolved().content {
            Content::Scalar(s) if s.plain && s.text.bytes().all(|b| b.is_ascii_digit()) => s.text.parse::<u64>().ok(),
            _ => None,
        };
        let value = parsed.filter(|n| *n <= max).and_then(|n| u32::try_from(n).ok());
        if value.is_none() {
            self.error(node.place, format!("{field} is a whole number from 0 to {max}"));
        }
        value
    }
}

/// Whether YAML reads this plain scalar as nothing, a boolean or a number.
fn is_no_text(text: &str) -> bool {
    let word =
        matches!(text, "" | "~" | "null" | "Null" | "NULL" | "true" | "True" | "TRUE" | "false" | "False" | "FALSE");
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    word || (numeric && (text.parse::<f64>().is_ok() || text.starts_with("0x") || text.starts_with("0o")))
}

fn is_variable_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The kinds of fields for which [`Reader`] and the schema must agree.
pub(super) fn number_max(kind: Kind) -> Option<u64> {
    match kind {
        Kind::Rate => Some(BANDWIDTH_MAX_MBPS),
        Kind::Priority => Some(u16::MAX.into()),
        _ => None,
    }
}
