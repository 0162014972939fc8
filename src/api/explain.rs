//! `POST /v1/routes/explain` (api.md §6).

use super::{
    admission::Request,
    answer::{Answer, Outcome as Answered, clip, invalid},
    fields::Fields,
};
use crate::{
    model::{Refused, Service, ServiceId},
    reconcile::{Candidate, Flow, Outcome, Plane, Reason, explain},
    routing::{CompiledRoute, Mismatch},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::IpAddr};

/// Candidates in one answer; those that match come before those that do not.
const CANDIDATES_MAX: usize = 1000;
const INTERFACE_NAME_MAX_BYTES: usize = 15;
const PROTOCOLS: [(&str, u8); 4] = [("icmp", 1), ("tcp", 6), ("udp", 17), ("icmpv6", 58)];

pub(super) async fn explain_route(r: Request) -> Answered {
    r.query.only(&[])?;
    let flow = read(&r.body)?;
    let own_id = r.identity()?.peer_id;
    let (mut services, peers) = r.node().store().read::<_, Refused>(|v| Ok((v.services()?, v.trusted_peers()?)))?;
    services.retain(|s| s.body.source_peer_id == own_id);
    let host = r.node().env().kernel.read_host().await.map_err(Refused::internal)?;
    let told = explain(&services, &r.node().reconcile_status(), &host, &flow);
    let names: BTreeMap<ServiceId, &Service> = services.iter().map(|s| (s.id, s)).collect();
    let winner = told.winner().and_then(|route| Some((route, *names.get(&route.service)?)));
    let target = winner.and_then(|(route, _)| peers.iter().find(|p| p.peer_id == route.target));
    let (result, message, plane, mark) = match &told.outcome {
        Outcome::Captured { plane, mark } => {
            ("captured", "a route takes it".to_owned(), Some(plane_name(*plane)), Some(*mark))
        }
        Outcome::Excluded(why) => ("excluded", why.clone(), None, None),
        Outcome::NotCaptured(why) => ("not_captured", why.clone(), None, None),
    };
    let limit = winner.map(|(_, s)| if target.is_none_or(|t| t.qos_enabled) { s.body.bandwidth_limit_mbps } else { 0 });
    Answer::ok(&json!({
        "result": result,
        "message": message,
        "plane": plane,
        "service_id": winner.map(|(_, s)| s.id),
        "service_name": winner.map(|(_, s)| &s.body.name),
        "route_id": winner.and_then(|(route, _)| route.route),
        "target_peer_id": winner.map(|(route, _)| route.target),
        "target_peer_name": target.map(|t| t.display_name()),
        "transport": winner.map(|(_, s)| s.body.transport_type),
        "mark": mark,
        "limit_mbps": limit,
        "candidates": chosen(&told.candidates).map(|c| shown(c, &names)).collect::<Vec<_>>(),
        "candidates_total": told.candidates.len(),
    }))
}

fn plane_name(plane: Plane) -> &'static str {
    match plane {
        Plane::Tproxy => "tproxy",
        Plane::Iptun => "iptun",
    }
}

fn read(body: &[u8]) -> Result<Flow, Refused> {
    let fields = Fields::parse(body)?.only(&["src", "dst", "proto", "dport", "iface"])?;
    let (source, dest) = (address(&fields, "src")?, address(&fields, "dst")?);
    if source.is_ipv4() != dest.is_ipv4() {
        return Err(invalid(format!("src {source} and dst {dest} are of different families")));
    }
    let port = fields.integer("dport", u64::from(u16::MAX))?;
    let interface = fields.text("iface")?;
    let named = |name: &str| {
        (1..=INTERFACE_NAME_MAX_BYTES).contains(&name.len())
            && name.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '/')
    };
    if interface.is_some_and(|name| !named(name)) {
        return Err(fields.wrong("iface", "the name of an interface"));
    }
    Ok(Flow {
        source,
        dest,
        protocol: protocol(&fields)?,
        dest_port: port.map(u16::try_from).transpose().map_err(Refused::internal)?,
        interface: interface.map(str::to_owned),
    })
}

fn address(fields: &Fields, field: &str) -> Result<IpAddr, Refused> {
    let parsed = fields.required_text(field)?.parse::<IpAddr>();
    parsed.map(|ip| ip.to_canonical()).map_err(|_| fields.wrong(field, "an IP address"))
}

