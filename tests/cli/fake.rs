//! An agent of canned answers on loopback, and a workstation to run the real `arctic` program on.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

pub const LONDON: &str = "peer_01AAAAAAAAAAAAAAAAAAAAAAAA";
pub const TOKYO: &str = "peer_01BBBBBBBBBBBBBBBBBBBBBBBB";
pub const SVC: &str = "svc_01CCCCCCCCCCCCCCCCCCCCCCCC";
pub const SVC2: &str = "svc_01DDDDDDDDDDDDDDDDDDDDDDDD";
pub const CLUSTER: &str = "clu_01EEEEEEEEEEEEEEEEEEEEEEEE";
pub const SECRET: &str = "sec_verysecretverysecret";

/// What the agent was sent.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    answers: BTreeMap<String, (u16, String)>,
    tokens_given: u32,
    /// Told with every answer that needed a credential.
    license_state: Option<String>,
}

/// Accepts only the token it gave out last: `token-N`.
#[derive(Clone)]
pub struct FakeAgent {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl FakeAgent {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let agent = Self { port, state: Arc::default() };
        let serving = agent.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serving.serve(listener));
        });
        agent
    }

    async fn serve(self, listener: TcpListener) {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let agent = self.clone();
            let service = service_fn(move |request| agent.clone().answer(request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let line = format!("{} {}", request.method(), request.uri());
        let text = |v: &hyper::header::HeaderValue| v.to_str().unwrap_or_default().to_owned();
        let headers: BTreeMap<String, String> =
            request.headers().iter().map(|(k, v)| (k.to_string(), text(v))).collect();
        let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let seen = Seen { line: line.clone(), headers, body: String::from_utf8_lossy(&body).into_owned() };
        let (status, body) = self.state.lock().unwrap().decide(&seen);
        let license_state = self.state.lock().unwrap().license_state.clone();
        let authenticated = seen.headers.contains_key("authorization");
        self.state.lock().unwrap().seen.push(seen);
        let mut response = Response::builder().status(status).header("x-request-id", "req_fake");
        if let (Some(state), true) = (license_state, authenticated) {
            response = response.header("x-arctic-license-state", state);
        }
        Ok(response.body(Full::new(Bytes::from(body))).unwrap())
    }

    /// From now on this request (`METHOD PATH`, or `METHOD PATH @PEER` for a peer behind this agent) is answered so,
    /// without asking for a token.
    pub fn on(&self, line: &str, status: u16, body: Value) -> &Self {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.state.lock().unwrap().answers.insert(line.to_owned(), (status, body));
        self
    }

    /// As `on`, with a body that is no JSON.
    pub fn on_text(&self, line: &str, body: &str) -> &Self {
        self.state.lock().unwrap().answers.insert(line.to_owned(), (200, body.to_owned()));
        self
    }

    /// Every authenticated answer warns of the license from now on.
    pub fn warn_of_license(&self, state: &str) -> &Self {
        self.state.lock().unwrap().license_state = Some(state.to_owned());
        self
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// The only request of this kind.
    pub fn one(&self, line: &str) -> Seen {
        let mut found = self.seen().into_iter().filter(|s| s.line == line).collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "{line} in {:?}", self.seen().iter().map(|s| &s.line).collect::<Vec<_>>());
        found.remove(0)
    }

    pub fn count(&self, line: &str) -> usize {
        self.seen().iter().filter(|s| s.line == line).count()
    }

    /// Every token given out so far is refused from now on.
    pub fn forget_tokens(&self) {
        self.state.lock().unwrap().tokens_given += 1;
    }
}

impl State {
    fn decide(&mut self, seen: &Seen) -> (u16, String) {
        let target = seen.headers.get("x-arctic-target-peer");
        let for_target = target.and_then(|t| self.answers.get(&format!("{} @{t}", seen.line)));
        if let Some((status, body)) = for_target.or_else(|| self.answers.get(&seen.line)) {
            return (*status, body.clone());
        }
        let (status, body) = self.decide_json(seen);
        (status, if body.is_null() { String::new() } else { body.to_string() })
    }

    fn decide_json(&mut self, seen: &Seen) -> (u16, Value) {
        let identity =
            json!({"peer_id":LONDON,"public_key":"AAAA","license_id":"lic_1","cluster_id":CLUSTER,"version":"v9.9.9"});
        match seen.line.as_str() {
            "GET /livez" => return (200, json!({"status":"ok","timestamp":"2026-01-01T00:00:00Z"})),
            "GET /v1/cluster/identity" => return (200, identity),
            "POST /v1/oauth/token" if seen.body.contains(SECRET) => {
                self.tokens_given += 1;
                let token = format!("token-{}", self.tokens_given);
                return (200, json!({"access_token":token,"token_type":"Bearer","expires_in":3600,"scope":"x"}));
            }
            "POST /v1/oauth/token" => return (401, json!({"error":"bad credentials","code":"UNAUTHORIZED"})),
            _ => {}
        }
        let wanted = format!("Bearer token-{}", self.tokens_given);
        let recovery = seen.headers.get("x-arctic-recovery").is_some_and(|t| t == "rescue");
        if seen.headers.get("authorization") != Some(&wanted) && !recovery {
            return (401, json!({"error":"token missing or not valid","code":"UNAUTHORIZED"}));
        }
        authorized(seen)
    }
}

fn authorized(seen: &Seen) -> (u16, Value) {
    let route =
        |id: u32, priority: u32| json!({"id":id,"priority":priority,"source_cidr":null,"dest_cidr":"10.0.0.0/8"});
    match seen.line.as_str() {
        "GET /v1/peers" => (200, json!({"peers":[tokyo(), london()]})),
        "POST /v1/peers" => (201, tokyo()),
        "GET /v1/services" => (200, json!({"services":[service(SVC, "l2t"), service(SVC2, "t2l")]})),
        "POST /v1/services" => (201, service(SVC, "l2t")),
        "POST /v1/cluster/sync" => (200, json!({"triggered":true,"peers":2,"reached":1})),
        line if line == format!("GET /v1/peers/{TOKYO}") => (200, tokyo()),
        line if line == format!("DELETE /v1/peers/{TOKYO}") => (204, Value::Null),
        line if line == format!("GET /v1/services/{SVC}") => (200, service(SVC, "l2t")),
        line if line == format!("DELETE /v1/services/{SVC}") => (204, Value::Null),
        line if line == format!("GET /v1/services/{SVC}/routes") => {
            (200, json!({"routes":[route(2, 200), route(1, 100)]}))
        }
        line if line == format!("GET /v1/services/{SVC2}/routes") => (200, json!({"routes":[route(7, 150)]})),
        line if line == format!("POST /v1/services/{SVC}/routes") => (201, json!({"route_ids":[6],"count":1})),
        line if line == format!("DELETE /v1/services/{SVC}/routes/2") => (204, Value::Null),
        _ => (404, json!({"error":"not found","code":"NOT_FOUND"})),
    }
}

pub fn london() -> Value {
    json!({"id":LONDON,"name":"london","is_local":true,"endpoints":["10.0.0.1:8080"],"address":"10.0.0.1:8080",
        "status":"healthy","version":"v0.1.0","qos_enabled":true})
}

pub fn tokyo() -> Value {
    json!({"id":TOKYO,"name":"tokyo","is_local":false,"endpoints":["10.0.0.2:8080"],"address":"10.0.0.2:8080",
        "status":"healthy","version":"v0.1.0","rtt_ms":150.25,"last_seen":"2026-01-01T00:00:00Z","from_the_future":1})
}

fn service(id: &str, name: &str) -> Value {
    let (source, target) = if id == SVC { (LONDON, TOKYO) } else { (TOKYO, LONDON) };
    let peer = |id: &str| if id == LONDON { "london" } else { "tokyo" };
    json!({"id":id,"name":name,"source_peer_id":source,"source_peer_name":peer(source),"target_peer_id":target,
        "target_peer_name":peer(target),"transport_type":"tcp","requires_interface":false,"bandwidth_limit_mbps":1000,
        "state":"active","route_count":2})
}

/// A port where nothing listens, and nobody else will: it stays bound until the tests end.
pub fn closed_port() -> u16 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    std::mem::forget(socket);
    port
}

