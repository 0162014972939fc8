//! An agent on loopback: the production node and API, an in-memory kernel, a clock that the test moves.

use super::conformance;
use crate::{
    api::{Api, token},
    env::{BoxFuture, Clock, EngineSetup, Engines, Env, InterceptPorts, Net, RunningEngines, SystemClock},
    kernel::FakeKernel,
    license::{EffectiveClock, Features, LicenseDocument, Terms, TrustRoots},
    model::{ApiAccess, ClientId, CustomerId, LicenseId, Mono, PeerId, Rng, ScopeSet, SigningKey, UnixTime},
    node::{Config, Node, RecoveryToken, StartError},
    os::net::TokioNet,
    routing::Forwarding,
    store::{StoreError, View},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::watch};
use tokio_util::sync::CancellationToken;

pub(super) const START: UnixTime = UnixTime::from_secs(1_800_000_000);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const RECOVERY: &str = "recovery-token-of-a-test";

pub(super) fn vendor() -> SigningKey {
    SigningKey::from_seed([42; 32])
}

/// A license of `customer` that is valid for a year from now.
pub(super) fn terms(customer: u8) -> Terms {
    terms_at(START, customer)
}

pub(super) fn terms_at(now: UnixTime, customer: u8) -> Terms {
    Terms {
        license_id: LicenseId::mint(now, &mut Rng::from_seed([7; 32])),
        customer_id: CustomerId::mint(START, &mut Rng::from_seed([customer; 32])),
        customer_name: None,
        issued_at: now.minus(DAY),
        expires_at: now.plus(365 * DAY),
        max_nodes: 3,
        max_services: 2,
        features: Features::from_names(["macvlan"]).unwrap(),
    }
}

pub(super) fn license(terms: Terms) -> Value {
    LicenseDocument::issue(&vendor(), terms).unwrap().as_value().clone()
}

/// Both clocks stand still until moved.
pub(super) struct TestClock(Mutex<(Mono, UnixTime)>);

impl TestClock {
    pub(super) fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = (now.0 + by, now.1.plus(by));
    }

    /// Somebody sets the wall clock.
    pub(super) fn set_unix(&self, to: UnixTime) {
        self.0.lock().unwrap().1 = to;
    }

    /// Somebody sets the wall clock ahead.
    pub(super) fn jump(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        now.1 = now.1.plus(by);
    }
}

impl Clock for TestClock {
    fn mono(&self) -> Mono {
        self.0.lock().unwrap().0
    }
    fn unix(&self) -> UnixTime {
        self.0.lock().unwrap().1
    }
}

struct Idle;

impl Engines for Idle {
    fn start(
        &self,
        _setup: EngineSetup,
        _forwarding: watch::Receiver<Arc<Forwarding>>,
    ) -> BoxFuture<'_, io::Result<Box<dyn RunningEngines>>> {
        Box::pin(async { Ok(Box::new(Idle) as Box<dyn RunningEngines>) })
    }
}

