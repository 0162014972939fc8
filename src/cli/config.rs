//! The config file (cli.md §4): clusters, their credentials and peers. Keys that are not known here are kept.

use super::{
    errors::{CliError, nearest},
    exchange::mask_secrets,
    files::{self, FileLock},
    values::{agent_url, parse_agent_url},
};
use crate::model::Endpoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

type Extra = BTreeMap<String, Value>;

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_cluster: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub clusters: BTreeMap<String, ClusterEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferences: Option<Preferences>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One cluster and how to reach it. Holds a secret, hence no `Debug`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterEntry {
    pub cluster_id: String,
    pub customer_id: String,
    pub client_id: String,
    pub client_secret: String,
    /// Id of the peer that is asked first; empty: the first one.
    pub default_peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub peers: Vec<PeerEntry>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerEntry {
    pub peer_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub endpoints: Vec<String>,
    /// The old form of a single endpoint.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Preferences {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_format: Option<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Seconds that completions are fresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_ttl: Option<u64>,
    /// Backups of compose that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_retention: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<bool>,
    #[serde(flatten)]
    pub extra: Extra,
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

impl PeerEntry {
    /// Its addresses in order; the old single form comes last. Unreadable ones are left out.
    pub fn addresses(&self) -> Vec<Endpoint> {
        let texts = self.endpoints.iter().chain(Some(&self.url).filter(|u| !u.is_empty()));
        texts.filter_map(|t| parse_agent_url(t).ok()).collect()
    }

    /// Whether both mean one peer: the same id or a common address.
    fn is_same(&self, other: &PeerEntry) -> bool {
        let same_id = !self.peer_id.is_empty() && self.peer_id == other.peer_id;
        let theirs = other.addresses();
        same_id || self.addresses().iter().any(|a| theirs.contains(a))
    }
}

impl ClusterEntry {
    /// Addresses in the order they are tried: the default peer, then the others as listed.
    pub fn addresses(&self) -> Vec<Endpoint> {
        let is_default = |p: &&PeerEntry| !self.default_peer.is_empty() && p.peer_id == self.default_peer;
        let first = self.peers.iter().filter(is_default);
        let others = self.peers.iter().filter(|p| !is_default(p));
        let mut all: Vec<Endpoint> = Vec::new();
        for address in first.chain(others).flat_map(PeerEntry::addresses) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }
}

impl Config {
    /// Reads the file. `None`: there is none.
    pub fn read(path: &Path) -> Result<Option<Config>, CliError> {
        let failed = |e: io::Error| CliError::config(format!("cannot read config file {}: {e}", path.display()));
        let text = match files::read_input(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let config = Config::parse(&text).map_err(|e| e.with_fact("file", path.display().to_string()))?;
        if config.holds_secrets() && path.as_os_str() != "-" && files::is_shared(path).map_err(failed)? {
            return Err(CliError::config("config file with secrets is readable by others")
                .with_fact("file", path.display().to_string())
                .with_hint(format!("chmod 600 {}", path.display())));
        }
        Ok(Some(config))
    }

    pub fn parse(text: &str) -> Result<Config, CliError> {
        if text.trim().is_empty() {
            return Ok(Config::default());
        }
        // The plain rendering quotes no source lines, which may hold secrets.
        serde_saphyr::from_str::<Option<Config>>(text).map(Option::unwrap_or_default).map_err(|e| {
            let place =
                e.location().map_or_else(String::new, |l| format!(" at line {}, column {}", l.line(), l.column()));
            CliError::config(format!("config file is not valid{place}")).with_fact("reason", plain_reason(&e))
        })
    }

    pub fn render(&self) -> Result<String, CliError> {
        serde_saphyr::to_string(self).map_err(|e| CliError::config(format!("cannot write the config as YAML: {e}")))
    }

    fn holds_secrets(&self) -> bool {
        self.clusters.values().any(|c| !c.client_secret.is_empty())
    }

    /// Reads, changes and writes the file while holding its lock.
    pub fn update<T>(path: &Path, change: impl FnOnce(&mut Config) -> T) -> Result<T, CliError> {
        let failed = |e: io::Error| CliError::config(format!("cannot write config file {}: {e}", path.display()));
        let _lock = FileLock::acquire(path).map_err(failed)?;
        let mut config = Config::read(path)?.unwrap_or_default();
        let result = change(&mut config);
        files::write_private(path, &config.render()?).map_err(failed)?;
        Ok(result)
    }

    /// The key of a cluster named by key, id or name.
    pub fn find_cluster(&self, wanted: &str) -> Result<&str, CliError> {
        if let Some((key, _)) = self.clusters.get_key_value(wanted) {
            return Ok(key);
        }
        let named = |(key, c): &(&String, &ClusterEntry)| {
            c.cluster_id == wanted
                || c.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(wanted))
                || *key == wanted
        };
        let found: Vec<&str> = self.clusters.iter().filter(named).map(|(k, _)| k.as_str()).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => {
                let names = self.clusters.iter().flat_map(|(k, c)| [Some(k.as_str()), c.name.as_deref()]).flatten();
                let error = CliError::config(format!("cluster `{wanted}` is not in the config file"));
                Err(match nearest(wanted, names) {
                    Some(near) => error.with_hint(format!("did you mean {near}?")),
                    None => error,
                })
            }
            many => {
                Err(CliError::usage(format!("cluster `{wanted}` is ambiguous"))
                    .with_fact("candidates", many.join(", ")))
            }
        }
    }

    /// The cluster commands go to: `--cluster`, else the current one.
    pub fn choose_cluster(&self, wanted: Option<&str>) -> Result<&str, CliError> {
        let wanted = wanted.or(self.current_cluster.as_deref()).filter(|c| !c.is_empty());
        match wanted {
            Some(c) => self.find_cluster(c),
            None => Err(no_current_cluster()),
        }
    }

    /// The cluster that lists this address.
    pub fn cluster_at(&self, address: &Endpoint) -> Option<&str> {
        let lists = |c: &ClusterEntry| c.peers.iter().any(|p| p.addresses().contains(address));
        let current = self.current_cluster.as_deref().and_then(|c| self.clusters.get_key_value(c));
        current.into_iter().chain(self.clusters.iter()).find(|(_, entry)| lists(entry)).map(|(key, _)| key.as_str())
    }

    /// Takes up a freshly bootstrapped cluster by the rules of cli.md §5. Returns whether it is now the current one.
    ///
    /// The agent was unbootstrapped a moment ago, so no older entry can reach another cluster through it: it is taken
    /// off their lists. Their credentials stay, because members that are not listed may still accept them.
    pub fn take_up_bootstrap(&mut self, entry: ClusterEntry, set_current: bool) -> bool {
        for other in self.clusters.values_mut() {
            other.peers.retain(|p| !entry.peers.iter().any(|new| new.is_same(p)));
        }
        let current = self.current_cluster.as_ref().and_then(|c| self.clusters.get(c));
        let keeps = current.is_some_and(|c| !c.peers.is_empty() && c.customer_id == entry.customer_id);
        let becomes_current = set_current || !keeps;
        if becomes_current {
            self.current_cluster = Some(entry.cluster_id.clone());
        }
        self.clusters.insert(entry.cluster_id.clone(), entry);
        becomes_current
    }

    /// The single-peer entry of a peer in another cluster than `caller`.
    pub fn newcomer(&self, caller: &str, peer_id: &str) -> Option<&ClusterEntry> {
        let is_it = |c: &ClusterEntry| matches!(c.peers.as_slice(), [only] if only.peer_id == peer_id);
        self.clusters.iter().find(|(key, c)| key.as_str() != caller && is_it(c)).map(|(_, c)| c)
    }

    /// Folds the newcomer's entry into the caller's, under the surviving cluster id (cli.md §5).
    pub fn fold_newcomer(&mut self, caller: &str, peer_id: &str, surviving: &str, credential: SharedCredential) {
        let newcomer_id = self.newcomer(caller, peer_id).map(|c| c.cluster_id.clone());
        let Some(mut merged) = self.clusters.remove(caller) else { return };
        let newcomer = newcomer_id.as_ref().and_then(|id| self.clusters.remove(id));
        let gone = [Some(caller.to_owned()), newcomer_id].into_iter().flatten();
        if gone.into_iter().any(|id| self.current_cluster.as_deref() == Some(&id)) {
            self.current_cluster = Some(surviving.to_owned());
        }
        if let Some(newcomer) = newcomer {
            if credential == SharedCredential::Newcomers {
                merged.client_id = newcomer.client_id;
                merged.client_secret = newcomer.client_secret;
            }
            let listed = merged.peers.clone();
            merged.peers.extend(newcomer.peers.into_iter().filter(|p| !listed.iter().any(|l| l.is_same(p))));
        }
        surviving.clone_into(&mut merged.cluster_id);
        self.clusters.insert(surviving.to_owned(), merged);
    }
}

/// Whose credential is the shared one after a merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharedCredential {
    Callers,
    Newcomers,
}

