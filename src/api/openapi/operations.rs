//! One entry for each endpoint.

use super::{
    Content::{self, Json, Nothing, Text},
    Operation,
};
use crate::model::Code;

const WAIT: &[&str] = &["dry_run", "wait", "timeout_s"];
const DRY: &[&str] = &["dry_run"];

/// An operation with an id and what it answers.
const fn op(
    (method, path): (&'static str, &'static str),
    (tag, id): (&'static str, &'static str),
    summary: &'static str,
    answers: &'static [(u16, Content)],
) -> Operation {
    Operation { method, path, id, tag, summary, query: &[], request: None, answers, codes: &[] }
}

impl Operation {
    const fn query(self, query: &'static [&'static str]) -> Self {
        Self { query, ..self }
    }
    const fn body(self, schema: &'static str) -> Self {
        Self { request: Some(schema), ..self }
    }
    const fn codes(self, codes: &'static [Code]) -> Self {
        Self { codes, ..self }
    }
}

const SERVICE: &str = "/v1/services/{sid}";
const ROUTES: &str = "/v1/services/{sid}/routes";
const ROUTE: &str = "/v1/services/{sid}/routes/{rid}";
const PEER: &str = "/v1/peers/{id}";
const LOCK: &str = "/v1/cluster/lock";
const CONFIRM: &str = "/v1/cluster/pending-confirm";
const HANDSHAKE_CODES: &[Code] = &[
    Code::HandshakeFailed,
    Code::LicenseMismatch,
    Code::LicenseInvalid,
    Code::NodeLimitExceeded,
    Code::AlreadyExists,
    Code::Forbidden,
    Code::IdentityConflict,
];
const GOSSIP_CODES: &[Code] = &[Code::IdentityConflict, Code::Conflict];

