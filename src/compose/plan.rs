//! What has to change so that the cluster is as the file says (compose.md §3). Equal inputs give equal plans.

use super::{
    live::{Contact, Live, LivePeer, LiveRoute, LiveService},
    model::{ClusterFile, Interface, Peer, Route, Service, route_words},
};
use crate::model::{ApiAccess, PeerId, RouteId, ServiceId};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Symbol {
    #[serde(rename = "+")]
    Create,
    #[serde(rename = "~")]
    Change,
    #[serde(rename = "-")]
    Delete,
    #[serde(rename = "-/+")]
    Replace,
    #[serde(rename = "=")]
    Keep,
}

impl Symbol {
    pub fn text(self) -> &'static str {
        match self {
            Symbol::Create => "+",
            Symbol::Change => "~",
            Symbol::Delete => "-",
            Symbol::Replace => "-/+",
            Symbol::Keep => "=",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
}

/// One line of the plan with what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub symbol: Symbol,
    /// `peer` or `service`.
    pub kind: &'static str,
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    pub fields: Vec<FieldChange>,
    pub routes: Vec<RouteChange>,
    /// Names of the peers that are touched.
    pub peers: Vec<String>,
    /// Whether connections that run through it end.
    pub cuts_flows: bool,
    /// A command that would do what compose does not.
    pub command: Option<String>,
    #[serde(skip)]
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    pub field: String,
    pub old: Value,
    pub new: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteChange {
    pub symbol: Symbol,
    pub source_cidr: Option<IpNet>,
    pub dest_cidr: Option<IpNet>,
    /// The priority there is, if the route is live.
    pub old_priority: Option<u16>,
    pub priority: u16,
    pub id: Option<RouteId>,
    #[serde(skip)]
    pub version: u64,
}

impl RouteChange {
    pub fn words(&self) -> String {
        route_words(self.source_cidr, self.dest_cidr)
    }
}

/// What carries a change out; `steps` puts actions in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Nothing,
    /// A peer joins, after its bootstrap where it needs one.
    Join {
        bootstrap: bool,
    },
    /// Names and QoS on these listed members.
    Views {
        viewers: Vec<String>,
    },
    Create,
    /// `body` is empty if only routes change.
    Update {
        id: ServiceId,
        version: u64,
        body: Map<String, Value>,
    },
    Delete {
        id: ServiceId,
        version: u64,
    },
    Replace {
        id: ServiceId,
        version: u64,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub add: usize,
    pub change: usize,
    pub delete: usize,
}

impl Plan {
    pub fn counts(&self) -> Counts {
        let count = |symbols: &[Symbol]| self.changes.iter().filter(|c| symbols.contains(&c.symbol)).count();
        Counts {
            add: count(&[Symbol::Create, Symbol::Replace]),
            change: count(&[Symbol::Change]),
            delete: count(&[Symbol::Delete, Symbol::Replace]),
        }
    }
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.iter().all(|c| c.symbol == Symbol::Keep)
    }
    /// `Plan: 2 to add, 1 to change, 0 to delete`.
    pub fn summary(&self) -> String {
        let Counts { add, change, delete } = self.counts();
        format!("Plan: {add} to add, {change} to change, {delete} to delete")
    }
}

/// `contacts` has one entry for each peer of the file, in its order.
pub fn plan(file: &ClusterFile, live: &Live, contacts: &[Contact], prune: bool) -> Plan {
    let matched: Vec<Option<&LivePeer>> =
        file.peers.iter().zip(contacts).map(|(peer, contact)| find_peer(peer, *contact, live)).collect();
    let planning = Planning { file, live, contacts, matched, prune };
    let mut warnings = Vec::new();
    let mut changes = planning.peers(&mut warnings);
    changes.extend(planning.services());
    Plan { changes, warnings }
}

/// Whether a live service is meant by one of the file.
type Fits<'f> = &'f dyn Fn(&Service, &LiveService) -> bool;

/// By the id that answers, else by name.
fn find_peer<'l>(peer: &Peer, contact: Contact, live: &'l Live) -> Option<&'l LivePeer> {
    match contact {
        Contact::Bootstrapped(id) => live.peer(id),
        Contact::Unbootstrapped => None,
        Contact::Unreachable => live.peers.iter().find(|p| p.name.eq_ignore_ascii_case(&peer.name)),
    }
}

struct Planning<'a> {
    file: &'a ClusterFile,
    live: &'a Live,
    contacts: &'a [Contact],
    matched: Vec<Option<&'a LivePeer>>,
    prune: bool,
}

