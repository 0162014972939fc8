//! What completions know (cli.md §4): peers and services of every cluster, in one file.

use super::{
    args::{CacheCommand, Globals},
    config::{self, Config, Preferences},
    errors::{CliError, Exit},
    files, output,
    session::{self, Session},
};
use crate::{
    env::{Clock, SystemClock},
    model::UnixTime,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, io, path::PathBuf};

const VERSION: u32 = 1;
pub const TTL_DEFAULT_S: u64 = 3600;

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    version: u32,
    updated_at: String,
    pub clusters: BTreeMap<String, CachedCluster>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CachedCluster {
    pub peers: Vec<CachedPeer>,
    pub services: Vec<CachedService>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CachedPeer {
    pub id: String,
    pub name: String,
    url: String,
    is_local: bool,
    cached_at: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CachedService {
    pub id: String,
    pub name: String,
    source_peer_id: String,
    target_peer_id: String,
    cached_at: String,
}

pub fn path() -> Option<PathBuf> {
    files::cache_dir().map(|dir| dir.join("completion.json"))
}

impl Cache {
    /// What is there; nothing where it cannot be read.
    pub fn read() -> Cache {
        let text = path().and_then(|path| fs::read_to_string(path).ok());
        text.and_then(|t| serde_json::from_str(&t).ok()).filter(|c: &Cache| c.version == VERSION).unwrap_or_default()
    }

    fn age_s(&self, now: UnixTime) -> Option<u64> {
        let then = UnixTime::parse_rfc3339(&self.updated_at).ok()?;
        Some(now.as_ms().saturating_sub(then.as_ms()) / 1000)
    }
}

pub async fn run(globals: &Globals, command: &CacheCommand) -> Result<(), CliError> {
    match command {
        CacheCommand::Refresh => refresh(globals).await,
        CacheCommand::Status => status(globals),
        CacheCommand::Clear => clear(globals),
    }
}

fn place() -> Result<PathBuf, CliError> {
    let nowhere = || CliError::config("no place for the cache: neither HOME nor XDG_CACHE_HOME is set");
    path().ok_or_else(nowhere)
}

/// Each cluster through the first of its peers that answers.
async fn refresh(globals: &Globals) -> Result<(), CliError> {
    let file = place()?;
    let config_path = config::path_or_default(globals.config.as_ref())?;
    let config = Config::read(&config_path)?.unwrap_or_default();
    if config.clusters.is_empty() {
        return Err(CliError::new(Exit::General, "NOT_FOUND", "the config file lists no cluster"));
    }
    let now = SystemClock::new().unix().to_string();
    let mut cache = Cache { version: VERSION, updated_at: now.clone(), clusters: Cache::read().clusters };
    cache.clusters.retain(|key, _| config.clusters.contains_key(key));
    let mut failures = Vec::new();
    for key in config.clusters.keys() {
        match of_cluster(globals, key, &now).await {
            Ok(cluster) => drop(cache.clusters.insert(key.clone(), cluster)),
            Err(e) => failures.push((key.clone(), e)),
        }
    }
    let total = config.clusters.len();
    if let (true, Some((_, first))) = (failures.len() == total, failures.first()) {
        return Err(first.clone());
    }
    let text = serde_json::to_string(&cache)
        .map_err(|e| CliError::new(Exit::General, "INTERNAL", format!("cannot write the cache: {e}")))?;
    files::write_private(&file, &text).map_err(|e| failed(&file, &e))?;
    let (peers, services) = counts(&cache);
    let text = format!("{} clusters, {peers} peers, {services} services", total - failures.len());
    let (view, _) = session::output_of(globals, &Preferences::default())?;
    session::print_result(
        &view,
        &text,
        json!({"clusters": total - failures.len(), "peers": peers, "services": services}),
    )?;
    if failures.is_empty() {
        return Ok(());
    }
    let text = format!("{} of {total} clusters were not reached", failures.len());
    let error = CliError::new(Exit::Degraded, "PARTIAL_FAILURE", text);
    Err(failures.into_iter().fold(error, |error, (key, e)| error.with_fact(&key, e.text)))
}

async fn of_cluster(globals: &Globals, key: &str, now: &str) -> Result<CachedCluster, CliError> {
    let asked = Globals { cluster: Some(key.to_owned()), url: None, peer: None, ..globals.clone() };
    let session = Session::open(&asked).await?;
    let text = |value: &Value| output::plain(value);
    let peer = |p: &Value| CachedPeer {
        id: text(&p["id"]),
        name: text(&p["name"]),
        url: p["address"].as_str().map(|a| format!("http://{a}")).unwrap_or_default(),
        is_local: p["is_local"] == true,
        cached_at: now.to_owned(),
    };
    let service = |s: &Value| CachedService {
        id: text(&s["id"]),
        name: text(&s["name"]),
        source_peer_id: text(&s["source_peer_id"]),
        target_peer_id: text(&s["target_peer_id"]),
        cached_at: now.to_owned(),
    };
    let peers = session.peers().await?.iter().map(peer).collect();
    Ok(CachedCluster { peers, services: session.services().await?.iter().map(service).collect() })
}

fn counts(cache: &Cache) -> (usize, usize) {
    let sum = |of: fn(&CachedCluster) -> usize| cache.clusters.values().map(of).sum();
    (sum(|c| c.peers.len()), sum(|c| c.services.len()))
}

fn failed(path: &std::path::Path, e: &io::Error) -> CliError {
    CliError::new(Exit::General, "INTERNAL", format!("cannot change {}: {e}", path.display()))
}

fn status(globals: &Globals) -> Result<(), CliError> {
    let file = place()?;
    let config_path = config::path_or_default(globals.config.as_ref())?;
    let preferences = Config::read(&config_path)?.and_then(|c| c.preferences).unwrap_or_default();
    let ttl_s = preferences.cache_ttl.unwrap_or(TTL_DEFAULT_S);
    let cache = Cache::read();
    let age_s = cache.age_s(SystemClock::new().unix());
    let stale = age_s.is_none_or(|age| age > ttl_s);
    let (peers, services) = counts(&cache);
    let age = age_s.map_or("never filled".to_owned(), |age| format!("{age} s"));
    let mark = if stale { "  [STALE]" } else { "" };
    let rows = [
        ("File", file.display().to_string()),
        ("Age", format!("{age}{mark}")),
        ("TTL", format!("{ttl_s} s")),
        ("Clusters", cache.clusters.len().to_string()),
        ("Peers", peers.to_string()),
        ("Services", services.to_string()),
    ];
    let text = output::lines(&[], &rows.map(|(label, value)| vec![label.to_owned(), value]));
    let object = json!({"file": file.display().to_string(), "age_s": age_s, "ttl_s": ttl_s, "stale": stale,
        "clusters": cache.clusters.len(), "peers": peers, "services": services});
    let (view, log) = session::output_of(globals, &Preferences::default())?;
    session::print_result(&view, text.trim_end(), object)?;
    if stale {
        log.hint("arctic cache refresh");
    }
    Ok(())
}

fn clear(globals: &Globals) -> Result<(), CliError> {
    let file = place()?;
    for path in [file.clone(), file.with_file_name("tokens.json")] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&path, &e)),
            _ => {}
        }
    }
    let (view, _) = session::output_of(globals, &Preferences::default())?;
    session::print_result(&view, "Cache cleared", json!({ "cleared": true }))
}
