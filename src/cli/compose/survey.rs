//! Who answers at the listed endpoints, and what the cluster is (compose.md §4, step 2).

use super::id_of;
use crate::{
    cli::{
        args::{Globals, ReachArgs},
        client::{Auth, Call, Client},
        errors::{CliError, Exit},
        files, output,
        session::{Session, agent_address, given, list_of},
        tokens::TokenCache,
    },
    compose::{ClusterFile, Contact, Live, LivePeer, LiveRoute, LiveService, Peer, View},
    env::SystemClock,
    model::{Endpoint, PeerId, Secret},
};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};
use tokio::task::{JoinSet, LocalSet};

pub struct Survey {
    pub session: Session,
    pub live: Live,
    /// One for each peer of the file, in its order.
    pub contacts: Vec<Contact>,
    /// Names and reasons of those that did not answer.
    pub away: Vec<(String, String)>,
    /// The listed peer whose agent is called: a member, with a credential that is known here. Absent when the first peer
    /// has yet to be bootstrapped for that.
    pub seat: Option<PeerId>,
}

/// Asks every listed peer who it is, then the cluster what it is.
pub async fn survey(globals: &Globals, file: &ClusterFile, reach: &ReachArgs) -> Result<Survey, CliError> {
    let mut session = Session::without_agent(globals)?;
    let answers = ask_all(&session, &file.peers).await;
    let mut contacts = Vec::new();
    let mut away = Vec::new();
    let mut clusters = Vec::new();
    for (peer, answer) in file.peers.iter().zip(answers) {
        let (contact, cluster) = answer.unwrap_or_else(|e| {
            away.push((peer.name.clone(), e.text));
            (Contact::Unreachable, String::new())
        });
        contacts.push(contact);
        clusters.push(cluster);
    }
    if let (false, [(name, reason), ..]) = (reach.ignore_unreachable, away.as_slice()) {
        let text = format!("peer {name} does not answer: {reason}");
        let error = CliError::new(Exit::Unreachable, "PEER_UNREACHABLE", text);
        let error = away.iter().skip(1).fold(error, |e, (name, reason)| e.with_fact(name, reason));
        return Err(error.with_hint("--ignore-unreachable goes on without it"));
    }
    if away.len() == file.peers.len() {
        return Err(CliError::new(Exit::Unreachable, "PEER_UNREACHABLE", "no listed peer answers"));
    }
    let Some((seat, id)) = choose_seat(globals, &session, file, &contacts, &clusters, reach)? else {
        return Ok(Survey { session, live: Live::default(), contacts, away, seat: None });
    };
    sit(globals, &mut session, (seat, id), reach)?;
    if matches!(session.client.auth, Auth::Nobody) {
        let text = format!("no credential for the cluster of peer {} is known here", seat.name);
        let error = CliError::new(Exit::Denied, "UNAUTHORIZED", text);
        return Err(error.with_hint("--credentials-file FILE, --token or --recovery-token-file"));
    }
    let live = live_state(&session, &mut contacts, &mut away, file, reach.ignore_unreachable).await?;
    Ok(Survey { session, live, contacts, away, seat: Some(id) })
}

/// The first listed member with a known credential. Where none is known and the first peer of the file has no license
/// yet, that one will be the seat; else the first member, which then says who may call it.
fn choose_seat<'f>(
    globals: &Globals,
    session: &Session,
    file: &'f ClusterFile,
    contacts: &[Contact],
    clusters: &[String],
    reach: &ReachArgs,
) -> Result<Option<(&'f Peer, PeerId)>, CliError> {
    let given_credentials = reach.credentials_file.as_deref().map(credentials_of).transpose()?.unwrap_or_default();
    let chosen = given(&globals.url).is_some() || given(&globals.cluster).is_some();
    let is_token = !matches!(session.client.auth, Auth::Nobody | Auth::Credential { .. });
    let mut members =
        file.peers.iter().zip(contacts).zip(clusters).filter_map(|((peer, contact), cluster)| match contact {
            Contact::Bootstrapped(id) => Some((peer, *id, cluster)),
            _ => None,
        });
    let known = |(peer, id, cluster): &(&Peer, PeerId, &String)| {
        let id = id.to_string();
        let lists =
            |c: &crate::cli::config::ClusterEntry| c.cluster_id == **cluster || c.peers.iter().any(|p| p.peer_id == id);
        let in_config = session.config.clusters.values().any(|c| !c.client_secret.is_empty() && lists(c));
        chosen
            || is_token
            || in_config
            || given_credentials.contains_key(&peer.name)
            || given_credentials.contains_key(&id)
    };
    let without_credential = members.clone().next();
    let first_is_new = contacts.first() == Some(&Contact::Unbootstrapped);
    let fallback = without_credential.filter(|_| !first_is_new);
    Ok(members.find(known).or(fallback).map(|(peer, id, _)| (peer, id)))
}

