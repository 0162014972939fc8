//! What is wrong with a cluster file, and where.

use serde::Serialize;
use std::fmt::Write;

/// A place in the text: line and column count from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    #[serde(skip)]
    pub width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    #[serde(flatten)]
    pub place: Place,
    pub message: String,
    pub suggestion: Option<String>,
}

impl Diagnostic {
    pub fn error(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place, message: message.into(), suggestion: None }
    }
    pub fn warning(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, message) }
    }
    pub fn suggest(mut self, suggestion: Option<impl Into<String>>) -> Self {
        self.suggestion = suggestion.map(Into::into);
        self
    }
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `cluster.yaml:7:5: error: …`, the line, a caret below what is meant, and the suggestion.
    pub fn render(&self, file: &str, text: &str) -> String {
        let Place { line, column, width } = self.place;
        let kind = if self.is_error() { "error" } else { "warning" };
        let mut out = format!("{file}:{line}:{column}: {kind}: {}\n", self.message);
        if let Some(source) = text.lines().nth(line.saturating_sub(1)) {
            let shown: String = source.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let carets = "^".repeat(width.clamp(1, shown.chars().count().saturating_sub(column - 1).max(1)));
            let _ = writeln!(out, "{line:>5} | {shown}\n      | {}{carets}", " ".repeat(column - 1));
        }
        if let Some(suggestion) = &self.suggestion {
            let _ = writeln!(out, "  {suggestion}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_its_line_with_a_caret_and_the_suggestion() {
        let place = Place { line: 2, column: 3, width: 4 };
        let found = Diagnostic::error(place, "unknown key `nmae`").suggest(Some("did you mean name?"));
        let text = "a:\n  nmae: x\n";
        assert_eq!(
            found.render("c.yaml", text),
            "c.yaml:2:3: error: unknown key `nmae`\n    2 |   nmae: x\n      |   ^^^^\n  did you mean name?\n"
        );
    }

    #[test]
    fn a_place_behind_the_end_is_no_reason_to_fail() {
        let found = Diagnostic::error(Place { line: 9, column: 40, width: 3 }, "x");
        assert_eq!(found.render("f", "a: b"), "f:9:40: error: x\n");
        let found = Diagnostic::warning(Place { line: 1, column: 40, width: 3 }, "x");
        assert!(found.render("f", "a: b").ends_with("^\n"));
    }
}
