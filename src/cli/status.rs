//! `arctic status`: the agent and its cluster on one screen of 80 columns and 24 lines.

use super::{
    args::Globals,
    client::Call,
    errors::{CliError, Exit},
    output,
    session::{Session, print},
};
use crate::api::NO_PASS_YET;
use serde_json::{Value, json};

const WARNINGS_SHOWN: usize = 8;
const LINE_MAX_CHARS: usize = 80;

/// Life-cycle states of an agent, as scripts see them.
const NOT_INSTALLED: &str = "not_installed";
const UNREACHABLE: &str = "unreachable";
const UNBOOTSTRAPPED: &str = "unbootstrapped";
const SUSPENDED: &str = "suspended";
const STARTING: &str = "starting";
const READY: &str = "ready";
const DEGRADED: &str = "degraded";

/// Exit 0 when ready, 4 when there is no agent, 6 otherwise. The state is shown in each of them.
pub async fn run(globals: &Globals) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    session.client.without_license_warning();
    let (object, failure) = look(&session).await;
    if session.view.is_structured() {
        session.print_one(&output::OBJECT, object)?;
    } else {
        print(&screen(&object));
    }
    failure.map_or(Ok(()), Err)
}

fn not_ready(state: &str, text: &str) -> Option<CliError> {
    Some(CliError::new(Exit::Degraded, "NOT_READY", text).with_fact("state", state))
}

async fn look(session: &Session) -> (Value, Option<CliError>) {
    let mut object = json!({"state": null, "url": null, "peer": null, "cluster_id": null, "version": null,
        "license": null, "peers": null, "services": null, "checks": null, "warnings": []});
    let identity = match session.client.json(Call::get("/v1/cluster/identity").public()).await {
        Ok(identity) => identity,
        Err(e) if e.exit == Exit::Unreachable => {
            let explained = session.explain_guess(e);
            let installed = explained.exit == Exit::Unreachable;
            object["state"] = json!(if installed { UNREACHABLE } else { NOT_INSTALLED });
            return (object, Some(CliError { exit: Exit::Unreachable, ..explained }));
        }
        Err(e) => {
            object["state"] = json!(STARTING);
            return (object, Some(CliError { exit: Exit::Degraded, ..e }));
        }
    };
    object["url"] = json!(session.client.agent().map(super::values::agent_url));
    for key in ["cluster_id", "version"] {
        object[key] = identity[key].clone();
    }
    object["peer"] = json!({ "id": identity["peer_id"], "name": null });
    if identity["cluster_id"].as_str().is_none_or(str::is_empty) {
        object["state"] = json!(UNBOOTSTRAPPED);
        let hint = "arctic bootstrap --url URL --license-file license.json";
        return (object, not_ready(UNBOOTSTRAPPED, "the agent has no license yet").map(|e| e.with_hint(hint)));
    }
    let ready = add_checks(session, &mut object).await;
    let failure = match add_cluster(session, &mut object).await {
        Ok(()) => None,
        Err(e) if e.code == "LICENSE_SUSPENDED" => None,
        Err(e) => Some(e),
    };
    let state = state_of(&object, ready);
    object["state"] = json!(state);
    let degraded = match state {
        READY => None,
        SUSPENDED => not_ready(state, "the license is suspended: services have stopped"),
        STARTING => not_ready(state, "the agent has not applied everything since its start"),
        _ => not_ready(state, "the agent or its cluster is degraded"),
    };
    (object, failure.or(degraded))
}

fn state_of(object: &Value, ready: bool) -> &'static str {
    let count = |key: &str, inner: &str| object[key][inner].as_u64().unwrap_or(0);
    let all = |key: &str, good: &str| count(key, good) == count(key, "total");
    match object["license"]["state"].as_str() {
        Some("suspended") => SUSPENDED,
        _ if !ready && is_starting(&object["checks"]) => STARTING,
        _ if !ready || !all("peers", "healthy") || !all("services", "active") => DEGRADED,
        _ => READY,
    }
}

/// Nothing is wrong but that the first pass of a reconciler is not over.
fn is_starting(checks: &Value) -> bool {
    let mut failing = checks.as_array().into_iter().flatten().filter(|c| c["status"] == "fail").peekable();
    failing.peek().is_some() && failing.all(|check| check["message"] == NO_PASS_YET)
}

async fn add_checks(session: &Session, object: &mut Value) -> bool {
    let Ok(answer) = session.client.send(&Call::get("/readyz").public()).await else { return false };
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    object["checks"] = body["checks"].clone();
    for check in body["checks"].as_array().into_iter().flatten().filter(|c| c["status"] == "fail") {
        let text = format!("{}: {}", output::plain(&check["name"]), output::plain(&check["message"]));
        push_warning(object, &text);
    }
    answer.is_success()
}

fn push_warning(object: &mut Value, text: &str) {
    if let Some(warnings) = object["warnings"].as_array_mut()
        && !warnings.iter().any(|w| w == text)
    {
        warnings.push(json!(text));
    }
}