/// The agent of `seat` is called from now on, or that of `--url`.
pub fn sit(
    globals: &Globals,
    session: &mut Session,
    (seat, id): (&Peer, PeerId),
    reach: &ReachArgs,
) -> Result<(), CliError> {
    let agents = match given(&globals.url) {
        Some(url) => vec![agent_address(url)?],
        None => seat.endpoints.clone(),
    };
    session.sit_at(globals, agents)?;
    if let Some(path) = &reach.credentials_file
        && let Some(credential) = credential_for(credentials_of(path)?, seat, id)
        && matches!(session.client.auth, Auth::Nobody | Auth::Credential { .. })
    {
        session.client.auth = Auth::Credential {
            client_id: credential.client_id,
            client_secret: Secret::from_input(&credential.client_secret),
        };
    }
    Ok(())
}

/// By name in the file or by id.
fn credential_for(mut all: BTreeMap<String, GivenCredential>, peer: &Peer, id: PeerId) -> Option<GivenCredential> {
    all.remove(&peer.name).or_else(|| all.remove(&id.to_string()))
}

/// Holds a secret, hence no `Debug`.
#[derive(Deserialize)]
struct GivenCredential {
    client_id: String,
    client_secret: String,
}

fn credentials_of(path: &Path) -> Result<BTreeMap<String, GivenCredential>, CliError> {
    let wrong = |reason: String| {
        let error = CliError::new(Exit::Config, "CONFIG_INVALID", "cannot read the credentials file");
        error.with_fact(&path.display().to_string(), reason)
    };
    if path.as_os_str() != "-" && files::is_shared(path).map_err(|e| wrong(e.to_string()))? {
        return Err(wrong("it is readable by others".to_owned()).with_hint(format!("chmod 600 {}", path.display())));
    }
    let text = files::read_input(path).map_err(|e| wrong(e.to_string()))?;
    // The parser's words could quote a secret.
    serde_json::from_str(&text)
        .map_err(|e| wrong(format!("not {{\"PEER\": {{\"client_id\", \"client_secret\"}}}} in line {}", e.line())))
}

/// What somebody is, and the id of their cluster.
type Answered = (Contact, String);

/// One identity question to each peer, all at once.
async fn ask_all(session: &Session, peers: &[Peer]) -> Vec<Result<Answered, CliError>> {
    let local = LocalSet::new();
    let mut answers: Vec<Result<Answered, CliError>> =
        peers.iter().map(|_| Err(CliError::new(Exit::Unreachable, "PEER_UNREACHABLE", "not asked"))).collect();
    local
        .run_until(async {
            let mut asking = JoinSet::new();
            for (i, peer) in peers.iter().enumerate() {
                let client = public_client(session, peer.endpoints.clone());
                asking.spawn_local(async move { (i, who(&client).await) });
            }
            while let Some(done) = asking.join_next().await {
                if let Ok((i, answer)) = done {
                    answers[i] = answer;
                }
            }
        })
        .await;
    answers
}

/// A client that calls these agents without any credential.
pub fn public_client(session: &Session, agents: Vec<Endpoint>) -> Client {
    let log = session.log;
    let mut client = Client::new(agents, Auth::Nobody, TokenCache::new(None, log), Box::new(SystemClock::new()), log);
    client.timeout = session.client.timeout;
    client.timeout_is_chosen = session.client.timeout_is_chosen;
    client
}

async fn who(client: &Client) -> Result<Answered, CliError> {
    let identity = client.json(Call::get("/v1/cluster/identity").public()).await?;
    match identity["cluster_id"].as_str() {
        None | Some("") => Ok((Contact::Unbootstrapped, String::new())),
        Some(cluster) => Ok((Contact::Bootstrapped(id_of(&identity["peer_id"])?), cluster.to_owned())),
    }
}

