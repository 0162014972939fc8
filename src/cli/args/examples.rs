//! Lines to copy, at the end of each command's `--help`. Words in capitals stand for values that nobody can guess.

use clap::Command;

/// The words of a command, and what a line of it looks like.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "bootstrap",
        &[
            "arctic bootstrap --url http://lima:8080 --license-file license.json --name lima",
            "arctic bootstrap --url http://lima:8080 --license-file - --set-current < license.json",
        ],
    ),
    ("peers list", &["arctic peers list", "arctic peers list --remote --status healthy", "arctic peers list -o wide"]),
    ("peers get", &["arctic peers get tokyo", "arctic peers get tokyo -j | jq -r .public_key"]),
    ("peers add", &["arctic peers add lima:8080 --name lima", "arctic peers add lima:8080 --debug"]),
    ("peers update", &["arctic peers update tokyo --name tokyo-2", "arctic peers update tokyo --qos=false"]),
    ("peers delete", &["arctic peers delete tokyo --dry-run", "arctic peers delete tokyo --yes"]),
    ("peers remove-self", &["arctic peers remove-self --yes"]),
    ("services list", &["arctic services list", "arctic services list --target-peer tokyo -j | jq -r '.[].id'"]),
    ("services get", &["arctic services get lon-tyo", "arctic services get lon-tyo -o yaml"]),
    (
        "services create",
        &[
            "arctic services create --target-peer tokyo",
            "arctic services create --source-peer oslo --target-peer tokyo --bandwidth-limit 500Mbit",
        ],
    ),
    (
        "services update",
        &["arctic services update lon-tyo --bandwidth-limit 1G --wait", "arctic services update lon-tyo --name lt"],
    ),
    (
        "services delete",
        &["arctic services delete lon-tyo --yes", "arctic services delete --all --target-peer tokyo --yes"],
    ),
    ("routes list", &["arctic routes list", "arctic routes list --service lon-tyo"]),
    (
        "routes add",
        &[
            "arctic routes add --service lon-tyo --dest-cidr 192.168.100.0/24",
            "arctic routes add --service lon-tyo --source-cidr 10.0.0.0/8 --dest-cidr 0.0.0.0/0 --priority 9",
        ],
    ),
    (
        "routes update",
        &[
            "arctic routes update --service lon-tyo --route 1 --priority 200",
            "arctic routes update --service lon-tyo --route 1 --dest-cidr 192.168.101.0/24",
        ],
    ),
    (
        "routes explain",
        &[
            "arctic routes explain --src 10.71.1.2 --dst 10.71.2.2 --dport 443",
            "arctic routes explain --src 10.71.1.2 --dst 10.71.2.2 --proto udp --dport 53",
        ],
    ),
    ("routes delete", &["arctic routes delete --service lon-tyo --route 1 --yes"]),
    ("compose init", &["arctic compose init --file new.yaml", "arctic compose init --file -"]),
    ("compose export", &["arctic compose export --file live.yaml", "arctic compose export | head"]),
    ("compose fmt", &["arctic compose fmt cluster.yaml", "arctic compose fmt --check"]),
    ("compose validate", &["arctic compose validate", "arctic compose validate cluster.yaml --strict"]),
    ("compose diff", &["arctic compose diff", "arctic compose diff --prune --exit-code --out plan.json"]),
    (
        "compose apply",
        &[
            "arctic compose apply",
            "arctic compose apply cluster.yaml --dry-run",
            "arctic compose apply cluster.yaml --prune --yes --wait --confirm-within 2m",
        ],
    ),
    ("compose schema", &["arctic compose schema > cluster.schema.json"]),
    ("compose graph", &["arctic compose graph", "arctic compose graph cluster.yaml -o dot"]),
    ("compose history", &["arctic compose history"]),
    ("compose rollback", &["arctic compose rollback --yes", "arctic compose rollback 1 --dry-run"]),
    ("compose confirm", &["arctic compose confirm"]),
    ("credentials list", &["arctic credentials list"]),
    ("credentials create", &["arctic credentials create --scopes peers.read,services.read --description monitoring"]),
    ("credentials revoke", &["arctic credentials revoke CLIENT_ID --yes"]),
    ("credentials rotate", &["arctic credentials rotate --update-config"]),
    ("cluster identity", &["arctic cluster identity --url http://tokyo:8080"]),
    ("cluster status", &["arctic cluster status", "arctic cluster status -j | jq .converged"]),
    ("cluster sync", &["arctic cluster sync"]),
    ("cluster init", &["arctic cluster init", "arctic cluster init --force --yes"]),
    ("cluster lock status", &["arctic cluster lock status"]),
    ("cluster lock clear", &["arctic cluster lock clear", "arctic cluster lock clear --force --yes"]),
    ("license status", &["arctic license status", "arctic license status --url http://tokyo:8080"]),
    ("license show", &["arctic license show"]),
    (
        "license update",
        &[
            "arctic license update --license-file license.json",
            "arctic license update --license-file license.json --all",
        ],
    ),
    ("remove-self", &["arctic remove-self --yes"]),
    ("status", &["arctic status"]),
    ("events", &["arctic events --since 1h --type 'peer.*'", "arctic events -f"]),
    ("audit list", &["arctic audit list --limit 20"]),
    ("health", &["arctic health", "arctic health --readyz"]),
    ("version", &["arctic version", "arctic version -v"]),
    ("config view", &["arctic config view", "arctic config view --show-origin"]),
    ("config path", &["arctic config path"]),
    ("config list", &["arctic config list"]),
    ("config use-cluster", &["arctic config use-cluster CLUSTER_ID"]),
    ("config rename-cluster", &["arctic config rename-cluster CLUSTER_ID prod"]),
    ("config delete-cluster", &["arctic config delete-cluster CLUSTER_ID --yes"]),
    ("config add-peer", &["arctic config add-peer http://oslo:8080 --name oslo"]),
    ("config delete-peer", &["arctic config delete-peer tokyo"]),
    ("config set", &["arctic config set default_peer tokyo", "arctic config set output_format json"]),
    ("cache refresh", &["arctic cache refresh"]),
    ("cache status", &["arctic cache status"]),
    ("cache clear", &["arctic cache clear"]),
    ("explain", &["arctic explain bandwidth_limit_mbps", "arctic explain service.state"]),
    ("api", &["arctic api GET /v1/peers", "arctic api PUT /v1/peers/PEER --data '{\"qos_enabled\": false}'"]),
    ("completion", &["source <(arctic completion bash)"]),
    ("man", &["arctic man --dir man1", "arctic man > arctic.1"]),
    ("help", &["arctic help services create", "arctic help exit-codes", "arctic help CLUSTER_LOCKED"]),
    ("agent run", &["arctic agent run"]),
];

