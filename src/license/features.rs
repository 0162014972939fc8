use crate::model::{ServiceBody, Transport};
use serde::{Serialize, Serializer};
use std::collections::BTreeSet;

/// The feature names that this version knows (licensing.md §1). Others may stand in a license and mean nothing.
pub const KNOWN_FEATURES: [&str; 5] = ["kcp", IP_TUNNEL, "transparent_mode", "macvlan", "qos"];
/// What carries all but TCP.
pub const IP_TUNNEL: &str = "ip_tunnel";
const EVERY_FEATURE: &str = "*";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`*` stands for every feature and cannot be listed with others")]
pub struct FeaturesError;

/// The feature set of a license: names, or `["*"]` for all, also those of later versions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Features(BTreeSet<String>);

impl Features {
    pub fn from_names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Result<Self, FeaturesError> {
        let names: BTreeSet<String> = names.into_iter().map(Into::into).collect();
        if names.contains(EVERY_FEATURE) && names.len() > 1 { Err(FeaturesError) } else { Ok(Self(names)) }
    }
    pub fn every() -> Self {
        Self(BTreeSet::from([EVERY_FEATURE.to_owned()]))
    }
    pub fn allows(&self, feature: &str) -> bool {
        self.0.contains(EVERY_FEATURE) || self.0.contains(feature)
    }
    /// The first feature that a service asks for and the license lacks.
    pub fn missing_for(&self, service: &ServiceBody) -> Option<&'static str> {
        features_of(service).find(|feature| !self.allows(feature))
    }
    /// The names as licensed, sorted; `*` stays `*`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The features that a service asks for by its fields (licensing.md §5). `ip_tunnel` is not among them: it decides about
/// the traffic of a service, not about the service.
pub fn features_of(service: &ServiceBody) -> impl Iterator<Item = &'static str> {
    let asked = [
        (service.transport_type == Transport::Kcp, "kcp"),
        (service.requires_interface, "macvlan"),
        (service.fully_transparent, "transparent_mode"),
        (service.bandwidth_limit_mbps > 0, "qos"),
    ];
    asked.into_iter().filter_map(|(asked, feature)| asked.then_some(feature))
}

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.names())
    }
}
