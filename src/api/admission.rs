//! The checks before a handler, in the order of api.md §1: size, rate, license, authentication, api_access, scope,
//! lock, body. A request for another peer leaves here for that peer. Existence and limits are the handlers'. A body is read only after everything that can be refused without it;
//! a peer's signature covers the body, so there its claims come first, then the body, then the signature.

use super::{
    Api,
    answer::{Outcome, RETRY_AFTER_S, clip, invalid, rate_limited, refusal, unauthorized},
    audit,
    caller::Caller,
    endpoints::{Access, Endpoint, Input},
    lock, proxy,
    query::Query,
    rate::{RateClass, retry_after_s},
    signed::{self, Claim},
    token::Verifier,
};
use crate::{
    license::Entitlement,
    model::{ApiAccess, ClientId, Code, PeerId, PublicKey, Refused, RequestId, Scope, ScopeSet, UnixTime},
    node::{Identity, Node},
    store::ClusterFacts,
    wire::{applied::WAIT_MAX_S, record::CredentialBody, request::REVOCATIONS},
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH},
};
use serde_json::json;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::SemaphorePermit;
use tracing::Instrument;

const HEADER_RECOVERY: &str = "x-arctic-recovery";
pub(super) const HEADER_TARGET_PEER: &str = "x-arctic-target-peer";
pub(super) const HEADER_LOCK: HeaderName = HeaderName::from_static("x-arctic-lock");
const HEADER_LICENSE_STATE: HeaderName = HeaderName::from_static("x-arctic-license-state");

/// Bodies above [`SMALL_BODY_BYTES`] that are read at one time for signatures still to be checked.
pub(super) const UNPROVEN_BODIES_MAX: usize = 16;
const SMALL_BODY_BYTES: u64 = 64 * 1024;

const WAIT_DEFAULT_S: u64 = 30;

const WRITE_SCOPES: [Scope; 3] = [Scope::PeersWrite, Scope::ServicesWrite, Scope::CredentialsWrite];

/// A request that passed every check, as a handler takes it.
pub(super) struct Request {
    pub(super) api: Arc<Api>,
    /// Of our own answer.
    pub(super) request_id: RequestId,
    pub(super) caller: Caller,
    pub(super) source: IpAddr,
    pub(super) method: Method,
    pub(super) path_and_query: String,
    pub(super) params: Vec<(String, String)>,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Request {
    pub(super) fn node(&self) -> &Node {
        &self.api.node
    }
    pub(super) fn now(&self) -> UnixTime {
        self.node().env().clock.unix()
    }
    /// A segment of the path; "" where the endpoint has none of that name.
    pub(super) fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v.as_str())
    }
    pub(super) fn identity(&self) -> Result<Arc<Identity>, Refused> {
        self.node().identity().ok_or_else(not_bootstrapped)
    }
    pub(super) fn entitlement(&self) -> Result<Arc<Entitlement>, Refused> {
        self.node().entitlement().ok_or_else(not_bootstrapped)
    }
    pub(super) fn cluster(&self) -> Result<ClusterFacts, Refused> {
        self.node().store().read(|v| v.cluster())?.ok_or_else(not_bootstrapped)
    }
    /// Whether the caller only wants to know what a write would do. Refuses other parameters.
    pub(super) fn dry_run(&self) -> Result<bool, Refused> {
        self.query.only(&["dry_run"])?;
        Ok(self.query.flag("dry_run")?.unwrap_or(false))
    }
    /// The same for a write that reconcilers apply; and for how long the caller waits for that.
    pub(super) fn dry_run_or_wait(&self) -> Result<(bool, Wait), Refused> {
        self.query.only(&["dry_run", "wait", "timeout_s"])?;
        let dry_run = self.query.flag("dry_run")?.unwrap_or(false);
        let wait = Wait::read(&self.query)?;
        Ok((dry_run, if dry_run { Wait(None) } else { wait }))
    }
}

/// `?wait=applied&timeout_s=…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait(pub(super) Option<Duration>);

impl Wait {
    fn read(query: &Query) -> Result<Self, Refused> {
        match query.get("wait") {
            None if query.get("timeout_s").is_some() => Err(invalid("parameter `timeout_s` needs `wait=applied`")),
            None => Ok(Self(None)),
            Some("applied") => {
                let seconds = query.get("timeout_s").map_or(Ok(WAIT_DEFAULT_S), str::parse);
                let seconds = seconds.ok().filter(|s| (1..=WAIT_MAX_S).contains(s));
                let text =
                    || invalid(format!("parameter `timeout_s` is not a number of seconds from 1 to {WAIT_MAX_S}"));
                Ok(Self(Some(Duration::from_secs(seconds.ok_or_else(text)?))))
            }
            Some(_) => Err(invalid("parameter `wait` is not `applied`")),
        }
    }