/// The members of the seat's cluster with the views of the listed ones, and all services.
pub async fn live_state(
    session: &Session,
    contacts: &mut [Contact],
    away: &mut Vec<(String, String)>,
    file: &ClusterFile,
    ignore_unreachable: bool,
) -> Result<Live, CliError> {
    let mut live = of_session(session).await?;
    for (contact, peer) in contacts.iter_mut().zip(&file.peers) {
        let Contact::Bootstrapped(viewer) = *contact else { continue };
        // A peer that is no member yet cannot be asked; the called agent has been.
        if live.peer(viewer).is_none_or(|p| p.views.contains_key(&viewer)) {
            continue;
        }
        match session.call(Call::get("/v1/peers").at(viewer)).await {
            Ok(answer) => add_view(&mut live, viewer, &list_of(answer, "peers"))?,
            Err(e) if e.exit == Exit::Unreachable && ignore_unreachable => {
                *contact = Contact::Unreachable;
                away.push((peer.name.clone(), e.text));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(live)
}

/// Asks every member that can be reached how it sees the others; what differs is worth a warning.
pub async fn all_views(session: &Session, live: &mut Live) {
    for id in live.peers.iter().map(|p| p.id).collect::<Vec<_>>() {
        if live.peers.iter().any(|p| p.views.contains_key(&id)) {
            continue;
        }
        let seen = session.call(Call::get("/v1/peers").at(id)).await;
        if let Err(e) = seen.and_then(|answer| add_view(live, id, &list_of(answer, "peers"))) {
            session.log.debug(&format!("peer {id} was not asked: {}", e.text));
        }
    }
}

fn add_view(live: &mut Live, viewer: PeerId, rows: &[Value]) -> Result<(), CliError> {
    for row in rows.iter().filter(|row| is_member(row)) {
        let id: PeerId = id_of(&row["id"])?;
        if let Some(peer) = live.peers.iter_mut().find(|p| p.id == id) {
            peer.views.insert(viewer, view_of(row));
        }
    }
    Ok(())
}

/// Who is not trusted yet has no record, and so no name of its own.
pub fn is_member(row: &Value) -> bool {
    !row["self_name"].is_null()
}

pub fn view_of(row: &Value) -> View {
    View { name: output::plain(&row["name"]), qos_enabled: row["qos_enabled"] != false }
}

/// What the called agent knows: members as it sees them, services with their routes.
pub async fn of_session(session: &Session) -> Result<Live, CliError> {
    let identity = session.call(Call::get("/v1/cluster/identity").public()).await?;
    let mut live = Live { cluster_id: Some(output::plain(&identity["cluster_id"])), ..Live::default() };
    let rows = session.peers().await?;
    let own = rows.iter().find(|row| row["is_local"] == true);
    for row in rows.iter().filter(|row| is_member(row)) {
        live.peers.push(peer_of(session, row)?);
    }
    live.peers.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    if let Some(own) = own {
        add_view(&mut live, id_of(&own["id"])?, &rows)?;
    }
    for service in session.services().await? {
        let path = format!("/v1/services/{}", output::plain(&service["id"]));
        match session.call(Call::get(path)).await {
            Ok(service) => live.services.push(service_of(&service)?),
            // Deleted since the list was made.
            Err(e) if e.code == "NOT_FOUND" => {}
            Err(e) => return Err(e),
        }
    }
    live.services.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    Ok(live)
}

fn peer_of(session: &Session, row: &Value) -> Result<LivePeer, CliError> {
    let listed = row["endpoints"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut endpoints: Vec<Endpoint> = listed.filter_map(|e| e.parse().ok()).collect();
    let id: PeerId = id_of(&row["id"])?;
    if endpoints.is_empty() {
        endpoints = endpoints_in_config(session, row, id);
    }
    let View { name, qos_enabled } = view_of(row);
    let api_access = serde_json::from_value(row["api_access"].clone()).unwrap_or_default();
    Ok(LivePeer { id, name, endpoints, qos_enabled, api_access, views: BTreeMap::new() })
}

/// An agent may not know the addresses that others reach it at: those of the config file count, then the called one.
fn endpoints_in_config(session: &Session, row: &Value, id: PeerId) -> Vec<Endpoint> {
    let id = id.to_string();
    let entry = session.entry().and_then(|c| c.peers.iter().find(|p| p.peer_id == id));
    let listed = entry.map(|p| p.addresses()).unwrap_or_default();
    match listed.is_empty() && row["is_local"] == true {
        true => session.client.agent().cloned().into_iter().collect(),
        false => listed,
    }
}

fn service_of(row: &Value) -> Result<LiveService, CliError> {
    let cidr = |value: &Value| value.as_str().and_then(|t| t.parse::<IpNet>().ok());
    let mut service = LiveService {
        id: id_of(&row["id"])?,
        version: row["version"].as_u64().unwrap_or_default(),
        name: output::plain(&row["name"]),
        source: id_of(&row["source_peer_id"])?,
        target: id_of(&row["target_peer_id"])?,
        transport: row["transport_type"].as_str().and_then(|t| t.parse().ok()).unwrap_or_default(),
        fully_transparent: row["fully_transparent"] == true,
        requires_interface: row["requires_interface"] == true,
        ipv4: cidr(&row["desired_ipv4_cidr"]),
        ipv6: cidr(&row["desired_ipv6_cidr"]),
        bandwidth_limit_mbps: number(&row["bandwidth_limit_mbps"]).unwrap_or_default(),
        routes: Vec::new(),
    };
    for route in row["routes"].as_array().into_iter().flatten() {
        let Some(id) = number(&route["id"]) else { continue };
        service.routes.push(LiveRoute {
            id,
            version: route["version"].as_u64().unwrap_or_default(),
            source: cidr(&route["source_cidr"]),
            dest: cidr(&route["dest_cidr"]),
            priority: number(&route["priority"]).unwrap_or_default(),
        });
    }
    Ok(service)
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    value.as_u64().and_then(|n| T::try_from(n).ok())
}
