//! Lines that somebody would type, taken mechanically from where the product is described.

use anyhow::{Context, Result, ensure};
use clap::Command;

use crate::agent::Cli;

/// First words of what is typed; a line that begins with another word is a picture, a file or a message.
const PROGRAMS: [&str; 23] = [
    "arctic",
    "arctic-license",
    "cargo",
    "curl",
    "firewall-cmd",
    "ip",
    "iptables",
    "journalctl",
    "jq",
    "mtr",
    "nc",
    "nft",
    "ping",
    "rm",
    "source",
    "ss",
    "ssh",
    "systemctl",
    "systemd-analyze",
    "traceroute",
    "dig",
    "nslookup",
    "tcpdump",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `README.md:48` or `arctic peers add --help`.
    pub place: String,
    pub text: String,
}

fn is_typed(text: &str) -> bool {
    let first = text.split(' ').next().unwrap_or_default();
    first.starts_with("scripts/") || first.starts_with("SIM_SEED=") || PROGRAMS.contains(&first)
}

/// What a document in Markdown shows in fenced blocks (without language, or `sh`) and in code spans.
pub fn of_document(name: &str, text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut block: Option<bool> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let mut found = |text: &str, words: usize| {
            let text = text.split(" # ").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
            if is_typed(&text) && text.split(' ').count() >= words {
                lines.push(Line { place: format!("{name}:{number}"), text });
            }
        };
        match (line.trim_start().strip_prefix("```"), block) {
            (Some(language), None) => block = Some(["", "sh", "console"].contains(&language.trim())),
            (Some(_), Some(_)) => block = None,
            (None, Some(is_shell)) if is_shell => found(line, 1),
            (None, Some(_)) => {}
            (None, None) => {
                // A single word in the text is a name.
                line.split('`').skip(1).step_by(2).for_each(|span| found(&span.replace("\\|", "|"), 2));
            }
        }
    }
    lines
}

/// The examples of `--help` of every command, as the program itself prints them.
pub fn of_help(cli: &Cli) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    walk(cli, &arctic::cli::command(), &[], &mut lines)?;
    Ok(lines)
}

fn walk(cli: &Cli, command: &Command, words: &[&str], lines: &mut Vec<Line>) -> Result<()> {
    for inner in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let words = [words, &[inner.get_name()]].concat();
        let help = cli.ok(&[words.as_slice(), &["--help"]].concat())?;
        let place = format!("arctic {} --help", words.join(" "));
        if inner.has_subcommands() {
            walk(cli, inner, &words, lines)?;
            continue;
        }
        let (_, examples) = help.split_once("\nExamples:\n").with_context(|| format!("{place} has no examples"))?;
        let typed: Vec<&str> = examples.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        ensure!(typed.iter().all(|l| is_typed(l)), "{place}: {typed:?}");
        lines.extend(typed.iter().map(|text| Line { place: place.clone(), text: (*text).to_owned() }));
    }
    Ok(())
}

/// `text` with the whole word `name` replaced.
pub fn with_word(text: &str, name: &str, value: &str) -> String {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let (before, behind) = (&rest[..at], &rest[at + name.len()..]);
        let whole = !is_part(before.chars().next_back().or(out.chars().next_back())) && !is_part(behind.chars().next());
        out.push_str(before);
        out.push_str(if whole { value } else { name });
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_spans_give_lines_and_nothing_else_does() {
        let text = "Run `arctic peers list` or `curl -s URL \\| jq .`, not `peers list`.\n```\narctic status   # all\n\
                    a picture of arctic\n```\n```yaml\narctic status\n```\n`arctic`\n";
        let found: Vec<_> = of_document("doc", text).into_iter().map(|l| format!("{} {}", l.place, l.text)).collect();
        assert_eq!(found, ["doc:1 arctic peers list", "doc:1 curl -s URL | jq .", "doc:3 arctic status"]);
    }

    #[test]
    fn whole_words_are_replaced() {
        assert_eq!(with_word("N:8080 LON N", "N", "x"), "x:8080 LON x");
        assert_eq!(with_word("PEER_IP PEER", "PEER", "tokyo"), "PEER_IP tokyo");
    }
}
