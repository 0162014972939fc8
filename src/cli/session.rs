//! One run of the CLI: config, credential, agent and view, put together from flags, environment and config.

use super::{
    args::{Format, Globals},
    client::{Auth, Call, Client},
    config::{self, ClusterEntry, Config, Preferences},
    errors::{CliError, Exit},
    files,
    log::Log,
    names,
    output::{self, Noun, View},
    tokens::TokenCache,
    values::parse_agent_url,
};
use crate::{
    env::{Clock, SystemClock},
    model::{Endpoint, PeerId, Secret, ServiceId},
};
use clap::ValueEnum;
use serde_json::Value;
use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// The agent of this host, where no config says otherwise.
const LOCAL_AGENT: &str = "http://localhost:8080";
/// What an installed agent leaves on its host (operations.md §5).
const AGENT_HOST_MARKS: [&str; 3] = ["/etc/arctic", "/opt/tillered", "/etc/systemd/system/arctic.service"];

/// How writes are made: `--dry-run`, `--wait`.
#[derive(Clone, Copy, Default)]
pub struct Writing {
    pub dry_run: bool,
    /// Until both ends applied the change, this long at most.
    pub wait: Option<Duration>,
}

/// Longest wait that an agent grants (api.md §2).
const WAIT_MAX_S: u64 = 120;
/// The answer may come this much after the wait.
const WAIT_MARGIN: Duration = Duration::from_secs(10);

impl Writing {
    fn of(globals: &Globals) -> Result<Self, CliError> {
        if globals.wait_timeout.as_secs() > WAIT_MAX_S {
            return Err(CliError::usage(format!("--wait-timeout is at most {WAIT_MAX_S}s")));
        }
        let wait = globals.wait.then(|| globals.wait_timeout.max(Duration::from_secs(1)));
        Ok(Self { dry_run: globals.dry_run, wait: wait.filter(|_| !globals.dry_run) })
    }

    pub fn call(self, call: Call) -> Call {
        if self.dry_run {
            return call.with_query(&[("dry_run", "true".to_owned())]);
        }
        match self.wait.filter(|_| call.waits) {
            Some(wait) => {
                let query = [("wait", "applied".to_owned()), ("timeout_s", wait.as_secs().to_string())];
                call.with_query(&query).patience(wait + WAIT_MARGIN)
            }
            None => call,
        }
    }

    /// Exit 7 where the answer to a write says that it is not applied everywhere yet.
    pub fn check(self, answer: &Value) -> Result<(), CliError> {
        let Some(wait) = self.wait.filter(|_| answer["applied"] == false) else { return Ok(()) };
        let text = format!("not applied within {} s; it will be when the cause is gone", wait.as_secs());
        let mut error = CliError::new(Exit::NotApplied, "NOT_APPLIED", text);
        for open in answer["waiting_for"].as_array().into_iter().flatten() {
            let word = |key: &str| output::plain(&open[key]);
            let peer = Some(word("peer_name")).filter(|n| !n.is_empty()).unwrap_or_else(|| word("peer_id"));
            let what = [word("reconciler"), word("status"), word("reason"), word("message")];
            error =
                error.with_fact(&peer, what.iter().filter(|w| !w.is_empty()).cloned().collect::<Vec<_>>().join(" "));
        }
        Err(error.with_hint("arctic services get SERVICE shows its conditions"))
    }
}

pub struct Session {
    pub config: Config,
    pub config_path: Option<PathBuf>,
    /// Key of the config entry whose credential is used.
    pub cluster: Option<String>,
    pub client: Client,
    pub view: View,
    pub log: Log,
    pub writing: Writing,
    /// Neither `--url` nor config: the local agent was only a guess.
    guessed: bool,
}

