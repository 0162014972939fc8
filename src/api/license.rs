//! `GET` and `PUT /v1/license` (api.md §8).

use super::{
    admission::Request,
    answer::{Answer, Outcome},
    bootstrap::license_of,
    fields::Fields,
};
use crate::{license::Entitlement, model::Refused};
use serde_json::{Value, json};

pub(super) async fn get(r: Request) -> Outcome {
    r.query.only(&[])?;
    shown(&r, &*r.entitlement()?)
}

/// Answers with what counts from now on, or in a dry run would count.
pub(super) async fn put(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let offered = offered(&r.body)?;
    let entitlement = r.node().update_license(&offered, dry_run).await?;
    shown(&r, &entitlement)
}

/// The wrapped form, or the bare content of a license file.
fn offered(body: &[u8]) -> Result<Value, Refused> {
    let fields = Fields::parse(body)?;
    if !fields.has("license") && fields.has("signature") {
        return Ok(fields.into_value());
    }
    license_of(&fields.only(&["license"])?)
}

fn shown(r: &Request, e: &Entitlement) -> Outcome {
    let (nodes, services) =
        r.node().store().read::<_, Refused>(|v| Ok((v.trusted_peers()?.len(), v.services()?.len())))?;
    let mut warnings = e.warnings();
    warnings.extend(over_limit("nodes", nodes, e.document.max_nodes()));
    warnings.extend(over_limit("services", services, e.document.max_services()));
    Answer::ok(&json!({
        "license": e.document.as_value(),
        "state": e.state,
        "state_since": e.state_since,
        "effective_time": e.effective_time,
        "expires_at": e.document.expires_at(),
        "grace_ends_at": e.grace_ends_at(),
        "read_only_ends_at": e.read_only_ends_at(),
        "days_left": e.days_left(),
        "clock_suspect": e.clock_suspect,
        "nodes": {"used": nodes, "max": e.document.max_nodes()},
        "services": {"used": services, "max": e.document.max_services()},
        "features": e.document.features(),
        "warnings": warnings,
    }))
}

/// Limits may have been lowered by an update.
fn over_limit(noun: &str, used: usize, max: u32) -> Option<String> {
    (used > max as usize)
        .then(|| format!("{used} {noun} exist and the license allows {max}: they stay, no more can be added"))
}
