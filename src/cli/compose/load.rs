//! Reading a cluster file: text, variables, everything that is wrong with it.

use crate::{
    cli::{
        args::{EnvArg, Globals},
        errors::{CliError, Exit},
        files,
    },
    compose::{ClusterFile, Diagnostic, Document, Rules, parse, read},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

pub struct Loaded {
    /// As errors name it.
    pub name: String,
    pub text: String,
    pub file: ClusterFile,
    pub warnings: Vec<Diagnostic>,
    /// Where a relative license path begins.
    pub directory: PathBuf,
}

pub fn name_of(path: &Path) -> String {
    if path.as_os_str() == "-" { "stdin".to_owned() } else { path.display().to_string() }
}

pub fn read_text(path: &Path) -> Result<String, CliError> {
    files::read_input(path).map_err(|e| {
        let error = CliError::new(Exit::General, "INVALID_REQUEST", format!("cannot read {}", name_of(path)));
        let error = error.with_fact("reason", e.to_string());
        if e.kind() == io::ErrorKind::NotFound { error.with_hint("arctic compose init") } else { error }
    })
}

pub fn document(globals: &Globals, path: &Path, text: &str) -> Result<Document, CliError> {
    parse(text).map_err(|found| invalid(globals, &name_of(path), text, &[found]))
}

/// Reads, checks, and fills in variables. Findings are shown before the error that counts them.
pub fn load(globals: &Globals, path: &Path, env: &EnvArg, rules: Rules) -> Result<Loaded, CliError> {
    let text = read_text(path)?;
    load_text(globals, path, text, env, rules)
}

pub fn load_text(globals: &Globals, path: &Path, text: String, env: &EnvArg, rules: Rules) -> Result<Loaded, CliError> {
    let name = name_of(path);
    let variables = env.env_file.as_deref().map(variables_of).transpose()?.unwrap_or_default();
    let lookup = |name: &str| variables.get(name).cloned().or_else(|| std::env::var(name).ok());
    let document = document(globals, path, &text)?;
    match read(&document, rules, &lookup) {
        Ok((file, warnings)) => {
            let directory = path.parent().unwrap_or(Path::new(".")).to_owned();
            Ok(Loaded { name, text, file, warnings, directory })
        }
        Err(found) => Err(invalid(globals, &name, &text, &found)),
    }
}

/// Shows findings on stderr, unless the error object carries them.
pub fn show_findings(globals: &Globals, name: &str, text: &str, found: &[Diagnostic]) {
    if !super::wants_object(globals) {
        let shown: String = found.iter().map(|d| d.render(name, text)).collect();
        let _ = write!(io::stderr().lock(), "{shown}");
    }
}

pub fn invalid(globals: &Globals, name: &str, text: &str, found: &[Diagnostic]) -> CliError {
    show_findings(globals, name, text, found);
    let count = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
    let errors = found.iter().filter(|d| d.is_error()).count();
    let counted = match errors {
        0 => count(found.len(), "warning"),
        n => count(n, "error"),
    };
    let text = format!("{name} is not valid: {counted}");
    let mut error = CliError::new(Exit::General, "FILE_INVALID", text.clone());
    error.answer = Some(Box::new(json!({"error": text, "code": "FILE_INVALID", "details": {"findings": found}})));
    error
}

/// `NAME=VALUE` lines; blank ones and comments are left out, one pair of quotes around a value is taken off.
fn variables_of(path: &Path) -> Result<BTreeMap<String, String>, CliError> {
    let text = files::read_input(path).map_err(|e| {
        CliError::new(Exit::General, "INVALID_REQUEST", "cannot read the env file")
            .with_fact(&path.display().to_string(), e.to_string())
    })?;
    let mut variables = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else {
            return Err(CliError::usage(format!("line {} of the env file is not NAME=VALUE", i + 1)));
        };
        let value = value.trim();
        let unquoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
        variables.insert(name.trim().to_owned(), unquoted.unwrap_or(value).to_owned());
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_files_have_one_value_a_line_quoted_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "# c\n\nA=1\nexport B = \"x y\"\nC='a=b'\n").unwrap();
        let found = variables_of(&path).unwrap();
        let found: Vec<(&str, &str)> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, [("A", "1"), ("B", "x y"), ("C", "a=b")]);
        std::fs::write(&path, "oops\n").unwrap();
        assert!(variables_of(&path).unwrap_err().text.contains("line 1"));
    }
}
