//! `arctic routes …` (api.md §6).

use super::{
    args::{Globals, RoutesAddArgs, RoutesCommand, RoutesExplainArgs, RoutesUpdateArgs},
    client::Call,
    errors::{CliError, Exit},
    output::{self, Column, Noun, View, cell_plain},
    prompt::{Consent, confirm},
    session::{Session, list_of},
};
use crate::{
    model::{PeerId, RouteId, ServiceId, parse_route_cidr},
    routing::{CompiledRoute, sort_routes},
};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

const KEYS: [&str; 6] = ["id", "priority", "source_cidr", "dest_cidr", "version", "created_at"];

pub const ROUTE: Noun = Noun {
    keys: &KEYS,
    columns: &[
        Column::new("ID", "id", cell_plain),
        Column::new("PRIORITY", "priority", cell_plain),
        Column::new("SOURCE-CIDR", "source_cidr", cell_cidr),
        Column::new("DEST-CIDR", "dest_cidr", cell_cidr),
    ],
};

/// A route beside those of other services.
const ROUTE_OF_SERVICE: Noun = Noun {
    keys: &KEYS,
    columns: &[
        Column::new("ID", "id", cell_plain),
        Column::new("PRIORITY", "priority", cell_plain),
        Column::new("SOURCE-CIDR", "source_cidr", cell_cidr),
        Column::new("DEST-CIDR", "dest_cidr", cell_cidr),
        Column::new("SERVICE", "service_name", cell_plain),
        Column::wide("SERVICE-ID", "service_id", cell_plain),
    ],
};

fn cell_cidr(route: &Value, key: &'static str, _: &View) -> String {
    route[key].as_str().filter(|c| !c.is_empty()).unwrap_or("any").to_owned()
}

const HINT: &str = "No routes. Add one with: arctic routes add --service SERVICE --dest-cidr CIDR";

pub async fn run(globals: &Globals, command: &RoutesCommand) -> Result<(), CliError> {
    match command {
        RoutesCommand::List { service: Some(service) } => list(&Session::open(globals).await?, service).await,
        RoutesCommand::List { service: None } => list_all(&Session::open(globals).await?).await,
        RoutesCommand::Add(args) => add(globals, args).await,
        RoutesCommand::Update(args) => update(globals, args).await,
        RoutesCommand::Explain(args) => explain(&Session::open(globals).await?, args).await,
        RoutesCommand::Delete { service, route } => delete(globals, service.as_deref(), *route).await,
    }
}

/// The agent gives the routes of a service in evaluation order.
async fn routes_of(session: &Session, service_id: &str) -> Result<Vec<Value>, CliError> {
    session.call(Call::get(format!("/v1/services/{service_id}/routes"))).await.map(|answer| list_of(answer, "routes"))
}

async fn list(session: &Session, service: &str) -> Result<(), CliError> {
    let id = session.service_id(service).await?;
    session.print_list(&ROUTE, routes_of(session, &id).await?, HINT)
}

async fn list_all(session: &Session) -> Result<(), CliError> {
    let mut all = Vec::new();
    for service in session.services().await? {
        for mut route in routes_of(session, &output::plain(&service["id"])).await? {
            route["service_id"] = service["id"].clone();
            route["service_name"] = service["name"].clone();
            let rank = compile(&service, &route);
            all.push((rank, route));
        }
    }
    session.print_list(&ROUTE_OF_SERVICE, in_evaluation_order(all), HINT)
}

fn compile(service: &Value, route: &Value) -> Option<CompiledRoute> {
    let cidr = |key: &str| route[key].as_str().and_then(|c| c.parse::<IpNet>().ok());
    let interface = service["interface_name"].as_str().filter(|_| service["requires_interface"] == true);
    Some(CompiledRoute {
        service: service["id"].as_str()?.parse::<ServiceId>().ok()?,
        target: service["target_peer_id"].as_str()?.parse::<PeerId>().ok()?,
        route: Some(RouteId::try_from(route["id"].as_u64()?).ok()?),
        interface: interface.map(str::to_owned),
        source: cidr("source_cidr"),
        dest: cidr("dest_cidr"),
        priority: u16::try_from(route["priority"].as_u64()?).ok()?,
    })
}