/// The command with the examples of all that is below it.
pub(super) fn with_examples(command: Command) -> Command {
    at(command, "")
}

fn at(command: Command, path: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let command = names.iter().fold(command, |command, name| {
        let below = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command.mut_subcommand(name, |inner| at(inner, &below))
    });
    match EXAMPLES.iter().find(|(words, _)| *words == path) {
        Some((_, lines)) => command.after_help(format!("Examples:\n  {}", lines.join("\n  "))),
        None => command,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, command};
    use super::*;

    /// Clap folds longer ones, and a folded line cannot be copied.
    const MAX_LINE_CHARS: usize = 96;

    #[test]
    fn every_command_has_examples_of_its_own_and_each_parses() {
        fn walk(command: &Command, path: &str, missing: &mut Vec<String>) {
            for inner in command.get_subcommands().filter(|c| !c.is_hide_set()) {
                let path = format!("{path} {}", inner.get_name());
                if inner.has_subcommands() {
                    walk(inner, &path, missing);
                } else if inner.get_after_help().is_none() {
                    missing.push(path);
                }
            }
        }
        let mut missing = Vec::new();
        walk(&command(), "", &mut missing);
        assert_eq!(missing, Vec::<String>::new());
        for (words, lines) in EXAMPLES {
            for line in *lines {
                let own = line.split([' ']).take_while(|w| !["|", ">", "<"].contains(w)).collect::<Vec<_>>();
                assert!(line.contains(&format!("arctic {words}")), "{words}: {line}");
                assert!(line.len() <= MAX_LINE_CHARS, "{line}");
                if !line.contains(['\'', '(']) {
                    assert!(Cli::try_parse_args(own.iter().map(|&w| w.into()).collect()).is_ok(), "{line}");
                }
            }
        }
    }
}
