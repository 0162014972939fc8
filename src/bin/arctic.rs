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

/// The one place where the daemon starts: its entry, `arctic::node::daemon::run`, is called here once it exists.
fn run_agent() -> ExitCode {
    eprintln!("Error: this build has no agent");
    ExitCode::FAILURE
}
