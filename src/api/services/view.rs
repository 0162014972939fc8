//! A service as it is answered.

use super::super::{admission::Request, routes};
use crate::{
    license::Entitlement,
    model::{PeerId, Refused, Route, Service, ServiceId, Transport, UnixTime, interface_name},
    reconcile::{Condition, InterfaceFacts, Status},
};
use ipnet::IpNet;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// What else the answer about a service is made from.
pub(super) struct Surroundings {
    /// Names of trusted peers.
    names: BTreeMap<PeerId, String>,
    entitlement: Arc<Entitlement>,
    conditions: BTreeMap<ServiceId, Vec<Condition>>,
    interfaces: BTreeMap<ServiceId, InterfaceFacts>,
    fwmarks: BTreeMap<ServiceId, u32>,
}

/// The entry of one key, if that is wanted, or all.
fn entries<V: Clone>(of: &BTreeMap<ServiceId, V>, only: Option<ServiceId>) -> BTreeMap<ServiceId, V> {
    match only {
        Some(id) => of.get(&id).map(|value| (id, value.clone())).into_iter().collect(),
        None => of.clone(),
    }
}

impl Surroundings {
    /// For one service, or for all.
    pub(super) fn of(r: &Request, only: Option<ServiceId>) -> Result<Self, Refused> {
        let peers = r.node().store().read(|v| v.trusted_peers())?;
        let names = peers.into_iter().map(|p| (p.peer_id, p.display_name())).collect();
        let entitlement = r.entitlement()?;
        Ok(r.node().find_in_reconcile_status(|status: &Status| Self {
            names,
            entitlement,
            conditions: entries(&status.conditions, only),
            interfaces: entries(&status.interfaces, only),
            fwmarks: entries(&status.fwmarks, only),
        }))
    }

    /// With the number of its routes.
    pub(super) fn show_in_list<'a>(&'a self, service: &'a Service) -> Shown<'a> {
        Shown { route_count: Some(service.body.routes.len()), ..self.show(service) }
    }

    /// With its routes.
    pub(super) fn show_whole<'a>(&'a self, service: &'a Service) -> Shown<'a> {
        Shown { routes: Some(routes::in_order(service)), ..self.show(service) }
    }

    fn show<'a>(&'a self, service: &'a Service) -> Shown<'a> {
        let Self { names, entitlement, conditions, interfaces, fwmarks } = self;
        let body = &service.body;
        let ends_trusted = names.contains_key(&body.source_peer_id) && names.contains_key(&body.target_peer_id);
        let licensed = entitlement.data_plane_runs() && entitlement.document.features().missing_for(body).is_none();
        let active = ends_trusted && licensed;
        let interface = interfaces.get(&service.id);
        Shown {
            id: service.id,
            name: &body.name,
            source_peer_id: body.source_peer_id,
            source_peer_name: names.get(&body.source_peer_id),
            target_peer_id: body.target_peer_id,
            target_peer_name: names.get(&body.target_peer_id),
            state: if active { "active" } else { "inactive" },
            transport_type: body.transport_type,
            effective_transport: body.transport_type,
            requires_interface: body.requires_interface,
            desired_ipv4_cidr: body.desired_ipv4_cidr,
            desired_ipv6_cidr: body.desired_ipv6_cidr,
            bandwidth_limit_mbps: body.bandwidth_limit_mbps,
            fully_transparent: body.fully_transparent,
            interface_name: body.requires_interface.then(|| interface_name(service.id)),
            interface_mac: interface.map(|i| i.mac.to_string()),
            interface_ipv4_cidr: interface.and_then(|i| i.ipv4),
            interface_ipv6_cidr: interface.and_then(|i| i.ipv6),
            fwmark: fwmarks.get(&service.id).copied(),
            conditions: conditions.get(&service.id).map_or(&[][..], Vec::as_slice),
            version: service.version,
            created_at: body.created_at,
            updated_at: body.updated_at,
            route_count: None,
            routes: None,
        }
    }
}

/// A service in an answer.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    id: ServiceId,
    name: &'a str,
    source_peer_id: PeerId,
    source_peer_name: Option<&'a String>,
    target_peer_id: PeerId,
    target_peer_name: Option<&'a String>,
    state: &'static str,
    transport_type: Transport,
    effective_transport: Transport,
    requires_interface: bool,
    desired_ipv4_cidr: Option<IpNet>,
    desired_ipv6_cidr: Option<IpNet>,
    bandwidth_limit_mbps: u32,
    fully_transparent: bool,
    interface_name: Option<String>,
    interface_mac: Option<String>,
    interface_ipv4_cidr: Option<IpNet>,
    interface_ipv6_cidr: Option<IpNet>,
    fwmark: Option<u32>,
    conditions: &'a [Condition],
    version: u64,
    created_at: UnixTime,
    updated_at: UnixTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<Vec<&'a Route>>,
}
