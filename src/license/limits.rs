use super::{Features, LicenseDocument, features_of};
use crate::model::{Code, Refused, ServiceBody};

/// A request refused by the terms of the license (licensing.md §5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("node limit exceeded: the license allows {max} nodes")]
    Nodes { max: u32 },
    #[error("service limit exceeded: the license allows {max} services")]
    Services { max: u32 },
    #[error("the license does not include the feature {feature}")]
    Feature { feature: String },
}

impl LimitError {
    /// HTTP status of all codes: 422.
    pub fn code(&self) -> Code {
        match self {
            LimitError::Nodes { .. } => Code::NodeLimitExceeded,
            LimitError::Services { .. } => Code::ServiceLimitExceeded,
            LimitError::Feature { .. } => Code::LicenseFeatureDisabled,
        }
    }
}

impl From<LimitError> for Refused {
    fn from(e: LimitError) -> Self {
        Refused::new(e.code(), e.to_string())
    }
}

/// `used_after`: trusted peers that are not removed, the local one included, once the request is granted.
pub fn check_nodes(used_after: usize, max: u32) -> Result<(), LimitError> {
    if used_after <= max as usize { Ok(()) } else { Err(LimitError::Nodes { max }) }
}

/// `used_after`: services in the cluster once the request is granted.
pub fn check_services(used_after: usize, max: u32) -> Result<(), LimitError> {
    if used_after <= max as usize { Ok(()) } else { Err(LimitError::Services { max }) }
}

pub fn check_feature(features: &Features, feature: &str) -> Result<(), LimitError> {
    if features.allows(feature) { Ok(()) } else { Err(LimitError::Feature { feature: feature.to_owned() }) }
}

impl LicenseDocument {
    /// See `check_nodes`.
    pub fn check_nodes(&self, used_after: usize) -> Result<(), LimitError> {
        check_nodes(used_after, self.max_nodes())
    }
    /// See `check_services`.
    pub fn check_services(&self, used_after: usize) -> Result<(), LimitError> {
        check_services(used_after, self.max_services())
    }
    pub fn check_feature(&self, feature: &str) -> Result<(), LimitError> {
        check_feature(self.features(), feature)
    }
    /// Whether the license includes every feature that the service asks for.
    pub fn check_features_of(&self, service: &ServiceBody) -> Result<(), LimitError> {
        features_of(service).try_for_each(|feature| self.check_feature(feature))
    }
}
