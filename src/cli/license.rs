//! `arctic license status|show|update` (api.md §8).

use super::{
    args::{Globals, LicenseCommand, LicenseUpdateArgs},
    bootstrap::read_license,
    client::Call,
    errors::CliError,
    output::{self, Column, Noun, cell_plain},
    peers::sort_by_name,
    session::{Session, given, print},
};
use serde_json::{Value, json, value::RawValue};

const DOCUMENT: Noun = Noun {
    keys: &[
        "license_id",
        "customer_id",
        "customer_name",
        "issued_at",
        "expires_at",
        "max_nodes",
        "max_services",
        "features",
        "key_id",
        "signature",
    ],
    columns: &[],
};

/// One peer of `update --all`.
const UPDATED: Noun = Noun {
    keys: &["id", "name", "updated", "license_id", "state", "expires_at", "error", "code"],
    columns: &[
        Column::new("ID", "id", cell_plain),
        Column::new("NAME", "name", cell_plain),
        Column::new("UPDATED", "updated", cell_plain),
        Column::new("STATE", "state", cell_plain),
        Column::new("EXPIRES", "expires_at", cell_plain),
        Column::new("ERROR", "error", cell_plain),
    ],
};

pub async fn run(globals: &Globals, command: &LicenseCommand) -> Result<(), CliError> {
    if let LicenseCommand::Update(args) = command {
        return update(globals, args).await;
    }
    let session = Session::open(globals).await?;
    if matches!(command, LicenseCommand::Status) {
        session.client.without_license_warning();
    }
    match (command, session.call(Call::get("/v1/license")).await) {
        (LicenseCommand::Show, answer) => session.print_one(&DOCUMENT, answer?["license"].take()),
        (_, Ok(answer)) => status(&session, answer),
        (_, Err(e)) if e.code == "UNAUTHORIZED" && given(&globals.url).is_some() => public_status(&session).await,
        (_, Err(e)) => Err(e),
    }
}

async fn update(globals: &Globals, args: &LicenseUpdateArgs) -> Result<(), CliError> {
    let file = args.license_file.as_deref().ok_or_else(|| CliError::missing("--license-file"))?;
    if args.all && given(&globals.peer).is_some() {
        return Err(CliError::usage("--all is for every peer: it cannot be used with --peer"));
    }
    let license = read_license(file)?;
    let mut session = Session::open(globals).await?;
    session.client.without_license_warning();
    let answer = put(&session, &license).await?;
    if args.all {
        return update_others(&mut session, &license, answer).await;
    }
    warn(&session, &answer);
    let [id, state, expires_at] = [&answer["license"]["license_id"], &answer["state"], &answer["expires_at"]];
    let [id, state, expires_at] = [id, state, expires_at].map(output::plain);
    let verb = if session.writing.dry_run { "would be installed" } else { "installed" };
    session.print_result(&format!("License {id} {verb}: {state}, expires {expires_at}"), answer)
}

/// Byte by byte: the signature covers what was signed.
async fn put(session: &Session, license: &RawValue) -> Result<Value, CliError> {
    session.write(Call::put_text("/v1/license", license.get().to_owned())).await
}

/// The called agent has the license; its peers get it through it.
async fn update_others(session: &mut Session, license: &RawValue, local: Value) -> Result<(), CliError> {
    let mut peers = session.peers().await.map_err(|e| e.with_fact("license", "updated on the called agent only"))?;
    // Who is not trusted yet has no record here, and so no name of its own.
    peers.retain(|p| !p["self_name"].is_null());
    sort_by_name(&mut peers);
    let (mut rows, mut failures) = (Vec::with_capacity(peers.len()), Vec::new());
    for peer in &peers {
        let result = if peer["is_local"] == true { Ok(local.clone()) } else { put_on(session, peer, license).await };
        rows.push(row_of(peer, &result));
        failures.extend(result.err().map(|e| (output::plain(&peer["name"]), e)));
    }
    session.client.target = None;
    let updated = rows.len() - failures.len();
    session.print_list(&UPDATED, rows, "")?;
    match failures.first() {
        None => Ok(()),
        Some((_, first)) => {
            let text = format!("the license was updated on {updated} of {} peers", peers.len());
            let error = CliError::new(first.exit, &first.code, text);
            let error = failures.iter().fold(error, |error, (name, e)| error.with_fact(name, e.text.clone()));
            Err(error.with_hint("repeat the command when these peers can be reached, or run it on their hosts"))
        }
    }
}

async fn put_on(session: &mut Session, peer: &Value, license: &RawValue) -> Result<Value, CliError> {
    let id = output::plain(&peer["id"]);
    session.client.target = Some(id.parse().map_err(|e: crate::model::IdError| CliError::usage(e.to_string()))?);
    put(session, license).await
}

fn row_of(peer: &Value, result: &Result<Value, CliError>) -> Value {
    let mut row = json!({ "id": peer["id"], "name": peer["name"], "updated": result.is_ok() });
    match result {
        Ok(answer) => {
            row["license_id"] = answer["license"]["license_id"].clone();
            row["state"] = answer["state"].clone();
            row["expires_at"] = answer["expires_at"].clone();
        }
        Err(e) => {
            row["error"] = json!(e.text);
            row["code"] = json!(e.code);
        }
    }
    row
}

fn warn(session: &Session, answer: &Value) {
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        session.log.warn(&output::plain(warning));
    }
}

fn status(session: &Session, answer: Value) -> Result<(), CliError> {
    warn(session, &answer);
    if session.view.is_structured() {
        return session.print_one(&output::OBJECT, answer);
    }
    print(&status_text(&answer));
    Ok(())
}

fn status_text(answer: &Value) -> String {
    let license = &answer["license"];
    let used = |key: &str| format!("{} of {}", output::plain(&answer[key]["used"]), output::plain(&answer[key]["max"]));
    let clock = if answer["clock_suspect"] == true { "in doubt: it jumped ahead" } else { "trusted" };
    let rows = [
        ("License ID", output::plain(&license["license_id"])),
        ("Customer ID", output::plain(&license["customer_id"])),
        ("State", output::plain(&answer["state"])),
        ("Since", output::plain(&answer["state_since"])),
        ("Expires", output::plain(&answer["expires_at"])),
        ("Days left", output::plain(&answer["days_left"])),
        ("Nodes", used("nodes")),
        ("Services", used("services")),
        ("Features", output::plain(&answer["features"])),
        ("Clock", clock.to_owned()),
    ];
    output::lines(&[], &rows.map(|(label, value)| vec![label.to_owned(), value]))
}

/// What an agent tells anyone (cli.md §5): enough to see that two licenses differ.
async fn public_status(session: &Session) -> Result<(), CliError> {
    let identity = session.call(Call::get("/v1/cluster/identity").public()).await?;
    session.log.warn("no credential for this agent: its license state is unknown");
    let (license, cluster) = (&identity["license_id"], &identity["cluster_id"]);
    let rows = [("License ID", license), ("Cluster ID", cluster), ("State", &json!("unknown"))];
    let text = output::lines(&[], &rows.map(|(label, value)| vec![label.to_owned(), output::plain(value)]));
    session.print_result(text.trim_end(), json!({ "license_id": license, "cluster_id": cluster, "state": "unknown" }))
}
