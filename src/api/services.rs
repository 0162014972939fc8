//! Services (api.md §5). Reads come from the local copy; writes go to the owner, the source peer.

use super::{
    admission::Request,
    answer::{Answer, Outcome, clip, invalid, not_found},
    fields::Fields,
    forward, routes, transaction,
};
use crate::{
    license::Entitlement,
    membership,
    model::{
        Code, PeerId, Refused, Rng, Scope, Service, ServiceBody, ServiceId, Transport, UnixTime, looks_like_id,
        parse_host_cidr,
    },
    reconcile::Status,
    store::{PeerRow, Tx, View},
    wire::record::kind,
};
use hyper::header::IF_MATCH;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const NAME_MAX_BYTES: usize = 63;
const BANDWIDTH_MAX_MBPS: u64 = 400_000;
/// Characters of a service id that name its interface.
const INTERFACE_NAME_CHARS: usize = 15;
/// One character of those is random, 32 values; after as many tries the next millisecond is used.
const ID_TRIES_PER_MS: u64 = 32;
const ID_TRIES_MAX: u64 = 4096;
/// Characters of each peer's name in a default service name.
const LABEL_MAX_CHARS: usize = 24;
const FIELDS: &[&str] = &[
    "target_peer_id",
    "source_peer_id",
    "name",
    "transport_type",
    "requires_interface",
    "desired_ipv4_cidr",
    "desired_ipv6_cidr",
    "bandwidth_limit_mbps",
    "fully_transparent",
];

/// A service as asked for: every rule checked that needs no store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    target: String,
    source: Option<String>,
    name: Option<String>,
    transport: Transport,
    requires_interface: bool,
    ipv4: Option<IpNet>,
    ipv6: Option<IpNet>,
    bandwidth_limit_mbps: u32,
    fully_transparent: bool,
}

impl Wish {
    fn read(body: &[u8]) -> Result<Self, Refused> {
        let fields = Fields::parse(body)?.only(FIELDS)?;
        let mbps = fields.integer("bandwidth_limit_mbps", BANDWIDTH_MAX_MBPS)?.unwrap_or(0);
        let wish = Self {
            target: fields.required_text("target_peer_id")?.to_owned(),
            source: fields.text("source_peer_id")?.map(str::to_owned),
            name: fields.text("name")?.map(check_name).transpose()?,
            transport: transport(&fields)?,
            requires_interface: fields.flag("requires_interface")?.unwrap_or(false),
            ipv4: host_cidr(&fields, "desired_ipv4_cidr", true)?,
            ipv6: host_cidr(&fields, "desired_ipv6_cidr", false)?,
            bandwidth_limit_mbps: u32::try_from(mbps).map_err(Refused::internal)?,
            fully_transparent: fields.flag("fully_transparent")?.unwrap_or(false),
        };
        wish.check_together()?;
        Ok(wish)
    }

    fn check_together(&self) -> Result<(), Refused> {
        if self.fully_transparent && !self.requires_interface {
            return Err(invalid("fully_transparent needs requires_interface"));
        }
        if self.fully_transparent && self.transport == Transport::Kcp {
            return Err(invalid("fully_transparent needs transport_type tcp"));
        }
        if !self.requires_interface && (self.ipv4.is_some() || self.ipv6.is_some()) {
            return Err(invalid("desired_ipv4_cidr and desired_ipv6_cidr need requires_interface"));
        }
        Ok(())
    }
}

fn transport(fields: &Fields) -> Result<Transport, Refused> {
    let Some(text) = fields.text("transport_type")? else { return Ok(Transport::default()) };
    text.parse().map_err(|e: crate::model::UnknownTransport| Refused::new(Code::InvalidTransport, e.to_string()))
}

fn check_name(name: &str) -> Result<String, Refused> {
    let charset = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(charset) {
        return Err(invalid("field `name` is not 1 to 63 of A-Z a-z 0-9 . _ -"));
    }
    if looks_like_id(name) {
        return Err(invalid(format!("name `{name}` looks like an id")));
    }
    Ok(name.to_owned())
}

