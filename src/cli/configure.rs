//! `arctic config …`: the config file from the command line (cli.md §4).

use super::{
    args::{ConfigCommand, Globals},
    client::Call,
    config::{self, ClusterEntry, Config, PeerEntry, Preferences},
    errors::{CliError, Exit, nearest},
    output::{self, Column, Noun, cell_plain},
    prompt::{Consent, confirm},
    session::{self, Session, agent_address, given, print},
    values::agent_url,
};
use crate::{
    compose::text_scalar,
    model::{Endpoint, PeerId, looks_like_id},
};
use serde_json::{Value, json};
use std::path::PathBuf;

const MASK: &str = "***";

const CLUSTER: Noun = Noun {
    keys: &["id", "name", "current", "customer_id", "client_id", "peers"],
    columns: &[
        Column::new("ID", "id", cell_plain),
        Column::new("NAME", "name", cell_plain),
        Column::new("CURRENT", "current", cell_plain),
        Column::new("PEERS", "peers", cell_plain),
        Column::wide("CUSTOMER", "customer_id", cell_plain),
        Column::wide("CLIENT-ID", "client_id", cell_plain),
    ],
};

const SETTING: Noun = Noun {
    keys: &["setting", "value", "origin"],
    columns: &[
        Column::new("SETTING", "setting", cell_plain),
        Column::new("VALUE", "value", cell_plain),
        Column::new("ORIGIN", "origin", cell_plain),
    ],
};

pub const KEYS: [&str; 7] =
    ["current_cluster", "default_peer", "output_format", "timeout", "cache_ttl", "backup_retention", "color"];

pub async fn run(globals: &Globals, command: &ConfigCommand) -> Result<(), CliError> {
    let changes = !matches!(command, ConfigCommand::View { .. } | ConfigCommand::Path | ConfigCommand::List);
    if globals.dry_run && changes {
        return Err(CliError::usage("--dry-run is for changes of the cluster, not of the config file"));
    }
    match command {
        ConfigCommand::View { show_origin: true } => origins(globals),
        ConfigCommand::View { show_origin: false } => view(globals),
        ConfigCommand::Path => {
            let path = config::path_or_default(globals.config.as_ref())?.display().to_string();
            say(globals, &path, json!({ "path": path }))
        }
        ConfigCommand::List => list(globals),
        ConfigCommand::UseCluster { cluster } => use_cluster(globals, cluster),
        ConfigCommand::RenameCluster { cluster, name } => rename_cluster(globals, cluster, name),
        ConfigCommand::DeleteCluster { cluster } => delete_cluster(globals, cluster),
        ConfigCommand::AddPeer { endpoints, name } => add_peer(globals, endpoints, name.as_deref()).await,
        ConfigCommand::DeletePeer(argument) => delete_peer(globals, &argument.peer),
        ConfigCommand::Set { key, value } => set(globals, key, value),
    }
}

fn say(globals: &Globals, text: &str, object: Value) -> Result<(), CliError> {
    let (view, _) = session::output_of(globals, &Preferences::default())?;
    session::print_result(&view, text, object)
}

/// The file as it is; an empty one where there is none.
fn read(globals: &Globals) -> Result<(PathBuf, Config), CliError> {
    let path = config::path_or_default(globals.config.as_ref())?;
    let config = Config::read(&path)?.unwrap_or_default();
    Ok((path, config))
}

fn view(globals: &Globals) -> Result<(), CliError> {
    let (_, mut config) = read(globals)?;
    for entry in config.clusters.values_mut().filter(|c| !c.client_secret.is_empty()) {
        MASK.clone_into(&mut entry.client_secret);
    }
    let (view, _) = session::output_of(globals, &Preferences::default())?;
    if view.is_structured() {
        let object =
            serde_json::to_value(&config).map_err(|e| CliError::config(format!("cannot show the config: {e}")))?;
        return session::print_result(&view, "", object);
    }
    print(&config.render()?);
    Ok(())
}