async fn add_cluster(session: &Session, object: &mut Value) -> Result<(), CliError> {
    let license = session.client.json(Call::get("/v1/license")).await?;
    object["license"] = json!({"state": license["state"], "expires_at": license["expires_at"],
        "days_left": license["days_left"], "nodes": license["nodes"], "services": license["services"]});
    let cluster = session.client.json(Call::get("/v1/cluster/status")).await?;
    for warning in cluster["warnings"].as_array().into_iter().flatten() {
        push_warning(object, &output::plain(warning));
    }
    object["converged"] = cluster["converged"].clone();
    object["lock"] = cluster["lock"].clone();
    let peers = session.peers().await?;
    let local = peers.iter().find(|p| p["is_local"] == true);
    object["peer"]["name"] = local.map_or(Value::Null, |p| p["name"].clone());
    let healthy = peers.iter().filter(|p| p["is_local"] == true || p["status"] == "healthy").count();
    object["peers"] = json!({"healthy": healthy, "total": peers.len()});
    let services = session.services().await?;
    let active = services.iter().filter(|s| s["state"] == "active").count();
    object["services"] = json!({"active": active, "total": services.len()});
    for service in services.iter().filter(|s| s["state"] != "active") {
        push_warning(
            object,
            &format!("service {} is {}", output::plain(&service["name"]), output::plain(&service["state"])),
        );
    }
    Ok(())
}

fn screen(object: &Value) -> String {
    let text = |value: &Value| output::plain(value);
    let named = |name: &Value, id: &Value| match text(name) {
        name if name.is_empty() => text(id),
        name => format!("{name} ({})", text(id)),
    };
    let mut rows = vec![("State", text(&object["state"]))];
    let license = &object["license"];
    let days = license["days_left"].as_i64().map(|d| format!(", {d} days left")).unwrap_or_default();
    let of = |key: &str, good: &str| match &object[key] {
        Value::Null => String::new(),
        counts => format!("{} of {} {good}", counts[good], counts["total"]),
    };
    rows.extend([
        ("Agent", text(&object["url"])),
        ("Peer", named(&object["peer"]["name"], &object["peer"]["id"])),
        ("Version", text(&object["version"])),
        ("Cluster", text(&object["cluster_id"])),
        ("License", if license.is_null() { String::new() } else { format!("{}{days}", text(&license["state"])) }),
        ("Peers", of("peers", "healthy")),
        ("Services", of("services", "active")),
        ("Planes", planes(&object["checks"])),
        ("Lock", text(&object["lock"]["holder_name"])),
    ]);
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    let rows: Vec<Vec<String>> = rows.map(|(label, value)| vec![label.to_owned(), clipped(&value, 12)]).collect();
    let mut out = output::lines(&[], &rows);
    let warnings = object["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !warnings.is_empty() {
        out.push_str("\nWarnings\n");
    }
    for warning in warnings.iter().take(WARNINGS_SHOWN) {
        out.push_str(&format!("  {}\n", clipped(&text(warning), 2)));
    }
    if warnings.len() > WARNINGS_SHOWN {
        out.push_str(&format!("  and {} more: arctic cluster status\n", warnings.len() - WARNINGS_SHOWN));
    }
    out
}

/// `tproxy ok, iptun fail`.
fn planes(checks: &Value) -> String {
    let of = checks.as_array().into_iter().flatten().filter(|c| c["name"] == "tproxy" || c["name"] == "iptun");
    of.map(|c| format!("{} {}", output::plain(&c["name"]), output::plain(&c["status"]))).collect::<Vec<_>>().join(", ")
}

fn clipped(text: &str, before: usize) -> String {
    let room = LINE_MAX_CHARS - before;
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_fits_80_columns_and_24_lines() {
        let warnings: Vec<String> = (0..30).map(|i| format!("{i} {}", "x".repeat(200))).collect();
        let object = json!({"state":"degraded","url":"http://a:8080","peer":{"id":"peer_1","name":"n".repeat(90)},"version":"v1",
            "cluster_id":"clu_1","license":{"state":"warning","days_left":3},"peers":{"healthy":1,"total":2},
            "services":{"active":1,"total":1},"checks":[{"name":"tproxy","status":"ok"}],"warnings":warnings});
        let screen = screen(&object);
        assert!(screen.lines().count() <= 24, "{screen}");
        assert!(screen.lines().all(|l| l.chars().count() <= 80), "{screen}");
        assert!(screen.contains("Peers     1 of 2 healthy") && screen.contains("warning, 3 days left"), "{screen}");
    }

    #[test]
    fn states_follow_license_checks_and_counts() {
        let object = |license: &str, healthy: u64| json!({"license":{"state":license},"peers":{"healthy":healthy,"total":2},"services":{"active":0,"total":0}});
        assert_eq!(state_of(&object("active", 2), true), READY);
        assert_eq!(state_of(&object("active", 1), true), DEGRADED);
        assert_eq!(state_of(&object("active", 2), false), DEGRADED);
        assert_eq!(state_of(&object("suspended", 2), true), SUSPENDED);
        let checked = |messages: [&str; 2]| {
            let mut object = object("active", 2);
            object["checks"] =
                messages.map(|m| json!({"status": if m.is_empty() { "ok" } else { "fail" }, "message": m})).into();
            state_of(&object, false)
        };
        assert_eq!(checked(["", NO_PASS_YET]), STARTING);
        assert_eq!(checked(["port in use", NO_PASS_YET]), DEGRADED);
    }
}
