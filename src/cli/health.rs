//! `arctic health` and `arctic version`.

use super::{
    args::{Globals, HealthArgs},
    client::Call,
    config::Preferences,
    errors::{CliError, Exit},
    output,
    session::{self, Session, print},
    values::agent_url,
};
use crate::{license::TrustRoots, model::VERSION};
use serde_json::{Value, json};
use std::time::Duration;

/// `version` is no reason to wait long for an agent that is down.
const VERSION_TIMEOUT: Duration = Duration::from_secs(3);

/// Exit 0, 4 when unreachable, 6 when the agent answers that it does not work.
pub async fn health(globals: &Globals, args: &HealthArgs) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    let path = if args.readyz { "/readyz" } else { "/livez" };
    let answer = session.client.send(&Call::get(path).public()).await.map_err(|e| session.explain_guess(e))?;
    let Ok(body @ Value::Object(_)) = serde_json::from_slice::<Value>(&answer.body) else {
        return Err(CliError::from_answer(answer.status, &answer.body, answer.header("x-request-id")));
    };
    if body["error"].is_string() {
        return Err(CliError::from_answer(answer.status, &answer.body, answer.header("x-request-id")));
    }
    let failing: Vec<String> = failing_checks(&body);
    if session.view.is_structured() {
        session.print_one(&output::OBJECT, body)?;
    } else {
        print(&health_text(&body));
    }
    if answer.is_success() {
        return Ok(());
    }
    let mut error = CliError::new(
        Exit::Degraded,
        "NOT_READY",
        if args.readyz { "agent is not ready" } else { "agent does not work" },
    );
    if !failing.is_empty() {
        error = error.with_fact("failing", failing.join(", "));
    }
    Err(error)
}

fn failing_checks(body: &Value) -> Vec<String> {
    let checks = body["checks"].as_array().into_iter().flatten();
    checks.filter(|c| c["status"] == "fail").map(|c| output::plain(&c["name"])).collect()
}

fn health_text(body: &Value) -> String {
    let mut out = format!("{}\n", output::plain(&body["status"]));
    let checks: Vec<Vec<String>> = body["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| ["name", "status", "message"].map(|k| output::plain(&c[k])).to_vec())
        .collect();
    if !checks.is_empty() {
        out.push_str(&output::lines(&["CHECK", "STATUS", "MESSAGE"], &checks));
    }
    out
}

/// Always exit 0 (operations.md §7): the CLI's version is known even if no agent answers.
pub async fn version(globals: &Globals) -> Result<(), CliError> {
    let globals = Globals { timeout: Some(globals.timeout.unwrap_or(VERSION_TIMEOUT)), ..globals.clone() };
    let (view, log) = session::output_of(&globals, &Preferences::default())?;
    let (mut text, mut object) = match agent_version(&globals).await {
        Ok(Versions { agent, url, peers }) => {
            if agent != VERSION {
                log.warn(&format!("the agent is {agent}, this CLI is {VERSION}"));
            }
            let mut text = format!("CLI    {VERSION}\nAgent  {agent} ({url})");
            for peer in &peers {
                let (name, version) = (output::plain(&peer["name"]), output::plain(&peer["version"]));
                if version != agent && !version.is_empty() {
                    log.warn(&format!("peer {name} is {version}, the agent is {agent}"));
                }
                text = format!("{text}\nPeer   {version} ({name})");
            }
            (text, json!({ "cli": VERSION, "agent": agent, "url": url, "peers": peers }))
        }
        Err(e) => {
            let text = format!("CLI    {VERSION}\nAgent  not reachable ({})", e.text);
            (text, json!({ "cli": VERSION, "agent": null, "url": null, "peers": [] }))
        }
    };
    if globals.verbose {
        let keys = TrustRoots::embedded().key_ids();
        let listed =
            if keys.is_empty() { "none: this build rejects every license".to_owned() } else { keys.join(", ") };
        text = format!("{text}\nKeys   {listed}");
        object["license_keys"] = json!(keys);
    }
    session::print_result(&view, &text, object)
}

struct Versions {
    agent: String,
    url: String,
    /// The other members, if there is a credential to ask with.
    peers: Vec<Value>,
}

async fn agent_version(globals: &Globals) -> Result<Versions, CliError> {
    let session = Session::open(globals).await?;
    let identity = session.call(Call::get("/v1/cluster/identity").public()).await?;
    let url = session.client.agent().map(agent_url).unwrap_or_default();
    let known = match session.peers().await {
        Ok(peers) => peers,
        Err(e) => {
            session.log.debug(&format!("versions of peers are not known: {}", e.text));
            Vec::new()
        }
    };
    let others = known.iter().filter(|p| p["is_local"] != true);
    let mut peers: Vec<Value> =
        others.map(|p| json!({ "id": p["id"], "name": p["name"], "version": p["version"] })).collect();
    super::peers::sort_by_name(&mut peers);
    Ok(Versions { agent: output::plain(&identity["version"]), url, peers })
}
