//! How the reconcilers are doing, as data: for `/readyz`, conditions of services, metrics.

use crate::{
    kernel::{Mac, Ruleset},
    model::{ServiceId, UnixTime},
};
use ipnet::IpNet;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// In the order in which they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reconciler {
    Network,
    Firewall,
    Tproxy,
    Iptun,
}

impl Reconciler {
    pub const fn name(self) -> &'static str {
        match self {
            Reconciler::Network => "network",
            Reconciler::Firewall => "firewall",
            Reconciler::Tproxy => "tproxy",
            Reconciler::Iptun => "iptun",
        }
    }
    /// The name of its part in the log (operations.md §2).
    pub const fn component(self) -> &'static str {
        match self {
            Reconciler::Network => "netmgr",
            Reconciler::Firewall => "fwmgr",
            Reconciler::Tproxy => "tproxymgr",
            Reconciler::Iptun => "iptunmgr",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConditionStatus {
    Applied,
    Pending,
    Failed,
}

/// What one reconciler says of one service (api.md §5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    pub reconciler: Reconciler,
    pub status: ConditionStatus,
    /// One word for programs, as `APPLIED` or `TRANSPORT_UNAVAILABLE`.
    pub reason: String,
    pub message: String,
    /// Version of the service that this is about.
    pub observed_version: u64,
    /// Since when it is so.
    pub at: UnixTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReconcilerStatus {
    /// Absent before the first pass has succeeded.
    pub last_success: Option<UnixTime>,
    /// Why the last pass failed; absent after a success.
    pub failure: Option<String>,
    pub passes: u64,
    pub failures: u64,
    pub drift_repairs: u64,
    pub last_pass_ms: u64,
}

impl ReconcilerStatus {
    /// For `/readyz`: the last pass succeeded.
    pub fn is_ready(&self) -> bool {
        self.last_success.is_some() && self.failure.is_none()
    }
}

/// The interface of a service as it is in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceFacts {
    pub mac: Mac,
    pub up: bool,
    /// The first address of each family.
    pub ipv4: Option<IpNet>,
    pub ipv6: Option<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    pub network: ReconcilerStatus,
    pub firewall: ReconcilerStatus,
    pub tproxy: ReconcilerStatus,
    pub iptun: ReconcilerStatus,
    /// Services of which the local peer is source or target.
    pub conditions: BTreeMap<ServiceId, Vec<Condition>>,
    /// Of outgoing services, those that exist.
    pub interfaces: BTreeMap<ServiceId, InterfaceFacts>,
    /// Packet marks of outgoing services, shifted into the mask.
    pub fwmarks: BTreeMap<ServiceId, u32>,
    /// Store revision of the last pass that succeeded in every reconciler.
    pub applied_revision: u64,
    /// What the tables do now.
    pub ruleset: Arc<Ruleset>,
}

impl Status {
    /// Puts a condition in its place; one that says nothing new keeps its time.
    pub(super) fn set_condition(&mut self, service: ServiceId, new: Condition) {
        let conditions = self.conditions.entry(service).or_default();
        let Some(old) = conditions.iter_mut().find(|c| c.reconciler == new.reconciler) else {
            conditions.push(new);
            conditions.sort_by_key(|c| c.reconciler);
            return;
        };
        if (Condition { at: old.at, ..new.clone() }) != *old {
            *old = new;
        }
    }

    /// A reconciler that has nothing to say of a service.
    pub(super) fn drop_condition(&mut self, service: ServiceId, reconciler: Reconciler) {
        if let Some(conditions) = self.conditions.get_mut(&service) {
            conditions.retain(|c| c.reconciler != reconciler);
        }
    }

    pub fn condition(&self, service: ServiceId, reconciler: Reconciler) -> Option<&Condition> {
        self.conditions.get(&service)?.iter().find(|c| c.reconciler == reconciler)
    }
}
