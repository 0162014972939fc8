//! The table of endpoints: what the router and every check are made from.

use super::{
    admission::Request,
    answer::Outcome,
    applied, audit, bootstrap, cluster, confirm, credentials, events, explain, gossip, health, license, lock, metrics,
    oauth,
    openapi::{self, Operation},
    peers,
    rate::RateClass,
    routes, services,
};
use crate::{license::EndpointGroup, model::Scope, wire::applied::WAIT_MAX_S};
use hyper::Method;
use std::{future::Future, pin::Pin, time::Duration};

const KIB: usize = 1024;
const BODY_MAX_BYTES: usize = 1024 * KIB;
const JOINING_BODY_MAX_BYTES: usize = 64 * KIB;
const GOSSIP_BODY_MAX_BYTES: usize = 4 * 1024 * KIB;
const DEADLINE: Duration = Duration::from_secs(30);
const PATIENT_DEADLINE: Duration = Duration::from_secs(60);

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Anyone, without proof.
    Public,
    /// Anyone, to become a client: refused where operators are (`api_access`).
    Login,
    /// Anyone; on an internal agent any client with a valid token.
    PublicUnlessInternal,
    /// Any client with a valid token.
    Client,
    /// A client that holds the scope.
    Scoped(Scope),
    /// As `Scoped`; also a trusted peer that forwards for such a client (cluster.md §5).
    ScopedOrForwarded(Scope),
    /// A client that may write anything, by itself or forwarded by a trusted peer.
    WriterOrForwarded,
    /// A trusted peer, by its signature.
    Peer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Nothing,
    Json,
    Form,
}

pub(super) type Handler = fn(Request) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// One line of the table.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// Its row in the allow-lists of licensing.md §3.
    pub(super) group: EndpointGroup,
    pub(super) access: Access,
    pub(super) input: Input,
    pub(super) body_max_bytes: usize,
    pub(super) deadline: Duration,
    pub(super) rate: Option<RateClass>,
    pub(super) before_bootstrap: bool,
    /// Its answer is sent as it comes, and may not end.
    pub(super) streams: bool,
    /// It is dropped when its caller hangs up or its deadline has passed; any other is carried through, so that nothing
    /// is left half-done.
    pub(super) ends_with_caller: bool,
    pub(super) handler: Handler,
}

impl Endpoint {
    fn new(method: Method, path: &'static str, group: EndpointGroup, access: Access, handler: Handler) -> Self {
        let ends_with_caller = method == Method::GET;
        let input = if method == Method::POST || method == Method::PUT { Input::Json } else { Input::Nothing };
        Self {
            method,
            path,
            group,
            access,
            input,
            body_max_bytes: BODY_MAX_BYTES,
            deadline: DEADLINE,
            rate: None,
            before_bootstrap: false,
            streams: false,
            ends_with_caller,
            handler,
        }
    }
    /// Whether an operator may name another peer that is to serve it (api.md §2).
    pub(super) fn is_proxied(&self) -> bool {
        self.is_operators() || (self.access == Access::Public && self.group == EndpointGroup::Probe)
    }
    /// Whether a client may call it, with its own token or, where it says so, through a peer.
    pub(super) fn is_operators(&self) -> bool {
        !matches!(self.access, Access::Public | Access::PublicUnlessInternal | Access::Login | Access::Peer)
    }
    /// Whether the cluster lock stands in its way (cluster.md §9).
    pub(super) fn is_locked_out(&self) -> bool {
        matches!(self.group, EndpointGroup::CreateOrUpdate | EndpointGroup::Administer)
    }
    /// Whether it makes an agent a peer.
    pub(super) fn is_first(&self) -> bool {
        self.group == EndpointGroup::Unlisted
    }
    /// Whether a client changes something by it. Some questions are asked by POST, for the sake of their body.
    pub(super) fn is_write(&self) -> bool {
        self.is_operators() && self.method != Method::GET && self.path != "/v1/routes/explain"
    }
    /// What the OpenAPI document says of it.
    pub(super) fn operation(&self) -> Option<&'static Operation> {
        openapi::operation(&self.method, self.path)
    }
    /// Whether what it changes has a version that `If-Match` can name.
    pub(super) fn is_versioned(&self) -> bool {
        let changes = self.method == Method::PUT || self.method == Method::DELETE;
        changes && self.path.starts_with("/v1/services/")
    }
    fn before_bootstrap(self) -> Self {
        Self { before_bootstrap: true, ..self }
    }
    fn limited(self, class: RateClass) -> Self {
        Self { rate: Some(class), ..self }
    }
    fn body(self, input: Input, body_max_bytes: usize) -> Self {
        Self { input, body_max_bytes, ..self }
    }
    fn patient(self) -> Self {
        Self { deadline: PATIENT_DEADLINE, ..self }
    }
    fn streaming(self) -> Self {
        Self { streams: true, ..self }
    }
    fn ending_with_caller(self) -> Self {
        Self { ends_with_caller: true, ..self }
    }
    fn waiting(self) -> Self {
        Self { deadline: DEADLINE + Duration::from_secs(WAIT_MAX_S), ..self }
    }
}

