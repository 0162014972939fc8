//! `arctic credentials …` (api.md §7).

use super::{
    args::{CredentialsCommand, Globals},
    client::Call,
    config::Config,
    errors::CliError,
    names,
    output::{self, Column, Noun, cell_plain, cell_time},
    prompt::{Consent, confirm},
    session::{Session, list_of, print},
};
use crate::model::ClientId;
use serde_json::{Map, Value, json};

const CREDENTIAL: Noun = Noun {
    keys: &["client_id", "scopes", "description", "issuer_peer_id", "license_id", "created_at", "last_used_at"],
    columns: &[
        Column::new("CLIENT-ID", "client_id", cell_plain),
        Column::new("SCOPES", "scopes", cell_plain),
        Column::new("DESCRIPTION", "description", cell_plain),
        Column::new("LAST-USED", "last_used_at", cell_time),
        Column::wide("ISSUER", "issuer_peer_id", cell_plain),
        Column::wide("CREATED", "created_at", cell_time),
    ],
};

pub async fn run(globals: &Globals, command: &CredentialsCommand) -> Result<(), CliError> {
    match command {
        CredentialsCommand::List => list(&Session::open(globals).await?).await,
        CredentialsCommand::Create { scopes, description } => {
            create(&Session::open(globals).await?, scopes, description.as_deref()).await
        }
        CredentialsCommand::Revoke { id } => revoke(globals, id).await,
        CredentialsCommand::Rotate { update_config } => rotate(globals, *update_config).await,
    }
}

async fn all(session: &Session) -> Result<Vec<Value>, CliError> {
    let mut list = list_of(session.call(Call::get("/v1/credentials")).await?, "credentials");
    list.sort_by_cached_key(|c| output::plain(&c["client_id"]));
    Ok(list)
}

async fn list(session: &Session) -> Result<(), CliError> {
    session.print_list(&CREDENTIAL, all(session).await?, "No credentials. Make one with: arctic credentials create")
}

async fn create(session: &Session, scopes: &[String], description: Option<&str>) -> Result<(), CliError> {
    let mut body = Map::new();
    if !scopes.is_empty() {
        body.insert("scopes".to_owned(), json!(scopes));
    }
    body.extend(description.map(|d| ("description".to_owned(), json!(d))));
    let made = session.write(Call::post("/v1/credentials", &Value::Object(body))).await?;
    show_secret(session, made, &[("Client ID", "client_id"), ("Client Secret", "client_secret"), ("Scopes", "scopes")])
}

fn show_secret(session: &Session, answer: Value, labels: &[(&str, &str)]) -> Result<(), CliError> {
    if !session.writing.dry_run {
        session.log.warn("the client secret is shown this once: keep it now");
    }
    if session.view.is_structured() {
        return session.print_one(&output::OBJECT, answer);
    }
    let rows: Vec<Vec<String>> =
        labels.iter().map(|(label, key)| vec![format!("{label}:"), output::plain(&answer[*key])]).collect();
    print(&output::lines(&[], &rows));
    Ok(())
}

async fn revoke(globals: &Globals, argument: &str) -> Result<(), CliError> {
    let consent = Consent::of(globals)?;
    let session = Session::open(globals).await?;
    let id = match names::as_id::<ClientId>(argument) {
        Some(id) => id,
        None => {
            let mut known = all(&session).await?;
            known.iter_mut().for_each(|c| c["id"] = c["client_id"].clone());
            names::pick("credential", ClientId::PREFIX, argument, &known)?
        }
    };
    if consent == Consent::Ask {
        let known = all(&session).await?;
        let found = known.iter().find(|c| c["client_id"] == id.as_str());
        let scopes = found.map(|c| output::plain(&c["scopes"])).unwrap_or_default();
        let goes = [format!("credential {id} ({scopes})"), "all its tokens, at once".to_owned()];
        confirm(&format!("Revoke credential {id}?"), &goes)?;
    }
    let answer = session.write(Call::delete(format!("/v1/credentials/{id}"))).await?;
    session.print_deleted("Credential", &id, &answer)
}

async fn rotate(globals: &Globals, update_config: bool) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    // A config that cannot be written must be known before the secret is given out.
    let place = session.config_path.clone().zip(session.cluster.clone());
    if update_config && place.is_none() {
        return Err(CliError::config("--update-config needs a config file with this cluster"));
    }
    let call = Call::post_empty("/v1/cluster/credentials/rotate");
    let answer = session.write(call).await?;
    let labels = [
        ("Client ID", "client_id"),
        ("Client Secret", "client_secret"),
        ("Version", "version"),
        ("Old secret valid until", "old_valid_until"),
    ];
    show_secret(&session, answer.clone(), &labels)?;
    if let (true, false, Some((path, cluster))) = (update_config, session.writing.dry_run, place) {
        let [id, secret] = ["client_id", "client_secret"].map(|key| output::plain(&answer[key]));
        Config::update(&path, |config| {
            if let Some(entry) = config.clusters.get_mut(&cluster) {
                (entry.client_id, entry.client_secret) = (id, secret);
            }
        })?;
        session.log.hint(&format!("Configuration saved to {}", path.display()));
    }
    Ok(())
}
