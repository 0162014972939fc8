//! `arctic services …` (api.md §5).

use super::{
    args::{
        Globals, ServiceFields, ServicesCommand, ServicesCreateArgs, ServicesDeleteArgs, ServicesListArgs,
        ServicesUpdateArgs,
    },
    client::Call,
    errors::{CliError, Exit},
    output::{self, Column, Noun, View, cell_plain},
    peers::{check_name, sort_by_name},
    prompt::{Consent, confirm},
    session::{Session, print},
};
use crate::model::parse_host_cidr;
use serde_json::{Map, Value, json};

pub const SERVICE: Noun = Noun {
    keys: &[
        "id",
        "name",
        "source_peer_id",
        "source_peer_name",
        "target_peer_id",
        "target_peer_name",
        "state",
        "transport_type",
        "effective_transport",
        "bandwidth_limit_mbps",
        "requires_interface",
        "fully_transparent",
        "desired_ipv4_cidr",
        "desired_ipv6_cidr",
        "interface_name",
        "interface_mac",
        "interface_ipv4_cidr",
        "interface_ipv6_cidr",
        "fwmark",
        "version",
        "created_at",
        "updated_at",
    ],
    columns: &[
        Column::new("ID", "id", cell_plain),
        Column::new("NAME", "name", cell_plain),
        Column::new("SOURCE", "source_peer_name", cell_source),
        Column::new("TARGET", "target_peer_name", cell_target),
        Column::new("TRANSPORT", "transport_type", cell_plain),
        Column::new("FLAGS", "flags", cell_flags),
        Column::new("STATE", "state", cell_plain),
        Column::wide("ROUTES", "route_count", cell_plain),
        Column::wide("LIMIT", "bandwidth_limit_mbps", cell_limit),
        Column::wide("INTERFACE", "interface_name", cell_plain),
        Column::wide("SOURCE-ID", "source_peer_id", cell_plain),
        Column::wide("TARGET-ID", "target_peer_id", cell_plain),
    ],
};

const LEGEND: &str = "Flags: I own interface, T fully transparent, Q bandwidth limit";

fn cell_source(service: &Value, _: &'static str, _: &View) -> String {
    peer_of(service, "source_peer_name", "source_peer_id")
}

fn cell_target(service: &Value, _: &'static str, _: &View) -> String {
    peer_of(service, "target_peer_name", "target_peer_id")
}

fn peer_of(service: &Value, name: &str, id: &str) -> String {
    let named = service[name].as_str().filter(|n| !n.is_empty());
    named.map_or_else(|| output::plain(&service[id]), str::to_owned)
}

fn flags(service: &Value) -> String {
    let limited = service["bandwidth_limit_mbps"].as_u64().unwrap_or(0) > 0;
    let all =
        [(service["requires_interface"] == true, 'I'), (service["fully_transparent"] == true, 'T'), (limited, 'Q')];
    all.into_iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect()
}

fn cell_flags(service: &Value, _: &'static str, _: &View) -> String {
    let flags = flags(service);
    if flags.is_empty() { "none".to_owned() } else { flags }
}

fn cell_limit(service: &Value, key: &'static str, _: &View) -> String {
    match service[key].as_u64() {
        None | Some(0) => "unlimited".to_owned(),
        Some(mbps) => format!("{mbps}Mbit"),
    }
}

/// One line for confirmations.
pub fn description(service: &Value) -> String {
    let count = service["route_count"].as_u64().or(service["routes"].as_array().map(|r| r.len() as u64)).unwrap_or(0);
    let routes = if count == 1 { "1 route".to_owned() } else { format!("{count} routes") };
    format!("service {} ({}) with {routes}", output::plain(&service["name"]), output::plain(&service["id"]))
}

pub async fn run(globals: &Globals, command: &ServicesCommand) -> Result<(), CliError> {
    match command {
        ServicesCommand::List(args) => list(&Session::open(globals).await?, args).await,
        ServicesCommand::Get { service } => get(&Session::open(globals).await?, service).await,
        ServicesCommand::Create(args) => create(globals, args).await,
        ServicesCommand::Update(args) => update(globals, args).await,
        ServicesCommand::Delete(args) => delete(globals, args).await,
    }
}

