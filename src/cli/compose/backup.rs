//! Export, backups before each applied change, history and rollback (compose.md §5).

use super::{
    apply::{Job, carry_out},
    load::load,
    offline::cannot_write,
    survey::{self, Survey},
};
use crate::{
    cli::{
        args::{EnvArg, Globals, ReachArgs},
        errors::{CliError, Exit},
        files,
        output::{Column, Noun, cell_plain, cell_time, render_list},
        session::{self, Session, print},
    },
    compose::{self, ClusterFile, Contact, Live, Plan, Rules, SCHEMA_LINE},
    env::{Clock, SystemClock},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const RETENTION_DEFAULT: u64 = 5;

const BACKUP: Noun = Noun {
    keys: &["number", "time", "peers", "services", "file"],
    columns: &[
        Column::new("N", "number", cell_plain),
        Column::new("TIME", "time", cell_time),
        Column::new("PEERS", "peers", cell_plain),
        Column::new("SERVICES", "services", cell_plain),
        Column::new("FILE", "file", cell_plain),
    ],
};

pub async fn export(globals: &Globals, file: Option<&Path>) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    let mut live = survey::of_session(&session).await?;
    survey::all_views(&session, &mut live).await;
    let export = compose::export(&live, &[SCHEMA_LINE.to_owned()], false);
    for warning in &export.warnings {
        session.log.warn(warning);
    }
    match file.filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            files::replace(path, &export.text).map_err(|e| cannot_write(path, &e))?;
            let written = path.display().to_string();
            session.print_result(&format!("{written} written"), json!({ "file": written }))
        }
        None => session.print_result(export.text.trim_end(), json!({ "file": export.text })),
    }
}

/// Keeps the live state, and the newest backups only.
pub fn save(session: &Session, cluster_id: &str, live: &Live) -> Result<PathBuf, CliError> {
    let dir = directory(cluster_id)?;
    let now = SystemClock::new().unix().to_string();
    let comment = format!("# State of {cluster_id} at {now}, before a change.");
    let path = dir.join(format!("{}.yaml", now.replace([':', '-'], "")));
    let text = compose::export(live, &[comment], true).text;
    files::write_private(&path, &text).map_err(|e| cannot_write(&path, &e).with_hint("nothing was changed"))?;
    let retention = session.config.preferences.as_ref().and_then(|p| p.backup_retention).unwrap_or(RETENTION_DEFAULT);
    for old in backups(&dir).into_iter().skip(usize::try_from(retention.max(1)).unwrap_or(usize::MAX)) {
        if let Err(e) = fs::remove_file(&old) {
            session.log.debug(&format!("backup {} stays: {e}", old.display()));
        }
    }
    Ok(path)
}

fn directory(cluster_id: &str) -> Result<PathBuf, CliError> {
    let state = files::state_dir().ok_or_else(|| {
        let text = "no place for backups: neither HOME nor XDG_STATE_HOME is set";
        CliError::new(Exit::General, "INTERNAL", text)
    })?;
    Ok(state.join("backups").join(cluster_id))
}

/// The newest first.
fn backups(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    found.sort();
    found.reverse();
    found
}

fn current_directory(globals: &Globals) -> Result<PathBuf, CliError> {
    let session = Session::without_agent(globals)?;
    let key = session.config.choose_cluster(session::given(&globals.cluster))?;
    let entry = &session.config.clusters[key];
    directory(if entry.cluster_id.is_empty() { key } else { &entry.cluster_id })
}

pub fn history(globals: &Globals) -> Result<(), CliError> {
    let (view, log) = session::output_of(globals, &Default::default())?;
    let found = backups(&current_directory(globals)?);
    let rows: Vec<Value> = found.iter().enumerate().map(|(i, path)| row(i + 1, path)).collect();
    if rows.is_empty() && !view.is_structured() {
        log.hint("No backups: `compose apply` makes one before each change.");
    }
    print(&render_list(&BACKUP, rows, &view)?);
    Ok(())
}

fn row(number: usize, path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_default();
    let read = compose::parse(&text).ok().and_then(|d| compose::read(&d, Rules::Backup, &|_| None).ok());
    let count = |of: fn(&ClusterFile) -> usize| read.as_ref().map(|(file, _)| of(file));
    json!({
        "number": number,
        "time": text.lines().next().and_then(|l| l.split(" at ").nth(1)).map(|l| l.trim_end_matches(", before a change.")),
        "peers": count(|f| f.peers.len()),
        "services": count(|f| f.services.len()),
        "file": path.display().to_string(),
    })
}

/// Services and routes become as they were. Peers that were added stay, peers removed since are reported.
pub async fn rollback(globals: &Globals, backup: Option<&str>) -> Result<(), CliError> {
    super::refuse_peer_flag(globals)?;
    let path = choose(globals, backup)?;
    let mut file = load(globals, &path, &EnvArg::default(), Rules::Backup)?.file;
    let session = Session::open(globals).await?;
    let live = survey::of_session(&session).await?;
    let removed = leave_out_removed(&mut file, &live);
    for name in &removed {
        session.log.warn(&format!("peer {name} has been removed since: its services cannot come back"));
    }
    let contacts: Vec<Contact> = file.peers.iter().filter_map(|p| find(p, &live)).map(Contact::Bootstrapped).collect();
    let plan = compose::plan(&file, &live, &contacts, true);
    let takes = |c: &compose::Change| c.kind == "service";
    let changes = plan.changes.into_iter().filter(takes).collect();
    let plan = Plan { changes, warnings: Vec::new() };
    let job = Job {
        purpose: "compose rollback".to_owned(),
        may_replan: globals.yes,
        takes,
        file,
        plan,
        reach: ReachArgs { prune: true, ..ReachArgs::default() },
        license: None,
        save_config: false,
        confirm_within: None,
    };
    session.log.hint(&format!("Back to {}", path.display()));
    let seat = live.peers.iter().find(|p| p.views.contains_key(&p.id)).map(|p| p.id);
    let survey = Survey { session, live, contacts, away: Vec::new(), seat };
    carry_out(globals, survey, job).await
}

fn find(peer: &compose::Peer, live: &Live) -> Option<crate::model::PeerId> {
    let same_address = |l: &&compose::LivePeer| l.endpoints.iter().any(|e| peer.endpoints.contains(e));
    let by_name = live.peers.iter().find(|l| l.name.eq_ignore_ascii_case(&peer.name));
    by_name.or_else(|| live.peers.iter().find(same_address)).map(|l| l.id)
}

/// Takes peers that are no members any more out of the file, with their services; their names.
fn leave_out_removed(file: &mut ClusterFile, live: &Live) -> Vec<String> {
    let removed: Vec<String> = file.peers.iter().filter(|p| find(p, live).is_none()).map(|p| p.name.clone()).collect();
    file.peers.retain(|p| !removed.contains(&p.name));
    file.services.retain(|s| !removed.contains(&s.source_peer) && !removed.contains(&s.target_peer));
    removed
}

fn choose(globals: &Globals, wanted: Option<&str>) -> Result<PathBuf, CliError> {
    let number = match wanted {
        None => 1,
        Some(text) => match text.parse::<usize>() {
            Ok(number) => number,
            Err(_) => return Ok(PathBuf::from(text)),
        },
    };
    let found = backups(&current_directory(globals)?);
    number.checked_sub(1).and_then(|i| found.get(i).cloned()).ok_or_else(|| {
        let text = format!("there is no backup {number}");
        CliError::not_found(text).with_hint("arctic compose history")
    })
}
