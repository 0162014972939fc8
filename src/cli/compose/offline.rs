//! The verbs that need no agent: init, fmt, validate, schema, graph.

use super::{
    load::{self, load, name_of},
    survey,
};
use crate::{
    cli::{
        args::{EnvArg, Format, Globals},
        errors::{CliError, Exit},
        files, output,
        session::{self, Session, print},
    },
    compose::{self, Rules, SCHEMA_LINE},
};
use serde_json::json;
use std::{fs, io, path::Path};

const STARTER: &str = "\
# Peers and services of one cluster. Check with `arctic compose validate`, look with `arctic compose diff`,
# then `arctic compose apply`. What is not listed here is kept.

version: v1

# Bootstraps peers that are new; relative to this file.
# license: license.json

peers:
  # The API must be reached from here and from the other peers; port 8080 where none is given.
  - { name: syd, endpoints: [\"203.0.113.10:8080\"] }
  - { name: fra, endpoints: [\"198.51.100.7:8080\"] }

services:
  - name: syd-to-fra
    source_peer: syd
    target_peer: fra
    # transport_type: kcp
    qos: { bandwidth_limit_mbps: 0 }
    routes:
      - { source_cidr: 10.0.0.0/8, dest_cidr: 192.168.100.0/24, priority: 100 }
";

/// The current cluster if one answers, else an example.
pub async fn init(globals: &Globals, path: &Path, force: bool) -> Result<(), CliError> {
    let to_stdout = path.as_os_str() == "-";
    if !to_stdout && !force && path.exists() {
        let text = format!("{} exists already", path.display());
        return Err(CliError::new(Exit::General, "ALREADY_EXISTS", text).with_hint("--force replaces it"));
    }
    let text = match live_text(globals).await? {
        Some(text) => text,
        None => {
            let text = format!("{SCHEMA_LINE}\n{STARTER}");
            compose::parse(&text).map_or(text, |document| compose::format(&document))
        }
    };
    if to_stdout {
        print(&text);
        return Ok(());
    }
    files::replace(path, &text).map_err(|e| cannot_write(path, &e))?;
    let (view, _) = session::output_of(globals, &Default::default())?;
    let written = path.display().to_string();
    session::print_result(&view, &format!("{written} written"), json!({ "file": written }))
}

async fn live_text(globals: &Globals) -> Result<Option<String>, CliError> {
    let Ok(session) = Session::open(globals).await else { return Ok(None) };
    if session.cluster.is_none() && globals.url.is_none() {
        return Ok(None);
    }
    match survey::of_session(&session).await {
        Ok(live) => {
            let comments = [
                SCHEMA_LINE.to_owned(),
                "# The live state of the cluster: applied as it is, it changes nothing.".to_owned(),
            ];
            Ok(Some(compose::export(&live, &comments, false).text))
        }
        Err(e) if e.exit == Exit::Unreachable => {
            session.log.warn(&format!("{}: the file is an example", e.text));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

pub fn cannot_write(path: &Path, e: &io::Error) -> CliError {
    CliError::new(Exit::General, "INTERNAL", format!("cannot write {}", path.display()))
        .with_fact("reason", e.to_string())
}

pub fn fmt(globals: &Globals, path: &Path, write: bool, check: bool) -> Result<(), CliError> {
    let text = load::read_text(path)?;
    let document = load::document(globals, path, &text)?;
    let formatted = compose::format(&document);
    if check {
        return match formatted == text {
            true => Ok(()),
            false => {
                Err(CliError::new(Exit::General, "NOT_CANONICAL", format!("{} is laid out otherwise", name_of(path)))
                    .with_hint(format!("arctic compose fmt {} --write", path.display())))
            }
        };
    }
    let to_file = write && path.as_os_str() != "-";
    if to_file && formatted != text {
        files::replace(path, &formatted).map_err(|e| cannot_write(path, &e))?;
    }
    if to_file && !globals.json { Ok(()) } else { session::print_text(globals, &formatted) }
}

pub fn validate(globals: &Globals, path: &Path, strict: bool, env: &EnvArg) -> Result<(), CliError> {
    let (view, _) = session::output_of(globals, &Default::default())?;
    let name = name_of(path);
    if !view.is_structured() {
        print(&format!("Validating {name}...\n"));
    }
    let loaded = load(globals, path, env, Rules::Full)?;
    if let Some(license) = &loaded.file.license
        && fs::metadata(loaded.directory.join(license)).is_err()
    {
        let place = loaded.directory.join(license);
        let error = CliError::new(Exit::General, "FILE_INVALID", format!("license {} is not there", place.display()));
        return Err(error.with_hint("its path is relative to the cluster file"));
    }
    if strict && !loaded.warnings.is_empty() {
        return Err(load::invalid(globals, &name, &loaded.text, &loaded.warnings));
    }
    load::show_findings(globals, &name, &loaded.text, &loaded.warnings);
    let (peers, services) = (loaded.file.peers.len(), loaded.file.services.len());
    let routes: usize = loaded.file.services.iter().map(|s| s.routes.len()).sum();
    let text = format!("OK - {peers} peers, {services} services, {routes} routes");
    let object = json!({"file": name, "valid": true, "peers": peers, "services": services, "routes": routes,
        "warnings": loaded.warnings});
    session::print_result(&view, &text, object)
}

/// A schema is JSON whatever was asked for.
pub fn schema() -> Result<(), CliError> {
    print(&output::pretty(&compose::schema())?);
    Ok(())
}

pub fn graph(globals: &Globals, path: &Path, env: &EnvArg) -> Result<(), CliError> {
    let file = load(globals, path, env, Rules::Full)?.file;
    let (language, text) = match globals.output {
        Some(Format::Dot) => ("dot", compose::dot(&file)),
        _ => ("mermaid", compose::mermaid(&file)),
    };
    if matches!(globals.output, Some(Format::Dot | Format::Mermaid)) && !globals.json {
        print(&text);
        return Ok(());
    }
    let (view, _) = session::output_of(globals, &Default::default())?;
    session::print_result(&view, text.trim_end(), json!({ "format": language, "graph": text }))
}
