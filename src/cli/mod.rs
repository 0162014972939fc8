//! The operator's commands (cli.md): parse, call an agent, print.
//!
//! | file | holds |
//! |---|---|
//! | `args`, `values` | the command line; values of its flags |
//! | `session` | one run: config, credential, agents and view from flags, environment and config |
//! | `client`, `exchange`, `tokens` | which agent answers and with which token; one HTTP exchange and its trace; the token cache |
//! | `config`, `files` | the config file; private files written atomically |
//! | `output`, `errors`, `log`, `prompt` | stdout; failures and exit codes; the rest of stderr; confirmations |
//! | `names` | what an argument names |
//! | `bootstrap`, `peers`, `services`, `routes`, `credentials`, `cluster`, `license`, `health`, `status`, `events`, `configure` | one file for each noun |
//! | `compose` | the cluster file against live agents |
//! | `cache`, `completion`, `topics`, `manual`, `explain` | what helps at the keyboard, without any agent but for `cache refresh` |
//! | `calling` | `arctic api`: any request |
//!
//! Objects stay JSON values from the answer to stdout: fields that this version does not know are shown too.
//! Data goes to stdout, everything else to stderr. `agent run` is not run here: `bin` starts the daemon.

mod args;
mod bootstrap;
mod cache;
mod calling;
mod client;
mod cluster;
mod completion;
mod compose;
mod config;
mod configure;
mod credentials;
mod errors;
mod events;
mod exchange;
mod explain;
mod files;
mod health;
mod license;
mod log;
mod manual;
mod names;
mod output;
mod peers;
mod prompt;
mod routes;
mod services;
mod session;
mod status;
mod tokens;
mod topics;
mod values;

pub use args::{AgentCommand, Cli, Command, command};

use args::{Format, Globals};
use clap::{error::ContextKind, error::ContextValue, error::ErrorKind};
use errors::{CliError, Exit};
use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

/// Parses the command line. Help and usage errors are printed; their exit code is the error.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    let wants_json = asks_for_json(&args);
    Cli::try_parse_args(args).map_err(|e| {
        if !e.use_stderr() {
            session::print(&e.render().to_string());
            return ExitCode::from(Exit::Done as u8);
        }
        if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = write!(io::stderr(), "{}", e.render());
            return ExitCode::from(Exit::Usage as u8);
        }
        report(&usage_error(&e), wants_json, false)
    })
}

/// Runs a command against an agent.
pub fn run(cli: &Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let error = CliError::new(Exit::General, "INTERNAL", format!("cannot start the runtime: {e}"));
            return report(&error, cli.globals.json, false);
        }
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(()) => ExitCode::from(Exit::Done as u8),
        Err(e) => report(&e, wants_error_object(&cli.globals), wants_color(&cli.globals)),
    }
}

async fn dispatch(cli: &Cli) -> Result<(), CliError> {
    let globals = &cli.globals;
    match &cli.command {
        Command::Bootstrap(args) => bootstrap::run(globals, args).await,
        Command::Peers(command) => peers::run(globals, command).await,
        Command::RemoveSelf => peers::remove_self(globals).await,
        Command::Services(command) => services::run(globals, command).await,
        Command::Routes(command) => routes::run(globals, command).await,
        Command::Credentials(command) => credentials::run(globals, command).await,
        Command::Config(command) => configure::run(globals, command).await,
        Command::Cache(command) => cache::run(globals, command).await,
        Command::Status => status::run(globals).await,
        Command::Events(args) => events::events(globals, args).await,
        Command::Audit(command) => events::audit(globals, command).await,
        Command::Explain { field } => explain::run(globals, field),
        Command::Api(args) => calling::run(globals, args).await,
        Command::Completion { shell } => session::print_text(globals, completion::script(*shell)),
        Command::Complete(args) => {
            completion::complete(&args.words);
            Ok(())
        }
        Command::Man(args) => manual::run(globals, args),
        Command::Help(args) => session::print_text(globals, &topics::help(&args.topic)?),
        Command::Compose(command) => compose::run(globals, command).await,
        Command::Cluster(command) => cluster::run(globals, command).await,
        Command::License(command) => license::run(globals, command).await,
        Command::Health(args) => health::health(globals, args).await,
        Command::Version => health::version(globals).await,
        Command::Agent(AgentCommand::Run) => Err(CliError::usage("agent run is started by the arctic program itself")),
    }
}

/// Prints a failure on stderr in the style of cli.md §2.
fn report(error: &CliError, as_object: bool, color: bool) -> ExitCode {
    let text = if as_object {
        serde_json::to_string(&error.render_object()).unwrap_or_else(|_| error.render_text(false))
    } else {
        error.render_text(color)
    };
    let _ = writeln!(io::stderr().lock(), "{text}");
    ExitCode::from(error.exit as u8)
}

fn wants_error_object(globals: &Globals) -> bool {
    globals.json || matches!(globals.output, Some(Format::Json | Format::Jsonl))
}

fn wants_color(globals: &Globals) -> bool {
    log::Log::new(globals, None).color()
}

/// Whether `-j` is among arguments that could not be parsed.
fn asks_for_json(args: &[OsString]) -> bool {
    let texts: Vec<&str> = args.iter().skip(1).map_while(|a| a.to_str()).take_while(|a| *a != "--").collect();
    let is_json = |a: &&str| matches!(*a, "-j" | "--json" | "-ojson" | "--output=json");
    let pair = |w: &[&str]| matches!(w, ["-o" | "--output", "json"]);
    texts.iter().any(is_json) || texts.windows(2).any(pair) || std::env::var("ARCTIC_OUTPUT").is_ok_and(|v| v == "json")
}

/// Clap's finding in our error style: its first sentence, its suggestion, or else the usage line.
fn usage_error(e: &clap::Error) -> CliError {
    let rendered = e.render().to_string();
    let sentence: Vec<&str> = rendered.lines().map(str::trim).take_while(|l| !l.is_empty()).collect();
    let sentence = sentence.join(" ");
    let error = CliError::usage(sentence.strip_prefix("error: ").unwrap_or(&sentence));
    let suggested = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg, ContextKind::SuggestedValue];
    let suggestion = suggested.into_iter().find_map(|kind| match e.get(kind) {
        Some(ContextValue::String(s)) => Some(s.clone()),
        // Clap sorts by likeness, the best one last.
        Some(ContextValue::Strings(all)) => all.last().cloned(),
        _ => None,
    });
    let usage = rendered.lines().find_map(|l| l.strip_prefix("Usage: "));
    match (suggestion, usage) {
        (Some(s), _) => error.with_hint(format!("did you mean {s}?")),
        (None, Some(usage)) => error.with_fact("usage", usage),
        (None, None) => error,
    }
}
