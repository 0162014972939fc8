//! The nouns: what the cluster is made of. No I/O, no clock, no randomness.

mod cidr;
mod code;
mod credential;
mod endpoint;
mod id;
mod key;
mod peer;
mod random;
mod service;
mod text;
mod time;

pub use cidr::{CidrError, parse_host_cidr, parse_route_cidr};
pub use code::{Code, Refused, with_causes};
pub use credential::{Scope, ScopeSet, Secret, UnknownScope};
pub use endpoint::{DEFAULT_API_PORT, Endpoint, EndpointError};
pub use id::{ClientId, ClusterId, CustomerId, IdError, LicenseId, PeerId, RequestId, ServiceId, looks_like_id};
#[cfg(feature = "simulation")]
pub use key::stub;
pub use key::{KeyError, PublicKey, SIGNATURE_BYTES, Signature, SigningKey, X25519Public};
pub use peer::{ApiAccess, DataPorts, PeerStatus};
pub use random::Rng;
pub use service::{
    Route, RouteId, Service, ServiceBody, Transport, UnknownTransport, default_priority, interface_name,
};
pub use text::nearest;
pub use time::{Mono, TimeError, UnixTime};

/// The version of this build, with its leading `v` (spec README: `vMAJOR.MINOR.PATCH`).
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
