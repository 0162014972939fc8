//! `arctic bootstrap` (api.md §3, cli.md §5).

use super::{
    args::{BootstrapArgs, Globals},
    client::Call,
    config::{ClusterEntry, Config, peer_entry},
    errors::{CliError, Exit},
    files, output,
    peers::check_name,
    session::{Session, agent_address, given, print},
};
use crate::model::Endpoint;
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use std::path::Path;

/// The license goes to the agent byte by byte: its signature covers what was signed, not what we would write.
#[derive(Serialize)]
pub struct BootstrapRequest<'a> {
    pub license: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<&'a [Endpoint]>,
}

pub async fn run(globals: &Globals, args: &BootstrapArgs) -> Result<(), CliError> {
    let file = args.license_file.as_deref().ok_or_else(|| CliError::missing("--license-file"))?;
    let url = given(&globals.url).ok_or_else(|| {
        let error = CliError::new(Exit::Usage, "MISSING_FIELD", "--url is required for bootstrap");
        error.with_hint("pass --url http://HOST:8080")
    })?;
    let agent = agent_address(url)?;
    if given(&globals.peer).is_some() {
        let error = CliError::usage("bootstrap acts on the called agent: leave --peer out");
        return Err(error.with_hint("unset ARCTIC_PEER, if it comes from the environment"));
    }
    if let Some(name) = &args.name {
        check_name(name)?;
    }
    let license = read_license(file)?;
    let request = BootstrapRequest { license: &license, name: given(&args.name), endpoints: None };
    let body = serde_json::to_string(&request).map_err(|e| unreadable(file, &e.to_string()))?;
    // A config that cannot be written must be known before the secret is given out for its only time.
    let session = Session::for_bootstrap(globals, agent.clone())?;
    let answer = session.write(Call::post_text("/v1/bootstrap", body).public()).await.map_err(with_exact_text)?;
    show(&session, &answer)?;
    if session.writing.dry_run {
        return Ok(());
    }
    save(&session, &agent, args, &license, &answer)
}

/// A license file as it was written.
pub(super) fn read_license(file: &Path) -> Result<Box<RawValue>, CliError> {
    let text = files::read_input(file).map_err(|e| unreadable(file, &e.to_string()))?;
    let document: Box<RawValue> =
        serde_json::from_str(text.trim()).map_err(|e| unreadable(file, &format!("not JSON: {e}")))?;
    if document.get().starts_with('{') { Ok(document) } else { Err(unreadable(file, "not a JSON object")) }
}

fn unreadable(file: &Path, reason: &str) -> CliError {
    CliError::new(Exit::General, "INVALID_REQUEST", "failed to read license file")
        .with_fact("file", file.display().to_string())
        .with_fact("reason", reason)
}

pub fn with_exact_text(error: CliError) -> CliError {
    match error.code.as_str() {
        "LICENSE_EXPIRED" => error.with_text("license has expired"),
        "ALREADY_BOOTSTRAPPED" => error.with_text("agent is already bootstrapped"),
        _ => error,
    }
}

const LABELS: [(&str, &str); 8] = [
    ("Peer ID", "peer_id"),
    ("Cluster ID", "cluster_id"),
    ("Client ID", "client_id"),
    ("Client Secret", "client_secret"),
    ("License ID", "license_id"),
    ("Expires", "expires_at"),
    ("Max Nodes", "max_nodes"),
    ("Max Services", "max_services"),
];

fn show(session: &Session, answer: &Value) -> Result<(), CliError> {
    if session.view.is_structured() {
        return session.print_one(&output::OBJECT, answer.clone());
    }
    let rows = LABELS.map(|(label, key)| vec![format!("{label}:"), output::plain(&answer[key])]);
    print(&output::lines(&[], &rows));
    session.log.hint("The client secret is shown this once.");
    Ok(())
}

fn save(
    session: &Session,
    agent: &Endpoint,
    args: &BootstrapArgs,
    license: &RawValue,
    answer: &Value,
) -> Result<(), CliError> {
    let Some(path) = &session.config_path else { return Ok(()) };
    let entry = entry_of(agent, given(&args.name).unwrap_or_default(), license, answer);
    let becomes_current = Config::update(path, |config| config.take_up_bootstrap(entry, args.set_current))
        .map_err(|e| e.with_fact("bootstrap", "done; keep the client id and secret shown above"))?;
    let saved = format!("Configuration saved to {}", path.display());
    if session.view.is_structured() {
        session.log.hint(&saved);
    } else {
        print(&format!("{saved}\n"));
    }
    if !becomes_current {
        session.log.hint("The current cluster stays. To add this agent to it:");
        session.log.hint(&format!("  {}", add_line(agent, given(&args.name))));
        if is_loopback(agent) {
            session
                .log
                .hint(&format!("  with an address of this host that its peers reach instead of {}", agent.host()));
        }
    }
    Ok(())
}

pub fn entry_of(agent: &Endpoint, name: &str, license: &RawValue, answer: &Value) -> ClusterEntry {
    let text = |key: &str| output::plain(&answer[key]);
    let document: Value = serde_json::from_str(license.get()).unwrap_or_default();
    ClusterEntry {
        cluster_id: text("cluster_id"),
        customer_id: output::plain(&document["customer_id"]),
        client_id: text("client_id"),
        client_secret: text("client_secret"),
        peers: vec![peer_entry(&text("peer_id"), name, agent)],
        ..ClusterEntry::default()
    }
}

/// The command that joins the new agent to the current cluster, ready to be pasted.
fn add_line(agent: &Endpoint, name: Option<&str>) -> String {
    let plain = |n: &str| n.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    match name {
        None => format!("arctic peers add {agent}"),
        Some(name) if plain(name) => format!("arctic peers add {agent} --name {name}"),
        Some(name) => format!("arctic peers add {agent} --name '{}'", name.replace('\'', "'\\''")),
    }
}

fn is_loopback(agent: &Endpoint) -> bool {
    agent.host() == "localhost" || agent.ip().is_some_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_add_line_can_be_pasted_into_a_shell() {
        let agent: Endpoint = "10.0.0.2".parse().unwrap();
        assert_eq!(add_line(&agent, None), "arctic peers add 10.0.0.2:8080");
        assert_eq!(add_line(&agent, Some("tokyo-1")), "arctic peers add 10.0.0.2:8080 --name tokyo-1");
        assert_eq!(add_line(&agent, Some("it's; rm")), r"arctic peers add 10.0.0.2:8080 --name 'it'\''s; rm'");
    }

    // accepts: 000-07
    #[test]
    fn the_license_is_sent_as_it_was_written() {
        let text = "{\"b\":1.0,\"a\" : 1e2,\"b\":2}";
        let license: Box<RawValue> = serde_json::from_str(text).unwrap();
        let body = serde_json::to_string(&BootstrapRequest { license: &license, name: None, endpoints: None }).unwrap();
        assert_eq!(body, format!("{{\"license\":{text}}}"));
    }
}
