//! `arctic peers …` (api.md §4).

use super::{
    args::{Globals, PeerArgument, PeersAddArgs, PeersCommand, PeersListArgs, PeersUpdateArgs},
    client::Call,
    config::{Config, SharedCredential},
    errors::CliError,
    output::{self, Column, Noun, View, cell_plain, cell_time},
    prompt::{Consent, confirm},
    session::Session,
};
use crate::model::{Endpoint, looks_like_id};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// `peers add` lasts until the handshake succeeded or failed for the third time (api.md §2: 60 s).
pub const ADD_PATIENCE: Duration = Duration::from_secs(65);

pub const PEER: Noun = Noun {
    keys: &[
        "id",
        "name",
        "self_name",
        "is_local",
        "status",
        "address",
        "endpoints",
        "last_seen",
        "rtt_ms",
        "version",
        "qos_enabled",
        "api_access",
        "license_id",
        "license_state",
        "public_key",
        "created_at",
    ],
    columns: &[
        Column::new("ID", "id", cell_plain),
        Column::new("NAME", "name", cell_plain),
        Column::new("ADDRESS", "address", cell_plain),
        Column::new("STATUS", "status", cell_plain),
        Column::new("RTT", "rtt_ms", cell_rtt),
        Column::new("VERSION", "version", cell_plain),
        Column::new("LAST-SEEN", "last_seen", cell_last_seen),
        Column::wide("LOCAL", "is_local", cell_plain),
        Column::wide("ENDPOINTS", "endpoints", cell_plain),
        Column::wide("LICENSE", "license_state", cell_plain),
        Column::wide("API-ACCESS", "api_access", cell_plain),
    ],
};

fn is_local(peer: &Value) -> bool {
    peer["is_local"] == true
}

fn cell_rtt(peer: &Value, key: &'static str, _: &View) -> String {
    match peer[key].as_f64() {
        _ if is_local(peer) => "local".to_owned(),
        Some(ms) => format!("{ms:.1}ms"),
        None => "unknown".to_owned(),
    }
}

fn cell_last_seen(peer: &Value, key: &'static str, view: &View) -> String {
    if is_local(peer) { "now".to_owned() } else { cell_time(peer, key, view) }
}

pub async fn run(globals: &Globals, command: &PeersCommand) -> Result<(), CliError> {
    match command {
        PeersCommand::List(args) => list(&Session::open(globals).await?, args).await,
        PeersCommand::Get(PeerArgument { peer }) => get(&Session::open(globals).await?, peer).await,
        PeersCommand::Add(args) => add(globals, args).await,
        PeersCommand::Update(args) => update(globals, args).await,
        PeersCommand::Delete(PeerArgument { peer }) => delete(globals, peer).await,
        PeersCommand::RemoveSelf => remove_self(globals).await,
    }
}

async fn list(session: &Session, args: &PeersListArgs) -> Result<(), CliError> {
    let mut peers = session.peers().await?;
    peers.retain(|p| !(args.remote && is_local(p) || args.local && !is_local(p)));
    if let Some(status) = args.status.and_then(|s| s.to_possible_value()) {
        peers.retain(|p| p["status"] == status.get_name());
    }
    sort_by_name(&mut peers);
    session.print_list(&PEER, peers, "No peers. Add one with: arctic peers add HOST:8080")
}

/// The stable order of lists: name, then id (cli.md §2).
pub fn sort_by_name(objects: &mut [Value]) {
    let key = |o: &Value| (output::plain(&o["name"]), output::plain(&o["id"]));
    objects.sort_by_cached_key(key);
}

async fn get(session: &Session, peer: &str) -> Result<(), CliError> {
    let id = session.peer_id("peer", peer).await?;
    let peer = session.call(Call::get(format!("/v1/peers/{id}"))).await?;
    session.print_one(&PEER, peer)
}

async fn add(globals: &Globals, args: &PeersAddArgs) -> Result<(), CliError> {
    let endpoints = args.endpoints.iter().map(|e| e.parse::<Endpoint>());
    let endpoints: Vec<Endpoint> = endpoints.collect::<Result<_, _>>().map_err(|e| CliError::usage(e.to_string()))?;
    let mut body = Map::from_iter([("endpoints".to_owned(), json!(endpoints))]);
    if let Some(name) = &args.name {
        check_name(name)?;
        body.insert("name".to_owned(), json!(name));
    }
    if let Some(key) = &args.public_key {
        body.insert("public_key".to_owned(), json!(key));
    }
    let session = Session::open(globals).await?;
    session.log.debug(&format!("handshake with {}", args.endpoints.join(", ")));
    let call = Call::post("/v1/peers", &Value::Object(body)).patience(ADD_PATIENCE);
    let peer = session.write(call).await?;
    for warning in peer["warnings"].as_array().into_iter().flatten() {
        session.log.warn(&output::plain(warning));
    }
    session.print_one(&PEER, peer.clone())?;
    if session.writing.dry_run {
        return Ok(());
    }
    let peer_id = peer["id"].as_str().unwrap_or_default();
    if let Err(e) = fold_newcomer(&session, peer_id).await {
        session.log.warn(&format!("the peer was added, but the config file was not updated: {}", e.text));
    }
    Ok(())
}

