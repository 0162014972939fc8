//! What a request asks of a service: every rule checked that needs no store.

use super::super::{answer::invalid, fields::Fields};
use crate::model::{Code, Refused, ServiceBody, Transport, looks_like_id, parse_host_cidr};
use ipnet::IpNet;

const NAME_MAX_BYTES: usize = 63;
const BANDWIDTH_MAX_MBPS: u64 = 400_000;
const SETTABLE: [&str; 7] = [
    "name",
    "transport_type",
    "requires_interface",
    "desired_ipv4_cidr",
    "desired_ipv6_cidr",
    "bandwidth_limit_mbps",
    "fully_transparent",
];
const ENDS: [&str; 2] = ["target_peer_id", "source_peer_id"];

/// A new service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) target: String,
    pub(super) source: Option<String>,
    pub(super) name: Option<String>,
    pub(super) transport: Transport,
    pub(super) requires_interface: bool,
    pub(super) ipv4: Option<IpNet>,
    pub(super) ipv6: Option<IpNet>,
    pub(super) bandwidth_limit_mbps: u32,
    pub(super) fully_transparent: bool,
}

impl Wish {
    pub(super) fn read(body: &[u8]) -> Result<Self, Refused> {
        let known: Vec<&str> = ENDS.into_iter().chain(SETTABLE).collect();
        let fields = Fields::parse(body)?.only(&known)?;
        let wish = Self {
            target: fields.required_text("target_peer_id")?.to_owned(),
            source: fields.text("source_peer_id")?.map(str::to_owned),
            name: fields.text("name")?.map(check_name).transpose()?,
            transport: transport(&fields)?.unwrap_or_default(),
            requires_interface: fields.flag("requires_interface")?.unwrap_or(false),
            ipv4: host_cidr(&fields, "desired_ipv4_cidr", true)?,
            ipv6: host_cidr(&fields, "desired_ipv6_cidr", false)?,
            bandwidth_limit_mbps: bandwidth(&fields)?.unwrap_or(0),
            fully_transparent: fields.flag("fully_transparent")?.unwrap_or(false),
        };
        let has_address = wish.ipv4.is_some() || wish.ipv6.is_some();
        check_together(wish.transport, wish.requires_interface, has_address, wish.fully_transparent)?;
        Ok(wish)
    }
}

/// A change of a service; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Patch {
    name: Option<String>,
    transport: Option<Transport>,
    requires_interface: Option<bool>,
    ipv4: Option<Option<IpNet>>,
    ipv6: Option<Option<IpNet>>,
    bandwidth_limit_mbps: Option<u32>,
    fully_transparent: Option<bool>,
}

impl Patch {
    pub(super) fn read(body: &[u8]) -> Result<Self, Refused> {
        let fields = Fields::parse(body)?;
        if let Some(end) = ENDS.into_iter().find(|end| fields.has(end)) {
            return Err(invalid(format!("{end} of a service cannot be changed"))
                .with_hint("delete the service and create another between the other peers"));
        }
        let fields = fields.only(&SETTABLE)?.no_nulls_but(&["desired_ipv4_cidr", "desired_ipv6_cidr"])?;
        let cidr = |field, v4| -> Result<Option<Option<IpNet>>, Refused> {
            if fields.has(field) { host_cidr(&fields, field, v4).map(Some) } else { Ok(None) }
        };
        Ok(Self {
            name: fields.text("name")?.map(check_name).transpose()?,
            transport: transport(&fields)?,
            requires_interface: fields.flag("requires_interface")?,
            ipv4: cidr("desired_ipv4_cidr", true)?,
            ipv6: cidr("desired_ipv6_cidr", false)?,
            bandwidth_limit_mbps: bandwidth(&fields)?,
            fully_transparent: fields.flag("fully_transparent")?,
        })
    }

    /// The service as it is to be.
    pub(super) fn apply(&self, old: &ServiceBody) -> Result<ServiceBody, Refused> {
        let new = ServiceBody {
            name: self.name.clone().unwrap_or_else(|| old.name.clone()),
            transport_type: self.transport.unwrap_or(old.transport_type),
            requires_interface: self.requires_interface.unwrap_or(old.requires_interface),
            desired_ipv4_cidr: self.ipv4.unwrap_or(old.desired_ipv4_cidr),
            desired_ipv6_cidr: self.ipv6.unwrap_or(old.desired_ipv6_cidr),
            bandwidth_limit_mbps: self.bandwidth_limit_mbps.unwrap_or(old.bandwidth_limit_mbps),
            fully_transparent: self.fully_transparent.unwrap_or(old.fully_transparent),
            ..old.clone()
        };
        let has_address = new.desired_ipv4_cidr.is_some() || new.desired_ipv6_cidr.is_some();
        check_together(new.transport_type, new.requires_interface, has_address, new.fully_transparent)?;
        Ok(new)
    }
}

/// The service that `new` would be if it asked only for the features that `old` does not ask for.
pub(super) fn asked_anew(old: &ServiceBody, new: &ServiceBody) -> ServiceBody {
    let kcp_stays = old.transport_type == Transport::Kcp;
    ServiceBody {
        transport_type: if kcp_stays { Transport::default() } else { new.transport_type },
        requires_interface: new.requires_interface && !old.requires_interface,
        fully_transparent: new.fully_transparent && !old.fully_transparent,
        bandwidth_limit_mbps: if old.bandwidth_limit_mbps == new.bandwidth_limit_mbps {
            0
        } else {
            new.bandwidth_limit_mbps
        },
        ..new.clone()
    }
}