macro_rules! handler {
    ($function:path) => {
        |request| Box::pin($function(request))
    };
}

/// Every endpoint.
pub(super) fn endpoints() -> Vec<Endpoint> {
    use Access::{Client, Login, Peer, Public, PublicUnlessInternal, Scoped, ScopedOrForwarded, WriterOrForwarded};
    use EndpointGroup as Group;
    let get = |path, group, access, handler| Endpoint::new(Method::GET, path, group, access, handler);
    let post = |path, group, access, handler| Endpoint::new(Method::POST, path, group, access, handler);
    let put = |path, group, access, handler| Endpoint::new(Method::PUT, path, group, access, handler);
    let delete = |path, group, access, handler| Endpoint::new(Method::DELETE, path, group, access, handler);
    let pending_confirm = "/v1/cluster/pending-confirm";
    let service_routes = "/v1/services/{sid}/routes";
    vec![
        get("/livez", Group::Probe, Public, handler!(health::live)).before_bootstrap(),
        get("/readyz", Group::Probe, Public, handler!(health::ready)).before_bootstrap(),
        get("/v1/cluster/identity", Group::Probe, Public, handler!(cluster::identity)).before_bootstrap(),
        get("/metrics", Group::Published, PublicUnlessInternal, handler!(metrics::scrape)).before_bootstrap(),
        get("/v1/openapi.json", Group::Published, Public, handler!(openapi::serve)).before_bootstrap(),
        post("/v1/bootstrap", Group::Unlisted, Public, handler!(bootstrap::bootstrap))
            .before_bootstrap()
            .limited(RateClass::Bootstrap)
            .body(Input::Json, JOINING_BODY_MAX_BYTES),
        post("/v1/oauth/token", Group::Token, Login, handler!(oauth::token))
            .limited(RateClass::Token)
            .body(Input::Form, JOINING_BODY_MAX_BYTES),
        get("/.well-known/openid-configuration", Group::Published, Public, handler!(oauth::configuration)),
        get("/.well-known/jwks.json", Group::Published, Public, handler!(oauth::keys)),
        post("/v1/handshake/init", Group::HandshakeKnownPeer, Public, handler!(gossip::handshake_init))
            .limited(RateClass::Handshake)
            .body(Input::Json, JOINING_BODY_MAX_BYTES),
        post("/v1/handshake/finish", Group::HandshakeKnownPeer, Public, handler!(gossip::handshake_finish))
            .limited(RateClass::Handshake)
            .body(Input::Json, JOINING_BODY_MAX_BYTES),
        post("/v1/gossip/heartbeat", Group::Gossip, Peer, handler!(gossip::heartbeat))
            .body(Input::Json, GOSSIP_BODY_MAX_BYTES),
        post("/v1/gossip/reconcile", Group::Gossip, Peer, handler!(gossip::reconcile))
            .body(Input::Json, GOSSIP_BODY_MAX_BYTES),
        post("/v1/gossip/push", Group::Gossip, Peer, handler!(gossip::push)).body(Input::Json, GOSSIP_BODY_MAX_BYTES),
        post("/v1/gossip/lock", Group::Gossip, Peer, handler!(lock::question))
            .body(Input::Json, JOINING_BODY_MAX_BYTES),
        post("/v1/gossip/applied", Group::Gossip, Peer, handler!(applied::question))
            .body(Input::Json, JOINING_BODY_MAX_BYTES)
            .waiting()
            .ending_with_caller(),
        get("/v1/peers", Group::Read, Scoped(Scope::PeersRead), handler!(peers::list)),
        post("/v1/peers", Group::CreateOrUpdate, Scoped(Scope::PeersWrite), handler!(peers::add)).patient(),
        get("/v1/peers/{id}", Group::Read, Scoped(Scope::PeersRead), handler!(peers::get)),
        put("/v1/peers/{id}", Group::CreateOrUpdate, Scoped(Scope::PeersWrite), handler!(peers::update)),
        delete("/v1/peers/self", Group::LeaveCluster, Scoped(Scope::Admin), handler!(peers::remove_self)),
        delete("/v1/peers/{id}", Group::Administer, Scoped(Scope::PeersWrite), handler!(peers::delete)),
        get("/v1/services", Group::Read, Scoped(Scope::ServicesRead), handler!(services::list)),
        post(
            "/v1/services",
            Group::CreateOrUpdate,
            ScopedOrForwarded(Scope::ServicesWrite),
            handler!(services::create),
        ),
        get("/v1/services/{sid}", Group::Read, Scoped(Scope::ServicesRead), handler!(services::get)),
        put(
            "/v1/services/{sid}",
            Group::CreateOrUpdate,
            ScopedOrForwarded(Scope::ServicesWrite),
            handler!(services::update),
        ),
        delete(
            "/v1/services/{sid}",
            Group::Administer,
            ScopedOrForwarded(Scope::ServicesWrite),
            handler!(services::delete),
        ),
        get(service_routes, Group::Read, Scoped(Scope::ServicesRead), handler!(routes::list)),
        post(service_routes, Group::CreateOrUpdate, ScopedOrForwarded(Scope::ServicesWrite), handler!(routes::add)),
        put(
            "/v1/services/{sid}/routes/{rid}",
            Group::CreateOrUpdate,
            ScopedOrForwarded(Scope::ServicesWrite),
            handler!(routes::update),
        ),
        delete(
            "/v1/services/{sid}/routes/{rid}",
            Group::Administer,
            ScopedOrForwarded(Scope::ServicesWrite),
            handler!(routes::delete),
        ),
        post("/v1/routes/explain", Group::Read, Scoped(Scope::ServicesRead), handler!(explain::explain_route))
            .ending_with_caller(),
        get("/v1/cluster/status", Group::Read, Scoped(Scope::PeersRead), handler!(cluster::status)),
        post("/v1/cluster/sync", Group::Read, Scoped(Scope::Admin), handler!(cluster::sync))
            .body(Input::Nothing, JOINING_BODY_MAX_BYTES)
            .patient()
            .ending_with_caller(),
        post("/v1/cluster/init", Group::Administer, Scoped(Scope::Admin), handler!(cluster::init)),
        get("/v1/cluster/lock", Group::Read, Scoped(Scope::PeersRead), handler!(lock::get)),
        // Gives back by itself what nobody waits for.
        post("/v1/cluster/lock", Group::Read, WriterOrForwarded, handler!(lock::take)).ending_with_caller(),
        delete("/v1/cluster/lock", Group::Read, WriterOrForwarded, handler!(lock::clear)),
        get("/v1/credentials", Group::Read, Scoped(Scope::CredentialsRead), handler!(credentials::list)),
        post("/v1/credentials", Group::Administer, Scoped(Scope::CredentialsWrite), handler!(credentials::create)),
        delete(
            "/v1/credentials/{cid}",
            Group::Administer,
            ScopedOrForwarded(Scope::CredentialsWrite),
            handler!(credentials::revoke),
        ),
        get("/v1/cluster/credentials", Group::Read, Scoped(Scope::Admin), handler!(credentials::shared)),
        post(
            "/v1/cluster/credentials/rotate",
            Group::Administer,
            ScopedOrForwarded(Scope::CredentialsWrite),
            handler!(credentials::rotate),
        )
        .body(Input::Nothing, JOINING_BODY_MAX_BYTES),
        get(pending_confirm, Group::Read, ScopedOrForwarded(Scope::Admin), handler!(confirm::get)),
        post(pending_confirm, Group::Administer, ScopedOrForwarded(Scope::Admin), handler!(confirm::begin)),
        delete(pending_confirm, Group::Read, ScopedOrForwarded(Scope::Admin), handler!(confirm::confirm)),
        get("/v1/events", Group::Read, Scoped(Scope::PeersRead), handler!(events::listen)).streaming(),
        get("/v1/audit", Group::Read, Scoped(Scope::Admin), handler!(audit::list)),
        get("/v1/license", Group::License, Client, handler!(license::get)),
        put("/v1/license", Group::License, Scoped(Scope::Admin), handler!(license::put)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_endpoint_has_a_row_a_limit_and_a_proof() {
        let all = endpoints();
        let names: BTreeSet<_> = all.iter().map(|e| (e.method.to_string(), e.path)).collect();
        assert_eq!(names.len(), all.len(), "no endpoint twice");
        for e in &all {
            let name = format!("{} {}", e.method, e.path);
            let unlisted = e.group == EndpointGroup::Unlisted;
            assert_eq!(unlisted, e.path == "/v1/bootstrap", "{name} has a row in licensing.md §3");
            assert!(
                e.body_max_bytes <= GOSSIP_BODY_MAX_BYTES && e.deadline <= PATIENT_DEADLINE || e.access == Access::Peer,
                "{name}"
            );
            let writes = e.method != Method::GET;
            let open = matches!(e.access, Access::Public | Access::PublicUnlessInternal | Access::Login);
            assert!(!(writes && open) || e.rate.is_some(), "{name} is open and unlimited");
            if let Access::Scoped(scope) | Access::ScopedOrForwarded(scope) = e.access {
                let read_scope = matches!(scope, Scope::PeersRead | Scope::ServicesRead | Scope::CredentialsRead);
                let fits = if e.is_write() { !read_scope } else { read_scope || scope == Scope::Admin };
                assert!(fits, "{name} asks for a scope that fits");
            }
            assert!(!(e.is_locked_out() && e.ends_with_caller), "{name} is carried through");
            assert_eq!(e.access == Access::Peer, e.path.starts_with("/v1/gossip/"), "{name}");
            let first = ["/livez", "/readyz", "/v1/cluster/identity", "/v1/bootstrap", "/metrics", "/v1/openapi.json"];
            let first = first.contains(&e.path);
            assert_eq!(e.before_bootstrap, first, "{name}");
        }
    }
}