fn host_cidr(fields: &Fields, field: &str, v4: bool) -> Result<Option<IpNet>, Refused> {
    let Some(text) = fields.text(field)? else { return Ok(None) };
    let refused = |text: String| Refused::new(Code::InvalidCidr, format!("field `{field}`: {text}"));
    let net = parse_host_cidr(text).map_err(|e| refused(e.to_string()))?;
    let ip = net.addr();
    if ip.is_ipv4() != v4 {
        return Err(refused(format!("{net} is not of {}", if v4 { "IPv4" } else { "IPv6" })));
    }
    let point_to_point = net.prefix_len() + 1 >= net.max_prefix_len();
    let names_no_host = !point_to_point && (ip == net.network() || (v4 && ip == net.broadcast()));
    if names_no_host || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Err(refused(format!("{net} is not the address of a host")));
    }
    Ok(Some(net))
}

pub(super) async fn list(r: Request) -> Outcome {
    r.query.only(&["source_peer_id", "target_peer_id", "requires_interface"])?;
    let peer = |name: &str| -> Result<Option<PeerId>, Refused> {
        r.query.get(name).map(|t| t.parse().map_err(|e: crate::model::IdError| invalid(e.to_string()))).transpose()
    };
    let (source, target) = (peer("source_peer_id")?, peer("target_peer_id")?);
    let interface = r.query.flag("requires_interface")?;
    let services = r.node().store().read(|v| v.services())?;
    let surroundings = Surroundings::of(&r)?;
    let wanted = |s: &&Service| {
        source.is_none_or(|p| p == s.body.source_peer_id)
            && target.is_none_or(|p| p == s.body.target_peer_id)
            && interface.is_none_or(|i| i == s.body.requires_interface)
    };
    let services: Vec<Value> = services
        .iter()
        .filter(wanted)
        .map(|s| {
            let mut shown = surroundings.show(s);
            shown["route_count"] = json!(s.body.routes.len());
            shown
        })
        .collect();
    Answer::ok(&json!({ "services": services }))
}

pub(super) async fn get(r: Request) -> Outcome {
    r.query.only(&[])?;
    Answer::ok(&whole(&r, &find(&r)?)?)
}

/// A service with its routes.
fn whole(r: &Request, service: &Service) -> Result<Value, Refused> {
    let mut shown = Surroundings::of(r)?.show(service);
    shown["routes"] = json!(routes::in_order(service));
    Ok(shown)
}

pub(super) async fn create(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let wish = Wish::read(&r.body)?;
    let author = r.identity()?;
    if let Some(text) = &wish.source {
        let source = r.node().store().read(|v| trusted(v, text, "source"))?.peer_id;
        if source != author.peer_id {
            return forward::to_owner(&r, source).await;
        }
    }
    let (entitlement, now, mut rng) = (r.entitlement()?, r.now(), r.api.fork_rng());
    let made = transaction::write(r.node(), dry_run, move |tx| {
        let body = body_of(tx, &wish, author.peer_id, now)?;
        let services = tx.services()?;
        let name_taken = |s: &Service| s.body.name.eq_ignore_ascii_case(&body.name);
        if services.iter().any(name_taken) {
            let text = format!("a service named `{}` already exists", body.name);
            return Err(Refused::new(Code::AlreadyExists, text));
        }
        entitlement.document.check_features_of(&body).map_err(Refused::from)?;
        entitlement.document.check_services(services.len() + 1).map_err(Refused::from)?;
        let id = mint_id(&services, now, &mut rng)?;
        Ok(tx.put_service(&author, id, &body)?)
    });
    let made = made.await?;
    let answer = Answer::created(&whole(&r, &made)?)?;
    forward::name_written(&r, answer, kind::SERVICE, &made.id.to_string())
}