    /// By how much the answer to such a request may be later than others.
    fn patience(query: &str) -> Duration {
        let wait = Query::parse(query).and_then(|query| Self::read(&query));
        wait.ok().and_then(|wait| wait.0).unwrap_or_default()
    }
}

fn not_bootstrapped() -> Refused {
    Refused::new(Code::NotBootstrapped, "this agent is not bootstrapped")
        .with_hint("arctic bootstrap --url URL --license-file license.json")
}

/// What is known of a request before its body is read.
struct Head<'a> {
    api: &'a Arc<Api>,
    endpoint: &'a Endpoint,
    source: IpAddr,
    method: &'a Method,
    path_and_query: &'a str,
    headers: &'a HeaderMap,
    /// The other peer that this request is for.
    target: Option<PeerId>,
}

/// Checks and serves one request; refusals become answers too.
pub(super) async fn serve(
    api: Arc<Api>,
    endpoint: &Arc<Endpoint>,
    source: IpAddr,
    request_id: RequestId,
    params: Vec<(String, String)>,
    request: hyper::Request<Body>,
) -> Response {
    let mut caller = Caller::Anonymous;
    let query = request.uri().query().unwrap_or("");
    let deadline = endpoint.deadline + Wait::patience(query);
    let is_dry_run = Query::parse(query).is_ok_and(|q| q.flag("dry_run") == Ok(Some(true)));
    let mut asked = Some(audit::Asked { source, request_id, path: request.uri().path().to_owned(), is_dry_run });
    let known = (source, request_id, deadline);
    let admitted = admit_and_handle(api.clone(), endpoint, known, params, request, &mut caller, &mut asked);
    let outcome = match tokio::time::timeout(deadline, admitted).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Refused::new(Code::Internal, format!("no answer within {} s", deadline.as_secs()))),
    };
    if let Some(asked) = asked {
        audit::note(&api, endpoint, asked, &caller, &outcome);
    }
    let refused = outcome.as_ref().err().map(|r| r.code.text());
    tracing::debug!(%request_id, method = %endpoint.method, path = endpoint.path, %source, %caller, refused, "api request");
    let mut response = match outcome {
        Ok(answer) => answer.into_response(),
        Err(refused) => refusal(&refused, request_id),
    };
    // A proxied answer speaks of its own agent's license.
    if caller.is_authenticated()
        && !response.headers().contains_key(proxy::HEADER_VIA)
        && let Some(entitlement) = api.node.entitlement().filter(|e| e.state.warns())
    {
        response.headers_mut().insert(HEADER_LICENSE_STATE, HeaderValue::from_static(entitlement.state.text()));
    }
    response
}

/// Takes what was `asked` where it is kept in the audit already.
async fn admit_and_handle(
    api: Arc<Api>,
    endpoint: &Arc<Endpoint>,
    (source, request_id, deadline): (IpAddr, RequestId, Duration),
    params: Vec<(String, String)>,
    request: hyper::Request<Body>,
    caller: &mut Caller,
    asked: &mut Option<audit::Asked>,
) -> Outcome {
    let (parts, body) = request.into_parts();
    let path_and_query = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let target = proxy::target(&parts.headers, api.node.identity().map(|i| i.peer_id))?;
    let (method, headers) = (&parts.method, &parts.headers);
    let head = Head { api: &api, endpoint, source, method, path_and_query, headers, target };

    head.check_size()?;
    head.check_proxied()?;
    head.check_rate()?;
    let recovery = head.recovery()?;
    head.check_license(recovery)?;
    let (proven, body) = head.authenticate(recovery, body).await?;
    *caller = proven;
    head.check_api_access(caller)?;
    head.check_scope(caller)?;
    head.check_lock()?;
    let body = body.read(endpoint).await?;
    head.check_content_type()?;
    head.check_precondition()?;
    let query = Query::parse(parts.uri.query().unwrap_or(""))?;

    let (caller, path_and_query) = (caller.clone(), path_and_query.to_owned());
    let (method, headers) = (parts.method, parts.headers);
    let request = Request { api, request_id, caller, source, method, path_and_query, params, query, headers, body };
    match target {
        Some(target) => proxy::to_target(&request, target, deadline, endpoint.streams).await,
        None if endpoint.ends_with_caller => (endpoint.handler)(request).await,
        None => carry_through(endpoint.clone(), request, asked.take()).await,
    }
}

