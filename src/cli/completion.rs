//! `arctic completion SHELL` and what its scripts call: candidates from the command tree and the cache alone.

use super::{
    args::{Shell, command},
    cache::Cache,
    session::print,
};
use clap::{Arg, ArgAction, Command};

const BASH: &str = r#"_arctic() {
    local IFS=$'\n'
    COMPREPLY=($(arctic __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    if [ ${#COMPREPLY[@]} -eq 0 ]; then
        compopt -o default 2>/dev/null
    fi
}
complete -F _arctic arctic
"#;

const ZSH: &str = r#"#compdef arctic
_arctic() {
    local -a candidates
    candidates=("${(@f)$(arctic __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${candidates[1]}" ]]; then
        compadd -- "${candidates[@]}"
    else
        _files
    fi
}
compdef _arctic arctic
"#;

const FISH: &str = r#"function __arctic_complete
    set -l words (commandline -opc) (commandline -ct)
    arctic __complete -- $words[2..-1] 2>/dev/null
end
complete -c arctic -a '(__arctic_complete)'
"#;

pub fn script(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    }
}

/// Prints the candidates for the last word, one a line. Never fails, never calls an agent.
pub fn complete(words: &[String]) {
    let found = candidates(&command(), words, Cache::read);
    print(&found.iter().map(|c| format!("{c}\n")).collect::<String>());
}

fn candidates(root: &Command, words: &[String], cache: impl FnOnce() -> Cache) -> Vec<String> {
    let Some((typed, before)) = words.split_last() else { return Vec::new() };
    let mut command = root;
    let mut cluster = None;
    let mut wanting: Option<&Arg> = None;
    let mut positionals = 0;
    for word in before {
        if let Some(arg) = wanting.take() {
            if arg.get_id() == "cluster" {
                cluster = Some(word.clone());
            }
            continue;
        }
        if word.starts_with('-') {
            wanting = flag(root, command, word).filter(|a| takes_value(a) && !word.contains('='));
        } else if let Some(inner) = command.find_subcommand(word) {
            command = inner;
        } else {
            positionals += 1;
        }
    }
    let all = match wanting {
        Some(arg) => values(arg, cluster.as_deref(), cache),
        None if typed.starts_with('-') => flags(root, command),
        None if command.has_subcommands() => subcommands(command),
        None => {
            let last =
                command.get_positionals().last().filter(|a| a.get_num_args().is_some_and(|n| n.max_values() > 1));
            let arg = command.get_positionals().nth(positionals).or(last);
            arg.map(|arg| values(arg, cluster.as_deref(), cache)).unwrap_or_default()
        }
    };
    let lower = typed.to_lowercase();
    all.into_iter().filter(|c| c.to_lowercase().starts_with(&lower)).collect()
}

fn arguments<'a>(root: &'a Command, command: &'a Command) -> impl Iterator<Item = &'a Arg> {
    let globals = root.get_arguments().filter(|a| a.is_global_set());
    command.get_arguments().filter(|a| !a.is_global_set()).chain(globals)
}

fn flag<'a>(root: &'a Command, command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or_default();
    let mut all = arguments(root, command);
    match name.strip_prefix("--") {
        Some(long) => all.find(|a| a.get_long() == Some(long)),
        None => {
            let short = name.chars().nth(1).filter(|_| name.chars().count() == 2);
            all.find(|a| short.is_some() && a.get_short() == short)
        }
    }
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set()
}

fn flags(root: &Command, command: &Command) -> Vec<String> {
    let visible = arguments(root, command).filter(|a| !a.is_hide_set());
    let mut all: Vec<String> = visible.filter_map(Arg::get_long).map(|l| format!("--{l}")).collect();
    all.push("--help".to_owned());
    all
}

fn subcommands(command: &Command) -> Vec<String> {
    command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned()).collect()
}

fn values(arg: &Arg, cluster: Option<&str>, cache: impl FnOnce() -> Cache) -> Vec<String> {
    let possible: Vec<String> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
    if !possible.is_empty() {
        return possible;
    }
    let name = arg.get_value_names().and_then(|n| n.first()).map(|n| n.to_string()).unwrap_or_default();
    let cache = cache();
    let clusters = cache.clusters.iter().filter(|(key, _)| cluster.is_none_or(|wanted| wanted == *key));
    let named = |name: &str, id: &str| if name.is_empty() { id.to_owned() } else { name.to_owned() };
    let mut found: Vec<String> = match name.as_str() {
        "PEER" => clusters.flat_map(|(_, c)| c.peers.iter().map(|p| named(&p.name, &p.id))).collect(),
        "SERVICE" => clusters.flat_map(|(_, c)| c.services.iter().map(|s| named(&s.name, &s.id))).collect(),
        "CLUSTER" => cache.clusters.keys().cloned().collect(),
        "TOPIC" => super::topics::names(),
        "KEY" => super::configure::KEYS.map(str::to_owned).to_vec(),
        _ => Vec::new(),
    };
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        serde_json::from_value(serde_json::json!({"version":1,"clusters":{
            "clu_1":{"peers":[{"id":"peer_1","name":"tokyo"},{"id":"peer_2","name":""}],"services":[{"id":"svc_1","name":"a2b"}]},
            "clu_2":{"peers":[{"id":"peer_3","name":"oslo"}]}}}))
        .unwrap()
    }

    fn complete(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        candidates(&command(), &words, cache)
    }

    #[test]
    fn commands_flags_and_names_are_offered_where_they_fit() {
        assert_eq!(complete("pee"), ["peers"]);
        assert_eq!(complete("peers upd"), ["update"]);
        assert_eq!(complete("peer get "), ["oslo", "peer_2", "tokyo"]);
        assert_eq!(complete("peers get --cluster clu_2 "), ["oslo"]);
        assert_eq!(complete("services create --target-peer TO"), ["tokyo"]);
        assert_eq!(complete("svc delete a2b a"), ["a2b"]);
        assert_eq!(complete("services get a"), ["a2b"]);
        assert_eq!(complete("peers list --stat"), ["--status"]);
        assert_eq!(complete("peers list --status un"), ["unhealthy", "unreachable"]);
        assert_eq!(complete("completion z"), ["zsh"]);
        assert_eq!(complete("-o js"), ["json", "jsonl"]);
        assert_eq!(complete("config set back"), ["backup_retention"]);
        assert_eq!(complete("help exit"), ["exit-codes"]);
        assert!(complete("").contains(&"compose".to_owned()) && !complete("").contains(&"__complete".to_owned()));
        assert!(complete("no such thing ").is_empty() || !complete("no such thing ").contains(&"tokyo".to_owned()));
        assert!(candidates(&command(), &[], cache).is_empty());
    }
}