fn protocol(fields: &Fields) -> Result<u8, Refused> {
    let expected = "tcp, udp, icmp, icmpv6 or a number from 0 to 255";
    let value = fields.value("proto").ok_or_else(|| fields.missing("proto"))?;
    let named = |name: &str| {
        let name = clip(name).to_ascii_lowercase();
        PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, n)| *n).or_else(|| name.parse().ok())
    };
    let number = match value {
        Value::String(name) => named(name),
        other => other.as_u64().and_then(|n| u8::try_from(n).ok()),
    };
    number.ok_or_else(|| fields.wrong("proto", expected))
}

/// In evaluation order, at most [`CANDIDATES_MAX`], those that match the packet before those that do not.
fn chosen(all: &[Candidate]) -> impl Iterator<Item = &Candidate> {
    let matches = |c: &&Candidate| !matches!(c.reason, Reason::Mismatch(_));
    let matching = all.iter().filter(matches);
    matching.chain(all.iter().filter(move |c| !matches(c))).take(CANDIDATES_MAX)
}

fn shown(candidate: &Candidate, services: &BTreeMap<ServiceId, &Service>) -> Value {
    let Candidate { route, reason } = candidate;
    let (code, message) = told(reason, services);
    json!({
        "service_id": route.service,
        "service_name": services.get(&route.service).map(|s| &s.body.name),
        "route_id": route.route,
        "source_cidr": route.source,
        "dest_cidr": route.dest,
        "priority": route.priority,
        "interface": route.interface,
        "outcome": if *reason == Reason::Wins { "wins" } else { "loses" },
        "reason": code,
        "message": message,
    })
}

fn told(reason: &Reason, services: &BTreeMap<ServiceId, &Service>) -> (&'static str, String) {
    let fixed = |code, text: &str| (code, text.to_owned());
    match reason {
        Reason::Wins => fixed("WINS", "the first that matches"),
        Reason::LessPreferred(first, criterion) => {
            let name = name_of(first, services);
            ("LESS_PREFERRED", format!("{name} comes first: {}", criterion.text()))
        }
        Reason::Mismatch(Mismatch::SourceOutside) => fixed("SOURCE_OUTSIDE", "the source is outside its source_cidr"),
        Reason::Mismatch(Mismatch::DestOutside) => fixed("DEST_OUTSIDE", "the destination is outside its dest_cidr"),
        Reason::Mismatch(Mismatch::OtherFamily) => fixed("OTHER_FAMILY", "it is of the other address family"),
        Reason::Mismatch(Mismatch::OtherInterface) => {
            fixed("OTHER_INTERFACE", "the packet does not enter by its interface")
        }
        Reason::Excluded => fixed("EXCLUDED", "it matches, but such packets are never captured"),
        Reason::NotCarried => fixed("NOT_CARRIED", "it matches, but nothing carries such packets"),
        Reason::Inactive(why) => ("INACTIVE", format!("its rules are not in the kernel: {why}")),
    }
}

fn name_of(route: &CompiledRoute, services: &BTreeMap<ServiceId, &Service>) -> String {
    let service = services.get(&route.service).map_or_else(|| route.service.to_string(), |s| s.body.name.clone());
    match route.route {
        Some(id) => format!("route {id} of {service}"),
        None => service,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Code;

    #[test]
    fn a_packet_is_told_by_addresses_and_protocol() {
        let flow = |body: Value| read(body.to_string().as_bytes()).map_err(|e| e.code);
        let tcp = flow(json!({"src": "10.0.0.1", "dst": "::ffff:10.1.0.1", "proto": "TCP", "dport": 443})).unwrap();
        assert_eq!((tcp.protocol, tcp.dest_port, tcp.dest), (6, Some(443), "10.1.0.1".parse().unwrap()));
        let numbered = json!({"src": "fd00::1", "dst": "fd00::2", "proto": 132, "iface": "eth0"});
        assert_eq!(flow(numbered).unwrap().protocol, 132);
        for (field, bad) in [
            ("src", json!("10.0.0.0/8")),
            ("src", json!("fd00::1")),
            ("dst", json!("x")),
            ("proto", json!("sctp4")),
            ("proto", json!(256)),
            ("proto", json!(-1)),
            ("dport", json!(65_536)),
            ("iface", json!("")),
            ("iface", json!("a/b")),
            ("iface", json!("x".repeat(16))),
            ("zone", json!(1)),
        ] {
            let mut body = json!({"src": "10.0.0.1", "dst": "10.1.0.1", "proto": "tcp"});
            body[field] = bad.clone();
            assert_eq!(flow(body), Err(Code::InvalidRequest), "{field} {bad}");
        }
        assert_eq!(flow(json!({"src": "10.0.0.1", "dst": "10.0.0.2"})), Err(Code::MissingField));
    }
}