/// What counts now, and why.
fn origins(globals: &Globals) -> Result<(), CliError> {
    let (path, config) = read(globals)?;
    let preferences = config.preferences.clone().unwrap_or_default();
    let file = format!("file {}", path.display());
    let entry = config.choose_cluster(given(&globals.cluster)).ok().map(|key| (key.to_owned(), &config.clusters[key]));
    let text = |number: Option<u64>| number.map(|n| n.to_string());
    let cluster_origin = if given(&globals.cluster).is_some() { "" } else { &file };
    let rows = [
        ("config", path.display().to_string(), origin(globals.config.is_some(), "ARCTIC_CONFIG", "", "default")),
        pair("url", given(&globals.url).map(str::to_owned), "ARCTIC_URL", None, &file, "none"),
        (
            "cluster",
            entry.as_ref().map_or("none".to_owned(), |(key, _)| key.clone()),
            origin(given(&globals.cluster).is_some(), "ARCTIC_CLUSTER", cluster_origin, "default"),
        ),
        pair("peer", given(&globals.peer).map(str::to_owned), "ARCTIC_PEER", None, &file, "none"),
        pair(
            "credential",
            None,
            "ARCTIC_TOKEN",
            entry.map(|(_, e)| e.client_id.clone()).filter(|c| !c.is_empty()),
            &file,
            "none",
        ),
        pair(
            "output_format",
            globals.output.map(|f| format!("{f:?}").to_lowercase()),
            "ARCTIC_OUTPUT",
            preferences.output_format,
            &file,
            "table",
        ),
        pair(
            "timeout",
            globals.timeout.map(|t| t.as_secs_f64().to_string()),
            "ARCTIC_TIMEOUT",
            text(preferences.timeout),
            &file,
            "30",
        ),
        pair("cache_ttl", None, "", text(preferences.cache_ttl), &file, "3600"),
        pair("backup_retention", None, "", text(preferences.backup_retention), &file, "5"),
        pair("color", None, "NO_COLOR", preferences.color.map(|c| c.to_string()), &file, "true"),
    ];
    let rows = rows.map(|(setting, value, origin)| json!({"setting": setting, "value": value, "origin": origin}));
    let (view, _) = session::output_of(globals, &Preferences::default())?;
    print(&output::render_list(&SETTING, rows.to_vec(), &view)?);
    Ok(())
}

fn pair(
    name: &'static str,
    given: Option<String>,
    variable: &str,
    kept: Option<String>,
    file: &str,
    default: &str,
) -> (&'static str, String, String) {
    let from = origin(given.is_some(), variable, if kept.is_some() { file } else { "" }, "default");
    (name, given.or(kept).unwrap_or_else(|| default.to_owned()), from)
}

/// A flag and its variable come as one value: it is the variable's where that is set and the flag was not typed.
fn origin(given: bool, variable: &str, file: &str, default: &str) -> String {
    let from_variable = !variable.is_empty() && std::env::var_os(variable).is_some_and(|v| !v.is_empty());
    match (given, from_variable) {
        (true, true) => format!("environment {variable}"),
        (true, false) => "flag".to_owned(),
        (false, _) if !file.is_empty() => file.to_owned(),
        (false, _) => default.to_owned(),
    }
}

fn list(globals: &Globals) -> Result<(), CliError> {
    let (_, config) = read(globals)?;
    let current = config.choose_cluster(given(&globals.cluster)).ok().map(str::to_owned);
    let rows = config.clusters.iter().map(|(key, entry)| {
        json!({"id": key, "name": entry.name, "current": Some(key) == current.as_ref(),
            "customer_id": entry.customer_id, "client_id": entry.client_id, "peers": entry.peers.len()})
    });
    let (view, log) = session::output_of(globals, &Preferences::default())?;
    let rows: Vec<Value> = rows.collect();
    if rows.is_empty() && !view.is_structured() {
        log.hint("No clusters. Begin with: arctic bootstrap --url http://HOST:8080 --license-file license.json");
    }
    print(&output::render_list(&CLUSTER, rows, &view)?);
    Ok(())
}

fn use_cluster(globals: &Globals, wanted: &str) -> Result<(), CliError> {
    let (path, config) = read(globals)?;
    let key = config.find_cluster(wanted)?.to_owned();
    Config::update(&path, |config| config.current_cluster = Some(key.clone()))?;
    say(globals, &format!("Current cluster: {key}"), json!({ "current_cluster": key }))
}

fn rename_cluster(globals: &Globals, wanted: &str, name: &str) -> Result<(), CliError> {
    let (path, config) = read(globals)?;
    let key = config.find_cluster(wanted)?.to_owned();
    if looks_like_id(name) || name.trim().is_empty() {
        return Err(CliError::usage(format!("name `{name}` looks like an id, or is empty")));
    }
    let has_it = |(other, entry): (&String, &ClusterEntry)| {
        *other != key && entry.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(name))
    };
    if config.clusters.iter().any(has_it) {
        return Err(CliError::new(Exit::General, "ALREADY_EXISTS", format!("another cluster is named {name}")));
    }
    Config::update(&path, |config| {
        if let Some(entry) = config.clusters.get_mut(&key) {
            entry.name = Some(name.to_owned());
        }
    })?;
    say(globals, &format!("Cluster {key} is named {name}"), json!({ "id": key, "name": name }))
}

fn delete_cluster(globals: &Globals, wanted: &str) -> Result<(), CliError> {
    let (path, config) = read(globals)?;
    let key = config.find_cluster(wanted)?.to_owned();
    if Consent::of(globals)? == Consent::Ask {
        let entry = &config.clusters[&key];
        let mut goes = vec![format!("{} peers of the config file; the agents themselves stay", entry.peers.len())];
        if !entry.client_secret.is_empty() {
            goes.push(format!("credential {}, whose secret is kept nowhere else", entry.client_id));
        }
        confirm(&format!("Forget cluster {key}?"), &goes)?;
    }
    Config::update(&path, |config| {
        config.clusters.remove(&key);
        config.current_cluster.take_if(|c| *c == key);
    })?;
    say(globals, &format!("Cluster {key} forgotten"), output::deleted_if(&key, true))
}