fn body_of(tx: &Tx<'_>, wish: &Wish, source: PeerId, now: UnixTime) -> Result<ServiceBody, Refused> {
    let target = trusted(tx, &wish.target, "target")?;
    if target.peer_id == source {
        return Err(invalid("target_peer_id is the source peer itself"));
    }
    let name = match &wish.name {
        Some(name) => name.clone(),
        None => default_name(tx, source, &target)?,
    };
    Ok(ServiceBody {
        name,
        source_peer_id: source,
        target_peer_id: target.peer_id,
        transport_type: wish.transport,
        requires_interface: wish.requires_interface,
        desired_ipv4_cidr: wish.ipv4,
        desired_ipv6_cidr: wish.ipv6,
        bandwidth_limit_mbps: wish.bandwidth_limit_mbps,
        fully_transparent: wish.fully_transparent,
        routes: Vec::new(),
        next_route_id: 1,
        created_at: now,
        updated_at: now,
    })
}

/// A peer that may be the `end` of a service: trusted, not merely discovered.
fn trusted(view: &View<'_>, text: &str, end: &str) -> Result<PeerRow, Refused> {
    let unknown = || not_found(format!("{end} peer not found: `{}`", clip(text)));
    let id: PeerId = text.parse().map_err(|_| unknown())?;
    let row = view.peer(id)?.ok_or_else(unknown)?;
    if row.trusted {
        return Ok(row);
    }
    let hint = format!("peer {id} is discovered but not trusted yet; add it with `arctic peers add`");
    Err(unknown().with_hint(hint))
}

/// `<source>-to-<target>`, with a number where that is taken.
fn default_name(tx: &Tx<'_>, source: PeerId, target: &PeerRow) -> Result<String, Refused> {
    let source_label = tx.peer(source)?.map_or_else(|| id_label(source), |row| label(&row));
    let base = format!("{source_label}-to-{}", label(target));
    let services = tx.services()?;
    let free = |name: &String| !services.iter().any(|s| s.body.name.eq_ignore_ascii_case(name));
    let numbered = (2..=services.len() + 2).map(|n| format!("{base}-{n}"));
    Ok(std::iter::once(base.clone()).chain(numbered).find(free).unwrap_or(base))
}

/// A peer's name in the letters that service names may have.
fn label(peer: &PeerRow) -> String {
    let name = peer.display_name();
    if looks_like_id(&name) {
        return id_label(peer.peer_id);
    }
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    name.chars().map(allowed).take(LABEL_MAX_CHARS).collect()
}

/// The end of an id, which differs between peers made in the same second.
fn id_label(id: PeerId) -> String {
    let text = id.to_string().to_ascii_lowercase();
    format!("p{}", text.get(text.len() - 6..).unwrap_or_default())
}

/// A new id whose interface name no other service has.
fn mint_id(services: &[Service], now: UnixTime, rng: &mut Rng) -> Result<ServiceId, Refused> {
    let taken = |id: &ServiceId| services.iter().any(|s| interface_name(s.id) == interface_name(*id));
    let mut tries = (0..ID_TRIES_MAX).map(|n| {
        let at = now.plus(Duration::from_millis(n / ID_TRIES_PER_MS));
        ServiceId::mint(at, rng)
    });
    tries.find(|id| !taken(id)).ok_or_else(|| Refused::new(Code::Internal, "no free service id was found; try again"))
}

fn interface_name(id: ServiceId) -> String {
    id.to_string().chars().take(INTERFACE_NAME_CHARS).collect()
}

pub(super) async fn delete(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let if_match = if_match(&r)?;
    let service = find(&r)?;
    let author = r.identity()?;
    let (owner, id) = (service.body.source_peer_id, service.id.to_string());
    if owner == author.peer_id {
        transaction::write(r.node(), dry_run, move |tx| {
            let current = tx.service(service.id)?.ok_or_else(|| unknown(&service.id.to_string()))?;
            check_version(if_match, current.version)?;
            Ok(tx.delete_service(&author, service.id)?)
        })
        .await?;
    } else if r.node().store().read(|v| v.peer(owner))?.is_some_and(|p| p.trusted) {
        return forward::to_owner(&r, owner).await;
    } else {
        delete_of_departed(&r, dry_run, if_match, service).await?;
    }
    forward::name_written(&r, Answer::no_content(), kind::SERVICE, &id)
}

