//! `arctic help TOPIC`: commands, a few subjects, and every error code.

use super::{
    args::command,
    errors::{CliError, nearest},
};
use crate::model::Code;

const EXIT_CODES: &str = "\
0    done, or nothing to do
1    general: not found, conflict, handshake failed
2    usage: unknown flag, missing argument, confirmation needed without a terminal
3    config missing or invalid
4    agent not reachable
5    not authenticated or not allowed
6    partial failure or degraded
7    --wait not met in time
8    refused by license or limit
10   compose diff --exit-code: changes are pending
130  ended by SIGINT
143  ended by SIGTERM
";

const ENVIRONMENT: &str = "\
A flag wins over its variable, a variable over the config file.

ARCTIC_URL, ARCTIC_CLUSTER, ARCTIC_PEER   as --url, --cluster, --peer
ARCTIC_CONFIG                             as --config
ARCTIC_TOKEN, ARCTIC_RECOVERY_TOKEN       as --token, --recovery-token
ARCTIC_OUTPUT, ARCTIC_TIMEOUT             as --output, --timeout
NO_COLOR                                  no colour
XDG_CONFIG_HOME, XDG_CACHE_HOME, XDG_STATE_HOME   where files are kept
";

const FILES: &str = "\
~/.config/arctic/config.yaml          clusters, credentials, peers, preferences (0600)
~/.cache/arctic/tokens.json           access tokens until a minute before they end (0600)
~/.cache/arctic/completion.json       what completions know: arctic cache refresh
~/.local/state/arctic/backups/        the state before each compose apply: arctic compose history
";

const OUTPUT: &str = "\
Data goes to stdout, everything else to stderr.

-o table|wide    columns, two or more spaces apart; wide has more of them
-o json, -j      one JSON document: a list is a bare array, an absent value is null
-o jsonl         one JSON object a line
-o yaml|csv      the same objects
-o name          names only, for loops in a shell

--columns, --sort-by and --filter take a heading or a key of the API.
";

const NAMES: &str = "\
An argument that names an object takes its id, the id without its prefix, the beginning of the id if no other begins
so, or its name in any case. Names may not look like ids.
";

const TOPICS: [(&str, &str); 5] =
    [("exit-codes", EXIT_CODES), ("environment", ENVIRONMENT), ("files", FILES), ("output", OUTPUT), ("names", NAMES)];

/// Codes of failures on this side.
const OWN_CODES: [(&str, &str); 14] = [
    ("USAGE", "The command line is not right. `arctic help COMMAND` shows what it takes."),
    ("CONFIG_INVALID", "The config file is missing, unreadable or not valid. `arctic config path` names it."),
    ("AGENT_UNREACHABLE", "No agent answered at the addresses of the cluster. On its host: systemctl status arctic."),
    ("CONFIRMATION_REQUIRED", "The command asks before it removes something, and nobody can answer: pass --yes."),
    ("ABORTED", "The question was not answered with yes. Nothing was changed."),
    ("AMBIGUOUS", "More than one object has this name or beginning of an id: give the whole id."),
    ("PARTIAL_FAILURE", "Some of it was done, some not; the facts name what is left. Repeat the command."),
    ("NOT_READY", "The agent runs, but a check fails: arctic health --readyz."),
    ("NOT_APPLIED", "The change is stored, but not in force at both ends yet: arctic services get SERVICE."),
    ("PLAN_STALE", "The cluster has changed since the plan was made: make a new one with arctic compose diff --out."),
    ("FILE_INVALID", "The cluster file has the errors that are shown: arctic compose validate."),
    ("NOT_CANONICAL", "The layout of the file is not that of arctic compose fmt --write."),
    ("CHANGES_PENDING", "The cluster differs from the file: arctic compose apply."),
    ("INTERRUPTED", "The step in progress was finished, the lock released. The next apply does the rest."),
];

pub fn names() -> Vec<String> {
    let codes = Code::ALL.iter().map(|c| c.text());
    let own = OWN_CODES.iter().map(|(code, _)| *code);
    let commands: Vec<String> =
        command().get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned()).collect();
    TOPICS.iter().map(|(name, _)| *name).chain(codes).chain(own).map(str::to_owned).chain(commands).collect()
}

pub fn help(topic: &[String]) -> Result<String, CliError> {
    let mut root = command();
    root.build();
    if let [one] = topic
        && let Some(text) = text_of(one)
    {
        return Ok(text);
    }
    let mut command = &mut root;
    for word in topic {
        command = command.find_subcommand_mut(word).ok_or_else(|| unknown(word))?;
    }
    let help = command.render_long_help().to_string();
    let topics = TOPICS.map(|(name, _)| name).join(", ");
    Ok(if topic.is_empty() { format!("{help}\nTopics: {topics}\n") } else { help })
}

