//! `arctic cluster …` (api.md §3 and §8).

use super::{
    args::{ClusterCommand, Globals, LockCommand},
    client::Call,
    errors::CliError,
    output::{self, Noun},
    prompt::{Consent, confirm},
    session::{Session, print},
};
use serde_json::{Value, json};
use std::time::Duration;

/// A sync calls every peer (api.md §2: 60 s).
const SYNC_PATIENCE: Duration = Duration::from_secs(65);
/// Digests are compared by eye; the full ones are in `-o json`.
const DIGEST_SHOWN_CHARS: usize = 12;

/// Labels of `cluster lock status`, with the key of each.
const LOCK_ROWS: [(&str, &str); 6] = [
    ("Holder", "holder_name"),
    ("Peer ID", "holder_peer"),
    ("Client ID", "client_id"),
    ("Purpose", "purpose"),
    ("Since", "acquired_at"),
    ("Expires", "expires_at"),
];

const IDENTITY: Noun = Noun { keys: &["peer_id", "public_key", "license_id", "cluster_id", "version"], columns: &[] };

pub async fn run(globals: &Globals, command: &ClusterCommand) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    match command {
        ClusterCommand::Identity => {
            let identity = session.call(Call::get("/v1/cluster/identity").public()).await?;
            session.print_one(&IDENTITY, identity)
        }
        ClusterCommand::Status => status(&session).await,
        ClusterCommand::Sync => sync(&session).await,
        ClusterCommand::Init { force } => init(globals, &session, *force).await,
        ClusterCommand::Lock(LockCommand::Status) => lock_status(&session).await,
        ClusterCommand::Lock(LockCommand::Clear { force }) => lock_clear(globals, &session, *force).await,
    }
}

async fn lock_status(session: &Session) -> Result<(), CliError> {
    let answer = session.call(Call::get("/v1/cluster/lock")).await?;
    let text = match &answer["lock"] {
        Value::Null => "No lock is held".to_owned(),
        lock => {
            let rows = LOCK_ROWS.map(|(label, key)| vec![label.to_owned(), output::plain(&lock[key])]);
            output::lines(&[], &rows).trim_end().to_owned()
        }
    };
    session.print_result(&text, answer)
}

async fn lock_clear(globals: &Globals, session: &Session, force: bool) -> Result<(), CliError> {
    if force && Consent::of(globals)? == Consent::Ask {
        let held = session.call(Call::get("/v1/cluster/lock")).await?;
        if !held["lock"].is_null() {
            let text = format!("the lock of {}", lock_text(&held["lock"]));
            confirm("Clear the cluster lock? Whoever holds it may be in the middle of a change.", &[text])?;
        }
    }
    let path = if force { "/v1/cluster/lock?force=true" } else { "/v1/cluster/lock" };
    let answer = session.write(Call::delete(path)).await?;
    let text = match &answer["cleared"] {
        Value::Null => "No lock is held".to_owned(),
        lock => format!("Cluster lock cleared: {}", lock_text(lock)),
    };
    session.print_result(&text, answer)
}

/// `tokyo (compose apply), until 2026-01-01T00:00:00Z`.
fn lock_text(lock: &Value) -> String {
    let [holder, purpose, until] = ["holder_name", "purpose", "expires_at"].map(|key| output::plain(&lock[key]));
    format!("{holder} ({purpose}), until {until}")
}

async fn init(globals: &Globals, session: &Session, force: bool) -> Result<(), CliError> {
    if force && Consent::of(globals)? == Consent::Ask {
        let goes = what_init_ends(session).await?;
        confirm("Make this agent a cluster of its own? Other agents keep what they have.", &goes)?;
    }
    let answer = session.write(Call::post("/v1/cluster/init", &json!({ "force": force }))).await?;
    session.print_result(&output::plain(&answer["message"]), answer)
}

