//! `scripts/demo`: two agents, a WAN between them, and the numbers, on one machine.
//!
//! A holder process owns the world (namespaces, WAN, agents, server) and the world ends with it. It answers on an
//! abstract socket, so there is no state file to go stale, and keeps its files on a tmpfs that only it and its children
//! see, so that nothing is left behind even after `kill -9`. Until told to stay it ends with the command that made it.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

mod bench;
mod holder;
mod steps;
mod world;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use netns_tests::probe::Feature;
use netns_tests::topology::Profile;
use netns_tests::vendor::Vendor;
use world::World;

#[derive(Parser)]
#[command(about = "Two Arctic agents with an ocean between them, in network namespaces of this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Step>,
    /// Kind of WAN: clean, continent, ocean, lossy, satellite
    #[arg(long, global = true, default_value = "ocean", value_parser = profile)]
    profile: Profile,
    /// Seed of the WAN's losses
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
}

#[derive(Subcommand)]
enum Step {
    /// up, bench and down in one go (the default)
    All,
    /// Make the world and leave it running
    Up,
    /// Measure direct and through Arctic
    Bench,
    /// A shell, or one command, on a host: client, london, tokyo, server
    Shell {
        host: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// End the world
    Down,
    #[command(hide = true)]
    Hold,
}

fn profile(name: &str) -> Result<Profile, String> {
    let names = || Profile::ALL.map(|profile| profile.name).join(", ");
    Profile::named(name).ok_or_else(|| format!("not one of {}", names()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match arguments.command.as_ref().unwrap_or(&Step::All) {
        Step::All => {
            let mut world = up(arguments)?;
            let benched = bench::run(&world);
            world.down()?;
            benched
        }
        Step::Up => {
            let mut world = up(arguments)?;
            world.stay()?;
            println!("next: scripts/demo bench, scripts/demo shell london     undo: scripts/demo down");
            Ok(())
        }
        Step::Bench => bench::run(&World::find()?),
        Step::Shell { host, command } => World::find()?.shell(host, command),
        Step::Down => match World::find_if_up()? {
            Some(mut world) => world.down(),
            None => {
                println!("no demo is up");
                Ok(())
            }
        },
        Step::Hold => holder::run(arguments.profile, arguments.seed),
    }
}

fn up(arguments: &Arguments) -> Result<World> {
    ensure!(!holder::is_up()?, "a demo is up already: scripts/demo down");
    check_kernel()?;
    let vendor = Vendor::find()?;
    let world = World::make(arguments.profile, arguments.seed)?;
    steps::run(&world, &vendor).inspect_err(|_| world.print_log_tails())?;
    Ok(world)
}

fn check_kernel() -> Result<()> {
    let mut present = Vec::new();
    for feature in Feature::ALL {
        match feature.probe() {
            Ok(()) => present.push(feature.to_string()),
            Err(reason) => ensure!(feature == Feature::Macvlan, "this kernel lacks {feature}: {reason:#}"),
        }
    }
    say("kernel check", &present.join(" "));
    Ok(())
}

/// One line of progress.
fn say(what: &str, text: &str) {
    println!("{what:<16} {text}");
}
