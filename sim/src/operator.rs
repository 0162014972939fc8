//! An operator with an HTTP client, inside the simulation.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};
use turmoil::net::TcpStream;

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// An answer of an agent; status 0 when none came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// Panics unless the status is as expected.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }
}

/// A token is used this long, then asked for anew.
const TOKEN_USE: Duration = Duration::from_secs(30);

/// Remembers the credential that each host's bootstrap gave.
#[derive(Clone)]
pub struct Operator {
    credentials: Rc<RefCell<BTreeMap<String, (String, String)>>>,
    /// By host, with when it was given.
    tokens: Rc<RefCell<BTreeMap<String, (Duration, String)>>>,
    patience: Duration,
    /// Sent as `X-Arctic-Lock`.
    lock: Option<String>,
}

impl Operator {
    pub(crate) fn with_patience(patience: Duration) -> Self {
        Self { credentials: Rc::default(), tokens: Rc::default(), patience, lock: None }
    }

    /// The same operator with the token of the cluster lock.
    pub fn holding(&self, token: &str) -> Self {
        Self { lock: Some(token.to_owned()), ..self.clone() }
    }

    /// Bootstraps `host` and keeps its credential.
    pub async fn bootstrap(&self, host: &str, license: &Value) -> Value {
        let answer = self.ask_bootstrap(host, license).await.expect(201);
        self.keep_credential(host, &answer);
        answer
    }

    /// The same, with the endpoints at which the agent is reached, in order.
    pub async fn bootstrap_at(&self, host: &str, license: &Value, endpoints: &[&str]) -> Value {
        let body = serde_json::json!({"license": license, "name": host, "endpoints": endpoints});
        let answer = self.call(host, Method::POST, "/v1/bootstrap", Some(body), None).await.expect(201);
        self.keep_credential(host, &answer);
        answer
    }

    /// The same as `bootstrap`; false when it was refused or not answered.
    pub async fn try_bootstrap(&self, host: &str, license: &Value) -> bool {
        let answer = self.ask_bootstrap(host, license).await;
        if answer.status == 201 {
            self.keep_credential(host, &answer.body);
        }
        answer.status == 201
    }

    async fn ask_bootstrap(&self, host: &str, license: &Value) -> Answer {
        let body = serde_json::json!({"license": license, "name": host});
        self.call(host, Method::POST, "/v1/bootstrap", Some(body), None).await
    }

    fn keep_credential(&self, host: &str, answer: &Value) {
        let text = |key: &str| answer[key].as_str().expect("a string").to_owned();
        self.credentials.borrow_mut().insert(host.to_owned(), (text("client_id"), text("client_secret")));
        self.tokens.borrow_mut().remove(host);
    }

    async fn own_token(&self, host: &str) -> Option<String> {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let known = self.tokens.borrow().get(host).cloned();
        if let Some((_, token)) = known.filter(|(given, _)| now - *given < TOKEN_USE) {
            return Some(token);
        }
        let token = self.token(host, host).await?;
        self.tokens.borrow_mut().insert(host.to_owned(), (now, token.clone()));
        Some(token)
    }

    /// A token from `host` for the credential that the bootstrap of `issued_by` gave.
    pub async fn token(&self, host: &str, issued_by: &str) -> Option<String> {
        let (id, secret) = self.credentials.borrow().get(issued_by).cloned()?;
        self.token_of(host, &id, &secret).await
    }

    /// A token from `host` for a credential.
    pub async fn token_of(&self, host: &str, id: &str, secret: &str) -> Option<String> {
        let form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
        let answer = self
            .send(host, Method::POST, "/v1/oauth/token", "application/x-www-form-urlencoded", form.into(), None)
            .await;
        answer.body["access_token"].as_str().map(str::to_owned)
    }

    /// With a token of the caller's choice, or with none.
    pub async fn post_with(&self, host: &str, path: &str, body: Value, token: Option<&str>) -> Answer {
        self.call(host, Method::POST, path, Some(body), token.map(str::to_owned)).await
    }

    pub async fn put(&self, host: &str, path: &str, body: Value) -> Answer {
        self.authorized(host, Method::PUT, path, Some(body)).await
    }

    pub async fn get(&self, host: &str, path: &str) -> Answer {
        self.authorized(host, Method::GET, path, None).await
    }

    /// With a token that was got earlier, maybe from another agent.
    pub async fn get_with(&self, host: &str, path: &str, token: &str) -> Answer {
        self.call(host, Method::GET, path, None, Some(token.to_owned())).await
    }

    pub async fn post(&self, host: &str, path: &str, body: Value) -> Answer {
        self.authorized(host, Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, host: &str, path: &str) -> Answer {
        self.authorized(host, Method::DELETE, path, None).await
    }

    /// A token that has lost its force is replaced once.
    async fn authorized(&self, host: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let token = self.own_token(host).await;
        let answer = self.call(host, method.clone(), path, body.clone(), token).await;
        if answer.status != 401 || self.tokens.borrow_mut().remove(host).is_none() {
            return answer;
        }
        let token = self.own_token(host).await;
        self.call(host, method, path, body, token).await
    }

    async fn call(&self, host: &str, method: Method, path: &str, body: Option<Value>, token: Option<String>) -> Answer {
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        self.send(host, method, path, "application/json", bytes, token).await
    }

    async fn send(
        &self,
        host: &str,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
        token: Option<String>,
    ) -> Answer {
        let exchange = async {
            let stream = TcpStream::connect((host, 8080)).await.ok()?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
            tokio::spawn(async move { drop(connection.await) });
            let mut request =
                Request::builder().method(method).uri(path).header("host", host).header("content-type", content_type);
            if let Some(lock) = &self.lock {
                request = request.header("x-arctic-lock", lock);
            }
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = sender.send_request(request.body(Full::new(body)).ok()?).await.ok()?;
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.ok()?.to_bytes();
            Some(Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
        };
        let none = Answer { status: 0, body: Value::Null };
        tokio::time::timeout(self.patience, exchange).await.ok().flatten().unwrap_or(none)
    }

    /// Asks again every 100 ms of simulated time until `holds`, at most `bound` long; gives the time it took.
    #[track_caller]
    pub fn eventually<'a>(
        &'a self,
        host: &'a str,
        path: &'a str,
        bound: Duration,
        holds: impl Fn(&Answer) -> bool + 'a,
    ) -> impl Future<Output = Duration> + 'a {
        let asked_from = std::panic::Location::caller();
        async move {
            let start = turmoil::elapsed();
            loop {
                let answer = self.get(host, path).await;
                let waited = turmoil::elapsed() - start;
                if holds(&answer) {
                    return waited;
                }
                assert!(waited < bound, "{asked_from}: {host}{path} still not as wanted after {bound:?}: {answer:?}");
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }
}
