//! The `arctic` program: the CLI, and the agent behind `arctic agent run`.

use arctic::cli::{self, AgentCommand, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    match cli.command {
        Command::Agent(AgentCommand::Run) => run_agent(),
        _ => cli::run(&cli),
    }
}

fn run_agent() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_name("arctic").enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&e),
    };
    match runtime.block_on(arctic::node::daemon::run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&e),
    }
}

/// Says why the agent ends, down to the first cause.
fn failed(e: &dyn std::error::Error) -> ExitCode {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(inner) = source {
        let cause = inner.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = inner.source();
    }
    eprintln!("Error: {text}");
    ExitCode::FAILURE
}