/// Routes that this version cannot read come last, in the order they came.
fn in_evaluation_order(routes: Vec<(Option<CompiledRoute>, Value)>) -> Vec<Value> {
    let mut order: Vec<CompiledRoute> = routes.iter().filter_map(|(rank, _)| rank.clone()).collect();
    sort_routes(&mut order);
    let place = |rank: &Option<CompiledRoute>| rank.as_ref().and_then(|r| order.iter().position(|o| o == r));
    let mut placed: Vec<(usize, Value)> =
        routes.into_iter().map(|(rank, route)| (place(&rank).unwrap_or(usize::MAX), route)).collect();
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, route)| route).collect()
}

async fn add(globals: &Globals, args: &RoutesAddArgs) -> Result<(), CliError> {
    let Some(service) = &args.service else {
        return Err(CliError::missing("--service").with_hint("arctic services list"));
    };
    let mut route = Map::from_iter([("priority".to_owned(), json!(args.priority))]);
    for (key, cidr) in [("source_cidr", &args.source_cidr), ("dest_cidr", &args.dest_cidr)] {
        if let Some(cidr) = cidr {
            let net = parse_route_cidr(cidr).map_err(|e| CliError::new(Exit::Usage, "INVALID_CIDR", e.to_string()))?;
            route.insert(key.to_owned(), json!(net));
        }
    }
    if route.len() == 1 {
        return Err(CliError::missing("--source-cidr or --dest-cidr"));
    }
    let session = Session::open(globals).await?;
    let id = session.service_id(service).await?;
    let call = Call::post(format!("/v1/services/{id}/routes"), &json!({ "routes": [route] })).applied();
    let answer = session.write(call).await.map_err(service_not_found)?;
    let route_id = output::plain(&answer["route_ids"][0]);
    let text = match session.writing.dry_run {
        true => format!("Route would be added: Priority={}", args.priority),
        false => format!("Route added successfully: ID={route_id}, Priority={}", args.priority),
    };
    session.print_result(&text, answer.clone())?;
    session.writing.check(&answer)
}

async fn update(globals: &Globals, args: &RoutesUpdateArgs) -> Result<(), CliError> {
    let service = args.service.as_deref().ok_or_else(|| CliError::missing("--service"))?;
    let route = args
        .route
        .ok_or_else(|| CliError::missing("--route").with_hint(format!("arctic routes list --service {service}")))?;
    let mut body = Map::new();
    for (key, cidr) in [("source_cidr", &args.source_cidr), ("dest_cidr", &args.dest_cidr)] {
        match cidr.as_deref() {
            None => {}
            Some("") => drop(body.insert(key.to_owned(), Value::Null)),
            Some(cidr) => {
                let net =
                    parse_route_cidr(cidr).map_err(|e| CliError::new(Exit::Usage, "INVALID_CIDR", e.to_string()))?;
                body.insert(key.to_owned(), json!(net));
            }
        }
    }
    body.extend(args.priority.map(|p| ("priority".to_owned(), json!(p))));
    if body.is_empty() {
        return Err(CliError::missing("--source-cidr, --dest-cidr or --priority"));
    }
    let session = Session::open(globals).await?;
    let id = session.service_id(service).await?;
    let call = Call::put(format!("/v1/services/{id}/routes/{route}"), &Value::Object(body)).applied();
    let answer = session.write(call).await?;
    session.print_one(&ROUTE, answer.clone())?;
    session.writing.check(&answer)
}

/// Candidates of `routes explain`.
const CANDIDATE: [&str; 8] =
    ["outcome", "service_name", "route_id", "source_cidr", "dest_cidr", "priority", "interface", "message"];

async fn explain(session: &Session, args: &RoutesExplainArgs) -> Result<(), CliError> {
    let src = args.src.ok_or_else(|| CliError::missing("--src"))?;
    let dst = args.dst.ok_or_else(|| CliError::missing("--dst"))?;
    let proto = args.proto.parse::<u8>().map_or_else(|_| json!(args.proto.to_lowercase()), Value::from);
    let mut body = json!({ "src": src, "dst": dst, "proto": proto });
    if let Some(port) = args.dport {
        body["dport"] = json!(port);
    }
    if let Some(iface) = &args.iface {
        body["iface"] = json!(iface);
    }
    let answer = session.call(Call::post("/v1/routes/explain", &body)).await?;
    let text = explain_text(&answer);
    session.print_result(text.trim_end(), answer)
}