/// A home directory of an operator.
pub struct Workstation {
    home: tempfile::TempDir,
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }
    #[track_caller]
    pub fn fails(self, code: i32, first_line: &str) -> Self {
        assert_eq!(self.err.lines().next(), Some(first_line), "{}", self.err);
        assert_eq!(self.code, code, "{}", self.err);
        assert!(self.err.lines().count() <= 8, "{}", self.err);
        assert_eq!(self.out, "");
        self
    }
    #[track_caller]
    pub fn says(&self, on_stderr: &str) {
        assert!(self.err.contains(on_stderr), "{}", self.err);
    }
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

impl Workstation {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    /// With a config whose current cluster lists these peers.
    pub fn with_cluster(peers: &[(&str, u16)]) -> Self {
        let station = Self::new();
        let mut text = format!(
            "current_cluster: {CLUSTER}\nclusters:\n  {CLUSTER}:\n    cluster_id: {CLUSTER}\n    customer_id: cust_1\n    \
             client_id: cli_1\n    client_secret: {SECRET}\n    kept: yes-it-is\n    peers:\n"
        );
        for (id, port) in peers {
            text.push_str(&format!("      - peer_id: {id}\n        endpoints: ['http://127.0.0.1:{port}']\n"));
        }
        station.write_config(&text, 0o600);
        station
    }

    pub fn write_config(&self, text: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir_all(self.config().parent().unwrap()).unwrap();
        fs::write(self.config(), text).unwrap();
        fs::set_permissions(self.config(), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.home.path().join(".config/arctic/config.yaml")
    }

    pub fn config_text(&self) -> String {
        fs::read_to_string(self.config()).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arctic"));
        command.args(args).env_clear().env("HOME", self.home.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, line: &str) -> Ran {
        self.args(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs on a pseudo-terminal (by util-linux `script`) where `typed` is typed. Stderr is part of `out`.
    pub fn at_terminal(&self, line: &str, typed: &str) -> Ran {
        let shell_line = format!("'{}' {line}", env!("CARGO_BIN_EXE_arctic"));
        let mut script = Command::new("script");
        script
            .args(["-q", "-e", "-c", &shell_line, "/dev/null"])
            .env("HOME", self.home.path())
            .env("SHELL", "/bin/sh")
            .env("NO_COLOR", "1");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = script.spawn().expect("these tests need `script` of util-linux");
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    }

    pub fn args(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }
}

pub fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
