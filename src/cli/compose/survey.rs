//! Who answers at the listed endpoints, and what the cluster is (compose.md §4, step 2).

use super::id_of;
use crate::{
    cli::{
        args::{Globals, ReachArgs},
        client::{Auth, Call, Client},
        config::{ClusterEntry, Config},
        errors::{CliError, Exit},
        files, output,
        session::{Session, agent_address, given, list_of},
        tokens::TokenCache,
    },
    compose::{ClusterFile, Contact, Live, LivePeer, LiveRoute, LiveService, Peer, View},
    env::{Clock, SystemClock},
    model::{Endpoint, PeerId, Secret},
};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, future::poll_fn, path::Path, task::Poll, time::Duration};

/// Over a long path one call after the other would take minutes.
const CALLS_AT_ONCE: usize = 16;
/// A credential reaches a new member by then, if it does at all.
const KNOWN_WITHIN: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(300);

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
    let Some(seat) = choose_seat(globals, &session, file, &contacts, &clusters, reach)? else {
        return Ok(Survey { session, live: Live::default(), contacts, away, seat: None });
    };
    sit(globals, &mut session, &seat, reach)?;
    if matches!(session.client.auth, Auth::Nobody) {
        let text = format!("no credential for the cluster of peer {} is known here", seat.peer.name);
        let error = CliError::new(Exit::Denied, "UNAUTHORIZED", text);
        return Err(error.with_hint("--credentials-file FILE, --token or --recovery-token-file"));
    }
    let live = live_state(&session, &mut contacts, &mut away, file, reach.ignore_unreachable).await?;
    Ok(Survey { session, live, contacts, away, seat: Some(seat.id) })
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
) -> Result<Option<Seat<'f>>, CliError> {
    let given_credentials = reach.credentials_file.as_deref().map(credentials_of).transpose()?.unwrap_or_default();
    let chosen = given(&globals.url).is_some() || given(&globals.cluster).is_some();
    let is_token = !matches!(session.client.auth, Auth::Nobody | Auth::Credential { .. });
    let all = file.peers.iter().zip(contacts).zip(clusters);
    let members = all.filter_map(|((peer, contact), cluster)| match contact {
        Contact::Bootstrapped(id) => Some(Seat { peer, id: *id, cluster_id: cluster.clone() }),
        _ => None,
    });
    let mut members: Vec<Seat<'f>> = members.collect();
    let is_known = |seat: &Seat<'_>| {
        let given = [&seat.peer.name, &seat.id.to_string()].iter().any(|key| given_credentials.contains_key(*key));
        chosen || is_token || given || seat.entry(&session.config).is_some()
    };
    let first_is_new = contacts.first() == Some(&Contact::Unbootstrapped);
    let at = members.iter().position(is_known).or((!first_is_new && !members.is_empty()).then_some(0));
    Ok(at.map(|at| members.swap_remove(at)))
}

/// The peer whose agent is called.
pub struct Seat<'f> {
    pub peer: &'f Peer,
    pub id: PeerId,
    pub cluster_id: String,
}

impl Seat<'_> {
    /// The key of the config entry of its cluster.
    fn entry(&self, config: &Config) -> Option<String> {
        let id = self.id.to_string();
        let is_it = |c: &ClusterEntry| c.cluster_id == self.cluster_id || c.peers.iter().any(|p| p.peer_id == id);
        config.clusters.iter().find(|(_, c)| !c.client_secret.is_empty() && is_it(c)).map(|(key, _)| key.clone())
    }
}

/// The agent of `seat` is called from now on, or that of `--url`.
pub fn sit(globals: &Globals, session: &mut Session, seat: &Seat<'_>, reach: &ReachArgs) -> Result<(), CliError> {
    let agents = match given(&globals.url) {
        Some(url) => vec![agent_address(url)?],
        None => seat.peer.endpoints.clone(),
    };
    let cluster = match given(&globals.cluster) {
        Some(wanted) => Some(session.config.find_cluster(wanted)?.to_owned()),
        None => seat.entry(&session.config),
    };
    session.sit_at(agents, cluster);
    if let Some(path) = &reach.credentials_file
        && let Some(credential) = credential_for(credentials_of(path)?, seat)
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
fn credential_for(mut all: BTreeMap<String, GivenCredential>, seat: &Seat<'_>) -> Option<GivenCredential> {
    all.remove(&seat.peer.name).or_else(|| all.remove(&seat.id.to_string()))
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
    let clients: Vec<Client> = peers.iter().map(|peer| public_client(session, peer.endpoints.clone())).collect();
    all_at_once(clients.iter().map(who).collect()).await
}

/// Waits for all of them; the outputs are in their order.
async fn all_at_once<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut open: Vec<_> = futures.into_iter().map(|f| (Some(Box::pin(f)), None)).collect();
    poll_fn(|context| {
        let mut is_done = true;
        for (future, output) in &mut open {
            let Some(running) = future else { continue };
            match running.as_mut().poll(context) {
                Poll::Ready(value) => (*future, *output) = (None, Some(value)),
                Poll::Pending => is_done = false,
            }
        }
        if is_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    open.into_iter().filter_map(|(_, output)| output).collect()
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
        match peers_at(session, viewer).await {
            Ok(rows) => add_view(&mut live, viewer, &rows)?,
            Err(e) if e.exit == Exit::Unreachable && ignore_unreachable => {
                *contact = Contact::Unreachable;
                away.push((peer.name.clone(), e.text));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(live)
}

/// The peers as another member sees them. One that joined a moment ago may not know our credential yet.
pub async fn peers_at(session: &Session, viewer: PeerId) -> Result<Vec<Value>, CliError> {
    let clock = SystemClock::new();
    let started = clock.mono();
    loop {
        match session.call(Call::get("/v1/peers").at(viewer)).await {
            Err(e) if e.code == "UNAUTHORIZED" && clock.mono() - started < KNOWN_WITHIN => {
                session.log.debug(&format!("peer {viewer} does not know the credential yet: {}", e.text));
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            answer => return answer.map(|answer| list_of(answer, "peers")),
        }
    }
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
    let services = session.services().await?;
    for some in services.chunks(CALLS_AT_ONCE) {
        let whole = |s: &Value| session.call(Call::get(format!("/v1/services/{}", output::plain(&s["id"]))));
        for service in all_at_once(some.iter().map(whole).collect()).await {
            match service {
                Ok(service) => live.services.push(service_of(&service)?),
                // Deleted since the list was made.
                Err(e) if e.code == "NOT_FOUND" => {}
                Err(e) => return Err(e),
            }
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
