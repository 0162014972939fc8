//! What goes to stderr beside errors: warnings, hints, steps, traces.

use super::{
    args::{ColorWhen, Globals},
    errors::one_line,
};
use std::io::{self, IsTerminal, Write};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Quiet,
    Normal,
    Verbose,
    Debug,
}

#[derive(Clone, Copy)]
pub struct Log {
    level: Level,
    trace: bool,
    color: bool,
}

impl Log {
    pub fn new(globals: &Globals, color_wanted: Option<bool>) -> Self {
        let level = match globals {
            Globals { debug: true, .. } => Level::Debug,
            Globals { verbose: true, .. } => Level::Verbose,
            Globals { quiet: true, .. } => Level::Quiet,
            _ => Level::Normal,
        };
        Self { level, trace: globals.trace, color: wants_color(globals, color_wanted) }
    }
    pub fn color(&self) -> bool {
        self.color
    }
    /// What the operator must know even with `-q`.
    pub fn warn(&self, text: &str) {
        write_line(&format!("Warning: {}", one_line(text)));
    }
    /// What may help next; silent with `-q`.
    pub fn hint(&self, text: &str) {
        if self.level > Level::Quiet {
            write_line(text);
        }
    }
    pub fn verbose(&self, text: &str) {
        if self.level >= Level::Verbose {
            write_line(text);
        }
    }
    pub fn debug(&self, text: &str) {
        if self.level >= Level::Debug {
            write_line(&format!("debug: {text}"));
        }
    }
    /// The text is made only when it is wanted.
    pub fn trace(&self, text: impl FnOnce() -> String) {
        if self.trace {
            write_line(text().trim_end());
        }
    }
}

fn wants_color(globals: &Globals, preferred: Option<bool>) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    match globals.color {
        _ if globals.no_color => false,
        ColorWhen::Never => false,
        ColorWhen::Always => true,
        ColorWhen::Auto => !no_color && preferred.unwrap_or(true) && io::stderr().is_terminal(),
    }
}

/// A closed stderr is no reason to fail.
fn write_line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