impl Session {
    pub async fn open(globals: &Globals) -> Result<Session, CliError> {
        let config_path = config::path_or_default(globals.config.as_ref()).ok();
        let read = config_path.as_deref().map(Config::read).transpose()?.flatten();
        if let (None, Some(path)) = (&read, &globals.config) {
            return Err(CliError::config(format!("config file {} does not exist", path.display())));
        }
        let has_config = read.as_ref().is_some_and(|c| !c.clusters.is_empty());
        let mut session = Session::assemble(globals, read.unwrap_or_default(), config_path, has_config)?;
        if let Some(peer) = given(&globals.peer) {
            session.client.target = Some(session.target_peer(peer).await?);
        }
        Ok(session)
    }

    /// A session for `bootstrap`: the config need not exist, no credential is used.
    pub fn for_bootstrap(globals: &Globals, agent: Endpoint) -> Result<Session, CliError> {
        let path = config::path_or_default(globals.config.as_ref())?;
        let config = Config::read(&path)?.unwrap_or_default();
        let mut session = Session::prepare(globals, config, Some(path))?;
        session.client.agents = vec![agent];
        Ok(session)
    }

    /// A session whose agent is found later, by [`Session::sit_at`].
    pub fn without_agent(globals: &Globals) -> Result<Session, CliError> {
        let config_path = config::path_or_default(globals.config.as_ref()).ok();
        let config = config_path.as_deref().map(Config::read).transpose()?.flatten().unwrap_or_default();
        let mut session = Session::prepare(globals, config, config_path)?;
        if let Some(auth) = operator_auth(globals)? {
            session.client.auth = auth;
        }
        Ok(session)
    }

    /// Calls this agent from now on, with what the operator gave, else the credential of the config entry `cluster`.
    pub fn sit_at(&mut self, agents: Vec<Endpoint>, cluster: Option<String>) {
        self.cluster = cluster;
        self.client.agents = agents;
        self.client.restart();
        if matches!(self.client.auth, Auth::Nobody | Auth::Credential { .. }) {
            self.client.auth = self.entry().map_or(Auth::Nobody, credential_of);
        }
    }

    /// Reads the config file again, of which `cluster` is the entry in use now.
    pub fn reload(&mut self, cluster: String) -> Result<(), CliError> {
        if let Some(config) = self.config_path.as_deref().map(Config::read).transpose()?.flatten() {
            self.config = config;
            self.cluster = Some(cluster);
        }
        Ok(())
    }

    fn assemble(
        globals: &Globals,
        config: Config,
        path: Option<PathBuf>,
        has_config: bool,
    ) -> Result<Session, CliError> {
        let mut session = Session::prepare(globals, config, path)?;
        let wanted = given(&globals.cluster);
        if let Some(url) = given(&globals.url) {
            let agent = agent_address(url)?;
            session.cluster = match wanted {
                Some(c) => Some(session.config.find_cluster(c)?.to_owned()),
                None => session
                    .config
                    .cluster_at(&agent)
                    .or_else(|| session.config.choose_cluster(None).ok())
                    .map(str::to_owned),
            };
            session.client.agents = vec![agent];
        } else if has_config || wanted.is_some() {
            let key = session.config.choose_cluster(wanted)?.to_owned();
            session.client.agents = session.config.clusters[&key].addresses();
            session.cluster = Some(key);
        } else {
            session.client.agents = vec![agent_address(LOCAL_AGENT)?];
            session.guessed = true;
        }
        session.client.auth = match operator_auth(globals)? {
            Some(auth) => auth,
            None => session.entry().map_or(Auth::Nobody, credential_of),
        };
        Ok(session)
    }

    fn prepare(globals: &Globals, config: Config, config_path: Option<PathBuf>) -> Result<Session, CliError> {
        let preferences = config.preferences.clone().unwrap_or_default();
        let (view, log) = output_of(globals, &preferences)?;
        let tokens = TokenCache::new(files::cache_dir().map(|dir| dir.join("tokens.json")), log);
        let mut client = Client::new(Vec::new(), Auth::Nobody, tokens, Box::new(SystemClock::new()), log);
        let preferred = preferences.timeout.filter(|s| *s > 0).map(Duration::from_secs);
        client.timeout = globals.timeout.or(preferred).unwrap_or(client.timeout);
        client.timeout_is_chosen = globals.timeout.is_some();
        let writing = Writing::of(globals)?;
        Ok(Session { config, config_path, cluster: None, client, view, log, writing, guessed: false })
    }