impl Planning<'_> {
    fn peers(&self, warnings: &mut Vec<String>) -> Vec<Change> {
        let listed = self.file.peers.iter().zip(self.contacts).zip(&self.matched);
        let mut changes: Vec<Change> =
            listed.filter_map(|((peer, contact), live)| self.peer(peer, *contact, *live, warnings)).collect();
        let unlisted = self.live.peers.iter().filter(|p| !self.matched.iter().flatten().any(|m| m.id == p.id));
        changes.extend(unlisted.map(|peer| Change {
            command: Some(format!("arctic peers delete {}", peer.name)),
            ..change(Symbol::Keep, "peer", &peer.name, "not in the file, kept".to_owned(), Action::Nothing)
        }));
        changes
    }

    fn peer(
        &self,
        peer: &Peer,
        contact: Contact,
        live: Option<&LivePeer>,
        warnings: &mut Vec<String>,
    ) -> Option<Change> {
        let Some(live) = live else {
            let (about, bootstrap) = match contact {
                Contact::Unreachable => {
                    warnings
                        .push(format!("peer {} cannot be reached and is not known: nothing is done for it", peer.name));
                    return None;
                }
                Contact::Unbootstrapped => ("bootstrap and add", true),
                Contact::Bootstrapped(_) => ("add", false),
            };
            let endpoints: Vec<String> = peer.endpoints.iter().map(ToString::to_string).collect();
            let about = format!("{}, {about}", endpoints.join(" "));
            let change = change(Symbol::Create, "peer", &peer.name, about, Action::Join { bootstrap });
            return Some(Change { peers: vec![peer.name.clone()], ..change });
        };
        self.compare_fixed(peer, live, warnings);
        let mut fields = Vec::new();
        let mut viewers = Vec::new();
        for viewer in self.viewers() {
            let seen = live.views.get(&viewer.id);
            let by = viewer.name.clone();
            let before = fields.len();
            if seen.is_none_or(|v| v.name != peer.name) {
                fields.push(field(format!("name on {by}"), json!(seen.map(|v| &v.name)), json!(peer.name)));
            }
            if viewer.id != live.id && seen.is_none_or(|v| v.qos_enabled != peer.qos_enabled) {
                fields.push(field(
                    format!("qos_enabled on {by}"),
                    json!(seen.map(|v| v.qos_enabled)),
                    json!(peer.qos_enabled),
                ));
            }
            if fields.len() > before {
                viewers.push(self.listed_name(viewer.id).unwrap_or(by));
            }
        }
        if fields.is_empty() {
            return None;
        }
        let action = Action::Views { viewers: viewers.clone() };
        let change = change(Symbol::Change, "peer", &peer.name, live.id.to_string(), action);
        Some(Change { fields, peers: viewers, ..change })
    }

    /// What the API cannot change is only reported.
    fn compare_fixed(&self, peer: &Peer, live: &LivePeer, warnings: &mut Vec<String>) {
        let words =
            |list: &[crate::model::Endpoint]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        if !live.endpoints.is_empty() && !peer.endpoints.iter().all(|e| live.endpoints.contains(e)) {
            let (live, file) = (words(&live.endpoints), words(&peer.endpoints));
            warnings.push(format!("peer {} has endpoints {live}, not {file}: they are not changed", peer.name));
        }
        if let (Some(wanted), Some(is)) = (peer.api_access, live.api_access)
            && wanted != is
        {
            let (is, wanted) = (access_word(is), access_word(wanted));
            warnings.push(format!("peer {} has api_access {is}, not {wanted}: its own host decides", peer.name));
        }
    }

    /// Listed members that can be asked, in the order of the file.
    fn viewers(&self) -> Vec<&LivePeer> {
        let reached = self.matched.iter().zip(self.contacts).filter(|(_, c)| matches!(c, Contact::Bootstrapped(_)));
        reached.filter_map(|(live, _)| *live).collect()
    }

    fn listed_name(&self, id: PeerId) -> Option<String> {
        let at = self.matched.iter().position(|m| m.is_some_and(|m| m.id == id))?;
        self.file.peers.get(at).map(|p| p.name.clone())
    }

    fn peer_id(&self, name: &str) -> Option<PeerId> {
        let at = self.file.peers.iter().position(|p| p.name == name)?;
        self.matched.get(at).copied().flatten().map(|p| p.id)
    }

    /// The name in the file, else that of the cluster.
    fn name_of(&self, id: PeerId) -> String {
        self.listed_name(id).unwrap_or_else(|| self.live.peer_name(id))
    }

    fn services(&self) -> Vec<Change> {
        let pairs = self.pair_services();
        let mut changes: Vec<Change> = self
            .file
            .services
            .iter()
            .zip(&pairs)
            .filter_map(|(service, live)| match live {
                None => Some(self.create(service)),
                Some(live) => self.update(service, live),
            })
            .collect();
        let unlisted = self.live.services.iter().filter(|s| !pairs.iter().flatten().any(|p| p.id == s.id));
        changes.extend(unlisted.map(|service| self.unlisted(service)));
        changes
    }

    /// The live service of each one in the file: by name, then by source, target and transport.
    fn pair_services(&self) -> Vec<Option<&LiveService>> {
        let mut taken: BTreeSet<ServiceId> = BTreeSet::new();
        let mut pairs: Vec<Option<&LiveService>> = vec![None; self.file.services.len()];
        let ends = |s: &Service| (self.peer_id(&s.source_peer), self.peer_id(&s.target_peer));
        let same_ends = |s: &Service, l: &LiveService| ends(s) == (Some(l.source), Some(l.target));
        let by_name = |s: &Service, l: &LiveService| l.name.eq_ignore_ascii_case(&s.name);
        let named_anywhere = |l: &LiveService| self.file.services.iter().any(|s| by_name(s, l));
        let rules: [Fits<'_>; 3] = [&|s, l| by_name(s, l) && same_ends(s, l), &by_name, &|s, l| {
            same_ends(s, l) && s.transport == l.transport && !named_anywhere(l)
        }];
        for rule in rules {
            for (service, pair) in self.file.services.iter().zip(&mut pairs) {
                if pair.is_some() {
                    continue;
                }
                *pair = self.live.services.iter().find(|l| !taken.contains(&l.id) && rule(service, l));
                taken.extend(pair.map(|l| l.id));
            }
        }
        pairs
    }

    fn create(&self, service: &Service) -> Change {
        let routes = service.routes.iter().map(new_route).collect();
        let change = change(Symbol::Create, "service", &service.name, about(service), Action::Create);
        Change { routes, peers: ends_of(service), ..change }
    }

    fn update(&self, service: &Service, live: &LiveService) -> Option<Change> {
        let ends = (self.peer_id(&service.source_peer), self.peer_id(&service.target_peer));
        if ends != (Some(live.source), Some(live.target)) {
            return Some(self.replace(service, live));
        }
        let (fields, body) = compare_fields(service, live);
        let routes = self.compare_routes(service, live);
        let touched = routes.iter().any(|r| r.symbol != Symbol::Keep);
        if fields.is_empty() && !touched {
            let kept = routes.len();
            let about = format!("{kept} route{} not in the file, kept", if kept == 1 { "" } else { "s" });
            let change = change(Symbol::Keep, "service", &service.name, about, Action::Nothing);
            return (kept > 0).then_some(Change { routes, ..change });
        }
        let harmless = ["name", "bandwidth_limit_mbps"];
        let cuts_flows = fields.iter().any(|f| !harmless.contains(&f.field.as_str()))
            || routes.iter().any(|r| r.symbol == Symbol::Delete);
        let action = Action::Update { id: live.id, version: live.version, body };
        let change = change(Symbol::Change, "service", &service.name, about(service), action);
        Some(Change { fields, routes, peers: ends_of(service), cuts_flows, ..change })
    }

    fn replace(&self, service: &Service, live: &LiveService) -> Change {
        let ends = [
            ("source_peer", self.name_of(live.source), &service.source_peer),
            ("target_peer", self.name_of(live.target), &service.target_peer),
        ];
        let fields = ends.iter().filter(|(_, old, new)| old != *new);
        let fields = fields.map(|(name, old, new)| field((*name).to_owned(), json!(old), json!(new))).collect();
        let action = Action::Replace { id: live.id, version: live.version };
        let mut peers = ends_of(service);
        for old in [self.name_of(live.source), self.name_of(live.target)] {
            if !peers.contains(&old) {
                peers.push(old);
            }
        }
        let change = change(Symbol::Replace, "service", &service.name, about(service), action);
        Change { fields, routes: service.routes.iter().map(new_route).collect(), peers, cuts_flows: true, ..change }
    }

    fn compare_routes(&self, service: &Service, live: &LiveService) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        for route in &service.routes {
            match live.routes.iter().find(|l| l.is_like(route)) {
                None => changes.push(new_route(route)),
                Some(l) if l.priority != route.priority => {
                    changes.push(RouteChange { priority: route.priority, ..old_route(l, Symbol::Change) });
                }
                Some(_) => {}
            }
        }
        let symbol = if self.prune { Symbol::Delete } else { Symbol::Keep };
        let unlisted = live.routes.iter().filter(|l| !service.routes.iter().any(|r| l.is_like(r)));
        changes.extend(unlisted.map(|l| old_route(l, symbol)));
        changes
    }

    fn unlisted(&self, live: &LiveService) -> Change {
        let ends = format!("{} → {}", self.name_of(live.source), self.name_of(live.target));
        let peers = vec![self.name_of(live.source), self.name_of(live.target)];
        if self.prune {
            let action = Action::Delete { id: live.id, version: live.version };
            let routes = live.routes.iter().map(|r| old_route(r, Symbol::Delete)).collect();
            let change = change(Symbol::Delete, "service", &live.name, ends, action);
            Change { routes, peers, cuts_flows: true, ..change }
        } else {
            let about = format!("{ends}, not in the file, kept");
            change(Symbol::Keep, "service", &live.name, about, Action::Nothing)
        }
    }
}

