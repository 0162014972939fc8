//! HTTP/1.1 calls to other agents, over `env::Net`: plain ones (identity, handshake) and peer-signed ones.

use crate::{
    env::Env,
    model::{Endpoint, PeerId, Rng},
    store::Author,
    wire::{
        nonces::mint_nonce,
        request::{HEADER_PEER, OnBehalf, SignedRequest},
    },
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use std::{io, sync::Mutex, time::Duration};
use tokio::sync::mpsc;

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer read from a peer: a gossip message.
pub const ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Pieces of a stream that wait to be passed on.
const STREAM_CHUNKS_MAX: usize = 16;
/// Largest answer read from whoever an address leads to, before anything is proven (security.md row 17).
const UNPROVEN_ANSWER_MAX_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("connection refused")]
    Refused,
    /// No connection within [`CONNECT_TIMEOUT`].
    #[error("connection timeout")]
    Timeout,
    /// Connected, but no answer in time: the request may have been acted upon.
    #[error("no answer in time")]
    NoAnswer,
    #[error("host name not found")]
    NoSuchHost,
    #[error("the endpoint leads to the agent's own host or to none")]
    NotAnotherHost,
    #[error("connection failed: {0}")]
    Io(io::Error),
    #[error("not an answer of an agent: {0}")]
    Protocol(String),
    /// Whoever answered cannot have acted upon the request: it was signed for the peer that was meant.
    #[error("another peer answers at the endpoint")]
    OtherPeer,
}

impl CallError {
    /// Whether the other side may have acted upon the request: then it is not tried elsewhere.
    pub fn may_have_been_sent(&self) -> bool {
        matches!(self, CallError::NoAnswer | CallError::Protocol(_))
    }
}

/// What an agent answered.
#[derive(Debug, Clone)]
pub struct PeerAnswer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The endpoint that answered.
    pub endpoint: Endpoint,
    /// From the request to the head of the answer, on a connection that stands: one round trip and the peer's work.
    pub round_trip: Duration,
}

/// One call. `path` includes the query.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub body: Bytes,
    pub answer_timeout: Duration,
    /// Headers of an operator's request that are passed on with it.
    pub passed_on: Vec<(HeaderName, HeaderValue)>,
}

impl Call {
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: Bytes::new(),
            answer_timeout: ANSWER_TIMEOUT,
            passed_on: Vec::new(),
        }
    }
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            method: Method::POST,
            path: path.into(),
            body: body.into(),
            answer_timeout: ANSWER_TIMEOUT,
            passed_on: Vec::new(),
        }
    }
}

/// Makes calls for one node.
pub struct PeerClient {
    env: Env,
    nonces: Mutex<Rng>,
}

impl PeerClient {
    pub fn new(env: Env) -> Self {
        let nonces = Mutex::new(env.rng("peer-client/nonces"));
        Self { env, nonces }
    }

    /// An unsigned call: identity and handshake.
    pub async fn call(&self, endpoint: &Endpoint, call: &Call) -> Result<PeerAnswer, CallError> {
        self.exchange(endpoint, call, Vec::new(), UNPROVEN_ANSWER_MAX_BYTES).await
    }

    /// A peer-signed call to `target` at `endpoint`.
    pub async fn call_signed(
        &self,
        author: &Author,
        target: PeerId,
        endpoint: &Endpoint,
        call: &Call,
        on_behalf: Option<&OnBehalf>,
    ) -> Result<PeerAnswer, CallError> {
        let headers = self.signature(author, target, call, on_behalf);
        let answer = self.exchange(endpoint, call, headers, ANSWER_MAX_BYTES).await?;
        if is_of(&answer.headers, target) { Ok(answer) } else { Err(CallError::OtherPeer) }
    }