/// Serves a request to its end, whether or not its caller stays to hear of it: between a commit and what follows from it
/// nothing is dropped.
async fn carry_through(endpoint: Arc<Endpoint>, request: Request, asked: Option<audit::Asked>) -> Outcome {
    let (api, caller) = (request.api.clone(), request.caller.clone());
    let served = async move {
        let outcome = (endpoint.handler)(request).await;
        if let Some(asked) = asked {
            audit::note(&api, &endpoint, asked, &caller, &outcome);
        }
        outcome
    };
    tokio::spawn(served.in_current_span()).await.unwrap_or_else(|e| Err(Refused::internal(e)))
}

/// A body that was read early, because a signature covers it, or not yet.
enum Pending {
    Unread(Body),
    Read(Bytes),
}

impl Pending {
    async fn read(self, endpoint: &Endpoint) -> Result<Bytes, Refused> {
        match self {
            Self::Read(bytes) => Ok(bytes),
            Self::Unread(body) => read_body(body, endpoint.body_max_bytes).await,
        }
    }
}

async fn read_body(body: Body, max_bytes: usize) -> Result<Bytes, Refused> {
    match Limited::new(body, max_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(too_large(max_bytes)),
        Err(e) => Err(invalid(format!("the body ended early: {}", clip(&e.to_string())))),
    }
}

fn too_large(max_bytes: usize) -> Refused {
    Refused::new(Code::PayloadTooLarge, format!("the body is larger than {max_bytes} bytes"))
}

