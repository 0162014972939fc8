//! The real `arctic` program against an agent of canned answers: every command, its output, exit codes and files.

mod commands;
mod failures;
mod fake;
mod files;