fn check_together(
    transport: Transport,
    requires_interface: bool,
    has_address: bool,
    fully_transparent: bool,
) -> Result<(), Refused> {
    if fully_transparent && !requires_interface {
        return Err(invalid("fully_transparent needs requires_interface"));
    }
    if fully_transparent && transport == Transport::Kcp {
        return Err(invalid("fully_transparent needs transport_type tcp"));
    }
    if !requires_interface && has_address {
        return Err(invalid("desired_ipv4_cidr and desired_ipv6_cidr need requires_interface"));
    }
    Ok(())
}

fn transport(fields: &Fields) -> Result<Option<Transport>, Refused> {
    let parsed = fields.text("transport_type")?.map(str::parse).transpose();
    parsed.map_err(|e: crate::model::UnknownTransport| Refused::new(Code::InvalidTransport, e.to_string()))
}

fn bandwidth(fields: &Fields) -> Result<Option<u32>, Refused> {
    let mbps = fields.integer("bandwidth_limit_mbps", BANDWIDTH_MAX_MBPS)?;
    mbps.map(|mbps| u32::try_from(mbps).map_err(Refused::internal)).transpose()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PeerId, Rng, UnixTime};
    use proptest::prelude::*;
    use serde_json::{Value, json};

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

    fn service() -> ServiceBody {
        let (now, mut rng) = (UnixTime::from_secs(1), Rng::from_seed([1; 32]));
        let (a, b) = (PeerId::mint(now, &mut rng), PeerId::mint(now, &mut rng));
        ServiceBody::plain("s", a, b, now)
    }

    fn patched(old: &ServiceBody, body: &Value) -> Result<ServiceBody, Code> {
        let patch = Patch::read(body.to_string().as_bytes()).map_err(|e| e.code)?;
        patch.apply(old).map_err(|e| e.code)
    }

    #[test]
    fn an_update_is_judged_together_with_what_it_leaves_alone() {
        let plain = service();
        let transparent = json!({"requires_interface": true, "fully_transparent": true});
        assert_eq!(patched(&plain, &json!({"fully_transparent": true})), Err(Code::InvalidRequest));
        let transparent = patched(&plain, &transparent).unwrap();
        for bad in [json!({"transport_type": "kcp"}), json!({"requires_interface": false})] {
            assert_eq!(patched(&transparent, &bad), Err(Code::InvalidRequest), "{bad}");
        }
        let addressed = patched(&transparent, &json!({"desired_ipv4_cidr": "192.168.100.10/24"})).unwrap();
        let bare = json!({"requires_interface": false, "fully_transparent": false});
        assert_eq!(patched(&addressed, &bare), Err(Code::InvalidRequest));
        let bare = json!({"requires_interface": false, "fully_transparent": false, "desired_ipv4_cidr": null});
        assert_eq!(patched(&addressed, &bare).unwrap(), plain);
        for bad in [
            json!({"name": null}),
            json!({"bandwidth_limit_mbps": null}),
            json!({"transport_type": null}),
            json!({"target_peer_id": "x"}),
            json!({"source_peer_id": null}),
            json!({"id": "svc_x"}),
            json!({"bandwidth_limit_mbps": 1.5}),
            json!({"bandwidth_limit_mbps": "5"}),
            json!({"fully_transparent": "true"}),
            json!([]),
        ] {
            assert_eq!(patched(&plain, &bad), Err(Code::InvalidRequest), "{bad}");
        }
    }

    #[test]
    fn only_what_is_asked_for_anew_needs_its_feature() {
        let mut old = service();
        (old.transport_type, old.bandwidth_limit_mbps) = (Transport::Kcp, 5);
        let features = |new: &ServiceBody| crate::license::features_of(&asked_anew(&old, new)).collect::<Vec<_>>();
        assert!(features(&ServiceBody { name: "renamed".into(), ..old.clone() }).is_empty());
        assert!(features(&ServiceBody { bandwidth_limit_mbps: 0, ..old.clone() }).is_empty());
        assert_eq!(features(&ServiceBody { bandwidth_limit_mbps: 9, ..old.clone() }), ["qos"]);
        assert_eq!(features(&ServiceBody { requires_interface: true, ..old.clone() }), ["macvlan"]);
    }

    proptest! {
        /// One field set, all others as they were.
        #[test]
        fn an_update_changes_the_fields_that_it_names_and_no_other(
            name in "[a-z]{1,8}", mbps in 0u32..400_000, interface: bool, which in 0usize..3,
        ) {
            let old = service();
            let (body, expected) = match which {
                0 => (json!({ "name": name }), ServiceBody { name, ..old.clone() }),
                1 => (json!({ "bandwidth_limit_mbps": mbps }), ServiceBody { bandwidth_limit_mbps: mbps, ..old.clone() }),
                _ => (
                    json!({ "requires_interface": interface }),
                    ServiceBody { requires_interface: interface, ..old.clone() },
                ),
            };
            prop_assert_eq!(patched(&old, &body), Ok(expected));
        }
    }
}
