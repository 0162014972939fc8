//! `arctic license status|show` (api.md §8).

use super::{
    args::{Globals, LicenseCommand},
    client::Call,
    errors::CliError,
    output::{self, Noun},
    session::{Session, given, print},
};
use serde_json::{Value, json};

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

pub async fn run(globals: &Globals, command: &LicenseCommand) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    match (command, session.call(Call::get("/v1/license")).await) {
        (LicenseCommand::Show, answer) => session.print_one(&DOCUMENT, answer?["license"].take()),
        (LicenseCommand::Status, Ok(answer)) => status(&session, answer),
        (LicenseCommand::Status, Err(e)) if e.code == "UNAUTHORIZED" && given(&globals.url).is_some() => {
            public_status(&session).await
        }
        (LicenseCommand::Status, Err(e)) => Err(e),
    }
}

fn status(session: &Session, answer: Value) -> Result<(), CliError> {
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        session.log.warn(&output::plain(warning));
    }
    if session.view.is_structured() {
        return session.print_one(&output::OBJECT, answer);
    }
    print(&status_text(&answer));
    Ok(())
}

fn status_text(answer: &Value) -> String {
    let license = &answer["license"];
    let used = |key: &str| format!("{} of {}", output::plain(&answer[key]["used"]), output::plain(&answer[key]["max"]));
    let rows = [
        ("License ID", output::plain(&license["license_id"])),
        ("Customer ID", output::plain(&license["customer_id"])),
        ("State", output::plain(&answer["state"])),
        ("Expires", output::plain(&answer["expires_at"])),
        ("Days left", output::plain(&answer["days_left"])),
        ("Nodes", used("nodes")),
        ("Services", used("services")),
        ("Features", output::plain(&answer["features"])),
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
