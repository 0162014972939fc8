//! `POST /v1/bootstrap` (api.md §3).

use super::{
    admission::Request,
    answer::{Answer, Outcome, invalid},
    fields::Fields,
    peers::{endpoint_list, peer_name},
};
use crate::{
    model::{Endpoint, Refused},
    node::BootstrapRequest,
};
use hyper::header::HOST;
use serde_json::json;

const DESCRIPTION_MAX_BYTES: usize = 1024;

pub(super) async fn bootstrap(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let mut wish = read(&r.body)?;
    wish.called_at = called_at(&r);
    if dry_run {
        let license = r.node().check_bootstrap(&wish)?;
        return Answer::ok(&json!({
            "peer_id": null,
            "peer_public_key": null,
            "client_id": null,
            "client_secret": null,
            "cluster_id": null,
            "license_id": license.license_id(),
            "expires_at": license.expires_at(),
            "max_nodes": license.max_nodes(),
            "max_services": license.max_services(),
        }));
    }
    let made = r.node().bootstrap(wish).await?;
    let body = json!({
        "peer_id": made.peer_id,
        "peer_public_key": made.peer_public_key,
        "client_id": made.client_id,
        "client_secret": made.client_secret.reveal(),
        "cluster_id": made.cluster_id,
        "license_id": made.license_id,
        "expires_at": made.expires_at,
        "max_nodes": made.max_nodes,
        "max_services": made.max_services,
    });
    Ok(Answer::created(&body)?.uncached())
}

/// The wrapped form, or the bare content of a license file.
fn read(body: &[u8]) -> Result<BootstrapRequest, Refused> {
    let fields = Fields::parse(body)?;
    let none = BootstrapRequest {
        license: serde_json::Value::Null,
        name: None,
        description: None,
        endpoints: Vec::new(),
        called_at: None,
    };
    if !fields.has("license") && fields.has("signature") {
        return Ok(BootstrapRequest { license: fields.into_value(), ..none });
    }
    let fields = fields.only(&["license", "name", "description", "endpoints"])?;
    let license = license_of(&fields)?;
    let description = fields.text("description")?;
    if description.is_some_and(|d| d.len() > DESCRIPTION_MAX_BYTES) {
        return Err(invalid(format!("field `description` is longer than {DESCRIPTION_MAX_BYTES} bytes")));
    }
    Ok(BootstrapRequest {
        license,
        name: peer_name(&fields)?,
        description: description.map(str::to_owned),
        endpoints: endpoint_list(&fields)?.unwrap_or_default(),
        ..none
    })
}

/// The field `license`: a document, not looked into.
pub(super) fn license_of(fields: &Fields) -> Result<serde_json::Value, Refused> {
    let license = fields.value("license").ok_or_else(|| fields.missing("license"))?;
    if license.is_object() {
        Ok(license.clone())
    } else {
        Err(fields.wrong("license", "a license document (the unchanged content of license.json)"))
    }
}

/// Host and port of the request, unless only this host could reach them.
fn called_at(r: &Request) -> Option<Endpoint> {
    let host = r.headers.get(HOST)?.to_str().ok()?;
    let has_port = host.rsplit_once(':').is_some_and(|(h, _)| !h.contains(':') || h.ends_with(']'));
    let endpoint: Endpoint = host.parse().ok()?;
    let endpoint = if has_port { endpoint } else { endpoint.with_port(r.node().config().api_bind.port()) };
    let elsewhere = match endpoint.ip() {
        Some(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()),
        None => endpoint.host() != "localhost" && !endpoint.host().ends_with(".localhost"),
    };
    elsewhere.then_some(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Code;

    // accepts: 000-07
    #[test]
    fn the_license_comes_wrapped_or_bare_and_unchanged() {
        let document = json!({"license_id": "lic_x", "signature": "AA==", "extra": [1, 2]});
        let bare = read(document.to_string().as_bytes()).unwrap();
        assert_eq!((bare.license, bare.name), (document.clone(), None));
        let body = json!({"license": document, "name": "new-agent", "endpoints": ["10.0.0.1"]});
        let wrapped = read(body.to_string().as_bytes()).unwrap();
        assert_eq!((wrapped.license, wrapped.name.as_deref()), (document, Some("new-agent")));
        assert_eq!(wrapped.endpoints, ["10.0.0.1:8080".parse().unwrap()]);
    }

    #[test]
    fn bodies_without_a_license_are_refused_by_name() {
        let code = |body: &str| read(body.as_bytes()).err().unwrap().code;
        assert_eq!(code("{}"), Code::MissingField);
        assert_eq!(code(r#"{"license":null}"#), Code::MissingField);
        assert_eq!(code(r#"{"license":"text"}"#), Code::InvalidRequest);
        assert_eq!(code(r#"{"licence":{}}"#), Code::InvalidRequest);
        assert_eq!(code("license"), Code::InvalidRequest);
    }
}
