//! `GET /v1/license` (api.md §8).

use super::{
    admission::Request,
    answer::{Answer, Outcome},
};
use crate::model::Refused;
use serde_json::json;

pub(super) async fn get(r: Request) -> Outcome {
    r.query.only(&[])?;
    let e = r.entitlement()?;
    let (document, nodes, services) =
        r.node().store().read::<_, Refused>(|v| Ok((v.license()?, v.trusted_peers()?.len(), v.services()?.len())))?;
    Answer::ok(&json!({
        "license": document,
        "state": e.state,
        "effective_time": e.effective_time,
        "expires_at": e.document.expires_at(),
        "grace_ends_at": e.grace_ends_at(),
        "read_only_ends_at": e.read_only_ends_at(),
        "days_left": e.days_left(),
        "nodes": {"used": nodes, "max": e.document.max_nodes()},
        "services": {"used": services, "max": e.document.max_services()},
        "features": e.document.features(),
        "warnings": e.warnings(),
    }))
}