/// What a forced init takes from the called agent.
async fn what_init_ends(session: &Session) -> Result<Vec<String>, CliError> {
    let status = session.call(Call::get("/v1/cluster/status")).await?;
    let peers = session.peers().await?;
    let others = peers.iter().filter(|p| p["is_local"] != true);
    let mut goes = vec![format!("membership in cluster {}", output::plain(&status["cluster_id"]))];
    goes.extend(others.map(|p| format!("peer {} ({})", output::plain(&p["name"]), output::plain(&p["id"]))));
    goes.extend(session.services().await?.iter().map(super::services::description));
    goes.push("credentials that other peers issued: their clients lose access to this agent".to_owned());
    Ok(goes)
}

async fn sync(session: &Session) -> Result<(), CliError> {
    let answer = session.write(Call::post_empty("/v1/cluster/sync").patience(SYNC_PATIENCE)).await?;
    let (peers, reached) = (answer["peers"].as_u64().unwrap_or(0), answer["reached"].as_u64().unwrap_or(0));
    session.print_result("Cluster sync triggered", answer)?;
    if reached < peers {
        session.log.warn(&format!("{reached} of {peers} peers reached; see `arctic peers list`"));
    }
    Ok(())
}

async fn status(session: &Session) -> Result<(), CliError> {
    let status = session.call(Call::get("/v1/cluster/status")).await?;
    for warning in status["warnings"].as_array().into_iter().flatten() {
        session.log.warn(&output::plain(warning));
    }
    if session.view.is_structured() {
        return session.print_one(&output::OBJECT, status);
    }
    print(&status_text(&status));
    Ok(())
}

/// Ids first, then the registries of every member, so that a digest that differs stands out.
fn status_text(status: &Value) -> String {
    let word = |key: &str| match &status[key] {
        lock @ Value::Object(_) => lock_text(lock),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        other => Some(output::plain(other)).filter(|t| !t.is_empty()).unwrap_or_else(|| "none".to_owned()),
    };
    let heads = ["cluster_id", "aliases", "local_peer_id", "converged", "license_state", "lock"];
    let rows: Vec<Vec<String>> = heads.iter().map(|k| vec![(*k).to_owned(), word(k)]).collect();
    let own = &status["registries"];
    let names: Vec<&str> = own.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let mut headings = vec!["PEER".to_owned(), "STATUS".to_owned()];
    headings.extend(names.iter().map(|n| n.to_uppercase()));
    let mut table = vec![registry_row("(this agent)", "local", own, &names)];
    let local = &status["local_peer_id"];
    for peer in status["peers"].as_array().into_iter().flatten().filter(|p| p["id"] != *local) {
        let name =
            [&peer["name"], &peer["id"]].map(output::plain).into_iter().find(|n| !n.is_empty()).unwrap_or_default();
        table.push(registry_row(&name, &output::plain(&peer["status"]), &peer["registries"], &names));
    }
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    format!("{}\n{}", output::lines(&[], &rows), output::lines(&headings, &table))
}

fn registry_row(peer: &str, status: &str, registries: &Value, names: &[&str]) -> Vec<String> {
    let digest = |name: &&str| {
        let registry = &registries[*name];
        let text = registry["digest"].as_str().or(registry.as_str()).unwrap_or("unknown");
        let short: String = text.chars().take(DIGEST_SHOWN_CHARS).collect();
        registry["count"].as_u64().map_or(short.clone(), |count| format!("{count}:{short}"))
    };
    [peer.to_owned(), status.to_owned()].into_iter().chain(names.iter().map(digest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_puts_the_registries_of_all_members_below_each_other() {
        let status = json!({"cluster_id":"clu_1","aliases":[],"local_peer_id":"peer_1","converged":true,
            "registries":{"peers":{"count":2,"digest":"aabbccddeeff0011"}},
            "peers":[{"id":"peer_1","name":"me"},
                     {"id":"peer_2","name":"tokyo","status":"healthy","registries":{"peers":{"count":2,"digest":"00"}}}]});
        let text = status_text(&status);
        assert!(text.contains("converged      yes\n") && text.contains("aliases        none\n"), "{text}");
        let table: Vec<&str> = text.split("\n\n").nth(1).unwrap().lines().collect();
        assert_eq!(
            table,
            ["PEER          STATUS   PEERS", "(this agent)  local    2:aabbccddeeff", "tokyo         healthy  2:00"]
        );
    }
}
