//! A plan for people and for programs.

use crate::compose::{Change, Plan, RouteChange, Symbol};
use serde_json::{Value, json};
use std::fmt::Write;

/// One line for each change, what is in it indented below, and the summary.
pub fn plan_text(plan: &Plan) -> String {
    let mut out = String::new();
    for change in &plan.changes {
        let _ = writeln!(
            out,
            "{:<3} {} {}: {}{}",
            change.symbol.text(),
            change.kind,
            change.name,
            change.about,
            tail(change)
        );
        if let Some(command) = &change.command {
            let _ = writeln!(out, "      to remove it: {command}");
        }
        for field in &change.fields {
            let _ = writeln!(out, "      {}: {} → {}", field.field, word(&field.old), word(&field.new));
        }
        for route in change.routes.iter().filter(|_| change.symbol != Symbol::Delete) {
            let _ = writeln!(out, "      {}", route_text(route));
        }
    }
    let _ = writeln!(out, "{}", plan.summary());
    out
}

fn tail(change: &Change) -> String {
    if change.symbol == Symbol::Keep {
        return String::new();
    }
    let on = if change.peers.is_empty() { String::new() } else { format!("  [{}]", change.peers.join(", ")) };
    let flows = match (change.kind, change.cuts_flows, change.symbol) {
        ("service", true, _) => ", running flows are cut",
        ("service", false, Symbol::Change) => ", running flows go on",
        _ => "",
    };
    format!("{on}{flows}")
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn route_text(route: &RouteChange) -> String {
    let (symbol, words) = (route.symbol.text(), route.words());
    match (route.symbol, route.old_priority) {
        (Symbol::Keep, _) => format!("{symbol} route {words}, not in the file, kept"),
        (Symbol::Delete, _) => format!("{symbol} route {words}"),
        (_, Some(old)) => format!("{symbol} route {words}, priority {old} → {}", route.priority),
        (_, None) => format!("{symbol} route {words}, priority {}", route.priority),
    }
}

pub fn plan_object(plan: &Plan) -> Value {
    let counts = plan.counts();
    json!({
        "changes": plan.changes,
        "warnings": plan.warnings,
        "summary": {"add": counts.add, "change": counts.change, "delete": counts.delete},
        "pending": !plan.is_empty(),
    })
}