pub(super) const OPERATIONS: &[Operation] = &[
    op(
        ("GET", "/livez"),
        ("health", "livez"),
        "Whether the process works.",
        &[(200, Json("Live")), (503, Json("Live"))],
    ),
    op(
        ("GET", "/readyz"),
        ("health", "readyz"),
        "Whether the agent does its work, check by check.",
        &[(200, Json("Ready")), (503, Json("Ready"))],
    )
    .query(&["verbose", "exclude"]),
    op(("GET", "/metrics"), ("health", "metrics"), "Figures for Prometheus.", &[(200, Text("text/plain"))])
        .codes(&[Code::TokenExpired]),
    op(("GET", "/v1/openapi.json"), ("health", "openapi"), "This document.", &[(200, Json("Anything"))]),
    op(
        ("GET", "/v1/cluster/identity"),
        ("cluster", "getIdentity"),
        "Who this agent is; ids that do not exist yet are empty.",
        &[(200, Json("Identity"))],
    ),
    op(
        ("POST", "/v1/bootstrap"),
        ("cluster", "bootstrap"),
        "Makes the agent a cluster of one; shows the secret of its first credential this one time.",
        &[(200, Json("Bootstrapped")), (201, Json("Bootstrapped"))],
    )
    .query(DRY)
    .body("Bootstrap")
    .codes(&[Code::AlreadyBootstrapped, Code::LicenseInvalid, Code::LicenseExpired]),
    op(
        ("POST", "/v1/oauth/token"),
        ("credentials", "getToken"),
        "An access token for client credentials (RFC 6749 §4.4).",
        &[(200, Json("Token"))],
    )
    .body("TokenRequest")
    .codes(&[Code::ApiAccessInternal]),
    op(
        ("GET", "/.well-known/openid-configuration"),
        ("credentials", "getOpenidConfiguration"),
        "Where tokens are made and how they are checked.",
        &[(200, Json("OpenidConfiguration"))],
    ),
    op(
        ("GET", "/.well-known/jwks.json"),
        ("credentials", "getKeys"),
        "The keys that sign tokens, one of each trusted peer.",
        &[(200, Json("Keys"))],
    ),
    op(
        ("POST", "/v1/handshake/init"),
        ("between peers", "handshakeInit"),
        "First step of a handshake between peers.",
        &[(200, Json("Anything"))],
    )
    .body("Anything")
    .codes(HANDSHAKE_CODES),
    op(
        ("POST", "/v1/handshake/finish"),
        ("between peers", "handshakeFinish"),
        "Second step of a handshake between peers.",
        &[(200, Json("Anything"))],
    )
    .body("Anything")
    .codes(HANDSHAKE_CODES),
    op(
        ("POST", "/v1/gossip/heartbeat"),
        ("between peers", "gossipHeartbeat"),
        "A sign of life with digests.",
        &[(200, Json("Anything"))],
    )
    .body("Anything")
    .codes(GOSSIP_CODES),
    op(
        ("POST", "/v1/gossip/reconcile"),
        ("between peers", "gossipReconcile"),
        "One step of a comparison of registries.",
        &[(200, Json("Anything"))],
    )
    .body("Anything")
    .codes(GOSSIP_CODES),
    op(
        ("POST", "/v1/gossip/push"),
        ("between peers", "gossipPush"),
        "Records that are news.",
        &[(200, Json("Anything"))],
    )
    .body("Anything")
    .codes(GOSSIP_CODES),
    op(
        ("POST", "/v1/gossip/lock"),
        ("between peers", "gossipLock"),
        "The question for the cluster lock.",
        &[(200, Json("Anything"))],
    )
    .body("Anything")
    .codes(GOSSIP_CODES),
    op(
        ("POST", "/v1/gossip/applied"),
        ("between peers", "gossipApplied"),
        "Whether the reconcilers have applied a service.",
        &[(200, Json("Anything"))],
    )
    .body("Anything"),
    op(("GET", "/v1/peers"), ("peers", "listPeers"), "Every known peer.", &[(200, Json("PeerList"))])
        .query(&["is_local", "status"]),
    op(
        ("POST", "/v1/peers"),
        ("peers", "addPeer"),
        "Joins another agent to the cluster; answers when the handshake succeeded or finally failed.",
        &[(201, Json("AddedPeer"))],
    )
    .query(DRY)
    .body("AddPeer")
    .codes(HANDSHAKE_CODES),
    op(("GET", PEER), ("peers", "getPeer"), "One peer.", &[(200, Json("Peer"))]),
    op(
        ("PUT", PEER),
        ("peers", "updatePeer"),
        "Changes how this agent names a peer and whether it shapes traffic to it; what is left out stays.",
        &[(200, Json("Peer"))],
    )
    .query(WAIT)
    .body("UpdatePeer"),
    op(
        ("DELETE", "/v1/peers/self"),
        ("peers", "removeSelf"),
        "The called agent leaves its cluster and stops.",
        &[(200, Json("Departure"))],
    )
    .query(DRY),
    op(
        ("DELETE", PEER),
        ("peers", "deletePeer"),
        "Removes a peer from the cluster, with its services.",
        &[(204, Nothing)],
    )
    .query(DRY),
    op(("GET", "/v1/services"), ("services", "listServices"), "Every service.", &[(200, Json("ServiceList"))])
        .query(&["source_peer_id", "target_peer_id", "requires_interface"]),
    op(
        ("POST", "/v1/services"),
        ("services", "createService"),
        "Makes a service from one peer to another.",
        &[(201, Json("Service"))],
    )
    .query(WAIT)
    .body("CreateService")
    .codes(&[
        Code::InvalidCidr,
        Code::InvalidTransport,
        Code::AlreadyExists,
        Code::ServiceLimitExceeded,
        Code::LicenseFeatureDisabled,
    ]),
    op(("GET", SERVICE), ("services", "getService"), "One service with its routes.", &[(200, Json("Service"))]),
    op(
        ("PUT", SERVICE),
        ("services", "updateService"),
        "Changes a service; what is left out stays.",
        &[(200, Json("Service"))],
    )
    .query(WAIT)
    .body("UpdateService")
    .codes(&[Code::InvalidCidr, Code::InvalidTransport, Code::AlreadyExists, Code::LicenseFeatureDisabled]),
    op(
        ("DELETE", SERVICE),
        ("services", "deleteService"),
        "Deletes a service with its routes, rules and interface.",
        &[(200, Json("Applied")), (204, Nothing)],
    )
    .query(WAIT),
    op(
        ("GET", ROUTES),
        ("routes", "listRoutes"),
        "The routes of a service in evaluation order.",
        &[(200, Json("RouteList"))],
    ),
    op(
        ("POST", ROUTES),
        ("routes", "addRoutes"),
        "Adds routes to a service, all or none.",
        &[(201, Json("AddedRoutes"))],
    )
    .query(WAIT)
    .body("AddRoutes")
    .codes(&[Code::InvalidCidr, Code::AlreadyExists]),
    op(
        ("PUT", ROUTE),
        ("routes", "updateRoute"),
        "Changes a route; what is left out stays, null clears a CIDR.",
        &[(200, Json("Route"))],
    )
    .query(WAIT)
    .body("UpdateRoute")
    .codes(&[Code::InvalidCidr, Code::AlreadyExists]),
    op(("DELETE", ROUTE), ("routes", "deleteRoute"), "Deletes a route.", &[(200, Json("Applied")), (204, Nothing)])
        .query(WAIT),
    op(
        ("POST", "/v1/routes/explain"),
        ("routes", "explainRoute"),
        "Which service of the called agent takes a packet, and why no other route does.",
        &[(200, Json("Explanation"))],
    )
    .body("Packet"),
    op(
        ("GET", "/v1/credentials"),
        ("credentials", "listCredentials"),
        "Every credential, without its secret.",
        &[(200, Json("CredentialList"))],
    ),
    op(
        ("POST", "/v1/credentials"),
        ("credentials", "createCredential"),
        "Makes a credential; shows its secret this one time.",
        &[(201, Json("NewCredential"))],
    )
    .query(DRY)
    .body("CreateCredential"),
    op(
        ("DELETE", "/v1/credentials/{cid}"),
        ("credentials", "revokeCredential"),
        "Revokes a credential; its tokens die at once.",
        &[(200, Json("Deleted"))],
    )
    .query(DRY)
    .codes(&[Code::CannotRevokeCurrent]),
    op(
        ("GET", "/v1/cluster/credentials"),
        ("credentials", "getSharedCredential"),
        "The credential that the members share.",
        &[(200, Json("SharedCredential"))],
    ),
    op(
        ("POST", "/v1/cluster/credentials/rotate"),
        ("credentials", "rotateSharedCredential"),
        "A new secret for the shared credential; the old one stays valid for 24 h.",
        &[(200, Json("RotatedCredential"))],
    )
    .query(DRY),
    op(
        ("GET", "/v1/cluster/status"),
        ("cluster", "getClusterStatus"),
        "The cluster as this agent sees it.",
        &[(200, Json("ClusterStatus"))],
    ),
    op(
        ("POST", "/v1/cluster/sync"),
        ("cluster", "syncCluster"),
        "A round of gossip with every peer now; wakes the reconcilers.",
        &[(200, Json("Synced"))],
    ),
    op(
        ("POST", "/v1/cluster/init"),
        ("cluster", "initCluster"),
        "Names the cluster; with force makes a new one of this agent alone.",
        &[(200, Json("ClusterInit"))],
    )
    .query(DRY)
    .body("InitCluster"),
    op(("GET", LOCK), ("cluster", "getLock"), "Who holds the cluster lock.", &[(200, Json("LockState"))]),
    op(
        ("POST", LOCK),
        ("cluster", "takeLock"),
        "Takes the cluster lock, or renews it with its token.",
        &[(200, Json("LockState")), (201, Json("LockState"))],
    )
    .query(DRY)
    .body("TakeLock")
    .codes(&[Code::ClusterLocked, Code::IdentityConflict]),
    op(
        ("DELETE", LOCK),
        ("cluster", "clearLock"),
        "Releases the cluster lock; with force whoever holds it.",
        &[(200, Json("ClearedLock"))],
    )
    .query(&["dry_run", "force"])
    .codes(&[Code::ClusterLocked, Code::IdentityConflict]),
    op(
        ("GET", CONFIRM),
        ("cluster", "getPendingConfirm"),
        "Changes that are undone unless they are confirmed.",
        &[(200, Json("PendingList"))],
    )
    .query(&["local"]),
    op(
        ("POST", CONFIRM),
        ("cluster", "beginPendingConfirm"),
        "Keeps the state of services of this agent, to be restored unless what follows is confirmed in time.",
        &[(201, Json("Pending"))],
    )
    .query(DRY)
    .body("BeginConfirm")
    .codes(&[Code::IdentityConflict]),
    op(("DELETE", CONFIRM), ("cluster", "confirm"), "Confirms: nothing is undone.", &[(200, Json("Confirmed"))])
        .query(&["dry_run", "local", "id"]),
    op(
        ("GET", "/v1/events"),
        ("cluster", "listenToEvents"),
        "What happens, as server-sent events.",
        &[(200, Text("text/event-stream"))],
    )
    .query(&["type", "since"]),
    op(("GET", "/v1/audit"), ("cluster", "listAudit"), "Who changed what, newest first.", &[(200, Json("AuditList"))])
        .query(&["limit"]),
    op(
        ("GET", "/v1/license"),
        ("license", "getLicense"),
        "The license, its state and what of it is used.",
        &[(200, Json("LicenseState"))],
    ),
    op(
        ("PUT", "/v1/license"),
        ("license", "updateLicense"),
        "Another license of the same customer; counts at once.",
        &[(200, Json("LicenseState"))],
    )
    .query(DRY)
    .body("UpdateLicense")
    .codes(&[Code::LicenseInvalid, Code::LicenseExpired, Code::LicenseMismatch, Code::IdentityConflict]),
];
