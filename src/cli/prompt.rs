//! Confirmations (cli.md §2): what goes, then `[y/N]`. Never a question where nobody can answer.

use super::{
    args::Globals,
    errors::{CliError, Exit},
};
use std::io::{self, BufRead, IsTerminal, Write};

/// How a deletion is confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consent {
    /// `--yes` was given, or nothing will be changed.
    Given,
    /// A terminal can be asked.
    Ask,
}

impl Consent {
    /// Without `--yes` and without anyone to ask this is a usage error that names the flag.
    pub fn of(globals: &Globals) -> Result<Self, CliError> {
        if globals.yes || globals.dry_run {
            return Ok(Consent::Given);
        }
        if globals.no_input || !io::stdin().is_terminal() {
            return Err(CliError::new(Exit::Usage, "CONFIRMATION_REQUIRED", "confirmation needed: pass --yes"));
        }
        Ok(Consent::Ask)
    }
}

/// Asks on stderr. Anything but yes changes nothing and is an error.
pub fn confirm(question: &str, goes: &[String]) -> Result<(), CliError> {
    ask(&mut io::stdin().lock(), &mut io::stderr().lock(), question, goes)
}

fn ask(input: &mut impl BufRead, output: &mut impl Write, question: &str, goes: &[String]) -> Result<(), CliError> {
    let failed = |e: io::Error| CliError::new(Exit::General, "INTERNAL", format!("cannot ask for confirmation: {e}"));
    if !goes.is_empty() {
        writeln!(output, "This removes:").map_err(failed)?;
        for line in goes {
            writeln!(output, "  {line}").map_err(failed)?;
        }
    }
    write!(output, "{question} [y/N] ").and_then(|()| output.flush()).map_err(failed)?;
    let mut answer = String::new();
    input.read_line(&mut answer).map_err(failed)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::new(Exit::General, "ABORTED", "aborted, nothing was changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes_and_the_question_lists_what_goes() {
        let answer = |text: &str| {
            let mut shown = Vec::new();
            let result = ask(&mut text.as_bytes(), &mut shown, "Delete peer tokyo?", &["service a".to_owned()]);
            (result.is_ok(), String::from_utf8(shown).unwrap())
        };
        assert_eq!(answer("y\n"), (true, "This removes:\n  service a\nDelete peer tokyo? [y/N] ".to_owned()));
        assert!(answer("YES\n").0);
        for no in ["", "\n", "n\n", "yess\n", "q"] {
            assert!(!answer(no).0, "{no:?}");
        }
    }

    #[test]
    fn yes_skips_the_question_and_no_input_forbids_it() {
        let globals = |yes, no_input| Globals { yes, no_input, ..Globals::default() };
        assert_eq!(Consent::of(&globals(true, true)), Ok(Consent::Given));
        let error = Consent::of(&globals(false, true)).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.text.contains("--yes"));
    }
}
