//! The real `arctic` program against an agent of canned answers: every command, its output, exit codes and files.

mod commands;
mod compose;
mod failures;
mod fake;
mod files;
mod table;
mod verbs;
