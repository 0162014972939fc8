//! Callers that do not stay for their answer: what has begun ends.

use super::{
    agent::{Agent, RECOVERY, license, terms},
    peers_only::until,
};
use crate::{
    api::{Api, admission, answer::Answer, endpoints::endpoints},
    model::RequestId,
    store::StoreError,
};
use axum::body::Body;
use hyper::{Method, Request};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, oneshot},
};

const BOOTSTRAP: &str = "/v1/bootstrap";

/// No write of `agent` is committed before what this gives is dropped.
async fn hold_the_store(agent: &Agent) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (enter, entered) = oneshot::channel();
    let store = agent.node.store().clone();
    let held = async move {
        let write = store.write(move |_| -> Result<(), StoreError> {
            enter.send(()).unwrap();
            released.recv().unwrap_err();
            Ok(())
        });
        write.await.unwrap();
    };
    drop(tokio::spawn(held));
    entered.await.unwrap();
    release
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_bootstrapped_by_a_caller_who_hangs_up_is_bootstrapped() {
    let agent = Agent::new().await;
    let held = hold_the_store(&agent).await;
    let body = json!({ "license": license(terms(1)) }).to_string();
    let mut stream = TcpStream::connect(agent.caller.addr).await.unwrap();
    let head = format!("POST {BOOTSTRAP} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n");
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    // It is written just before the database is.
    until(|| agent.data_dir().join("peer.key").exists()).await;
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty(), "the agent has closed the connection: {}", String::from_utf8_lossy(&answer));

    drop(held);
    until(|| agent.node.identity().is_some()).await;
    assert_eq!(agent.caller.get("/v1/peers").await.refusal(), (401, "UNAUTHORIZED"));
    let noted = async {
        loop {
            let kept = agent.caller.send(Method::GET, "/v1/audit", &[("x-arctic-recovery", RECOVERY)], "").await;
            if let Some(entry) = kept.expect(200)["entries"].as_array().unwrap().first() {
                return entry.clone();
            }
        }
    };
    let entry: Value = tokio::time::timeout(Duration::from_secs(20), noted).await.unwrap();
    assert_eq!((&entry["object"], &entry["result"]), (&json!(BOOTSTRAP), &json!("ok")));
}

/// Calls `POST /v1/bootstrap` as if it were served by another handler.
async fn call(agent: &Agent, deadline: Duration, handler: crate::api::endpoints::Handler) -> u16 {
    let endpoint = endpoints().into_iter().find(|e| e.path == BOOTSTRAP).unwrap();
    let endpoint = Arc::new(crate::api::endpoints::Endpoint { deadline, handler, ..endpoint });
    let request = Request::post(BOOTSTRAP).header("content-type", "application/json").body(Body::from("{}")).unwrap();
    let api = Arc::new(Api::new(agent.node.clone()));
    let (source, id) = (IpAddr::V4(Ipv4Addr::LOCALHOST), RequestId::mint(super::agent::START, &mut api.fork_rng()));
    admission::serve(api, &endpoint, source, id, Vec::new(), request).await.status().as_u16()
}

#[tokio::test]
async fn a_request_is_answered_at_its_deadline_and_carried_through() {
    static GO_ON: Notify = Notify::const_new();
    static HAS_ENDED: AtomicBool = AtomicBool::new(false);
    let agent = Agent::new().await;
    let answered = call(&agent, Duration::from_millis(10), |_| {
        Box::pin(async {
            GO_ON.notified().await;
            HAS_ENDED.store(true, Ordering::SeqCst);
            Ok(Answer::no_content())
        })
    });
    assert_eq!(answered.await, 500);
    assert!(!HAS_ENDED.load(Ordering::SeqCst));
    GO_ON.notify_one();
    until(|| HAS_ENDED.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn a_handler_that_panics_is_an_internal_error() {
    let agent = Agent::new().await;
    let answered = call(&agent, Duration::from_secs(3), |_| Box::pin(async { panic!("a defect") }));
    assert_eq!(answered.await, 500);
}
