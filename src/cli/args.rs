//! The command line itself (cli.md §1 and §3). Every command that is listed here works.

mod compose;
mod examples;
mod more;

pub use compose::{ApplyArgs, ComposeCommand, DiffArgs, EnvArg, ReachArgs};
pub use more::{
    ApiArgs, AuditCommand, CacheCommand, CompleteArgs, ConfigCommand, CredentialsCommand, EventsArgs, HelpArgs,
    ManArgs, RoutesExplainArgs, Shell,
};

use super::values::{parse_duration, parse_filter, parse_rate_mbps};
use crate::model::{PublicKey, Transport};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// Arctic carries chosen traffic between sites over encrypted, tuned tunnels.
#[derive(Parser)]
#[command(name = "arctic", version = crate::model::VERSION)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done, 1 general, 2 usage, 3 config, 4 agent not reachable, 5 not allowed, \
    6 degraded or partial, 7 not applied in time, 8 refused by license or limit. More: arctic help exit-codes")]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses; `-h` leaves out the global options, which `--help` lists.
    pub fn try_parse_args(args: Vec<OsString>) -> Result<Cli, clap::Error> {
        let brief = |arg: clap::Arg| {
            if arg.is_global_set() { arg.hide_short_help(true).hide_env_values(true) } else { arg }
        };
        let matches = command().mut_args(brief).try_get_matches_from(args)?;
        Cli::from_arg_matches(&matches)
    }
}

/// The whole command line, with examples.
pub fn command() -> clap::Command {
    examples::with_examples(Cli::command())
}

#[derive(Args, Default, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Agent to call, for example http://10.0.0.1:8080
    #[arg(long, global = true, env = "ARCTIC_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Cluster of the config file, by id or name
    #[arg(long, global = true, env = "ARCTIC_CLUSTER", value_name = "CLUSTER")]
    pub cluster: Option<String>,
    /// Peer that handles the call; the first agent that answers forwards it
    #[arg(long, global = true, env = "ARCTIC_PEER", value_name = "PEER")]
    pub peer: Option<String>,
    /// Config file [default: ~/.config/arctic/config.yaml]
    #[arg(long, global = true, env = "ARCTIC_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Bearer token instead of the stored credential [env: ARCTIC_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File that holds the bearer token; - is stdin
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Recovery token of the agent's host
    #[arg(long, global = true, env = "ARCTIC_RECOVERY_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub recovery_token: Option<String>,
    /// File that holds the recovery token; - is stdin
    #[arg(long, global = true, value_name = "FILE")]
    pub recovery_token_file: Option<PathBuf>,
    /// Output format
    #[arg(short, long, global = true, env = "ARCTIC_OUTPUT", value_name = "FORMAT")]
    pub output: Option<Format>,
    /// Same as -o json
    #[arg(short = 'j', long, global = true)]
    pub json: bool,
    /// Columns of tables and CSV, by heading or API key
    #[arg(long, global = true, value_name = "A,B", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Leave the headings out
    #[arg(long, global = true)]
    pub no_headers: bool,
    /// Sort lists by a column or API key
    #[arg(long, global = true, value_name = "KEY")]
    pub sort_by: Option<String>,
    /// Keep only list entries whose key has this value; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = parse_filter)]
    pub filter: Vec<(String, String)>,
    /// Show times as dates in UTC on a terminal too
    #[arg(long, global = true)]
    pub utc: bool,
    /// Longest wait for one answer [default: 30s]
    #[arg(long, global = true, env = "ARCTIC_TIMEOUT", value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Wait until the change is applied at both ends
    #[arg(long, global = true)]
    pub wait: bool,
    /// Longest wait of --wait
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub wait_timeout: Duration,
    /// Check the change and show what it would be; nothing is changed
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Skip the confirmation
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Never ask
    #[arg(long, global = true)]
    pub no_input: bool,
    /// Print every step on stderr
    #[arg(long, global = true)]
    pub debug: bool,
    /// Print the full HTTP exchange on stderr, secrets masked
    #[arg(long, global = true)]
    pub trace: bool,
    /// No hints and no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// One line on stderr for each request
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Colour of errors
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorWhen,
    /// Same as --color never
    #[arg(long, global = true)]
    pub no_color: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    Table,
    Wide,
    Json,
    Jsonl,
    Yaml,
    Name,
    Csv,
    /// `compose graph` alone knows these two.
    #[value(hide = true)]
    Dot,
    #[value(hide = true)]
    Mermaid,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum ColorWhen {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Subcommand)]