/// The owner has left the cluster, so any peer deletes for it, on the word of an administrator (cluster.md §5).
async fn delete_of_departed(r: &Request, dry_run: bool, wanted: Option<u64>, service: Service) -> Result<(), Refused> {
    if !r.caller.scopes().grants(Scope::Admin) {
        let text =
            format!("the source of service {} has left the cluster: deleting it needs the scope admin", service.id);
        return Err(Refused::new(Code::Forbidden, text));
    }
    check_version(wanted, service.version)?;
    let author = r.identity()?;
    let tombstone = transaction::write(r.node(), dry_run, move |tx| {
        let owner = service.body.source_peer_id;
        let tombstone = membership::delete_service_of_departed(tx, &author, owner, service.id)?;
        tombstone.ok_or_else(|| unknown(&service.id.to_string()))
    });
    let tombstone = tombstone.await?;
    if dry_run { Ok(()) } else { r.node().tell_of_tombstone(&tombstone) }
}

/// The version in `If-Match`, plain or quoted.
pub(super) fn if_match(r: &Request) -> Result<Option<u64>, Refused> {
    let Some(value) = r.headers.get(IF_MATCH) else { return Ok(None) };
    let version = value.to_str().ok().and_then(|t| t.trim().trim_matches('"').parse().ok());
    version.map(Some).ok_or_else(|| invalid("the header If-Match is not a version number"))
}

pub(super) fn check_version(wanted: Option<u64>, current: u64) -> Result<(), Refused> {
    match wanted {
        Some(wanted) if wanted != current => {
            Err(Refused::new(Code::Conflict, format!("version {wanted} is stale: the current one is {current}")))
        }
        _ => Ok(()),
    }
}

fn unknown(text: &str) -> Refused {
    not_found(format!("service `{}` not found", clip(text)))
}

/// The service that the path names.
pub(super) fn find(r: &Request) -> Result<Service, Refused> {
    let text = r.param("sid");
    let id: ServiceId = text.parse().map_err(|_| unknown(text))?;
    r.node().store().read(|v| v.service(id))?.ok_or_else(|| unknown(text))
}

/// What else the answer about a service is made from.
struct Surroundings {
    /// Names of trusted peers.
    names: BTreeMap<PeerId, String>,
    entitlement: Arc<Entitlement>,
    reconciled: Status,
}

impl Surroundings {
    fn of(r: &Request) -> Result<Self, Refused> {
        let peers = r.node().store().read(|v| v.trusted_peers())?;
        Ok(Self {
            names: peers.into_iter().map(|p| (p.peer_id, p.display_name())).collect(),
            entitlement: r.entitlement()?,
            reconciled: r.node().reconcile_status(),
        })
    }

