//! Peers (api.md §4).

use super::{
    admission::Request,
    answer::{Answer, Outcome, clip, invalid, not_found},
    applied::settled_here,
    fields::Fields,
    transaction,
};
use crate::{
    model::{Endpoint, PeerId, PeerStatus, Refused, UnixTime, looks_like_id},
    node::{AddPeer, Added, Examined},
    store::PeerRow,
};
use serde_json::{Value, json};

const ENDPOINTS_MAX: usize = 16;
const NAME_MAX_CHARS: usize = 63;
const IMMUTABLE: [&str; 14] = [
    "id",
    "self_name",
    "public_key",
    "is_local",
    "endpoints",
    "address",
    "api_access",
    "status",
    "last_seen",
    "rtt_ms",
    "version",
    "license_id",
    "license_state",
    "created_at",
];

pub(super) async fn list(r: Request) -> Outcome {
    r.query.only(&["is_local", "status"])?;
    let is_local = r.query.flag("is_local")?;
    let status = r.query.get("status").map(parse_status).transpose()?;
    let own_id = r.identity()?.peer_id;
    let rows = r.node().store().read(|v| v.peers())?;
    let wanted = |p: &&PeerRow| {
        is_local.is_none_or(|local| local == (p.peer_id == own_id))
            && status.is_none_or(|s| s == r.node().peer_health(p.peer_id).status)
    };
    let peers: Vec<Value> = rows.iter().filter(wanted).map(|p| peer_json(&r, p)).collect::<Result<_, _>>()?;
    Answer::ok(&json!({ "peers": peers }))
}

pub(super) async fn get(r: Request) -> Outcome {
    r.query.only(&[])?;
    let row = find(&r)?;
    Answer::ok(&peer_json(&r, &row)?)
}

pub(super) async fn add(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let fields = Fields::parse(&r.body)?.only(&["endpoints", "address", "name", "public_key"])?;
    let wish = AddPeer {
        endpoints: wished_endpoints(&fields)?,
        name: peer_name(&fields)?,
        public_key: fields
            .text("public_key")?
            .map(|k| k.parse().map_err(|e| invalid(format!("field `public_key`: {e}"))))
            .transpose()?,
    };
    refuse_self(&r, &wish.endpoints)?;
    if dry_run {
        return Answer::created(&would_be(r.node().examine_peer(&wish).await?, &wish, r.now()));
    }
    let Added { peer, warnings } = r.node().add_peer(wish).await?;
    let row = r.node().store().read(|v| v.peer(peer))?;
    let row = row.ok_or_else(|| not_found(format!("peer {peer} was removed while it was added")))?;
    let mut shown = peer_json(&r, &row)?;
    shown["warnings"] = json!(warnings);
    Ok(Answer::created(&shown)?.about(peer))
}

/// A peer as it would be after `peers add`: only what its agent says of itself to everybody.
fn would_be(found: Examined, wish: &AddPeer, now: UnixTime) -> Value {
    json!({
        "id": found.peer_id,
        "name": wish.name.clone().unwrap_or_else(|| found.peer_id.to_string()),
        "self_name": null,
        "public_key": found.public_key,
        "is_local": false,
        "address": found.endpoint,
        "endpoints": wish.endpoints,
        "qos_enabled": true,
        "api_access": null,
        "status": PeerStatus::Discovered,
        "last_seen": null,
        "rtt_ms": null,
        "version": found.version,
        "license_id": found.license_id,
        "license_state": null,
        "created_at": now,
        "warnings": found.warnings,
    })
}

/// Changes how this agent sees a peer; nothing of it is gossiped.
pub(super) async fn update(r: Request) -> Outcome {
    let (dry_run, wait) = r.dry_run_or_wait()?;
    let fields = Fields::parse(&r.body)?;
    if let Some(field) = IMMUTABLE.into_iter().find(|field| fields.has(field)) {
        return Err(invalid(format!("field `{field}` of a peer cannot be changed"))
            .with_hint("name and qos_enabled can; the peer's own settings give the rest"));
    }
    let fields = fields.only(&["name", "qos_enabled"])?.no_nulls_but(&[])?;
    let (name, qos) = (peer_name(&fields)?, fields.flag("qos_enabled")?);
    let id = find(&r)?.peer_id;
    let row = transaction::write(r.node(), dry_run, move |tx| {
        tx.set_peer_view(id, name.as_deref(), qos)?;
        tx.peer(id)?.ok_or_else(|| not_found(format!("peer `{id}` not found")))
    });
    let answer = Answer::ok(&peer_json(&r, &row.await?)?)?;
    settled_here(&r, answer, wait).await
}

