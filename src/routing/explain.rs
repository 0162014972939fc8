//! Why a route takes a packet, or does not: the total order, told criterion by criterion.

use super::CompiledRoute;
use std::net::IpAddr;

/// Why a route does not match a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    OtherFamily,
    OtherInterface,
    SourceOutside,
    DestOutside,
}

/// What decides between two routes that match the same packet; the rules of dataplane.md §6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criterion {
    Interface,
    Cidrs,
    SourceLength,
    DestLength,
    Priority,
    Ids,
}

impl Criterion {
    /// What the preferred route has before the other one.
    pub fn text(self) -> &'static str {
        match self {
            Criterion::Interface => "it is of the interface by which the packet enters (rule 1)",
            Criterion::Cidrs => {
                "it names more: both CIDRs before the source alone before the destination alone (rule 2)"
            }
            Criterion::SourceLength => "its source prefix is longer (rule 3)",
            Criterion::DestLength => "its destination prefix is longer (rule 4)",
            Criterion::Priority => "its priority is higher (rule 5)",
            Criterion::Ids => "all else is equal and its ids come first (rule 6)",
        }
    }
}

impl CompiledRoute {
    /// Why this route does not match, if it does not.
    pub fn mismatch(&self, source: IpAddr, dest: IpAddr, interface: Option<&str>) -> Option<Mismatch> {
        let family = self.source.or(self.dest).is_none_or(|n| n.addr().is_ipv4() == dest.is_ipv4());
        if !family {
            Some(Mismatch::OtherFamily)
        } else if self.interface.as_deref().is_some_and(|i| Some(i) != interface) {
            Some(Mismatch::OtherInterface)
        } else if self.source.is_some_and(|n| !n.contains(&source)) {
            Some(Mismatch::SourceOutside)
        } else if self.dest.is_some_and(|n| !n.contains(&dest)) {
            Some(Mismatch::DestOutside)
        } else {
            None
        }
    }

    /// By what this route comes before `other`, which it does.
    pub fn preferred_by(&self, other: &CompiledRoute) -> Criterion {
        let length = |net: &Option<ipnet::IpNet>| net.map_or(0, |n| n.prefix_len());
        let cidrs = |r: &CompiledRoute| (r.source.is_some(), r.dest.is_some());
        if self.interface.is_some() != other.interface.is_some() {
            Criterion::Interface
        } else if cidrs(self) != cidrs(other) {
            Criterion::Cidrs
        } else if length(&self.source) != length(&other.source) {
            Criterion::SourceLength
        } else if length(&self.dest) != length(&other.dest) {
            Criterion::DestLength
        } else if self.priority != other.priority {
            Criterion::Priority
        } else {
            Criterion::Ids
        }
    }
}