    fn show(&self, service: &Service) -> Value {
        let Self { names, entitlement, reconciled } = self;
        let body = &service.body;
        let ends_trusted = names.contains_key(&body.source_peer_id) && names.contains_key(&body.target_peer_id);
        let licensed = entitlement.data_plane_runs() && entitlement.document.features().missing_for(body).is_none();
        let active = ends_trusted && licensed;
        let conditions = reconciled.conditions.get(&service.id).map_or(&[][..], Vec::as_slice);
        json!({
            "id": service.id,
            "name": body.name,
            "source_peer_id": body.source_peer_id,
            "source_peer_name": names.get(&body.source_peer_id),
            "target_peer_id": body.target_peer_id,
            "target_peer_name": names.get(&body.target_peer_id),
            "state": if active { "active" } else { "inactive" },
            "transport_type": body.transport_type,
            "effective_transport": body.transport_type,
            "requires_interface": body.requires_interface,
            "desired_ipv4_cidr": body.desired_ipv4_cidr,
            "desired_ipv6_cidr": body.desired_ipv6_cidr,
            "bandwidth_limit_mbps": body.bandwidth_limit_mbps,
            "fully_transparent": body.fully_transparent,
            "interface_name": body.requires_interface.then(|| interface_name(service.id)),
            "interface_mac": null,
            "interface_ipv4_cidr": null,
            "interface_ipv6_cidr": null,
            "fwmark": reconciled.fwmarks.get(&service.id),
            "conditions": conditions,
            "version": service.version,
            "created_at": body.created_at,
            "updated_at": body.updated_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(body: &str) -> Result<Wish, (Code, String)> {
        Wish::read(body.as_bytes()).map_err(|e| (e.code, e.text))
    }

    #[test]
    fn a_target_alone_is_enough() {
        let w = wish(r#"{"target_peer_id":"x"}"#).unwrap();
        assert_eq!((w.source, w.transport, w.bandwidth_limit_mbps), (None, Transport::Tcp, 0));
        assert!(!w.requires_interface && !w.fully_transparent);
        assert_eq!(wish("{}").unwrap_err().0, Code::MissingField);
    }

    // accepts: 002-11
    #[test]
    fn fields_that_contradict_each_other_are_refused() {
        let code = |rest: &str| wish(&format!(r#"{{"target_peer_id":"x",{rest}}}"#)).unwrap_err().0;
        assert_eq!(code(r#""fully_transparent":true"#), Code::InvalidRequest);
        assert_eq!(
            code(r#""fully_transparent":true,"requires_interface":true,"transport_type":"kcp""#),
            Code::InvalidRequest
        );
        assert_eq!(code(r#""desired_ipv4_cidr":"192.168.100.10/24""#), Code::InvalidRequest);
        assert_eq!(code(r#""transport_type":"udp""#), Code::InvalidTransport);
        assert_eq!(code(r#""bandwidth_limit_mbps":400001"#), Code::InvalidRequest);
        assert_eq!(code(r#""bandwidth_limit_mbps":-1"#), Code::InvalidRequest);
        assert_eq!(code(r#""bandwidth_limit":5"#), Code::InvalidRequest);
        for name in ["", "a b", "ä", "svc_x", "01ARZ3NDEKTSV4RRFFQ69G5FAV", &"x".repeat(64), "a;drop", "a'b"] {
            assert_eq!(code(&format!(r#""name":"{name}""#)), Code::InvalidRequest, "{name}");
        }
        for cidr in ["192.168.100.0/24", "192.168.100.255/24", "192.168.100.10", "127.0.0.1/8", "fd00::1/64", "x"] {
            let rest = format!(r#""requires_interface":true,"desired_ipv4_cidr":"{cidr}""#);
            assert_eq!(code(&rest), Code::InvalidCidr, "{cidr}");
        }
    }

    #[test]
    fn the_five_fields_go_together() {
        let w = wish(
            r#"{"target_peer_id":"x","transport_type":"tcp","requires_interface":true,
                "desired_ipv4_cidr":"192.168.100.10/24","bandwidth_limit_mbps":1000}"#,
        )
        .unwrap();
        assert_eq!((w.ipv4, w.bandwidth_limit_mbps), (Some("192.168.100.10/24".parse().unwrap()), 1000));
    }

    #[test]
    fn ids_made_at_one_moment_name_different_interfaces() {
        let (now, mut rng) = (UnixTime::from_secs(1_800_000_000), Rng::from_seed([1; 32]));
        let peer = PeerId::mint(now, &mut rng);
        let mut services: Vec<Service> = Vec::new();
        for _ in 0..100 {
            let id = mint_id(&services, now, &mut rng).unwrap();
            let body = ServiceBody::plain(&id.to_string(), peer, peer, now);
            services.push(Service { id, version: 1, body });
        }
        let names: std::collections::BTreeSet<_> = services.iter().map(|s| interface_name(s.id)).collect();
        assert_eq!(names.len(), 100);
        assert!(names.iter().all(|n| n.len() == 15));
    }
}