pub(super) async fn delete(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    if r.param("id").parse() == Ok(r.identity()?.peer_id) {
        return Err(invalid("cannot delete local peer (use 'arctic peers remove-self' instead)"));
    }
    let row = find(&r)?;
    if !dry_run {
        r.node().remove_peer(row.peer_id).await?;
    }
    Ok(Answer::no_content())
}

/// The called agent leaves its cluster.
pub(super) async fn remove_self(r: Request) -> Outcome {
    if r.dry_run()? {
        let (identity, cluster) = (r.identity()?, r.cluster()?);
        return Answer::ok(&json!({
            "action": "deactivated",
            "peer_id": identity.peer_id,
            "public_key": identity.key.public(),
            "cluster_id": cluster.cluster_id,
            "version": null,
            "deactivated_at": null,
            "signature": null,
        }));
    }
    Answer::ok(&r.node().leave_cluster().await?)
}

fn find(r: &Request) -> Result<PeerRow, Refused> {
    let unknown = || not_found(format!("peer `{}` not found", clip(r.param("id"))));
    let id: PeerId = r.param("id").parse().map_err(|_| unknown())?;
    r.node().store().read(|v| v.peer(id))?.ok_or_else(unknown)
}

/// `endpoints`, or its deprecated form `address`, which does not count beside it.
fn wished_endpoints(fields: &Fields) -> Result<Vec<Endpoint>, Refused> {
    if let Some(list) = endpoint_list(fields)? {
        return if list.is_empty() { Err(fields.wrong("endpoints", "a list of at least 1 entry")) } else { Ok(list) };
    }
    let address = fields.text("address")?.ok_or_else(|| fields.missing("endpoints"))?;
    Ok(vec![parse_endpoint(address)?])
}

/// The field `endpoints`, each `host:port` once, in order.
pub(super) fn endpoint_list(fields: &Fields) -> Result<Option<Vec<Endpoint>>, Refused> {
    let Some(texts) = fields.texts("endpoints", ENDPOINTS_MAX)? else { return Ok(None) };
    let mut list = Vec::with_capacity(texts.len());
    for text in texts {
        let endpoint = parse_endpoint(text)?;
        if !list.contains(&endpoint) {
            list.push(endpoint);
        }
    }
    Ok(Some(list))
}

fn parse_endpoint(text: &str) -> Result<Endpoint, Refused> {
    let endpoint: Endpoint = text.parse().map_err(|e: crate::model::EndpointError| invalid(e.to_string()))?;
    match endpoint.ip() {
        Some(ip) if ip.is_unspecified() || ip.is_multicast() || is_broadcast(ip) => {
            Err(invalid(format!("endpoint {endpoint} is not the address of a host")))
        }
        _ => Ok(endpoint),
    }
}

fn is_broadcast(ip: std::net::IpAddr) -> bool {
    matches!(ip, std::net::IpAddr::V4(v4) if v4.is_broadcast())
}

/// The field `name` of a peer: 1 to 63 characters, none of control, not like an id.
pub(super) fn peer_name(fields: &Fields) -> Result<Option<String>, Refused> {
    let Some(name) = fields.text("name")? else { return Ok(None) };
    let length = name.chars().count();
    if length == 0 || length > NAME_MAX_CHARS || name.chars().any(char::is_control) || name.trim() != name {
        return Err(fields.wrong("name", "a name of 1 to 63 characters"));
    }
    if looks_like_id(name) {
        return Err(invalid(format!("name `{}` looks like an id", clip(name))));
    }
    Ok(Some(name.to_owned()))
}

