//! `arctic man`: manual pages from the command tree, in the macros of man(7).

use super::{
    args::{Globals, ManArgs, command},
    errors::{CliError, Exit},
    files,
    session::print_text,
};
use crate::model::VERSION;
use clap::{Arg, Command};
use std::fmt::Write;

pub fn run(globals: &Globals, args: &ManArgs) -> Result<(), CliError> {
    let mut root = command();
    root.build();
    let Some(dir) = &args.dir else {
        return print_text(globals, &page(&root, true));
    };
    let mut pages = Vec::new();
    collect(&root, true, &mut pages);
    let written = format!("{} pages written\n", pages.len());
    for (name, text) in pages {
        let path = dir.join(format!("{name}.1"));
        files::replace(&path, &text)
            .map_err(|e| CliError::new(Exit::General, "INTERNAL", format!("cannot write {}: {e}", path.display())))?;
    }
    print_text(globals, &written)
}

fn collect(command: &Command, is_root: bool, pages: &mut Vec<(String, String)>) {
    pages.push((page_name(command), page(command, is_root)));
    for inner in visible(command) {
        collect(inner, false, pages);
    }
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set())
}

fn page_name(command: &Command) -> String {
    command.get_bin_name().unwrap_or(command.get_name()).replace(' ', "-")
}

fn page(command: &Command, is_root: bool) -> String {
    let name = page_name(command);
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut out = format!(".TH {} 1 \"\" \"arctic {VERSION}\" \"Arctic\"\n", escaped(&name.to_uppercase()));
    let _ = write!(out, ".SH NAME\n{} \\- {}\n", escaped(&name), escaped(&about));
    let usage = command.clone().render_usage().to_string();
    let _ = write!(out, ".SH SYNOPSIS\n.nf\n{}\n.fi\n", escaped(usage.trim_start_matches("Usage: ")));
    if let Some(long) = command.get_long_about() {
        let _ = write!(out, ".SH DESCRIPTION\n{}\n", escaped(&long.to_string()));
    }
    let inner: Vec<&Command> = visible(command).collect();
    if !inner.is_empty() {
        out.push_str(".SH COMMANDS\n");
    }
    for inner in inner {
        let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
        let _ =
            write!(out, ".TP\n.B {}\n{}\n", escaped(inner.get_bin_name().unwrap_or(inner.get_name())), escaped(&about));
    }
    options(&mut out, "OPTIONS", command.get_arguments().filter(|a| !a.is_hide_set() && !a.is_global_set()));
    if let Some(examples) = command.get_after_help().map(ToString::to_string).filter(|_| !is_root) {
        let lines = examples.lines().skip(1).map(str::trim).collect::<Vec<_>>().join("\n");
        let _ = write!(out, ".SH EXAMPLES\n.nf\n{}\n.fi\n", escaped(&lines));
    }
    if is_root {
        options(&mut out, "GLOBAL OPTIONS", command.get_arguments().filter(|a| a.is_global_set()));
        out.push_str(".SH EXIT STATUS\nSee \\fBarctic help exit\\-codes\\fP.\n");
        out.push_str(".SH FILES\nSee \\fBarctic help files\\fP.\n");
    } else {
        out.push_str(".SH SEE ALSO\n.BR arctic (1)\n");
    }
    out
}

fn options<'a>(out: &mut String, heading: &str, arguments: impl Iterator<Item = &'a Arg>) {
    let mut heading = Some(heading);
    for arg in arguments {
        if let Some(heading) = heading.take() {
            let _ = writeln!(out, ".SH {heading}");
        }
        let value = arg.get_value_names().and_then(|n| n.first()).filter(|_| arg.get_action().takes_values());
        let short = arg.get_short().map(|s| format!("-{s}"));
        let long = arg.get_long().map(|l| format!("--{l}"));
        let names: Vec<String> = short.into_iter().chain(long).collect();
        let value = value.map(|v| format!(" {v}")).unwrap_or_default();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = write!(out, ".TP\n.B {}\n{}\n", escaped(format!("{}{value}", names.join(", ")).trim()), escaped(&help));
    }
}

/// Backslashes, dashes and leading dots mean something to roff.
fn escaped(text: &str) -> String {
    let line = |line: &str| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_hidden_ones_have_none() {
        let mut root = command();
        root.build();
        let mut pages = Vec::new();
        collect(&root, true, &mut pages);
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"arctic") && names.contains(&"arctic-compose-apply"), "{names:?}");
        assert!(!names.iter().any(|n| n.contains("__complete")));
        assert!(pages.iter().all(|(_, text)| text.starts_with(".TH ") && text.contains(".SH NAME\n")));
        assert_eq!(escaped(".x -y\\"), "\\&.x \\-y\\e");
    }
}