async fn list(session: &Session, args: &ServicesListArgs) -> Result<(), CliError> {
    let mut services = session.services().await?;
    // Filtered here, not by the query: scripts delete what this list names.
    for (peer, key) in [(&args.source_peer, "source_peer_id"), (&args.target_peer, "target_peer_id")] {
        if let Some(peer) = peer {
            let id = session.peer_id("peer", peer).await?;
            services.retain(|s| s[key] == id.as_str());
        }
    }
    if let Some(wanted) = args.requires_interface.given() {
        services.retain(|s| (s["requires_interface"] == true) == wanted);
    }
    sort_by_name(&mut services);
    let legend = services.iter().any(|s| !flags(s).is_empty()) && !session.view.is_structured();
    session.print_list(
        &SERVICE,
        services,
        "No services. Create one with: arctic services create --target-peer PEER",
    )?;
    if legend {
        session.log.hint(LEGEND);
    }
    Ok(())
}

async fn get(session: &Session, service: &str) -> Result<(), CliError> {
    let id = session.service_id(service).await?;
    let service = session.call(Call::get(format!("/v1/services/{id}"))).await?;
    session.print_one(&SERVICE, service)
}

async fn create(globals: &Globals, args: &ServicesCreateArgs) -> Result<(), CliError> {
    let Some(target) = &args.target_peer else {
        return Err(CliError::missing("--target-peer").with_hint("arctic peers list"));
    };
    let mut body = fields_of(&args.fields)?;
    let session = Session::open(globals).await?;
    let target = session.peer_id("target peer", target).await?;
    body.insert("target_peer_id".to_owned(), json!(target));
    if let Some(source) = &args.source_peer {
        let source = session.peer_id("source peer", source).await?;
        body.insert("source_peer_id".to_owned(), json!(source));
    }
    let service = session.write(Call::post("/v1/services", &Value::Object(body)).applied()).await?;
    let id = output::plain(&service["id"]);
    if session.view.is_structured() {
        session.print_one(&SERVICE, service.clone())?;
        return session.writing.check(&service);
    }
    print(&format!("{id}\n"));
    let name = output::plain(&service["name"]);
    if !session.writing.dry_run {
        session.log.hint(&format!("Service {name} created. It carries nothing until it has routes:"));
        session.log.hint(&format!("  arctic routes add --service {id} --dest-cidr CIDR"));
    }
    session.writing.check(&service)
}

async fn update(globals: &Globals, args: &ServicesUpdateArgs) -> Result<(), CliError> {
    let body = fields_of(&args.fields)?;
    if body.is_empty() {
        let error = CliError::usage("nothing to change: give at least one field");
        return Err(error.with_hint("arctic services update --help"));
    }
    let session = Session::open(globals).await?;
    let id = session.service_id(&args.service).await?;
    let call = Call::put(format!("/v1/services/{id}"), &Value::Object(body)).applied();
    let service = session.write(call).await?;
    session.print_one(&SERVICE, service.clone())?;
    session.writing.check(&service)
}

/// The fields of the request that were given; the agent fills in the others.
fn fields_of(args: &ServiceFields) -> Result<Map<String, Value>, CliError> {
    let mut body = Map::new();
    if let Some(name) = &args.name {
        check_name(name)?;
        body.insert("name".to_owned(), json!(name));
    }
    for (key, cidr) in [("desired_ipv4_cidr", &args.desired_ipv4), ("desired_ipv6_cidr", &args.desired_ipv6)] {
        if let Some("") = cidr.as_deref() {
            body.insert(key.to_owned(), Value::Null);
        } else if let Some(cidr) = cidr {
            parse_host_cidr(cidr).map_err(|e| CliError::new(Exit::Usage, "INVALID_CIDR", e.to_string()))?;
            body.insert(key.to_owned(), json!(cidr));
        }
    }
    let others = [
        ("transport_type", args.transport.map(|t| json!(t))),
        ("requires_interface", args.requires_interface.given().map(Value::from)),
        ("fully_transparent", args.fully_transparent.given().map(Value::from)),
        ("bandwidth_limit_mbps", args.bandwidth_limit.map(Value::from)),
    ];
    body.extend(others.into_iter().filter_map(|(key, value)| value.map(|v| (key.to_owned(), v))));
    Ok(body)
}

