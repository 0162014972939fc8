//! The order of a plan's writes (compose.md §4). A step that failed takes those with it that need what it makes.

use super::{
    model::{ClusterFile, Service},
    plan::{Action, Change, Plan, Symbol, route_body, service_body},
};
use crate::model::{RouteId, ServiceId};
use serde_json::{Map, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `create service syd-to-fra`.
    pub title: String,
    pub work: Work,
    /// What must have worked before.
    pub needs: Vec<Need>,
    /// What is there only if this worked.
    pub makes: Option<Need>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A listed peer is a member.
    Peer(String),
    /// A listed peer has its license.
    License(String),
    /// A service of the file is there, and free of what it replaces.
    Service(String),
    /// The old service of that name is gone.
    Gone(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    Bootstrap {
        peer: String,
    },
    Join {
        peer: String,
    },
    /// Names and QoS of all listed peers, on this one.
    Views {
        viewer: String,
    },
    /// `source` and `target` are names of peers.
    CreateService {
        name: String,
        source: String,
        target: String,
        body: Map<String, Value>,
    },
    UpdateService {
        id: ServiceId,
        version: u64,
        body: Map<String, Value>,
    },
    DeleteService {
        id: ServiceId,
        version: u64,
    },
    /// `id` is absent for a service that an earlier step creates.
    AddRoutes {
        service: String,
        id: Option<ServiceId>,
        routes: Vec<Value>,
    },
    SetPriority {
        id: ServiceId,
        route: RouteId,
        version: u64,
        priority: u16,
    },
    DeleteRoute {
        id: ServiceId,
        route: RouteId,
        version: u64,
    },
}

/// `spare_services` is how many more services the license allows now.
pub fn steps(file: &ClusterFile, plan: &Plan, spare_services: Option<u64>) -> Vec<Step> {
    let mut steps = peer_steps(file, plan);
    let needed_names: Vec<String> =
        plan.changes.iter().filter(|c| takes_name(c)).map(|c| c.name.to_lowercase()).collect();
    let creates = plan.changes.iter().filter(|c| c.action == Action::Create).count() as u64;
    let no_room = spare_services.is_some_and(|spare| creates > spare);
    let is_early = |c: &&Change| no_room || needed_names.contains(&c.name.to_lowercase());
    let deletes: Vec<&Change> = plan.changes.iter().filter(|c| matches!(c.action, Action::Delete { .. })).collect();
    steps.extend(deletes.iter().copied().filter(is_early).filter_map(delete_step));
    for change in plan.changes.iter().filter(|c| matches!(c.action, Action::Update { .. })) {
        steps.extend(update_steps(change));
    }
    for change in &plan.changes {
        let Some(service) = file.services.iter().find(|s| s.name == change.name) else { continue };
        match change.action {
            Action::Create => steps.extend(create_steps(service, Vec::new())),
            Action::Replace { id, version } => {
                let gone = Need::Gone(change.name.clone());
                steps.push(Step {
                    title: format!("delete service {} to replace it", change.name),
                    work: Work::DeleteService { id, version },
                    // Not before its successor can be made.
                    needs: vec![Need::Peer(service.source_peer.clone()), Need::Peer(service.target_peer.clone())],
                    makes: Some(gone.clone()),
                });
                steps.extend(create_steps(service, vec![gone]));
            }
            _ => {}
        }
    }
    steps.extend(deletes.into_iter().filter(|c| !is_early(c)).filter_map(delete_step));
    steps
}

/// Creations and renamings take a name that something else may have.
fn takes_name(change: &Change) -> bool {
    matches!(change.action, Action::Create) || change.fields.iter().any(|f| f.field == "name")
}

fn peer_steps(file: &ClusterFile, plan: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut viewers: Vec<String> = Vec::new();
    let joins = |c: &&Change| matches!(c.action, Action::Join { .. });
    for change in plan.changes.iter().filter(joins) {
        let peer = change.name.clone();
        let license = Need::License(peer.clone());
        if change.action == (Action::Join { bootstrap: true }) {
            let title = format!("bootstrap peer {peer}");
            let work = Work::Bootstrap { peer: peer.clone() };
            steps.push(Step { title, work, needs: Vec::new(), makes: Some(license.clone()) });
        }
        steps.push(Step {
            title: format!("add peer {peer}"),
            work: Work::Join { peer: peer.clone() },
            needs: vec![license],
            makes: Some(Need::Peer(peer)),
        });
    }
    if !steps.is_empty() {
        viewers.extend(file.peers.iter().map(|p| p.name.clone()));
    }
    for change in &plan.changes {
        if let Action::Views { viewers: more } = &change.action {
            viewers.extend(more.iter().filter(|m| !viewers.contains(m)).cloned().collect::<Vec<_>>());
        }
    }
    steps.extend(viewers.into_iter().map(|viewer| Step {
        title: format!("set names and qos on {viewer}"),
        needs: vec![Need::Peer(viewer.clone())],
        work: Work::Views { viewer },
        makes: None,
    }));
    steps
}

fn create_steps(service: &Service, mut needs: Vec<Need>) -> Vec<Step> {
    let name = &service.name;
    needs.extend([Need::Peer(service.source_peer.clone()), Need::Peer(service.target_peer.clone())]);
    let mut body = service_body(service);
    body.retain(|_, value| !value.is_null());
    let mut steps = vec![Step {
        title: format!("create service {name}"),
        work: Work::CreateService {
            name: name.clone(),
            source: service.source_peer.clone(),
            target: service.target_peer.clone(),
            body,
        },
        needs,
        makes: Some(Need::Service(name.clone())),
    }];
    if !service.routes.is_empty() {
        let routes = service.routes.iter().map(|r| route_body(r.source, r.dest, r.priority)).collect();
        steps.push(Step {
            title: format!("add routes of service {name}"),
            work: Work::AddRoutes { service: name.clone(), id: None, routes },
            needs: vec![Need::Service(name.clone())],
            makes: None,
        });
    }
    steps
}

fn update_steps(change: &Change) -> Vec<Step> {
    let Action::Update { id, version, body } = &change.action else { return Vec::new() };
    let (id, name) = (*id, &change.name);
    let step = |title: String, work| Step { title, work, needs: Vec::new(), makes: None };
    let mut steps = Vec::new();
    if !body.is_empty() {
        let work = Work::UpdateService { id, version: *version, body: body.clone() };
        steps.push(step(format!("change service {name}"), work));
    }
    for route in &change.routes {
        let (Some(route_id), version, words) = (route.id, route.version, route.words()) else { continue };
        match route.symbol {
            Symbol::Change => {
                let work = Work::SetPriority { id, route: route_id, version, priority: route.priority };
                steps.push(step(format!("change route {words} of service {name}"), work));
            }
            Symbol::Delete => {
                let work = Work::DeleteRoute { id, route: route_id, version };
                steps.push(step(format!("delete route {words} of service {name}"), work));
            }
            _ => {}
        }
    }
    let new = change.routes.iter().filter(|r| r.symbol == Symbol::Create);
    let routes: Vec<Value> = new.map(|r| route_body(r.source_cidr, r.dest_cidr, r.priority)).collect();
    if !routes.is_empty() {
        let work = Work::AddRoutes { service: name.clone(), id: Some(id), routes };
        steps.push(step(format!("add routes of service {name}"), work));
    }
    steps
}

fn delete_step(change: &Change) -> Option<Step> {
    let Action::Delete { id, version } = change.action else { return None };
    let title = format!("delete service {}", change.name);
    Some(Step { title, work: Work::DeleteService { id, version }, needs: Vec::new(), makes: None })
}