pub enum Command {
    /// Give a new agent its license and save its credential
    Bootstrap(BootstrapArgs),
    /// Peers of the cluster
    #[command(subcommand, visible_alias = "peer")]
    Peers(PeersCommand),
    /// Services: directed carriers between two peers
    #[command(subcommand, visible_aliases = ["service", "svc"])]
    Services(ServicesCommand),
    /// Routes: which traffic a service carries
    #[command(subcommand, visible_alias = "route")]
    Routes(RoutesCommand),
    /// Peers and services of a cluster in one file
    #[command(subcommand)]
    Compose(ComposeCommand),
    /// Clients of the API and what they may do
    #[command(subcommand, visible_alias = "credential")]
    Credentials(CredentialsCommand),
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// License of the agent
    #[command(subcommand)]
    License(LicenseCommand),
    /// Take the called agent out of its cluster for good; same as peers remove-self
    RemoveSelf,
    /// The agent and its cluster on one screen (exit 4 when unreachable, 6 when degraded)
    Status,
    /// What happened to peers, services and the cluster
    Events(EventsArgs),
    /// Who changed what
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Whether the agent works (exit 4 when unreachable, 6 when not ready)
    Health(HealthArgs),
    /// Versions of CLI and agent; with -v the license keys that this build embeds
    Version,
    /// The config file of this command
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What completions know
    #[command(subcommand)]
    Cache(CacheCommand),
    /// What a field means: of the API, the cluster file or the config file
    Explain {
        /// For example bandwidth_limit_mbps, service.state or peer
        #[arg(value_name = "FIELD")]
        field: String,
    },
    /// Any request to the API, with the credential of the config file
    Api(ApiArgs),
    /// Print the completions of a shell
    Completion {
        #[arg(value_enum, value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page
    Man(ManArgs),
    /// Help about a command, a topic or an error code
    Help(HelpArgs),
    #[command(name = "__complete", hide = true)]
    Complete(CompleteArgs),
    /// The agent itself
    #[command(subcommand)]
    Agent(AgentCommand),
}

#[derive(Args)]
pub struct BootstrapArgs {
    /// License document; - is stdin
    #[arg(long, value_name = "FILE")]
    pub license_file: Option<PathBuf>,
    /// Name of the agent
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Make the new cluster the current one
    #[arg(long)]
    pub set_current: bool,
}

#[derive(Subcommand)]
pub enum PeersCommand {
    /// All peers. STATUS: discovered, handshaking, healthy, unhealthy, unreachable; RTT: round trip of heartbeats
    #[command(visible_alias = "ls")]
    List(PeersListArgs),
    /// Everything about one peer
    #[command(visible_alias = "show")]
    Get(PeerArgument),
    /// Add a bootstrapped agent to the cluster
    Add(PeersAddArgs),
    /// Change the name or QoS that the called agent gives a peer
    Update(PeersUpdateArgs),
    /// Remove a peer with its services and routes
    #[command(visible_alias = "rm")]
    Delete(PeerArgument),
    /// Take the called agent out of its cluster for good
    RemoveSelf,
}

#[derive(Args)]
pub struct PeerArgument {
    /// Id, id prefix or name; not the global `--peer`
    #[arg(id = "peer_argument", value_name = "PEER")]
    pub peer: String,
}

#[derive(Args)]
pub struct PeersListArgs {
    /// Without the peer of the called agent
    #[arg(long, conflicts_with = "local")]
    pub remote: bool,
    /// Only the peer of the called agent
    #[arg(long)]
    pub local: bool,
    /// Only peers in this status
    #[arg(long, value_name = "STATUS")]
    pub status: Option<PeerStatusArg>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PeerStatusArg {
    Discovered,
    Handshaking,
    Healthy,
    Unhealthy,
    Unreachable,
}

#[derive(Args)]
pub struct PeersAddArgs {
    /// Address of the new agent; several are its ordered endpoints (port 8080 unless given)
    #[arg(required = true, value_name = "HOST[:PORT]")]
    pub endpoints: Vec<String>,
    /// Name of the peer here
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Public key the agent must have, base64
    #[arg(long, value_name = "BASE64")]
    pub public_key: Option<PublicKey>,
}

#[derive(Args)]
pub struct PeersUpdateArgs {
    #[command(flatten)]
    pub argument: PeerArgument,
    /// Name of the peer here
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub qos: Qos,
}

#[derive(Subcommand)]
pub enum ServicesCommand {
    /// All services. FLAGS: I own interface, T fully transparent, Q bandwidth limit
    #[command(visible_alias = "ls")]
    List(ServicesListArgs),
    /// Everything about one service, with its routes
    #[command(visible_alias = "show")]
    Get { service: String },
    /// Create a service; it carries nothing until routes are added
    Create(ServicesCreateArgs),
    /// Change a service; what is not given stays
    Update(ServicesUpdateArgs),
    /// Delete services with their routes
    #[command(visible_alias = "rm")]
    Delete(ServicesDeleteArgs),
}

#[derive(Args)]
pub struct ServicesListArgs {
    /// Only services from this peer
    #[arg(long, value_name = "PEER")]
    pub source_peer: Option<String>,
    /// Only services to this peer
    #[arg(long, value_name = "PEER")]
    pub target_peer: Option<String>,
    #[command(flatten)]
    pub requires_interface: RequiresInterface,
}

#[derive(Args)]
pub struct ServicesCreateArgs {
    /// Peer where the traffic leaves the tunnel
    #[arg(long, value_name = "PEER")]
    pub target_peer: Option<String>,
    /// Peer where the traffic enters [default: the called agent's]
    #[arg(long, value_name = "PEER")]
    pub source_peer: Option<String>,
    #[command(flatten)]
    pub fields: ServiceFields,
}

#[derive(Args)]
pub struct ServicesUpdateArgs {
    #[arg(value_name = "SERVICE")]
    pub service: String,
    #[command(flatten)]
    pub fields: ServiceFields,
}

/// What `services create` sets and `services update` changes.
#[derive(Args)]
pub struct ServiceFields {
    /// Unique name [default at creation: SOURCE-to-TARGET]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// tcp or kcp [default: tcp]
    #[arg(long, value_name = "TRANSPORT")]
    pub transport: Option<Transport>,
    #[command(flatten)]
    pub requires_interface: RequiresInterface,
    #[command(flatten)]
    pub fully_transparent: FullyTransparent,
    /// Address of the interface, for example 192.168.100.10/24
    #[arg(long, value_name = "CIDR")]
    pub desired_ipv4: Option<String>,
    /// IPv6 address of the interface
    #[arg(long, value_name = "CIDR")]
    pub desired_ipv6: Option<String>,
    /// Mbit/s, or 500Mbit, 1.5G; 0 is unlimited
    #[arg(long, value_name = "RATE", value_parser = parse_rate_mbps)]
    pub bandwidth_limit: Option<u32>,
}

/// `--flag`, `--flag=false` and `--no-flag` (cli.md §1); the last one given wins.
macro_rules! switch {
    ($name:ident, $field:ident, $no:ident, $long:literal, $no_long:literal, $help:literal) => {
        #[derive(Args)]
        pub struct $name {
            #[doc = $help]
            #[arg(long = $long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
            #[arg(default_missing_value = "true", overrides_with = stringify!($no))]
            $field: Option<bool>,
            #[arg(long = $no_long, hide = true, overrides_with = stringify!($field))]
            $no: bool,
        }

        impl $name {
            pub fn given(&self) -> Option<bool> {
                if self.$no { Some(false) } else { self.$field }
            }
        }
    };
}

switch!(Qos, qos, no_qos, "qos", "no-qos", "Whether traffic to this peer is shaped; --no-qos for not");
switch!(
    RequiresInterface,
    requires_interface,
    no_requires_interface,
    "requires-interface",
    "no-requires-interface",
    "With an interface of its own (MACVLAN); --no-requires-interface for without"
);
switch!(
    FullyTransparent,
    fully_transparent,
    no_fully_transparent,
    "fully-transparent",
    "no-fully-transparent",
    "Keep the client's address at the destination (TCP only, needs an interface)"
);

#[derive(Args)]
pub struct ServicesDeleteArgs {
    #[arg(value_name = "SERVICE", required_unless_present = "all", conflicts_with = "all")]
    pub services: Vec<String>,
    /// Every service to the peer of --target-peer
    #[arg(long, requires = "target_peer")]
    pub all: bool,
    /// With --all: the peer whose services go
    #[arg(long, value_name = "PEER", requires = "all")]
    pub target_peer: Option<String>,
}

#[derive(Subcommand)]
pub enum RoutesCommand {
    /// Routes in evaluation order, of one service or of all
    #[command(visible_alias = "ls")]
    List {
        /// Only routes of this service
        #[arg(long, value_name = "SERVICE")]
        service: Option<String>,
    },
    /// Add a route to a service
    Add(RoutesAddArgs),
    /// Change a route; "" clears a network
    Update(RoutesUpdateArgs),
    /// Which service takes a packet, and why
    Explain(RoutesExplainArgs),
    /// Delete a route
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(long, value_name = "SERVICE")]
        service: Option<String>,
        /// Id of the route in its service
        #[arg(long, value_name = "ID")]
        route: Option<u32>,
    },
}