impl RunningEngines for Idle {
    fn intercept_ports(&self) -> InterceptPorts {
        InterceptPorts { v4: 1, v6: None }
    }
    fn shutdown(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

async fn start_node(clock: Arc<dyn Clock>, dir: &Path, seed: u8, change: impl FnOnce(&mut Config)) -> Node {
    try_start(clock, dir, seed, &vendor(), change).await.unwrap()
}

async fn try_start(
    clock: Arc<dyn Clock>,
    dir: &Path,
    seed: u8,
    vendor: &SigningKey,
    change: impl FnOnce(&mut Config),
) -> Result<Node, StartError> {
    let env =
        Env::new(Arc::new(TokioNet::new(None)), Arc::new(FakeKernel::default()), clock, Arc::new(Idle), [seed; 32]);
    let mut config = Config { data_dir: dir.to_owned(), default_name: "london".into(), ..Config::default() };
    change(&mut config);
    Node::start(env, config, TrustRoots::from_keys([vendor.public()])).await
}

pub(super) struct Agent {
    pub(super) node: Node,
    pub(super) clock: Arc<TestClock>,
    pub(super) caller: Caller,
    stop: CancellationToken,
    dir: Arc<TempDir>,
}

impl Agent {
    /// Not bootstrapped.
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let clock = Arc::new(TestClock(Mutex::new((Mono::from_ms(1_000_000), START))));
        Self::on(clock, Arc::new(tempfile::tempdir().unwrap()), change).await
    }

    /// The same host after a restart.
    pub(super) async fn restarted(self, change: impl FnOnce(&mut Config)) -> Self {
        self.stop.cancel();
        Self::on(self.clock.clone(), self.dir.clone(), change).await
    }

    /// Why a restart with a build that trusts `vendor` fails.
    pub(super) async fn refused_restart(&self, vendor: &SigningKey) -> StartError {
        try_start(self.clock.clone(), self.dir.path(), 1, vendor, |_| {}).await.err().expect("no start")
    }

    pub(super) fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    async fn on(clock: Arc<TestClock>, dir: Arc<TempDir>, change: impl FnOnce(&mut Config)) -> Self {
        let node = start_node(clock.clone(), dir.path(), 1, change).await;
        let listener = TokioNet::new(None).listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let api = Api::new(node.clone()).with_recovery(RecoveryToken::of(RECOVERY));
        tokio::spawn(api.serve(listener, stop.clone()));
        Self { node, clock, caller: Caller { addr, token: None }, stop, dir }
    }

    pub(super) async fn bootstrapped() -> Self {
        let mut agent = Self::new().await;
        agent.caller.bootstrap(license(terms(1))).await;
        agent
    }

    /// The agent of `bootstrapped` when its license has been expired for `days`.
    pub(super) async fn expired_for(days: u32) -> Self {
        Self::bootstrapped().await.later((365 + days) * DAY).await
    }

    /// After so much time and a restart, with a new admin token; the clock is beyond doubt.
    pub(super) async fn later(self, by: Duration) -> Self {
        self.clock.advance(by);
        let snapshot = EffectiveClock::start(self.clock.unix(), self.clock.mono()).snapshot();
        let write = self.node.store().write(move |tx| tx.set_license_clock(&snapshot));
        write.await.map_err(|e: StoreError| e).unwrap();
        let mut agent = self.restarted(|_| {}).await;
        agent.caller.token = Some(agent.admin_token());
        agent
    }

    /// Of now.
    pub(super) fn admin_token(&self) -> String {
        let author = self.node.identity().unwrap();
        let read =
            |v: &View<'_>| Ok::<_, StoreError>((v.cluster()?.unwrap().cluster_id, v.credentials()?[0].1.client_id));
        let (cluster, client) = self.node.store().read(read).unwrap();
        let now = self.clock.unix();
        token::issue(&author, cluster, client, &ScopeSet::admin(), now, &mut self.node.fork_rng()).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A whole agent in real time: API, gossip, reconcilers.
pub(super) struct LiveAgent {
    pub(super) caller: Caller,
    pub(super) node: Node,
    stop: CancellationToken,
    dir: Arc<TempDir>,
    seed: u8,
}

impl LiveAgent {
    pub(super) fn id(&self) -> PeerId {
        self.node.identity().unwrap().peer_id
    }

    pub(super) async fn bootstrapped(seed: u8, customer: u8) -> Self {
        Self::with(Arc::new(SystemClock::new()), seed, customer, |_| {}).await
    }

    pub(super) async fn at(clock: Arc<dyn Clock>) -> Self {
        Self::with(clock, 1, 1, |_| {}).await
    }

    pub(super) async fn internal(seed: u8, customer: u8) -> Self {
        Self::with(Arc::new(SystemClock::new()), seed, customer, |c| c.api_access = ApiAccess::Internal).await
    }

    async fn with(clock: Arc<dyn Clock>, seed: u8, customer: u8, change: impl FnOnce(&mut Config)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let free = TokioNet::new(None).listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let now = clock.unix();
        let node = start_node(clock, dir.path(), seed, |c| {
            c.api_bind = addr;
            c.default_name = format!("host-{seed}");
            c.advertise_endpoints = vec![addr.to_string().parse().unwrap()];
            change(c);
        })
        .await;
        let stop = CancellationToken::new();
        tokio::spawn(node.clone().run(Some(RecoveryToken::of(RECOVERY)), stop.clone()));
        let mut caller = Caller { addr, token: None };
        caller.wait_until_listening().await;
        let license = license(terms_at(now, customer));
        match node.config().api_access {
            ApiAccess::Public => drop(caller.bootstrap(license).await),
            ApiAccess::Internal => drop(caller.post("/v1/bootstrap", json!({ "license": license })).await.expect(201)),
        }
        Self { caller, node, stop, dir, seed }
    }

    /// The same host after a stop of so long and a start.
    pub(super) async fn restarted_after(self, pause: Duration) -> Self {
        let (addr, token, dir, seed) = (self.caller.addr, self.caller.token.clone(), self.dir.clone(), self.seed);
        drop(self);
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(pause).await;
        let node = start_node(Arc::new(SystemClock::new()), dir.path(), seed, |c| {
            c.api_bind = addr;
            c.advertise_endpoints = vec![addr.to_string().parse().unwrap()];
        })
        .await;
        let stop = CancellationToken::new();
        tokio::spawn(node.clone().run(Some(RecoveryToken::of(RECOVERY)), stop.clone()));
        let caller = Caller { addr, token };
        caller.wait_until_listening().await;
        Self { caller, node, stop, dir, seed }
    }
}

impl Drop for LiveAgent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
    /// Null where the text is not JSON.
    pub(super) body: Value,
}

impl Reply {
    /// Status and code of an error.
    pub(super) fn refusal(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or("none"))
    }
    pub(super) fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or("")
    }
    #[track_caller]
    pub(super) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }
}

