//! `/livez` and `/readyz` (api.md §3).

use super::{
    admission::Request,
    answer::{Answer, Outcome},
};
use crate::{
    license::State,
    membership::IDENTITY_CONFLICT_HINT,
    model::{Refused, UnixTime},
    node::Node,
    reconcile::ReconcilerStatus,
};
use hyper::StatusCode;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Ok,
    Fail,
}

impl Health {
    fn of(well: bool) -> Self {
        if well { Self::Ok } else { Self::Fail }
    }
    fn http_status(self) -> StatusCode {
        if self == Self::Ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
}

/// What the check of a reconciler says between the start of the agent and its first pass.
pub const NO_PASS_YET: &str = "no pass has succeeded yet";

/// The order of the fields is part of the contract.
#[derive(Serialize)]
struct Live {
    status: Health,
    timestamp: UnixTime,
}

#[derive(Serialize)]
struct Ready {
    status: Health,
    timestamp: UnixTime,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    status: Health,
    message: String,
}

impl Check {
    fn new(name: &'static str, result: Result<String, String>) -> Self {
        let status = Health::of(result.is_ok());
        Self { name, status, message: result.unwrap_or_else(|e| e) }
    }
}

pub(super) async fn live(r: Request) -> Outcome {
    let status = Health::of(database(r.node()).is_ok());
    Answer::json(status.http_status(), &Live { status, timestamp: r.now() })
}

pub(super) async fn ready(r: Request) -> Outcome {
    r.query.only(&["verbose", "exclude"])?;
    let excluded: Vec<&str> = r.query.get("exclude").unwrap_or("").split(',').collect();
    let node = r.node();
    let reconcilers = node.reconcile_status();
    let checks = [
        Check::new("db", database(node)),
        Check::new("identity", identity(node)),
        Check::new("license", license(node)),
        Check::new("api", Ok("serving".into())),
        Check::new("network", reconciler(&reconcilers.network)),
        Check::new("firewall", reconciler(&reconcilers.firewall)),
        Check::new("tproxy", reconciler(&reconcilers.tproxy)),
        Check::new("iptun", reconciler(&reconcilers.iptun)),
    ];
    let checks: Vec<Check> = checks.into_iter().filter(|c| !excluded.contains(&c.name)).collect();
    let status = Health::of(checks.iter().all(|c| c.status == Health::Ok));
    Answer::json(status.http_status(), &Ready { status, timestamp: r.now(), checks })
}

fn database(node: &Node) -> Result<String, String> {
    node.store().read(|v| v.own_version()).map(|_| "readable".into()).map_err(|e| Refused::from(e).text)
}

fn identity(node: &Node) -> Result<String, String> {
    if node.is_contested() {
        return Err(format!("another live copy of this identity is heard: {IDENTITY_CONFLICT_HINT}"));
    }
    match (node.identity(), node.entitlement()) {
        (Some(identity), Some(_)) => Ok(identity.peer_id.to_string()),
        _ => Err("not bootstrapped".into()),
    }
}

fn reconciler(status: &ReconcilerStatus) -> Result<String, String> {
    match (&status.failure, status.last_success) {
        (Some(failure), _) => Err(failure.clone()),
        (None, Some(at)) => Ok(format!("applied at {at}")),
        (None, None) => Err(NO_PASS_YET.into()),
    }
}

fn license(node: &Node) -> Result<String, String> {
    match node.entitlement() {
        None => Err("not bootstrapped".into()),
        Some(e) if e.state == State::Suspended => Err(e.warnings().join("; ")),
        Some(e) => Ok(format!("{}, expires at {}", e.state, e.document.expires_at())),
    }
}