#[derive(Args)]
pub struct RoutesAddArgs {
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Traffic from this network; without it any source matches
    #[arg(long, value_name = "CIDR")]
    pub source_cidr: Option<String>,
    /// Traffic to this network; without it any destination matches
    #[arg(long, value_name = "CIDR")]
    pub dest_cidr: Option<String>,
    /// Among equally specific routes the higher value wins
    #[arg(long, value_name = "0-65535", default_value_t = crate::model::default_priority())]
    pub priority: u16,
}

#[derive(Args)]
pub struct RoutesUpdateArgs {
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Id of the route in its service
    #[arg(long, value_name = "ID")]
    pub route: Option<u32>,
    /// Traffic from this network; "" for any source
    #[arg(long, value_name = "CIDR")]
    pub source_cidr: Option<String>,
    /// Traffic to this network; "" for any destination
    #[arg(long, value_name = "CIDR")]
    pub dest_cidr: Option<String>,
    /// Among equally specific routes the higher value wins
    #[arg(long, value_name = "0-65535")]
    pub priority: Option<u16>,
}

#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Ids, key and version of the agent; needs no credential
    Identity,
    /// Members and whether their registries agree
    Status,
    /// Run a gossip round with every peer now and wake all reconcilers
    Sync,
    /// Make the agent a cluster of its own
    Init {
        /// Although it belongs to one: a new cluster id, and everything of other peers goes
        #[arg(long)]
        force: bool,
    },
    /// The cluster lock, which keeps single writes out while somebody changes many things
    #[command(subcommand)]
    Lock(LockCommand),
}