fn explain_text(answer: &Value) -> String {
    let labels = [
        ("Result", "result"),
        ("Why", "message"),
        ("Service", "service_name"),
        ("Route", "route_id"),
        ("Target", "target_peer_name"),
        ("Plane", "plane"),
        ("Transport", "transport"),
        ("Mark", "mark"),
        ("Limit Mbit/s", "limit_mbps"),
    ];
    let given = labels.iter().filter(|(_, key)| !answer[*key].is_null());
    let rows: Vec<Vec<String>> =
        given.map(|(label, key)| vec![(*label).to_owned(), output::plain(&answer[*key])]).collect();
    let mut out = output::lines(&[], &rows);
    let row = |c: &Value| {
        CANDIDATE.map(|key| Some(output::plain(&c[key])).filter(|t| !t.is_empty()).unwrap_or("any".to_owned())).to_vec()
    };
    let candidates: Vec<Vec<String>> = answer["candidates"].as_array().into_iter().flatten().map(row).collect();
    if !candidates.is_empty() {
        let headings = ["OUTCOME", "SERVICE", "ROUTE", "SOURCE-CIDR", "DEST-CIDR", "PRIORITY", "INTERFACE", "WHY"];
        out.push_str(&format!("\n{}", output::lines(&headings, &candidates)));
    }
    out
}

fn service_not_found(error: CliError) -> CliError {
    if error.code == "NOT_FOUND" { error.with_text("service not found") } else { error }
}

async fn delete(globals: &Globals, service: Option<&str>, route: Option<RouteId>) -> Result<(), CliError> {
    let service = service.ok_or_else(|| CliError::missing("--service"))?;
    let route = route
        .ok_or_else(|| CliError::missing("--route").with_hint(format!("arctic routes list --service {service}")))?;
    let consent = Consent::of(globals)?;
    let session = Session::open(globals).await?;
    let id = session.service_id(service).await?;
    if consent == Consent::Ask {
        let routes = routes_of(&session, &id).await?;
        let what = routes.iter().find(|r| r["id"] == route).map_or_else(|| format!("route {route}"), description);
        confirm(&format!("Delete {what} of service {service}?"), &[])?;
    }
    let answer = session.write(Call::delete(format!("/v1/services/{id}/routes/{route}")).applied()).await?;
    let (dry_run, verb) =
        (session.writing.dry_run, if session.writing.dry_run { "would be deleted" } else { "deleted" });
    session.print_result(&format!("Route {route} {verb}"), json!({ "id": route, "deleted": !dry_run }))?;
    session.writing.check(&answer)
}

fn description(route: &Value) -> String {
    let cidr = |key: &str| route[key].as_str().unwrap_or("any");
    format!("route {} ({} to {})", route["id"], cidr("source_cidr"), cidr("dest_cidr"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // accepts: 002-32, 002-33, 002-34
    #[test]
    fn all_routes_are_listed_in_evaluation_order() {
        let service = json!({"id":"svc_01AAAAAAAAAAAAAAAAAAAAAAAA","target_peer_id":"peer_01AAAAAAAAAAAAAAAAAAAAAAAA"});
        let route = |id: u32, priority: u16, source: &str, dest: &str| {
            let route = json!({"id":id,"priority":priority,"source_cidr":source,"dest_cidr":dest});
            (compile(&service, &route), route)
        };
        let all = vec![
            (None, json!({"id":"odd"})),
            route(3, 100, "10.0.0.0/8", "192.168.0.0/16"),
            route(2, 100, "10.0.0.0/8", "192.168.100.0/24"),
            route(1, 200, "10.1.0.0/16", "192.168.100.0/24"),
        ];
        let ids: Vec<Value> = in_evaluation_order(all).iter().map(|r| r["id"].clone()).collect();
        assert_eq!(ids, [json!(1), json!(2), json!(3), json!("odd")]);
    }
}