    pub fn entry(&self) -> Option<&ClusterEntry> {
        self.cluster.as_ref().and_then(|key| self.config.clusters.get(key))
    }

    /// Calls the API. A failure to reach the agent that was only a guess says what is really missing.
    pub async fn call(&self, call: Call) -> Result<Value, CliError> {
        self.client.json(call).await.map_err(|e| self.explain_guess(e))
    }

    /// A write as the operator wants it made.
    pub async fn write(&self, call: Call) -> Result<Value, CliError> {
        let answer = self.call(self.writing.call(call)).await?;
        if self.writing.dry_run {
            self.log.hint("Dry run: nothing was changed.");
        }
        Ok(answer)
    }

    pub fn explain_guess(&self, error: CliError) -> CliError {
        let is_agent_host = AGENT_HOST_MARKS.iter().any(|mark| Path::new(mark).exists());
        if self.guessed && error.exit == Exit::Unreachable && !is_agent_host {
            return config::no_current_cluster().with_fact("tried", error.text);
        }
        error
    }

    pub async fn peers(&self) -> Result<Vec<Value>, CliError> {
        self.call(Call::get("/v1/peers")).await.map(|answer| list_of(answer, "peers"))
    }

    pub async fn services(&self) -> Result<Vec<Value>, CliError> {
        self.call(Call::get("/v1/services")).await.map(|answer| list_of(answer, "services"))
    }

    /// The id of the peer that `argument` names; `kind` begins the error text.
    pub async fn peer_id(&self, kind: &str, argument: &str) -> Result<String, CliError> {
        match names::as_id::<PeerId>(argument) {
            Some(id) => Ok(id),
            None => names::pick(kind, PeerId::PREFIX, argument, &self.peers().await?),
        }
    }

    pub async fn service_id(&self, argument: &str) -> Result<String, CliError> {
        match names::as_id::<ServiceId>(argument) {
            Some(id) => Ok(id),
            None => names::pick("service", ServiceId::PREFIX, argument, &self.services().await?),
        }
    }

    async fn target_peer(&self, argument: &str) -> Result<PeerId, CliError> {
        let known = self.entry().into_iter().flat_map(|c| &c.peers);
        let local = known.filter(|p| p.name.eq_ignore_ascii_case(argument)).map(|p| p.peer_id.clone());
        let local: Vec<String> = local.collect();
        let id = match local.as_slice() {
            [one] => one.clone(),
            _ => self.peer_id("peer", argument).await?,
        };
        id.parse::<PeerId>().map_err(|e| CliError::usage(e.to_string()))
    }

    /// Prints a list; an empty table has headings on stdout and a hint on stderr.
    pub fn print_list(&self, noun: &Noun, items: Vec<Value>, hint_if_empty: &str) -> Result<(), CliError> {
        if items.is_empty() && !self.view.is_structured() {
            self.log.hint(hint_if_empty);
        }
        print(&output::render_list(noun, items, &self.view)?);
        Ok(())
    }

    pub fn print_one(&self, noun: &Noun, item: Value) -> Result<(), CliError> {
        print(&output::render_one(noun, item, &self.view)?);
        Ok(())
    }

    /// What a deletion leaves to be said, and whether it was waited for long enough.
    pub fn print_deleted(&self, what: &str, id: &str, answer: &Value) -> Result<(), CliError> {
        let verb = if self.writing.dry_run { "would be deleted" } else { "deleted" };
        let object = output::deleted_if(id, !self.writing.dry_run);
        self.print_result(&format!("{what} {id} {verb}"), object)?;
        self.writing.check(answer)
    }

    pub fn print_result(&self, text: &str, object: Value) -> Result<(), CliError> {
        print_result(&self.view, text, object)
    }
}