#[derive(Subcommand)]
pub enum LockCommand {
    /// Who holds the lock, what for, and until when
    #[command(visible_alias = "show")]
    Status,
    /// Release your own lock
    Clear {
        /// End the lock of anyone (needs admin scope or the recovery token)
        #[arg(long)]
        force: bool,
    },
}

#[derive(Subcommand)]
pub enum LicenseCommand {
    /// State, expiry, use and limits
    Status,
    /// The license document
    Show,
    /// Replace the license of the called agent; it takes effect at once
    Update(LicenseUpdateArgs),
}

#[derive(Args)]
pub struct LicenseUpdateArgs {
    /// License document; - is stdin
    #[arg(long, value_name = "FILE")]
    pub license_file: Option<PathBuf>,
    /// On every peer of the cluster, through the called agent
    #[arg(long)]
    pub all: bool,
}

#[derive(Args)]
pub struct HealthArgs {
    /// Every check of the agent, not only that it lives
    #[arg(long)]
    pub readyz: bool,
}

#[derive(Subcommand)]
pub enum AgentCommand {
    /// Run the agent in the foreground (needs root)
    Run,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn no_argument_of_a_command_is_taken_for_a_global_one() {
        fn check(command: &clap::Command, globals: &[String]) {
            for argument in command.get_arguments().filter(|a| !a.is_global_set()) {
                let id = argument.get_id().as_str();
                assert!(!globals.iter().any(|g| g == id), "{} {id}", command.get_name());
            }
            command.get_subcommands().for_each(|c| check(c, globals));
        }
        let command = command();
        let globals = command.get_arguments().filter(|a| a.is_global_set()).map(|a| a.get_id().to_string());
        let globals: Vec<String> = globals.collect();
        assert!(globals.iter().any(|g| g == "peer"));
        check(&command, &globals);
    }

    fn create(extra: &[&str]) -> ServicesCreateArgs {
        let args = ["arctic", "services", "create", "--target-peer", "tokyo"].iter().chain(extra);
        match Cli::try_parse_from(args).unwrap_or_else(|e| panic!("{e}")).command {
            Command::Services(ServicesCommand::Create(args)) => args,
            _ => unreachable!("services create was parsed"),
        }
    }

    #[test]
    fn booleans_take_the_bare_the_valued_and_the_negated_form() {
        let given = |extra: &[&str]| create(extra).fields.requires_interface.given();
        assert_eq!(given(&[]), None);
        assert_eq!(given(&["--requires-interface"]), Some(true));
        assert_eq!(given(&["--requires-interface=false"]), Some(false));
        assert_eq!(given(&["--no-requires-interface"]), Some(false));
        assert_eq!(given(&["--no-requires-interface", "--requires-interface"]), Some(true));
        assert_eq!(create(&["--fully-transparent"]).fields.fully_transparent.given(), Some(true));
    }

    #[test]
    fn singular_and_short_forms_are_aliases() {
        for line in ["peer ls", "service list", "svc ls", "route ls", "peers rm p", "services show s", "peer show p"] {
            assert!(Cli::try_parse_from(["arctic"].into_iter().chain(line.split(' '))).is_ok(), "{line}");
        }
    }
}