async fn delete(globals: &Globals, args: &ServicesDeleteArgs) -> Result<(), CliError> {
    let consent = Consent::of(globals)?;
    let session = Session::open(globals).await?;
    let ids = ids_to_delete(&session, args).await?;
    if consent == Consent::Ask && !ids.is_empty() {
        let known = session.services().await?;
        let goes: Vec<String> =
            known.iter().filter(|s| ids.iter().any(|id| s["id"] == id.as_str())).map(description).collect();
        confirm(&format!("Delete {} service{}?", ids.len(), if ids.len() == 1 { "" } else { "s" }), &goes)?;
    }
    let (mut done, mut failures, mut waiting) = (Vec::new(), Vec::new(), Ok(()));
    for id in &ids {
        match session.write(Call::delete(format!("/v1/services/{id}")).applied()).await {
            Ok(answer) => {
                waiting = waiting.and(session.writing.check(&answer));
                match (session.view.is_structured(), session.writing.dry_run) {
                    (true, dry_run) => done.push(output::deleted_if(id, !dry_run)),
                    (false, true) => print(&format!("Service {id} would be deleted\n")),
                    (false, false) => print(&format!("Service {id} deleted\n")),
                }
            }
            Err(e) => failures.push(e.with_fact("service", id.as_str())),
        }
    }
    if session.view.is_structured() && (failures.is_empty() || !done.is_empty()) {
        session.print_list(&output::DELETED, done, "")?;
    }
    partial_failure(ids.len(), failures)?;
    waiting
}

async fn ids_to_delete(session: &Session, args: &ServicesDeleteArgs) -> Result<Vec<String>, CliError> {
    let mut ids = Vec::new();
    if let (true, Some(peer)) = (args.all, &args.target_peer) {
        let peer = session.peer_id("target peer", peer).await?;
        let services = session.services().await?;
        ids.extend(services.iter().filter(|s| s["target_peer_id"] == peer.as_str()).map(|s| output::plain(&s["id"])));
        if ids.is_empty() {
            session.log.hint("No services to that peer: nothing to do.");
        }
        return Ok(ids);
    }
    for service in &args.services {
        let id = session.service_id(service).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Nothing failed: done. Everything failed: the first failure. Otherwise a partial failure (exit 6).
fn partial_failure(wanted: usize, mut failures: Vec<CliError>) -> Result<(), CliError> {
    let failed = failures.len();
    match failed {
        0 => Ok(()),
        _ if failed == wanted => Err(failures.swap_remove(0)),
        _ => {
            let text = format!("{failed} of {wanted} services were not deleted");
            let mut error = CliError::new(Exit::Degraded, "PARTIAL_FAILURE", text);
            for e in failures {
                let id = e.facts.last().map(|(_, id)| id.clone()).unwrap_or_default();
                error = error.with_fact(&id, e.text);
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_name_interface_transparency_and_limit() {
        let service = json!({"requires_interface":true,"fully_transparent":true,"bandwidth_limit_mbps":5});
        assert_eq!(flags(&service), "ITQ");
        assert_eq!(flags(&json!({"bandwidth_limit_mbps":0})), "");
    }

    #[test]
    fn some_failures_are_partial_and_all_failures_are_the_first_one() {
        let failure = |id: &str| CliError::not_found("service not found").with_fact("service", id);
        assert!(partial_failure(2, vec![]).is_ok());
        assert_eq!(partial_failure(2, vec![failure("a")]).unwrap_err().exit, Exit::Degraded);
        assert_eq!(partial_failure(1, vec![failure("a")]).unwrap_err().exit, Exit::General);
    }
}