/// Prints `text` for people, or the object where objects were asked for.
pub fn print_result(view: &View, text: &str, object: Value) -> Result<(), CliError> {
    if view.is_structured() {
        print(&output::render_one(&output::OBJECT, object, view)?);
    } else {
        print(&format!("{text}\n"));
    }
    Ok(())
}

/// Prints a text that is no data of the cluster. Only `-j` itself makes an object of it: `ARCTIC_OUTPUT` must not change
/// what a shell reads from `arctic completion`.
pub fn print_text(globals: &Globals, text: &str) -> Result<(), CliError> {
    if globals.json {
        print(&output::pretty(&serde_json::json!({ "text": text }))?);
    } else {
        print(text);
    }
    Ok(())
}

/// Writes to stdout. A closed pipe ends the process silently (cli.md §2).
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        let closed = e.kind() == io::ErrorKind::BrokenPipe;
        if !closed {
            let _ = writeln!(io::stderr(), "Error: cannot write to stdout: {e}");
        }
        std::process::exit(i32::from(!closed));
    }
}

/// An empty flag or variable counts as not given.
pub fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|v| !v.is_empty())
}

pub fn agent_address(url: &str) -> Result<Endpoint, CliError> {
    let wrong = |reason| CliError::usage(format!("invalid --url `{url}`")).with_fact("reason", reason);
    parse_agent_url(url).map_err(|reason| wrong(reason).with_hint("write it as http://HOST:8080"))
}

pub fn list_of(mut answer: Value, key: &str) -> Vec<Value> {
    match answer[key].take() {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

fn credential_of(entry: &ClusterEntry) -> Auth {
    if entry.client_id.is_empty() || entry.client_secret.is_empty() {
        return Auth::Nobody;
    }
    Auth::Credential { client_id: entry.client_id.clone(), client_secret: Secret::from_input(&entry.client_secret) }
}

/// What the operator gave instead of the stored credential. A recovery token wins: it works in every state.
fn operator_auth(globals: &Globals) -> Result<Option<Auth>, CliError> {
    let from_file = |path: &Option<PathBuf>, what: &str| match path {
        None => Ok(None),
        Some(path) => match files::read_input(path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(e) => Err(CliError::new(Exit::General, "INVALID_REQUEST", format!("failed to read {what}"))
                .with_fact(&path.display().to_string(), e.to_string())),
        },
    };
    let recovery = match given(&globals.recovery_token) {
        Some(token) => Some(token.to_owned()),
        None => from_file(&globals.recovery_token_file, "recovery token file")?,
    };
    if let Some(token) = recovery {
        return Ok(Some(Auth::Recovery(token)));
    }
    let token = match given(&globals.token) {
        Some(token) => Some(token.to_owned()),
        None => from_file(&globals.token_file, "token file")?,
    };
    let token = token.or_else(|| std::env::var("ARCTIC_TOKEN").ok()).filter(|t| !t.is_empty());
    Ok(token.map(Auth::Token))
}

/// How this run talks: its view of stdout and its log on stderr.
pub fn output_of(globals: &Globals, preferences: &Preferences) -> Result<(View, Log), CliError> {
    let preferred = match preferences.output_format.as_deref() {
        None | Some("") => Format::Table,
        Some(text) => Format::from_str(text, true)
            .map_err(|_| CliError::config(format!("preferences.output_format: `{text}` is not a format")))?,
    };
    let format = if globals.json { Format::Json } else { globals.output.unwrap_or(preferred) };
    if matches!(format, Format::Dot | Format::Mermaid) {
        return Err(CliError::usage("-o dot and -o mermaid are for `arctic compose graph`"));
    }
    let ages = io::stdout().is_terminal() && !globals.utc;
    let view = View {
        format,
        columns: globals.columns.clone(),
        headers: !globals.no_headers,
        sort_by: globals.sort_by.clone(),
        filter: globals.filter.clone(),
        ages_from_ms: ages.then(|| SystemClock::new().unix().as_ms()),
    };
    Ok((view, Log::new(globals, preferences.color)))
}