impl Head<'_> {
    fn node(&self) -> &Node {
        &self.api.node
    }

    fn check_size(&self) -> Result<(), Refused> {
        match self.declared_bytes() {
            Some(bytes) if bytes > self.endpoint.body_max_bytes as u64 => Err(too_large(self.endpoint.body_max_bytes)),
            _ => Ok(()),
        }
    }

    /// What is between one peer and its caller cannot be asked of another one.
    fn check_proxied(&self) -> Result<(), Refused> {
        if self.target.is_none() || self.endpoint.is_proxied() {
            return Ok(());
        }
        let text = format!("{} is not proxied: call the agent of that peer itself", self.endpoint.path);
        Err(invalid(text).with_hint(format!("leave {HEADER_TARGET_PEER} (--peer) out")))
    }

    fn declared_bytes(&self) -> Option<u64> {
        self.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok())
    }

    /// A place for a large body whose sender has proven nothing yet. Ids of trusted peers are no secret, so that
    /// anybody could have many such bodies held.
    fn place_for_body(&self) -> Result<Option<SemaphorePermit<'_>>, Refused> {
        if self.declared_bytes().is_some_and(|bytes| bytes <= SMALL_BODY_BYTES) {
            return Ok(None);
        }
        let place = self.api.unproven_bodies.try_acquire();
        place.map(Some).map_err(|_| {
            Refused::new(Code::RateLimited, "too many large requests arrive at once; try again in 1 s")
                .with_details(json!({ RETRY_AFTER_S: 1 }))
        })
    }

    fn check_rate(&self) -> Result<(), Refused> {
        self.endpoint.rate.map_or(Ok(()), |class| self.take_rate(class))
    }

    fn take_rate(&self, class: RateClass) -> Result<(), Refused> {
        let now = self.node().env().clock.mono();
        let taken = lock(&self.api.rates).take(class, self.source, now);
        taken.map_err(|wait| rate_limited(class.noun(), retry_after_s(wait)))
    }

    /// Whether the request carries the recovery token. A wrong one is refused and counted.
    fn recovery(&self) -> Result<bool, Refused> {
        let Some(offered) = self.headers.get(HEADER_RECOVERY) else { return Ok(false) };
        let now = self.node().env().clock.mono();
        let wait = lock(&self.api.rates).wait(RateClass::RecoveryFailure, self.source, now);
        if !wait.is_zero() {
            return Err(rate_limited(RateClass::RecoveryFailure.noun(), retry_after_s(wait)));
        }
        if self.api.recovery.as_ref().is_some_and(|token| offered.to_str().is_ok_and(|t| token.matches(t.trim()))) {
            tracing::warn!(path = self.path_and_query, source = %self.source, "recovery token used");
            return Ok(true);
        }
        self.take_rate(RateClass::RecoveryFailure)?;
        tracing::warn!(path = self.path_and_query, source = %self.source, "wrong recovery token");
        Err(unauthorized("wrong recovery token").with_hint("each start of the agent writes a new one"))
    }

    fn check_license(&self, recovery: bool) -> Result<(), Refused> {
        match self.node().entitlement() {
            Some(entitlement) => {
                let checked = entitlement.check(self.endpoint.group, recovery);
                checked.map_err(Refused::from)
            }
            None if self.endpoint.before_bootstrap => Ok(()),
            None => Err(not_bootstrapped()),
        }
    }

    async fn authenticate(&self, recovery: bool, body: Body) -> Result<(Caller, Pending), Refused> {
        let signed = signed::is_signed(self.headers);
        match self.endpoint.access {
            Access::Public if self.target.is_some() && recovery => Ok((Caller::Recovery, Pending::Unread(body))),
            Access::Public if self.target.is_some() => Ok((self.bearer()?, Pending::Unread(body))),
            Access::PublicUnlessInternal if self.is_internal() && recovery => {
                Ok((Caller::Recovery, Pending::Unread(body)))
            }
            Access::PublicUnlessInternal if self.is_internal() => Ok((self.bearer()?, Pending::Unread(body))),
            Access::Public | Access::PublicUnlessInternal | Access::Login => {
                Ok((Caller::Anonymous, Pending::Unread(body)))
            }
            Access::Peer => match self.signed(body).await? {
                (Claim { sender, on_behalf: None, .. }, body) => Ok((Caller::Peer(sender), Pending::Read(body))),
                _ => Err(unauthorized("peers call this endpoint for themselves only")),
            },
            _ if recovery => Ok((Caller::Recovery, Pending::Unread(body))),
            _ if signed => {
                let (claim, body) = self.signed(body).await?;
                Ok((self.forwarded(claim)?, Pending::Read(body)))
            }
            Access::Client | Access::Scoped(_) | Access::ScopedOrForwarded(_) | Access::WriterOrForwarded => {
                Ok((self.bearer()?, Pending::Unread(body)))
            }
        }
    }

    /// A client whose request a peer brings: any that it sent to us, or a write that only we can make.
    fn forwarded(&self, claim: Claim) -> Result<Caller, Refused> {
        let by = claim.sender;
        let client = claim.on_behalf.ok_or_else(|| unauthorized("a peer calls this endpoint for a client only"))?;
        let has_owner = matches!(self.endpoint.access, Access::ScopedOrForwarded(_) | Access::WriterOrForwarded);
        if !client.proxied && !has_owner {
            return Err(unauthorized("this endpoint has no owner to forward to: a peer only proxies it"));
        }
        check_credential(self.api, client.client_id, &client.scopes)?;
        Ok(Caller::Forwarded { by, client })
    }

    /// A signed request of a trusted peer, checked from cheap to dear, and its body.
    async fn signed(&self, body: Body) -> Result<(Claim, Bytes), Refused> {
        let claim = Claim::read(self.headers)?;
        let key = self.trusted_key(claim.sender)?;
        let Some(key) = key else { return Err(self.not_trusted(claim.sender)?) };
        claim.check_clock(self.node().env().clock.unix())?;
        let own_id = self.node().identity().ok_or_else(not_bootstrapped)?.peer_id;
        let _place = self.place_for_body()?;
        let body = read_body(body, self.endpoint.body_max_bytes).await?;
        claim.check_signature((self.method.as_str(), self.path_and_query, &body), own_id, &key)?;
        claim.check_nonce(&mut lock(&self.api.nonces), self.node().env().clock.mono())?;
        Ok((claim, body))
    }

    /// Tells a refused peer that it is not trusted, in distinction from a request that is not in order, and, if it was
    /// removed, by whom.
    fn not_trusted(&self, peer: PeerId) -> Result<Refused, Refused> {
        let grounds = self.node().grounds_against(peer)?;
        Ok(unauthorized(format!("{peer} is not a trusted peer here")).with_details(json!({ REVOCATIONS: grounds })))
    }

    fn trusted_key(&self, id: PeerId) -> Result<Option<PublicKey>, Refused> {
        Ok(self.node().store().read(|v| v.peer(id))?.filter(|p| p.trusted).map(|p| p.public_key))
    }

    fn bearer(&self) -> Result<Caller, Refused> {
        let mut values = self.headers.get_all(AUTHORIZATION).iter();
        let header = values.next().ok_or_else(|| {
            unauthorized("this request needs an access token")
                .with_hint("POST /v1/oauth/token, then send `Authorization: Bearer TOKEN`")
        })?;
        let text = header.to_str().ok().filter(|_| values.next().is_none());
        let (scheme, token) = text.and_then(|t| t.split_once(' ')).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unauthorized("expected one header `Authorization: Bearer TOKEN`"));
        }
        let cluster = self.node().store().read(|v| v.cluster())?.ok_or_else(not_bootstrapped)?;
        let audiences: Vec<_> = std::iter::once(cluster.cluster_id).chain(cluster.aliases).collect();
        let now = self.node().env().clock.unix();
        let verifier = Verifier { key_of: |id| self.trusted_key(id), audiences: &audiences, now };
        let bearer = verifier.verify(token.trim())?;
        check_credential(self.api, bearer.client_id, &bearer.scopes)?;
        Ok(Caller::Client { client_id: bearer.client_id, scopes: bearer.scopes })
    }

    fn check_api_access(&self, caller: &Caller) -> Result<(), Refused> {
        let login = self.endpoint.access == Access::Login;
        let operator = caller.is_operator() && self.endpoint.access != Access::PublicUnlessInternal;
        if (login || operator) && self.is_internal() {
            return Err(Refused::new(
                Code::ApiAccessInternal,
                "this agent takes no operator requests (API_ACCESS=internal)",
            )
            .with_hint("ask another agent of the cluster, or use the recovery token on this host"));
        }
        Ok(())
    }

    fn is_internal(&self) -> bool {
        self.node().config().api_access == ApiAccess::Internal
    }

    fn check_scope(&self, caller: &Caller) -> Result<(), Refused> {
        match self.endpoint.access {
            Access::Scoped(wanted) | Access::ScopedOrForwarded(wanted) if !caller.scopes().grants(wanted) => {
                Err(missing_scope(wanted))
            }
            Access::WriterOrForwarded if !WRITE_SCOPES.iter().any(|scope| caller.scopes().grants(*scope)) => {
                Err(Refused::new(Code::Forbidden, "this request needs a scope that allows to write"))
            }
            _ => Ok(()),
        }
    }

    /// A write while somebody else holds the cluster lock. What is for another peer is checked there.
    fn check_lock(&self) -> Result<(), Refused> {
        if !self.endpoint.is_locked_out() || self.target.is_some() {
            return Ok(());
        }
        self.node().check_lock(lock::token_of(self.headers)?.as_ref())
    }

    /// A condition that cannot be judged is not taken for fulfilled.
    fn check_precondition(&self) -> Result<(), Refused> {
        let is_write = self.endpoint.is_operators() && self.endpoint.method != Method::GET;
        if is_write && !self.endpoint.is_versioned() && self.headers.contains_key(IF_MATCH) {
            return Err(invalid("the header If-Match goes with updates and deletions of services and routes only"));
        }
        Ok(())
    }

    fn check_content_type(&self) -> Result<(), Refused> {
        let wanted = match self.endpoint.input {
            Input::Nothing => return Ok(()),
            Input::Json => "application/json",
            Input::Form => "application/x-www-form-urlencoded",
        };
        let given = self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let media_type = given.split(';').next().unwrap_or("").trim();
        if media_type.eq_ignore_ascii_case(wanted) {
            return Ok(());
        }
        Err(Refused::new(Code::UnsupportedMediaType, format!("send the body as `Content-Type: {wanted}`")))
    }
}

/// Proofs die with their credential, and never grant more than it.
pub(super) fn check_credential(api: &Api, client_id: ClientId, scopes: &ScopeSet) -> Result<(), Refused> {
    let found: Option<(PeerId, CredentialBody)> = api.node.store().read(|v| v.credential(client_id))?;
    match found {
        Some((_, body)) if body.scopes.covers(scopes) => {
            lock(&api.used).note(client_id, api.node.env().clock.unix());
            Ok(())
        }
        Some(_) => Err(unauthorized("the credential no longer grants these scopes; ask for a new token")),
        None => Err(unauthorized(format!("credential {client_id} is revoked or not known here"))),
    }
}

pub(super) fn missing_scope(wanted: Scope) -> Refused {
    Refused::new(Code::Forbidden, format!("this request needs the scope {wanted}"))
}