pub fn no_current_cluster() -> CliError {
    CliError::config("no current cluster set")
        .with_hint("arctic bootstrap --url http://HOST:8080 --license-file license.json, or pass --url")
}

/// The reason without the source snippet that the parser's full message shows.
fn plain_reason(e: &serde_saphyr::Error) -> String {
    mask_secrets(e.without_snippet().to_string().lines().next().unwrap_or_default())
}

/// Where the config file is: `--config`, else the default place.
pub fn path_or_default(given: Option<&PathBuf>) -> Result<PathBuf, CliError> {
    given.cloned().or_else(files::default_config).ok_or_else(|| {
        CliError::config("no place for the config file: neither HOME nor XDG_CONFIG_HOME is set")
            .with_hint("pass --config FILE")
    })
}

/// An entry of the config file for one peer that answers at `address`.
pub fn peer_entry(peer_id: &str, name: &str, address: &Endpoint) -> PeerEntry {
    PeerEntry {
        peer_id: peer_id.to_owned(),
        name: name.to_owned(),
        endpoints: vec![agent_url(address)],
        ..PeerEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::errors::Exit;

    fn entry(id: &str, customer: &str, peers: &[(&str, &str)]) -> ClusterEntry {
        ClusterEntry {
            cluster_id: id.to_owned(),
            customer_id: customer.to_owned(),
            client_id: format!("cli_of_{id}"),
            client_secret: format!("sec_of_{id}"),
            peers: peers.iter().map(|(id, host)| peer_entry(id, "", &host.parse().unwrap())).collect(),
            ..ClusterEntry::default()
        }
    }

    fn config(entries: Vec<ClusterEntry>) -> Config {
        let current_cluster = entries.first().map(|e| e.cluster_id.clone());
        let clusters = entries.into_iter().map(|e| (e.cluster_id.clone(), e)).collect();
        Config { current_cluster, clusters, ..Config::default() }
    }

    #[test]
    fn unknown_keys_and_odd_strings_survive_a_rewrite() {
        let text = "current_cluster: clu_1\nfuture: [1, {a: b}]\nclusters:\n  clu_1:\n    cluster_id: clu_1\n    client_secret: 'no'\n    \
                    description: hello\n    peers:\n      - peer_id: peer_1\n        name: '123'\n        zone: 7\n        url: http://old:81\n\
                    preferences:\n  timeout: 12\n  cache_ttl: 3600\n";
        let config = Config::parse(&Config::parse(text).unwrap().render().unwrap()).unwrap();
        let cluster = &config.clusters["clu_1"];
        assert_eq!(config.extra["future"], serde_json::json!([1, {"a": "b"}]));
        assert_eq!((cluster.client_secret.as_str(), &cluster.extra["description"]), ("no", &Value::from("hello")));
        assert_eq!((cluster.peers[0].name.as_str(), &cluster.peers[0].extra["zone"]), ("123", &Value::from(7)));
        assert_eq!(cluster.addresses(), ["old:81".parse().unwrap()]);
        let preferences = config.preferences.unwrap();
        assert_eq!((preferences.timeout, preferences.cache_ttl), (Some(12), Some(3600)));
    }

    #[test]
    fn a_broken_file_is_named_with_line_and_column_but_never_quoted() {
        let error = Config::parse("clusters:\n  clu_1: sec_hidden\n").err().unwrap();
        assert_eq!(error.exit, Exit::Config);
        assert!(error.text.starts_with("config file is not valid at line "), "{}", error.text);
        assert!(!error.render_text(false).contains("hidden"), "{}", error.render_text(false));
        assert!(Config::parse("").unwrap().clusters.is_empty());
        assert!(Config::parse("clusters:\n").unwrap().clusters.is_empty());
    }

    #[test]
    fn the_default_peer_is_asked_first_then_the_others_in_order() {
        let mut cluster = entry("clu_1", "c", &[("peer_a", "a"), ("peer_b", "b"), ("peer_c", "c")]);
        cluster.default_peer = "peer_b".to_owned();
        cluster.peers[1].endpoints.push("http://b2:81".to_owned());
        let hosts: Vec<String> = cluster.addresses().iter().map(Endpoint::to_string).collect();
        assert_eq!(hosts, ["b:8080", "b2:81", "a:8080", "c:8080"]);
    }

    #[test]
    fn bootstrap_changes_the_current_cluster_only_for_another_customer_or_when_told() {
        let first = || config(vec![entry("clu_1", "c", &[("peer_a", "a")])]);
        let newcomer = |customer| entry("clu_2", customer, &[("peer_b", "b")]);
        let current_after = |mut config: Config, entry, set| {
            let told = config.take_up_bootstrap(entry, set);
            assert_eq!(told, config.current_cluster.as_deref() == Some("clu_2"));
            config.current_cluster.unwrap()
        };
        assert_eq!(current_after(first(), newcomer("c"), false), "clu_1");
        assert_eq!(current_after(first(), newcomer("c"), true), "clu_2");
        assert_eq!(current_after(first(), newcomer("other"), false), "clu_2");
        assert_eq!(current_after(Config::default(), newcomer("c"), false), "clu_2");
    }

    #[test]
    fn an_agent_bootstrapped_again_leaves_its_old_cluster_whose_credential_stays() {
        let mut config = config(vec![entry("clu_1", "c", &[("peer_a", "a")])]);
        assert!(config.take_up_bootstrap(entry("clu_2", "c", &[("peer_a", "a")]), false));
        assert_eq!(config.current_cluster.as_deref(), Some("clu_2"));
        assert!(config.clusters["clu_1"].peers.is_empty());
        assert_eq!(config.clusters["clu_1"].client_secret, "sec_of_clu_1");
        assert_eq!(config.cluster_at(&"a".parse().unwrap()), Some("clu_2"));
    }

    #[test]
    fn a_newcomer_is_folded_into_the_surviving_cluster() {
        let both = || config(vec![entry("clu_2", "c", &[("peer_a", "a")]), entry("clu_1", "c", &[("peer_b", "b")])]);
        let mut caller_wins = both();
        caller_wins.fold_newcomer("clu_2", "peer_b", "clu_2", SharedCredential::Callers);
        assert_eq!(caller_wins.current_cluster.as_deref(), Some("clu_2"));
        assert_eq!(caller_wins.clusters.len(), 1);
        let merged = &caller_wins.clusters["clu_2"];
        assert_eq!((merged.peers.len(), merged.client_id.as_str()), (2, "cli_of_clu_2"));

        let mut newcomer_wins = both();
        newcomer_wins.fold_newcomer("clu_2", "peer_b", "clu_1", SharedCredential::Newcomers);
        assert_eq!(newcomer_wins.current_cluster.as_deref(), Some("clu_1"));
        let merged = &newcomer_wins.clusters["clu_1"];
        assert_eq!((merged.cluster_id.as_str(), merged.client_secret.as_str()), ("clu_1", "sec_of_clu_1"));
        assert_eq!(merged.peers.iter().map(|p| p.peer_id.as_str()).collect::<Vec<_>>(), ["peer_a", "peer_b"]);
    }

    #[test]
    fn clusters_are_chosen_by_id_or_name_and_typos_are_named() {
        let mut config = config(vec![entry("clu_1", "c", &[])]);
        config.clusters.get_mut("clu_1").unwrap().name = Some("Prod".to_owned());
        assert_eq!(config.choose_cluster(None).unwrap(), "clu_1");
        assert_eq!(config.choose_cluster(Some("prod")).unwrap(), "clu_1");
        let error = config.choose_cluster(Some("prdo")).unwrap_err();
        assert_eq!((error.exit, error.hint.as_deref()), (Exit::Config, Some("did you mean Prod?")));
        config.current_cluster = None;
        assert_eq!(config.choose_cluster(None).unwrap_err().text, "no current cluster set");
    }

    #[test]
    fn secrets_readable_by_others_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        Config::update(&path, |c| *c = config(vec![entry("clu_1", "c", &[])])).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Config::read(&path).unwrap().is_some());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Config::read(&path).err().unwrap();
        assert_eq!(error.exit, Exit::Config);
        assert_eq!(error.hint.as_deref(), Some(format!("chmod 600 {}", path.display()).as_str()));
        assert!(Config::read(&dir.path().join("none")).unwrap().is_none());
    }
}