/// Calls an agent, with a token if there is one.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) addr: SocketAddr,
    pub(super) token: Option<String>,
}

impl Caller {
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(method.clone()).uri(path).header("host", self.addr.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        // A stream of events does not end.
        let streams = parts.headers.get("content-type").is_some_and(|v| v == "text/event-stream");
        let bytes = if streams { Bytes::new() } else { body.collect().await.unwrap().to_bytes() };
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        driver.abort();
        let media = parts.headers.get("content-type").map_or("", |v| v.to_str().unwrap());
        conformance::check(&method, path, parts.status.as_u16(), media, &text);
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply { status: parts.status.as_u16(), headers: parts.headers, text, body }
    }

    async fn authorized(&self, method: Method, path: &str, body: Option<String>) -> Reply {
        let bearer = format!("Bearer {}", self.token.as_deref().unwrap_or_default());
        let mut headers = Vec::new();
        if self.token.is_some() {
            headers.push(("authorization", bearer.as_str()));
        }
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        self.send(method, path, &headers, body.unwrap_or_default()).await
    }
    pub(super) async fn get(&self, path: &str) -> Reply {
        self.authorized(Method::GET, path, None).await
    }
    pub(super) async fn delete(&self, path: &str) -> Reply {
        self.authorized(Method::DELETE, path, None).await
    }
    pub(super) async fn post(&self, path: &str, body: Value) -> Reply {
        self.authorized(Method::POST, path, Some(body.to_string())).await
    }
    pub(super) async fn put(&self, path: &str, body: Value) -> Reply {
        self.authorized(Method::PUT, path, Some(body.to_string())).await
    }
    pub(super) async fn post_text(&self, path: &str, body: &str) -> Reply {
        self.authorized(Method::POST, path, Some(body.to_owned())).await
    }
    pub(super) async fn form(&self, path: &str, form: &str) -> Reply {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        self.send(Method::POST, path, &headers, form.to_owned()).await
    }

    /// Bootstraps with an admin token for what follows; gives the answer.
    pub(super) async fn bootstrap(&mut self, license: Value) -> Value {
        let made = self.post("/v1/bootstrap", json!({ "license": license })).await.expect(201);
        let form = token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
        self.token = Some(self.token_for(&form).await);
        made
    }

    pub(super) async fn token_for(&self, form: &str) -> String {
        let granted = self.form("/v1/oauth/token", form).await.expect(200);
        granted["access_token"].as_str().unwrap().to_owned()
    }

    async fn wait_until_listening(&self) {
        while TcpStream::connect(self.addr).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

pub(super) fn token_form(client_id: &str, secret: &str) -> String {
    format!("grant_type=client_credentials&client_id={client_id}&client_secret={secret}")
}

pub(super) fn client_of(token: &str) -> ClientId {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["sub"].as_str().unwrap().parse().unwrap()
}