async fn add_peer(globals: &Globals, urls: &[String], name: Option<&str>) -> Result<(), CliError> {
    let (path, config) = read(globals)?;
    let key = config.choose_cluster(given(&globals.cluster))?.to_owned();
    let endpoints: Vec<Endpoint> = urls.iter().map(|url| agent_address(url)).collect::<Result<_, _>>()?;
    let asked = Globals { url: Some(agent_url(&endpoints[0])), cluster: None, peer: None, ..globals.clone() };
    let session = Session::open(&asked).await?;
    let identity = session.call(Call::get("/v1/cluster/identity").public()).await?;
    let (peer_id, cluster_id) = (output::plain(&identity["peer_id"]), output::plain(&identity["cluster_id"]));
    if cluster_id != config.clusters[&key].cluster_id {
        let error = CliError::new(Exit::General, "CONFLICT", "that agent belongs to another cluster");
        let error = error.with_fact("expected", &config.clusters[&key].cluster_id).with_fact("it says", cluster_id);
        return Err(error.with_hint(format!("arctic peers add {}", endpoints[0])));
    }
    let entry = PeerEntry {
        peer_id: peer_id.clone(),
        name: name.unwrap_or_default().to_owned(),
        endpoints: endpoints.iter().map(agent_url).collect(),
        ..PeerEntry::default()
    };
    Config::update(&path, |config| {
        let Some(cluster) = config.clusters.get_mut(&key) else { return };
        cluster.peers.retain(|p| p.peer_id != peer_id);
        cluster.peers.push(entry);
    })?;
    say(globals, &format!("Peer {peer_id} listed in {key}"), json!({ "peer_id": peer_id, "cluster_id": key }))
}

/// By id, bare ULID, or name.
fn delete_peer(globals: &Globals, wanted: &str) -> Result<(), CliError> {
    let (path, config) = read(globals)?;
    let key = config.choose_cluster(given(&globals.cluster))?.to_owned();
    let objects: Vec<Value> =
        config.clusters[&key].peers.iter().map(|p| json!({ "id": p.peer_id, "name": p.name })).collect();
    let id = super::names::pick("peer", PeerId::PREFIX, wanted, &objects)?;
    Config::update(&path, |config| {
        let Some(cluster) = config.clusters.get_mut(&key) else { return };
        cluster.peers.retain(|p| p.peer_id != id);
        if cluster.default_peer == id {
            cluster.default_peer.clear();
        }
    })?;
    say(globals, &format!("Peer {id} forgotten"), output::deleted_if(&id, true))
}

fn set(globals: &Globals, key: &str, value: &str) -> Result<(), CliError> {
    let (path, config) = read(globals)?;
    let change = setting(globals, &config, key, value)?;
    Config::update(&path, change)?;
    say(globals, &format!("{key}: {}", text_scalar(value)), json!({ "key": key, "value": value }))
}

type Change = Box<dyn FnOnce(&mut Config)>;

/// What `set KEY VALUE` does to the file, checked before anything is written.
fn setting(globals: &Globals, config: &Config, key: &str, value: &str) -> Result<Change, CliError> {
    let wrong = |expected: &str| CliError::usage(format!("{key} is {expected}, not `{value}`"));
    let number = || value.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(|| wrong("a number above zero"));
    fn prefer(change: impl FnOnce(&mut Preferences) + 'static) -> Change {
        Box::new(move |config| change(config.preferences.get_or_insert_default()))
    }
    Ok(match key {
        "current_cluster" => {
            let cluster = config.find_cluster(value)?.to_owned();
            Box::new(move |config| config.current_cluster = Some(cluster))
        }
        "default_peer" => {
            let cluster = config.choose_cluster(given(&globals.cluster))?.to_owned();
            let peers = config.clusters[&cluster].peers.iter();
            let objects: Vec<Value> = peers.map(|p| json!({ "id": p.peer_id, "name": p.name })).collect();
            let id = super::names::pick("peer", PeerId::PREFIX, value, &objects)?;
            Box::new(move |config| {
                if let Some(entry) = config.clusters.get_mut(&cluster) {
                    entry.default_peer = id;
                }
            })
        }
        "output_format" => match value {
            "table" | "json" | "yaml" => {
                let value = value.to_owned();
                prefer(|p| p.output_format = Some(value))
            }
            _ => return Err(wrong("table, json or yaml")),
        },
        "timeout" => number().map(|n| prefer(move |p| p.timeout = Some(n)))?,
        "cache_ttl" => number().map(|n| prefer(move |p| p.cache_ttl = Some(n)))?,
        "backup_retention" => number().map(|n| prefer(move |p| p.backup_retention = Some(n)))?,
        "color" => {
            let color = value.parse::<bool>().map_err(|_| wrong("true or false"))?;
            prefer(move |p| p.color = Some(color))
        }
        other => {
            let error = CliError::usage(format!("unknown key `{other}`"));
            return Err(match nearest(other, KEYS) {
                Some(near) => error.with_hint(format!("did you mean {near}?")),
                None => error.with_fact("keys", KEYS.join(", ")),
            });
        }
    })
}
