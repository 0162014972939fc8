//! `arctic compose …` (compose.md): the file against live agents.
//!
//! | file | holds |
//! |---|---|
//! | `load` | the file: reading, variables, findings |
//! | `offline` | init, fmt, validate, schema, graph: no agent but for `init` |
//! | `survey` | who answers at the listed endpoints, and what the cluster is |
//! | `show` | a plan for people and for programs |
//! | `apply` | diff and apply: plan, consent, lock, backup, report |
//! | `run` | one step after the other, until done or interrupted |
//! | `lease` | the cluster lock of a run, also after a run that was killed |
//! | `backup` | export, history, rollback |

mod apply;
mod backup;
mod lease;
mod load;
mod offline;
mod run;
mod show;
mod survey;

use super::{
    args::{ComposeCommand, Globals},
    client::Call,
    errors::CliError,
    output,
    session::{Session, given},
};
use serde_json::Value;

pub async fn run(globals: &Globals, command: &ComposeCommand) -> Result<(), CliError> {
    match command {
        ComposeCommand::Init { file, force } => offline::init(globals, file, *force).await,
        ComposeCommand::Export { file } => backup::export(globals, file.as_deref()).await,
        ComposeCommand::Fmt { file, write, check } => offline::fmt(globals, &file.path, *write, *check),
        ComposeCommand::Validate { file, strict, env } => offline::validate(globals, &file.path, *strict, env),
        ComposeCommand::Schema => offline::schema(),
        ComposeCommand::Graph { file, env } => offline::graph(globals, &file.path, env),
        ComposeCommand::Diff(args) => apply::diff(globals, args).await,
        ComposeCommand::Apply(args) => apply::apply(globals, args).await,
        ComposeCommand::History => backup::history(globals),
        ComposeCommand::Rollback { backup } => backup::rollback(globals, backup.as_deref()).await,
        ComposeCommand::Confirm => confirm(globals).await,
    }
}

/// Compose reaches every listed peer by itself.
fn refuse_peer_flag(globals: &Globals) -> Result<(), CliError> {
    if given(&globals.peer).is_none() {
        return Ok(());
    }
    let error = CliError::usage("compose acts on every listed peer: leave --peer out");
    Err(error.with_hint("unset ARCTIC_PEER, if it comes from the environment"))
}

async fn confirm(globals: &Globals) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    let answer = session.write(Call::delete("/v1/cluster/pending-confirm")).await?;
    let names = |key: &str| answer[key].as_array().map_or(0, Vec::len);
    for peer in answer["unreached"].as_array().into_iter().flatten() {
        session.log.warn(&format!("peer {} was not reached: it reverts its changes", output::plain(peer)));
    }
    let text = match names("confirmed") {
        0 => "Nothing waits for a confirmation".to_owned(),
        1 => "Confirmed: the changes of 1 peer stay".to_owned(),
        n => format!("Confirmed: the changes of {n} peers stay"),
    };
    let unreached = names("unreached");
    session.print_result(&text, answer)?;
    if unreached > 0 {
        let text = format!("{unreached} peers were not reached and will revert");
        return Err(CliError::new(super::errors::Exit::Degraded, "PARTIAL_FAILURE", text)
            .with_hint("arctic compose confirm, as soon as they can be reached"));
    }
    Ok(())
}

/// Whether failures are shown as objects.
fn wants_object(globals: &Globals) -> bool {
    super::wants_error_object(globals)
}

/// A text field of an answer as an id.
fn id_of<I: std::str::FromStr<Err = crate::model::IdError>>(value: &Value) -> Result<I, CliError> {
    let wrong = |e: crate::model::IdError| CliError::new(super::errors::Exit::General, "INTERNAL", e.to_string());
    value.as_str().unwrap_or_default().parse::<I>().map_err(wrong)
}
