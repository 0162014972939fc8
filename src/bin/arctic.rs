//! The `arctic` program: the CLI, and the agent behind `arctic agent run`.

#[cfg(feature = "simulation")]
compile_error!("the feature `simulation` weakens signatures for tests: build arctic without it");

use anyhow::Context;
use arctic::{
    cli::{self, AgentCommand, Command},
    node::daemon,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    match cli.command {
        Command::Agent(AgentCommand::Run) => match run_agent() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("Error: {e:#}");
                ExitCode::FAILURE
            }
        },
        _ => cli::run(&cli),
    }
}

/// Runs the daemon until it is told to stop.
fn run_agent() -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    Ok(runtime.block_on(daemon::run())?)
}
