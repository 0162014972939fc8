//! Verbs around the nouns: credentials, config, cache, help, events.

use crate::cli::values::parse_duration;
use clap::{Args, Subcommand, ValueEnum};
use std::{path::PathBuf, time::Duration};

#[derive(Subcommand)]
pub enum CredentialsCommand {
    /// All credentials of the cluster; never their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Make a credential; its secret is printed this once
    Create {
        /// admin, peers.read, peers.write, services.read, services.write, credentials.read, credentials.write
        /// [default: those of the caller]
        #[arg(long, value_name = "A,B", value_delimiter = ',')]
        scopes: Vec<String>,
        /// What it is for
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// End a credential and all its tokens at once
    #[command(visible_aliases = ["rm", "delete"])]
    Revoke {
        /// Client id
        #[arg(value_name = "ID")]
        id: String,
    },
    /// A new secret for the cluster's shared credential; the old one works for 24 h
    Rotate {
        /// Write the new secret to the config file
        #[arg(long)]
        update_config: bool,
    },
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// The configuration, secrets masked
    View {
        /// Where each value in use comes from: flag, environment, file or default
        #[arg(long)]
        show_origin: bool,
    },
    /// Where the config file is
    Path,
    /// The clusters of the config file
    #[command(visible_alias = "ls")]
    List,
    /// Make a cluster the current one
    UseCluster {
        /// Id or name
        #[arg(id = "cluster_argument", value_name = "CLUSTER")]
        cluster: String,
    },
    /// Give a cluster a name
    RenameCluster {
        /// Id or name
        #[arg(id = "cluster_argument", value_name = "CLUSTER")]
        cluster: String,
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Forget a cluster and its credential
    DeleteCluster {
        /// Id or name
        #[arg(id = "cluster_argument", value_name = "CLUSTER")]
        cluster: String,
    },
    /// List an agent that is a peer of the current cluster
    AddPeer {
        /// Addresses of the agent, in the order they are tried
        #[arg(required = true, value_name = "URL")]
        endpoints: Vec<String>,
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Forget a peer of the current cluster; the peer itself stays
    DeletePeer(super::PeerArgument),
    /// Set current_cluster, default_peer or a preference
    Set {
        /// current_cluster, default_peer, output_format, timeout, cache_ttl, backup_retention, color
        #[arg(value_name = "KEY")]
        key: String,
        #[arg(value_name = "VALUE")]
        value: String,
    },
}

#[derive(Subcommand)]
pub enum CacheCommand {
    /// Fetch peers and services of all clusters for completions
    Refresh,
    /// Where the cache is, and how old
    Status,
    /// Remove the cache and the cached tokens
    Clear,
}

#[derive(Args)]
pub struct EventsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only events of this time until now
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Only this type, for example peer.unhealthy or peer.*
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
}

#[derive(Subcommand)]
pub enum AuditCommand {
    /// Changes that were asked for: when, by whom, what, with which result
    #[command(visible_alias = "ls")]
    List {
        /// The newest ones only
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
}

#[derive(Args)]
pub struct ApiArgs {
    /// GET, POST, PUT or DELETE
    #[arg(value_name = "METHOD")]
    pub method: String,
    /// For example /v1/peers
    #[arg(value_name = "PATH")]
    pub path: String,
    /// JSON body; @FILE reads a file, @- stdin
    #[arg(short, long, value_name = "JSON")]
    pub data: Option<String>,
}

#[derive(Args)]
pub struct RoutesExplainArgs {
    /// Source address
    #[arg(long, value_name = "IP")]
    pub src: Option<std::net::IpAddr>,
    /// Destination address
    #[arg(long, value_name = "IP")]
    pub dst: Option<std::net::IpAddr>,
    /// tcp, udp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTO", default_value = "tcp")]
    pub proto: String,
    /// Destination port
    #[arg(long, value_name = "PORT")]
    pub dport: Option<u16>,
    /// Interface that the packet enters by
    #[arg(long, value_name = "NAME")]
    pub iface: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Args)]
pub struct HelpArgs {
    /// A command, exit-codes, environment, files, output, names, or an error code
    #[arg(value_name = "TOPIC")]
    pub topic: Vec<String>,
}

#[derive(Args)]
pub struct CompleteArgs {
    /// The words of the command line after `arctic`; the last one is being typed
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

#[derive(Args)]
pub struct ManArgs {
    /// Write one page for each command into this directory, instead of the page of arctic to stdout
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