fn refuse_self(r: &Request, endpoints: &[Endpoint]) -> Result<(), Refused> {
    let own_id = r.identity()?.peer_id;
    let own = r.node().store().read(|v| v.peer(own_id))?;
    let own = own.map(|p| p.all_endpoints()).unwrap_or_default();
    let api_port = r.node().config().api_bind.port();
    let is_self = |e: &&Endpoint| {
        let loopback = e.host() == "localhost" || e.ip().is_some_and(|ip| ip.is_loopback());
        own.contains(e) || (loopback && e.port() == api_port)
    };
    match endpoints.iter().find(is_self) {
        Some(endpoint) => Err(invalid(format!("endpoint {endpoint} is this agent itself"))),
        None => Ok(()),
    }
}

fn parse_status(text: &str) -> Result<PeerStatus, Refused> {
    serde_json::from_value(json!(text)).map_err(|_| {
        invalid(format!("unknown status `{}`: discovered, handshaking, healthy, unhealthy or unreachable", clip(text)))
    })
}

pub(super) fn status_text(status: PeerStatus) -> &'static str {
    match status {
        PeerStatus::Discovered => "discovered",
        PeerStatus::Handshaking => "handshaking",
        PeerStatus::Healthy => "healthy",
        PeerStatus::Unhealthy => "unhealthy",
        PeerStatus::Unreachable => "unreachable",
    }
}

fn peer_json(r: &Request, peer: &PeerRow) -> Result<Value, Refused> {
    let own_id = r.identity()?.peer_id;
    let health = r.node().peer_health(peer.peer_id);
    let body = peer.body.as_ref();
    let endpoints = peer.all_endpoints();
    Ok(json!({
        "id": peer.peer_id,
        "name": peer.display_name(),
        "self_name": body.map(|b| b.name.as_str()),
        "public_key": peer.public_key,
        "is_local": peer.peer_id == own_id,
        "address": endpoints.first(),
        "endpoints": endpoints,
        "qos_enabled": peer.qos_enabled,
        "api_access": body.map(|b| b.api_access),
        "status": health.status,
        "last_seen": health.last_seen,
        "rtt_ms": health.rtt_ms,
        "version": health.version.as_deref().or(body.map(|b| b.version.as_str())),
        "license_id": body.map(|b| b.license_id).or(peer.license_id),
        "license_state": health.license_state,
        "created_at": peer.created_at,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Code;

    fn wished(body: &str) -> Result<Vec<String>, (Code, String)> {
        let fields = Fields::parse(body.as_bytes()).unwrap();
        let list = wished_endpoints(&fields).map_err(|e| (e.code, e.text))?;
        Ok(list.iter().map(Endpoint::to_string).collect())
    }

    // accepts: 000-19, 000-20
    #[test]
    fn endpoints_are_an_ordered_list_and_address_counts_only_alone() {
        assert_eq!(wished(r#"{"endpoints":["b","a:81","b:8080"]}"#).unwrap(), ["b:8080", "a:81"]);
        assert_eq!(wished(r#"{"address":"a"}"#).unwrap(), ["a:8080"]);
        assert_eq!(wished(r#"{"address":"not an address","endpoints":["b"]}"#).unwrap(), ["b:8080"]);
        assert_eq!(wished("{}").unwrap_err().0, Code::MissingField);
        let too_many = json!({ "endpoints": vec!["a"; 17] }).to_string();
        for bad in
            [r#"{"endpoints":[]}"#, r#"{"endpoints":"a"}"#, r#"{"endpoints":[1]}"#, r#"{"address":""}"#, &too_many]
        {
            assert_eq!(wished(bad).unwrap_err().0, Code::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn addresses_that_are_no_host_are_refused() {
        for bad in ["0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[ff02::1]:1", "255.255.255.255:1", "[::ffff:0.0.0.0]:1"] {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_short_printable_and_not_like_ids() {
        let name = |n: &str| peer_name(&Fields::parse(json!({ "name": n }).to_string().as_bytes()).unwrap());
        assert_eq!(name("new-agent"), Ok(Some("new-agent".into())));
        for bad in ["", " x", "a\u{7}b", "peer_x", "01ARZ3NDEKTSV4RRFFQ69G5FAV", &"x".repeat(64)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
