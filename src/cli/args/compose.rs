//! `arctic compose …` (compose.md §2).

use crate::cli::values::parse_duration;
use clap::{Args, Subcommand};
use std::{path::PathBuf, time::Duration};

#[derive(Subcommand)]
pub enum ComposeCommand {
    /// Write a commented file to start from, of the current cluster if there is one
    Init {
        /// Where to; - is stdout
        #[arg(long, value_name = "FILE", default_value = "cluster.yaml")]
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Print the live state as a file; applied again it changes nothing
    Export {
        /// Where to, instead of stdout
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print a file in canonical order and layout, with its comments
    Fmt {
        #[command(flatten)]
        file: FileArg,
        /// Change the file itself
        #[arg(long)]
        write: bool,
        /// Print nothing; exit 1 if the layout is another
        #[arg(long, conflicts_with = "write")]
        check: bool,
    },
    /// Check a file without any agent
    Validate {
        #[command(flatten)]
        file: FileArg,
        /// Warnings are errors
        #[arg(long)]
        strict: bool,
        #[command(flatten)]
        env: EnvArg,
    },
    /// Show what apply would change
    Diff(DiffArgs),
    /// Make the cluster as the file says
    Apply(ApplyArgs),
    /// Print the JSON Schema of the file, for editors
    Schema,
    /// Print the topology of a file, with -o dot for Graphviz or -o mermaid [default: mermaid]
    Graph {
        #[command(flatten)]
        file: FileArg,
        #[command(flatten)]
        env: EnvArg,
    },
    /// List the kept backups of the cluster, the newest first
    History,
    /// Apply a backup, with everything it does not list removed
    Rollback {
        /// Number of `compose history`, or a file [default: 1, the newest]
        #[arg(value_name = "N|FILE")]
        backup: Option<String>,
    },
    /// Keep the changes of an apply with --confirm-within
    Confirm,
}

#[derive(Args)]
pub struct FileArg {
    /// Cluster file; - is stdin
    #[arg(value_name = "FILE", default_value = "cluster.yaml")]
    pub path: PathBuf,
}

#[derive(Args, Default)]
pub struct EnvArg {
    /// Values of ${NAME}, one NAME=VALUE a line; the environment gives the others
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
}

/// What diff and apply share.
#[derive(Args, Default)]
pub struct ReachArgs {
    /// Delete services and routes that the file does not list
    #[arg(long)]
    pub prune: bool,
    /// Go on without listed peers that do not answer (exit 6)
    #[arg(long)]
    pub ignore_unreachable: bool,
    /// Credentials of peers bootstrapped elsewhere: JSON {"PEER": {"client_id", "client_secret"}}
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
    #[command(flatten)]
    pub env: EnvArg,
}

#[derive(Args)]
pub struct DiffArgs {
    #[command(flatten)]
    pub file: FileArg,
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Exit 10 if changes are pending
    #[arg(long)]
    pub exit_code: bool,
    /// Save the plan, for apply
    #[arg(long, value_name = "PLAN")]
    pub out: Option<PathBuf>,
}

#[derive(Args)]
pub struct ApplyArgs {
    /// Cluster file, or a plan of diff --out; - is stdin
    #[arg(value_name = "FILE|PLAN", default_value = "cluster.yaml")]
    pub path: PathBuf,
    #[command(flatten)]
    pub reach: ReachArgs,
    /// License for new peers, instead of that of the file
    #[arg(long, value_name = "FILE")]
    pub license_file: Option<PathBuf>,
    /// Keep the peers and the credential in the config file; --save-config=false for not
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub save_config: bool,
    /// Leave warnings of the file out
    #[arg(long, conflicts_with = "strict")]
    pub skip_validate: bool,
    /// Refuse a file with warnings
    #[arg(long)]
    pub strict: bool,
    /// Undo everything unless `compose confirm` comes in this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub confirm_within: Option<Duration>,
}