fn change(symbol: Symbol, kind: &'static str, name: &str, about: String, action: Action) -> Change {
    Change {
        symbol,
        kind,
        name: name.to_owned(),
        about,
        fields: Vec::new(),
        routes: Vec::new(),
        peers: Vec::new(),
        cuts_flows: false,
        command: None,
        action,
    }
}

fn field(field: String, old: Value, new: Value) -> FieldChange {
    FieldChange { field, old, new }
}

fn ends_of(service: &Service) -> Vec<String> {
    vec![service.source_peer.clone(), service.target_peer.clone()]
}

fn about(service: &Service) -> String {
    format!("{} → {}, {}", service.source_peer, service.target_peer, service.transport)
}

fn access_word(access: ApiAccess) -> &'static str {
    match access {
        ApiAccess::Public => "public",
        ApiAccess::Internal => "internal",
    }
}

fn new_route(route: &Route) -> RouteChange {
    RouteChange {
        symbol: Symbol::Create,
        source_cidr: route.source,
        dest_cidr: route.dest,
        old_priority: None,
        priority: route.priority,
        id: None,
        version: 0,
    }
}

fn old_route(live: &LiveRoute, symbol: Symbol) -> RouteChange {
    RouteChange {
        symbol,
        source_cidr: live.source,
        dest_cidr: live.dest,
        old_priority: Some(live.priority),
        priority: live.priority,
        id: Some(live.id),
        version: live.version,
    }
}