    /// The same for an answer that does not end: its head, and its body as it comes.
    pub async fn open_signed(
        &self,
        author: &Author,
        target: PeerId,
        endpoint: &Endpoint,
        call: &Call,
        on_behalf: Option<&OnBehalf>,
    ) -> Result<(PeerAnswer, mpsc::Receiver<Bytes>), CallError> {
        let headers = self.signature(author, target, call, on_behalf);
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, self.env.net.connect(endpoint));
        let stream = connect.await.map_err(|_| CallError::Timeout)?.map_err(connect_error)?;
        let opening = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(protocol)?;
            let request = request_of(endpoint, call, headers)?;
            let mut connection = Box::pin(connection);
            let sent_at = self.env.clock.mono();
            let response = tokio::select! {
                biased;
                response = sender.send_request(request) => response.map_err(protocol)?,
                ended = &mut connection => {
                    let why = ended.err().map_or("it ended".to_owned(), |e| e.to_string());
                    return Err(CallError::Protocol(why));
                }
            };
            let round_trip = self.env.clock.mono() - sent_at;
            let (head, body) = response.into_parts();
            if !is_of(&head.headers, target) {
                return Err(CallError::OtherPeer);
            }
            let (chunks, received) = mpsc::channel(STREAM_CHUNKS_MAX);
            tokio::spawn(async move {
                let _open = sender;
                pass_on(body, connection, chunks).await;
            });
            let (status, headers) = (head.status.as_u16(), head.headers);
            let head = PeerAnswer { status, headers, body: Bytes::new(), endpoint: endpoint.clone(), round_trip };
            Ok((head, received))
        };
        tokio::time::timeout(call.answer_timeout, opening).await.map_err(|_| CallError::NoAnswer)?
    }

    fn signature(
        &self,
        author: &Author,
        target: PeerId,
        call: &Call,
        on_behalf: Option<&OnBehalf>,
    ) -> Vec<(&'static str, String)> {
        let nonce = mint_nonce(&mut self.nonces.lock().unwrap_or_else(|p| p.into_inner()));
        let signed = SignedRequest {
            method: call.method.as_str(),
            path: &call.path,
            body: &call.body,
            timestamp: self.env.clock.unix(),
            nonce,
            sender: author.peer_id,
            target,
            on_behalf,
        };
        signed.headers(&author.key)
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        call: &Call,
        headers: Vec<(&'static str, String)>,
        answer_max_bytes: usize,
    ) -> Result<PeerAnswer, CallError> {
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, self.env.net.connect(endpoint));
        let stream = connect.await.map_err(|_| CallError::Timeout)?.map_err(connect_error)?;
        let answer = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(protocol)?;
            let request = request_of(endpoint, call, headers)?;
            let clock = &self.env.clock;
            let exchange = async {
                let sent_at = clock.mono();
                let response = sender.send_request(request).await.map_err(protocol)?;
                let round_trip = clock.mono() - sent_at;
                let (head, body) = response.into_parts();
                let body = Limited::new(body, answer_max_bytes)
                    .collect()
                    .await
                    .map_err(|e| CallError::Protocol(e.to_string()))?
                    .to_bytes();
                let (status, headers) = (head.status.as_u16(), head.headers);
                Ok(PeerAnswer { status, headers, body, endpoint: endpoint.clone(), round_trip })
            };
            tokio::pin!(exchange, connection);
            tokio::select! {
                biased;
                answer = &mut exchange => answer,
                ended = &mut connection => match ended {
                    // The whole answer may have arrived together with the end of the connection.
                    Ok(()) => exchange.await,
                    Err(e) => Err(protocol(e)),
                },
            }
        };
        tokio::time::timeout(call.answer_timeout, answer).await.map_err(|_| CallError::NoAnswer)?
    }
}

fn is_of(headers: &HeaderMap, target: PeerId) -> bool {
    headers.get(HEADER_PEER).and_then(|id| id.to_str().ok()?.parse().ok()) == Some(target)
}

fn request_of(
    endpoint: &Endpoint,
    call: &Call,
    headers: Vec<(&'static str, String)>,
) -> Result<Request<Full<Bytes>>, CallError> {
    let mut request = Request::builder()
        .method(&call.method)
        .uri(&call.path)
        .header(header::HOST, endpoint.to_string())
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    for (name, value) in &call.passed_on {
        request = request.header(name, value);
    }
    request.body(Full::new(call.body.clone())).map_err(|e| CallError::Protocol(e.to_string()))
}

/// Passes a body on as it comes, until it ends or nobody listens.
async fn pass_on(mut body: Incoming, connection: impl Future<Output = hyper::Result<()>>, chunks: mpsc::Sender<Bytes>) {
    let passing = async {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(bytes) = frame.into_data()
                && chunks.send(bytes).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = passing => {}
        () = chunks.closed() => {}
        ended = connection => if let Err(e) = ended {
            tracing::debug!(error = %e, "a stream of another agent ended");
        },
    }
}

fn connect_error(e: io::Error) -> CallError {
    match e.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => CallError::Refused,
        io::ErrorKind::TimedOut => CallError::Timeout,
        io::ErrorKind::NotFound => CallError::NoSuchHost,
        io::ErrorKind::InvalidInput => CallError::NotAnotherHost,
        _ => CallError::Io(e),
    }
}

fn protocol(e: hyper::Error) -> CallError {
    CallError::Protocol(e.to_string())
}