fn text_of(topic: &str) -> Option<String> {
    if let Some((_, text)) = TOPICS.iter().find(|(name, _)| name.eq_ignore_ascii_case(topic)) {
        return Some((*text).to_owned());
    }
    if let Some((code, text)) = OWN_CODES.iter().find(|(code, _)| code.eq_ignore_ascii_case(topic)) {
        return Some(format!("{code}\n\n{text}\n"));
    }
    let code = Code::ALL.iter().find(|c| c.text().eq_ignore_ascii_case(topic))?;
    Some(format!("{} (HTTP {})\n\n{}\n", code.text(), code.http_status(), about(*code)))
}

fn unknown(topic: &str) -> CliError {
    let error = CliError::usage(format!("no help about `{topic}`"));
    let names = names();
    match nearest(topic, names.iter().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error.with_hint("arctic help"),
    }
}

/// Cause and what to do.
fn about(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest => "The request has a field or value that the agent does not take; the text names it.",
        Code::MissingField => "A field that is required is not there; the text names it.",
        Code::InvalidCidr => {
            "A network is written ADDRESS/PREFIX without host bits, as 10.0.0.0/8; an interface takes a host address."
        }
        Code::InvalidTransport => "The transport of a service is tcp or kcp.",
        Code::Unauthorized => {
            "No token, or one that the agent does not accept: check client id and secret, or pass --token or --recovery-token-file."
        }
        Code::TokenExpired => {
            "The token is over its time. The command line fetches a new one by itself; a token given with --token must be renewed."
        }
        Code::Forbidden => {
            "The credential lacks the scope for this. arctic credentials list shows scopes; an admin can make another one."
        }
        Code::LicenseReadOnly => {
            "The license has expired so long ago that only reading is allowed: arctic license update --license-file FILE."
        }
        Code::LicenseSuspended => {
            "The license has expired for good and services have stopped: arctic license update --license-file FILE."
        }
        Code::ApiAccessInternal => {
            "This peer takes operators from itself and its peers only. Call another peer with --peer, or the peer on its own host."
        }
        Code::NotFound => "No such object. Names and ids: arctic peers list, arctic services list, arctic routes list.",
        Code::MethodNotAllowed => "The path exists, but not with this method; the header Allow names those it takes.",
        Code::AlreadyExists => "Something with this name, address or pair of networks is there already.",
        Code::AlreadyBootstrapped => {
            "The agent has its license: add it with arctic peers add, or replace the license with arctic license update."
        }
        Code::NotBootstrapped => "The agent has no license yet: arctic bootstrap --url URL --license-file FILE.",
        Code::ClusterLocked => {
            "Somebody else is changing many things at once; the text names them. Wait, or look with arctic cluster lock status."
        }
        Code::Conflict => {
            "The object has been changed since it was read, or the state forbids the change. Read it again and repeat."
        }
        Code::IdentityConflict => {
            "Two live agents use one identity, as after copying a virtual machine. Give one of them a new one."
        }
        Code::PayloadTooLarge => "A body is at most 1 MiB; a license at most 64 KiB.",
        Code::UnsupportedMediaType => "Bodies are JSON: send Content-Type: application/json.",
        Code::NodeLimitExceeded => {
            "The license allows no more peers: arctic license status, then remove a peer or renew with a higher limit."
        }
        Code::ServiceLimitExceeded => {
            "The license allows no more services: arctic license status, then delete a service or renew with a higher limit."
        }
        Code::LicenseExpired => "The license document is over its time: ask for a new one.",
        Code::LicenseInvalid => {
            "The license document is not one, or its signature does not fit a key of this build: arctic version -v lists the keys."
        }
        Code::LicenseMismatch => {
            "Both peers need licenses of one customer: arctic license status --url URL shows whose license each has."
        }
        Code::LicenseFeatureDisabled => {
            "The license does not include this feature: arctic license status lists those it does."
        }
        Code::HandshakeFailed => "The peers could not agree; the text says why. Port 8080 must be open both ways.",
        Code::PeerUnreachable => {
            "A peer that is needed does not answer: arctic peers list, and check port 8080 between the hosts."
        }
        Code::CannotRevokeCurrent => "The credential in use cannot end itself: call with another one, or rotate it.",
        Code::RateLimited => "Too many calls from one address: wait as long as Retry-After says.",
        Code::Internal => "The agent failed inside; its log has the reason under the request id.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_and_topic_has_its_text() {
        for name in names() {
            assert!(help(std::slice::from_ref(&name)).is_ok(), "{name}");
        }
        for code in Code::ALL {
            assert!(text_of(code.text()).unwrap().len() > 40, "{code}");
        }
        let unknown = help(&["exit-code".to_owned()]).unwrap_err();
        assert_eq!(unknown.hint.as_deref(), Some("did you mean exit-codes?"));
    }
}
