//! A service as it is answered.

use super::super::admission::Request;
use crate::{
    license::Entitlement,
    model::{PeerId, Refused, Service, ServiceId, interface_name},
    reconcile::{Condition, InterfaceFacts, Status},
};
use serde_json::{Value, json};
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

    pub(super) fn show(&self, service: &Service) -> Value {
        let Self { names, entitlement, conditions, interfaces, fwmarks } = self;
        let body = &service.body;
        let ends_trusted = names.contains_key(&body.source_peer_id) && names.contains_key(&body.target_peer_id);
        let licensed = entitlement.data_plane_runs() && entitlement.document.features().missing_for(body).is_none();
        let active = ends_trusted && licensed;
        let conditions = conditions.get(&service.id).map_or(&[][..], Vec::as_slice);
        let interface = interfaces.get(&service.id);
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
            "interface_mac": interface.map(|i| i.mac.to_string()),
            "interface_ipv4_cidr": interface.and_then(|i| i.ipv4),
            "interface_ipv6_cidr": interface.and_then(|i| i.ipv6),
            "fwmark": fwmarks.get(&service.id),
            "conditions": conditions,
            "version": service.version,
            "created_at": body.created_at,
            "updated_at": body.updated_at,
        })
    }
}