/// The fields that differ, for people and for the request.
fn compare_fields(service: &Service, live: &LiveService) -> (Vec<FieldChange>, Map<String, Value>) {
    let wanted = service_body(service);
    let is = json!({
        "name": live.name,
        "transport_type": live.transport,
        "requires_interface": live.requires_interface,
        "fully_transparent": live.fully_transparent,
        "desired_ipv4_cidr": live.ipv4,
        "desired_ipv6_cidr": live.ipv6,
        "bandwidth_limit_mbps": live.bandwidth_limit_mbps,
    });
    let differing: Vec<(&String, &Value)> = wanted.iter().filter(|(key, value)| is[key.as_str()] != **value).collect();
    let fields = differing.iter().map(|(k, v)| field((*k).clone(), is[k.as_str()].clone(), (*v).clone())).collect();
    (fields, differing.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect())
}

/// A service as the API takes it, without its ends.
pub fn service_body(service: &Service) -> Map<String, Value> {
    let Interface { ipv4, ipv6 } = service.interface.clone().unwrap_or_default();
    Map::from_iter([
        ("name".to_owned(), json!(service.name)),
        ("transport_type".to_owned(), json!(service.transport)),
        ("requires_interface".to_owned(), json!(service.interface.is_some())),
        ("fully_transparent".to_owned(), json!(service.fully_transparent)),
        ("desired_ipv4_cidr".to_owned(), json!(ipv4)),
        ("desired_ipv6_cidr".to_owned(), json!(ipv6)),
        ("bandwidth_limit_mbps".to_owned(), json!(service.bandwidth_limit_mbps)),
    ])
}

/// A route as the API takes it.
pub fn route_body(source: Option<IpNet>, dest: Option<IpNet>, priority: u16) -> Value {
    let mut body = json!({ "priority": priority });
    for (key, net) in [("source_cidr", source), ("dest_cidr", dest)] {
        if let Some(net) = net {
            body[key] = json!(net);
        }
    }
    body
}