/// Brings the config in line with the merge (cli.md §5).
///
/// Returns the key of the entry that the caller's has become, if that changed.
pub async fn fold_newcomer(session: &Session, peer_id: &str) -> Result<Option<String>, CliError> {
    let (Some(caller), Some(path)) = (&session.cluster, &session.config_path) else { return Ok(None) };
    let identity = session.call(Call::get("/v1/cluster/identity").public()).await?;
    let surviving = identity["cluster_id"].as_str().filter(|id| !id.is_empty()).unwrap_or(caller);
    let newcomer = session.config.newcomer(caller, peer_id);
    if newcomer.is_none() && surviving == caller {
        return Ok(None);
    }
    let credential = match newcomer.filter(|n| n.cluster_id == surviving) {
        // The winner's credential is the shared one, but it must have reached the called agent to be of use.
        Some(n) if session.client.accepts(&n.client_id, &n.client_secret).await => SharedCredential::Newcomers,
        _ => SharedCredential::Callers,
    };
    Config::update(path, |config| config.fold_newcomer(caller, peer_id, surviving, credential))?;
    session.log.debug(&format!("config: peers of both clusters are now listed under {surviving}"));
    Ok(Some(surviving.to_owned()))
}

async fn update(globals: &Globals, args: &PeersUpdateArgs) -> Result<(), CliError> {
    let mut body = Map::new();
    if let Some(name) = &args.name {
        check_name(name)?;
        body.insert("name".to_owned(), json!(name));
    }
    if let Some(qos) = args.qos.given() {
        body.insert("qos_enabled".to_owned(), json!(qos));
    }
    if body.is_empty() {
        return Err(CliError::missing("--name or --qos"));
    }
    let session = Session::open(globals).await?;
    let id = session.peer_id("peer", &args.argument.peer).await?;
    let peer = session.write(Call::put(format!("/v1/peers/{id}"), &Value::Object(body)).applied()).await?;
    if let (Some(name), false) = (&args.name, session.writing.dry_run)
        && let Err(e) = rename_in_config(&session, &id, name)
    {
        session.log.warn(&format!("the peer was renamed, but the config file was not: {}", e.text));
    }
    session.print_one(&PEER, peer.clone())?;
    session.writing.check(&peer)
}

/// A new name is also written to the local config (cli.md §3).
fn rename_in_config(session: &Session, id: &str, name: &str) -> Result<(), CliError> {
    let (Some(cluster), Some(path)) = (&session.cluster, &session.config_path) else { return Ok(()) };
    let listed = session.entry().is_some_and(|c| c.peers.iter().any(|p| p.peer_id == id && p.name != name));
    if !listed {
        return Ok(());
    }
    Config::update(path, |config| {
        let peers = config.clusters.get_mut(cluster).into_iter().flat_map(|c| &mut c.peers);
        peers.filter(|p| p.peer_id == id).for_each(|p| name.clone_into(&mut p.name));
    })
}

async fn delete(globals: &Globals, peer: &str) -> Result<(), CliError> {
    let consent = Consent::of(globals)?;
    let session = Session::open(globals).await?;
    let id = session.peer_id("peer", peer).await?;
    if consent == Consent::Ask {
        let found = session.call(Call::get(format!("/v1/peers/{id}"))).await?;
        if !is_local(&found) {
            let goes = what_goes(&session.services().await?, &id);
            confirm(&format!("Delete peer {} ({id})?", output::plain(&found["name"])), &goes)?;
        }
    }
    let answer = session.write(Call::delete(format!("/v1/peers/{id}"))).await?;
    session.print_deleted("Peer", &id, &answer)
}

/// `peers remove-self` and `remove-self`: the called agent leaves its cluster and stops.
pub async fn remove_self(globals: &Globals) -> Result<(), CliError> {
    let consent = Consent::of(globals)?;
    let session = Session::open(globals).await?;
    if consent == Consent::Ask {
        let identity = session.call(Call::get("/v1/cluster/identity").public()).await?;
        let id = output::plain(&identity["peer_id"]);
        let mut goes = what_it_leaves(&id);
        // A suspended agent shows no services, and may still leave.
        match session.services().await {
            Ok(services) => goes.extend(what_goes(&services, &id).iter().map(|s| format!("traffic of {s}"))),
            Err(e) => session.log.warn(&format!("services cannot be listed: {}", e.text)),
        }
        confirm(&format!("Take this agent ({id}) out of its cluster?"), &goes)?;
    }
    let announcement = session.write(Call::delete("/v1/peers/self")).await?;
    let id = output::plain(&announcement["peer_id"]);
    let text = match session.writing.dry_run {
        true => format!("Peer {id} would leave the cluster"),
        false => format!("Peer {id} left the cluster; its agent stops"),
    };
    session.print_result(&text, announcement)
}

fn what_it_leaves(peer_id: &str) -> Vec<String> {
    let database = "the database of the agent: license, credentials, peers; peer.key stays";
    vec![format!("peer {peer_id} from every member of the cluster"), database.to_owned()]
}

/// The services from or to a peer, with their routes.
fn what_goes(services: &[Value], peer_id: &str) -> Vec<String> {
    let involved = services.iter().filter(|s| s["source_peer_id"] == peer_id || s["target_peer_id"] == peer_id);
    involved.map(super::services::description).collect()
}

/// Names may not look like ids (cli.md).
pub fn check_name(name: &str) -> Result<(), CliError> {
    if looks_like_id(name) {
        return Err(CliError::usage(format!("name `{name}` looks like an id")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_services_that_involve_the_peer_go_with_it() {
        let service = |id: &str, source: &str, target: &str| json!({"id":id,"name":id,"source_peer_id":source,"target_peer_id":target,"route_count":2});
        let all = [service("a", "p1", "p2"), service("b", "p2", "p3"), service("c", "p3", "p1")];
        let goes = what_goes(&all, "p1");
        assert_eq!(goes, ["service a (a) with 2 routes", "service c (c) with 2 routes"]);
    }
}
